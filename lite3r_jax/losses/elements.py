"""Functions for losses of elements whose values and gradients are finite for every input.

NaN has to be replaced before a formula, not after it: behind a `where`, the backward pass still
multiplies a zero cotangent with the NaN.
"""

import jax
import jax.numpy as jnp
from jax import lax

LIMIT = 100.0
"""Bound of losses of single elements and of ground truth, which are clipped to +-LIMIT."""


def limit(x: jax.Array) -> jax.Array:
    """Replaces NaN and infinities by 0 and clips the rest to +-100.

    Source: train_utils/general.py, check_and_fix_inf_nan. At the limit itself the gradient is 1, as
    that of torch.clamp.
    """
    x = jnp.where(jnp.isfinite(x), x, 0)
    return jnp.where(jnp.abs(x) <= LIMIT, x, lax.stop_gradient(jnp.sign(x)) * LIMIT)


def magnitude(x: jax.Array) -> jax.Array:
    """Returns |x| with gradient 0 at 0 as torch.abs has it; that of jnp.abs is 1 there."""
    return x * lax.stop_gradient(jnp.sign(x))


def norm(x: jax.Array) -> jax.Array:
    """Returns the length over the last axis, with gradient 0 at 0 as torch.norm has it."""
    square = (x * x).sum(-1)
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1)), 0)


def fit_scale(pred: jax.Array, truth: jax.Array) -> jax.Array:
    """Fits the factor from `pred` to `truth` by least squares, detached from gradients.

    Both are 0 where they do not count.
    """
    pred, truth = lax.stop_gradient(pred), lax.stop_gradient(truth)
    return (truth * pred).sum() / jnp.maximum((pred * pred).sum(), 1e-8)


def residual(
    pred: jax.Array, truth: jax.Array, scale: jax.Array | float
) -> tuple[jax.Array, jax.Array]:
    """Returns scale * pred - truth, and a mask of where it is not finite.

    There the value and its gradient are 0.
    """
    bad = ~jnp.isfinite(scale * pred - truth)
    usable = jnp.where(jnp.isfinite(scale), scale, 0)
    return usable * jnp.where(bad, 0, pred) - jnp.where(bad, 0, truth), bad
