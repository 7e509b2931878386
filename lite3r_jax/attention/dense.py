"""Softmax attention over all keys, without ever holding a T x T array beyond a few views."""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from lite3r_jax.attention.core import AttentionCore, Layouts
from lite3r_jax.attention.heads import heads_at_a_time, in_turns
from lite3r_jax.attention.spread import by_device, by_view

Implementation = Literal["auto", "cudnn", "blocked", "reference"]

# Finite, so that exp(old - new) of two untouched maxima is 1 and not NaN.
_LOWEST = -1e30


@dataclass(frozen=True)
class Dense:
    """softmax(q k^T / sqrt(D)) v.

    Attributes:
        implementation: "cudnn" (flash attention of cuDNN; NVIDIA GPU, bfloat16 or float16),
            "blocked" (plain JAX, any device and dtype, memory of one query block times one key
            block), "reference" (one T x T array; for tests), or "auto": cuDNN where it applies,
            otherwise blocked. An explicit choice that cannot be honoured raises.
        q_block: queries handled at a time by "blocked".
        k_block: keys handled at a time by "blocked".
    """

    implementation: Implementation = "auto"
    q_block: int = 1024
    k_block: int = 4096

    def build(self, *, heads: int, head_dim: int, param_dtype: Any, rngs: nnx.Rngs) -> "DenseCore":
        """A core without parameters."""
        del heads, head_dim, param_dtype, rngs
        return DenseCore(self)

    def describe(self, dtype: Any, head_dim: int) -> str:
        """See `AttentionSpec.describe`."""
        del head_dim
        return f"dense ({_choose(self.implementation, dtype)})"

    def flops(self, layouts: Layouts, head_dim: int) -> dict[str, int]:
        """See `AttentionSpec.flops`: scores and weighted values of all pairs."""
        return {"softmax": 4 * layouts.query.tokens * layouts.key.tokens * head_dim}


class DenseCore(AttentionCore):
    """See `Dense`."""

    def __init__(self, spec: Dense):
        self.spec = spec

    def __call__(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        layouts: Layouts,
        *,
        aux: Any = None,
        shared: Any = None,
    ) -> jax.Array:
        """See `AttentionCore.__call__`."""
        del layouts, aux, shared
        return dense_attention(
            q, k, v, self.spec.implementation, self.spec.q_block, self.spec.k_block
        )


def dense_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    implementation: Implementation = "auto",
    q_block: int = 1024,
    k_block: int = 4096,
) -> jax.Array:
    """softmax(q k^T / sqrt(D)) v with logits and sums in float32.

    Args:
        q: [B, Tq, N, D].
        k: [B, Tk, N, D].
        v: [B, Tk, N, D].
        implementation: see `Dense`.
        q_block: queries at a time ("blocked").
        k_block: keys at a time ("blocked").

    Returns:
        [B, Tq, N, D] in the dtype of `v`.

    Raises:
        ValueError: shapes disagree, or cuDNN was asked for where it cannot run.
    """
    if q.ndim != 4 or k.shape != v.shape or q.shape[0] != k.shape[0] or q.shape[2:] != k.shape[2:]:
        raise ValueError(f"expected q, k, v as [B, T, N, D], got {q.shape}, {k.shape}, {v.shape}")
    implementation = _choose(implementation, v.dtype)
    if implementation == "cudnn":
        return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
    if implementation == "blocked":
        attend = partial(_blocked, q_block=q_block, k_block=k_block)
        # One by one in any case, so that nothing is lost where memory counts.
        every = heads_at_a_time(q) == q.shape[2]
        return in_turns(attend, q, k, v, size=q.shape[2] if every else 1)
    if implementation == "reference":
        return reference(q, k, v)
    raise ValueError(f"unknown implementation {implementation!r}")


def _choose(implementation: Implementation, dtype: Any) -> Implementation:
    """What runs for `implementation` on this backend."""
    applies = jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16) and jax.default_backend() == "gpu"
    if implementation == "auto":
        return "cudnn" if applies else "blocked"
    if implementation == "cudnn" and not applies:
        raise ValueError(
            f"cuDNN attention needs an NVIDIA GPU and bfloat16 or float16, got {dtype} on "
            f"{jax.default_backend()}; use implementation='blocked'"
        )
    return implementation


def reference(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """The definition; allocates [B, N, Tq, Tk]."""
    scale = 1 / math.sqrt(q.shape[-1])
    logits = jnp.einsum("bqnd,bknd->bnqk", q, k, preferred_element_type=jnp.float32) * scale
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    o = jnp.einsum("bnqk,bknd->bqnd", weights, v, preferred_element_type=jnp.float32)
    return o.astype(v.dtype)


def _split(length: int, block: int) -> tuple[int, int]:
    """Blocks of equal size that cover `length`: (count, size <= block), least padding."""
    count = -(-length // block)
    return count, -(-length // count)


def _blocks(x: jax.Array, block: int) -> jax.Array:
    """[T, D] -> [blocks, size, D], zero padded."""
    count, size = _split(x.shape[0], block)
    return jnp.pad(x, ((0, count * size - x.shape[0]), (0, 0))).reshape(count, size, -1)


def _blocked(q: jax.Array, k: jax.Array, v: jax.Array, *, q_block: int, k_block: int) -> jax.Array:
    """One head of one sequence at a time, one query block at a time.

    The live tile is [q_block, k_block] float32 whatever T is. Keys beyond one block are folded in
    with the running maximum and sum of Milakov and Gimelshein (arXiv 1805.02867); the backward pass
    recomputes tiles instead of keeping them.
    """
    b, tq, n, d = q.shape
    tk = k.shape[1]

    def heads_first(x: jax.Array) -> jax.Array:
        """[heads of a device, devices, T, D]: every device goes over its own."""
        return by_device(x.transpose(0, 2, 1, 3)).swapaxes(0, 1)

    @jax.checkpoint
    def query_block(qi: jax.Array, kh: jax.Array, vh: jax.Array) -> jax.Array:
        attend = _one_pass if tk <= k_block else _running
        return attend(qi, kh, vh, k_block)

    def head(qkv: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        qh, kh, vh = qkv
        return lax.map(lambda qi: query_block(qi, kh, vh), _blocks(qh, q_block))

    def side_by_side(qkv: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        if qkv[0].shape[0] > 1:
            return jax.vmap(head)(qkv)
        qh, kh, vh = qkv
        return head((qh[0], kh[0], vh[0]))[None]

    o = lax.map(side_by_side, (heads_first(q), heads_first(k), heads_first(v)))
    o = by_view(o.reshape(*o.shape[:2], -1, d).swapaxes(0, 1), b, n)
    return o[:, :, :tq].transpose(0, 2, 1, 3)


def _logits(q: jax.Array, k: jax.Array) -> jax.Array:
    """[Tq, D], [Tk, D] -> [Tq, Tk] float32."""
    return jnp.dot(q, k.T, preferred_element_type=jnp.float32) * (1 / math.sqrt(q.shape[-1]))


def _one_pass(q: jax.Array, k: jax.Array, v: jax.Array, k_block: int) -> jax.Array:
    """All keys fit into one tile."""
    del k_block
    s = _logits(q, k)
    p = jnp.exp(s - lax.stop_gradient(s.max(axis=-1, keepdims=True)))
    o = jnp.dot(p.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return (o / p.sum(axis=-1, keepdims=True)).astype(v.dtype)


def _running(q: jax.Array, k: jax.Array, v: jax.Array, k_block: int) -> jax.Array:
    """Keys in blocks, the last one padded and masked."""
    tk = k.shape[0]
    count, size = _split(tk, k_block)
    valid = (jnp.arange(count * size) < tk).reshape(count, 1, size)

    @jax.checkpoint
    def fold(carry, block):
        top, total, acc = carry
        kj, vj, ok = block
        s = jnp.where(ok, _logits(q, kj), _LOWEST)
        new = lax.stop_gradient(jnp.maximum(top, s.max(axis=-1, keepdims=True)))
        p = jnp.exp(s - new)
        shrink = jnp.exp(top - new)
        acc = acc * shrink + jnp.dot(p.astype(v.dtype), vj, preferred_element_type=jnp.float32)
        return (new, total * shrink + p.sum(axis=-1, keepdims=True), acc), None

    start = (
        jnp.full((q.shape[0], 1), _LOWEST, jnp.float32),
        jnp.zeros((q.shape[0], 1), jnp.float32),
        jnp.zeros(q.shape, jnp.float32),
    )
    (_, total, acc), _ = lax.scan(fold, start, (_blocks(k, k_block), _blocks(v, k_block), valid))
    return (acc / total).astype(v.dtype)
