"""Writes a scene as one NPZ file, and reads it back."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from lite3r_jax.errors import InputError
from lite3r_jax.npz_file import open_npz
from lite3r_jax.scene import PhotoLenses, PredictedGeometry, Scene, TrackedPoints

FORMAT_VERSION = 1
_AGAIN = "write it again with this version"
CONVENTIONS = """\
Written by lite3r_jax. S views of H x W pixels; world: camera frame of the first view, or that of
known cameras; unit of all lengths: model (its own), meter, or known cameras (theirs). Cameras:
OpenCV (x right, y down, z forward).
Pixel centers are at integers: (0, 0) is the center of the first pixel. names [S]; images [S, H, W,
3] RGB; depth [S, H, W], z in the camera frame; depth_conf [S, H, W], larger is surer; extrinsics
[S, 3, 4], world to camera; intrinsics [S, 3, 3] in pixels of images; source_intrinsics [S, 3, 3] in
pixels of the upright photos, whose (width, height) are source_sizes [S, 2]; boxes [S, 4], edges
(x1, y1, x2, y2) of the whole photos in images, measured from the outer corner of the first pixel;
world_points [S, H, W, 3] and world_points_conf [S, H, W] of the point head, if there is one.
Refined scenes have besides: predicted_extrinsics, predicted_intrinsics and predicted_depth as they
were before; track_points [N, 3] that several views see, with track_colors [N, 3] and track_errors
[N] in pixels of the photos; their observations: observation_track [M], the point, observation_view
[M] and observation_pixel [M, 2], (u, v) in images. Where radial distortion of lenses was found,
images, depth and all else but predicted_* are without it, and the photos as they were taken have
lens_intrinsics [S, 3, 3] in their pixels and lens_radial [S], k of COLMAP's SIMPLE_RADIAL.
"""
# name: (dtype, number of axes)
_REQUIRED = {
    "format_version": ("<i8", 0), "conventions": ("<U", 0), "names": ("<U", 1),
    "images": ("|u1", 4), "depth": ("<f4", 3), "depth_conf": ("<f4", 3),
    "extrinsics": ("<f4", 3), "intrinsics": ("<f4", 3), "source_intrinsics": ("<f8", 3),
    "boxes": ("<f4", 2), "source_sizes": ("<i8", 2),
}  # fmt: skip
_OPTIONAL = {"world_points": ("<f4", 4), "world_points_conf": ("<f4", 3), "unit": ("<U", 0)}
# of refined scenes, all or none; name: (field of `Scene.predicted`, dtype, number of axes)
_PREDICTED = {
    "predicted_extrinsics": ("extrinsics", "<f4", 3),
    "predicted_intrinsics": ("intrinsics", "<f4", 3),
    "predicted_depth": ("depth", "<f4", 3),
}
# likewise of `Scene.tracks`
_TRACKS = {
    "track_points": ("points", "<f4", 2), "track_colors": ("colors", "|u1", 2),
    "track_errors": ("errors", "<f4", 1), "observation_track": ("track", "<i4", 1),
    "observation_view": ("view", "<i4", 1), "observation_pixel": ("pixel", "<f4", 2),
}  # fmt: skip
_LENSES = {"lens_intrinsics": ("intrinsics", "<f8", 3), "lens_radial": ("radial", "<f8", 1)}
_REFINED = _PREDICTED | _TRACKS


def write_npz(scene: Scene, path: Path) -> None:
    """Writes all arrays of a scene (not its photos), `source_intrinsics` and the conventions.

    The arrays are stored uncompressed: to deflate those of 5 Mpx took 3.7 s instead of 0.15 s, for
    two fifths of the size at best.
    """
    own = {"format_version": FORMAT_VERSION, "conventions": CONVENTIONS}
    arrays = {}
    for name, (dtype, _) in (_REQUIRED | _OPTIONAL).items():
        values = own[name] if name in own else getattr(scene, name)
        if values is not None:
            arrays[name] = np.asarray(values, dtype, order="C")
    if scene.predicted is not None and scene.tracks is not None:
        parts: list[tuple[Any, Any]] = [(scene.predicted, _PREDICTED), (scene.tracks, _TRACKS)]
        parts += [] if scene.lenses is None else [(scene.lenses, _LENSES)]
        for part, fields in parts:
            for name, (field, dtype, _) in fields.items():
                arrays[name] = np.asarray(getattr(part, field), dtype, order="C")
    with path.open("wb") as file:
        np.savez(file, **arrays)


def read_npz(path: str | os.PathLike[str]) -> Scene:
    """Reads a file of `write_npz` as a scene without photos, whose arrays are read-only.

    No content of the file is executed, no array larger than the file is made, and the checksums of
    the archive are verified.

    Raises:
        InputError: the file cannot be read, is damaged, or is not of this kind and version.
    """
    with open_npz(path) as file:
        _check_names(set(file.names))
        if packed := [name for name in file.names if file.compressed(name)]:
            raise InputError(f"{packed[0]} is compressed, expected stored arrays; {_AGAIN}")
        more = {name: kind[1:] for name, kind in (_REFINED | _LENSES).items()}
        kinds = _REQUIRED | _OPTIONAL | more
        arrays: dict[str, Any] = {name: file.read(name, *kinds[name]) for name in file.names}
        version = int(arrays.pop("format_version"))
        if version != FORMAT_VERSION:
            raise InputError(f"format version {version}, expected {FORMAT_VERSION}; {_AGAIN}")
        del arrays["conventions"], arrays["source_intrinsics"]
        unit = str(arrays.pop("unit", "model"))  # which files of before have not
        if "predicted_depth" in arrays:
            parts: dict[str, Any] = {
                "predicted": (PredictedGeometry, _PREDICTED), "tracks": (TrackedPoints, _TRACKS)
            }  # fmt: skip
            if "lens_radial" in arrays:
                parts["lenses"] = (PhotoLenses, _LENSES)
            for part, (kind, fields) in parts.items():
                taken = {field: arrays.pop(name) for name, (field, *_) in fields.items()}
                arrays[part] = kind(**taken)
        return Scene(names=tuple(arrays.pop("names").tolist()), unit=unit, **arrays)


def _check_names(names: set[str]) -> None:
    required = set(_REQUIRED)
    if names & set(_LENSES):
        required |= set(_REFINED) | set(_LENSES)
    elif names & set(_REFINED):
        required |= set(_REFINED)
    if wrong := (required - names) | (names - required - set(_OPTIONAL)):
        raise InputError(
            "is no predictions.npz: arrays missing or unknown:"
            f" {', '.join(sorted(wrong))[:200]}; {_AGAIN}"
        )
