"""FastVGGT's merging against what its public code gave, and the share of tokens that attend."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from lite3r_jax.attention.dense import dense_attention
from lite3r_jax.attention.matching import best_match, unmerge
from lite3r_jax.attention.presets import parse_plan, plan, plan_name
from lite3r_jax.attention.strategy import AttentionInputs, Layouts, TokenLayout
from lite3r_jax.attention.token_merging import FastVGGT, MergedTokens, merge_tokens, merged_tokens
from lite3r_jax.errors import InputError
from tests.attention import quick
from tests.benchmarking.jaxpr_products import products

LAYOUT = TokenLayout(4, 2, (3, 5), "global")
N, D = 2, 16


@functools.cache
def golden_file(path):
    with np.load(path) as arrays:
        return dict(arrays)


def matched(x, of):
    return best_match(x[:, of.sources], x[:, of.destinations])


@pytest.mark.parametrize("case", ["even_protected", "odd_width", "partial"])
def test_merging_is_that_of_the_public_code(case, golden_dir, parity):
    arrays = golden_file(golden_dir.parent / "fastvggt" / "merge.npz")
    want = {k.partition("/")[2]: v for k, v in arrays.items() if k.startswith(f"{case}/")}

    def check(name, got, gate=5e-6):
        parity("fastvggt/merge", f"{case}/{name}", got, want[name], gate)

    protected = want.get("protected_idx", np.zeros(0, np.int32))
    free = ~np.isin(want["a_idx"], protected)
    of = MergedTokens(want["b_idx"], want["a_idx"][free], protected)
    x = want["x"]
    match, cosine = best_match(x[:, want["a_idx"]], x[:, want["b_idx"]])
    check("argmax_f64", match, 0)
    check("dst_idx", np.take_along_axis(np.asarray(match), want["src_idx"], 1), 0)
    count = want["src_idx"].shape[1]
    last = np.argsort(-np.where(free, cosine, np.inf), axis=1)[:, count + (~free).sum() :]
    order = np.argsort(want["unm_idx"], axis=1)
    parity("fastvggt/merge", f"{case}/unm_idx", np.sort(last), np.sort(want["unm_idx"]), 0)

    qkv = [want[name].reshape(*x.shape[:2], N, D) for name in "qkv"]
    got, rows = quick.jit(lambda x, *qkv: merge_tokens(matched(x, of), qkv, of, count))(x, *qkv)
    # those that are not merged come in an order of their own on either side
    mine = np.argsort(last, axis=1)

    def aligned(merged, places):
        flat = np.array(merged).reshape(*merged.shape[:2], -1)
        rest = places.shape[1]
        flat[:, :rest] = np.take_along_axis(flat[:, :rest], places[..., None], 1)
        return flat

    o = dense_attention(*got)
    for name, array in zip(
        ("q_merged", "k_merged", "v_merged", "o_merged"), (*got, o), strict=True
    ):
        wanted = aligned(want[name], order)
        parity("fastvggt/merge", f"{case}/{name}", aligned(array, mine), wanted, 5e-6)
    check("out", np.asarray(unmerge(o, rows)).reshape(x.shape))


def inputs_of(q, k, v, x, layout=LAYOUT):
    return AttentionInputs(q, k, v, Layouts.both(layout), of_queries=lambda: x, of_keys=lambda: x)


def problem(layout=LAYOUT, b=2):
    rng = np.random.default_rng(0)
    qkv = rng.standard_normal((3, b, layout.tokens, N, D)).astype(np.float32)
    return *qkv, rng.standard_normal((b, layout.tokens, N * D)).astype(np.float32)


def core(spec):
    return spec.build(heads=N, head_dim=D, param_dtype=jnp.float32, rngs=nnx.Rngs(0))


def test_nothing_merged_is_dense_attention():
    q, k, v, x = problem()
    spec = FastVGGT(ratio=0, protect=0)
    got = quick.jit(lambda *a: core(spec)(inputs_of(*a)))(q, k, v, x)
    np.testing.assert_allclose(got, dense_attention(q, k, v), atol=2e-6)


def test_the_share_of_tokens_that_attend():
    for views, share in ((20, 0.385), (100, 0.354)):  # as upstream, measured with its code
        layout = TokenLayout(views, 5, (37, 28), "global")
        of = FastVGGT().tokens(layout)
        assert FastVGGT().merged(of, layout) == of.sources.size
        attending = of.destinations.size + of.protected.size
        assert attending / layout.tokens == pytest.approx(share, abs=0.001)


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 6), st.integers(0, 3), st.tuples(st.integers(1, 5), st.integers(1, 5)),
    st.sampled_from([0.0, 0.1, 0.5, 0.99]), st.integers(0, 5),
)  # fmt: skip
def test_every_token_has_one_place(views, special, grid, protect, seed):
    layout = TokenLayout(views, special, grid, "global")
    of = merged_tokens(layout, protect, seed)
    stays = {*of.destinations.tolist(), *of.protected.tolist()}
    assert stays.isdisjoint(of.sources.tolist())
    assert stays | {*of.sources.tolist()} == set(range(layout.tokens))
    p = layout.tokens_per_view
    assert (of.sources >= p).all() and (of.sources % p >= special).all()
    assert len(of.protected) == int(protect * layout.tokens)
    in_view = of.destinations[of.destinations >= p] % p
    regions = (grid[0] // 2) * (grid[1] // 2)
    assert len(in_view) == (views - 1) * (special + regions)


def test_gradients_and_operations():
    q, k, v, x = problem(b=1)
    for spec in (FastVGGT(), FastVGGT(ratio=0.3, protect=0)):
        loss = lambda *a, spec=spec: (core(spec)(inputs_of(*a)) ** 2).sum()  # noqa: E731
        grads = quick.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))(q, k, v, x)
        assert all(np.isfinite(g).all() for g in grads)
        assert all(np.abs(g).max() > 0 for g in grads[:3]) and np.abs(grads[3]).max() == 0
    spec = FastVGGT(ratio=0.3, protect=0)
    work = spec.flops(Layouts.both(LAYOUT), D)
    merged = int(0.3 * LAYOUT.tokens)
    assert work["softmax"] == 4 * (LAYOUT.tokens - merged) ** 2 * D
    of = spec.tokens(LAYOUT)

    def compared(q, x):
        return merge_tokens(matched(x, of), (q,), of, merged)

    assert products(compared, q, x) == (N * work["selection"], 0)


def test_wrong_settings_are_refused_by_name():
    for settings_, message in (
        ({"ratio": 1.5}, r"fastvggt: ratio must be in \[0, 1\], got 1.5"),
        ({"protect": 1.0}, r"protect must be in \[0, 1\), got 1.0"),
        ({"seed": -1}, r"seed must be at least 0, got -1"),
        ({"inner": "sla"}, r"setting of fastvggt 'inner' is not known"),
    ):
        with pytest.raises(InputError, match=message):
            plan("fastvggt", **settings_)
    with pytest.raises(InputError, match=r"inner=fastvggt reduces the tokens of all views itself"):
        parse_plan("key_views(inner=fastvggt)")
    assert plan_name(plan("fastvggt")) == "fastvggt(ratio=0.9)"
