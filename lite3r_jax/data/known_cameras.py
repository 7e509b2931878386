"""Known cameras of photos, read from an NPZ, a COLMAP model or a transforms.json.

Cameras with names are found by the names of the photos. Matrices are OpenCV's, world-to-camera. A
rotation and a translation alone do not show whether they are camera-to-world instead, or have
OpenGL's axes; errors that do show are refused.
"""

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lite3r_jax.data.captures import find_model
from lite3r_jax.data.colmap_model import read_colmap
from lite3r_jax.data.photos import SourcePhoto
from lite3r_jax.data.posed import PosedPhoto, check_upright, relative_name
from lite3r_jax.data.transforms import fit_intrinsics
from lite3r_jax.data.transforms_json import read_transforms
from lite3r_jax.data.views import ROTATION_TOLERANCE
from lite3r_jax.errors import InputError
from lite3r_jax.npz_file import open_npz

_KEYS = {"extrinsics", "intrinsics", "names", "sizes"}
# Not wider than this, in degrees: intrinsics divided by the size of the photo are.
_WIDEST = 170.0
# A principal point that is off the middle by more than this factor, the same in x and y, is that of
# a photo of another size.
_RESIZED, _SAME = 1.2, 0.02
_LARGEST = 1e12  # squares of differences still fit into float32
_MOST_BYTES = 1 << 27  # of one array: a million cameras


class NamedPhoto(Protocol):
    """Interface of a photo that cameras are matched to; `photos.SourcePhoto` implements it."""

    @property
    def name(self) -> str:
        """Relative file name of the photo."""
        ...

    @property
    def label(self) -> str:
        """Name of the photo in messages."""
        ...

    @property
    def source(self) -> Any:
        """File, image or array that the photo is read from."""
        ...


@dataclass(frozen=True, eq=False)
class KnownCameras:
    """Known cameras of photos, which are matched to the photos by name or by order.

    Attributes:
        source: where they come from, for messages.
        cameras: one for each photo; their names are empty where `named` is false.
        named: whether they go by name, or else by order.
        upright: whether they are for the photos as EXIF turns them, and not as they are stored.
    """

    source: str
    cameras: tuple[PosedPhoto, ...]
    named: bool = True
    upright: bool = False

    def of(self, photos: Sequence[NamedPhoto]) -> "KnownCameras":
        """Returns the cameras of the given photos, in their order, without those of other photos.

        A camera and a photo belong together if their names are equal from the end on, as far as
        both go: "img1.png" and "images/img1.png". Blanks may be "_", as COLMAP needs them to be.
        Without names the order tells.

        Raises:
            InputError: a photo without a camera, or one that two cameras fit; without names,
                another number of photos.
        """
        if not self.named:
            if len(self.cameras) != len(photos):
                raise InputError(
                    f"{self.source}: has {len(self.cameras)} cameras without names for"
                    f" {len(photos)} photos; give one for each, in the order of the photos, or add"
                    " names"
                )
            return self
        places = defaultdict(list)
        for camera in self.cameras:
            places[_from_end(camera.name)[0]].append(camera)
        matched, missing = [], []
        for photo in photos:
            there = places[_from_end(photo.name)[0]]
            fits = [camera for camera in there if _ends_alike(camera.name, photo.name)]
            fits = [camera for camera in fits if camera.name == photo.name] or fits
            if len(fits) > 1:
                raise InputError(
                    f"{self.source}: {fits[0].name} and {fits[1].name} could both be"
                    f" {photo.name}; name photos and cameras with the same folders"
                )
            (matched if fits else missing).append(fits[0] if fits else photo)
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            some = ", ".join(camera.name for camera in self.cameras[:3])
            raise InputError(
                f"{self.source}: has no camera for {', '.join(p.name for p in missing[:3])}{more},"
                f" but {len(self.cameras)} others ({some}); leave those photos out, or add their"
                " cameras"
            )
        seen: dict[str, str] = {}
        for camera, photo in zip(matched, photos, strict=True):
            if camera.name in seen:
                raise InputError(
                    f"{self.source}: the camera {camera.name} fits {seen[camera.name]} and"
                    f" {photo.name}; name cameras with their folders"
                )
            seen[camera.name] = photo.name
        return replace(self, cameras=tuple(matched))

    def photographed(self, photos: Sequence[SourcePhoto]) -> tuple[SourcePhoto, ...]:
        """Returns the photos with their cameras attached, so that reading removes lens distortion.

        Args:
            photos: those that were given to `of`.
        """
        pairs = zip(photos, self.cameras, strict=True)
        return tuple(replace(photo, camera=camera) for photo, camera in pairs)

    def matrices(
        self, photos: Sequence[NamedPhoto], sizes: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the cameras as arrays of extrinsics and intrinsics.

        Args:
            photos: those that were given to `of`; their files are checked for EXIF orientation.
            sizes: [S, 2] (width, height) of the upright photos.

        Returns:
            (extrinsics float64 [S, 3, 4] world-to-camera, intrinsics float64 [S, 3, 3] in pixels of
            the photos, centers at integers, undistorted where their lens distorts).

        Raises:
            InputError: a photo that is stored turned, or of another size than its camera is for.
        """
        intrinsics = []
        for camera, photo, size in zip(self.cameras, photos, sizes.tolist(), strict=True):
            if not self.upright:
                check_upright(photo.source, photo.label)
            k = camera.intrinsics(size)
            self._check_size(camera, photo.name, k, size)
            intrinsics.append(k)
        extrinsics = np.stack([camera.extrinsics for camera in self.cameras])
        largest = max(np.abs(extrinsics).max(), np.abs(intrinsics).max())
        if largest > _LARGEST:
            raise InputError(
                f"{self.source}: holds a number as large as {largest:.0e}; expected cameras near"
                " the origin, in pixels and a unit of the scene's size"
            )
        return extrinsics, np.stack(intrinsics)

    def _check_size(self, camera: PosedPhoto, name: str, k: np.ndarray, size: list[int]) -> None:
        width, height = size
        if camera.size is not None:
            if camera.size != (width, height):
                raise InputError(
                    f"{name}: is {width}x{height}, its camera in {self.source} is for"
                    f" {camera.size[0]}x{camera.size[1]}; use the photos that the cameras were made"
                    " with"
                )
            return
        angle = float(np.degrees(2 * np.arctan(width / 2 / k[0, 0])))
        ratio = (k[:2, 2] + 0.5) / (width / 2, height / 2)
        factor = float(ratio.mean())
        alike = abs(ratio[0] - ratio[1]) <= _SAME * abs(factor)
        inside = (ratio > 0).all() and (ratio < 2).all()
        if angle > _WIDEST or not inside or (alike and not 1 / _RESIZED < factor < _RESIZED):
            raise InputError(
                f"{name}: is {width}x{height}, but its camera in {self.source} has a principal"
                f" point of {k[0, 2]:.6g}, {k[1, 2]:.6g} and sees {angle:.3g} degrees; intrinsics"
                " have to be in pixels of this photo, not of a resized one and not divided by its"
                " size; if they are right, give the sizes of the photos with them"
            )


def network_intrinsics(
    intrinsics: np.ndarray, boxes: np.ndarray, size: tuple[int, int]
) -> np.ndarray:
    """Converts intrinsics of photos to network images; inverse of `Scene.source_intrinsics`.

    Args:
        intrinsics: [S, 3, 3] in pixels of the photos, centers at integers.
        boxes: [S, 6], see `images.load_images_with_boxes`.
        size: (height, width) of the network images.

    Returns:
        float64 [S, 3, 3] in pixels of the network images, centers at integers.
    """
    fitted = []
    for k, (x1, y1, x2, y2, width, height) in zip(intrinsics, boxes.astype(float), strict=True):
        x, y = width / (x2 - x1), height / (y2 - y1)
        # the piece of the photo that the network image shows
        piece = (-x1 * x, -y1 * y, (size[1] - x1) * x, (size[0] - y1) * y)
        fitted.append(fit_intrinsics(k, piece, size))
    return np.stack(fitted)


def read_known_cameras(path: str | os.PathLike[str]) -> KnownCameras:
    """Reads known cameras from an NPZ, a transforms.json or a COLMAP model.

    Args:
        path: one of
            - an NPZ with `extrinsics` [S, 3, 4] or [S, 4, 4] world-to-camera, `intrinsics`
              [S, 3, 3] in pixels of the photos (centers at integers), and perhaps `names` [S] of
              the photos, without which the order tells, and `sizes` [S, 2] (width, height) of the
              photos that the intrinsics are for;
            - a predictions.npz of this package;
            - a transforms.json of nerfstudio, see `transforms_json`;
            - a folder with a COLMAP model, see `colmap_model`, or one with sparse/0 or a
              transforms.json in it.

    Raises:
        InputError: naming file and place, for what is missing, damaged or no camera.
    """
    path = Path(path)
    if not os.path.exists(path):
        raise InputError(
            f"{path}: no such file or folder; give an NPZ, a transforms.json or a COLMAP model"
        )
    if path.is_dir():
        path = find_model(path)
    if path.is_dir():
        return KnownCameras(str(path), tuple(read_colmap(path)))
    if path.suffix.lower() == ".json":
        return KnownCameras(str(path), tuple(read_transforms(path)))
    if path.suffix.lower() == ".npz":
        return _read_npz(path)
    raise InputError(
        f"{path}: expected cameras in a .npz, a transforms.json or the folder of a COLMAP model"
    )


def known_cameras(
    extrinsics: Any,
    intrinsics: Any,
    names: Sequence[str] | None = None,
    sizes: Any = None,
    source: str = "known cameras",
) -> KnownCameras:
    """Makes known cameras from arrays, as `read_known_cameras` does from files.

    Args:
        extrinsics: [S, 3, 4] or [S, 4, 4] world-to-camera.
        intrinsics: [S, 3, 3] in pixels of the photos, centers at integers.
        names: of the photos; None: the order tells.
        sizes: [S, 2] (width, height) of the photos; None: not known.
        source: what messages call them.

    Raises:
        InputError: other shapes, values that are no camera, names that come twice.
    """
    extrinsics, intrinsics = (
        _numbers(value, f"{source}: {key}")
        for key, value in (("extrinsics", extrinsics), ("intrinsics", intrinsics))
    )
    count = len(extrinsics) if extrinsics.ndim else 0
    if count == 0 or extrinsics.shape[1:] not in ((3, 4), (4, 4)):
        raise InputError(
            f"{source}: extrinsics are {list(extrinsics.shape)}, expected [S, 3, 4] or [S, 4, 4]"
        )
    if intrinsics.shape != (count, 3, 3):
        raise InputError(
            f"{source}: intrinsics are {list(intrinsics.shape)}, expected {[count, 3, 3]} beside"
            f" {count} extrinsics"
        )
    given = [None] * count
    if sizes is not None:
        pairs = _numbers(sizes, f"{source}: sizes")
        if pairs.shape != (count, 2) or not ((pairs > 0) & (pairs == np.rint(pairs))).all():
            raise InputError(f"{source}: sizes: expected {[count, 2]} widths and heights in pixels")
        given = [(int(width), int(height)) for width, height in pairs]
    labels = [""] * count
    if names is not None:
        labels = [relative_name(str(name), f"{source}: names") for name in names]
        if len(labels) != count or len(set(labels)) != count:
            raise InputError(f"{source}: names: expected {count} different ones, got {len(labels)}")
    cameras = []
    for i, (name, pose, k, size) in enumerate(
        zip(labels, extrinsics, intrinsics, given, strict=True)
    ):
        _check_camera(pose, k, f"{source}: camera {name or i}")
        lens = (float(k[0, 0]), float(k[1, 1]), float(k[0, 2]), float(k[1, 2]))
        cameras.append(PosedPhoto(name, size, pose[:3], lens))
    return KnownCameras(source, tuple(cameras), names is not None)


def _check_camera(pose: np.ndarray, k: np.ndarray, place: str) -> None:
    rotation = pose[:3, :3]
    expected = "expected world-to-camera [R | t] of OpenCV"
    if not (np.isfinite(pose).all() and np.isfinite(k).all()):
        raise InputError(f"{place}: holds NaN or infinite values; leave its photo out")
    if len(pose) == 4 and not np.allclose(pose[3], (0, 0, 0, 1), rtol=0, atol=1e-5):
        turned = " (they are transposed)" if np.allclose(pose[:3, 3], 0) else ""
        raise InputError(
            f"{place}: the last row of its extrinsics is not 0 0 0 1{turned}; {expected}"
        )
    with np.errstate(over="ignore", invalid="ignore"):
        square = rotation @ rotation.T
        scale = np.sqrt(np.trace(square) / 3)
        off = np.abs(square - np.eye(3)).max()
        scaled = np.abs(square / scale**2 - np.eye(3)).max() <= ROTATION_TOLERANCE
    if not off <= ROTATION_TOLERANCE:
        what = f"a rotation times {scale:.4g}" if scaled else "no rotation"
        raise InputError(f"{place}: its extrinsics hold {what}; {expected}, without scale")
    if np.linalg.det(rotation) < 0:
        raise InputError(
            f"{place}: its rotation is a mirror image (determinant -1); {expected}, whose camera"
            " looks along +z with y down"
        )
    if not (k[0, 0] > 0 and k[1, 1] > 0):
        raise InputError(
            f"{place}: focal lengths {k[0, 0]:g} and {k[1, 1]:g}; expected positive ones in pixels"
        )
    if not np.allclose((k[1, 0], *k[2]), (0, 0, 0, 1), rtol=0, atol=1e-5):
        raise InputError(
            f"{place}: expected intrinsics fx 0 cx / 0 fy cy / 0 0 1 in pixels; transpose them?"
        )
    if abs(k[0, 1]) > 1e-4 * k[0, 0]:
        raise InputError(f"{place}: its pixels are skewed ({k[0, 1]:g}), expected 0 there")


def _read_npz(path: Path) -> KnownCameras:
    with open_npz(path) as file:
        there = set(file.names)
        # results of this package, whose `intrinsics` are those of the network images
        own = {"source_intrinsics", "source_sizes"} <= there
        keys = {key: key for key in sorted(there & _KEYS)}
        if own:
            keys |= {"intrinsics": "source_intrinsics", "sizes": "source_sizes"}
        if not own and (wrong := sorted(there - _KEYS)):
            raise InputError(
                f"arrays {', '.join(wrong)[:200]} are not known; expected extrinsics"
                " (world-to-camera), intrinsics in pixels of the photos, and perhaps names and"
                " sizes"
            )
        if missing := sorted({"extrinsics", "intrinsics"} - set(keys)):
            raise InputError(f"has no {' and no '.join(missing)}; add them")
        arrays = {key: file.read(name, most=_MOST_BYTES) for key, name in keys.items()}
    names = arrays.get("names")
    if names is not None and (names.ndim != 1 or names.dtype.kind != "U"):
        raise InputError(f"{path}: names: expected a list of texts, got {names.dtype}")
    cameras = known_cameras(
        arrays["extrinsics"],
        arrays["intrinsics"],
        None if names is None else names.tolist(),
        arrays.get("sizes"),
        str(path),
    )
    return replace(cameras, upright=own)


def _numbers(value: Any, place: str) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype.kind not in "fiu":
        raise InputError(f"{place}: expected numbers, got {array.dtype}")
    return array.astype(np.float64)


def _from_end(name: str) -> list[str]:
    return name.replace(" ", "_").split("/")[::-1]


def _ends_alike(one: str, other: str) -> bool:
    return all(a == b for a, b in zip(_from_end(one), _from_end(other), strict=False))
