"""LayerNorm as PyTorch computes it."""

from typing import Any

import jax.numpy as jnp
from flax import nnx


def layer_norm(
    dim: int,
    eps: float,
    *,
    affine: bool = True,
    dtype: Any = jnp.float32,
    param_dtype: Any = jnp.float32,
    rngs: nnx.Rngs,
) -> nnx.LayerNorm:
    """Builds a LayerNorm over the last axis, with statistics in float32 and in two passes.

    E[x^2] - E[x]^2 loses digits when the mean is large against the deviation: 3.4e-3 at mean 100
    and deviation 1, where two passes give 1e-6.

    Args:
        dim: size of the last axis.
        eps: added to the variance.
        affine: with scale and bias.
        dtype: dtype of the result.
        param_dtype: dtype of scale and bias.
        rngs: random streams (nothing is drawn).
    """
    return nnx.LayerNorm(
        dim,
        epsilon=eps,
        use_bias=affine,
        use_scale=affine,
        use_fast_variance=False,
        dtype=dtype,
        param_dtype=param_dtype,
        rngs=rngs,
    )
