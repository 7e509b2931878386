"""Lite3R's metrics as they are coded, faults included, to compare with its published figures.

Source: eval/metrics.py and eval/eval_vggt.py of github.com/AIGeeksGroup/Lite3R (54de28b). What is
questionable there and stays so here:

- the rotation error is averaged with the reference view's, which is 0 by construction;
- the translation error is of world-to-camera translations, after one least-squares scale;
- point clouds are compared without any alignment, in units of a scene that was divided by the
  larger of its median depth and its longest translation: "5 cm" is 0.05 of such a unit;
- all predicted points count, but of the true ones only those with depth;
- the Chamfer distance is half the sum of the mean squared distances.

Clouds of more than 50,000 points are thinned there by an unseeded draw, here evenly in the order of
the pixels: that much of its figures cannot be reproduced.
"""

import numpy as np
from numpy.typing import ArrayLike

from lite3r_jax.metrics.values import Metrics, float64, require_finite, unavailable

DEPTH = ("lite3r_abs_rel", "lite3r_rmse", "lite3r_delta1", "lite3r_delta2", "lite3r_delta3")
POSE = ("lite3r_rot_err_deg", "lite3r_trans_err")
POINTS = ("lite3r_chamfer", "lite3r_fscore_5cm")
_MIN_PIXELS = 100
_MAX_POINTS = 50_000
_SMALLEST = 1e-3


def depth_metrics(depth: ArrayLike, truth: ArrayLike, mask: ArrayLike) -> Metrics:
    """Computes Lite3R's depth_metrics with scale_invariant=True, over all views at once.

    Args:
        depth: [S, H, W] prediction.
        truth: [S, H, W] in the unit of Lite3R's loader (`data.transforms.normalize`, "lite3r").
        mask: [S, H, W] bool.

    Raises:
        InputError: a prediction that is not finite where it counts.
        ValueError: shapes differ.
    """
    truth = float64(truth, "truth", (None, None, None))
    depth = float64(depth, "depth", truth.shape)
    mask = np.asarray(mask, bool)
    require_finite(depth[mask], "depth")
    if mask.sum() < _MIN_PIXELS:
        return unavailable(DEPTH, f"fewer than {_MIN_PIXELS} pixels have true depth")
    p, g = np.maximum(depth[mask], _SMALLEST), np.maximum(truth[mask], _SMALLEST)
    p = p * ((g * p).sum() / max((p * p).sum(), 1e-8))
    ratio = np.maximum(p / g, g / p)
    values = (np.abs(p - g) / g).mean(), np.sqrt(((p - g) ** 2).mean())
    deltas = ((ratio < 1.25**k).mean() for k in (1, 2, 3))
    return {name: float(value) for name, value in zip(DEPTH, (*values, *deltas), strict=True)}


def pose_metrics(extrinsics: ArrayLike, truth: ArrayLike) -> Metrics:
    """Computes Lite3R's pose_metrics of poses relative to view 0, as its evaluation does.

    Args:
        extrinsics: [S, 3, 4] world-to-camera prediction.
        truth: [S, 3, 4] in the unit of Lite3R's loader.

    Raises:
        InputError: a prediction that is not finite.
        ValueError: shapes differ.
    """
    true = float64(truth, "truth", (None, 3, 4))
    pred = float64(extrinsics, "extrinsics", true.shape)
    require_finite(pred, "extrinsics")
    pred, true = _view0_relative(pred), _view0_relative(true)
    turn = np.swapaxes(pred[..., :3], -1, -2) @ true[..., :3]
    cosine = np.clip((np.trace(turn, axis1=-2, axis2=-1) - 1) / 2, -1, 1)
    t, g = pred[..., 3], true[..., 3]
    t = t * ((t * g).sum() / max((t * t).sum(), 1e-8))
    values = np.degrees(np.arccos(cosine).mean()), np.linalg.norm(t - g, axis=-1).mean()
    return {name: float(value) for name, value in zip(POSE, values, strict=True)}


def point_metrics(points: ArrayLike, truth: ArrayLike) -> Metrics:
    """Computes Lite3R's chamfer_l2, and its fscore_pointcloud with tau 0.05.

    Args:
        points: [N, 3], all predicted points, in the camera frame of view 0.
        truth: [M, 3], true points, in the camera frame of view 0 and the unit of Lite3R's loader.

    Raises:
        InputError: a prediction that is not finite.
        ValueError: shapes differ.
    """
    from scipy.spatial import KDTree

    a, b = float64(points, "points", (None, 3)), float64(truth, "truth", (None, 3))
    require_finite(a, "points")
    if not len(b):
        return unavailable(POINTS, "no pixel has true depth")
    a, b = _thin(a), _thin(b)
    to_truth, to_points = KDTree(b).query(a)[0], KDTree(a).query(b)[0]
    recall, precision = (to_truth < 0.05).mean(), (to_points < 0.05).mean()
    both = precision + recall
    score = 0.0 if both < 1e-6 else 2 * precision * recall / both
    chamfer = ((to_truth**2).mean() + (to_points**2).mean()) / 2
    return {name: float(value) for name, value in zip(POINTS, (chamfer, score), strict=True)}


def _view0_relative(e: np.ndarray) -> np.ndarray:
    rotation = e[..., :3] @ e[0, :, :3].T
    return np.concatenate([rotation, e[..., 3:] - rotation @ e[0, :, 3:]], -1)


def _thin(points: np.ndarray) -> np.ndarray:
    if len(points) <= _MAX_POINTS:
        return points
    return points[np.arange(_MAX_POINTS) * len(points) // _MAX_POINTS]
