"""Errors of camera poses: pairs of views, the reference view, trajectories.

Extrinsics are [S, 3, 4] world-to-camera, OpenCV. Predictions may have a world frame and a unit of
length of their own: relative rotations and directions know neither, the rest is aligned first.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from lite3r_jax import geometry
from lite3r_jax.metrics.values import Metrics, NotAvailable, float64, require_finite, unavailable

THRESHOLDS = (3, 5, 15, 30)
"""Thresholds of AUC, RRA and RTA, in degrees."""
SAME_PLACE = 1e-6
"""Cameras nearer to each other than this share of the longest distance have no direction."""

_PER_THRESHOLD = tuple(f"{kind}_{t}" for kind in ("rra", "rta", "auc") for t in THRESHOLDS)
_PUBLISHED = tuple(f"published_auc_{t}" for t in THRESHOLDS)
POSE_METRICS = ("rotation_deg", "direction_deg", "translation", *_PER_THRESHOLD, *_PUBLISHED)
TRAJECTORY_METRICS = ("ate", "rpe_translation", "rpe_rotation_deg")


@dataclass(frozen=True, eq=False)
class PairErrors:
    """Errors of the relative poses E_j E_i^-1 of all N = S (S - 1) / 2 pairs of views, i < j.

    Attributes:
        rotation: float64 [N], angle between true and predicted relative rotation, degrees.
        direction: float64 [N], angle between true and predicted translation of the relative pose,
            which is where camera j has camera i, 0 to 180 degrees: the sign counts. NaN where the
            true cameras are at one place; 180 where only the predicted ones are.
    """

    rotation: np.ndarray
    direction: np.ndarray

    @property
    def largest(self) -> np.ndarray:
        """Larger of rotation and direction error, for the pairs that have a direction."""
        known = np.isfinite(self.direction)
        return np.maximum(self.rotation, self.direction)[known]


def pair_errors(extrinsics: ArrayLike, truth: ArrayLike) -> PairErrors:
    """Computes the errors of relative poses of all pairs of views, (0, 1), (0, 2), ..., (1, 2), ...

    Args:
        extrinsics: [S, 3, 4] prediction.
        truth: [S, 3, 4].

    Raises:
        InputError: a prediction that is not finite.
        ValueError: shapes differ.
    """
    pred, true = _cameras(extrinsics, truth)
    i, j = np.triu_indices(len(true), 1)
    return _errors(_relative(pred, i, j), _relative(true, i, j))


def auc(errors: np.ndarray, threshold: int) -> float:
    """Returns the area under the curve of the share of errors below 1, 2, ..., `threshold` degrees.

    It is the mean of these shares, as in calculate_auc_np of VGGT's evaluation and of Depth
    Anything 3 (bench/utils.py), where an error of just `threshold` counts as below.

    Args:
        errors: [N] in degrees, N > 0.
        threshold: whole degrees.
    """
    counts, _ = np.histogram(errors, bins=np.arange(threshold + 1))
    return float(np.cumsum(counts / len(errors)).mean())


def pose_metrics(extrinsics: ArrayLike, truth: ArrayLike) -> Metrics:
    """Computes errors of poses relative to the first view, and over all pairs of views.

    - rotation_deg, direction_deg, translation: means over views 1 to S - 1 relative to view 0,
      which itself does not count. direction_deg is the angle between the directions in which a view
      has the first camera. translation is the distance of the camera centers, in the frame of view
      0 and the unit of the truth, after one least-squares scale for the scene.
    - rra_T, rta_T: share of all pairs with a rotation or direction error below T degrees.
    - auc_T: `auc` of the larger of rotation and direction error.
    - published_auc_T: as the published tables have it, for comparison with them: first camera made
      the world, pairs E_i^-1 E_j, and a direction and its opposite count as the same (VGGT's
      evaluation; Depth Anything 3, bench/utils.py).

    Pairs whose true cameras are at one place have no direction and count in rra alone.

    Args:
        extrinsics: [S, 3, 4] prediction.
        truth: [S, 3, 4].

    Raises:
        InputError: a prediction that is not finite.
        ValueError: shapes differ.
    """
    pred, true = _cameras(extrinsics, truth)
    views = len(true)
    if views < 2:
        return unavailable(POSE_METRICS, "one view has no relative pose")
    pred, true = _first_is_world(pred), _first_is_world(true)
    metrics: Metrics = {}
    first = np.zeros(views - 1, int), np.arange(1, views)
    reference = _errors(_relative(pred, *first), _relative(true, *first))
    metrics["rotation_deg"] = float(reference.rotation.mean())
    errors = pair_errors(pred, true)
    nowhere = "all cameras are at one place"
    known = np.isfinite(reference.direction)
    metrics["direction_deg"] = (
        float(reference.direction[known].mean())
        if known.any()
        else NotAvailable("all cameras are at the first one's place")
    )
    metrics["translation"] = _translation(pred, true)
    largest = errors.largest
    directions = errors.direction[np.isfinite(errors.direction)]
    for t in THRESHOLDS:
        metrics[f"rra_{t}"] = float((errors.rotation < t).mean())
    for t in THRESHOLDS:
        some = len(directions) > 0
        metrics[f"rta_{t}"] = float((directions < t).mean()) if some else NotAvailable(nowhere)
    for t in THRESHOLDS:
        metrics[f"auc_{t}"] = auc(largest, t) if len(largest) else NotAvailable(nowhere)
    published = _published(pred, true)
    for t in THRESHOLDS:
        some = len(published) > 0
        metrics[f"published_auc_{t}"] = auc(published, t) if some else NotAvailable(nowhere)
    return metrics


def trajectory_metrics(extrinsics: ArrayLike, truth: ArrayLike) -> Metrics:
    """Computes errors of the camera's path, views in order, after the best similarity (Sim(3)).

    - ate: root of the mean squared distance of the camera centers (Sturm et al., IROS 2012).
    - rpe_translation, rpe_rotation_deg: root of the mean square of the length and of the angle of
      what true and predicted motion from each view to the next differ by.

    Lengths are in the unit of the truth.

    Args:
        extrinsics: [S, 3, 4] prediction.
        truth: [S, 3, 4].

    Raises:
        InputError: a prediction that is not finite.
        ValueError: shapes differ.
    """
    pred, true = _cameras(extrinsics, truth)
    if len(true) < 3:
        return unavailable(TRAJECTORY_METRICS, "a similarity fits fewer than three cameras exactly")
    centers, goals = _centers(pred), _centers(true)
    if not np.ptp(goals, axis=0).any():
        return unavailable(TRAJECTORY_METRICS, "all cameras are at one place")
    sim3 = geometry.fit_sim3(centers, goals, xp=np)
    off = np.linalg.norm(geometry.apply_sim3(sim3, centers, xp=np) - goals, axis=-1)
    # camera-to-world motion from view i to i + 1, in the frame of view i; only the scale of the
    # similarity can change it
    now, later = np.arange(len(true) - 1), np.arange(1, len(true))
    move, goal = _relative(pred, later, now), _relative(true, later, now)
    move[..., 3] *= sim3.scale
    turn = np.swapaxes(goal[..., :3], -1, -2) @ move[..., :3]
    return {
        "ate": float(np.sqrt((off**2).mean())),
        "rpe_translation": float(np.sqrt(((move - goal)[..., 3] ** 2).sum(-1).mean())),
        "rpe_rotation_deg": float(np.sqrt((_angle(turn) ** 2).mean())),
    }


def _cameras(extrinsics: ArrayLike, truth: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    true = float64(truth, "truth", (None, 3, 4))
    pred = float64(extrinsics, "extrinsics", true.shape)
    require_finite(pred, "extrinsics")
    return pred, true


def _centers(e: np.ndarray) -> np.ndarray:
    """Returns the camera centers [S, 3] in the world."""
    return -(np.swapaxes(e[..., :3], -1, -2) @ e[..., 3:])[..., 0]


def _first_is_world(e: np.ndarray) -> np.ndarray:
    return _relative(e, np.zeros(len(e), int), np.arange(len(e)))


def _relative(e: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """Returns E_j E_i^-1 [N, 3, 4], which takes the frame of camera i to that of camera j."""
    rotation = e[j, :, :3] @ np.swapaxes(e[i, :, :3], -1, -2)
    return np.concatenate([rotation, e[j, :, 3:] - rotation @ e[i, :, 3:]], -1)


def _errors(pred: np.ndarray, true: np.ndarray, *, signed: bool = True) -> PairErrors:
    """Computes the errors of predicted relative poses [N, 3, 4]."""
    rotation = _angle(pred[..., :3] @ np.swapaxes(true[..., :3], -1, -2))
    return PairErrors(rotation, _between(pred[..., 3], true[..., 3], signed))


def _angle(rotation: np.ndarray) -> np.ndarray:
    """Returns the angle of rotations [N, 3, 3] in degrees.

    It is exact near 0 and 180, where acos is not.
    """
    r = rotation
    axis = np.stack([r[:, 2, 1] - r[:, 1, 2], r[:, 0, 2] - r[:, 2, 0], r[:, 1, 0] - r[:, 0, 1]])
    trace = np.trace(r, axis1=-2, axis2=-1)
    return np.degrees(np.arctan2(np.linalg.norm(axis, axis=0), trace - 1))


def _between(pred: np.ndarray, true: np.ndarray, signed: bool) -> np.ndarray:
    """Returns the angle between vectors [N, 3] in degrees; see `PairErrors.direction`."""
    cross = np.linalg.norm(np.cross(pred, true), axis=-1)
    angle = np.degrees(np.arctan2(cross, (pred * true).sum(-1)))
    if not signed:
        angle = np.minimum(angle, 180 - angle)
    angle[_same_place(pred)] = 180.0 if signed else 90.0
    angle[_same_place(true)] = np.nan
    return angle


def _same_place(shifts: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(shifts, axis=-1)
    return lengths <= SAME_PLACE * lengths.max(initial=0.0)


def _published(pred: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Returns the larger error of every pair as the published tables have it.

    The first camera is the world.
    """
    i, j = np.triu_indices(len(true), 1)

    def relative(e: np.ndarray) -> np.ndarray:
        """Returns the relative poses E_i^-1 E_j of all pairs."""
        moved = e[j].copy()
        moved[..., 3] -= e[i, :, 3]
        return np.swapaxes(e[i, :, :3], -1, -2) @ moved

    return _errors(relative(pred), relative(true), signed=False).largest


def _translation(pred: np.ndarray, true: np.ndarray) -> float | NotAvailable:
    """Returns the mean distance of the centers of views 1 and up, after one least-squares scale.

    The first camera is the world.
    """
    c, g = _centers(pred)[1:], _centers(true)[1:]
    if not g.any():
        return NotAvailable("all cameras are at the first one's place")
    below = float((c * c).sum())
    scale = float((c * g).sum()) / below if below > 0 else 0.0
    return float(np.linalg.norm(scale * c - g, axis=-1).mean())
