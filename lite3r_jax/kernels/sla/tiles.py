"""How the GPU kernels of Sparse Linear Attention are launched."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from lite3r_jax.kernels.triton_call import Launch


@dataclass(frozen=True)
class TritonTiles:
    """Of all kernels of `pallas_triton`.

    Attributes:
        forward: output and log-sum-exp; one query block per program.
        query_gradient: one query block per program.
        key_gradient: of keys and values; one key block per program.
        linear: all kernels of the linear part.
        slice: query rows per step of `key_gradient`, tokens per program or step of `linear`;
            divides the blocks.
        chunk: steps that one program of `linear` adds up in a sum over all tokens.
    """

    forward: Launch
    query_gradient: Launch
    key_gradient: Launch
    linear: Launch
    slice: int = 64
    chunk: int = 16


def tiles(head_dim: int, dtype: Any, q_block: int) -> TritonTiles:
    """The default, from what compiling for an H200 shows (README.md); nothing was timed.

    Five stages hold three pairs of key and value blocks: looking up the block id takes as many as
    loading the block. With eight warps and 128 x 128 tiles there is shared memory for two pairs.

    Args:
        head_dim: D.
        dtype: of q, k and v.
        q_block: queries per block.
    """
    linear = Launch(warps=8, stages=2)
    if jnp.dtype(dtype).itemsize > 2:
        return TritonTiles(linear, linear, linear, linear)
    if head_dim > 64:
        over_table = Launch(warps=8, stages=3 if q_block > 64 else 5)
        return TritonTiles(over_table, over_table, Launch(warps=8, stages=5), linear)
    over_table = Launch(warps=q_block // 16, stages=5)
    return TritonTiles(over_table, over_table, Launch(warps=4, stages=5), linear)
