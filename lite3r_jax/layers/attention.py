"""The attention layer around a strategy: qkv, qk-norm, RoPE, core, output projection."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lite3r_jax.attention.core import AttentionCore, Layouts
from lite3r_jax.kernels.fp8.quantised import Quantised
from lite3r_jax.layers.norm import layer_norm
from lite3r_jax.layers.rope import RopeTable, rotate


class Attention(nnx.Module):
    """Multi-head self-attention (vggt/layers/attention.py).

    The core is not a member but an argument: layers are stacked and scanned, and layers of one
    stack may use different strategies.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        qk_norm: bool = False,
        eps: float = 1e-5,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        kernel_init: nnx.Initializer,
        rngs: nnx.Rngs,
    ):
        """Args: dim C; heads N; qk_norm: LayerNorm over the head dimension before RoPE."""
        self.heads = heads
        self.head_dim = dim // heads
        self.dtype = dtype
        linear = {
            "dtype": dtype,
            "param_dtype": param_dtype,
            "kernel_init": kernel_init,
            "rngs": rngs,
        }
        self.qkv: Any = nnx.Linear(dim, 3 * dim, **linear)
        self.proj = nnx.Linear(dim, dim, **linear)
        # In float32 so that RoPE sees unrounded queries and keys (upstream under autocast).
        norm = {"eps": eps, "dtype": jnp.float32, "param_dtype": param_dtype, "rngs": rngs}
        self.q_norm = layer_norm(self.head_dim, **norm) if qk_norm else None
        self.k_norm = layer_norm(self.head_dim, **norm) if qk_norm else None

    def pack(self, x: jax.Array | Quantised) -> jax.Array:
        """Queries, keys and values side by side: [B, T, C] -> [B, T, 3C]."""
        return self.qkv(x)

    def unpack(self, o: jax.Array) -> jax.Array:
        """What the strategy gave, [B, T, N, D], to the layer's output [B, T, C]."""
        return self.proj(o.reshape(*o.shape[:2], -1))

    def project(
        self, x: jax.Array | Quantised, rope: RopeTable | None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries, keys, values, normed and rotated. Pure.

        Args:
            x: [B, T, C], quantised only where `qkv` takes that.
            rope: table of `rope_table` or None.

        Returns:
            q, k, v, each [B, T, N, D] in the compute dtype.
        """
        b, t, _ = x.shape
        packed = self.pack(x).reshape(b, t, 3, self.heads, self.head_dim)
        q, k, v = jnp.moveaxis(packed, 2, 0)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            q, k = rotate(q, rope), rotate(k, rope)
        return q.astype(self.dtype), k.astype(self.dtype), v

    def __call__(
        self,
        x: jax.Array,
        core: AttentionCore,
        layouts: Layouts,
        rope: RopeTable | None = None,
        shared: Any = None,
        codes: Quantised | None = None,
    ) -> jax.Array:
        """Attend.

        Args:
            x: [B, T, C].
            core: the strategy of this site.
            layouts: token layouts of queries and keys.
            rope: table of `rope_table` or None.
            shared: per-forward context of the backbone, handed to the core.
            codes: x as `qkv` takes it, where it takes no array. x is then for the strategy alone,
                and is not computed where that does not look at it.

        Returns:
            [B, T, C] in the compute dtype.
        """
        aux = core.prepare(x, self, layouts)
        q, k, v = self.project(x if codes is None else codes, rope)
        return self.unpack(core(q, k, v, layouts, aux=aux, shared=shared))
