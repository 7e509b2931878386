"""Feed-forward layers of a transformer block."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lite3r_jax.kernels.fp8.quantized import Quantized
from lite3r_jax.layers.cpu_gradients import dot_general
from lite3r_jax.layers.fp8 import gelu_between


class Mlp(nnx.Module):
    """Feed-forward layer: Linear, exact (erf) GELU, Linear (vggt/layers/mlp.py)."""

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
            "dot_general": dot_general,
            "rngs": rngs,
        }
        self.fc1: Any = nnx.Linear(dim, hidden, **linear)
        self.fc2: Any = nnx.Linear(hidden, dim if out is None else out, **linear)

    @property
    def reads(self) -> Any:
        """The first Linear, which gets the input of the layer, perhaps as quantized tokens."""
        return self.fc1

    def __call__(self, x: jax.Array | Quantized) -> jax.Array:
        """Applies the layer to x, [..., dim] -> [..., out] in the compute dtype.

        The input may be quantized where `reads` takes quantized tokens.
        """
        return self.fc2(gelu_between(self.fc1, x, self.fc2))


class SwiGlu(nnx.Module):
    """Gated feed-forward layer: Linear, silu(first half) * second half, Linear.

    Source: dinov2/layers/swiglu_ffn.py, after Shazeer, arXiv 2002.05202. The gated width is two
    thirds of the hidden size that a plain MLP would have, rounded up to a multiple of 8.
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
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
            "dot_general": dot_general,
            "rngs": rngs,
        }
        gated = -(-int(hidden * 2 / 3) // 8) * 8
        self.w12: Any = nnx.Linear(dim, 2 * gated, **linear)
        self.w3: Any = nnx.Linear(gated, dim, **linear)

    @property
    def reads(self) -> Any:
        """The first Linear, which gets the input of the layer, perhaps as quantized tokens."""
        return self.w12

    def __call__(self, x: jax.Array | Quantized) -> jax.Array:
        """Applies the layer to x, [..., dim] -> [..., dim] in the compute dtype.

        The input may be quantized where `reads` takes quantized tokens.
        """
        gate, value = jnp.split(self.w12(x), 2, axis=-1)
        return self.w3(nnx.silu(gate) * value)
