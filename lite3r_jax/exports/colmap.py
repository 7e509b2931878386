"""COLMAP sparse models, binary and text (colmap.github.io/format.html).

One PINHOLE camera per image. COLMAP's pixels have their centers at halves: the first pixel of an
image is at (0.5, 0.5), which is our (0, 0). Cameras are world-to-camera with OpenCV's axes, as in
`Scene`. Ids are view + 1. Every point has been observed at least by the view that it comes from:
its track is that one observation, with error 0.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from lite3r_jax.exports.cameras import quaternions
from lite3r_jax.exports.images import ImageSet, write_images
from lite3r_jax.exports.points import PointCloud
from lite3r_jax.scene import UNITS, Scene

_PINHOLE = 1  # model id; parameters fx, fy, cx, cy
_CAMERA = np.dtype([("id", "<u4"), ("model", "<i4"), ("size", "<u8", 2), ("parameters", "<f8", 4)])
_IMAGE = np.dtype([("id", "<u4"), ("quat", "<f8", 4), ("t", "<f8", 3), ("camera", "<u4")])
_OBSERVATION = np.dtype([("xy", "<f8", 2), ("point", "<u8")])
_POINT = np.dtype(
    [
        ("id", "<u8"), ("xyz", "<f8", 3), ("rgb", "u1", 3), ("error", "<f8"),
        ("length", "<u8"), ("image", "<u4"), ("index", "<u4"),
    ]
)  # fmt: skip


def write_colmap(
    scene: Scene, cloud: PointCloud, images: ImageSet, folder: Path, *, text: bool = False
) -> None:
    """Write `folder`/images and `folder`/sparse/0 with cameras, images and points3D.

    Args:
        scene: cameras.
        cloud: points of the scene, ordered by view.
        images: what is written to images/; the model is in their pixels.
        folder: made.
        text: .txt files instead of .bin.
    """
    write_images(scene, images, folder / "images")
    write_model(scene, cloud, images, folder / "sparse" / "0", text=text)


def write_model(
    scene: Scene, cloud: PointCloud, images: ImageSet, folder: Path, *, text: bool = False
) -> None:
    """Write the model of `write_colmap` alone: three files in `folder`."""
    folder.mkdir(parents=True)
    cameras = _cameras(images)
    poses = _poses(scene)
    points, observations = _points(cloud, images)
    per_view = np.split(observations, np.searchsorted(cloud.view, np.arange(1, scene.views)))
    if text:
        _write_lines(folder / "cameras.txt", _camera_lines(cameras))
        _write_lines(folder / "images.txt", _image_lines(poses, images.names, per_view))
        _write_lines(folder / "points3D.txt", _point_lines(points, UNITS[scene.unit]))
        return
    with (folder / "cameras.bin").open("wb") as file:
        file.write(_count(cameras))
        cameras.tofile(file)
    with (folder / "images.bin").open("wb") as file:
        file.write(_count(poses))
        for pose, name, seen in zip(poses, images.names, per_view, strict=True):
            file.write(pose.tobytes() + name.encode() + b"\0" + _count(seen))
            seen.tofile(file)
    with (folder / "points3D.bin").open("wb") as file:
        file.write(_count(points))
        points.tofile(file)


def _cameras(images: ImageSet) -> np.ndarray:
    k = images.intrinsics
    cameras = np.zeros(len(images.names), _CAMERA)
    cameras["id"] = np.arange(len(cameras)) + 1
    cameras["model"] = _PINHOLE
    cameras["size"] = images.sizes
    center = k[:, :2, 2] + 0.5
    cameras["parameters"] = np.stack([k[:, 0, 0], k[:, 1, 1], center[:, 0], center[:, 1]], -1)
    return cameras


def _poses(scene: Scene) -> np.ndarray:
    poses = np.zeros(scene.views, _IMAGE)
    poses["id"] = poses["camera"] = np.arange(scene.views) + 1
    poses["quat"] = np.roll(quaternions(scene.extrinsics[..., :3]), 1, -1)  # w first
    poses["t"] = scene.extrinsics[..., 3]
    return poses


def _points(cloud: PointCloud, images: ImageSet) -> tuple[np.ndarray, np.ndarray]:
    """(points3D, the observation of each), both ordered by view."""
    points = np.zeros(len(cloud), _POINT)
    points["id"] = np.arange(len(cloud)) + 1
    points["xyz"] = cloud.xyz
    points["rgb"] = cloud.rgb
    points["length"] = 1
    points["image"] = cloud.view + 1
    counts = np.bincount(cloud.view, minlength=len(images.names))
    points["index"] = np.arange(len(cloud)) - (np.cumsum(counts) - counts)[cloud.view]
    observations = np.empty(len(cloud), _OBSERVATION)
    observations["xy"] = images.pixels(cloud.view, cloud.pixel) + 0.5
    observations["point"] = points["id"]
    return points, observations


def _count(items: np.ndarray) -> bytes:
    return len(items).to_bytes(8, "little")


def _camera_lines(cameras: np.ndarray) -> Iterable[str]:
    yield "# CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS[]"
    for number, size, parameters in _rows(cameras, "id", "size", "parameters"):
        yield f"{number} PINHOLE {_joined(size)} {_joined(parameters)}"


def _image_lines(
    poses: np.ndarray, names: tuple[str, ...], per_view: list[np.ndarray]
) -> Iterable[str]:
    yield "# IMAGE_ID, QW, QX, QY, QZ, TX, TY, TZ, CAMERA_ID, NAME"
    yield "# POINTS2D[] as (X, Y, POINT3D_ID)"
    rows = _rows(poses, "id", "quat", "t", "camera")
    for (number, quat, t, camera), name, seen in zip(rows, names, per_view, strict=True):
        yield f"{number} {_joined(quat)} {_joined(t)} {camera} {name}"
        # a second line even if it is empty: readers count on it
        yield " ".join(f"{x!r} {y!r} {point}" for (x, y), point in _rows(seen, "xy", "point"))


def _point_lines(points: np.ndarray, unit: str) -> Iterable[str]:
    yield f"# unit: {unit}"
    yield "# POINT3D_ID, X, Y, Z, R, G, B, ERROR, TRACK[] as (IMAGE_ID, POINT2D_IDX)"
    for number, xyz, rgb, image, index in _rows(points, "id", "xyz", "rgb", "image", "index"):
        yield f"{number} {_joined(xyz)} {_joined(rgb)} 0 {image} {index}"


def _rows(table: np.ndarray, *fields: str) -> Iterable[tuple[Any, ...]]:
    return zip(*(table[field].tolist() for field in fields), strict=True)


def _joined(values: Iterable[float]) -> str:
    return " ".join(map(repr, values))  # repr: reads back as the same number


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{line}\n" for line in lines)
