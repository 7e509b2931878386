"""Dense attention on TPUs by the flash attention that comes with jax."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.flash_attention import (
    BlockSizes,
    SegmentIds,
    flash_attention,
)

# Its blocks are multiples of a register's lanes.
_LANES = 128
# Tokens of a block at most: scores of two blocks are 1 MiB of vector memory in float32.
_BLOCK = 512


def block(tokens: int) -> tuple[int, int]:
    """Splits `tokens` into equal blocks, a multiple of 128 up to 512: (count, size)."""
    count = -(-tokens // _BLOCK)
    return count, _LANES * -(-tokens // (count * _LANES))


def flash_tpu(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Computes dense attention by jax's TPU kernel of flash attention, for head dim 64 or 128.

    The result is softmax(q k^T / sqrt(D)) v for q [B, Tq, N, D] and k and v [B, Tk, N, D].

    Queries and keys are filled up to whole blocks; keys that fill up are of another segment, which
    no query sees. jax's splash attention is not used: its table of blocks, an entry for every pair,
    is made in Python and lies in scalar memory, where the table of 300 views has no room. Products
    of the kernel are of bfloat16, added up in float32, whatever `jax_default_matmul_precision`
    says: the chip's matrix unit has no products of bfloat16 at a higher precision, and Mosaic
    refuses them.

    Source: jax.experimental.pallas.ops.tpu.flash_attention, part of jax.
    """
    tq, tk = q.shape[1], k.shape[1]
    (queries, q_block), (keys, k_block) = block(tq), block(tk)

    def heads_first(x: jax.Array, length: int) -> jax.Array:
        """Transposes [B, T, N, D] to [B, N, length, D], padded with zeros."""
        return jnp.pad(x, ((0, 0), (0, length - x.shape[1]), (0, 0), (0, 0))).swapaxes(1, 2)

    segments = None
    if keys * k_block > tk:
        there = jnp.zeros((q.shape[0], queries * q_block), jnp.int32)
        behind = (jnp.arange(keys * k_block) >= tk).astype(jnp.int32)
        segments = SegmentIds(there, jnp.broadcast_to(behind, (q.shape[0], keys * k_block)))
    sizes = BlockSizes(
        block_q=q_block, block_k_major=k_block, block_k=k_block, block_b=1,
        block_q_major_dkv=q_block, block_k_major_dkv=k_block, block_k_dkv=k_block,
        block_q_dkv=q_block, block_k_major_dq=k_block, block_k_dq=k_block, block_q_dq=q_block,
    )  # fmt: skip
    o = _flash(
        heads_first(q, queries * q_block), heads_first(k, keys * k_block),
        heads_first(v, keys * k_block), segments, sizes,
    )  # fmt: skip
    return o.swapaxes(1, 2)[:, :tq]


# The kernel has no argument for the precision of its products and takes jax's default when it is
# traced, its gradient's later than its value's; so each is traced under a default of its own.
def _flash(q: Any, k: Any, v: Any, segments: SegmentIds | None, sizes: BlockSizes) -> jax.Array:
    """Runs jax's kernel for q, k and v [B, N, T, D] of whole blocks."""
    return _flash_vjp(q, k, v, segments, sizes)


def _kernel(q: Any, k: Any, v: Any, segments: SegmentIds | None, sizes: BlockSizes) -> jax.Array:
    with jax.default_matmul_precision("default"):
        scale = 1 / math.sqrt(q.shape[-1])
        return flash_attention(q, k, v, segment_ids=segments, sm_scale=scale, block_sizes=sizes)


def _forward(q: Any, k: Any, v: Any, segments: SegmentIds | None, sizes: BlockSizes) -> Any:
    return jax.vjp(lambda q, k, v: _kernel(q, k, v, segments, sizes), q, k, v)


def _backward(sizes: BlockSizes, pull: Any, do: jax.Array) -> Any:
    del sizes
    with jax.default_matmul_precision("default"):
        return *pull(do), None


_flash_vjp = jax.custom_vjp(lambda *x: _kernel(*x), nondiff_argnums=(4,))
_flash_vjp.defvjp(_forward, _backward)
