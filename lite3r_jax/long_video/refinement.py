"""Bundle adjustment of all frames of a joined video, by the tracks that its chunks have.

Chunks were refined one by one and share frames. Where both chunks saw a point in a shared frame,
their tracks become one, so that tracks connect the whole video. Nothing is matched again, and
images are not read.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lite3r_jax.geometry import fit_sim3
from lite3r_jax.long_video.frames import Frames
from lite3r_jax.long_video.outputs import Part, Whole
from lite3r_jax.long_video.similarity import apply_to_many, moved_cameras
from lite3r_jax.long_video.store import Store
from lite3r_jax.refine import RefineOptions
from lite3r_jax.refine.depth import DepthFit
from lite3r_jax.refine.geometry_of_views import Cameras, to_network, to_photo
from lite3r_jax.refine.judging import FEW_TRACKS, judge
from lite3r_jax.refine.lenses import lenses_of
from lite3r_jax.refine.matching import merge
from lite3r_jax.refine.observations import Observations, errors, lengths
from lite3r_jax.refine.solve import Solution, solve
from lite3r_jax.scene import Scene, TrackedPoints

_FEW = 10  # points below which depth of a frame follows as that of the others
_SAME = 1.0  # network pixels within which two chunks mean the same place in a frame


@dataclass(frozen=True, eq=False)
class _Places:
    """The observations of all chunks' tracks: pixels of the network images, their depth and color.

    Attributes:
        frame: int [K], index of the frame within the part; -1 for a frame outside of it.
        pixel: float64 [K, 2].
        depth: float64 [K] in the unit of the part, of the chunk that owns the frame; 0: unknown.
        color: uint8 [K, 3].
        one: int [E], index of an observation.
        two: int [E], index of the next observation of the same track.
    """

    frame: np.ndarray
    pixel: np.ndarray
    depth: np.ndarray
    color: np.ndarray
    one: np.ndarray
    two: np.ndarray


def refine_part(
    part: Part, frames: Frames, store: Store, options: RefineOptions
) -> tuple[Part, dict[str, Any]]:
    """Adjusts all cameras of a part to the tracks of its chunks.

    Args:
        part: the joined part.
        frames: frames of the video.
        store: store that holds the chunks.
        options: which cameras are the same, and their model.

    Returns:
        (the part with refined cameras, depth and tracks, or as it was; plain data for the report:
        `refined`, `reason` where it is not, and figures as of one scene).

    Raises:
        InputError: a chunk is damaged, or pycolmap is not installed.
    """
    scene = part.cameras(frames)
    report: dict[str, Any] = {"refined": False, "reason": "", "views": scene.views}
    places = _places(part, store)
    photo = to_photo(scene, places.frame, places.pixel)
    obs = merge(places.frame, photo, places.one, places.two, np.ones(len(places.one)))
    report["matched_tracks"] = obs.tracks
    if obs.tracks < FEW_TRACKS:
        return part, report | {"reason": "its chunks have too few tracks"}
    before = Cameras.of(scene)
    solution = solve(obs, before, lenses_of(scene, options, False), False)
    solution = _in_joined_world(solution, before)
    reason = judge(scene, obs, before, solution, report)
    if reason:
        return part, report | {"reason": reason}
    whole = _whole(scene, obs, solution, places)
    report |= {
        "refined": True,
        "tracks": len(whole.tracks),
        "observations": len(whole.tracks.track),
        "mean_track_length": round(whole.tracks.mean_length, 2),
    }
    return replace(part, whole=whole), report


def _places(part: Part, store: Store) -> _Places:
    """Gathers the observations of all chunks' tracks, and merges those that two chunks share."""
    number = {frame: i for i, frame in enumerate(part.frames)}
    columns: list[tuple[np.ndarray, ...]] = []
    ones, twos, count = [], [], 0
    last: dict[int, tuple[np.ndarray, np.ndarray]] = {}  # frame -> pixels and places of a chunk
    for chunk, similarity in zip(part.chunks, part.similarities, strict=True):
        scene = store.scene(chunk)
        tracks = scene.tracks
        if tracks is None:
            last = {}
            continue
        frame = np.array([number.get(chunk.start + view, -1) for view in range(scene.views)])
        of, pixel = frame[tracks.view], tracks.pixel.astype(np.float64)
        place = np.arange(len(pixel)) + count
        for each in set(of.tolist()) & set(last):
            mine = np.flatnonzero(of == each)
            place[mine] = _shared(pixel[mine], place[mine], *last[each])
        own = np.array(
            [chunk.own_start <= chunk.start + v < chunk.own_stop for v in range(scene.views)]
        )
        u, v = np.rint(pixel).astype(np.intp).clip(0, np.array(scene.size[::-1]) - 1).T
        depth = np.where(own[tracks.view], scene.depth[tracks.view, v, u] * similarity.scale, 0)
        columns.append((of, pixel, depth, scene.images[tracks.view, v, u]))
        follows = (np.diff(tracks.track) == 0) & (of[1:] >= 0) & (of[:-1] >= 0)
        ones.append(place[:-1][follows])
        twos.append(place[1:][follows])
        last = {int(f): (pixel[of == f], place[of == f]) for f in np.unique(of) if f >= 0}
        count += len(pixel)
    if not columns:
        nothing = np.zeros(0, np.intp)
        return _Places(nothing, np.zeros((0, 2)), np.zeros(0), np.zeros((0, 3), np.uint8),
                       nothing, nothing)  # fmt: skip
    of, pixel, depth, color = (np.concatenate(each) for each in zip(*columns, strict=True))
    return _Places(of, pixel, depth, color, np.concatenate(ones), np.concatenate(twos))


def _shared(
    pixels: np.ndarray, places: np.ndarray, others: np.ndarray, theirs: np.ndarray
) -> np.ndarray:
    """Replaces indices of observations in a frame by those of the same ones in the chunk before."""
    from scipy.spatial import KDTree

    off, nearest = map(np.asarray, KDTree(others).query(pixels))
    back, again = map(np.asarray, KDTree(pixels).query(others))
    same = (off < _SAME) & (again[nearest] == np.arange(len(pixels))) & (back[nearest] < _SAME)
    return np.where(same, theirs[nearest], places)


def _in_joined_world(solution: Solution, before: Cameras) -> Solution:
    """Returns the solution aligned to the joined cameras by a similarity of the camera centers."""
    tied, after = solution.tied, solution.cameras
    if tied.sum() < 3:
        return solution
    sim3 = fit_sim3(after.centers[tied], before.centers[tied], xp=np)
    extrinsics = after.extrinsics.copy()
    turned = moved_cameras(after.extrinsics[tied], sim3).astype(np.float64)
    extrinsics[tied] = turned
    points = apply_to_many(sim3, solution.points)
    return replace(solution, cameras=replace(after, extrinsics=extrinsics), points=points)


def _whole(scene: Scene, obs: Observations, solution: Solution, places: _Places) -> Whole:
    """Converts the solution to cameras of the network images, depth scales and tracked points."""
    cameras = solution.cameras
    k = cameras.intrinsics
    low, high = (edge.astype(np.float64) for edge in np.split(scene.boxes, 2, -1))
    stretch = (high - low) / scene.source_sizes
    fitted = k.copy()
    fitted[:, (0, 1), (0, 1)] = k[:, (0, 1), (0, 1)] * stretch
    fitted[:, :2, 2] = (k[:, :2, 2] + 0.5) * stretch + low - 0.5
    intrinsics = np.where(solution.tied[:, None, None], fitted, scene.intrinsics)
    sub, numbers = obs.where(solution.used)
    points = solution.points[numbers]
    _, z = cameras.project(sub.view, points[sub.track])
    pixel = to_network(scene, sub.view, sub.pixel)
    depth, color = _looked_up(scene, sub, pixel, places)
    off = errors(sub, cameras, points)
    first = np.flatnonzero(np.diff(sub.track, prepend=-1))
    tracks = TrackedPoints(
        points=points.astype(np.float32),
        colors=color[first],
        errors=(np.bincount(sub.track, off) / lengths(sub)).astype(np.float32),
        track=sub.track.astype(np.int32),
        view=sub.view.astype(np.int32),
        pixel=pixel.astype(np.float32),
    )
    scale = _scales(sub.view, depth, z, scene.views)
    return Whole(
        cameras.extrinsics.astype(np.float32),
        intrinsics.astype(np.float32),
        DepthFit(scale, np.zeros(scene.views)),
        tracks,
    )


def _scales(view: np.ndarray, depth: np.ndarray, z: np.ndarray, views: int) -> np.ndarray:
    """Fits a depth scale for each view to refined points; the median scale where points are few."""
    scale, good = np.full(views, np.nan), (depth > 0) & (z > 0)
    for each in range(views):
        mine = good & (view == each)
        if mine.sum() >= _FEW:
            scale[each] = np.median(z[mine] / depth[mine])
    others = np.nanmedian(scale) if np.isfinite(scale).any() else 1.0
    return np.where(np.isfinite(scale), scale, others)


def _looked_up(
    scene: Scene, obs: Observations, pixel: np.ndarray, places: _Places
) -> tuple[np.ndarray, np.ndarray]:
    """Looks up depth [M] and color [M, 3] of M observations at the nearest stored observation."""
    from scipy.spatial import KDTree

    depth, color = np.zeros(len(obs)), np.zeros((len(obs), 3), np.uint8)
    order = np.argsort(places.frame, kind="stable")
    starts = np.searchsorted(places.frame[order], np.arange(scene.views + 1))
    for view in np.unique(obs.view).tolist():
        mine, there = np.flatnonzero(obs.view == view), order[starts[view] : starts[view + 1]]
        color[mine] = places.color[there[KDTree(places.pixel[there]).query(pixel[mine])[1]]]
        known = there[places.depth[there] > 0]
        if len(known):
            off, nearest = KDTree(places.pixel[known]).query(pixel[mine])
            depth[mine] = np.where(off < _SAME, places.depth[known[nearest]], 0)
    return depth, color
