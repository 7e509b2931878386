"""Errors of point clouds after alignment by a similarity transform."""

import numpy as np
from numpy.typing import ArrayLike

from lite3r_jax import geometry
from lite3r_jax.metrics.values import Metrics, float64, require_finite, unavailable

F_SHARES = (0.01, 0.05)
"""Thresholds of the F-score, in the unit of the truth."""
POINT_METRICS = (
    "accuracy",
    "accuracy_median",
    "completeness",
    "completeness_median",
    "chamfer",
    *(f"{kind}_{share}" for share in F_SHARES for kind in ("precision", "recall", "fscore")),
)


def point_metrics(
    points: ArrayLike, truth: ArrayLike, mask: ArrayLike, *, icp: int = 0, limit: int = 50_000
) -> Metrics:
    """Computes distances between the predicted and the true surface, in the unit of the truth.

    The prediction is first brought onto the truth by the similarity of all valid pixels. Then, with
    distances to the nearest point of the other cloud: accuracy is the mean from prediction to
    truth, completeness from truth to prediction, chamfer the mean of both; precision_T and recall_T
    are the shares of distances below T in these directions and fscore_T is their harmonic mean
    (Knapitsch et al., Tanks and Temples, 2017).

    Args:
        points: [..., 3] prediction, one for each pixel.
        truth: [..., 3], of the same pixels.
        mask: [...] bool, pixels with a true point; the prediction counts there alone.
        icp: up to so many rounds of the iterated closest point follow, each a similarity of the
            prediction and the points nearest to it (Besl and McKay, 1992; without trimming); 0
            for none. It forgives shifts along surfaces.
        limit: larger clouds are thinned to so many points, evenly in the order of the pixels, the
            same ones of both clouds.

    Raises:
        InputError: a prediction that is not finite where it counts.
        ValueError: shapes differ.
    """
    mask = np.asarray(mask, bool)
    true = float64(np.asarray(truth)[mask], "truth", (None, 3))
    pred = float64(np.asarray(points)[mask], "points", true.shape)
    require_finite(pred, "points")
    if len(true) < 3:
        return unavailable(POINT_METRICS, "fewer than three pixels have true depth")
    pred = geometry.apply_sim3(geometry.fit_sim3(pred, true, xp=np), pred, xp=np)
    if len(true) > limit:
        kept = np.arange(limit) * len(true) // limit
        pred, true = pred[kept], true[kept]
    pred = _closest(pred, true, icp)
    there, back = _distances(pred, true)[0], _distances(true, pred)[0]
    metrics = {
        "accuracy": float(there.mean()),
        "accuracy_median": float(np.median(there)),
        "completeness": float(back.mean()),
        "completeness_median": float(np.median(back)),
    }
    metrics["chamfer"] = (metrics["accuracy"] + metrics["completeness"]) / 2
    for share in F_SHARES:
        precision, recall = float((there < share).mean()), float((back < share).mean())
        both = precision + recall
        metrics[f"precision_{share}"], metrics[f"recall_{share}"] = precision, recall
        metrics[f"fscore_{share}"] = 2 * precision * recall / both if both else 0.0
    return {**metrics}


def _closest(pred: np.ndarray, true: np.ndarray, rounds: int) -> np.ndarray:
    best = np.inf
    for _ in range(rounds):
        distance, nearest = _distances(pred, true)
        error = float((distance**2).mean())
        if not error < best * (1 - 1e-6):
            break
        best = error
        pred = geometry.apply_sim3(geometry.fit_sim3(pred, true[nearest], xp=np), pred, xp=np)
    return pred


def _distances(source: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns distances to the nearest target points [N], and the indices of these points [N]."""
    from scipy.spatial import KDTree

    distance, nearest = KDTree(target).query(source)
    return np.asarray(distance), np.asarray(nearest)
