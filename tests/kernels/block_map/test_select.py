"""The plain selection: what it picks, against sorting in Python, and in which memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lite3r_jax.kernels.block_map.api import budgets
from lite3r_jax.kernels.block_map.select import pick, select_sorted

ROWS, COLUMNS = 3, 11
# (blocks that are always kept, top, bottom)
PICKS = [((), 1, 0), ((), 4, 3), ((0, 7), 3, 2), ((10,), 10, 0), ((1,), 5, 5), (range(11), 0, 0)]


@functools.cache
def compiled_pick(kept, top, bottom):
    always = np.asarray(kept, np.int32)
    return jax.jit(lambda scores, usable: pick(scores, usable, always, top, bottom))


def picked_by_sorting(scores, usable, kept, top, bottom):
    """Lists of ids for one row."""
    most = float(np.finfo(np.float32).max)
    scores = [-most if s != s else max(-most, min(s, most)) for s in scores.tolist()]
    free = [j for j in range(COLUMNS) if usable[j] and j not in kept]
    high = sorted(free, key=lambda j: (-scores[j], j))[:top]
    low = sorted(set(free) - set(high), key=lambda j: (scores[j], j))[:bottom]
    return sorted([j for j in kept if usable[j]] + high), sorted(low)


@pytest.mark.parametrize("kept,top,bottom", PICKS)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    scores=hnp.arrays(
        np.float32,
        (ROWS, COLUMNS),
        elements=st.sampled_from([-1.0, -0.0, 0.0, 1.0, np.inf, -np.inf, np.nan])
        | st.floats(-100, 100, width=32, allow_subnormal=False),
    ),
    usable=hnp.arrays(bool, COLUMNS),
)
def test_picks_what_sorting_picks_and_of_equal_scores_the_first(kept, top, bottom, scores, usable):
    picked = compiled_pick(kept, top, bottom)(scores, usable)
    for row in range(ROWS):
        wanted = picked_by_sorting(scores[row], usable, kept, top, bottom)
        for ids, want, width in zip(picked, wanted, (len(kept) + top, bottom), strict=True):
            assert ids[row].tolist() == want + [COLUMNS] * (width - len(want))


def test_memory_is_that_of_a_chunk_of_scores():
    """At 100 views of 1,374 tokens: 2,147 blocks a side."""
    blocks, heads, chunk = 2147, 16, 8
    top, bottom = budgets(blocks, 0.1, 0.02)

    def temporary(chunk):
        x = jax.ShapeDtypeStruct((1, heads, blocks, 8), jnp.float32)
        used = jax.ShapeDtypeStruct((1, blocks), bool)
        select = functools.partial(
            select_sorted, kept=np.zeros(0, np.int32), top=top, bottom=bottom, chunk=chunk
        )
        return (
            jax.jit(select).lower(x, used, x, used).compile().memory_analysis().temp_size_in_bytes
        )

    tables = heads * blocks * (top + bottom) * 4
    scores = heads * chunk * blocks * 4
    small, large = temporary(chunk), temporary(4 * chunk)
    assert small < 2.5 * tables + 8 * scores
    assert large - small < 3 * 8 * scores
    assert small < 0.5 * heads * blocks**2 * 4
