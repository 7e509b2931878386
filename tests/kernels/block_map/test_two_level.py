"""Two levels of choice: first views, then blocks of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lite3r_jax.kernels.block_map.api import ViewChoice, block_map, pool
from lite3r_jax.kernels.block_map.pallas_triton import select_triton
from lite3r_jax.kernels.block_map.select import select_sorted
from lite3r_jax.kernels.block_map.two_level import select_within_views

KEPT, OF_VIEW, ROWS = 3, 4, 2  # always, key blocks of a view, query blocks of a view


def problem(query_views, key_views, heads=2, batch=2, d=64):
    rng = np.random.default_rng(query_views * 10 + key_views)
    q = rng.standard_normal((batch, heads, query_views * ROWS, d)).astype(np.float32)
    k = rng.standard_normal((batch, heads, KEPT + key_views * OF_VIEW, d)).astype(np.float32)
    q_used = rng.random((batch, q.shape[2])) < 0.9
    k_used = rng.random((batch, k.shape[2])) < 0.9
    k_used[0] = True
    return q, q_used, k, k_used


def definition(q, q_used, k, k_used, top, query_views, key_views, views):
    """The same in float64, row by row."""
    columns = k.shape[2]
    selected = np.full((*q.shape[:3], KEPT + top), columns)
    for b, n in np.ndindex(q.shape[:2]):
        blocks = [KEPT + v * OF_VIEW + np.arange(OF_VIEW) for v in range(key_views)]
        usable = [[j for j in ids if k_used[b, j]] for ids in blocks]
        means = [k[b, n, ids].astype(float).mean(axis=0) if ids else None for ids in usable]
        for view in range(query_views):
            rows = [i for i in range(view * ROWS, (view + 1) * ROWS) if q_used[b, i]]
            best = [
                max((q[b, n, i] @ m for i in rows), default=-np.inf) if m is not None else -np.inf
                for m in means
            ]
            chosen = np.argsort(-np.array(best), kind="stable")[:views]
            candidates = np.array(sorted(j for v in chosen for j in usable[v]), int)
            for i in rows:
                scores = k[b, n, candidates].astype(float) @ q[b, n, i]
                ids = candidates[np.argsort(-scores, kind="stable")[:top]]
                ids = sorted([j for j in range(KEPT) if k_used[b, j]] + list(ids))
                selected[b, n, i, : len(ids)] = ids
    return selected


@pytest.mark.parametrize(
    "select",
    [
        select_sorted,
        pytest.param(
            functools.partial(select_triton, interpret=True), id="triton", marks=pytest.mark.slow
        ),
    ],
)
@pytest.mark.parametrize("query_views,key_views,views,top", [(4, 6, 2, 3), (3, 5, 4, 16)])
def test_equals_its_definition(query_views, key_views, views, top, select):
    args = problem(query_views, key_views)
    settings = {"query_views": query_views, "key_views": key_views, "views": views, "top": top}
    got = jax.jit(functools.partial(select_within_views, kept=KEPT, select=select, **settings))(
        *map(jnp.asarray, args)
    )
    np.testing.assert_array_equal(got, definition(*args, **settings))


def test_all_views_give_what_one_level_gives():
    q, k = problem(3, 5)[::2]

    def tokens(x):  # blocks of one token
        return jnp.asarray(x.transpose(0, 2, 1, 3))

    settings = {"q_block": 1, "k_block": 1, "top": 6, "always": range(KEPT)}
    one = block_map(tokens(q), tokens(k), **settings)
    two = block_map(tokens(q), tokens(k), among=ViewChoice(3, 5, 5), **settings)
    np.testing.assert_array_equal(one.critical.ids, two.critical.ids)


def test_the_view_with_what_a_query_looks_for_is_found():
    """One block of the last view points where a query does: its view is chosen, and the block."""
    q, k = np.zeros((1, 1, ROWS, 8)), np.zeros((1, 1, KEPT + 5 * OF_VIEW, 8))
    q[0, 0, 1, 0] = k[0, 0, -1, 0] = 1
    args = map(jnp.asarray, (q, np.ones((1, ROWS), bool), k, np.ones((1, k.shape[2]), bool)))
    got = select_within_views(
        *args, kept=KEPT, top=1, query_views=1, key_views=5, views=1, select=select_sorted
    )
    assert got[0, 0, 1].tolist() == [0, 1, 2, k.shape[2] - 1]


@pytest.mark.parametrize(
    "change,message",
    [
        ({"always": [0, 1, 4]}, "takes the key blocks that are always kept first"),
        ({"bottom": 1}, "and 1 negligible"),
        ({"among": ViewChoice(4, 5, 2)}, "6 query and 20 key blocks are not those of"),
        ({"among": ViewChoice(3, 5, 6)}, "are not those of"),
        ({"top": 9}, "cannot choose 9 blocks of 2 views with 4 each"),
    ],
)
def test_refuses_what_is_not_made_of_views(change, message):
    q, k = (jnp.zeros((1, t, 1, 8)) for t in (3 * ROWS, KEPT + 5 * OF_VIEW))
    settings = {"top": 4, "always": range(KEPT), "among": ViewChoice(3, 5, 2)} | change
    with pytest.raises(ValueError, match=message):
        block_map(q, k, q_block=1, k_block=1, **settings)


def test_pooled_tokens_are_means():
    x = np.random.default_rng(0).standard_normal((1, 10, 1, 3)).astype(np.float32)
    valid = np.arange(10)[None] < 9
    mean, used = pool(jnp.asarray(x), jnp.asarray(valid), 4)
    wanted = [x[0, :4, 0].mean(0), x[0, 4:8, 0].mean(0), x[0, 8, 0]]
    np.testing.assert_allclose(mean[0, 0], wanted, rtol=1e-6)
    assert used.all()
