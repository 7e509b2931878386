"""A scene as one NPZ file, and back."""

import math
import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from lite3r_jax.errors import InputError
from lite3r_jax.scene import Scene

FORMAT_VERSION = 1
CONVENTIONS = """\
Written by lite3r_jax. S views of H x W pixels; world: camera frame of the first view, unit is the
model's own; with known cameras, both are theirs. Cameras: OpenCV (x right, y down, z forward).
Pixel centres are at integers: (0, 0) is the centre of the first pixel. names [S]; images [S, H, W,
3] RGB; depth [S, H, W], z in the camera frame; depth_conf [S, H, W], larger is surer; extrinsics
[S, 3, 4], world to camera; intrinsics [S, 3, 3] in pixels of images; source_intrinsics [S, 3, 3] in
pixels of the upright photos, whose (width, height) are source_sizes [S, 2]; boxes [S, 4], edges
(x1, y1, x2, y2) of the whole photos in images, measured from the outer corner of the first pixel;
world_points [S, H, W, 3] and world_points_conf [S, H, W] of the point head, if there is one.
"""
# name: (dtype, number of axes)
_REQUIRED = {
    "format_version": ("<i8", 0), "conventions": ("<U", 0), "names": ("<U", 1),
    "images": ("|u1", 4), "depth": ("<f4", 3), "depth_conf": ("<f4", 3),
    "extrinsics": ("<f4", 3), "intrinsics": ("<f4", 3), "source_intrinsics": ("<f8", 3),
    "boxes": ("<f4", 2), "source_sizes": ("<i8", 2),
}  # fmt: skip
_HEAD = {"world_points": ("<f4", 4), "world_points_conf": ("<f4", 3)}
# What zipfile and NumPy raise on damaged files.
_DAMAGE = (
    OSError, EOFError, ValueError, TypeError, LookupError, SyntaxError, RuntimeError, MemoryError,
    ArithmeticError, zipfile.BadZipFile, zlib.error, struct.error,
)  # fmt: skip


def write_npz(scene: Scene, path: Path) -> None:
    """Write all arrays of the scene (not its photos), `source_intrinsics` and the conventions.

    The arrays are stored as they are: to deflate those of 5 Mpx took 3.7 s instead of 0.15 s, for
    two fifths of the size at best.
    """
    own = {"format_version": FORMAT_VERSION, "conventions": CONVENTIONS}
    arrays = {}
    for name, (dtype, _) in (_REQUIRED | _HEAD).items():
        values = own[name] if name in own else getattr(scene, name)
        if values is not None:
            arrays[name] = np.asarray(values, dtype, order="C")
    with path.open("wb") as file:
        np.savez(file, **arrays)


def read_npz(path: str | os.PathLike[str]) -> Scene:
    """Read what `write_npz` wrote; the scene comes without photos and its arrays are read-only.

    Nothing of the file is executed, nothing larger than the file is made, and the checksums of the
    archive are verified.

    Raises:
        InputError: the file cannot be read, is damaged, or is not of this kind and version.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            _check_names(set(members))
            arrays: dict[str, Any] = {
                name: _read_array(archive, name, info) for name, info in members.items()
            }
        version = int(arrays.pop("format_version"))
        if version != FORMAT_VERSION:
            raise InputError(f"format version {version}, expected {FORMAT_VERSION}")
        del arrays["conventions"], arrays["source_intrinsics"]
        return Scene(names=tuple(arrays.pop("names").tolist()), **arrays)
    except InputError as error:
        raise InputError(f"{os.fspath(path)}: {error}; write it again with this version") from error
    except _DAMAGE as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or "cut short"
        raise InputError(
            f"{os.fspath(path)}: cannot be read as NPZ ({reason}); copy or write it again"
        ) from error


def _check_names(names: set[str]) -> None:
    required = set(_REQUIRED)
    if wrong := (required - names) | (names - required - set(_HEAD)):
        raise InputError(
            f"is no predictions.npz: arrays missing or unknown: {', '.join(sorted(wrong))[:200]}"
        )


def _read_array(archive: zipfile.ZipFile, name: str, info: zipfile.ZipInfo) -> np.ndarray:
    if info.compress_type != zipfile.ZIP_STORED:
        raise InputError(f"{name} is compressed, expected stored arrays")
    kind, dimensions = (_REQUIRED | _HEAD)[name]
    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        if version != (1, 0):
            raise InputError(f"{name} has NPY version {version}, expected (1, 0)")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        if not dtype.str.startswith(kind) or len(shape) != dimensions or fortran:
            raise InputError(
                f"{name} is {dtype.str} {list(shape)}, expected {kind} with {dimensions} axes"
            )
        data = file.read()  # to the end, where the checksum is compared
    return np.frombuffer(data, dtype, math.prod(shape)).reshape(shape)
