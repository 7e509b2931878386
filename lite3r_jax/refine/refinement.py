"""Refines a scene: matches its photos, adjusts its cameras, fits its depth, reports the gain."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from lite3r_jax.data.known_cameras import network_intrinsics
from lite3r_jax.errors import InputError
from lite3r_jax.refine import klt, sift, track
from lite3r_jax.refine.adjustment import require_pycolmap
from lite3r_jax.refine.depth import DepthFit, fit_depth
from lite3r_jax.refine.geometry_of_views import Cameras, DepthLookup, depth_lookup, to_network
from lite3r_jax.refine.judging import FEW_TRACKS, describe_moves, doubt, judge
from lite3r_jax.refine.kept import Kept, key_of
from lite3r_jax.refine.lenses import lenses_of
from lite3r_jax.refine.matching import REACH, Task, Tracker
from lite3r_jax.refine.observations import Observations, errors, lengths
from lite3r_jax.refine.options import RefineOptions, check_options
from lite3r_jax.refine.pairs import choose_pairs
from lite3r_jax.refine.solve import Solution, solve
from lite3r_jax.refine.straighten import straighten
from lite3r_jax.scene import PredictedGeometry, Scene, TrackedPoints

MATCHERS: Mapping[str, Callable[[Task], Observations]] = MappingProxyType(
    {"klt": klt.match, "sift": sift.match, "track": track.match}
)
"""The functions that find points in several views, by the name in `RefineOptions.matches`."""


@dataclass(frozen=True)
class Refined:
    """The result of a refinement: the scene, and a report of counts, errors and changes.

    Attributes:
        scene: the refined scene, or the scene as it was.
        report: plain data. `refined`: whether the scene was refined; `reason`: if not, why; the
            others are counts, errors in pixels of the photos before and after, and how far cameras,
            focal lengths and depth moved.
    """

    scene: Scene
    report: Mapping[str, Any]


def check_extra() -> None:
    """Raises an error if pycolmap or OpenCV, which refinement needs, is missing.

    Raises:
        InputError: a package is missing; the message names what to install.
    """
    require_pycolmap()
    try:
        import cv2  # noqa: F401
    except ImportError as error:
        raise InputError(
            "refine: needs pycolmap and OpenCV; pip install 'lite3r_jax[refine]', or leave"
            f" refinement out ({error})"
        ) from error


def refine(
    scene: Scene,
    options: RefineOptions | None = None,
    *,
    masked: np.ndarray | None = None,
    known: bool = False,
    progress: Callable[[], object] = lambda: None,
    tracker: Tracker | None = None,
    work: Path | None = None,
) -> Refined:
    """Adjusts the cameras of a scene to matches between its photos, and fits depth to them.

    Args:
        scene: the predicted scene, with its photos.
        options: settings of the refinement; `on` is ignored; None: `RefineOptions()`.
        masked: bool [S, H, W], pixels of the network images that give no matches, of moving objects
            for instance; None: none.
        known: whether the cameras are known: they do not change, and points and depth are fitted to
            them.
        progress: called once for every view and round of matching (`options.rounds`).
        tracker: tracks points if `options.matches` is "track".
        work: folder in which matches are kept during the call, so that a call that was stopped can
            be repeated without matching again as far as it got; the caller deletes the folder.
            None: nothing is kept.

    Returns:
        The scene with refined cameras and depth in the unit that it had, tracked points, and the
        prediction in `Scene.predicted`; or the scene as it was, where the report says why.

    Raises:
        InputError: pycolmap or OpenCV is not installed; settings contradict each other; the scene
            comes without photos, or one cannot be read; there is no tracker where one is needed;
            `work` has damaged matches or cannot be written.
    """
    check_extra()
    options = options or RefineOptions()
    check_options(options, known)
    if scene.predicted is not None:
        raise InputError("refine: the scene is refined already; give the one that was predicted")
    report: dict[str, Any] = {"refined": False, "reason": "", "views": scene.views}
    if scene.views < 2:
        return _kept(scene, report, "one view has no other to be matched with")
    if not scene.photos:
        raise InputError("refine: the scene comes without its photos; reconstruct it again")
    gray, scales = _gray_photos(scene, options.max_side)
    lenses = lenses_of(scene, options, known)
    before = Cameras.of(scene)
    depth = depth_lookup(scene, masked)
    cameras, looked_up = before, depth
    kept = Kept(work, "" if work is None else key_of(scene, options, gray, depth.usable, known))
    obs, solution = None, None
    for number in range(options.rounds):
        task = Task(
            gray=gray,
            scales=scales,
            cameras=cameras,
            depth=looked_up,
            pairs=choose_pairs(cameras, looked_up, options.partners),
            corners=options.corners,
            keep=partial(kept, number),
            reach=REACH[min(number, 1)],
            tracker=tracker,
            progress=progress,
        )
        matched = MATCHERS[options.matches](task)
        if matched.tracks < FEW_TRACKS:
            break
        obs = matched
        last = number + 1 == options.rounds
        solution = solve(obs, cameras, lenses, known, precisely=last)
        if not last and solution.used.any():
            moved = _in_predicted_world(obs, solution, before, depth, known)
            cameras = moved.cameras
            fit = _fit(scene, obs, moved, depth)
            looked_up = replace(depth, scene=replace(scene, depth=fit(scene.depth)))
    count = 0 if obs is None else obs.tracks
    report |= {"cameras": int(lenses.group.max()) + 1, "matched_tracks": count}
    if obs is None or solution is None:
        return _kept(scene, report, "too few points were found in several views; photos need"
                     " texture and have to overlap")  # fmt: skip
    solution = _in_predicted_world(obs, solution, before, depth, known)
    reason = judge(scene, obs, before, solution, report)
    reason = reason or ("" if known else doubt(obs, before, solution, lenses, report))
    if reason:
        return _kept(scene, report, reason)
    fit = _fit(scene, obs, solution, depth)
    try:
        refined = _refined(scene, obs, solution, fit)
    except InputError as error:  # of the lens: photos and packages were there before
        return _kept(scene, report, str(error))
    describe_moves(report, scene, obs, before, solution, depth, fit)
    report |= {
        "refined": True,
        "tracks": len(refined.tracks or ()),
        "observations": int(solution.used.sum()),
        "mean_track_length": round(refined.tracks.mean_length, 2) if refined.tracks else 0.0,
    }
    return Refined(refined, report)


def _kept(scene: Scene, report: dict[str, Any], reason: str) -> Refined:
    return Refined(scene, report | {"reason": reason})


def _gray_photos(scene: Scene, max_side: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Reads the photos as gray images uint8 [h, w]; returns them and their scale [S, 2]."""
    import cv2

    gray, scales = [], []
    for name, size, photo in zip(scene.names, scene.source_sizes, scene.photos, strict=True):
        image = np.asarray(photo.read().convert("L"))
        height, width = image.shape
        if (width, height) != tuple(size):
            raise InputError(
                f"{name}: the photo is {width}x{height} pixels now, it was {size[0]}x{size[1]}; put"
                " it back"
            )
        factor = max_side / max(width, height)
        if factor < 1:
            smaller = max(1, round(width * factor)), max(1, round(height * factor))
            image = cv2.resize(image, smaller, interpolation=cv2.INTER_AREA)
        gray.append(image)
        scales.append((image.shape[1] / width, image.shape[0] / height))
    return gray, np.array(scales)


def _in_predicted_world(
    obs: Observations, solution: Solution, before: Cameras, depth: DepthLookup, known: bool
) -> Solution:
    """Aligns the solution to the predicted cameras, in the unit of the predicted depth."""
    tied = solution.tied
    if known or not tied.any():
        return solution
    after = solution.cameras
    one, other = after.extrinsics[tied], before.extrinsics[tied]
    u, _, vt = np.linalg.svd(np.einsum("sji,sjk->ik", other[..., :3], one[..., :3]))
    turn = (u * [1, 1, np.sign(np.linalg.det(u @ vt))]) @ vt
    used = solution.used
    track, view = obs.track[used], obs.view[used]
    _, z = after.project(view, solution.points[track])
    there = depth.at(view, obs.pixel[used])
    good = (there > 0) & (z > 0)
    scale = float(np.median(there[good] / z[good])) if good.any() else 1.0
    shift = (before.centers[tied] - scale * after.centers[tied] @ turn.T).mean(0)
    rotation = one[..., :3] @ turn.T
    centers = scale * after.centers[tied] @ turn.T + shift
    extrinsics = after.extrinsics.copy()
    extrinsics[tied] = np.concatenate(
        [rotation, -np.einsum("sij,sj->si", rotation, centers)[..., None]], -1
    )
    points = scale * solution.points @ turn.T + shift
    return replace(solution, cameras=replace(after, extrinsics=extrinsics), points=points)


def _fit(scene: Scene, obs: Observations, solution: Solution, depth: DepthLookup) -> DepthFit:
    sub, numbers = obs.where(solution.used)
    _, z = solution.cameras.project(sub.view, solution.points[numbers][sub.track])
    place = np.rint(to_network(scene, sub.view, sub.pixel)).astype(np.intp)
    height, width = scene.size
    u, v = place[:, 0].clip(0, width - 1), place[:, 1].clip(0, height - 1)
    least = np.array(
        [float(d[good].min()) if good.any() else 1.0
         for d, good in zip(scene.depth, depth.usable, strict=True)]
    )  # fmt: skip
    conf = scene.depth_conf[sub.view, v, u].astype(np.float64)
    return fit_depth(sub, depth.at(sub.view, sub.pixel), z, conf, least)


def _refined(scene: Scene, obs: Observations, solution: Solution, fit: DepthFit) -> Scene:
    """Returns the scene with cameras, depth, points and tracks of the solution.

    Raises:
        InputError: the estimated lens distortion folds a photo.
    """
    cameras, tied = solution.cameras, solution.tied
    predicted = PredictedGeometry(scene.extrinsics, scene.intrinsics, scene.depth)
    if cameras.radial is not None:
        slopes = cameras.slopes(obs.view, obs.pixel)
        scene, cameras = straighten(scene, cameras)
        k = cameras.intrinsics[obs.view]
        obs = replace(obs, pixel=slopes * k[:, (0, 1), (0, 1)] + k[:, :2, 2])
    boxes = np.concatenate([scene.boxes, scene.source_sizes], -1)
    fitted = network_intrinsics(cameras.intrinsics, boxes, scene.size).astype(np.float32)
    intrinsics = np.where(tied[:, None, None], fitted, scene.intrinsics)
    extrinsics = cameras.extrinsics.astype(np.float32)
    depth = fit(scene.depth).astype(np.float32)
    moved = replace(
        scene,
        extrinsics=extrinsics,
        intrinsics=intrinsics,
        depth=depth,
        world_points=_moved_points(scene, extrinsics, fit),
    )
    sub, numbers = obs.where(solution.used)
    # of the cameras as the scene has them, rounded to float32
    stored = Cameras.of(moved)
    points = solution.points[numbers].astype(np.float32)
    off = errors(sub, stored, points.astype(np.float64))
    pixel = to_network(scene, sub.view, sub.pixel)
    height, width = scene.size
    u, v = np.rint(pixel).astype(np.intp).clip(0, (width - 1, height - 1)).T
    first = np.flatnonzero(np.diff(sub.track, prepend=-1))
    colors = scene.images[sub.view, v, u][first]
    tracks = TrackedPoints(
        points=points,
        colors=colors,
        errors=(np.bincount(sub.track, off) / lengths(sub)).astype(np.float32),
        track=sub.track.astype(np.int32),
        view=sub.view.astype(np.int32),
        pixel=pixel.astype(np.float32),
    )
    return replace(moved, tracks=tracks, predicted=predicted)


def _moved_points(scene: Scene, extrinsics: np.ndarray, fit: DepthFit) -> np.ndarray | None:
    """Moves points of the point head with their views, scaled as the depth of each point is."""
    if scene.world_points is None:
        return None
    moved = np.empty_like(scene.world_points)
    for view, points in enumerate(scene.world_points):
        old, new = (e[view].astype(np.float64) for e in (scene.extrinsics, extrinsics))
        local = points @ old[:, :3].T + old[:, 3]
        z = local[..., 2:]
        front = z > 0
        ratio = fit.scale[view] + fit.shift[view] / np.where(front, z, 1)
        local = local * np.where(front, ratio, fit.scale[view])
        moved[view] = (local - new[:, 3]) @ new[:, :3]
    return moved
