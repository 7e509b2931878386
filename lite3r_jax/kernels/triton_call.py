"""Launches Pallas Triton kernels over a grid (blocks, N, B) with block specs for their arrays."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from lite3r_jax.kernels.launch import Launch
from lite3r_jax.kernels.order import LongFirst


def call(
    kernel: functools.partial,
    launch: Launch,
    grid: tuple[int, int, int] | tuple[LongFirst, int],
    inputs: Sequence[tuple[jax.Array, pl.BlockSpec]],
    outputs: Sequence[tuple[tuple[int, ...], Any, pl.BlockSpec]],
    *,
    interpret: bool,
) -> list[jax.Array]:
    """Runs a Pallas Triton kernel over the grid (blocks, N, B).

    Args:
        kernel: called with a ref per input and output.
        launch: warps and stages. Always given: jax's defaults differ by version.
        grid: (blocks, N, B), or (an order of blocks and heads, B).
        inputs: (array, what a program gets of it).
        outputs: (shape, dtype, what a program writes of it).
        interpret: run it as plain JAX.
    """
    sizes: tuple[int, ...]
    if isinstance(order := grid[0], LongFirst):
        sizes = order.heads * (order.long + order.rest), 1, grid[1]
        inputs = [(x, order.spec(spec)) for x, spec in inputs]
        outputs = [(shape, dtype, order.spec(spec)) for shape, dtype, spec in outputs]
    else:
        sizes = order, *grid[1:]
    return pl.pallas_call(
        kernel,
        grid=sizes,
        in_specs=[spec for _, spec in inputs],
        out_specs=[spec for *_, spec in outputs],
        out_shape=[jax.ShapeDtypeStruct(shape, dtype) for shape, dtype, _ in outputs],
        compiler_params=plt.CompilerParams(num_warps=launch.warps, num_stages=launch.stages),
        interpret=interpret,
    )(*(x for x, _ in inputs))


# What program (i, n, b) gets of an array. Of a whole sequence nothing is loaded until the kernel
# names the rows.


def rows(size: int, head_dim: int) -> pl.BlockSpec:
    """Returns the block spec for rows i * size and following of [B, T, N, D]."""
    return pl.BlockSpec((None, size, None, head_dim), lambda i, n, b: (b, i, n, 0))


def all_rows(x: jax.Array | jax.ShapeDtypeStruct) -> pl.BlockSpec:
    """Returns the block spec for all rows of one sequence and head of [B, T, N, D]."""
    return pl.BlockSpec((None, x.shape[1], None, x.shape[3]), lambda i, n, b: (b, 0, n, 0))


def row(size: int) -> pl.BlockSpec:
    """Returns the block spec for entries i * size and following of [B, N, T]."""
    return pl.BlockSpec((None, None, size), lambda i, n, b: (b, n, i))


def mask(size: int) -> pl.BlockSpec:
    """Returns the block spec for entries i * size and following of [B, T]."""
    return pl.BlockSpec((None, size), lambda i, n, b: (b, i))


def all_mask(x: jax.Array) -> pl.BlockSpec:
    """Returns the block spec for all entries of one sequence of [B, T]."""
    return pl.BlockSpec((None, x.shape[1]), lambda i, n, b: (b, 0))


def head(*rest: int) -> pl.BlockSpec:
    """Returns the block spec for all of one sequence and head of [B, N, *rest]."""
    return pl.BlockSpec((None, None, *rest), lambda i, n, b: (b, n, *(0 for _ in rest)))


def part(*rest: int) -> pl.BlockSpec:
    """Returns the block spec for element i of one sequence and head of [B, N, M, *rest]."""
    return pl.BlockSpec((None, None, None, *rest), lambda i, n, b: (b, n, i, *(0 for _ in rest)))
