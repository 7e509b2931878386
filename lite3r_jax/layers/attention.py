"""The attention layer around a strategy: qkv, qk-norm, RoPE, core, output projection."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lite3r_jax.attention.strategy import AttentionCore, AttentionInputs, LayerFunctions, Layouts
from lite3r_jax.attention.view_parts import attend_in_parts
from lite3r_jax.kernels.fp8.quantized import Quantized
from lite3r_jax.layers.cpu_gradients import dot_general
from lite3r_jax.layers.norm import layer_norm
from lite3r_jax.layers.rope import RopeTable, rope_table, rotate


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
        """Creates the layer of `dim` = C channels and `heads` = N heads.

        With `qk_norm`, queries and keys get a LayerNorm over the head dimension before RoPE.
        """
        self.heads = heads
        self.head_dim = dim // heads
        self.dtype = dtype
        linear = {
            "dtype": dtype,
            "param_dtype": param_dtype,
            "kernel_init": kernel_init,
            "dot_general": dot_general,
            "rngs": rngs,
        }
        self.qkv: Any = nnx.Linear(dim, 3 * dim, **linear)
        self.proj = nnx.Linear(dim, dim, **linear)
        # In float32 so that RoPE sees unrounded queries and keys (upstream under autocast).
        norm = {"eps": eps, "dtype": jnp.float32, "param_dtype": param_dtype, "rngs": rngs}
        self.q_norm = layer_norm(self.head_dim, **norm) if qk_norm else None
        self.k_norm = layer_norm(self.head_dim, **norm) if qk_norm else None

    def pack(self, x: jax.Array | Quantized) -> jax.Array:
        """Projects tokens to queries, keys and values side by side, [B, T, C] -> [B, T, 3C]."""
        return self.qkv(x)

    def unpack(self, o: jax.Array) -> jax.Array:
        """Projects the strategy's output [B, T, N, D] to the layer's output [B, T, C]."""
        return self.proj(o.reshape(*o.shape[:2], -1))

    def raw(self, x: jax.Array | Quantized) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Projects x [B, T, C] to queries, keys and values [B, T, N, D], not normed or rotated."""
        b, t, _ = x.shape
        packed = self.pack(x).reshape(b, t, 3, self.heads, self.head_dim)
        q, k, v = jnp.moveaxis(packed, 2, 0)
        return q, k, v

    def norm(self, q: jax.Array, k: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Applies the qk-norm to q and k [B, T, N, D], if the layer has one; float32 then."""
        if self.q_norm is None or self.k_norm is None:
            return q, k
        return self.q_norm(q), self.k_norm(k)

    def project(
        self, x: jax.Array | Quantized, rope: RopeTable | None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Projects tokens to queries, keys and values, normed and rotated. Pure.

        Args:
            x: [B, T, C], quantized only where `qkv` takes that.
            rope: table of `rope_table` or None.

        Returns:
            q, k, v, each [B, T, N, D] in the compute dtype.
        """
        q, k, v = self.raw(x)
        q, k = self.norm(q, k)
        if rope is not None:
            q, k = rotate(q, rope), rotate(k, rope)
        return q.astype(self.dtype), k.astype(self.dtype), v

    def functions(self, rope: RopeTable | None) -> LayerFunctions:
        """Returns the functions of this layer for its strategy, with the rotations of `rope`."""

        def rotated(x: jax.Array, positions: Any) -> jax.Array:
            if rope is None:
                return x
            return rotate(x, rope_table(positions, self.head_dim, rope.base))

        positions = None if rope is None else rope.positions
        return LayerFunctions(self.raw, self.norm, rotated, positions)

    def attend(
        self,
        core: AttentionCore,
        qkv: tuple[jax.Array, jax.Array, jax.Array],
        layouts: Layouts,
        rope: RopeTable | None,
        shared: Any,
        normed: Callable[[], jax.Array],
    ) -> jax.Array:
        """Runs the attention strategy on projected queries, keys and values.

        Args:
            core: the strategy of this site.
            qkv: result of `project`.
            layouts: token layouts of queries and keys.
            rope: table of `rope_table` or None.
            shared: context of the strategy.
            normed: returns the layer's input [B, T, C] when the strategy asks for it.

        Returns:
            [B, T, N, D].

        Raises:
            ValueError: the strategy returns another shape.
        """
        inputs = AttentionInputs(*qkv, layouts, shared, self.functions(rope), normed, normed)
        in_parts = getattr(layouts.query, "parts", None) is not None
        o = attend_in_parts(core, inputs) if in_parts else core(inputs)
        if o.shape != inputs.q.shape:
            raise ValueError(
                f"attention by {type(core).__name__}: gave {o.shape} for queries {inputs.q.shape}"
            )
        return o

    def __call__(
        self,
        x: jax.Array | Callable[[], jax.Array],
        core: AttentionCore,
        layouts: Layouts,
        rope: RopeTable | None = None,
        shared: Any = None,
        codes: Quantized | None = None,
    ) -> jax.Array:
        """Applies the attention layer to tokens.

        Args:
            x: [B, T, C], or a function that returns it.
            core: the strategy of this site.
            layouts: token layouts of queries and keys.
            rope: table of `rope_table` or None.
            shared: context of the strategy for this forward pass.
            codes: x as `qkv` takes it, where it takes no array. x is then for the strategy alone,
                and is not computed where that does not look at it.

        Returns:
            [B, T, C] in the compute dtype.
        """
        if callable(x) and codes is None:
            x = x()
        normed = x if callable(x) else lambda: x
        qkv = self.project(normed() if codes is None else codes, rope)
        return self.unpack(self.attend(core, qkv, layouts, rope, shared, normed))
