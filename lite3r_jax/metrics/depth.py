"""Errors of depth maps after a named alignment."""

from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from lite3r_jax.errors import InputError
from lite3r_jax.metrics.values import Metrics, float64, require_finite, unavailable

Alignment = Literal["none", "median", "scale", "scale_shift"]
Scope = Literal["scene", "view"]

DEPTH_METRICS = ("abs_rel", "rmse", "delta1", "delta2", "delta3")
DELTA = 1.25


def align_depth(
    depth: ArrayLike,
    truth: ArrayLike,
    mask: ArrayLike,
    *,
    alignment: Alignment = "scale",
    scope: Scope = "scene",
) -> np.ndarray:
    """Brings predicted depth to the unit of the truth, by a fit to the valid pixels.

    - none: nothing is changed.
    - median: times median(truth) / median(depth).
    - scale: times the s of the least squares of s * depth - truth.
    - scale_shift: the s and t of the least squares of s * depth + t - truth.

    Args:
        depth: [S, H, W] prediction.
        truth: [S, H, W].
        mask: [S, H, W] bool, pixels that count; at least one.
        alignment: as above.
        scope: "scene": one alignment for all views; "view": one for each, which forgives
            differences between views. Views without a valid pixel stay as they are.

    Returns:
        float64 [S, H, W].

    Raises:
        InputError: a prediction that is not finite where it counts, or has no scale (its median or
            its square sum is not positive).
        ValueError: shapes differ, or an unknown alignment or scope.
    """
    depth, truth, mask = _checked(depth, truth, mask, alignment, scope)
    aligned = depth.copy()
    for part in [...] if scope == "scene" else list(range(len(depth))):
        p, g = depth[part][mask[part]], truth[part][mask[part]]
        if p.size:
            scale, shift = _fit(p, g, alignment)
            aligned[part] = scale * depth[part] + shift
    return aligned


def depth_metrics(
    depth: ArrayLike,
    truth: ArrayLike,
    mask: ArrayLike,
    *,
    alignment: Alignment = "scale",
    scope: Scope = "scene",
) -> Metrics:
    """Computes errors over all valid pixels of all views, each pixel counting the same.

    With p the aligned prediction and g the truth: abs_rel = mean |p - g| / g; rmse =
    sqrt(mean (p - g)^2), in the unit of the truth; delta1, 2, 3 = share of pixels with
    max(p / g, g / p) < 1.25, 1.25^2, 1.25^3 (Eigen et al., arXiv 1406.2283, section 4.1). A p that
    alignment made 0 or negative is outside of every delta.

    Args:
        depth: [S, H, W] prediction.
        truth: [S, H, W].
        mask: [S, H, W] bool; of these only pixels with a finite truth above 0 count.
        alignment: see `align_depth`.
        scope: see `align_depth`.

    Raises:
        InputError: see `align_depth`.
        ValueError: see `align_depth`.
    """
    depth, truth, mask = _checked(depth, truth, mask, alignment, scope)
    mask = mask & np.isfinite(truth) & (truth > 0)
    if not mask.any():
        return unavailable(DEPTH_METRICS, "no pixel has true depth")
    p = align_depth(depth, truth, mask, alignment=alignment, scope=scope)[mask]
    g = truth[mask]
    with np.errstate(divide="ignore", over="ignore"):
        ratio = np.where(p > 0, np.maximum(p / g, g / np.where(p > 0, p, 1)), np.inf)
    metrics = {
        "abs_rel": float((np.abs(p - g) / g).mean()),
        "rmse": float(np.sqrt(((p - g) ** 2).mean())),
    }
    return {**metrics, **{f"delta{k}": float((ratio < DELTA**k).mean()) for k in (1, 2, 3)}}


def _checked(
    depth: ArrayLike, truth: ArrayLike, mask: ArrayLike, alignment: str, scope: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if alignment not in get_args(Alignment):
        raise ValueError(
            f"alignment: expected one of {', '.join(get_args(Alignment))}, got {alignment!r}"
        )
    if scope not in get_args(Scope):
        raise ValueError(f"scope: expected one of {', '.join(get_args(Scope))}, got {scope!r}")
    truth = float64(truth, "truth", (None, None, None))
    depth = float64(depth, "depth", truth.shape)
    mask = np.asarray(mask, bool)
    if mask.shape != truth.shape:
        raise ValueError(f"mask: expected shape {list(truth.shape)}, got {list(mask.shape)}")
    require_finite(depth[mask], "depth")
    return depth, truth, mask


def _fit(p: np.ndarray, g: np.ndarray, alignment: str) -> tuple[float, float]:
    if alignment == "none":
        return 1.0, 0.0
    if alignment == "scale_shift":
        centered = p - p.mean()
        spread = float((centered * centered).sum())
        # a constant prediction is fitted best by the mean of the truth, whatever its scale
        scale = float((centered * g).sum()) / spread if spread > 0 else 0.0
        return scale, float(g.mean() - scale * p.mean())
    if alignment == "median":
        above, below = float(np.median(g)), float(np.median(p))
    else:
        above, below = float((g * p).sum()), float((p * p).sum())
    if not below > 0:
        raise InputError(
            f"depth: the prediction has no scale that alignment {alignment} could fit; check the"
            " weights"
        )
    return above / below, 0.0
