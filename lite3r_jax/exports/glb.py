"""Writes points and cameras as binary glTF 2.0 (registry.khronos.org/glTF/specs/2.0).

glTF's axes are x right, y up, z backward. The scene is placed so that the first camera stands at
the origin and looks along -z with +y up: p_gltf = flip(R_0 p_world + t_0).

Points are a primitive of mode POINTS. Every view is a node with its name and its camera-to-world
matrix; it holds the frustum of the network image, made of thin bars because many viewers draw no
lines, and below it a glTF camera, which cannot hold the principal point. The upper side of the
frustum has a tip. Colors run from red (first view) to violet. Vertex colors are linear and have
16 bits, as glTF wants: 8 bits are too few for dark tones.
"""

import colorsys
import json
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np

from lite3r_jax.errors import InputError
from lite3r_jax.exports.cameras import FLIP, opengl_poses
from lite3r_jax.exports.points import PointCloud, diagonal
from lite3r_jax.scene import UNITS, Scene

_FLOAT, _USHORT = 5126, 5123
_ARRAY_BUFFER, _ELEMENT_ARRAY_BUFFER = 34962, 34963
_POINTS = 0
_MAX_BYTES = 2**32 - 1
_BAR = 0.015  # width of a bar over the length of the frustum
# pairs of: 0 the center of the camera, 1 to 4 the corners of the image, 5 the tip
_BARS = np.array([(0, 1), (0, 2), (0, 3), (0, 4), (1, 2), (2, 3), (3, 4), (4, 1), (1, 5), (2, 5)])


def write_glb(scene: Scene, cloud: PointCloud, path: Path, frustum: float = 0.05) -> None:
    """Writes a GLB file with the points and cameras of a scene.

    Args:
        scene: scene with the cameras.
        cloud: points of the scene.
        path: file to write.
        frustum: length of the frusta as a fraction of the `diagonal` of the points; 0: none.

    Raises:
        InputError: the points exceed the 4 GiB of the format.
    """
    gltf = _Gltf()
    world = FLIP @ scene.extrinsics[0].astype(np.float64)
    xyz = cloud.xyz @ world[:, :3].T.astype(np.float32)
    xyz += world[:, 3].astype(np.float32)
    colors = np.full((len(cloud), 4), 65535, np.uint16)
    colors[:, :3] = _LINEAR[cloud.rgb]
    attributes = {
        "POSITION": gltf.add_array(xyz, "VEC3", _ARRAY_BUFFER, bounds=True),
        "COLOR_0": gltf.add_array(colors, "VEC4", _ARRAY_BUFFER, normalized=True),
    }
    mesh = gltf.add(
        "meshes", name="points", primitives=[{"attributes": attributes, "mode": _POINTS}]
    )
    roots = [gltf.add("nodes", name="points", mesh=mesh)]
    if frustum:
        length = frustum * (diagonal(xyz) or 1.0)
        roots += _add_cameras(gltf, scene, world, length)
    gltf.write(path, roots, scene.unit)


def _add_cameras(gltf: "_Gltf", scene: Scene, world: np.ndarray, length: float) -> list[int]:
    height, width = scene.size
    poses = np.concatenate([world, [[0, 0, 0, 1]]]) @ opengl_poses(scene)
    indices = None
    nodes = []
    for s, name in enumerate(scene.names):
        vertices, triangles = _frustum(scene.intrinsics[s], width, height, length)
        if indices is None:
            indices = gltf.add_array(triangles.reshape(-1), "SCALAR", _ELEMENT_ARRAY_BUFFER)
        hue = 0.8 * s / max(scene.views - 1, 1)
        material = gltf.add(
            "materials",
            pbrMetallicRoughness={"baseColorFactor": [*colorsys.hsv_to_rgb(hue, 0.9, 0.9), 1.0]},
            extensions={"KHR_materials_unlit": {}},
            doubleSided=True,
        )
        position = gltf.add_array(vertices, "VEC3", _ARRAY_BUFFER, bounds=True)
        primitive = {
            "attributes": {"POSITION": position}, "indices": indices, "material": material
        }  # fmt: skip
        mesh = gltf.add("meshes", name=name, primitives=[primitive])
        fx, fy = float(scene.intrinsics[s, 0, 0]), float(scene.intrinsics[s, 1, 1])
        lens = {
            "yfov": 2 * math.atan(height / 2 / fy),
            "aspectRatio": (width / fx) / (height / fy),
            "znear": length / 100,
        }
        camera = gltf.add("cameras", type="perspective", perspective=lens)
        below = gltf.add("nodes", name=f"{name} camera", camera=camera)
        matrix = poses[s].T.reshape(-1).tolist()  # column by column
        nodes.append(gltf.add("nodes", name=name, mesh=mesh, matrix=matrix, children=[below]))
    return nodes


def _frustum(
    k: np.ndarray, width: int, height: int, length: float
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mesh of a frustum: vertices [N, 3] in the glTF camera frame, triangles [M, 3]."""
    u = np.array([-0.5, width - 0.5, width - 0.5, -0.5, (width - 1) / 2])
    v = np.array([-0.5, -0.5, height - 0.5, height - 0.5, -0.5 - height / 4])
    rays = np.stack(
        [(u - k[0, 2]) / k[0, 0], (v - k[1, 2]) / k[1, 1], np.ones(5)], -1
    )  # corners from the upper left on, then the tip above the upper side
    ends = np.concatenate([np.zeros((1, 3)), rays @ FLIP])
    ends *= length / np.linalg.norm(rays, axis=-1).max()
    bars = ends[_BARS]
    along = bars[:, 1] - bars[:, 0]
    # any axis that is not parallel to the bar
    helper = np.eye(3)[np.argmin(np.abs(along), -1)]
    a = np.cross(along, helper)
    a *= _BAR * length / 2 / np.linalg.norm(a, axis=-1, keepdims=True)
    b = np.cross(along, a) / np.linalg.norm(along, axis=-1, keepdims=True)
    ring = np.stack([a + b, a - b, -a - b, b - a], 1)  # [bars, 4, 3]
    vertices = bars[:, :, None] + ring[:, None]  # [bars, 2 ends, 4, 3]
    first = np.arange(4)
    second = (first + 1) % 4
    sides = np.concatenate(
        [np.stack([first, second, second + 4], -1), np.stack([first, second + 4, first + 4], -1)]
    )
    triangles = (np.arange(len(bars)) * 8)[:, None, None] + sides
    return vertices.reshape(-1, 3).astype(np.float32), triangles.reshape(-1, 3).astype(np.uint16)


def _linear_of_srgb() -> np.ndarray:
    """Returns the table uint16 [256] from sRGB bytes to linear light (IEC 61966-2-1)."""
    c = np.arange(256) / 255
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    return np.rint(linear * 65535).astype(np.uint16)


_LINEAR = _linear_of_srgb()


class _Gltf:
    """The JSON tree and the arrays of one GLB file that is being built."""

    def __init__(self):
        self._tree: dict[str, list[dict[str, Any]]] = {}
        self._arrays: list[np.ndarray] = []
        self._size = 0

    def add(self, kind: str, **fields: Any) -> int:
        """Appends an entry to the list `kind` of the JSON tree, and returns its index."""
        entries = self._tree.setdefault(kind, [])
        entries.append(fields)
        return len(entries) - 1

    def add_array(
        self,
        array: np.ndarray,
        kind: str,
        target: int,
        *,
        normalized: bool = False,
        bounds: bool = False,
    ) -> int:
        """Adds a float32 or uint16 array [N] or [N, C]; returns the index of its accessor."""
        view = self.add(
            "bufferViews", buffer=0, byteOffset=self._size, byteLength=array.nbytes, target=target
        )
        self._arrays.append(np.ascontiguousarray(array))
        self._size += array.nbytes + -array.nbytes % 4
        fields: dict[str, Any] = {
            "bufferView": view,
            "componentType": _FLOAT if array.dtype == np.float32 else _USHORT,
            "count": len(array),
            "type": kind,
        }
        if normalized:
            fields["normalized"] = True
        if bounds:
            columns = array.T  # one by one: many times faster than along the first axis
            fields["min"] = [float(column.min()) for column in columns]
            fields["max"] = [float(column.max()) for column in columns]
        return self.add("accessors", **fields)

    def write(self, path: Path, roots: list[int], unit: str) -> None:
        """Writes header, JSON chunk and binary chunk; `unit` is the key in `UNITS` of lengths."""
        tree = {
            "asset": {
                "version": "2.0",
                "generator": "lite3r_jax",
                "extras": {"unit": UNITS[unit]},
            },
            "scene": 0,
            "scenes": [{"nodes": roots}],
            "buffers": [{"byteLength": self._size}],
            **self._tree,
        }
        if "materials" in self._tree:
            tree["extensionsUsed"] = ["KHR_materials_unlit"]
        text = json.dumps(tree, separators=(",", ":"), allow_nan=False).encode()
        text += b" " * (-len(text) % 4)
        total = 12 + 8 + len(text) + 8 + self._size
        if total > _MAX_BYTES:
            raise InputError(
                f"scene.glb: {total / 2**30:.1f} GiB, the format ends at 4; lower points.max_points"
            )
        with path.open("wb") as file:
            file.write(struct.pack("<4sII", b"glTF", 2, total))
            file.write(struct.pack("<I4s", len(text), b"JSON") + text)
            file.write(struct.pack("<I4s", self._size, b"BIN\0"))
            for array in self._arrays:
                array.tofile(file)
                file.write(b"\0" * (-array.nbytes % 4))
