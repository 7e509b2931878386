"""Query blocks that attend to all key blocks in the same call, and outputs in their places."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lite3r_jax.kernels.block_map.api import block_map
from lite3r_jax.kernels.block_map.table import BlockMap, BlockTable
from lite3r_jax.kernels.order import LongFirst
from lite3r_jax.kernels.sla import check
from lite3r_jax.kernels.sla.api import sla
from lite3r_jax.kernels.sla.cases import Case
from lite3r_jax.kernels.sla.pallas_triton import sla_triton
from tests.kernels.sla.test_sla import NAMES, table

CASE = Case("full rows", 246, 200, 1, 2)
FULL, ALWAYS = 2, 1


def maps(routing):
    """A map with full rows, and the same one with all its rows in the tables."""
    rng = np.random.default_rng(3)
    shape = 1, 2, CASE.q_blocks, CASE.k_blocks
    listed = rng.random(shape) < 0.4
    listed[..., :ALWAYS] = True
    low = ~listed & (rng.random(shape) < 0.5) & (routing == "block3")
    listed[:, :, :FULL], low[:, :, :FULL] = True, False
    whole = BlockMap(table(listed), table(low), CASE.q_block, CASE.k_block)

    def rest(full):
        return BlockTable(full.ids[:, :, FULL:], full.columns)

    tables = rest(whole.critical), rest(whole.negligible)
    return BlockMap(*tables, CASE.q_block, CASE.k_block, FULL, ALWAYS), whole


def outcome(run, block_map, places, routing):
    """Output and gradients of q, k, v and proj_lin."""
    rng = np.random.default_rng(4)
    q, k, v, up = (
        rng.standard_normal((1, t, 2, 64), np.float32)
        for t in (CASE.q_tokens, CASE.k_tokens, CASE.k_tokens, CASE.q_tokens)
    )
    w = rng.standard_normal((64, 64), np.float32) / 8

    @jax.jit
    def both(*args):
        o, pull = jax.vjp(lambda *x: run(*x, block_map, routing=routing, places=places), *args)
        return o, *pull(jnp.asarray(up)[:, : o.shape[1]])

    return both(q, k, v, w)


def triton(*args, **settings):
    q, k = args[:2]
    valid = {"q_valid": jnp.ones(q.shape[:2], bool), "k_valid": jnp.ones(k.shape[:2], bool)}
    return sla_triton(*args, phi="elu1", keep=None, eps=1e-6, interpret=True, **valid, **settings)


@pytest.mark.parametrize(
    "run,routing",
    [
        pytest.param(triton, "block", marks=pytest.mark.slow),
        pytest.param(triton, "block3", marks=pytest.mark.slow),
        (functools.partial(sla, implementation="blocked"), "block"),
        pytest.param(
            functools.partial(sla, implementation="blocked"), "block3", marks=pytest.mark.slow
        ),
    ],
)
def test_full_rows_and_places_equal_a_table_of_all_rows(run, routing):
    some, whole = maps(routing)
    places = np.random.default_rng(5).permutation(CASE.q_tokens)[:240]
    got = outcome(run, some, places, routing)

    def plain(*args, places, **settings):
        return sla(*args, implementation="reference", **settings)[:, places]

    wanted = outcome(plain, whole, places, routing)
    for name, x, y in zip(NAMES, got, wanted, strict=True):
        assert x.shape == y.shape
        error = float(jnp.abs(x - y).max() / jnp.abs(y).max())
        assert error < 5e-6, f"{name}: {error:.1e}"


@pytest.mark.parametrize("implementation", ["sorted", "triton"])
def test_full_rows_choose_nothing_and_change_nothing_for_others(implementation):
    rng = np.random.default_rng(0)
    q, k = (jnp.asarray(rng.standard_normal((1, t, 1, 64), np.float32)) for t in (400, 700))
    settings = {"q_block": 64, "k_block": 64, "top": 3, "always": [0, 1, 5]}
    if implementation == "triton":
        from lite3r_jax.kernels.block_map.api import pool
        from lite3r_jax.kernels.block_map.pallas_triton import select_triton

        pooled = *pool(q, jnp.ones((1, 400), bool), 64), *pool(k, jnp.ones((1, 700), bool), 64)
        kept = np.array([0, 1, 5])
        got, _ = select_triton(*pooled, kept=kept, top=3, bottom=0, first=2, interpret=True)
    else:
        selected = block_map(q, k, full_rows=2, **settings)
        assert (selected.full_rows, selected.full_columns) == (2, 2)
        got = selected.critical.ids
    wanted = block_map(q, k, **settings).critical.ids[:, :, 2:]
    np.testing.assert_array_equal(got, wanted)
    with pytest.raises(ValueError, match=r"full_rows must be in \[0, 7\], got 8"):
        block_map(q, k, full_rows=8, **settings)


@pytest.mark.parametrize("order", [LongFirst(3, 2, 5), LongFirst(3, 0, 7), LongFirst(3, 7, 0)])
def test_long_blocks_of_all_heads_start_first_and_every_block_once(order):
    count = order.heads * (order.long + order.rest)
    blocks = [tuple(map(int, order.split(jnp.int32(i)))) for i in range(count)]
    assert sorted(blocks) == [(i, n) for i in range(order.long + order.rest) for n in range(3)]
    first = blocks[: order.heads * order.long]
    assert all(block < order.long for block, _ in first)


def test_a_map_splits_into_one_of_the_full_rows_and_one_of_the_others():
    some, whole = maps("block")
    full, rest = some.split()
    ids = jnp.concatenate([full.critical.mask(), rest.critical.mask()], axis=2)
    np.testing.assert_array_equal(ids, whole.critical.mask())
    assert full.full_rows == rest.full_rows == 0


@pytest.mark.slow
def test_the_self_check_has_a_case_with_full_rows_and_places():
    assert [case.full for case in check.CASES if case.name in check.QUICK and case.full] == [2]
    case = Case("rows of all blocks", 150, 130, always=1, full=1)
    run = functools.partial(sla_triton, interpret=True)
    assert check.outcome(run, case, "float32").wrong is None

    def without_places(*args, places, **settings):
        return run(*args, places=np.sort(places), **settings)

    assert "o is off by" in (check.outcome(without_places, case, "float32").wrong or "")
