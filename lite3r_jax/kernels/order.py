"""The order in which the programs of a GPU kernel start."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl


@dataclass(frozen=True)
class LongFirst:
    """An order of blocks and heads in one grid dimension: programs with the most work first.

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
        """Returns the block and the head of program i."""

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
        """Converts a block spec for (block, head, sequence) to one for this order's programs."""
        index = spec.index_map
        assert index is not None
        return pl.BlockSpec(spec.block_shape, lambda i, _, b: index(*self.split(i), b))
