"""The published schedule of Spark3R by layer and number of views, and what it computes."""

import functools
import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import lite3r_jax
from lite3r_jax.attention.dense import Dense, dense_attention
from lite3r_jax.attention.key_views import KeyViews, farthest_views
from lite3r_jax.attention.plan import Plan, plan_from_json, plan_to_json
from lite3r_jax.attention.presets import parse_plan, plan, plan_name
from lite3r_jax.attention.query_merging import MergeQueries
from lite3r_jax.attention.sla import SLA
from lite3r_jax.attention.spark3r import Spark3R
from lite3r_jax.attention.strategy import AttentionInputs, Layouts, TokenLayout
from lite3r_jax.cli.lite3r import main
from lite3r_jax.errors import InputError
from lite3r_jax.exports.npz import read_npz
from lite3r_jax.weights.load import load
from tests.attention import quick

LAYOUT = TokenLayout(24, 2, (2, 3), "global")
N, D = 2, 8
DEFAULT = Spark3R()
PLAIN = Dense("reference")


def scene(views, has_reference=True):
    return TokenLayout(views, 2, (2, 3), "global", has_reference=has_reference)


def at(views, layer, depth=24, spec=DEFAULT):
    """(query factor, key factor, views that give keys) of a layer."""
    here = spec.resolve("global", layer, depth, views)
    return here.query_factor, here.key_factor, len(here.kept(scene(views)))


@pytest.mark.parametrize(
    "views,q,k,sensitive,rest",
    [
        (50, 1, 1, 50, 17), (100, 1, 1, 100, 34), (101, 2, 3, 34, 12), (200, 2, 5, 40, 14),
        (300, 2, 8, 38, 13), (301, 3, 8, 38, 13), (500, 3, 13, 39, 13), (501, 4, 13, 39, 13),
        (750, 4, 19, 40, 14), (1000, 4, 25, 40, 14),
    ],
)  # fmt: skip
def test_the_published_table(views, q, k, sensitive, rest):
    for layer in range(24):
        times, kept = (1, sensitive) if 11 <= layer <= 16 else (3, rest)
        assert at(views, layer) == (q, times * k, kept)


def test_sensitive_layers_of_every_backbone():
    def sensitive(depth):
        return [layer for layer in range(depth) if at(100, layer, depth)[1] == 1]

    assert sensitive(24) == sensitive(18) == [*range(11, 17)]
    assert sensitive(14) == [*range(3, 13)]
    assert sensitive(8) == [*range(8)], "nobody has looked"


@settings(deadline=None)
@given(st.integers(1, 1200), st.integers(0, 23), st.integers(1, 5), st.booleans())
def test_every_schedule_keeps_the_reference_view_and_small_scenes_whole(views, layer, others, own):
    spec = Spark3R(others=others, sensitive=(0, 1) if own else None)
    here = spec.resolve("global", layer, 24, views)
    kept = here.kept(scene(views))
    assert kept[0] == 0 and sorted(set(kept)) == list(kept) and kept[-1] < views
    assert views > 10 or kept == tuple(range(views))
    assert 1 <= here.query_factor <= 4
    if views > 20:  # of every (40 others)-th at the most, rounded up
        assert len(kept) >= min(views, 40) // (2 * others)
    diverse = replace(here, choose="diverse")
    assert len(diverse.kept(scene(views))) == len(kept) and diverse.kept(scene(views))[0] == 0
    equal = diverse.kept(scene(views, has_reference=False))
    assert len(equal) == len(kept) and set(equal) == ({-1} if here.key_factor > 1 else {*kept})


def test_the_bound_for_few_views_changes_nothing_from_21_views_on():
    free = [at(views, 0)[1] for views in (3, 10, 11, 20, 21, 100)]
    assert free == [1, 1, 2, 2, 3, 3]
    assert at(8, 0, spec=Spark3R(key_factor=2)) == (1, 6, 2), "a number is taken at its word"


@functools.cache
def compiled(spec):
    here = spec.resolve("global", 0, 24, LAYOUT.views)
    core = spec.build(heads=N, head_dim=D, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
    core.adopt(here)

    def run(q, k, v, x):
        return core(AttentionInputs(q, k, v, Layouts.both(LAYOUT), spec.context(x, LAYOUT)))

    return quick.jit(run)


def problem():
    rng = np.random.default_rng(0)
    qkv = rng.standard_normal((3, 1, LAYOUT.tokens, N, D)).astype(np.float32)
    return *qkv, rng.standard_normal((1, LAYOUT.tokens, N * D)).astype(np.float32)


def test_both_sides_are_those_of_their_strategies():
    q, k, v, x = problem()
    spec = Spark3R(query_factor=2, key_factor=2, group=5, inner=PLAIN)
    same = MergeQueries(2, 5, inner=KeyViews("stride", every=6, inner=PLAIN))
    core = same.build(heads=N, head_dim=D, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
    want = quick.jit(lambda *qkv: core(AttentionInputs(*qkv, Layouts.both(LAYOUT))))(q, k, v)
    np.testing.assert_allclose(compiled(spec)(q, k, v, x), want, atol=1e-6)
    here = spec.resolve("global", 0, 24, LAYOUT.views)
    layouts = Layouts.both(LAYOUT)
    assert here.flops(layouts, D) == same.flops(layouts, D)
    loss = jax.grad(lambda *a: (compiled(spec).__wrapped__(*a) ** 2).sum(), argnums=(0, 1, 2))
    grads = quick.jit(loss)(q, k, v, x)
    assert all(np.isfinite(g).all() and np.abs(g).max() > 0 for g in grads)


def test_without_reduction_it_is_the_inner_strategy_bit_for_bit():
    q, k, v, x = problem()
    spec = Spark3R(query_factor=1, key_factor=1, others=1)
    np.testing.assert_array_equal(compiled(spec)(q, k, v, x), quick.jit(dense_attention)(q, k, v))


def test_diverse_views_are_as_many_and_nested():
    q, k, v, x = problem()
    spec = Spark3R(
        choose="diverse", query_factor=1, inner=PLAIN
    )  # 8 of 24 views in layers like this one
    features = x.reshape(1, 24, -1, N * D)[:, :, LAYOUT.special :].mean(2)
    ids = np.sort(np.asarray(farthest_views(jnp.asarray(features), 8))[0])
    cut = [a.reshape(1, 24, -1, N, D)[:, ids].reshape(1, -1, N, D) for a in (k, v)]
    np.testing.assert_allclose(compiled(spec)(q, k, v, x), dense_attention(q, *cut), atol=2e-6)
    assert not spec.resolve("global", 0, 24, 1000).views_in_order


def test_of_equal_views_all_have_queries_that_are_merged():
    here = Spark3R(query_factor=2).resolve("global", 0, 18, 6)
    with_one, without = (here.flops(Layouts.both(scene(6, one)), D) for one in (True, False))
    tokens = 6 * (2 + 6)
    assert with_one["softmax"] == 4 * (8 + 5 * (2 + 3)) * tokens * D
    assert without["softmax"] == 4 * 6 * (2 + 3) * tokens * D


def test_which_schedules_need_views_in_order():
    def needs(spec, views):
        return any(spec.resolve("global", i, 24, views).views_in_order for i in range(24))

    assert [needs(Spark3R(), views) for views in (8, 10, 11, 300)] == [False, False, True, True]
    diverse = Spark3R(choose="diverse")
    assert not needs(diverse, 100) and needs(diverse, 101), "queries are merged"


@pytest.mark.parametrize(
    "views,sensitive,rest,matching",
    [
        (100, 77.3, 26.3, 0), (200, 30.9, 10.8, 3.9), (300, 44.1, 15.1, 5.8),
        (500, 50.3, 16.8, 8.6), (1000, 77.3, 27.1, 14.5),
    ],
)  # fmt: skip
def test_operations_of_a_layer_of_vggt_follow_the_cost_law(views, sensitive, rest, matching):
    """4 (T / r_Q) (F P) C, and 2 S G P^2 C (r - 1) / r^2 for the comparison, in 10^12."""
    layouts = Layouts.both(TokenLayout(views, 5, (37, 37), "global"))
    for layer, wanted in ((12, sensitive), (0, rest)):
        work = DEFAULT.resolve("global", layer, 24, views).flops(layouts, 64)
        # one view and the special tokens are not merged, which the law leaves out
        assert 16e-12 * work["softmax"] == pytest.approx(wanted, rel=0.025)
        assert 16e-12 * work.get("selection", 0) == pytest.approx(matching, rel=0.02, abs=0.01)


def test_sparse_attention_within_and_what_is_refused():
    spec = parse_plan("spark3r(query_factor=1,inner=sla(keep=0.1))").at("global", 0)
    here = spec.resolve("global", 0, 24, LAYOUT.views)
    work = here.flops(Layouts.both(LAYOUT), D)
    assert work["linear"] > 0 and work["softmax"] < SLA(keep=0.1).flops(
        Layouts.both(LAYOUT), D)["softmax"]  # fmt: skip
    for text, message in (
        ("spark3r(inner=sla)", r"spark3r: inner=sla needs queries .* set query_factor=1, or"),
        ("spark3r(inner=key_views(count=2))", r"inner=key_views reduces the tokens of all views"),
        ("spark3r(query_factor=0)", r"spark3r: query_factor must be 1 to 4, got 0"),
        ("spark3r(query_factor=9)", r"query_factor must be 1 to 4, got 9"),
        ("spark3r(key_factor=0)", r"spark3r: key_factor must be at least 1, got 0"),
        ("spark3r(others=0)", r"spark3r: others must be at least 1, got 0"),
        ("spark3r(group=0)", r"group must be at least 1, got 0"),
        ("spark3r_camera", r"'spark3r_camera': spark3r is for global attention, not for camera"),
        ("spark4r", r"'spark4r' is not known; did you mean 'spark3r'"),
    ):
        with pytest.raises(InputError, match=message):
            parse_plan(text)
    sites = {"patch": 24, "frame": 14, "global": 14, "camera": 4}
    with pytest.raises(InputError, match=r"spark3r: sensitive has 14, .* are 0 to 13; a plan fits"):
        plan("spark3r", sensitive=(11, 12, 13, 14)).check(sites)
    with pytest.raises(InputError, match=r"spark3r is for global attention, not for patch"):
        Plan(default=Spark3R()).check(sites)
    core = Spark3R().build(heads=N, head_dim=D, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
    q = jnp.zeros((1, LAYOUT.tokens, N, D))
    with pytest.raises(ValueError, match="call resolve first"):
        core(AttentionInputs(q, q, q, Layouts.both(LAYOUT)))


def test_text_and_file():
    assert parse_plan("spark3r") == plan("spark3r_global") == plan("spark3r")
    assert plan_name(plan("spark3r", choose="diverse")) == "spark3r(choose=diverse)"
    here = plan("spark3r", sensitive=(1, 2), inner=SLA(keep=0.2), query_factor=1, layers=(0, 2))
    assert parse_plan(plan_name(here)) == here == plan_from_json(plan_to_json(here))


def test_photos_in_no_order_are_reconstructed_with_a_warning(tmp_path, caplog):
    (tmp_path / "photos").mkdir()
    for name in ("door", "garden", "kitchen", "stairs"):
        pixels = np.random.default_rng(len(name)).integers(0, 256, (56, 56, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{name}.png")
    text = "spark3r(query_factor=2,key_factor=2,group=2)"
    words = [
        "reconstruct", tmp_path / "photos", "--weights", "vggt-tiny", "--attention", text,
        "--images.size", 56, "--formats", "npz", "--output", tmp_path / "out",
    ]  # fmt: skip
    assert main([str(word) for word in words]) == 0
    scene = read_npz(tmp_path / "out" / "predictions.npz")
    assert scene.depth.shape == (4, 56, 56) and (scene.depth > 0).all()
    assert "photos: attention spark3r takes photos that follow one another" in caplog.text
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["model"]["plan"] == text


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["vggt", "da3", "pi3"])
def test_one_compilation_for_all_scenes_of_so_many_views(
    backbone, tiny_dir, tiny_da3_dir, tiny_pi3_dir
):
    weights = {"vggt": tiny_dir, "da3": tiny_da3_dir, "pi3": tiny_pi3_dir}[backbone]
    text = "spark3r(query_factor=2,key_factor=2,group=2,choose=diverse)"
    model = load(weights, heads=("camera", "depth"), plan=parse_plan(text))
    graph, state = nnx.split(model)
    traced = []

    @jax.jit
    def run(state, images):
        traced.append(images.shape)
        return nnx.merge(graph, state)(images)[0].depth

    rng = np.random.default_rng(0)
    for views in (4, 4, 5):
        depth = run(state, rng.random((1, views, 28, 28, 3), np.float32))
        assert np.isfinite(depth).all()
    assert [shape[1] for shape in traced] == [4, 5]


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        "spark3r(query_factor=2,key_factor=2,group=2)",
        "spark3r(query_factor=1,key_factor=2,inner=sla(keep=0.3,block=4))",
        "key_views(count=2,inner=sla(keep=0.3,block=4))",
        "fastvggt",
    ],
)
def test_float8_weights_go_with_every_reduction(text):
    images = np.random.default_rng(0).random((1, 4, 56, 56, 3), np.float32)
    exact, low = (
        np.asarray(lite3r_jax.load("vggt-tiny", attention=text, precision=name)(images)[0].depth)
        for name in ("float32", "fp8_weight_only")
    )
    assert 0 < np.abs(low / exact - 1).mean() < 0.1
