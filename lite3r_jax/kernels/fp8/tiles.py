"""Tile sizes of the float8 product on Hopper GPUs."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

# Rows of a tile, 64 for each of two warpgroups; columns that a product has at a time; and inputs
# whose products the tensor core adds up before they are added in float32.
ROWS, COLUMNS, INPUTS = 128, 128, 128
# Programs run side by side, one on each multiprocessor of an H100 SXM or H200. On a device with
# another number the result is the same; how evenly the work is spread is not.
_PROGRAMS = 132


@dataclass(frozen=True)
class ProductTiles:
    """How the result of one float8 product is cut into tiles, and by how many programs.

    Attributes:
        columns: width of a tile.
        stages: parts of both operands, `INPUTS` wide, that are in shared memory at a time.
        programs: that run; each computes one tile after the other.
    """

    columns: int
    stages: int
    programs: int


def tiles(rows: int, outputs: int, dtype: Any) -> ProductTiles:
    """Returns the tiles of a product, which are chosen by counting; nothing was timed.

    A tile of 256 columns reads a quarter less from the L2 cache than two of 128. Narrow ones are
    taken where they leave fewer multiprocessors idle: where the largest number of columns that one
    program computes is smaller. Results in float32 leave no room for wide ones in shared memory.

    Args:
        rows: M.
        outputs: N, a multiple of `COLUMNS`.
        dtype: of the result.
    """
    if jnp.dtype(dtype).itemsize > 2:
        return ProductTiles(COLUMNS, 4, min(_PROGRAMS, _count(rows, outputs, COLUMNS)))
    wide = 2 * COLUMNS
    rounds = {c: -(-_count(rows, outputs, c) // _PROGRAMS) for c in (wide, COLUMNS)}
    columns = wide
    if outputs % wide or rounds[COLUMNS] * COLUMNS < rounds[wide] * wide:
        columns = COLUMNS
    stages = 3 if columns == wide else 5
    return ProductTiles(columns, stages, min(_PROGRAMS, _count(rows, outputs, columns)))


def _count(rows: int, outputs: int, columns: int) -> int:
    return -(-rows // ROWS) * (outputs // columns)
