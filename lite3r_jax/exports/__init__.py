"""Writes scenes to files that other programs open.

`write(scene, out, ("ply", "colmap"))` puts each format under a fixed name into the folder `out`:

| format | name | content |
|---|---|---|
| npz | predictions.npz | all arrays of the scene; `read_npz` gives the scene back |
| ply | points.ply | points with color and confidence |
| glb | scene.glb | points and cameras, for viewers, browsers and Blender |
| colmap | colmap/ | images/ and a sparse model in sparse/0, binary |
| colmap_txt | colmap_txt/ | the same with the model as text |
| nerfstudio | nerfstudio/ | transforms.json, images/, depth/, points.ply |
| depth_png | depth_color/ | depth maps to look at |
| depth_png16 | depth_png16/ | depth maps with 16 bits, and their scale in depth.json |
| depth_pfm | depth_pfm/ | depth maps as floats |
| tum | trajectory.txt | the path of the camera |
| html | scene.html | points, cameras, photos and depth in one page that opens offline |

Inside of the package there is one convention, that of `Scene`; each module states the convention of
its format and converts on writing. Names of files follow the names of the views, with another
suffix where necessary. Equal scenes and options give equal bytes. A file or folder appears under
its name only when it is complete.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lite3r_jax.errors import InputError, did_you_mean
from lite3r_jax.exports.cameras import check_cameras
from lite3r_jax.exports.colmap import write_colmap
from lite3r_jax.exports.depth_maps import write_depth_color, write_depth_pfm, write_depth_png16
from lite3r_jax.exports.glb import write_glb
from lite3r_jax.exports.images import ImageSet, plan_images
from lite3r_jax.exports.nerfstudio import write_nerfstudio
from lite3r_jax.exports.npz import read_npz, write_npz
from lite3r_jax.exports.options import ExportOptions
from lite3r_jax.exports.page import PageOptions, write_page
from lite3r_jax.exports.ply import write_ply
from lite3r_jax.exports.points import (
    PointCloud,
    PointOptions,
    confidence_mask,
    select_points,
    thinned,
)
from lite3r_jax.exports.trajectory import write_trajectory
from lite3r_jax.files import atomic_write
from lite3r_jax.scene import Scene

__all__ = [
    "FORMATS",
    "ExportOptions",
    "PageOptions",
    "PointCloud",
    "PointOptions",
    "confidence_mask",
    "parse_formats",
    "planned",
    "read_npz",
    "select_points",
    "to_look_at",
    "write",
]


class _Job:
    """The input that the formats of one export share; points are computed when first used."""

    images: ImageSet  # only if one of the formats needs it

    def __init__(self, scene: Scene, options: ExportOptions, report: Mapping[str, Any] | None):
        self.scene = scene
        self.options = options
        self.report = report

    @cached_property
    def points(self) -> PointCloud:
        return select_points(self.scene, self.options.points)

    @cached_property
    def sparse_points(self) -> PointCloud:
        return thinned(self.points, self.options.sparse_points)


@dataclass(frozen=True)
class Format:
    """An export format: the name of its file or folder, and the function that writes it.

    Attributes:
        name: final name in the output folder.
        write: writes the format to a path.
        with_images: whether the format has images beside its cameras.
    """

    name: str
    write: Callable[[_Job, Path], None]
    with_images: bool = False


def _colmap(job: _Job, path: Path) -> None:
    kind = job.options.colmap_points
    write_colmap(job.scene, job.sparse_points, job.images, path, points=kind)


def _colmap_txt(job: _Job, path: Path) -> None:
    kind = job.options.colmap_points
    write_colmap(job.scene, job.sparse_points, job.images, path, points=kind, text=True)


def _nerfstudio(job: _Job, path: Path) -> None:
    step = job.options.depth_step
    write_nerfstudio(job.scene, job.sparse_points, job.images, path, step)


def _html(job: _Job, path: Path) -> None:
    write_page(job.scene, path, job.options.page, job.options.points, report=job.report)


FORMATS: dict[str, Format] = {
    "npz": Format("predictions.npz", lambda job, path: write_npz(job.scene, path)),
    "ply": Format("points.ply", lambda job, path: write_ply(job.points, path)),
    "glb": Format(
        "scene.glb",
        lambda job, path: write_glb(job.scene, job.points, path, job.options.frustum),
    ),
    "colmap": Format("colmap", _colmap, with_images=True),
    "colmap_txt": Format("colmap_txt", _colmap_txt, with_images=True),
    "nerfstudio": Format("nerfstudio", _nerfstudio, with_images=True),
    "depth_png": Format("depth_color", lambda job, path: write_depth_color(job.scene, path)),
    "depth_png16": Format("depth_png16", lambda job, path: write_depth_png16(job.scene, path)),
    "depth_pfm": Format("depth_pfm", lambda job, path: write_depth_pfm(job.scene, path)),
    "tum": Format("trajectory.txt", lambda job, path: write_trajectory(job.scene, path)),
    "html": Format("scene.html", _html),
}

_DEFAULT_FORMATS = ("npz", "ply", "glb", "colmap")
_DEFAULT_OPTIONS = ExportOptions()


def parse_formats(text: str) -> tuple[str, ...]:
    """Parses a comma-separated list of formats; returns each once, in the order given.

    Raises:
        InputError: there is no format, or one is not in `FORMATS`.
    """
    return _checked([part.strip() for part in text.split(",") if part.strip()])


def planned(out: str | os.PathLike[str], formats: Sequence[str]) -> list[Path]:
    """Returns the paths of the files and folders that `write` makes for these formats.

    Raises:
        InputError: there is no format, or one is not in `FORMATS`.
    """
    return [Path(out) / FORMATS[name].name for name in _checked(formats)]


def to_look_at(out: str | os.PathLike[str], formats: Sequence[str]) -> Path:
    """Returns the path to open first of results in these formats: page, GLB, PLY, or the folder.

    Raises:
        InputError: there is no format, or one is not in `FORMATS`.
    """
    formats = _checked(formats)
    best = next((name for name in ("html", "glb", "ply") if name in formats), None)
    return Path(out) / FORMATS[best].name if best else Path(out)


def write(
    scene: Scene,
    out: str | os.PathLike[str],
    formats: Sequence[str] = _DEFAULT_FORMATS,
    options: ExportOptions = _DEFAULT_OPTIONS,
    *,
    overwrite: bool = False,
    progress: Callable[[], object] | None = None,
    report: Mapping[str, Any] | None = None,
) -> dict[str, Path]:
    """Writes a scene in the given formats.

    Args:
        scene: scene to write.
        out: output folder, made if it does not exist.
        formats: keys of `FORMATS`.
        options: settings of the exports.
        overwrite: whether files and folders of these formats may be replaced.
        progress: called after each format.
        report: facts about the run that the HTML page shows: strings, numbers, lists and dicts.

    Returns:
        Format -> path of its file or folder.

    Raises:
        InputError: unknown formats; outputs that exist already, all named, before anything is
            written; cameras that no file can hold; no valid point; photos that cannot be read.
    """
    formats = _checked(formats)
    paths = planned(out, formats)
    if os.path.lexists(out) and not os.path.isdir(out):
        raise InputError(f"{out}: is not a folder; choose another output")
    if not overwrite and (existing := [path.name for path in paths if os.path.lexists(path)]):
        raise InputError(
            f"{out}: has {', '.join(existing)} already; choose another folder or allow overwriting"
        )
    check_cameras(scene)
    job = _Job(scene, options, report)
    if any(FORMATS[name].with_images for name in formats):
        job.images = plan_images(scene, options.images)
    for name, path in zip(formats, paths, strict=True):
        with atomic_write(path, overwrite=overwrite) as partial:
            FORMATS[name].write(job, partial)
        if progress is not None:
            progress()
    return dict(zip(formats, paths, strict=True))


def _checked(formats: Sequence[str]) -> tuple[str, ...]:
    known = ", ".join(FORMATS)
    if isinstance(formats, str) or not formats:
        raise InputError(f"formats: expected a list of some of {known}; got {formats!r}")
    if unknown := [name for name in formats if name not in FORMATS]:
        near = did_you_mean(unknown[0], FORMATS)
        raise InputError(f"formats: unknown: {', '.join(unknown)}; expected some of {known}{near}")
    return tuple(dict.fromkeys(formats))
