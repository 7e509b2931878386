"""Cameras of a transforms.json (docs.nerf.studio/quickstart/data_conventions.html).

A frame's transform_matrix is camera-to-world with OpenGL's camera axes (x right, y up, z backward).
Intrinsics stand with the frame or once for all; pixels have their centers at halves. Files of the
older kind with camera_angle_x, the horizontal field of view, are read as well. Depth maps are
16-bit PNG in steps of depth_unit_scale_factor, 0.001 if it is not given. Distortion k1, k2, k3, p1
and p2 stays with the photo, which is undistorted when it is read (`data.lens`); fisheye lenses and
k4 and above, which programs define differently, are refused.
"""

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from lite3r_jax.data.lens import Distortion
from lite3r_jax.data.posed import FLIP, PosedPhoto, check_lens, check_rotation, relative_name
from lite3r_jax.data.text_file import read_text
from lite3r_jax.errors import InputError

_MAX_BYTES = 256_000_000
_PINHOLES = ("PINHOLE", "SIMPLE_PINHOLE")
_LENSES = (*_PINHOLES, "SIMPLE_RADIAL", "RADIAL", "OPENCV")
_DISTORTION = ("k1", "k2", "p1", "p2", "k3")
_HIGHER = ("k4", "k5", "k6")
_DEPTH_STEP = 0.001


def read_transforms(path: str | os.PathLike[str]) -> list[PosedPhoto]:
    """Reads the photos of a transforms.json with their cameras, in the order of the file.

    Raises:
        InputError: naming the key, for what is no JSON, keys that are missing or of another kind,
            matrices that are no pose, lenses that are not read, and names that come twice or lead
            out of the folder.
    """
    path = Path(path)
    table = _table(_parse(path), str(path))
    frames = table.get("frames")
    if not isinstance(frames, list) or not frames:
        raise InputError(f"{path}: frames: expected a list with at least one frame")
    step = _number(table, "depth_unit_scale_factor", str(path), _DEPTH_STEP)
    if step is None or not step > 0:
        raise InputError(f"{path}: depth_unit_scale_factor: expected a positive number, got {step}")
    photos: dict[str, PosedPhoto] = {}
    for i, frame in enumerate(frames):
        place = f"{path}: frames[{i}]"
        photo = _photo(table, _table(frame, place), place, path.parent, step)
        if photo.name in photos:
            raise InputError(f"{place}: file_path {photo.name} comes twice, expected once")
        photos[photo.name] = photo
    return list(photos.values())


def _photo(
    shared: dict[str, Any], frame: dict[str, Any], place: str, folder: Path, step: float
) -> PosedPhoto:
    both = shared | frame  # what stands with the frame counts
    name = _name(frame, "file_path", place)
    if not Path(name).suffix and os.path.isfile(folder / f"{name}.png"):
        name += ".png"  # as the Blender scenes of NeRF have it
    width, height = _side(both, "w", place), _side(both, "h", place)
    if (width is None) != (height is None):
        raise InputError(f"{place}: expected w and h, or neither, got one of them")
    size = None if width is None or height is None else (width, height)
    depth = _name(frame, "depth_file_path", place) if "depth_file_path" in frame else None
    return PosedPhoto(
        name,
        size,
        _extrinsics(frame.get("transform_matrix"), f"{place}.transform_matrix"),
        _lens(both, width, place),
        _distortion(both, place),
        None if depth is None else folder / depth,
        step,
    )


def _extrinsics(value: Any, place: str) -> np.ndarray:
    rows = value if isinstance(value, list) else []
    if len(rows) not in (3, 4) or not all(isinstance(r, list) and len(r) == 4 for r in rows):
        raise InputError(f"{place}: expected 4 rows of 4 numbers")
    pose = np.array([[_real(x, place) for x in row] for row in rows])
    if len(rows) == 4 and pose[3].tolist() != [0, 0, 0, 1]:
        raise InputError(f"{place}: expected the last row 0 0 0 1")
    check_rotation(pose[:3, :3], place)
    rotation = (pose[:3, :3] @ FLIP).T
    return np.concatenate([rotation, -rotation @ pose[:3, 3:]], -1)


def _lens(
    table: dict[str, Any], width: int | None, place: str
) -> tuple[float, float, float | None, float | None]:
    fx, angle = _number(table, "fl_x", place), _number(table, "camera_angle_x", place)
    if fx is None and angle is not None:
        if width is None or not 0 < angle < math.pi:
            raise InputError(f"{place}: camera_angle_x: expected w, and an angle from 0 to pi")
        fx = width / 2 / math.tan(angle / 2)
    if fx is None:
        raise InputError(f"{place}: fl_x: is missing; expected a focal length in pixels")
    fy = _number(table, "fl_y", place, fx)
    cx, cy = (_number(table, key, place) for key in ("cx", "cy"))
    lens = fx, fy, None if cx is None else cx - 0.5, None if cy is None else cy - 0.5
    check_lens(lens, place)
    return fx, fx if fy is None else fy, lens[2], lens[3]


def _distortion(table: dict[str, Any], place: str) -> Distortion | None:
    values = {key: _number(table, key, place, 0.0) or 0.0 for key in (*_DISTORTION, *_HIGHER)}
    bent = [key for key, value in values.items() if value]
    model = table.get("camera_model", "OPENCV" if bent else "PINHOLE")
    higher = [key for key in _HIGHER if values[key]]
    if model not in _LENSES or higher or table.get("is_fisheye") or (bent and model in _PINHOLES):
        what = f"camera_model is {str(model)[:40]!r}"
        if model in _LENSES:
            what = f"{(higher or bent)[0]} is not 0" if bent else "is_fisheye is set"
        raise InputError(
            f"{place}: {what}, expected a camera_model of {', '.join(_LENSES)} with at most"
            f" {', '.join(_DISTORTION)}; undistort the photos first, for instance with `colmap"
            " image_undistorter`"
        )
    k1, k2, p1, p2, k3 = (values[key] for key in _DISTORTION)
    return (k1, k2, p1, p2, k3, 0.0, 0.0, 0.0) if bent else None


def _parse(path: Path) -> Any:
    def no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) < len(pairs):
            raise ValueError("a key comes twice in one object")
        return table

    def refuse(word: str) -> None:
        raise ValueError(f"{word} is no number")

    text = read_text(path, _MAX_BYTES, encoding="utf-8")
    try:
        return json.loads(text, object_pairs_hook=no_twins, parse_constant=refuse)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}: line {error.lineno}: expected JSON ({error.msg}); it is damaged"
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: expected JSON ({error})") from error


def _table(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{place}: expected an object, got {type(value).__name__}")
    return value


def _number(
    table: dict[str, Any], key: str, place: str, default: float | None = None
) -> float | None:
    return _real(table[key], f"{place}: {key}") if key in table else default


def _real(value: Any, place: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise InputError(f"{place}: expected a number, got {str(value)[:40]!r}")
    real = float(value) if abs(value) < 1e300 else math.inf
    if not math.isfinite(real):
        raise InputError(f"{place}: expected a finite number")
    return real


def _side(table: dict[str, Any], key: str, place: str) -> int | None:
    value = _number(table, key, place)
    if value is not None and not (value == int(value) and 0 < value <= 1_000_000):
        raise InputError(f"{place}: {key}: expected a number of pixels, got {value:g}")
    return None if value is None else int(value)


def _name(table: dict[str, Any], key: str, place: str) -> str:
    value = table.get(key)
    if not isinstance(value, str):
        raise InputError(f"{place}: {key}: expected the name of a file")
    return relative_name(value, f"{place}: {key}")
