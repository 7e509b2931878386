"""Depth and point map loss: confidence-weighted regression and terms on spatial differences."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from lite3r_jax.errors import InputError
from lite3r_jax.losses.elements import LIMIT, fit_scale, limit, magnitude, norm, residual
from lite3r_jax.losses.masked import Masked, as_ratio, filter_by_quantile

MIN_CONF = 1e-3
MIN_POINTS = 100
"""Least number of valid pixels in a batch; with fewer the loss is 0. The scale needs one more."""
MIN_NORMALS = 10
NORMAL_EPS = 1e-8
LARGEST = 1e18
"""Largest valid prediction; cross products of differences of larger numbers overflow."""
GRAD_ALPHA = 0.2
"""Weight of log(conf) in the terms on differences; upstream keeps it fixed."""


@dataclass(frozen=True)
class MapLoss:
    """Settings of the loss of depth maps or of point maps, `map_terms`.

    Attributes:
        weight: of conf + reg + grad in the objective.
        gamma: weight of the residual times the confidence.
        alpha: weight of -log(confidence).
        gradient: "none"; "grad", see `difference_term`; "normal", see `normal_term` (points only).
        gradient_conf: weigh the gradient term by the confidence.
        valid_range: the share of elements to keep, smallest first (`filter_by_quantile`); None
            keeps all.
    """

    weight: float = 1.0
    gamma: float = 1.0
    alpha: float = 0.2
    gradient: Literal["none", "grad", "normal"] = "none"
    gradient_conf: bool = False
    valid_range: float | None = None

    def __post_init__(self) -> None:
        """Raises an error for an unknown gradient term, or a quantile that is out of range.

        The same for `gradient_conf` without a gradient term.
        """
        if self.gradient not in ("none", "grad", "normal"):
            raise InputError(
                f'MapLoss.gradient: expected "none", "grad" or "normal", got {self.gradient!r}'
            )
        if self.gradient_conf and self.gradient == "none":
            raise InputError(
                'MapLoss.gradient_conf: nothing to weigh with gradient="none"; choose a gradient'
            )
        if self.valid_range is not None:
            as_ratio("MapLoss.valid_range", self.valid_range)


def map_terms(
    settings: MapLoss, pred: jax.Array, conf: jax.Array, truth: jax.Array, mask: jax.Array
) -> dict[str, jax.Array]:
    """Computes the loss of a depth or point map with confidence.

    Source: training/loss.py, regression_loss.

    With s = clip(<truth, pred> / <pred, pred>, 0.1, 10) over the valid pixels of the whole batch,
    detached (1 for 100 pixels or fewer), r = |truth - s pred| and c = max(conf, 1e-3) per pixel:

        conf = mean of gamma r c - alpha log c,    reg = mean of r,

    each after its own quantile filter; grad is a term on differences of the *unscaled* prediction,
    averaged over maps subsampled by 1, 2, 4 (and 8 for "grad"). With fewer than 100 valid pixels in
    the batch all are 0.

    Args:
        settings: which terms.
        pred: [B, S, H, W, C].
        conf: [B, S, H, W], positive.
        truth: [B, S, H, W, C]; NaN and infinities count as 0, values are clipped to +-100.
        mask: [B, S, H, W] bool.

    Returns:
        Scalars conf, reg, grad, and nonfinite: how many valid pixels had an error or confidence of
        NaN or infinity. These count as 0 in conf and reg (one such prediction spoils s, hence all
        of reg) and as not valid in grad, as do predictions beyond 1e18.

    Raises:
        InputError: shapes differ; "normal" without 3 channels.
    """
    if pred.shape != truth.shape or not pred.shape[:-1] == conf.shape == mask.shape:
        raise InputError(
            "maps: expected prediction and target [B, S, H, W, C], confidence and mask "
            f"[B, S, H, W], got {pred.shape}, {truth.shape}, {conf.shape}, {mask.shape}"
        )
    pred = jnp.where(mask[..., None], pred.astype(jnp.float32), 0)
    truth = limit(jnp.where(mask[..., None], truth.astype(jnp.float32), 0))
    conf = conf.astype(jnp.float32)
    sure = jnp.where(jnp.isfinite(conf), conf, 1)

    points = mask.sum(dtype=jnp.int32)
    scale = jnp.where(points > MIN_POINTS, jnp.clip(fit_scale(pred, truth), 0.1, 10.0), 1.0)
    error, bad = residual(pred, truth, scale)
    bad = bad.any(-1)
    reg = limit(norm(jnp.where(bad[..., None], 0, error)))
    inside = jnp.where(mask, sure, 1)
    floor = jnp.where(inside >= MIN_CONF, inside, MIN_CONF)
    weighed = limit(settings.gamma * reg * floor - settings.alpha * jnp.log(floor))
    weighed = jnp.where(jnp.isfinite(conf), weighed, 0)

    usable = mask & (jnp.abs(pred) <= LARGEST).all(-1)
    pred = jnp.where(usable[..., None], pred, 0)
    weight = sure if settings.gradient_conf else None
    grad = jnp.zeros((), jnp.float32)
    if settings.gradient == "normal":
        grad = _over_scales(normal_term, 3, MIN_NORMALS, pred, truth, usable, weight)
    elif settings.gradient == "grad":
        grad = _over_scales(difference_term, 4, 1, pred, truth, usable, weight)

    means = {
        "conf": filter_by_quantile(weighed, mask, settings.valid_range).mean,
        "reg": filter_by_quantile(reg, mask, settings.valid_range).mean,
        "grad": grad,
    }
    nonfinite = (mask & (bad | ~jnp.isfinite(conf))).sum().astype(jnp.float32)
    means = {name: jnp.where(points >= MIN_POINTS, x, 0) for name, x in means.items()}
    return means | {"nonfinite": nonfinite}


def difference_term(
    pred: jax.Array, truth: jax.Array, mask: jax.Array, conf: jax.Array | None
) -> Masked:
    """Sums differences of the error between neighboring pixels (training/loss.py: gradient_loss).

    Sum of |e(x+1) - e(x)| and |e(y+1) - e(y)| over pairs of valid pixels; the count is that of
    valid pixels times channels. With confidence c (of the right or lower pixel) a difference d
    becomes d c - 0.2 log c, and as upstream the logarithm counts for all pairs, valid or not: the
    one place where confidences outside of the mask matter.

    Args:
        pred: [N, H, W, C], finite.
        truth: [N, H, W, C], finite.
        mask: [N, H, W] bool.
        conf: [N, H, W] positive, or None.

    Returns:
        Sum and count.
    """
    error = jnp.where(mask[..., None], pred - truth, 0)

    def along(axis: int) -> jax.Array:
        before = (slice(None),) * axis
        low, high = (*before, slice(None, -1)), (*before, slice(1, None))
        step = magnitude(error[high] - error[low])
        step = jnp.where(step <= LIMIT, step, LIMIT)
        step = jnp.where((mask[high] & mask[low])[..., None], step, 0)
        if conf is not None:
            c = conf[high][..., None]
            step = step * c - GRAD_ALPHA * jnp.log(c)
        return step.sum()

    return Masked(along(1) + along(2), mask.sum(dtype=jnp.int32) * pred.shape[-1])


def normal_term(
    pred: jax.Array, truth: jax.Array, mask: jax.Array, conf: jax.Array | None
) -> Masked:
    """Compares surface normals by angle (training/loss.py: normal_loss, point_map_to_normal).

    A pixel has four normals, cross products of neighboring differences (up x left, left x down,
    down x right, right x up), each valid where the pixel and both neighbors are. Every normal
    gives 1 - cos, or with confidence c of the pixel (1 - cos) c - 0.2 log c.

    Args:
        pred: [N, H, W, 3], finite.
        truth: [N, H, W, 3], finite.
        mask: [N, H, W] bool.
        conf: [N, H, W] positive, or None.

    Returns:
        Sum and count.

    Raises:
        InputError: not 3 channels.
    """
    if pred.shape[-1] != 3:
        raise InputError(
            f'gradient "normal": expected 3D points, got {pred.shape[-1]} channel; use "grad"'
        )
    near = _neighbors(mask)
    valid = mask & jnp.stack([near[i] & near[(i + 1) % 4] for i in range(4)])
    cos = (_normals(pred) * _normals(truth)).sum(-1)
    # The bound 1 - 1e-8 of upstream is 1 in float32; only rounding can exceed it.
    cos = jnp.where(jnp.abs(cos) <= 1, cos, jax.lax.stop_gradient(jnp.sign(cos)))
    loss = limit(1 - cos)
    if conf is not None:
        conf = jnp.where(mask, conf, 1)
        loss = loss * conf - GRAD_ALPHA * jnp.log(conf)
    return Masked.of(loss, valid)


def _normals(points: jax.Array) -> jax.Array:
    """Computes the four normals of every pixel, [4, N, H, W, 3], of points [N, H, W, 3].

    They are of unit length unless they are shorter than 1e-8.
    """
    to = [x - points for x in _neighbors(points)]
    normal = jnp.stack([jnp.cross(to[i], to[(i + 1) % 4]) for i in range(4)])
    length = norm(normal)[..., None]
    return normal / jnp.where(length >= NORMAL_EPS, length, NORMAL_EPS)


def _neighbors(x: jax.Array) -> list[jax.Array]:
    """Returns values of [N, H, W, ...] above, left, below and right of each pixel.

    They are 0 past the border.
    """
    wide = jnp.pad(x, [(0, 0), (1, 1), (1, 1)] + [(0, 0)] * (x.ndim - 3))
    return [wide[:, :-2, 1:-1], wide[:, 1:-1, :-2], wide[:, 2:, 1:-1], wide[:, 1:-1, 2:]]


def _over_scales(
    term: Callable[..., Masked],
    scales: int,
    least: int,
    pred: jax.Array,
    truth: jax.Array,
    mask: jax.Array,
    conf: jax.Array | None,
) -> jax.Array:
    """Averages a term over maps [B, S, H, W, ...] of every 1st, 2nd, 4th, ... pixel.

    A count below `least` gives 0 (training/loss.py: gradient_loss_multi_scale_wrapper).
    """
    total = jnp.zeros((), jnp.float32)
    for step in (2**i for i in range(scales)):
        maps = [
            None if x is None else x.reshape(-1, *x.shape[2:])[:, ::step, ::step]
            for x in (pred, truth, mask, conf)
        ]
        value = term(*maps)
        total += jnp.where(value.count >= least, value.mean, 0)
    return total / scales
