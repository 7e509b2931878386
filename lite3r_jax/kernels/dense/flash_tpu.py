"""Dense attention on TPUs by the flash attention that comes with jax."""

import math

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
    """Blocks of equal size, a multiple of 128 up to 512, that cover tokens: (count, size)."""
    count = -(-tokens // _BLOCK)
    return count, _LANES * -(-tokens // (count * _LANES))


def flash_tpu(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """softmax(q k^T / sqrt(D)) v for [B, Tq, N, D] and twice [B, Tk, N, D], D of 64 or 128.

    Both are filled up to whole blocks; keys that fill up are of another segment, which no query
    sees. jax's splash attention is not used: its table of blocks, an entry for every pair, is made
    in Python and lies in scalar memory, where that of 300 views has no room.

    Source: jax.experimental.pallas.ops.tpu.flash_attention, part of jax.
    """
    tq, tk, d = q.shape[1], k.shape[1], q.shape[3]
    (queries, q_block), (keys, k_block) = block(tq), block(tk)

    def heads_first(x: jax.Array, length: int) -> jax.Array:
        """[B, T, N, D] -> [B, N, length, D]."""
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
    o = flash_attention(
        heads_first(q, queries * q_block), heads_first(k, keys * k_block),
        heads_first(v, keys * k_block), segment_ids=segments, sm_scale=1 / math.sqrt(d),
        block_sizes=sizes,
    )  # fmt: skip
    return o.swapaxes(1, 2)[:, :tq]
