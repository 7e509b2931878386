"""The metrics of one evaluated scene."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from lite3r_jax import metrics as m
from lite3r_jax.data.transforms import normalize
from lite3r_jax.data.views import Sample
from lite3r_jax.evaluation.predictor import Output
from lite3r_jax.evaluation.world_points import world_points
from lite3r_jax.metrics import compat_lite3r
from lite3r_jax.metrics.depth import DEPTH_METRICS
from lite3r_jax.metrics.points import POINT_METRICS
from lite3r_jax.metrics.pose import POSE_METRICS, TRAJECTORY_METRICS

NO_DEPTH = "the dataset has no depth"
NO_DEPTH_HEAD = "the model has no depth head"
NO_CAMERA_HEAD = "the model has no camera head"


@dataclass(frozen=True)
class ScoreOptions:
    """Settings of the metrics: what is measured, and after which alignment.

    Attributes:
        alignment: of depth, see `metrics.align_depth`.
        scope: one alignment for the scene or one for each view.
        points: whether point clouds are compared.
        icp: rounds of ICP before point clouds are compared, see `metrics.point_metrics`.
        compat: lite3r: also Lite3R's metrics as they are coded, see `metrics.compat_lite3r`.
        wrong_partner: whether the first view's depth is predicted once more, with the other views
            of another scene: a model that uses them gets worse.
    """

    alignment: m.Alignment = "scale"
    scope: m.Scope = "scene"
    points: bool = True
    icp: int = 0
    compat: Literal["", "lite3r"] = ""
    wrong_partner: bool = True


def in_unit(sample: Sample) -> Sample:
    """Normalizes a sample to the frame of its first camera and to a unit that scenes can share.

    With depth the unit is the mean distance of the true points from the first camera; without, the
    distance of the camera that is farthest from it.
    """
    if sample.mask is not None and sample.mask.any():
        return normalize(sample, "vggt")
    e = sample.extrinsics.astype(np.float64)
    rotation = e[..., :3] @ e[0, :, :3].T
    shift = e[..., 3:] - rotation @ e[0, :, 3:]
    farthest = float(np.linalg.norm(shift, axis=(-2, -1)).max())
    scale = farthest if farthest > 0 else 1.0
    moved = np.concatenate([rotation, shift / scale], -1).astype(np.float32)
    return replace(sample, extrinsics=moved, scale=sample.scale * scale)


def score(sample: Sample, true: Sample, output: Output, options: ScoreOptions) -> m.Metrics:
    """Computes the metrics of a prediction that need no other scene.

    These are all metrics but those of the wrong partner and of the mean pose.

    Args:
        sample: as the dataset has it.
        true: the same, `in_unit`.
        output: the prediction for its images.
        options: what is measured.

    Raises:
        InputError: the prediction is not finite, or has no scale.
    """
    metrics: m.Metrics = {}
    if true.depth is None or true.mask is None:
        metrics |= m.unavailable(DEPTH_METRICS, NO_DEPTH)
    elif output.depth is None:
        metrics |= m.unavailable(DEPTH_METRICS, NO_DEPTH_HEAD)
    else:
        for prefix, depth in {
            "": output.depth,
            "constant_depth_": np.ones_like(true.depth),
        }.items():
            values = m.depth_metrics(
                depth, true.depth, true.mask, alignment=options.alignment, scope=options.scope
            )
            metrics |= m.prefixed(prefix, values)
    if output.extrinsics is None:
        metrics |= m.unavailable((*POSE_METRICS, *TRAJECTORY_METRICS), NO_CAMERA_HEAD)
    else:
        metrics |= m.pose_metrics(output.extrinsics, true.extrinsics)
        metrics |= m.trajectory_metrics(output.extrinsics, true.extrinsics)
    if options.points:
        metrics |= _points(true, output, options.icp)
    if options.compat == "lite3r":
        metrics |= _lite3r(sample, output)
    return metrics


def first_view_abs_rel(true: Sample, output: Output, options: ScoreOptions) -> m.Value:
    """Computes abs_rel of the first view alone, aligned by itself; `true` is as for `score`."""
    if true.depth is None or true.mask is None:
        return m.NotAvailable(NO_DEPTH)
    if output.depth is None:
        return m.NotAvailable(NO_DEPTH_HEAD)
    first = (array[:1] for array in (output.depth, true.depth, true.mask))
    return m.depth_metrics(*first, alignment=options.alignment)["abs_rel"]


def _points(true: Sample, output: Output, icp: int) -> m.Metrics:
    if true.depth is None or true.mask is None:
        return m.unavailable(POINT_METRICS, NO_DEPTH)
    if output.depth is None:
        return m.unavailable(POINT_METRICS, NO_DEPTH_HEAD)
    if output.extrinsics is None or output.intrinsics is None:
        return m.unavailable(POINT_METRICS, NO_CAMERA_HEAD)
    predicted = world_points(output.depth, output.extrinsics, output.intrinsics)
    goal = world_points(true.depth, true.extrinsics, true.intrinsics)
    return m.point_metrics(predicted, goal, true.mask, icp=icp)


def _lite3r(sample: Sample, output: Output) -> m.Metrics:
    true = normalize(sample, "lite3r")
    metrics: m.Metrics = {}
    names = (*compat_lite3r.DEPTH, *compat_lite3r.POINTS)
    if true.depth is None or true.mask is None:
        metrics |= m.unavailable(names, NO_DEPTH)
    elif output.depth is None:
        metrics |= m.unavailable(names, NO_DEPTH_HEAD)
    else:
        metrics |= compat_lite3r.depth_metrics(output.depth, true.depth, true.mask)
        if output.extrinsics is None or output.intrinsics is None:
            metrics |= m.unavailable(compat_lite3r.POINTS, NO_CAMERA_HEAD)
        else:
            e = true.extrinsics[0].astype(np.float64)
            goal = world_points(true.depth, true.extrinsics, true.intrinsics)[true.mask]
            predicted = world_points(output.depth, output.extrinsics, output.intrinsics)
            goal = goal @ e[:, :3].T + e[:, 3]
            metrics |= compat_lite3r.point_metrics(predicted.reshape(-1, 3), goal)
    if output.extrinsics is None:
        return metrics | m.unavailable(compat_lite3r.POSE, NO_CAMERA_HEAD)
    return metrics | compat_lite3r.pose_metrics(output.extrinsics, true.extrinsics)
