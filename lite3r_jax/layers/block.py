"""Pre-norm transformer block with LayerScale."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from lite3r_jax.attention.strategy import AttentionCore, Layouts
from lite3r_jax.layers.attention import Attention
from lite3r_jax.layers.cpu_gradients import computed_once
from lite3r_jax.layers.fp8 import normed
from lite3r_jax.layers.mlp import Mlp, SwiGlu
from lite3r_jax.layers.norm import layer_norm
from lite3r_jax.layers.rope import RopeTable

_trunc_normal = nnx.initializers.truncated_normal(0.02)


@dataclass(frozen=True)
class BlockConfig:
    """Sizes and constants of one block.

    Attributes:
        dim: C.
        heads: N.
        mlp_ratio: hidden size of the MLP over C.
        ffn: the feed-forward layer, `Mlp` or `SwiGlu`.
        qk_norm: LayerNorm on queries and keys before RoPE.
        eps: epsilon of the two LayerNorms.
        qk_eps: epsilon of the qk-norm.
        layer_scale: initial LayerScale; None: the block has none.
    """

    dim: int
    heads: int
    mlp_ratio: float = 4.0
    ffn: Literal["mlp", "swiglu"] = "mlp"
    qk_norm: bool = False
    eps: float = 1e-5
    qk_eps: float = 1e-5
    layer_scale: float | None = 0.01


class LayerScale(nnx.Module):
    """LayerScale: multiplies every channel by a learned factor."""

    def __init__(self, dim: int, init: float, param_dtype: Any):
        self.gamma = nnx.Param(jnp.full((dim,), init, param_dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns x [..., C] times gamma in float32, the dtype of the residual stream."""
        return x.astype(jnp.float32) * self.gamma[...].astype(jnp.float32)


class Block(nnx.Module):
    """Pre-norm transformer block: x + ls1(attn(norm1(x))), then x + ls2(mlp(norm2(x))).

    Source: vggt/layers/block.py. The residual stream stays float32; matrix products run in `dtype`.
    """

    def __init__(
        self,
        config: BlockConfig,
        *,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        c = config
        kinds = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.norm1 = layer_norm(c.dim, c.eps, **kinds)
        self.attn = Attention(
            c.dim, c.heads, qk_norm=c.qk_norm, eps=c.qk_eps, kernel_init=_trunc_normal, **kinds
        )
        scale = c.layer_scale
        self.ls1 = None if scale is None else LayerScale(c.dim, scale, param_dtype)
        self.norm2 = layer_norm(c.dim, c.eps, **kinds)
        ffn = {"mlp": Mlp, "swiglu": SwiGlu}[c.ffn]
        self.mlp = ffn(c.dim, int(c.dim * c.mlp_ratio), kernel_init=_trunc_normal, **kinds)
        self.ls2 = None if scale is None else LayerScale(c.dim, scale, param_dtype)

    def __call__(
        self,
        x: jax.Array,
        core: AttentionCore,
        layouts: Layouts,
        rope: RopeTable | None = None,
        shared: Any = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Applies the block to tokens.

        Args:
            x: [B, T, C] float32.
            core: attention strategy of this site.
            layouts: token layouts of queries and keys.
            rope: table of `rope_table` or None.
            shared: context of the strategy for this forward pass.

        Returns:
            (x [B, T, C] float32, output of the attention layer [B, T, C] in the compute dtype).
        """
        codes = normed(self.norm1, x, self.attn.qkv)
        attended = self.attn(partial(self.norm1, x), core, layouts, rope, shared, codes)
        return self.finish(x, attended), attended

    def project(
        self, x: jax.Array, rope: RopeTable | None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Computes q, k, v of `Attention.project` from x [B, T, C], the part before attention."""
        codes = normed(self.norm1, x, self.attn.qkv)
        return self.attn.project(self.norm1(x) if codes is None else codes, rope)

    def finish(self, x: jax.Array, attended: jax.Array) -> jax.Array:
        """Adds the attention output to x, both [B, T, C], then the output of the MLP."""
        x = computed_once(x + _scaled(self.ls1, attended))
        codes = normed(self.norm2, x, self.mlp.reads)
        made = self.mlp(self.norm2(x) if codes is None else codes)
        return computed_once(x + _scaled(self.ls2, made))


def _scaled(scale: LayerScale | None, x: jax.Array) -> jax.Array:
    """Returns x in float32, times its LayerScale if there is one."""
    return x.astype(jnp.float32) if scale is None else scale(x)


def stack(make: Callable[[nnx.Rngs], nnx.Module], depth: int, rngs: nnx.Rngs) -> Any:
    """Builds `depth` modules as one, every parameter with a leading axis of that length."""
    return nnx.vmap(make)(rngs.split(depth))
