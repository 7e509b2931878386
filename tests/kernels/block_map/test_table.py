"""Tables of blocks and their transposes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lite3r_jax.kernels.block_map.table import BlockTable

ROWS, COLUMNS = 9, 7


def random_table(seed, width):
    """A mask [2, 3, ROWS, COLUMNS] and its table [2, 3, ROWS, width]."""
    rng = np.random.default_rng(seed)
    order = rng.permuted(np.broadcast_to(np.arange(COLUMNS), (2, 3, ROWS, COLUMNS)), axis=-1)
    listed = order < rng.integers(0, width + 1, (2, 3, ROWS, 1))
    ids = np.sort(np.where(listed, np.arange(COLUMNS), COLUMNS), -1)[..., :width]
    return listed, BlockTable(jnp.asarray(ids, jnp.int32), COLUMNS)


def test_mask_and_counts_are_those_of_the_lists():
    for width in (1, 3, COLUMNS):
        listed, table = random_table(width, width)
        np.testing.assert_array_equal(table.mask(), listed)
        np.testing.assert_array_equal(table.counts, listed.sum(-1))


def test_transpose_lists_the_same_pairs_ascending():
    transpose = jax.jit(BlockTable.transpose)
    for seed in range(5):
        for width in (1, 3, COLUMNS):
            listed, table = random_table(seed, width)
            transposed = transpose(table)
            assert transposed.rows.shape == (2, 3, ROWS * width)
            assert transposed.rows.dtype == transposed.offsets.dtype == jnp.int32
            for b, n in np.ndindex(2, 3):
                rows, offsets = (
                    np.asarray(transposed.rows[b, n]),
                    np.asarray(transposed.offsets[b, n]),
                )
                assert offsets[0] == 0 and offsets[-1] == listed[b, n].sum()
                for j in range(COLUMNS):
                    got = rows[offsets[j] : offsets[j + 1]].tolist()
                    assert got == np.flatnonzero(listed[b, n, :, j]).tolist()


def test_a_table_without_entries_lists_nothing():
    table = BlockTable(jnp.zeros((1, 2, 3, 0), jnp.int32), 4)
    assert not table.mask().any()
    assert table.counts.tolist() == [[[0] * 3] * 2]
    assert table.transpose().offsets.tolist() == [[[0] * 5] * 2]


def test_a_table_that_is_too_large_to_transpose_is_refused():
    ids = jax.ShapeDtypeStruct((1, 1, 40_000, 8), jnp.int32)
    jax.eval_shape(lambda ids: BlockTable(ids, 50_000).transpose(), ids)
    with pytest.raises(ValueError, match="40000 x 60000 blocks is too large to be transposed"):
        jax.eval_shape(lambda ids: BlockTable(ids, 60_000).transpose(), ids)
