"""Blocks are windows of one image, and every token stands in one of them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lite3r_jax.attention.strategy import TokenLayout
from lite3r_jax.attention.windows import SPECIAL, blocks, windows
from lite3r_jax.kernels.tokens import inverse

layouts = st.builds(
    TokenLayout,
    views=st.integers(1, 4),
    special=st.integers(0, 7),
    grid=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    scope=st.just("global"),
)


@given(layouts, st.integers(1, 70))
def test_every_token_stands_once_in_a_block_of_its_kind(layout, block):
    division = blocks(layout, block)
    real = division.tokens < layout.tokens
    assert (division.tokens[~real] == layout.tokens).all()
    assert sorted(division.tokens[real]) == list(range(layout.tokens))
    assert real.any(axis=1).all()
    view, place = np.divmod(division.tokens, layout.tokens_per_view)
    kind = np.where(place < layout.special, SPECIAL, view)
    assert (~real | (kind == division.views[:, None])).all()
    assert len(division.views) == len(division.tokens)


@given(layouts, st.integers(1, 70))
def test_no_block_is_spent_that_a_view_does_not_need(layout, block):
    views = blocks(layout, block).views
    patches = layout.grid[0] * layout.grid[1]
    assert (views == SPECIAL).sum() == -(-layout.views * layout.special // block)
    for view in range(layout.views):
        assert (views == view).sum() == -(-patches // block)


def test_layouts_without_patches_or_without_special_tokens():
    assert (blocks(TokenLayout(70, 1, (0, 0), "global"), 64).views == SPECIAL).all()
    assert list(blocks(TokenLayout(2, 0, (3, 3), "global"), 8).views) == [0, 0, 1, 1]


@pytest.mark.parametrize("grid,block", [((16, 24), 64), ((8, 8), 64), ((12, 4), 16)])
def test_blocks_are_square_tiles_where_they_fit(grid, block):
    side = round(block**0.5)
    rows, columns = np.divmod(windows(grid, block), grid[1])
    tiles = np.stack([rows // side, columns // side], -1).reshape(-1, block, 2)
    assert (tiles == tiles[:, :1]).all()


@pytest.mark.parametrize("grid", [(37, 37), (28, 37), (37, 28), (20, 37), (10, 37)])
@pytest.mark.parametrize("block", [64, 128])
def test_blocks_are_compact_where_tiles_do_not_fit(grid, block):
    where = np.stack(np.divmod(windows(grid, block), grid[1]), -1)
    whole = where[: len(where) // block * block].reshape(-1, block, 2)
    spread = whole.var(axis=1).sum(-1)
    square = (block - 1) / 6  # of a square tile
    assert spread.mean() < 1.6 * square


def test_inverse_finds_tokens_and_says_which_are_not_there():
    assert list(inverse(np.array([[4, 0], [3, 5]]), 5)) == [1, 4, 4, 2, 0]
