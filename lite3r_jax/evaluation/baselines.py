"""The camera baseline: metrics of the mean pose, a prediction that looks at no image.

The depth baseline, depth 1 everywhere, is measured with the metrics of each scene (`score`).
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lite3r_jax import metrics as m
from lite3r_jax.evaluation.record import Record, pairs_of
from lite3r_jax.metrics.pose import POSE_METRICS

PREFIX = "mean_pose_"


def with_mean_pose(records: Sequence[Record]) -> list[Record]:
    """Adds the metrics that the mean pose of the other scenes would score to each record.

    The guess for view k is the mean pose of view k relative to view 0 over all other scenes of the
    same evaluation, so the baseline knows the protocol, which flatters it. Rotations are averaged
    as matrices and projected onto rotations, translations after each scene was divided by its
    longest one.

    Args:
        records: of one protocol; failures stay as they are.

    Returns:
        Records whose added names begin with "mean_pose_".
    """
    cameras = {
        n: np.array(record.cameras, np.float64).reshape(-1, 3, 4)
        for n, record in enumerate(records)
        if not record.failure
    }
    scaled = {n: _unit(e) for n, e in cameras.items()}
    total = sum(scaled.values())
    completed = list(records)
    for n, e in cameras.items():
        pairs = {}
        if len(cameras) < 2:
            values = m.unavailable(POSE_METRICS, "there is no other scene to take the mean of")
        else:
            guess = _project((total - scaled[n]) / (len(cameras) - 1))
            values = m.pose_metrics(guess, e)
            pairs = pairs_of(m.pair_errors(guess, e), PREFIX) if len(e) > 1 else {}
        completed[n] = replace(
            records[n],
            metrics={**records[n].metrics, **m.prefixed(PREFIX, values)},
            pairs={**records[n].pairs, **pairs},
        )
    return completed


def _unit(e: np.ndarray) -> np.ndarray:
    longest = float(np.linalg.norm(e[..., 3], axis=-1).max())
    return np.concatenate([e[..., :3], e[..., 3:] / (longest or 1.0)], -1)


def _project(e: np.ndarray) -> np.ndarray:
    """Replaces the averaged rotation matrices of poses [..., 3, 4] by the nearest rotations."""
    u, _, vt = np.linalg.svd(e[..., :3])
    u[..., 2] *= np.sign(np.linalg.det(u @ vt))[:, None]
    return np.concatenate([u @ vt, e[..., 3:]], -1)
