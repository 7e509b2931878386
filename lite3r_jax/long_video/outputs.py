"""Writes joined chunks as one trajectory, one point cloud, one COLMAP model and one HTML page.

Chunks are read one after the other, so that memory does not grow with their number, except for the
cameras (about 200 bytes a frame).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lite3r_jax.errors import InputError
from lite3r_jax.exports import FORMATS, ExportOptions, parse_formats
from lite3r_jax.exports.cameras import check_cameras
from lite3r_jax.exports.colmap import write_model
from lite3r_jax.exports.glb import write_glb
from lite3r_jax.exports.images import ImageSet, plan_images, write_images
from lite3r_jax.exports.page import write_page
from lite3r_jax.exports.ply import write_ply
from lite3r_jax.exports.points import PointCloud, PointOptions, diagonal, select_points, thinned
from lite3r_jax.exports.trajectory import write_trajectory
from lite3r_jax.files import atomic_write
from lite3r_jax.geometry import Sim3
from lite3r_jax.long_video.chunks import Chunk
from lite3r_jax.long_video.frames import Frames
from lite3r_jax.long_video.merging import VoxelMap
from lite3r_jax.long_video.similarity import apply_to_many, moved, moved_cameras, stacked, views_of
from lite3r_jax.long_video.store import CHUNKS, ChunkViews, Store
from lite3r_jax.refine.depth import DepthFit
from lite3r_jax.scene import PredictedGeometry, Scene, TrackedPoints

WRITTEN = ("npz", "ply", "glb", "colmap", "colmap_txt", "tum", "html")
"""Names of the formats that joined chunks can be written in; npz is one file for each chunk."""
PARTS = "parts"
"""Name of the folder, in the results, for parts that are not connected with the largest one."""
VOXEL = 1e-3
"""Default edge of the voxels that merge overlapping points, as a fraction of the points' diagonal.
It is used where `export.points.voxel` is 0."""
PAGE_VIEWS, GLB_CAMERAS = 60, 500
"""Largest numbers of views in the page and of cameras in the GLB, evenly spread over the video."""
_BLOCK = 32  # images that are written at a time


def check_formats(text: str) -> tuple[str, ...]:
    """Parses a comma-separated list of formats, and refuses those that a long video does not have.

    Raises:
        InputError: a format is unknown, or not one of `WRITTEN`.
    """
    formats = parse_formats(text)
    if other := [name for name in formats if name not in WRITTEN]:
        raise InputError(
            f"formats: {', '.join(other)} cannot be written of a video in chunks; expected some of"
            f" {', '.join(WRITTEN)} (depth is in the npz of every chunk), or leave out video.chunk"
        )
    return formats


def planned(out: Path, formats: Sequence[str]) -> list[Path]:
    """Returns the paths of the files and folders that a long video gives in these formats."""
    return [out / (CHUNKS if name == "npz" else FORMATS[name].name) for name in formats]


@dataclass(frozen=True, eq=False)
class Whole:
    """Cameras, depth scales and tracks of a part whose F frames were refined together.

    Attributes:
        extrinsics: world-to-camera poses float32 [F, 3, 4], in the world of the part.
        intrinsics: float32 [F, 3, 3].
        depth: scale and shift of each frame that correct the predicted depth in the unit of the
            part.
        tracks: tracked points of the part; their views are indices into its frames.
    """

    extrinsics: np.ndarray
    intrinsics: np.ndarray
    depth: DepthFit
    tracks: TrackedPoints


@dataclass(frozen=True)
class Part:
    """A connected part of a long video: chunks aligned in one world.

    Attributes:
        chunks: chunks of the part, in order.
        similarities: similarity from the world of each chunk into that of the part.
        views: cameras and other small data of each chunk.
        whole: cameras and depth of all frames where they were refined together; else None.
    """

    chunks: tuple[Chunk, ...]
    similarities: tuple[Sim3, ...]
    views: tuple[ChunkViews, ...]
    whole: "Whole | None" = None

    @property
    def frames(self) -> list[int]:
        """The numbers of the frames that the part's chunks own."""
        return [n for chunk in self.chunks for n in range(chunk.own_start, chunk.own_stop)]

    def cameras(self, frames: Frames) -> Scene:
        """Returns a scene of all cameras of the part, in the world of the part.

        Images, depth and confidence are zeros that take no memory.
        """
        columns: dict[str, list[np.ndarray]] = {}
        for chunk, similarity, views in self._each():
            own = slice(chunk.own_start - chunk.start, chunk.own_stop - chunk.start)
            place = moved_cameras(views.extrinsics[own], similarity)
            columns.setdefault("extrinsics", []).append(place)
            for name in ("intrinsics", "boxes", "source_sizes"):
                columns.setdefault(name, []).append(getattr(views, name)[own])
        joined: dict[str, Any] = {name: np.concatenate(each) for name, each in columns.items()}
        names = [frames.names[number] for number in self.frames]
        scene = _cameras(names, replace(self.views[0], **joined))
        if self.whole is None:
            return scene
        return replace(
            scene,
            extrinsics=self.whole.extrinsics,
            intrinsics=self.whole.intrinsics,
            tracks=self.whole.tracks,
            predicted=PredictedGeometry(scene.extrinsics, scene.intrinsics, scene.depth),
        )

    def own_scene(self, number: int, store: Store) -> Scene:
        """Reads the views that a chunk of the part owns, and moves them into the world of the part.

        Args:
            number: index of the chunk within the part.
            store: store that holds the chunks.
        """
        chunk = self.chunks[number]
        own = slice(chunk.own_start - chunk.start, chunk.own_stop - chunk.start)
        scene = moved(views_of(store.scene(chunk), own), self.similarities[number])
        if self.whole is None:
            return scene
        first = sum(each.own_stop - each.own_start for each in self.chunks[:number])
        here = slice(first, first + scene.views)
        fit = DepthFit(self.whole.depth.scale[here], self.whole.depth.shift[here])
        return replace(
            scene,
            extrinsics=self.whole.extrinsics[here],
            intrinsics=self.whole.intrinsics[here],
            depth=fit(scene.depth).astype(np.float32),
        )

    def ends(self, frames: Frames) -> Scene:
        """Returns a scene as `cameras` does, with the first and the last frame alone."""
        cameras = self.cameras(frames)
        return _some(cameras, self.views[0], [0, cameras.views - 1])

    def edge(self, points: PointOptions) -> float:
        """Returns the edge of the voxels that merge overlapping points, in the unit of the part."""
        samples = [
            apply_to_many(similarity, views.sample.astype(np.float64))
            for _, similarity, views in self._each()
        ]
        return diagonal(np.concatenate(samples)) * (points.voxel or VOXEL) or 1.0

    def _each(self) -> Any:
        return zip(self.chunks, self.similarities, self.views, strict=True)


def _cameras(names: Sequence[str], views: ChunkViews) -> Scene:
    """Makes a scene of cameras alone; images, depth and confidence are zeros without memory."""
    maps = (len(names), *views.size)
    nothing = np.broadcast_to(np.float32(0), maps)
    return Scene(
        names=tuple(names),
        images=np.broadcast_to(np.uint8(0), (*maps, 3)),
        depth=nothing,
        depth_conf=nothing,
        extrinsics=views.extrinsics,
        intrinsics=views.intrinsics,
        boxes=views.boxes,
        source_sizes=views.source_sizes,
        unit=views.unit,
    )


def write_part(
    part: Part,
    frames: Frames,
    store: Store,
    out: Path,
    formats: Sequence[str],
    options: ExportOptions,
    *,
    report: Mapping[str, Any],
    tick: Callable[[], object],
) -> tuple[dict[str, Path], dict[str, Any]]:
    """Writes a part in all formats but npz, and overwrites files of the same names.

    Args:
        part: part of the video that is written.
        frames: frames of the video, for images.
        store: store that holds the chunks.
        out: folder that is written to.
        formats: some of `WRITTEN`.
        options: settings of the exports.
        report: facts about the run for the page.
        tick: called for every chunk that was read and every format that was written.

    Returns:
        (format -> path, facts: number of points, edge of the voxels, chunks without a point).

    Raises:
        InputError: no chunk has a valid point, cameras that no file can hold, or frames that cannot
            be read again.
    """
    cameras = part.cameras(frames)
    check_cameras(cameras)
    cloud, page, facts = _points(part, frames, store, formats, options, tick)
    paths: dict[str, Path] = {}
    for name in formats:
        if name == "npz":
            continue
        (path,) = planned(out, (name,))
        with atomic_write(path, overwrite=True) as partial:
            if name == "tum":
                write_trajectory(cameras, partial)
            elif name == "ply":
                write_ply(cloud, partial)
            elif name == "glb":
                few = _spread(cameras.views, GLB_CAMERAS)
                write_glb(_some(cameras, part.views[0], few), cloud, partial, options.frustum)
            elif name == "html":
                assert page is not None
                write_page(page, partial, options.page, options.points, report=report)
            else:
                images = _write_images(part, frames, store, cameras, partial / "images", options)
                sparse = thinned(cloud, options.sparse_points)
                model = partial / "sparse" / "0"
                kind, text = options.colmap_points, name == "colmap_txt"
                write_model(cameras, sparse, images, model, points=kind, text=text)
        paths[name] = path
        tick()
    return paths, facts


def _points(
    part: Part,
    frames: Frames,
    store: Store,
    formats: Sequence[str],
    options: ExportOptions,
    tick: Callable[[], object],
) -> tuple[PointCloud, Scene | None, dict[str, Any]]:
    """Returns (merged points, with views as indices within the part; scene of the page; facts)."""
    if not set(formats) - {"npz", "tum"}:
        return _no_points(part.views[0].unit), None, {}
    numbers = part.frames
    shown = {numbers[i] for i in _spread(len(numbers), PAGE_VIEWS)}
    grid = VoxelMap(part.edge(options.points), options.points.max_points)
    chosen = replace(options.points, voxel=0.0, max_points=0)
    pages: list[Scene] = []
    without: list[int] = []
    first = 0
    for number, chunk in enumerate(part.chunks):
        own = range(chunk.own_start, chunk.own_stop)
        scene = part.own_scene(number, store)
        try:
            cloud = select_points(scene, chosen)
            grid.add(replace(cloud, view=cloud.view + np.int32(first)))
        except InputError:  # of this chunk; of all it is an error below
            without.append(chunk.index)
        if "html" in formats and (here := [n - own.start for n in own if n in shown]):
            pages.append(views_of(scene, here))
        first += len(own)
        tick()
    if not len(grid):
        raise InputError(
            f"points: no pixel of {frames.names[numbers[0]]} to {frames.names[numbers[-1]]} has a"
            " valid point that masks and confidence leave; look at the depth in"
            f" {store.folder}, or mask less"
        )
    cloud = grid.cloud()
    facts = {"points": len(cloud), "voxel_edge": grid.edge, "chunks_without_points": without}
    return cloud, stacked(pages) if pages else None, facts


def _no_points(unit: str) -> PointCloud:
    zeros = np.zeros((0, 3), np.float32)
    return PointCloud(
        zeros, zeros.astype(np.uint8), zeros[:, 0], np.zeros(0, np.int32),
        np.zeros((0, 2), np.int32), unit,
    )  # fmt: skip


def _some(cameras: Scene, views: ChunkViews, which: Sequence[int]) -> Scene:
    names = ("extrinsics", "intrinsics", "boxes", "source_sizes")
    columns: dict[str, Any] = {name: getattr(cameras, name)[which] for name in names}
    return _cameras([cameras.names[i] for i in which], replace(views, **columns))


def _spread(count: int, most: int) -> list[int]:
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int)).tolist()


def _write_images(
    part: Part,
    frames: Frames,
    store: Store,
    cameras: Scene,
    folder: Path,
    options: ExportOptions,
) -> ImageSet:
    """Writes the images of all views, a block at a time, and returns their names and cameras."""
    sets: list[ImageSet] = []
    first = 0
    for chunk in part.chunks:
        network = store.scene(chunk) if options.images == "network" else None
        for start in range(chunk.own_start, chunk.own_stop, _BLOCK):
            stop = min(start + _BLOCK, chunk.own_stop)
            which = list(range(first, first + stop - start))
            block = _some(cameras, part.views[0], which)
            if network is None:
                block = replace(block, photos=frames.photos(start, stop))
            else:
                inside = slice(start - chunk.start, stop - chunk.start)
                block = replace(block, images=network.images[inside])
            images = plan_images(block, options.images)
            write_images(block, images, folder)
            sets.append(images)
            first += stop - start
    arrays: dict[str, Any] = {
        name: np.concatenate([getattr(each, name) for each in sets])
        for name in ("sizes", "intrinsics", "boxes")
    }
    return ImageSet(
        kind=options.images,
        names=tuple(name for each in sets for name in each.names),
        files=tuple(file for each in sets for file in each.files),
        **arrays,
    )
