"""Dense attention in plain JAX, whose memory does not grow with the square of the tokens."""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from lite3r_jax.kernels import target
from lite3r_jax.mesh import shard_major, split_ways, unshard

# Finite, so that exp(old - new) of two untouched maxima is 1 and not NaN.
_LOWEST = -1e30
_TOGETHER = 2**24
"""Number of logits of all heads and sequences (64 MiB) up to which one tile holds them all."""
_TILE = 2**26
"""Number of logits of all heads and sequences (256 MiB) that a GPU computes at a time."""
_LEAST_QUERIES = 64
"""Number of queries that a GPU handles at a time at least; each part reads all keys."""


def _split(length: int, block: int) -> tuple[int, int]:
    """Splits `length` into equal blocks of at most `block`: (count, size) with least padding."""
    count = -(-length // block)
    return count, -(-length // count)


def _blocks(x: jax.Array, block: int) -> jax.Array:
    """Reshapes [T, D] to [blocks, size, D], padded with zeros."""
    count, size = _split(x.shape[0], block)
    return jnp.pad(x, ((0, count * size - x.shape[0]), (0, 0))).reshape(count, size, -1)


def blocked(q: jax.Array, k: jax.Array, v: jax.Array, *, q_block: int, k_block: int) -> jax.Array:
    """Computes dense attention, one head of one sequence and one query block at a time.

    The live tile is [q_block, k_block] float32 whatever T is. Keys beyond one block are folded in
    with the running maximum and sum of Milakov and Gimelshein (arXiv 1805.02867); the backward pass
    recomputes tiles instead of keeping them. Where each head is one tile and all of them are small,
    they are computed together, and the backward pass keeps them: a loop costs more than it saves.
    A GPU, whose loops cost launches, works on all heads and sequences at a time, in larger tiles.
    """
    b, tq, n, d = q.shape
    tk = k.shape[1]
    one_tile = tq <= q_block and tk <= k_block and b * n * tq * tk <= _TOGETHER
    if one_tile and target.device().platform in ("cpu", "gpu") and split_ways() == 1:
        return _together(q, k, v)
    if target.device().platform == "gpu" and split_ways() == 1:
        return _side_by_side(q, k, v, *_gpu_blocks(b * n, tq, tk))

    def heads_first(x: jax.Array) -> jax.Array:
        """Reshapes to [heads of a device, devices, T, D]: every device goes over its own heads."""
        return shard_major(x.transpose(0, 2, 1, 3)).swapaxes(0, 1)

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
    o = unshard(o.reshape(*o.shape[:2], -1, d).swapaxes(0, 1), b, n)
    return o[:, :, :tq].transpose(0, 2, 1, 3)


def _together(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Computes attention of all heads at once, with all logits in memory.

    Takes [B, Tq, N, D] and twice [B, Tk, N, D], returns [B, Tq, N, D].
    """
    b, tq, n, d = q.shape
    q, k, v = (x.transpose(0, 2, 1, 3).reshape(b * n, -1, d) for x in (q, k, v))
    s = jnp.einsum("bqd,bkd->bqk", q, k, preferred_element_type=jnp.float32) * (1 / math.sqrt(d))
    p = jnp.exp(s - lax.stop_gradient(s.max(axis=-1, keepdims=True)))
    o = jnp.einsum("bqk,bkd->bqd", p.astype(v.dtype), v, preferred_element_type=jnp.float32)
    o = (o / p.sum(axis=-1, keepdims=True)).astype(v.dtype)
    return o.reshape(b, n, tq, d).transpose(0, 2, 1, 3)


def _gpu_blocks(heads: int, queries: int, keys: int) -> tuple[int, int]:
    """Returns the queries and keys of a tile of all heads: all keys, if enough queries fit too."""
    q_block = max(_TILE // (heads * keys), min(_LEAST_QUERIES, queries))
    k_block = max(_TILE // (heads * q_block), 1)
    return min(q_block, queries), min(k_block, keys)


def _side_by_side(
    q: jax.Array, k: jax.Array, v: jax.Array, q_block: int, k_block: int
) -> jax.Array:
    """Computes attention of all heads at a time, tile by tile, as is best on a GPU.

    Takes [B, Tq, N, D] and twice [B, Tk, N, D], returns [B, Tq, N, D].
    """
    b, tq, n, d = q.shape
    q, k, v = (x.transpose(0, 2, 1, 3).reshape(b * n, -1, d) for x in (q, k, v))
    count, size = _split(tq, q_block)
    if k.shape[1] <= k_block:
        v = jnp.concatenate([v, jnp.ones((*v.shape[:2], 1), v.dtype)], axis=2)
        attend = _sum_by_product
    else:
        attend = functools.partial(_running, k_block=k_block)

    @jax.checkpoint
    def some(qi: jax.Array) -> jax.Array:
        return jax.vmap(attend)(qi, k, v)

    parts = jnp.pad(q, ((0, 0), (0, count * size - tq), (0, 0))).reshape(b * n, count, size, d)
    o = lax.map(some, parts.swapaxes(0, 1)) if count > 1 else some(parts[:, 0])[None]
    o = o.swapaxes(0, 1).reshape(b, n, count * size, d)
    return o[:, :, :tq].transpose(0, 2, 1, 3)


def _logits(q: jax.Array, k: jax.Array) -> jax.Array:
    """Returns the logits q k^T / sqrt(D) in float32, [Tq, D], [Tk, D] -> [Tq, Tk]."""
    return jnp.dot(q, k.T, preferred_element_type=jnp.float32) * (1 / math.sqrt(q.shape[-1]))


def _one_pass(q: jax.Array, k: jax.Array, v: jax.Array, k_block: int) -> jax.Array:
    """Computes attention of one head whose keys all fit into one tile."""
    del k_block
    s = _logits(q, k)
    p = jnp.exp(s - lax.stop_gradient(s.max(axis=-1, keepdims=True)))
    o = jnp.dot(p.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return (o / p.sum(axis=-1, keepdims=True)).astype(v.dtype)


def _sum_by_product(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Computes attention with all keys in one tile, given v and a column of ones [Tk, D + 1].

    The product that applies the weights also sums them up, so that the weights are written over
    the logits. Summed up where they are computed, they are in memory beside the logits.
    """
    s = _logits(q, k)
    p = jnp.exp(s - lax.stop_gradient(s.max(axis=-1, keepdims=True)))
    o = jnp.dot(p.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return (o[:, :-1] / o[:, -1:]).astype(v.dtype)


def _running(q: jax.Array, k: jax.Array, v: jax.Array, k_block: int) -> jax.Array:
    """Computes attention by a running softmax over key blocks, the last one padded and masked."""
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
