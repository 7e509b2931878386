"""Attention to the keys of some views: what is kept, what does not matter any more, by schedule."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from lite3r_jax.attention.dense import Dense, dense_attention
from lite3r_jax.attention.key_views import KeyViews, farthest_views
from lite3r_jax.attention.plan import Plan, Rule
from lite3r_jax.attention.presets import parse_plan, plan, plan_name, plan_names
from lite3r_jax.attention.sla import SLA
from lite3r_jax.attention.strategy import AttentionInputs, Layouts, TokenLayout
from lite3r_jax.errors import InputError
from lite3r_jax.weights.load import load
from tests.attention import quick
from tests.benchmarking.jaxpr_products import products

LAYOUT = TokenLayout(6, 2, (3, 5), "global")
EQUAL = replace(LAYOUT, has_reference=False)
B, N, D = 2, 2, 8
PLAIN = Dense("reference")
SITES = {"patch": 2, "frame": 9, "global": 9, "camera": 2}


def problem(layout=LAYOUT, seed=0):
    """q, k, v [B, T, N, D] and tokens that enter a stack [B, T, C]."""
    rng = np.random.default_rng(seed)
    qkv = rng.standard_normal((3, B, layout.tokens, N, D)).astype(np.float32)
    return *qkv, rng.standard_normal((B, layout.tokens, N * D)).astype(np.float32)


def by_view(x, layout=LAYOUT):
    return x.reshape(B, layout.views, layout.tokens_per_view, *x.shape[2:])


@functools.cache
def compiled(spec, layout):
    core = spec.build(heads=N, head_dim=D, param_dtype=jnp.float32, rngs=nnx.Rngs(0))

    def run(q, k, v, x):
        return core(AttentionInputs(q, k, v, Layouts.both(layout), spec.context(x, layout)))

    return quick.jit(run)


def attend(spec, q, k, v, x, layout=LAYOUT):
    return np.asarray(compiled(spec, layout)(q, k, v, x))


def test_all_views_kept_is_the_inner_strategy_bit_for_bit():
    q, k, v, x = problem()
    dense = np.asarray(quick.jit(dense_attention)(q, k, v))
    for spec in (KeyViews("stride", every=1), KeyViews(count=6), KeyViews(count=25)):
        np.testing.assert_array_equal(attend(spec, q, k, v, x), dense)


def test_stride_is_dense_attention_to_every_rth_view():
    q, k, v, x = problem()
    some = [by_view(a)[:, ::4].reshape(B, -1, N, D) for a in (k, v)]
    np.testing.assert_allclose(
        attend(KeyViews("stride", every=4, inner=PLAIN), q, k, v, x),
        dense_attention(q, *some),
        atol=2e-6,
    )


@pytest.mark.parametrize(
    "spec", [KeyViews("stride", every=5, inner=PLAIN), KeyViews(count=2, inner=PLAIN)]
)
def test_views_with_the_same_keys_give_dense_attention(spec):
    q, k, v, x = problem()
    k, v = (np.repeat(by_view(a)[:, :1], 6, 1).reshape(a.shape) for a in (k, v))
    np.testing.assert_allclose(attend(spec, q, k, v, x), dense_attention(q, k, v), atol=3e-6)


def chosen_of(x, count):
    features = by_view(x)[:, :, LAYOUT.special :].mean(2)
    return np.sort(np.asarray(farthest_views(features, count)), axis=1)


def test_diverse_views_are_those_of_the_sampling_for_every_scene():
    q, k, v, x = problem()
    ids = chosen_of(x, 3)
    assert (ids[:, 0] == 0).all() and (ids[0] != ids[1]).any()
    some = [by_view(a)[np.arange(B)[:, None], ids].reshape(B, -1, N, D) for a in (k, v)]
    np.testing.assert_allclose(
        attend(KeyViews(count=3, inner=PLAIN), q, k, v, x), dense_attention(q, *some), atol=2e-6
    )
    # what nobody attends to does not matter; what is attended to does
    for kept in (True, False):
        changed = by_view(v).copy()
        for b in range(B):
            changed[b, [s for s in range(6) if (s in ids[b]) == kept]] += 1
        same = attend(KeyViews(count=3, inner=PLAIN), q, k, changed.reshape(v.shape), x)
        assert np.array_equal(same, attend(KeyViews(count=3, inner=PLAIN), q, k, v, x)) == (
            not kept
        )


def test_sampling_is_the_textbook_one_and_its_prefixes_are_nested():
    f = np.random.default_rng(1).standard_normal((1, 9, 4))
    unit = f[0] / np.linalg.norm(f[0], axis=1, keepdims=True)
    distance = (unit @ unit.T).max() - unit @ unit.T
    chosen = [0]
    while len(chosen) < 9:
        chosen.append(max(set(range(9)) - {*chosen}, key=lambda s: distance[s, chosen].min()))
    for count in (1, 4, 9):
        assert farthest_views(jnp.asarray(f, jnp.float32), count).tolist() == [chosen[:count]]


def test_every_cluster_is_met_before_one_is_met_twice():
    rng = np.random.default_rng(2)
    centers = np.linalg.qr(rng.standard_normal((8, 8)))[0]
    label = np.repeat(np.arange(8), 3)
    f = centers[label] + 0.01 * rng.standard_normal((24, 8))
    order = np.asarray(farthest_views(jnp.asarray(f[None]), 24))[0]
    assert len(set(label[order[:8]])) == 8 and sorted(order) == list(range(24))


chosen = jax.jit(farthest_views, static_argnums=(1, 2))


@settings(deadline=None, max_examples=50)
@given(st.permutations(range(8)), st.integers(0, 100), st.booleans())
def test_the_choice_does_not_depend_on_the_order_of_photos(order, seed, equal):
    f = np.random.default_rng(seed).standard_normal((1, 8, 16)).astype(np.float32)
    order = np.array(order)
    reference = (None, None) if equal else (int(order[0]), 0)
    here = np.asarray(chosen(f, 4, reference[0]))[0].tolist()
    there = np.asarray(chosen(f[:, order], 4, reference[1]))[0]
    assert here == order[there].tolist()


def test_equal_views_begin_with_the_one_that_is_most_like_the_others():
    f = np.random.default_rng(3).standard_normal((2, 9, 5)).astype(np.float32)
    unit = f / np.linalg.norm(f, axis=2, keepdims=True)
    likeness = np.einsum("bsd,btd->bs", unit, unit)
    first = likeness.argmax(axis=1)
    assert (first > 0).all(), "not by chance the first view"
    assert np.array_equal(chosen(f, 3, None)[:, 0], first)
    for b, view in enumerate(first):
        assert np.array_equal(chosen(f[b : b + 1], 3, int(view))[0], chosen(f, 3, None)[b])


def test_equal_views_that_change_places_take_their_outputs_along():
    q, k, v, x = problem(EQUAL)
    spec, order = KeyViews(count=2, inner=PLAIN), [3, 5, 0, 4, 1, 2]
    moved = [by_view(a)[:, order].reshape(a.shape) for a in (q, k, v, x)]
    want = by_view(attend(spec, q, k, v, x, EQUAL))[:, order]
    np.testing.assert_allclose(by_view(attend(spec, *moved, EQUAL)), want, atol=2e-6)
    with_reference = by_view(attend(spec, q, k, v, x))[:, order]
    assert np.abs(by_view(attend(spec, *moved)) - with_reference).max() > 0.01


def test_own_views_and_steps_of_patches():
    q, k, v, x = problem()
    alone = [by_view(a).reshape(-1, LAYOUT.tokens_per_view, N, D) for a in (q, k, v)]
    want = dense_attention(*alone).reshape(q.shape)
    np.testing.assert_allclose(attend(KeyViews("own", inner=PLAIN), q, k, v, x), want, atol=2e-6)

    rows = LAYOUT.special + np.arange(15).reshape(3, 5)[::2, ::2].reshape(-1)
    kept = [0, 1, *rows]
    some = [by_view(a)[:, ::4][:, :, kept].reshape(B, -1, N, D) for a in (k, v)]
    np.testing.assert_allclose(
        attend(KeyViews("stride", every=4, patch_step=2, inner=PLAIN), q, k, v, x),
        dense_attention(q, *some),
        atol=2e-6,
    )
    some = [a[:, kept] for a in alone[1:]]
    np.testing.assert_allclose(
        attend(KeyViews("own", patch_step=2, inner=PLAIN), q, k, v, x),
        dense_attention(alone[0], *some).reshape(q.shape),
        atol=2e-6,
    )


def test_the_published_schedule_by_layer():
    spec = plan("gotohunt").at("global", 0)
    kinds = [spec.resolve("global", layer, 24, 100) for layer in range(24)]
    assert [x.choose for x in kinds] == ["own"] * 2 + ["diverse"] * 22
    assert [x.patch_step for x in kinds] == [1] * 2 + [3] * 7 + [1] * 15
    assert {x.count for x in kinds} == {25}


def test_sparse_attention_to_the_kept_views_is_sparse_attention_without_the_others():
    q, k, v, x = problem()
    inner = SLA(keep=0.4, block=4, init=0.3, implementation="reference")
    views = [0, 4]
    some = [by_view(a)[:, ::4].reshape(B, -1, N, D) for a in (k, v)]
    core = inner.build(heads=N, head_dim=D, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
    layouts = Layouts(LAYOUT, LAYOUT.keep(views))
    want = quick.jit(lambda *qkv: core(AttentionInputs(*qkv, layouts)))(q, *some)
    got = attend(KeyViews("stride", every=4, inner=inner), q, k, v, x)
    np.testing.assert_allclose(got, want, atol=2e-6)
    assert np.abs(got - attend(KeyViews("stride", every=4), q, k, v, x)).max() > 0.01
    assert LAYOUT.keep(KeyViews(count=3).kept(LAYOUT)).reference == 0, "known though data decide"
    assert EQUAL.keep(KeyViews(count=3).kept(EQUAL)).reference is None


def test_the_linear_part_may_have_the_views_that_are_dropped():
    q, k, v, x = problem()
    over = {
        name: SLA(keep=0.4, block=4, init=0.3, linear_over=name, implementation="reference")
        for name in ("kept", "all")
    }
    kept, every = (KeyViews("stride", every=4, inner=inner) for inner in over.values())
    cores = [s.build(heads=N, head_dim=D, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
             for s in (kept, every)]  # fmt: skip
    weight = np.asarray(cores[1].inner.proj_lin[...])
    features = [np.where(a > 0, a + 1, np.exp(np.minimum(a, 0))) for a in (q, k)]

    def linear(views):
        some, values = (by_view(a)[:, views].reshape(B, -1, N, D) for a in (features[1], v))
        weights = np.einsum("bqnd,bknd->bnqk", features[0], some)
        total = weights.sum(-1)[..., None] + 1e-6
        return np.einsum("bnqk,bknd->bqnd", weights / total, values) @ weight

    want = attend(kept, q, k, v, x) - linear([0, 4]) + linear(range(6))
    got = attend(every, q, k, v, x)
    np.testing.assert_allclose(got, want, atol=1e-5)
    changed = by_view(v).copy()
    changed[:, 2] += 1  # a view that is dropped
    changed = changed.reshape(v.shape)
    assert np.abs(attend(every, q, k, changed, x) - got).max() > 0.01
    np.testing.assert_array_equal(attend(kept, q, k, changed, x), attend(kept, q, k, v, x))
    whole = KeyViews("stride", every=1, inner=over["all"])
    plain = KeyViews("stride", every=1, inner=over["kept"])
    np.testing.assert_array_equal(attend(whole, q, k, v, x), attend(plain, q, k, v, x))
    blocked = replace(every, inner=replace(over["all"], implementation="blocked"))
    core = blocked.build(heads=N, head_dim=D, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
    outside, inside = products(
        lambda q, k: core(AttentionInputs(q, k, k, Layouts.both(LAYOUT))), q[:1], k[:1]
    )
    counted = every.flops(Layouts.both(LAYOUT), D)
    assert outside == N * (counted["selection"] + counted["linear"]) and inside > 0
    with pytest.raises(InputError, match=r"linear_over 'all' is for routing 'block', got 'block3'"):
        plan("sla_global", routing="block3", linear_over="all")


@pytest.mark.parametrize(
    "spec",
    [
        KeyViews("stride", every=4, patch_step=2, inner=PLAIN),
        KeyViews("own", inner=PLAIN),
        KeyViews(count=3, inner=PLAIN),
    ],
    ids=lambda spec: spec.choose,
)
def test_gradients_and_operations(spec):
    q, k, v, x = problem()
    if spec.choose == "diverse":
        x = np.concatenate([x[:1]] * B)

    def loss(q, k, v):
        return (compiled(spec, LAYOUT).__wrapped__(q, k, v, x) ** 2).sum()

    grads = quick.jit(jax.grad(loss, argnums=(0, 1, 2)))(q, k, v)
    assert all(np.isfinite(g).all() for g in grads)
    used = by_view(np.abs(grads[1])).max(axis=(3, 4)) > 0
    keys = spec.flops(Layouts.both(LAYOUT), D)["softmax"] / (4 * LAYOUT.tokens * D)
    if spec.choose == "own":
        keys *= LAYOUT.views
    assert used[0].sum() == keys, "as many keys have gradients as are counted"
    core = spec.build(heads=N, head_dim=D, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
    shared = spec.context(jnp.asarray(x[:1]), LAYOUT)
    outside, inside = products(
        lambda q: core(AttentionInputs(q, q, q, Layouts.both(LAYOUT), shared)), q[:1]
    )
    assert (outside, inside) == (N * spec.flops(Layouts.both(LAYOUT), D)["softmax"], 0)


def test_wrong_settings_are_refused_by_name():
    for settings_, message in (
        ({"count": 0}, r"key_views: count must be at least 1, got 0"),
        ({"every": 0}, r"key_views: every must be at least 1, got 0"),
        ({"patch_step": -1}, r"patch_step must be at least 1, got -1"),
        ({"choose": "strid"}, r"expected one of diverse, stride, own, got 'strid'; did you mean"),
        ({"inner": KeyViews()}, r"inner=key_views reduces the tokens .* choose dense or sla"),
    ):
        with pytest.raises(InputError, match=message):
            plan("key_views", **settings_)
    with pytest.raises(
        InputError, match=r"'key_views_frame': key_views is for global attention, not for frame"
    ):
        parse_plan("key_views_frame")
    assert {"key_views", "key_views_global", "gotohunt"} <= {*plan_names()}
    with pytest.raises(InputError, match=r"key_views is for global attention, not for patch atten"):
        Plan(default=KeyViews()).check(SITES)
    with pytest.raises(InputError, match=r"not for frame attention; use key_views_global"):
        Plan((Rule("frame", KeyViews()),)).check(SITES)
    plan("gotohunt").check(SITES)
    few = SITES | {"global": 8}
    with pytest.raises(InputError, match=r"key_views: patch_step_layers has 8, .* are 0 to 7; a"):
        plan("gotohunt").check(few)
    with pytest.raises(ValueError, match="diverse views need the context"):
        spec = KeyViews(count=2)
        q = jnp.zeros((1, LAYOUT.tokens, N, D))
        spec.build(heads=N, head_dim=D, param_dtype=jnp.float32, rngs=nnx.Rngs(0))(
            AttentionInputs(q, q, q, Layouts.both(LAYOUT))
        )


def test_text_of_plans():
    assert plan_name(plan("key_views", count=9)) == "key_views(choose=diverse,count=9)"
    assert plan_name(plan("gotohunt")) == "gotohunt(choose=diverse)"
    text = "key_views(choose=stride,inner=sla(keep=0.1))"
    assert plan_name(parse_plan(text)) == text


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["vggt", "da3", "pi3"])
def test_in_a_model_unchosen_views_are_still_reconstructed(
    backbone, tiny_dir, tiny_da3_dir, tiny_pi3_dir
):
    weights = {"vggt": tiny_dir, "da3": tiny_da3_dir, "pi3": tiny_pi3_dir}[backbone]
    images = np.random.default_rng(0).random((1, 4, 28, 28, 3), np.float32)

    def depth(text, order=(0, 1, 2, 3)):
        model = load(weights, heads=("camera", "depth"), plan=parse_plan(text))
        return np.asarray(model(images[:, list(order)])[0].depth)

    dense, same, fewer = map(depth, ("dense", "key_views(count=4)", "key_views(count=2)"))
    np.testing.assert_array_equal(same, dense)
    assert np.isfinite(fewer).all() and np.abs(fewer - dense).max() > 0
    order = (3, 2, 0, 1) if backbone == "pi3" else (0, 3, 1, 2)  # no view, or the first, is apart
    moved = depth("key_views(count=2)", order)
    np.testing.assert_allclose(moved, fewer[:, list(order)], rtol=2e-4)
