"""Merged queries: patterns, matches, what is lossless, who changes whom, operations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from lite3r_jax.attention import matching
from lite3r_jax.attention.dense import Dense, dense_attention
from lite3r_jax.attention.key_views import KeyViews
from lite3r_jax.attention.presets import parse_plan, plan, plan_name
from lite3r_jax.attention.query_merging import MergeQueries, groups, kept_patches, merge_queries
from lite3r_jax.attention.sla import SLA
from lite3r_jax.attention.strategy import AttentionInputs, Layouts, TokenLayout
from lite3r_jax.errors import InputError
from tests.attention import quick
from tests.benchmarking.jaxpr_products import products

LAYOUT = TokenLayout(7, 2, (3, 5), "global")
N, D = 2, 8
PLAIN = Dense("reference")


def problem(layout=LAYOUT, seed=0, b=2):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((3, b, layout.tokens, N, D)).astype(np.float32)


@functools.cache
def compiled(spec, layout=LAYOUT):
    core = spec.build(heads=N, head_dim=D, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
    return quick.jit(lambda q, k, v: core(AttentionInputs(q, k, v, Layouts.both(layout))))


def attend(spec, q, k, v, layout=LAYOUT):
    return np.asarray(compiled(spec, layout)(q, k, v))


def by_hand(spec, q, layout=LAYOUT):
    """(merged query of every token in float64, token that it is merged into)."""
    flat = q.reshape(*q.shape[:2], -1).astype(np.float64)
    mean, into = flat.copy(), np.broadcast_to(np.arange(layout.tokens), q.shape[:2]).copy()
    p = layout.tokens_per_view
    for b, tokens in enumerate(flat):
        unit = tokens / np.linalg.norm(tokens, axis=1, keepdims=True)
        for first in range(0, layout.views, spec.group):
            stays, goes = [], []
            for view in range(first, min(first + spec.group, layout.views)):
                for token in range(view * p, view * p + p):
                    y, x = divmod(token - view * p - layout.special, layout.grid[1])
                    turn = (y + x + view - first) % spec.factor == 0
                    if spec.factor == 4:
                        turn = 2 * (y % 2) + x % 2 == [0, 3, 1, 2][(view - first) % 4]
                    special = token - view * p < layout.special
                    keep = special or turn or (view == 0 and spec.protect_reference)
                    (stays if keep else goes).append(token)
            for token in goes:
                into[b, token] = stays[np.argmax(unit[stays] @ unit[token])]
            for token in stays:
                members = [token, *(t for t in goes if into[b, t] == token)]
                mean[b, token] = tokens[members].mean(0)
    return np.take_along_axis(mean, into[..., None], 1).reshape(q.shape), into


CASES = [
    MergeQueries(2, 3, inner=PLAIN),
    MergeQueries(4, 20, inner=PLAIN),
    pytest.param(MergeQueries(3, 4, False, PLAIN), marks=pytest.mark.slow),
    pytest.param(MergeQueries(2, 1, inner=PLAIN), marks=pytest.mark.slow),
]


@pytest.mark.parametrize("spec", CASES, ids=lambda spec: f"{spec.factor}-{spec.group}")
def test_outputs_are_those_of_the_merged_queries(spec):
    q, k, v = problem()
    merged, into = by_hand(spec, q)
    want = dense_attention(merged.astype(np.float32), k, v)
    np.testing.assert_allclose(attend(spec, q, k, v), want, atol=2e-6)
    of = groups(LAYOUT, spec.factor, spec.group, spec.protect_reference)
    some, rows = merge_queries(jnp.asarray(q), of)
    assert all(set(r) == set(range(some.shape[1])) for r in np.asarray(rows))
    np.testing.assert_allclose(matching.unmerge(some, rows), merged, atol=2e-6)
    for r, m in zip(np.asarray(rows), into, strict=True):
        assert (r[m] == r).all(), "a token has the row of the one that it is merged into"


def test_chunks_of_comparisons_change_nothing(monkeypatch):
    q, k, v = problem()
    spec = MergeQueries(2, 4, inner=PLAIN)
    whole = attend(spec, q, k, v)
    monkeypatch.setattr(matching, "CHUNK", 5)
    core = spec.build(heads=N, head_dim=D, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
    apart = quick.jit(lambda *qkv: core(AttentionInputs(*qkv, Layouts.both(LAYOUT))))(q, k, v)
    np.testing.assert_allclose(apart, whole, atol=1e-6)


def test_one_of_one_is_the_inner_strategy_bit_for_bit():
    q, k, v = problem()
    np.testing.assert_array_equal(
        attend(MergeQueries(1), q, k, v), quick.jit(dense_attention)(q, k, v)
    )
    inner = SLA(block=4, implementation="reference")
    within, want = MergeQueries(1, inner=inner), compiled(inner)(q, k, v)
    np.testing.assert_array_equal(attend(within, q, k, v), want)


def test_merging_is_lossless_where_every_query_has_an_equal_one():
    q, k, v = problem()
    spec = MergeQueries(2, 4, False, PLAIN)
    for some in groups(LAYOUT, 2, 4, False):
        for stays, goes in zip(some.destinations, some.sources, strict=True):
            q[:, goes] = q[:, np.resize(stays[::-1], len(goes))]
    np.testing.assert_allclose(attend(spec, q, k, v), dense_attention(q, k, v), atol=2e-6)


def test_a_query_changes_its_own_group_and_the_reference_view_nothing_else():
    q, k, v = problem()
    spec, p = MergeQueries(2, 3, inner=PLAIN), LAYOUT.tokens_per_view
    before = attend(spec, q, k, v)
    q[:, 4 * p + 3 :: p][:, :1] += 1  # a patch of view 4, of the second group
    changed = (attend(spec, q, k, v) != before).any(axis=(0, 2, 3)).reshape(7, p).any(1)
    assert changed.tolist() == [False] * 3 + [changed[3], True, changed[5], False]


def test_counts_on_odd_grids_and_the_published_ratio():
    layout = TokenLayout(20, 0, (37, 37), "global")
    each = [int(kept_patches((37, 37), 2, view).sum()) for view in range(4)]
    assert each == [685, 684, 685, 684]
    for factor in (2, 3, 4):
        kept = sum(s.destinations.size for s in groups(layout, factor, 20, False))
        assert kept / layout.tokens == pytest.approx(1 / factor, abs=1e-4)
    assert sum(kept_patches((2, 2), 4, view) for view in range(4)).tolist() == [[1, 1], [1, 1]]


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 9), st.integers(0, 3), st.tuples(st.integers(1, 5), st.integers(1, 5)),
    st.integers(1, 4), st.integers(1, 12), st.booleans(),
)  # fmt: skip
def test_every_token_is_once_in_a_group_and_no_group_is_without_targets(
    views, special, grid, factor, group, protect
):
    layout = TokenLayout(views, special, grid, "global")
    of = groups(layout, factor, group, protect)
    stays = np.concatenate([s.destinations.reshape(-1) for s in of])
    goes = np.concatenate([s.sources.reshape(-1) for s in of])
    assert sorted([*stays, *goes]) == list(range(layout.tokens))
    assert all(s.destinations.shape[1] > 0 for s in of)
    p = layout.tokens_per_view
    assert (goes % p >= special).all() and (not protect or (goes >= p).all())
    for some in of:  # one group of each of its rows
        for a, b in zip(some.destinations, some.sources, strict=True):
            assert len({t // p // group for t in (*a, *b)}) == 1
    assert len(goes) == 0 or factor > 1


def test_gradients_and_operations():
    q, k, v = problem(b=1)
    spec = MergeQueries(2, 3, inner=PLAIN)
    weight = np.random.default_rng(1).standard_normal(q.shape).astype(np.float32)

    def by_rows(q):  # the match is no function that is differentiated
        _, into = by_hand(spec, np.asarray(base))
        members = (into[0][None] == np.arange(LAYOUT.tokens)[:, None]).astype(np.float32)
        members /= np.maximum(members.sum(1, keepdims=True), 1)
        merged = jnp.einsum("st,btnd->bsnd", members, q)[:, into[0]]
        return (dense_attention(merged, k, v) * weight).sum()

    base = q
    got = quick.jit(jax.grad(lambda q: (compiled(spec).__wrapped__(q, k, v) * weight).sum()))(q)
    np.testing.assert_allclose(got, jax.grad(by_rows)(jnp.asarray(q)), atol=5e-6)

    work = spec.flops(Layouts.both(LAYOUT), D)
    core = spec.build(heads=N, head_dim=D, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
    traced = products(lambda q: core(AttentionInputs(q, q, q, Layouts.both(LAYOUT))), q)
    assert traced == (N * sum(work.values()), 0) and work["selection"] > 0
    kept = sum(s.destinations.size for s in groups(LAYOUT, 2, 3, True))
    assert work["softmax"] == 4 * kept * LAYOUT.tokens * D


def test_key_views_within_merged_queries():
    q, k, v = problem()
    spec = MergeQueries(2, 3, inner=KeyViews("stride", every=3, inner=PLAIN))
    merged, _ = by_hand(spec, q)
    cut = [x.reshape(2, 7, -1, N, D)[:, ::3].reshape(2, -1, N, D) for x in (k, v)]
    want = dense_attention(merged.astype(np.float32), *cut)
    np.testing.assert_allclose(attend(spec, q, k, v), want, atol=2e-6)
    assert spec.views_in_order and not MergeQueries(1).views_in_order


def test_wrong_settings_are_refused_by_name():
    for settings_, message in (
        ({"factor": 0}, r"merge_queries: factor must be 1 to 4, got 0"),
        ({"factor": 5}, r"factor must be 1 to 4, got 5"),
        ({"group": 0}, r"group must be at least 1, got 0"),
        ({"inner": SLA()}, r"inner=sla needs queries with a grid .* choose dense, or merge none"),
        ({"inner": KeyViews("own")}, r"inner=key_views needs queries with a grid of patches"),
        ({"inner": MergeQueries()}, r"inner=merge_queries needs queries with a grid of patches"),
    ):
        with pytest.raises(InputError, match=message):
            plan("merge_queries", **settings_)
    text = "merge_queries(factor=3,inner=key_views(choose=stride,every=8))"
    assert plan_name(parse_plan(text)) == text
