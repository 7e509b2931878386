"""Every implementation of Sparse Linear Attention against float64, in value and gradient."""

import functools
import itertools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lite3r_jax.attention.dense import dense_attention
from lite3r_jax.kernels.block_map.api import block_map
from lite3r_jax.kernels.block_map.table import BlockMap, BlockTable
from lite3r_jax.kernels.sla.api import sla
from lite3r_jax.kernels.sla.blocked import BlockedTiles, sla_blocked, sparse
from lite3r_jax.kernels.sla.cases import ODD, REAL, Case
from tests.kernels.sla.oracle import sla_and_gradients

SMALL = BlockedTiles(rows=2, entries=3)

# Those that are fast; the definition is checked by itself below.
IMPLEMENTATIONS = ["blocked"]

# One compilation each; what varies without another one is in LISTS and PADDINGS.
CASES = [
    Case("elu1, short last blocks", 50, 70, 2, 2, 64, 16, 8),
    Case("softmax, head dim 128", 45, 40, 1, 1, 128, 16, 16, phi="softmax"),
    Case("relu, one block", 60, 60, phi="relu"),
    Case("marginal elu1, short last blocks", 50, 70, 2, 2, 64, 16, 8, routing="block3"),
    Case("marginal softmax, one head", 60, 68, 1, 1, 64, 32, 16, phi="softmax", routing="block3"),
    Case("marginal relu, several tiles", 97, 101, 1, 3, 16, 8, 8, phi="relu", routing="block3"),
]


def _some(rng, shape):
    listed = rng.random(shape) < 0.4
    np.put_along_axis(listed, rng.integers(shape[-1], size=(*shape[:-1], 1)), True, -1)
    return listed


def _one(rng, shape):
    return np.arange(shape[-1]) == rng.integers(shape[-1], size=(*shape[:-1], 1))


# [B, N, Mq, Mk] bool of listed blocks.
LISTS = {
    "all": lambda rng, shape: np.ones(shape, bool),
    "one": _one,
    "some": _some,
    "empty rows": lambda rng, shape: _some(rng, shape) & (rng.random((*shape[:3], 1)) < 0.5),
    "one for all rows": lambda rng, shape: np.broadcast_to(np.arange(shape[-1]) == 0, shape),
}
# [B, T] bool of valid tokens.
PADDINGS = {
    "no": lambda rng, shape: np.ones(shape, bool),
    "tail": lambda rng, shape: np.arange(shape[1]) < rng.integers(1, shape[1] + 1, (shape[0], 1)),
    "scattered": lambda rng, shape: rng.random(shape) < 0.6,
    "whole blocks of": lambda rng, shape: np.repeat(
        rng.random((shape[0], shape[1] // 16 + 1)) < 0.5, 16, 1
    )[:, : shape[1]],
    "only": lambda rng, shape: np.arange(shape[0])[:, None] + np.zeros(shape) > 0,
}
VALUES = [*itertools.product(LISTS, PADDINGS)]


def table(listed):
    """The table of a mask [B, N, Mq, Mk], as wide as it can be."""
    columns = listed.shape[-1]
    ids = np.sort(np.where(listed, np.arange(columns), columns), axis=-1)
    return BlockTable(jnp.asarray(ids, jnp.int32), columns)


def per_token(blocks, case):
    rows = np.repeat(blocks, case.q_block, 2)[:, :, : case.q_tokens]
    return np.repeat(rows, case.k_block, 3)[..., : case.k_tokens]


@functools.cache
def compiled(case, implementation):
    """(q, k, v, w, critical, negligible, q_valid, k_valid, up) -> (o, dq, dk, dv, dw)."""

    def both(q, k, v, w, critical, negligible, q_valid, k_valid, up):
        maps = BlockMap(critical, negligible, case.q_block, case.k_block)
        settings = {"routing": case.routing, "phi": case.phi}
        settings |= {"q_valid": q_valid, "k_valid": k_valid}

        def f(*args):
            if implementation == "blocked":  # with tiles so small that there are several
                return sla_blocked(*args, maps, keep=None, eps=1e-6, tiles=SMALL, **settings)
            return sla(*args, maps, implementation=implementation, **settings)

        o, pull = jax.vjp(f, q, k, v, w)
        return o, *pull(up)

    return jax.jit(both)


class Problem:
    """Arguments of one call, and what float64 and plain float32 make of them.

    args: for `compiled`; rows of padding hold NaN. exact, plain: o, dq, dk, dv, dproj_lin.
    """

    def __init__(self, case, lists, padding, scale=1.0, dtype=np.float32, select=None):
        rng = np.random.default_rng(zlib.crc32(f"{case.name} {lists} {padding}".encode()))
        b, n, d = case.batch, case.heads, case.head_dim
        shapes = [(b, t, n, d) for t in (case.q_tokens, case.k_tokens, case.k_tokens)]
        q, k, v = (rng.standard_normal(s).astype(dtype) for s in shapes)
        q *= np.asarray(scale, dtype)
        up = rng.standard_normal(q.shape).astype(dtype)
        w = rng.standard_normal((d, d)).astype(np.float32) * d**-0.5
        q_valid = PADDINGS[padding](rng, (b, case.q_tokens))
        k_valid = PADDINGS[padding](rng, (b, case.k_tokens))
        if select is None:
            blocks = (b, n, case.q_blocks, case.k_blocks)
            critical = LISTS[lists](rng, blocks)
            negligible = (rng.random(blocks) < 0.3) & ~critical & (case.routing == "block3")
            maps = table(critical), table(negligible)
        else:
            maps = select(q, k, q_valid, k_valid)
            critical, negligible = (np.asarray(x.mask()) for x in maps)

        def hold(x, valid, what):
            return np.where(valid[..., None, None], x, np.asarray(what, dtype))

        valid = q_valid[:, None, :, None] & k_valid[:, None, None, :]
        softmax_set = per_token(critical, case) & valid
        linear_set = ~per_token(critical | negligible, case) & valid
        if case.routing == "block":
            linear_set = valid
        zeroed = hold(q, q_valid, 0), hold(k, k_valid, 0), hold(v, k_valid, 0)
        self.exact, self.plain = (
            sla_and_gradients(
                *zeroed, w, softmax_set, linear_set, case.phi, 1e-6, hold(up, q_valid, 0), as_type
            )
            for as_type in (np.float64, np.float32)
        )
        self.plain = [x.astype(dtype) for x in self.plain[:4]] + [self.plain[4]]
        poisoned = hold(q, q_valid, np.nan), hold(k, k_valid, np.nan), hold(v, k_valid, np.nan)
        self.args = *poisoned, w, *maps, q_valid, k_valid, up


NAMES = ["o", "dq", "dk", "dv", "dproj_lin"]


def errors(got, exact):
    """Largest error over largest value, of the output and of every gradient.

    Values below those that go in, which are of order 1, are differences: at least 1 is divided by.
    """
    for name, x in zip(NAMES, got, strict=True):
        assert np.isfinite(np.asarray(x, np.float64)).all(), f"{name} is not finite"
    return [
        np.abs(np.asarray(x, np.float64) - y).max() / max(np.abs(y).max(), 1)
        for x, y in zip(got, exact, strict=True)
    ]


def check(got, problem, cap=2e-6):
    """Errors are below the cap, and besides its half at most twice those of the plain form."""
    error, plain = errors(got, problem.exact), errors(problem.plain, problem.exact)
    for name, e, p in zip(NAMES, error, plain, strict=True):
        assert e <= min(2 * p + cap / 2, cap), f"{name}: error {e:.1e}, plain {p:.1e}"


@pytest.mark.parametrize("lists,padding", VALUES)
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case.name, marks=[pytest.mark.slow] if i in (1, 2, 4, 5) else [])
        for i, case in enumerate(CASES)
    ],
)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_equals_float64_in_value_and_gradient(implementation, case, lists, padding):
    problem = Problem(case, lists, padding)
    check(compiled(case, implementation)(*problem.args), problem)


@pytest.mark.parametrize("lists,padding", VALUES)
@pytest.mark.parametrize("case", [CASES[5]], ids=lambda case: case.name)
def test_definition_equals_float64_in_value_and_gradient(case, lists, padding):
    problem = Problem(case, lists, padding)
    check(compiled(case, "reference")(*problem.args), problem)


@pytest.mark.parametrize("lists,padding", VALUES[::3])
def test_large_logits_are_as_exact_as_plain_ones(lists, padding):
    problem = Problem(CASES[0], lists, padding, scale=8.0)
    check(compiled(CASES[0], "blocked")(*problem.args), problem, cap=1e-5)


@pytest.mark.parametrize("lists,padding", VALUES[::2])
@pytest.mark.parametrize(
    "case",
    [CASES[0], pytest.param(CASES[3], marks=pytest.mark.slow)],
    ids=lambda case: case.routing,
)
def test_bfloat16_is_as_exact_as_its_rounding_allows(case, lists, padding):
    problem = Problem(case, lists, padding, dtype=jnp.bfloat16)
    got = compiled(case, "blocked")(*problem.args)
    assert [x.dtype for x in got] == [jnp.bfloat16] * 4 + [jnp.float32]
    check(got, problem, cap=1e-2)


@pytest.mark.parametrize("padding", PADDINGS)
def test_token_routing_is_lite3r_as_coded(padding):
    """Softmax over the top keys of every query, found here by sorting; linear over all."""
    case, keep = Case("token", 50, 70, 2, 2, 16), 0.3
    problem = Problem(case, "all", padding)
    q, k, v, w, _, _, q_valid, k_valid, up = problem.args
    q, up = (np.where(q_valid[..., None, None], x, 0) for x in (q, up))
    k, v = (np.where(k_valid[..., None, None], x, 0) for x in (k, v))
    valid = q_valid[:, None, :, None] & k_valid[:, None, None, :] & np.ones((2, 2, 50, 70), bool)
    s = np.where(valid, np.einsum("bqnd,bknd->bnqk", q, k, dtype=np.float64), -np.inf)
    best = s >= np.sort(s, -1)[..., -int(keep * 70), None]
    exact = sla_and_gradients(q, k, v, w, best & valid, valid, "elu1", 1e-6, up)
    got = compiled_token(keep)(*problem.args[:4], q_valid, k_valid, problem.args[-1])
    assert max(errors(got, exact)) < 2e-6


@functools.cache
def compiled_token(keep):
    def both(q, k, v, w, q_valid, k_valid, up):
        o, pull = jax.vjp(
            lambda *x: sla(
                *x, None, routing="token", keep=keep, q_valid=q_valid, k_valid=k_valid,
                implementation="reference",
            ),
            q, k, v, w,
        )  # fmt: skip
        return o, *pull(up)

    return jax.jit(both)


@pytest.mark.parametrize("case", [CASES[0], CASES[3]], ids=lambda case: case.routing)
def test_all_blocks_without_projection_is_dense_attention(case):
    q, k, v, w, *rest = Problem(case, "all", "no").args
    o, dq, dk, dv, _ = compiled(case, "blocked")(q, k, v, 0 * w, *rest)
    for got, wanted in zip((o, dq, dk, dv), dense(q, k, v, rest[-1]), strict=True):
        np.testing.assert_allclose(got, wanted, atol=2e-6 * float(jnp.abs(wanted).max()))


@jax.jit
def dense(q, k, v, up):
    o, pull = jax.vjp(lambda *x: dense_attention(*x, "reference"), q, k, v)
    return o, *pull(up)


def test_without_marginal_blocks_the_linear_part_is_nothing():
    q, k, v, w, *rest = Problem(CASES[3], "all", "no").args
    f = compiled(CASES[3], "blocked")
    np.testing.assert_array_equal(f(q, k, v, w, *rest)[0], f(q, k, v, 0 * w, *rest)[0])


def change_of(case, w_scale, touch):
    """How much each output [B, Tq, N] changes when touch(k, v) changes keys or values."""
    problem = Problem(case, "some", "no")
    q, k, v, w, *rest = problem.args
    f = compiled(case, "blocked")
    before = f(q, k, v, w * w_scale, *rest)[0]
    k, v = k.copy(), v.copy()  # JAX reads NumPy arrays in place, and later
    touch(k, v)
    changed = np.abs(f(q, k, v, w * w_scale, *rest)[0] - before).max(-1)
    listed = [per_token(np.asarray(x.mask()), case)[..., 40].transpose(0, 2, 1) for x in rest[:2]]
    return changed, *listed


def touch_token(k, v):
    k[:, 40] += 1
    v[:, 40] += 1


def test_a_token_of_a_dropped_block_reaches_a_query_only_through_the_linear_part():
    changed, critical, _ = change_of(CASES[0], 0, touch_token)
    assert 0 < critical.sum() < critical.size
    assert (changed[critical] > 1e-4).all()
    assert (changed[~critical] == 0).all()
    changed, critical, _ = change_of(CASES[0], 1, touch_token)
    assert (changed > 1e-6).all()


def test_a_token_reaches_a_query_through_the_part_of_its_class():
    changed, critical, negligible = change_of(CASES[3], 0, touch_token)
    assert (changed[critical] > 1e-4).all()
    assert (changed[~critical] == 0).all()
    changed, critical, negligible = change_of(CASES[3], 1, touch_token)
    assert negligible.any()
    assert (changed[negligible] == 0).all()
    assert (changed[~negligible] > 1e-6).all()


def test_heads_and_sequences_do_not_mix():
    def touch(k, v):
        k[1, :, 0] += 1
        v[1, :, 0] += 1

    changed, *_ = change_of(CASES[0], 1, touch)
    assert (changed[1, :, 0] > 1e-4).all()
    assert (changed[0] == 0).all() and (changed[:, :, 1] == 0).all()


@pytest.mark.parametrize("case", [CASES[0], CASES[3]], ids=lambda case: case.routing)
def test_key_blocks_have_no_order(case):
    problem = Problem(case, "some", "no")
    q, k, v, w, *maps, q_valid, k_valid, up = problem.args
    size = case.k_block
    whole = case.k_tokens // size  # the last block is short and stays where it is
    order = np.append(np.random.default_rng(0).permutation(whole), whole)
    tokens = np.concatenate([np.arange(case.k_tokens)[j * size : (j + 1) * size] for j in order])
    moved = [table(np.asarray(m.mask())[..., order]) for m in maps]
    got = compiled(case, "blocked")(q, k[:, tokens], v[:, tokens], w, *moved, q_valid, k_valid, up)
    back = np.argsort(tokens)
    check((got[0], got[1], got[2][:, back], got[3][:, back], got[4]), problem)


@pytest.mark.slow
def test_tiles_change_no_more_than_the_order_of_sums():
    case = CASES[3]
    problem = Problem(case, "some", "tail")
    *qkvw, critical, negligible, q_valid, k_valid, up = problem.args
    maps = BlockMap(critical, negligible, case.q_block, case.k_block)

    @jax.jit
    def both(*args):
        o, pull = jax.vjp(
            lambda *x: sla_blocked(
                *x, maps, routing=case.routing, phi=case.phi, keep=None, eps=1e-6,
                q_valid=q_valid, k_valid=k_valid,
            ),
            *args,
        )  # fmt: skip
        return o, *pull(up)

    check(both(*qkvw), problem)


def test_blocks_that_are_not_listed_are_not_read():
    rng = np.random.default_rng(0)
    q, k, v, up = (rng.standard_normal((1, 9, 8, 16)).astype(np.float32) for _ in range(4))
    listed = np.zeros((1, 1, 9, 9), bool)
    listed[..., [0, 4, 7]] = True
    k[:, [1, 2, 3, 5, 6, 8]] = np.nan
    v[:, [1, 2, 3, 5, 6, 8]] = np.nan
    ids = table(listed).ids[0]

    @jax.jit
    def both(*args):
        f = lambda *x: sparse(*x, jnp.ones((1, 9, 8), bool), ids, BlockedTiles(2, 2))  # noqa: E731
        o, pull = jax.vjp(f, *args)
        return o, *pull(up)

    o, dq, dk, dv = both(q, k, v)
    assert np.isfinite(o).all() and np.isfinite(dq).all()
    assert (np.abs(dk).max((0, 2, 3)) > 0).tolist() == listed[0, 0, 0].tolist()
    assert (np.abs(dv).max((0, 2, 3)) > 0).tolist() == listed[0, 0, 0].tolist()


@pytest.mark.parametrize("routing", ["block", pytest.param("block3", marks=pytest.mark.slow)])
def test_memory_of_the_gradient_is_that_of_its_inputs(routing):
    tokens, heads, dim = 32768, 2, 16
    blocks = tokens // 64

    def f(q, k, v, w, ids):
        low = jnp.zeros((1, heads, blocks, 0), jnp.int32)
        maps = BlockMap(BlockTable(ids, blocks), BlockTable(low, blocks), 64, 64)
        return jax.grad(lambda *x: sla(*x, maps, routing=routing).sum(), (0, 1, 2, 3))(q, k, v, w)

    x = jax.ShapeDtypeStruct((1, tokens, heads, dim), jnp.float32)
    w = jax.ShapeDtypeStruct((dim, dim), jnp.float32)
    ids = jax.ShapeDtypeStruct((1, heads, blocks, 4), jnp.int32)
    plan = jax.jit(f).lower(x, x, x, w, ids).compile().memory_analysis()
    inputs = 3 * tokens * heads * dim * 4
    assert plan.temp_size_in_bytes < 6 * inputs < 0.01 * heads * tokens**2 * 4


def call(**changes):
    """`sla` on 10 queries and 20 keys in blocks of 4 and 8, with some arguments changed."""
    rng = np.random.default_rng(0)
    x = {name: jnp.asarray(rng.standard_normal((1, t, 1, 4)), jnp.float32) for name, t in
         (("q", 10), ("k", 20), ("v", 20))}  # fmt: skip
    maps = BlockMap(table(np.ones((1, 1, 3, 3), bool)), table(np.zeros((1, 1, 3, 3), bool)), 4, 8)
    args = {**x, "proj_lin": jnp.eye(4), "block_map": maps, **changes}
    return sla(**args)


def test_bad_arguments_are_named():
    x = jnp.zeros((1, 20, 1, 4))
    maps = BlockMap(table(np.ones((1, 1, 5, 3), bool)), table(np.ones((1, 1, 5, 3), bool)), 4, 8)
    for changes, message in [
        ({"k": x[:, :, 0]}, r"expected q, k, v as \[B, T, N, D\]"),
        ({"v": x[:, :19]}, "expected q, k, v"),
        ({"k": x[:, :0], "v": x[:, :0]}, "at least one query and one key"),
        ({"v": x.astype(jnp.bfloat16)}, "one float dtype"),
        ({"proj_lin": jnp.eye(5)}, r"proj_lin must be \[4, 4\]"),
        ({"phi": "hedgehog"}, "there are: elu1, softmax, relu"),
        ({"eps": -1.0}, "eps must not be below 0"),
        ({"routing": "tokens"}, "there are: token, block, block3"),
        ({"routing": "token"}, "takes keep in"),
        ({"routing": "token", "block_map": None, "keep": 1.5}, "takes keep in"),
        ({"keep": 0.5}, "and no keep"),
        ({"block_map": None}, "takes a block map"),
        ({"block_map": maps}, r"the block map is for \[B, N, Mq\] \(1, 1, 5\)"),
        ({"k_valid": jnp.ones((1, 10), bool)}, r"k_valid must be bool of shape \(1, 20\)"),
        ({"q_valid": jnp.ones((1, 10))}, "q_valid must be bool"),
        ({"implementation": "flash"}, "there are: auto, reference, blocked"),
    ]:
        with pytest.raises(ValueError, match=message):
            call(**changes)


def test_an_implementation_that_cannot_run_says_which_can():
    with pytest.raises(ValueError, match=r"'blocked' cannot run this: .*; reference can"):
        call(routing="token", block_map=None, keep=0.5)


def test_named_cases_hold_together():
    for case in (*ODD, *REAL):
        top, bottom = case.budgets
        assert top >= 1 or case.always == case.k_blocks
        assert case.always + top + bottom <= case.k_blocks
    assert len({case.name for case in (*ODD, *REAL)}) == len(ODD) + len(REAL)
    assert REAL[-1].q_tokens == 136_900 and REAL[-1].always == 8 + 22


@pytest.mark.slow
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("case", ODD, ids=lambda case: case.name)
@pytest.mark.parametrize("implementation", ["reference", *IMPLEMENTATIONS])
def test_selection_and_attention_together_equal_float64(implementation, case, padding):
    problem = Problem(case, "selected", padding, select=compiled_selection(case))
    check(compiled(case, implementation)(*problem.args), problem)


@functools.cache
def compiled_selection(case):
    top, bottom = case.budgets

    def select(q, k, q_valid, k_valid):
        maps = block_map(
            q, k, q_block=case.q_block, k_block=case.k_block, top=top, bottom=bottom,
            always=range(case.always), q_valid=q_valid, k_valid=k_valid,
        )  # fmt: skip
        return maps.critical, maps.negligible

    return jax.jit(select)
