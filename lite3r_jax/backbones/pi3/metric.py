"""The metric branch of Pi3X, which predicts how many meters the unit of a scene has.

Source: pi3/models/layers/transformer_head.py (ContextOnlyTransformerDecoder), pi3/models/pi3x.py.
"""

import math
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from lite3r_jax.attention.dense import dense_attention
from lite3r_jax.backbones.pi3.config import MetricSizes
from lite3r_jax.layers.mlp import Mlp
from lite3r_jax.layers.norm import layer_norm
from lite3r_jax.layers.rope import RopeTable, rotate
from lite3r_jax.mesh import VIEWS, ViewParts

EPS = 1e-6


class MetricHead(nnx.Module):
    """Predicts the meters per unit of a scene by one learned token that attends to all its tokens.

    The learned token attends to nothing but the scene; its own position is 0, so that its queries
    are not rotated. Tokens are in no order but that of their positions within a view.
    """

    def __init__(self, tokens: int, sizes: MetricSizes, ratio: float, **kinds: Any):
        """Builds the head with random weights.

        Args:
            tokens: channels of the scene's tokens.
            sizes: see `MetricSizes`.
            ratio: hidden size of MLPs over channels.
            **kinds: dtype, param_dtype and rngs.
        """
        dim = sizes.dim
        self.head_dim = dim // sizes.heads
        self.sizes, self.into, self.ratio = sizes, tokens, ratio
        rngs, held = kinds["rngs"], kinds["param_dtype"]
        draw = nnx.initializers.normal(1e-6)
        self.token = nnx.Param(draw(rngs.params(), (1, 1, tokens), held))
        self.project_query = nnx.Linear(tokens, dim, **kinds)
        self.project_scene = nnx.Linear(tokens, dim, **kinds)
        self.blocks = nnx.List(
            [CrossBlock(dim, sizes.heads, ratio, **kinds) for _ in range(sizes.depth)]
        )
        self.out = nnx.Linear(dim, sizes.out, **kinds)
        self.scale = nnx.Linear(sizes.out, 1, param_dtype=held, rngs=rngs)

    def __call__(
        self, tokens: jax.Array, rope: RopeTable, parts: ViewParts | None = None
    ) -> jax.Array:
        """Predicts how many meters the unit of length of every scene has.

        Args:
            tokens: [B, S*P, 2C] of the trunk.
            rope: table of the positions of a view's tokens [P].
            parts: the devices that the views are on; the tokens are then those of the views of this
                device. Inside of `ViewParts.on_each` only. None: these are all tokens.

        Returns:
            [B] float32, positive.
        """
        query = jnp.broadcast_to(self.token[...], (len(tokens), 1, tokens.shape[-1]))
        features = self.decode(query, tokens, rope, parts)[:, 0]
        return jnp.exp(self.scale(features.astype(jnp.float32))[:, 0])

    def decode(
        self,
        query: jax.Array,
        tokens: jax.Array,
        rope: RopeTable,
        parts: ViewParts | None = None,
    ) -> jax.Array:
        """Lets a query [B, 1, 2C] attend to tokens [B, S*P, 2C]; returns features [B, 1, out]."""
        x = self.project_query(query).astype(jnp.float32)
        scene = self.project_scene(tokens).astype(jnp.float32)
        for block in self.blocks:
            x = block(x, scene, rope, parts)
        return self.out(x)

    def operations(self, tokens: int) -> Counter[str]:
        """Counts the operations for a scene of `tokens` tokens."""
        dim, out, depth = self.sizes.dim, self.sizes.out, self.sizes.depth
        block = 2 * tokens * dim**2 + 2 * dim**2 + 2 * dim * int(dim * self.ratio)
        layers = (tokens + 1) * self.into * dim + depth * block + dim * out + out
        return Counter(layers=2 * layers, softmax=4 * depth * tokens * dim)


class CrossBlock(nnx.Module):
    """A block of cross attention to the tokens of a scene, and an MLP.

    It computes x + attention(norm(x), norm(scene)), then x + mlp(norm(x)).
    """

    def __init__(self, dim: int, heads: int, ratio: float, **kinds: Any):
        """Builds a block of `dim` channels; `ratio` is the hidden size of its MLP over channels.

        `kinds` are dtype, param_dtype and rngs.
        """
        self.heads = heads
        self.norm_query = layer_norm(dim, EPS, **kinds)
        self.norm_scene = layer_norm(dim, EPS, **kinds)
        self.norm_mlp = layer_norm(dim, EPS, **kinds)
        self.query = nnx.Linear(dim, dim, **kinds)
        self.key = nnx.Linear(dim, dim, **kinds)
        self.value = nnx.Linear(dim, dim, **kinds)
        self.proj = nnx.Linear(dim, dim, **kinds)
        self.mlp = Mlp(
            dim, int(dim * ratio), kernel_init=nnx.initializers.truncated_normal(0.02), **kinds
        )

    def __call__(
        self, x: jax.Array, scene: jax.Array, rope: RopeTable, parts: ViewParts | None = None
    ) -> jax.Array:
        """Lets x [B, 1, C] float32 attend to scene [B, T, C]; returns [B, 1, C] float32."""
        keys = self.norm_scene(scene)

        def by_head(y: jax.Array) -> jax.Array:
            return y.reshape(*y.shape[:2], self.heads, -1)

        q, k, v = self.query(self.norm_query(x)), self.key(keys), self.value(keys)
        qkv = by_head(q), rotate(by_head(k), rope).astype(v.dtype), by_head(v)
        o = dense_attention(*qkv) if parts is None else _to_all_parts(*qkv, parts)
        x = x + self.proj(o.reshape(x.shape)).astype(jnp.float32)
        return x + self.mlp(self.norm_mlp(x)).astype(jnp.float32)


def _to_all_parts(q: jax.Array, k: jax.Array, v: jax.Array, parts: ViewParts) -> jax.Array:
    """Computes `dense_attention` of replicated queries to keys that are spread over the devices.

    Every device sums up over its own keys, and maxima and sums are reduced over the devices;
    nothing else is sent. Views that fill up the parts count nothing.
    """
    scale, tokens = 1 / math.sqrt(q.shape[-1]), k.shape[1] // parts.each
    logits = jnp.einsum("bqnd,bknd->bnqk", q, k, preferred_element_type=jnp.float32) * scale
    view = parts.first() + jnp.arange(k.shape[1]) // tokens
    logits = jnp.where(view < parts.views, logits, -jnp.inf)
    most = lax.pmax(logits.max(-1, keepdims=True), VIEWS[0])
    weights = jnp.exp(logits - most)
    o = jnp.einsum("bnqk,bknd->bqnd", weights, v.astype(jnp.float32))
    total = lax.psum(weights.sum(-1), VIEWS[0])
    return (lax.psum(o, VIEWS[0]) / total.swapaxes(1, 2)[..., None]).astype(v.dtype)
