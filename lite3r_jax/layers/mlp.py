"""Two-layer perceptron."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx


class Mlp(nnx.Module):
    """Linear, exact (erf) GELU, Linear (vggt/layers/mlp.py)."""

    def __init__(
        self,
        dim: int,
        hidden: int,
        out: int | None = None,
        *,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        kernel_init: nnx.Initializer = nnx.initializers.lecun_normal(),
        rngs: nnx.Rngs,
    ):
        linear = {
            "dtype": dtype,
            "param_dtype": param_dtype,
            "kernel_init": kernel_init,
            "rngs": rngs,
        }
        self.fc1 = nnx.Linear(dim, hidden, **linear)
        self.fc2 = nnx.Linear(hidden, dim if out is None else out, **linear)

    def __call__(self, x: jax.Array) -> jax.Array:
        """x [..., dim] -> [..., out] in the compute dtype."""
        return self.fc2(jax.nn.gelu(self.fc1(x), approximate=False))
