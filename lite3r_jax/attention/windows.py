"""Cuts the tokens of views into blocks, so that each block is a window of one image.

The blocks are tables of indices in numpy, made from the static layout alone.
"""

import functools
from dataclasses import dataclass

import numpy as np

from lite3r_jax.attention.strategy import TokenLayout

SPECIAL = -1


@dataclass(frozen=True, eq=False)
class Blocks:
    """Tokens of one sequence in blocks of equal size.

    Attributes:
        tokens: [M, block] int32, the token at every place; T, one past the last one, where there
            is none. Every token stands at one place, and no block is without tokens.
        views: [M] int32, the view whose patches a block holds; `SPECIAL` for special tokens.
    """

    tokens: np.ndarray
    views: np.ndarray


@functools.lru_cache(maxsize=64)
def blocks(layout: TokenLayout, block: int) -> Blocks:
    """Cuts a sequence into blocks: special tokens of all views first, then patches view by view.

    Special tokens are not pooled with patches, which would cost accuracy (Block-Sparse VGGT, arXiv
    2509.07120), and no block holds patches of two views.

    Args:
        layout: where the tokens come from.
        block: tokens per block.
    """
    p, s = layout.tokens_per_view, layout.special
    first = p * np.arange(layout.views)[:, None]
    special = _padded((first + np.arange(s)).reshape(1, -1), block, layout.tokens)
    patches = _padded(first + s + windows(layout.grid, block), block, layout.tokens)
    per_view = len(patches) // layout.views
    views = [np.full(len(special), SPECIAL), np.repeat(np.arange(layout.views), per_view)]
    tokens = np.concatenate([special, patches]).astype(np.int32)
    result = Blocks(tokens, np.concatenate(views).astype(np.int32))
    for array in (result.tokens, result.views):
        array.flags.writeable = False  # the result is cached
    return result


def windows(grid: tuple[int, int], block: int) -> np.ndarray:
    """Returns the patches in an order in which `block` consecutive ones lie close together.

    The grid is cut into strips about sqrt(block) rows high, which are walked column by column, one
    to the right and the next one back to the left. Where the sides are multiples of sqrt(block),
    the blocks are square tiles. Elsewhere only the last block of a view is short: 37 x 37 patches
    take 22 blocks of 64, where square tiles would take 25.

    Args:
        grid: rows h and columns w.
        block: patches per block.

    Returns:
        [h * w] int, numbers of patches, which count row by row.
    """
    h, w = grid
    strips = max(1, round(h / block**0.5))
    edges = [h * i // strips for i in range(strips + 1)]
    numbers = np.arange(h * w).reshape(h, w)
    order = []
    for i in range(strips):
        strip = numbers[edges[i] : edges[i + 1]]
        order.append(strip.T.reshape(-1) if i % 2 == 0 else strip[:, ::-1].T.reshape(-1))
    return np.concatenate(order)


def _padded(rows: np.ndarray, block: int, fill: int) -> np.ndarray:
    """Pads the rows [R, n] to whole blocks and cuts them into blocks, [R * blocks, block]."""
    pad = -rows.shape[1] % block
    return np.pad(rows, ((0, 0), (0, pad)), constant_values=fill).reshape(-1, block)
