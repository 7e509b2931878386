"""Reader of the cameras of a COLMAP sparse model, binary or text (colmap.github.io/format.html).

Only cameras and images are read, no points. COLMAP's pixels have their centers at halves, ours at
integers. Radial and tangential distortion (SIMPLE_RADIAL, RADIAL, OPENCV, FULL_OPENCV) stays with
the photo, which is undistorted when it is read (`data.lens`); fisheye and other lenses are refused.
"""

import math
import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np

from lite3r_jax.data.lens import Distortion
from lite3r_jax.data.posed import PosedPhoto, check_lens, relative_name
from lite3r_jax.data.text_file import count, number, read_text
from lite3r_jax.errors import InputError

_MODELS = (
    "SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV", "OPENCV_FISHEYE",
    "FULL_OPENCV", "FOV", "SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE", "THIN_PRISM_FISHEYE",
    "RAD_TAN_THIN_PRISM_FISHEYE",
)  # fmt: skip
# model: what its parameters are, in order (colmap/sensor/models.h)
_PARAMETERS = {
    "SIMPLE_PINHOLE": "f cx cy", "PINHOLE": "fx fy cx cy",
    "SIMPLE_RADIAL": "f cx cy k1", "RADIAL": "f cx cy k1 k2",
    "OPENCV": "fx fy cx cy k1 k2 p1 p2", "FULL_OPENCV": "fx fy cx cy k1 k2 p1 p2 k3 k4 k5 k6",
}  # fmt: skip
_DISTORTION = ("k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6")
_MAX_TEXT = 2_000_000_000
_MAX_NAME = 4096
_MAX_SIDE = 1_000_000

_Lens = tuple[float, float, float, float]
_Camera = tuple[tuple[int, int], _Lens, Distortion | None]


def read_colmap(folder: str | os.PathLike[str]) -> list[PosedPhoto]:
    """Reads the registered photos of a COLMAP model with their cameras, in the order of its file.

    Args:
        folder: with cameras.bin and images.bin, or cameras.txt and images.txt.

    Raises:
        InputError: naming file and place, for files that are missing or damaged, fisheye and other
            lenses that are not read, images of unknown cameras, and names that come twice or lead
            out of the folder.
    """
    folder = Path(folder)
    binary = (folder / "images.bin").exists()
    cameras_file = folder / ("cameras.bin" if binary else "cameras.txt")
    images_file = folder / ("images.bin" if binary else "images.txt")
    for path in (cameras_file, images_file):
        if not path.is_file():
            raise InputError(f"{path}: is missing; expected cameras and images of a COLMAP model")
    cameras: dict[int, _Camera] = {}
    entries = _binary_cameras(cameras_file) if binary else _text_cameras(cameras_file)
    for place, key, model, size, parameters in entries:
        if key in cameras:
            raise InputError(f"{place}: camera {key} comes twice, expected once")
        if not all(0 < side <= _MAX_SIDE for side in size):
            raise InputError(f"{place}: expected the size of a photo, got {size[0]}x{size[1]}")
        cameras[key] = size, *_lens(model, parameters, place)
    photos: dict[str, PosedPhoto] = {}
    entries = _binary_images(images_file) if binary else _text_images(images_file)
    for place, quat, t, key, name in entries:
        name = relative_name(name, place)
        if name in photos:
            raise InputError(f"{place}: image {name} comes twice, expected once")
        if key not in cameras:
            raise InputError(f"{place}: has camera {key}; expected one of {cameras_file.name}")
        extrinsics = np.concatenate([_rotation(quat, place), np.reshape(t, (3, 1))], -1)
        if not np.isfinite(extrinsics).all():
            raise InputError(f"{place}: expected a finite translation")
        size, lens, distortion = cameras[key]
        photos[name] = PosedPhoto(name, size, extrinsics, lens, distortion)
    if not photos:
        raise InputError(f"{images_file}: has no image; expected at least one registered image")
    return list(photos.values())


def _lens(model: str, parameters: tuple[float, ...], place: str) -> tuple[_Lens, Distortion | None]:
    values = dict(zip(_PARAMETERS[model].split(), parameters, strict=True))
    fx, fy = (values.get("f", values.get(name, 0.0)) for name in ("fx", "fy"))
    lens = fx, fy, values["cx"] - 0.5, values["cy"] - 0.5
    check_lens(lens, place)
    distortion = tuple(values.get(name, 0.0) for name in _DISTORTION)
    if not all(map(math.isfinite, distortion)):
        raise InputError(f"{place}: expected finite distortion, got {distortion}")
    return lens, cast(Distortion, distortion) if any(distortion) else None


def _parameter_count(model: str, place: str) -> int:
    if model not in _PARAMETERS:
        known = "is for fisheye lenses" if "FISHEYE" in model else "is not read here"
        known = known if model in _MODELS else "is not known"
        raise InputError(
            f"{place}: camera model {model[:40]} {known}, expected one of {', '.join(_PARAMETERS)};"
            " undistort photos and model first, with `colmap image_undistorter`"
        )
    return len(_PARAMETERS[model].split())


def _rotation(quat: tuple[float, ...], place: str) -> np.ndarray:
    """Returns the rotation matrix of a unit quaternion w, x, y, z."""
    norm = math.hypot(*quat)  # which does not overflow on the way
    if not 0.99 < norm < 1.01:
        raise InputError(f"{place}: expected a unit quaternion, got one of length {norm:g}")
    w, x, y, z = np.asarray(quat) / norm
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


# -- text ------------------------------------------------------------------------------------------


def _text_cameras(path: Path) -> Iterator[tuple]:
    for line, text in enumerate(read_text(path, _MAX_TEXT, encoding="utf-8").split("\n"), 1):
        words, place = text.split(), f"{path}: line {line}"
        if not words or words[0].startswith("#"):
            continue
        if len(words) < 4:
            raise InputError(f"{place}: expected id, model, width, height and parameters")
        expected = _parameter_count(words[1], place)
        if len(words) != 4 + expected:
            raise InputError(f"{place}: expected {expected} parameters, got {len(words) - 4}")
        size = count(words[2], place), count(words[3], place)
        parameters = tuple(number(word, place) for word in words[4:])
        yield place, count(words[0], place), words[1], size, parameters


def _text_images(path: Path) -> Iterator[tuple]:
    lines = enumerate(read_text(path, _MAX_TEXT, encoding="utf-8").split("\n"), 1)
    for line, text in lines:
        words, place = text.strip().split(maxsplit=9), f"{path}: line {line}"
        if not words or words[0].startswith("#"):
            continue
        if len(words) != 10:
            raise InputError(f"{place}: expected id, 4 + 3 numbers, camera id and name")
        count(words[0], place)
        values = [number(word, place) for word in words[1:8]]
        # the observations stand on the next line, which is empty where there are none
        line, text = next(lines, (line + 1, ""))
        if len(text.split()) % 3:
            raise InputError(f"{path}: line {line}: expected three values per observation")
        yield place, tuple(values[:4]), values[4:], count(words[8], place), words[9]


# -- binary ----------------------------------------------------------------------------------------


class _Reader:
    """Reader of consecutive little-endian values from bytes, which never goes beyond their end."""

    def __init__(self, path: Path, data: mmap.mmap | bytes):
        self.path, self.data, self.at = path, data, 0

    @property
    def place(self) -> str:
        return f"{self.path}: byte {self.at}"

    def skip(self, size: int) -> int:
        """Skips `size` bytes and returns the offset at which they begin."""
        if size > len(self.data) - self.at:
            raise InputError(
                f"{self.place}: expected {size} more bytes, the file has"
                f" {len(self.data) - self.at}; it is damaged"
            )
        self.at += size
        return self.at - size

    def take(self, form: str) -> tuple:
        form = f"<{form}"
        return struct.unpack_from(form, self.data, self.skip(struct.calcsize(form)))

    def name(self) -> str:
        end = self.data.find(b"\0", self.at, self.at + _MAX_NAME)
        if end < 0:
            raise InputError(f"{self.place}: expected a name that ends with a zero byte")
        raw = self.data[self.at : end]
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            raise InputError(f"{self.place}: expected a name in UTF-8, got {raw[:40]!r}") from error
        self.at = end + 1
        return text

    def finish(self) -> None:
        if self.at != len(self.data):
            raise InputError(f"{self.place}: expected the end, the file has more; it is damaged")


def _open(path: Path) -> _Reader:
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                return _Reader(path, b"")
            return _Reader(path, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error


def _binary_cameras(path: Path) -> Iterator[tuple]:
    reader = _open(path)
    for _ in range(reader.take("Q")[0]):
        place = reader.place
        key, model, width, height = reader.take("IiQQ")
        name = _MODELS[model] if 0 <= model < len(_MODELS) else f"number {model}"
        parameters = reader.take(f"{_parameter_count(name, place)}d")
        yield place, key, name, (width, height), parameters
    reader.finish()


def _binary_images(path: Path) -> Iterator[tuple]:
    reader = _open(path)
    for _ in range(reader.take("Q")[0]):
        place = reader.place
        _, *values, key = reader.take("I7dI")
        name = reader.name()
        reader.skip(24 * reader.take("Q")[0])  # observations: x, y, point
        yield place, tuple(values[:4]), values[4:], key, name
    reader.finish()
