"""Errors of predicted depth, poses and points, and how far two predictions agree.

Everything here is NumPy in float64 on the host: metrics are computed once per scene on what has
left the device, they need medians, singular values and nearest neighbors, and they have to be the
same number on every device and in every setting of JAX.
"""

from lite3r_jax.metrics.agreement import agreement
from lite3r_jax.metrics.depth import Alignment, Scope, align_depth, depth_metrics
from lite3r_jax.metrics.points import point_metrics
from lite3r_jax.metrics.pose import (
    THRESHOLDS,
    PairErrors,
    auc,
    pair_errors,
    pose_metrics,
    trajectory_metrics,
)
from lite3r_jax.metrics.values import Metrics, NotAvailable, Value, prefixed, unavailable

__all__ = [
    "THRESHOLDS",
    "Alignment",
    "Metrics",
    "NotAvailable",
    "PairErrors",
    "Scope",
    "Value",
    "agreement",
    "align_depth",
    "auc",
    "depth_metrics",
    "pair_errors",
    "point_metrics",
    "pose_metrics",
    "prefixed",
    "trajectory_metrics",
    "unavailable",
]
