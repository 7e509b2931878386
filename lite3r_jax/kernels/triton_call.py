"""Launches Pallas Triton kernels over a grid (blocks, N, B) with block specs for their arrays."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from lite3r_jax.kernels.launch import Launch


@dataclass(frozen=True)
class LongFirst:
    """Blocks of all heads in one dimension of a grid: first those that have the most work.

    Programs start in the order of their numbers. Long ones at the end would run alone while the
    other multiprocessors of the device wait.

    Attributes:
        heads: N.
        long: programs of a head that start first.
        rest: the others of a head. Those of one head follow each other, and find its keys in cache.
    """

    heads: int
    long: int
    rest: int

    def split(self, i: Any) -> tuple[Any, Any]:
        """The block and the head of program i."""

        def of(i, count):
            return lax.rem(i, jnp.int32(count)), lax.div(i, jnp.int32(count))

        if not (self.long and self.rest):
            return of(i, self.long + self.rest)
        later = i - self.long * self.heads
        block, head = of(i, self.long)
        block_later, head_later = of(lax.max(later, jnp.int32(0)), self.rest)
        first = later < 0
        return (
            lax.select(first, block, block_later + self.long),
            lax.select(first, head, head_later),
        )

    def spec(self, spec: pl.BlockSpec) -> pl.BlockSpec:
        """What a program gets, from a spec for (block, head, sequence)."""
        index = spec.index_map
        assert index is not None
        return pl.BlockSpec(spec.block_shape, lambda i, _, b: index(*self.split(i), b))


def call(
    kernel: functools.partial,
    launch: Launch,
    grid: tuple[int, int, int] | tuple[LongFirst, int],
    inputs: Sequence[tuple[jax.Array, pl.BlockSpec]],
    outputs: Sequence[tuple[tuple[int, ...], Any, pl.BlockSpec]],
    *,
    interpret: bool,
) -> list[jax.Array]:
    """Run a kernel over (blocks, N, B).

    Args:
        kernel: called with a ref per input and output.
        launch: warps and stages. Always given: what jax makes of a call without differs by version.
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
    """Rows i * size and following of [B, T, N, D]."""
    return pl.BlockSpec((None, size, None, head_dim), lambda i, n, b: (b, i, n, 0))


def all_variants(x: jax.Array | jax.ShapeDtypeStruct) -> pl.BlockSpec:
    """All rows of [B, T, N, D]."""
    return pl.BlockSpec((None, x.shape[1], None, x.shape[3]), lambda i, n, b: (b, 0, n, 0))


def row(size: int) -> pl.BlockSpec:
    """Entries i * size and following of [B, N, T]."""
    return pl.BlockSpec((None, None, size), lambda i, n, b: (b, n, i))


def mask(size: int) -> pl.BlockSpec:
    """Entries i * size and following of [B, T]."""
    return pl.BlockSpec((None, size), lambda i, n, b: (b, i))


def all_mask(x: jax.Array) -> pl.BlockSpec:
    """All entries of [B, T]."""
    return pl.BlockSpec((None, x.shape[1]), lambda i, n, b: (b, 0))


def head(*rest: int) -> pl.BlockSpec:
    """All of [B, N, *rest]."""
    return pl.BlockSpec((None, None, *rest), lambda i, n, b: (b, n, *(0 for _ in rest)))


def part(*rest: int) -> pl.BlockSpec:
    """Element i of [B, N, M, *rest]."""
    return pl.BlockSpec((None, None, None, *rest), lambda i, n, b: (b, n, i, *(0 for _ in rest)))
