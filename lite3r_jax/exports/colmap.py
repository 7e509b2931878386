"""Writes COLMAP sparse models, binary and text (colmap.github.io/format.html).

One PINHOLE camera per image. COLMAP's pixels have their centers at halves: the first pixel of an
image is at (0.5, 0.5), which is our (0, 0). Cameras are world-to-camera with OpenCV's axes, as in
`Scene`. Ids are view + 1. Points are the tracked points of a refined scene, with their tracks and
mean errors in pixels of the photos. A scene without tracks gives pixels with depth as points; each
has been observed at least by the view that it comes from: its track is that one observation, with
error 0. Where lens distortion was estimated and removed, images and model are those without it, as
`colmap image_undistorter` makes them, and distorted/sparse/0 is the model of the photos as they
were taken, with SIMPLE_RADIAL cameras: the folders of convert.py of 3DGS.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lite3r_jax.exports.cameras import quaternions
from lite3r_jax.exports.images import ImageSet, write_images
from lite3r_jax.exports.names import without_blanks
from lite3r_jax.exports.options import ColmapPoints
from lite3r_jax.exports.points import PointCloud
from lite3r_jax.scene import UNITS, PhotoLenses, Scene

# Name and number of a model; parameters are fx, fy, cx, cy, and f, cx, cy, k.
_PINHOLE, _RADIAL = ("PINHOLE", 1), ("SIMPLE_RADIAL", 2)
_CAMERA = np.dtype([("id", "<u4"), ("model", "<i4"), ("size", "<u8", 2), ("parameters", "<f8", 4)])
_IMAGE = np.dtype([("id", "<u4"), ("quat", "<f8", 4), ("t", "<f8", 3), ("camera", "<u4")])
_OBSERVATION = np.dtype([("xy", "<f8", 2), ("point", "<u8")])
_POINT = np.dtype(
    [("id", "<u8"), ("xyz", "<f8", 3), ("rgb", "u1", 3), ("error", "<f8"), ("length", "<u8")]
)
_ELEMENT = np.dtype([("image", "<u4"), ("index", "<u4")])  # of a track


def write_colmap(
    scene: Scene,
    cloud: PointCloud,
    images: ImageSet,
    folder: Path,
    *,
    points: ColmapPoints = "tracks",
    text: bool = False,
) -> None:
    """Writes `folder`/images and `folder`/sparse/0 with cameras, images and points3D.

    Args:
        scene: scene with the cameras.
        cloud: points of the scene, ordered by view.
        images: images that are written to images/; the model is in their pixels.
        folder: folder that is made.
        points: which points the model has, see `ExportOptions.colmap_points`.
        text: whether .txt files are written instead of .bin.
    """
    write_images(scene, images, folder / "images")
    write_model(scene, cloud, images, folder / "sparse" / "0", points=points, text=text)
    if scene.lenses is not None and images.kind == "source":
        place = folder / "distorted" / "sparse" / "0"
        write_model(scene, cloud, images, place, points=points, text=text, lenses=scene.lenses)


def write_model(
    scene: Scene,
    cloud: PointCloud,
    images: ImageSet,
    folder: Path,
    *,
    points: ColmapPoints = "tracks",
    text: bool = False,
    lenses: PhotoLenses | None = None,
) -> None:
    """Writes the model of `write_colmap` without its images: three files in `folder`.

    With lenses the model is that of the photos as they were taken, under the names of the views.
    """
    folder.mkdir(parents=True)
    cameras = _cameras(images, lenses)
    poses = _poses(scene)
    sparse = _sparse(scene, cloud, images, points)
    names = images.names
    if lenses is not None:
        names = without_blanks(scene.names)
        sparse = replace(sparse, pixel=_distorted(sparse, images, lenses))
    per_view, index = sparse.observations(scene.views)
    if text:
        _write_lines(folder / "cameras.txt", _camera_lines(cameras, lenses is not None))
        _write_lines(folder / "images.txt", _image_lines(poses, names, per_view))
        _write_lines(folder / "points3D.txt", _point_lines(sparse, index, UNITS[scene.unit]))
        return
    with (folder / "cameras.bin").open("wb") as file:
        file.write(_count(cameras))
        cameras.tofile(file)
    with (folder / "images.bin").open("wb") as file:
        file.write(_count(poses))
        for pose, name, seen in zip(poses, names, per_view, strict=True):
            file.write(pose.tobytes() + name.encode() + b"\0" + _count(seen))
            seen.tofile(file)
    with (folder / "points3D.bin").open("wb") as file:
        file.write(_count(sparse.xyz) + _point_bytes(sparse, index))


def _cameras(images: ImageSet, lenses: PhotoLenses | None) -> np.ndarray:
    k = images.intrinsics if lenses is None else lenses.intrinsics
    cameras = np.zeros(len(images.names), _CAMERA)
    cameras["id"] = np.arange(len(cameras)) + 1
    cameras["model"] = (_PINHOLE if lenses is None else _RADIAL)[1]
    cameras["size"] = images.sizes
    center = k[:, :2, 2] + 0.5
    columns = [k[:, 0, 0], k[:, 1, 1], center[:, 0], center[:, 1]]
    if lenses is not None:
        columns = [k[:, 0, 0], center[:, 0], center[:, 1], lenses.radial]
    cameras["parameters"] = np.stack(columns, -1)
    return cameras


def _distorted(points: "_Sparse", images: ImageSet, lenses: PhotoLenses) -> np.ndarray:
    """Returns the observations in COLMAP's pixels of the distorted photos as they were taken."""
    k, lens = images.intrinsics[points.view], lenses.intrinsics[points.view]
    slope = (points.pixel - 0.5 - k[:, :2, 2]) / k[:, (0, 1), (0, 1)]
    slope *= 1 + (lenses.radial[points.view] * (slope**2).sum(-1))[:, None]
    return slope * lens[:, (0, 1), (0, 1)] + lens[:, :2, 2] + 0.5


def _poses(scene: Scene) -> np.ndarray:
    poses = np.zeros(scene.views, _IMAGE)
    poses["id"] = poses["camera"] = np.arange(scene.views) + 1
    poses["quat"] = np.roll(quaternions(scene.extrinsics[..., :3]), 1, -1)  # w first
    poses["t"] = scene.extrinsics[..., 3]
    return poses


@dataclass(frozen=True, eq=False)
class _Sparse:
    """N points of a model and their M observations, ordered by point, in COLMAP's pixels."""

    xyz: np.ndarray
    rgb: np.ndarray
    error: np.ndarray
    track: np.ndarray
    view: np.ndarray
    pixel: np.ndarray

    def observations(self, views: int) -> tuple[list[np.ndarray], np.ndarray]:
        """Returns each view's observations, and the index [M] of each observation in its view."""
        order = np.argsort(self.view, kind="stable")
        counts = np.bincount(self.view, minlength=views)
        index = np.empty(len(order), np.int64)
        index[order] = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
        seen = np.empty(len(order), _OBSERVATION)
        seen["xy"] = self.pixel[order]
        seen["point"] = self.track[order] + 1
        return np.split(seen, np.cumsum(counts)[:-1]), index


def _sparse(scene: Scene, cloud: PointCloud, images: ImageSet, points: ColmapPoints) -> _Sparse:
    """Gathers the points of the model: tracked points, the point cloud, or both in this order."""
    parts: list[_Sparse] = []
    if scene.tracks is not None and points != "dense":
        t = scene.tracks
        pixel = images.pixels(t.view, t.pixel.astype(np.float64)) + 0.5
        parts.append(_Sparse(t.points, t.colors, t.errors, t.track, t.view, pixel))
    if not parts or points == "both":
        pixel = images.pixels(cloud.view, cloud.pixel) + 0.5
        alone, none = np.arange(len(cloud)), np.zeros(len(cloud))
        parts.append(_Sparse(cloud.xyz, cloud.rgb, none, alone, cloud.view, pixel))
    if len(parts) == 1:
        return parts[0]
    one, two = parts

    def joined(name: str) -> np.ndarray:
        return np.concatenate([getattr(one, name), getattr(two, name)])

    track = np.concatenate([one.track, two.track + len(one.xyz)])
    xyz, rgb, error = joined("xyz"), joined("rgb"), joined("error")
    return _Sparse(xyz, rgb, error, track, joined("view"), joined("pixel"))


def _point_bytes(points: _Sparse, index: np.ndarray) -> bytes:
    """Encodes points3D.bin after its count: for each point a record, then its observations."""
    count = len(points.xyz)
    head, elements = np.zeros(count, _POINT), np.zeros(len(points.track), _ELEMENT)
    lengths = np.bincount(points.track, minlength=count)
    head["id"], head["length"] = np.arange(count) + 1, lengths
    head["xyz"], head["rgb"], head["error"] = points.xyz, points.rgb, points.error
    elements["image"], elements["index"] = points.view + 1, index
    sizes = _POINT.itemsize + lengths * _ELEMENT.itemsize
    starts = np.cumsum(sizes) - sizes
    places = np.arange(len(elements)) * _ELEMENT.itemsize
    places += (points.track + 1) * _POINT.itemsize  # behind the heads up to that of its point
    body = np.empty(int(sizes.sum()), np.uint8)
    for rows, where in ((head, starts), (elements, places)):
        size = rows.itemsize
        body[where[:, None] + np.arange(size)] = rows.view(np.uint8).reshape(-1, size)
    return body.tobytes()


def _count(items: np.ndarray) -> bytes:
    return len(items).to_bytes(8, "little")


def _camera_lines(cameras: np.ndarray, distorted: bool) -> Iterable[str]:
    model, _ = _RADIAL if distorted else _PINHOLE
    yield "# CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS[]"
    for number, size, parameters in _rows(cameras, "id", "size", "parameters"):
        yield f"{number} {model} {_joined(size)} {_joined(parameters)}"


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


def _point_lines(points: _Sparse, index: np.ndarray, unit: str) -> Iterable[str]:
    yield f"# unit: {unit}"
    yield "# POINT3D_ID, X, Y, Z, R, G, B, ERROR, TRACK[] as (IMAGE_ID, POINT2D_IDX)"
    elements = np.stack([points.view + 1, index], -1).tolist()
    ends = np.cumsum(np.bincount(points.track, minlength=len(points.xyz))).tolist()
    columns = (points.xyz.astype(np.float64), points.rgb, points.error.astype(np.float64))
    rows = zip(*(column.tolist() for column in columns), [0, *ends], ends, strict=False)
    for number, (xyz, rgb, error, start, end) in enumerate(rows, 1):
        track = " ".join(f"{image} {place}" for image, place in elements[start:end])
        yield f"{number} {_joined(xyz)} {_joined(rgb)} {error:.17g} {track}"


def _rows(table: np.ndarray, *fields: str) -> Iterable[tuple[Any, ...]]:
    return zip(*(table[field].tolist() for field in fields), strict=True)


def _joined(values: Iterable[float]) -> str:
    return " ".join(map(repr, values))  # repr: reads back as the same number


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{line}\n" for line in lines)
