"""Launch parameters and tile sizes of the kernels of Sparse Linear Attention; imports no kernel."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from lite3r_jax.kernels.launch import Launch
from lite3r_jax.kernels.sla.limits import SlaCall
from lite3r_jax.kernels.target import Device


@dataclass(frozen=True)
class TritonTiles:
    """Launch parameters and tile sizes of all kernels of `pallas_triton`.

    Attributes:
        forward: output and log-sum-exp; one query block per program, or `rows` of it.
        query_gradient: likewise.
        key_gradient: of keys and values; one key block per program.
        linear: all kernels of the linear part.
        shared_memory: bytes that the largest of these kernels takes when it is compiled for an A100
            or an RTX 4090. More on a Hopper or Blackwell GPU with 227 KiB, where all have room.
        rows: queries of one program of `forward` and `query_gradient` at most; divides the blocks.
        slice: query rows per step of `key_gradient`, tokens per program or step of `linear`;
            divides the blocks.
        chunk: steps that one program of `linear` adds up in a sum over all tokens.
    """

    forward: Launch
    query_gradient: Launch
    key_gradient: Launch
    linear: Launch
    shared_memory: int
    rows: int = 128
    slice: int = 64
    chunk: int = 16


@dataclass(frozen=True)
class Product:
    """Keys and queries that a TPU program multiplies at a time.

    The logits of a product are float32 in vector registers.

    Attributes:
        keys: number of keys at most, a multiple of 128.
        queries: number of queries at most; divides the query blocks, or is more than they have.
    """

    keys: int
    queries: int


@dataclass(frozen=True)
class TpuTiles:
    """Tile sizes of all kernels of `pallas_tpu`; nothing was timed.

    Blocks are fetched for the next program while one computes. Sixteen key blocks are 256 KiB in
    half precision: fewer would not hide what a program and a fetch cost besides. Of the sizes of
    products that were compiled for a v5e, in branches of their own, these have the shortest code
    among those that spill less than 128 x 512 without (docs/benchmarks.md, "On a TPU").

    Attributes:
        key_blocks: key blocks per program, even.
        query_blocks: query blocks per program of the key gradient, even.
        scalars: int32 numbers in the 1 MiB of scalar memory at a time.
        forward: product of the forward pass.
        query_gradient: product of the gradient of queries.
        key_gradient: queries that the gradient of keys works on at a time, at least 128.
    """

    key_blocks: int = 16
    query_blocks: int = 8
    scalars: int = 2**17
    forward: Product = Product(1024, 64)
    query_gradient: Product = Product(512, 128)
    key_gradient: int = 256


def candidates(head_dim: int, dtype: Any, q_block: int) -> tuple[TritonTiles, ...]:
    """Returns launch parameters for the kernels, the best first, by what compiling shows.

    See README.md; nothing was timed. Five stages hold three pairs of key and value blocks: looking
    up the block id takes as many as loading the block. With eight warps and 128 x 128 tiles there
    is shared memory for two pairs. The later candidates take less shared memory. Float32 operands
    are multiplied outside of tensor cores and from shared memory, all of them: what helps there is
    fewer rows.

    Args:
        head_dim: D.
        dtype: of q, k and v.
        q_block: queries per block.
    """
    one, two, three, five = (Launch(warps=8, stages=n) for n in (1, 2, 3, 5))
    if jnp.dtype(dtype).itemsize > 2:
        if head_dim > 64:
            return (
                TritonTiles(two, two, two, two, 229632),
                TritonTiles(one, one, one, one, 147456, rows=64),
                TritonTiles(one, one, one, one, 98304, rows=32, slice=16),
            )
        return (
            TritonTiles(two, two, two, two, 131328),
            TritonTiles(two, two, two, two, 82432, rows=64),
        )
    if head_dim > 64:
        over_table = three if q_block > 64 else five
        return (
            TritonTiles(over_table, over_table, five, two, 132104),
            TritonTiles(over_table, three, three, two, 98564),
        )
    over_table = Launch(warps=q_block // 16, stages=5)
    return (TritonTiles(over_table, over_table, Launch(warps=4, stages=5), two, 82440),)


def tiles(head_dim: int, dtype: Any, q_block: int, shared_memory: int) -> TritonTiles:
    """Returns the best of `candidates` that fits into `shared_memory` bytes, or else the last."""
    every = candidates(head_dim, dtype, q_block)
    return next((each for each in every if each.shared_memory <= shared_memory), every[-1])


def too_little_shared_memory(device: Device, call: SlaCall) -> str | None:
    """Returns why the kernels do not fit into a thread block's shared memory, or None."""
    assert call.q_block is not None
    least = candidates(call.head_dim, call.dtype, call.q_block)[-1].shared_memory
    if least <= device.shared_memory:
        return None
    return (
        f"its kernels for {jnp.dtype(call.dtype)} and head dim {call.head_dim} need"
        f" {-(-least // 1024)} KiB of shared memory in a block and {device.kind} has"
        f" {device.shared_memory // 1024}"
    )
