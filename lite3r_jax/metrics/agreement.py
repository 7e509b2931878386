"""Metrics of how far a student's prediction is from its teacher's."""

import numpy as np
from numpy.typing import ArrayLike

from lite3r_jax.metrics.depth import DEPTH_METRICS, depth_metrics
from lite3r_jax.metrics.pose import POSE_METRICS, pose_metrics
from lite3r_jax.metrics.values import Metrics, prefixed, unavailable

_DEPTH = tuple(name for name in DEPTH_METRICS if name != "rmse")
_POSE = tuple(name for name in POSE_METRICS if not name.startswith("published"))
AGREEMENT_METRICS = tuple(f"teacher_{name}" for name in (*_DEPTH, *_POSE))


def agreement(
    student_depth: ArrayLike | None,
    student_extrinsics: ArrayLike | None,
    teacher_depth: ArrayLike | None,
    teacher_extrinsics: ArrayLike | None,
) -> Metrics:
    """Computes errors of a student's prediction with its teacher's as the truth.

    Every pixel and every pair of views counts. Depth is compared after one least-squares scale for
    the scene, poses as in `pose_metrics`; lengths are in the teacher's unit. Names begin with
    "teacher_".

    Args:
        student_depth: [S, H, W]; None without depth.
        student_extrinsics: [S, 3, 4] world-to-camera; None without cameras.
        teacher_depth: likewise.
        teacher_extrinsics: likewise.

    Raises:
        InputError: a prediction that is not finite.
        ValueError: shapes differ.
    """
    if student_depth is None or teacher_depth is None:
        depth = unavailable(_DEPTH, "one of the models predicts no depth")
    else:
        everywhere = np.ones(np.shape(teacher_depth), bool)
        depth = depth_metrics(student_depth, teacher_depth, everywhere)
    if student_extrinsics is None or teacher_extrinsics is None:
        pose = unavailable(_POSE, "one of the models predicts no cameras")
    else:
        pose = pose_metrics(student_extrinsics, teacher_extrinsics)
    chosen = {name: depth[name] for name in _DEPTH} | {name: pose[name] for name in _POSE}
    return prefixed("teacher_", chosen)
