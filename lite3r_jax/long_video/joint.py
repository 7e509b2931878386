"""Robust estimation of the similarity between two predictions of the same views.

Two chunks that share views have a point for each pixel of these views in both their worlds. Of the
similarities fitted to a few random points each, the one with the least median error is taken, then
improved by iteratively reweighted least squares, and refined on the robust cost itself. Errors are
distances over the depth of the point, as errors of depth grow with depth; weights come from the
confidences of both predictions.
"""

from dataclasses import dataclass

import numpy as np

from lite3r_jax.exports.points import AUTO, confidence_limit
from lite3r_jax.geometry import Sim3, apply_sim3, fit_sim3
from lite3r_jax.long_video.similarity import apply_to_many, cross_matrix, exp_rotation
from lite3r_jax.scene import Scene

POINTS = 3000
"""Number of pixels that a fit uses, evenly spread over the shared views."""
INLIER = 0.1
"""Ratio of error to depth below which a point counts as an inlier."""
LEAST_AGREEING = 0.5
"""Least share of inliers (by weight) of a valid fit."""
MOST_TURNED = 15.0
"""Largest median angle in degrees between the cameras of both predictions in a valid fit."""
_LEAST_POINTS = 30
_TRIALS, _SAMPLE = 100, 4
_LEAST_SCALE = 1e-6  # of the spread of the points
_ROUNDS, _STEPS = 10, 10


@dataclass(frozen=True)
class Joint:
    """The similarity from one prediction onto another, with the figures that tell how well it fits.

    Attributes:
        similarity: from the world of the first prediction to that of the second; None where no
            similarity could be computed.
        agreeing: share of the points (by weight) whose error is below `INLIER`.
        error: median over the points of distance over depth.
        degrees: median angle between the cameras of both predictions.
        fault: why the fit is not valid; "" where it is.
    """

    similarity: Sim3 | None
    agreeing: float = 0.0
    error: float = 0.0
    degrees: float = 0.0
    fault: str = ""


def fit(source: Scene, target: Scene) -> Joint:
    """Fits the similarity that maps one prediction onto another of the same views.

    Args:
        source: the first prediction, of S views.
        target: the second prediction, of the same views in the same order and size.
    """
    x, y, depth, weights = shared_points(source, target)
    if len(x) < _LEAST_POINTS:
        return Joint(None, fault=f"{len(x)} pixels have a sure depth in both")
    if min(_spread(x), _spread(y)) <= _LEAST_SCALE * max(1e-30, float(np.median(depth))):
        return Joint(None, fault="the points of the shared views are in one place")
    similarity = _refined(_reweighted(_first(x, y, depth), x, y, depth, weights), x, y, depth,
                          weights)  # fmt: skip
    errors = _errors(similarity, x, y, depth)
    agreeing = float(weights[errors < INLIER].sum() / weights.sum())
    degrees = _turned(similarity, source, target)
    fault = ""
    if not (np.isfinite(errors).all() and similarity.scale > 0):
        fault = "no similarity was found"
    elif agreeing < LEAST_AGREEING:
        fault = (
            f"{100 * agreeing:.0f} % of the points agree within {100 * INLIER:.0f} % of their"
            f" depth, {100 * LEAST_AGREEING:.0f} % are needed"
        )
    elif degrees > MOST_TURNED:
        fault = f"the cameras are {degrees:.0f} degrees apart"
    return Joint(similarity, agreeing, float(np.median(errors)), degrees, fault)


def shared_points(
    source: Scene, target: Scene
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Gathers the points of the same pixels in the worlds of two predictions.

    Args:
        source: the first prediction, of S views.
        target: the second prediction, of the same views.

    Returns:
        (points of source [N, 3], points of target [N, 3], depth in target [N], weights [N]: the
        root of the product of both confidences, each over its median), float64.
    """
    each = max(1, POINTS // source.views)
    height, width = source.size
    step = max(1, int(np.sqrt(height * width / each)))
    rows, columns = np.arange(step // 2, height, step), np.arange(step // 2, width, step)
    pick = np.ix_(np.arange(source.views), rows, columns)
    valid = source.inside()[pick]
    xyz, conf, depths = [], [], []
    for scene in (source, target):
        depth = scene.depth[pick].astype(np.float64)
        sure = scene.depth_conf[pick].astype(np.float64)
        valid &= np.isfinite(depth) & (depth > 0) & np.isfinite(sure)
        xyz.append(unprojected(scene, depth, rows, columns))
        conf.append(sure)
        depths.append(depth)
    if valid.any():  # each asked before the other has changed it
        kept = [sure >= confidence_limit(sure[valid], AUTO) for sure in conf]
        valid &= kept[0] & kept[1]
    if not valid.any():
        return np.zeros((0, 3)), np.zeros((0, 3)), np.zeros(0), np.zeros(0)
    over = [np.maximum(sure[valid] / np.median(sure[valid]), 1e-3) for sure in conf]
    return xyz[0][valid], xyz[1][valid], depths[1][valid], np.sqrt(over[0] * over[1])


def unprojected(
    scene: Scene, depth: np.ndarray, rows: np.ndarray, columns: np.ndarray
) -> np.ndarray:
    """Unprojects depth [S, h, w] at some rows and columns to world points float64 [S, h, w, 3]."""
    k = scene.intrinsics.astype(np.float64)[:, None, None]
    x = (columns[None, None, :] - k[..., 0, 2]) / k[..., 0, 0] * depth
    y = (rows[None, :, None] - k[..., 1, 2]) / k[..., 1, 1] * depth
    pose = scene.camera_to_world[:, None, None]
    return (pose[..., :3] @ np.stack([x, y, depth], -1)[..., None])[..., 0] + pose[..., 3]


def _spread(points: np.ndarray) -> float:
    return float(np.linalg.norm(points - np.median(points, 0), axis=-1).mean())


def _errors(similarity: Sim3, x: np.ndarray, y: np.ndarray, depth: np.ndarray) -> np.ndarray:
    return np.linalg.norm(apply_to_many(similarity, x) - y, axis=-1) / depth


def _first(x: np.ndarray, y: np.ndarray, depth: np.ndarray) -> Sim3:
    """Fits similarities to random small samples of points; returns that of least median error."""
    rng = np.random.default_rng(0)
    picks = rng.integers(0, len(x), (_TRIALS, _SAMPLE))
    trials = fit_sim3(x[picks], y[picks], xp=np)
    few = rng.permutation(len(x))[:500]
    everywhere = np.broadcast_to(x[few], (_TRIALS, len(few), 3))
    apart = np.linalg.norm(apply_sim3(trials, everywhere, xp=np) - y[few], axis=-1) / depth[few]
    best = int(np.argmin(np.median(apart, -1)))
    return Sim3(*(part[best] for part in trials))


def _reweighted(
    first: Sim3, x: np.ndarray, y: np.ndarray, depth: np.ndarray, weights: np.ndarray
) -> Sim3:
    """Fits by iteratively reweighted least squares (Umeyama) with weights of Geman and McClure."""
    similarity = first
    for _ in range(_ROUNDS):
        errors = _errors(similarity, x, y, depth)
        limit = np.clip(3 * np.median(errors), 1e-9, INLIER)
        robust = 1 / (1 + (errors / limit) ** 2) ** 2
        similarity = fit_sim3(x, y, weights * robust / depth**2, xp=np)
    return similarity


def _refined(
    start: Sim3, x: np.ndarray, y: np.ndarray, depth: np.ndarray, weights: np.ndarray
) -> Sim3:
    """Minimizes the robust cost (Cauchy's) from a starting similarity by Gauss-Newton steps.

    A step rotates and scales about the median of the points and translates, so that its seven
    parameters are nearly independent.
    """
    middle, size = np.median(y, 0), float(np.median(depth))
    scale = max(float(np.median(_errors(start, x, y, depth))), 1e-9)
    similarity = start
    for _ in range(_STEPS):
        moved = apply_to_many(similarity, x)
        apart = (moved - y) / depth[:, None]
        robust = weights / (1 + (apart**2).sum(-1) / scale**2)
        around = moved - middle
        slopes = np.concatenate(
            [-cross_matrix(around), np.tile(size * np.eye(3), (len(x), 1, 1)), around[..., None]],
            -1,
        ) / depth[:, None, None]  # fmt: skip
        weighted = robust[:, None, None] * slopes
        normal = np.einsum("nij,nik->jk", weighted, slopes)
        slope = np.einsum("nij,ni->j", weighted, apart)
        normal[np.diag_indices(7)] *= 1 + 1e-9
        try:
            step = np.linalg.solve(normal, -slope)
        except np.linalg.LinAlgError:  # points on a line leave a turn open
            return similarity
        turn, grow = exp_rotation(step[:3]), np.exp(step[6])
        similarity = Sim3(
            grow * similarity.scale,
            turn @ similarity.rotation,
            grow * turn @ (similarity.translation - middle) + middle + size * step[3:6],
        )
        if np.abs(step).max() < 1e-9:
            break
    return similarity


def _turned(similarity: Sim3, source: Scene, target: Scene) -> float:
    """Returns the median angle in degrees between the cameras of both predictions after the fit."""
    a = similarity.rotation @ source.camera_to_world[..., :3]
    apart = np.linalg.norm(a - target.camera_to_world[..., :3], axis=(-2, -1))
    return float(np.degrees(np.median(2 * np.arcsin(np.minimum(apart / np.sqrt(8), 1)))))
