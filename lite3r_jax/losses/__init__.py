"""Supervised losses for cameras, depth and points, and masked means."""

from lite3r_jax.losses.camera import CameraLoss, camera_terms
from lite3r_jax.losses.maps import MapLoss, difference_term, map_terms, normal_term
from lite3r_jax.losses.masked import Masked, filter_by_quantile, kth_smallest
from lite3r_jax.losses.multitask import MultitaskLoss, Targets, multitask_loss
from lite3r_jax.losses.scale_aligned import ScaleAligned, scale_aligned_loss
from lite3r_jax.losses.scratch import HuberCamera, LogDepth, ScratchLoss, scratch_loss

__all__ = [
    "CameraLoss",
    "HuberCamera",
    "LogDepth",
    "MapLoss",
    "Masked",
    "MultitaskLoss",
    "ScaleAligned",
    "ScratchLoss",
    "Targets",
    "camera_terms",
    "difference_term",
    "filter_by_quantile",
    "kth_smallest",
    "map_terms",
    "multitask_loss",
    "normal_term",
    "scale_aligned_loss",
    "scratch_loss",
]
