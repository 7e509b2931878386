"""Decides whether refined cameras are better than predicted ones, and reports figures of both."""

from typing import Any

import numpy as np

from lite3r_jax.refine.adjustment import Lenses, adjust
from lite3r_jax.refine.depth import DepthFit
from lite3r_jax.refine.geometry_of_views import Cameras, DepthLookup
from lite3r_jax.refine.observations import Observations, errors, triangulate
from lite3r_jax.refine.solve import SOME, Solution, enough, limits
from lite3r_jax.scene import Scene

FEW_TRACKS = 30
"""Least number of tracks for which cameras are adjusted."""
_PARALLAX = 3.0  # pixels that points move against infinity, below which cameras only turn
_SAME_SHARE, _SAME_ERROR = 0.005, 0.02  # of matches, of pixels: differences that say nothing
_SURE, _DOUBTFUL = 0.5, 0.2  # degrees, and share of what cameras moved, halves may differ by
_SHARE = 0.5  # of views that have to be tied
_FOCAL = 3.0  # times that a focal length may become longer or shorter


def judge(
    scene: Scene,
    obs: Observations,
    before: Cameras,
    solution: Solution,
    report: dict[str, Any],
) -> str:
    """Returns why the predicted cameras are kept, or "" if the refined ones are better.

    The figures that decide are put into `report`. All matches count, also those that were rejected
    as outliers: each track is triangulated with the cameras before and with those after.
    """
    limit = limits(scene.source_sizes)[obs.view]
    scale = float(np.median(limit)) / 2
    shares, medians = [], []
    for cameras in (before, solution.cameras):
        off = errors(obs, cameras, triangulate(obs, cameras, scale))
        shares.append(float((off < limit).mean()))
        medians.append(float(np.median(off)))
    names = [name for name, tied in zip(scene.names, solution.tied, strict=True) if not tied]
    report |= {
        "not_tied": names,
        "limit_pixels": round(float(np.median(limit)), 3),
        "error_pixels": dict(zip(("before", "after"), np.round(medians, 4).tolist(), strict=True)),
        "within_limit": dict(zip(("before", "after"), np.round(shares, 4).tolist(), strict=True)),
        "outliers": round(1 - shares[1], 4),
    }
    views = int(solution.tied.sum())
    sub, _ = obs.where(solution.used)
    if solution.parallax < _PARALLAX:
        return "the camera only turned: without a baseline neither positions nor depth can be told"
    if views < 2 or sub.tracks < FEW_TRACKS or views < _SHARE * scene.views:
        return (
            f"matches tie only {views} of {scene.views} views together; photos need texture and"
            " have to overlap"
        )
    focal = [c.intrinsics[solution.tied, 0, 0] for c in (before, solution.cameras)]
    longer = float(np.median(focal[1] / focal[0]))
    if not 1 / _FOCAL <= longer <= _FOCAL:
        return (
            f"the focal length would be {longer:.2f} times the predicted one, which these matches"
            " do not tell from a turn of the cameras; take photos from further apart, or keep it by"
            " refine.intrinsics=fixed"
        )
    if shares[1] < shares[0] - _SAME_SHARE or medians[1] > medians[0] + _SAME_ERROR * scale:
        return (
            f"it fits the matches better: median error {medians[0]:.2f} pixels, refined"
            f" {medians[1]:.2f}; within the limit {shares[0]:.1%}, refined {shares[1]:.1%}"
        )
    return ""


def doubt(
    obs: Observations,
    before: Cameras,
    solution: Solution,
    lenses: Lenses,
    report: dict[str, Any],
) -> str:
    """Returns why refined cameras that fit the matches may still be wrong, or "".

    Cameras are adjusted to one half of the tracks, and to the other half: where the two results
    differ by much, as with hardly any baseline, the cameras of all tracks cannot be trusted either.
    Relative rotations are compared; their difference is judged against how far refinement has moved
    the prediction. The figures are put into `report`.
    """
    halves = []
    for half in (0, 1):
        mine = solution.used & (obs.track % 2 == half)
        sub, numbers = obs.where(enough(obs, mine, SOME))
        if sub.tracks < FEW_TRACKS // 2:
            return "too few points were found in several views"
        scale = float(np.median(limits(lenses.sizes))) / 2
        halves.append(adjust(sub, solution.cameras, solution.points[numbers], lenses, scale)[0])
    tied = np.flatnonzero(solution.tied)
    apart = _apart(halves[0], halves[1], tied)
    moved = _apart(before, solution.cameras, tied)
    report |= {"halves_degrees": round(apart, 3), "pairs_degrees": round(moved, 3)}
    if apart > max(_SURE, _DOUBTFUL * moved):
        return (
            f"matches fit more than one set of cameras: either half of them gives views that are"
            f" turned by {apart:.2f} degrees against the other's; take photos from further apart"
        )
    return ""


def _apart(one: Cameras, other: Cameras, views: np.ndarray) -> float:
    """Returns the median angle in degrees between the relative rotations of all pairs of views."""
    i, j = np.triu_indices(len(views), 1)
    first, second = (
        c.extrinsics[views[j], :, :3] @ c.extrinsics[views[i], :, :3].swapaxes(1, 2)
        for c in (one, other)
    )
    return float(np.median(_degrees(first, second)))


def _degrees(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Returns angles in degrees between rotations [N, 3, 3]; unlike a trace, exact if small."""
    off = np.linalg.norm(one - other, axis=(1, 2))
    return np.degrees(2 * np.arcsin(np.minimum(off / 8**0.5, 1)))


def describe_moves(
    report: dict[str, Any],
    scene: Scene,
    obs: Observations,
    before: Cameras,
    solution: Solution,
    depth: DepthLookup,
    fit: DepthFit,
) -> None:
    """Adds to the report how far cameras, focal lengths and depth moved in the refinement."""
    tied, after = solution.tied, solution.cameras
    turned = _degrees(after.extrinsics[tied][..., :3], before.extrinsics[tied][..., :3])
    spread = np.linalg.norm(after.centers[tied] - after.centers[tied].mean(0), axis=-1).mean()
    away = np.linalg.norm(after.centers[tied] - before.centers[tied], axis=-1)
    focal = [np.median(c.intrinsics[tied, 0, 0]) for c in (before, after)]
    used = solution.used
    _, z = after.project(obs.view[used], solution.points[obs.track[used]])
    view, there = obs.view[used], depth.at(obs.view[used], obs.pixel[used])
    good = there > 0
    offs = [
        float(np.median(np.abs(d - z)[good] / z[good])) if good.any() else float("nan")
        for d in (there, there * fit.scale[view] + fit.shift[view])
    ]
    report |= {
        "rotation_degrees": {
            "median": round(float(np.median(turned)), 3),
            "largest": round(float(turned.max()), 3),
        },
        "position_of_spread": round(float(np.median(away) / max(spread, 1e-12)), 4),
        "focal_length": round(float(focal[1] / focal[0]), 4),
        "radial_distortion": _radial(after, tied),
        "depth_scale": [round(float(s), 4) for s in (fit.scale.min(), fit.scale.max())],
        "depth_shifted_views": int((fit.shift != 0).sum()),
        "depth_error": dict(zip(("before", "after"), np.round(offs, 4).tolist(), strict=True)),
    }


def _radial(cameras: Cameras, tied: np.ndarray) -> list[float] | None:
    """Returns least and largest radial distortion k of the tied views; None for pinhole cameras."""
    if cameras.radial is None:
        return None
    k = cameras.radial[tied]
    return [round(float(k.min()), 5), round(float(k.max()), 5)]
