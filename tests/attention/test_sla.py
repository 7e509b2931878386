"""SLA as a strategy: order, protection and routing, against float64 on whole matrices."""

import functools
import re
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lite3r_jax.attention.dense import dense_attention
from lite3r_jax.attention.presets import plan
from lite3r_jax.attention.sla import SLA
from lite3r_jax.attention.strategy import AttentionInputs, Layouts, TokenLayout
from lite3r_jax.attention.windows import blocks
from lite3r_jax.weights.load import load
from tests.kernels.devices import described_gpu, proven_gpu
from tests.kernels.sla.oracle import sla_and_gradients

B, N, D = 2, 2, 16


@dataclass(frozen=True)
class Case:
    """A spec on layouts that its blocks do not divide; queries are those of `cut` if given."""

    spec: SLA
    layout: TokenLayout
    cut: TokenLayout | None = None

    @property
    def layouts(self):
        return Layouts(self.cut or self.layout, self.layout)


SCENE = Case(SLA(keep=0.3, block=8), TokenLayout(3, 2, (5, 7), "global"))
MORE = [
    Case(
        SLA("block3", 0.3, 0.4, block=8, q_block=8, phi="softmax"),
        TokenLayout(3, 3, (6, 9), "global"),
        TokenLayout(2, 1, (3, 9), "global"),
    ),
    Case(SLA(keep=0.5, block=8, phi="relu"), TokenLayout(1, 5, (7, 5), "frame")),
    Case(SLA(keep=0.4, block=8, keep_special=False), TokenLayout(3, 4, (4, 5), "global")),
]


def problem(case):
    """q, k, v, proj_lin and a cotangent."""
    rng = np.random.default_rng(0)
    tokens = [layout.tokens for layout in (case.layouts.query, case.layout, case.layout)]
    q, k, v = (rng.standard_normal((B, t, N, D)).astype(np.float32) for t in tokens)
    w = rng.standard_normal((D, D)).astype(np.float32) / D**0.5
    return q, k, v, w, rng.standard_normal(q.shape).astype(np.float32)


@functools.cache
def attend(case):
    """(q, k, v, proj_lin) -> o, compiled."""
    core = case.spec.build(heads=N, head_dim=D, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
    graph, _ = nnx.split(core)

    def f(q, k, v, w):
        state = nnx.State({"proj_lin": nnx.Param(w)})
        return nnx.merge(graph, state)(AttentionInputs(q, k, v, case.layouts))

    return jax.jit(f)


def labels(layout, block):
    """The block of every token, and the view of every block."""
    cut = blocks(layout, block)
    where = np.argsort(cut.tokens.reshape(-1), kind="stable")[: layout.tokens]
    return where // block, cut.views


def critical(case, q, k):
    """[B, N, Tq, Tk] bool, critical and negligible pairs, by sorting means of blocks."""
    spec = case.spec
    (of_q, q_views), (of_k, k_views) = (
        labels(layout, block)
        for layout, block in ((case.layouts.query, spec.rows), (case.layout, spec.block))
    )

    def means(x, of):
        return np.stack([x[:, of == j].mean(1, dtype=np.float64) for j in range(of.max() + 1)], 2)

    scores = np.einsum("bnid,bnjd->bnij", means(q, of_q), means(k, of_k))
    always = np.zeros(len(k_views), bool)
    if spec.keep_special:
        always = (k_views < 0) | ((k_views == 0) & (case.layout.scope == "global"))
    free = np.flatnonzero(~always)
    top, bottom = max(1, int(spec.keep * len(free))), int(spec.negligible_fraction * len(free))
    ranked = free[np.argsort(-scores[..., free], axis=-1)]
    high, low = np.zeros(scores.shape, bool), np.zeros(scores.shape, bool)
    np.put_along_axis(high, ranked[..., :top], True, -1)
    np.put_along_axis(low, ranked[..., len(free) - bottom :], True, -1)
    high |= always
    if spec.keep_special:
        high[:, :, q_views < 0], low[:, :, q_views < 0] = True, False
    return (x[:, :, of_q][..., of_k] for x in (high, low))


@pytest.mark.parametrize(
    "case", [SCENE, *(pytest.param(case, marks=pytest.mark.slow) for case in MORE)]
)
def test_equals_float64_in_value_and_gradient(case):
    q, k, v, w, up = problem(case)
    high, low = critical(case, q, k)
    assert 0 < high.mean() < 1
    linear = ~(high | low) if case.spec.routing == "block3" else np.ones_like(high)
    wanted = sla_and_gradients(q, k, v, w, high, linear, case.spec.phi, case.spec.eps, up)
    both = jax.jit(lambda *args: (attend(case)(*args), jax.vjp(attend(case), *args)[1](up)))
    o, gradients = both(q, k, v, w)
    for name, got, want in zip(("o", "dq", "dk", "dv", "dw"), (o, *gradients), wanted, strict=True):
        np.testing.assert_allclose(got, want, atol=4e-6 * max(np.abs(want).max(), 1), err_msg=name)


@pytest.mark.parametrize(
    "spec",
    [
        SLA("token", keep_special=False),
        *(
            pytest.param(spec, marks=pytest.mark.slow)
            for spec in (SLA(keep=0.3, block=8), SLA("block3", 0.3, 0.4, block=8))
        ),
    ],
    ids=lambda spec: spec.routing,
)
def test_a_product_with_proj_lin_of_its_own_changes_nothing_in_value_and_gradient(spec):
    """Such products are there to be quantized; a plain one must be what it stands for."""
    case = Case(spec, SCENE.layout)
    *args, up = problem(case)
    core = spec.build(heads=N, head_dim=D, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
    graph, _ = nnx.split(core)
    core.dot_general = jax.lax.dot_general
    apart, _ = nnx.split(core)
    assert apart != graph

    def with_gradients(graph, *args):
        def f(q, k, v, w):
            core = nnx.merge(graph, nnx.State({"proj_lin": nnx.Param(w)}))
            return core(AttentionInputs(q, k, v, case.layouts))

        o, pull = jax.vjp(f, *args)
        return o, *pull(up)

    both = jax.jit(lambda *args: [with_gradients(g, *args) for g in (graph, apart)])
    folded, by_itself = both(*args)
    for name, got, want in zip(("o", "dq", "dk", "dv", "dw"), by_itself, folded, strict=True):
        want = np.asarray(want)
        np.testing.assert_allclose(got, want, atol=4e-6 * max(np.abs(want).max(), 1), err_msg=name)


def change(case, w_scale, token):
    """How much each output [B, T, N] changes when one value does."""
    q, k, v, w, _ = problem(case)
    before = attend(case)(q, k, v, w_scale * w)
    changed = v.copy()  # JAX reads NumPy arrays in place, and later
    changed[:, token] += 1
    return np.abs(attend(case)(q, k, changed, w_scale * w) - before).max(-1)


# Tokens of SCENE: 37 per view, of which the first two are special.
FREE, REFERENCE, SPECIAL = 37 + 20, 20, 2 * 37 + 1


def test_a_dropped_block_reaches_a_query_only_through_the_linear_part():
    q, k, *_ = problem(SCENE)
    high, _ = critical(SCENE, q, k)
    seen = high[..., FREE].transpose(0, 2, 1)
    assert 0 < seen.mean() < 1
    sparse, both = change(SCENE, 0, FREE), change(SCENE, 1, FREE)
    assert (sparse[seen] > 1e-5).all() and (sparse[~seen] == 0).all()
    assert (both > 1e-6).all()


@pytest.mark.parametrize("token", [REFERENCE, SPECIAL])
def test_protected_keys_reach_every_query_by_softmax(token):
    assert (change(SCENE, 0, token) > 1e-5).all()


def test_special_queries_attend_to_everything():
    q, k, v, w, _ = problem(SCENE)
    got = attend(SCENE)(q, k, v, 0 * w)
    want = dense_attention(*map(jnp.asarray, (q, k, v)), "reference")
    special = np.arange(SCENE.layout.tokens) % 37 < 2
    np.testing.assert_allclose(got[:, special], want[:, special], atol=2e-6)
    assert (np.abs(got - want)[:, ~special].max(-1) > 1e-3).mean() > 0.9


def test_permuting_views_permutes_but_for_the_reference_view():
    q, k, v, w, _ = problem(SCENE)
    f = attend(SCENE)

    def moved(x, order):
        return x.reshape(B, 3, 37, N, D)[:, order].reshape(x.shape)

    def error(order):
        got = f(*(moved(x, order) for x in (q, k, v)), w)
        return np.abs(got - moved(np.asarray(f(q, k, v, w)), order)).max()

    assert error([0, 2, 1]) < 2e-6
    assert error([1, 0, 2]) > 1e-3


@pytest.mark.slow
def test_keeping_everything_without_projection_is_dense_attention():
    case = replace(SCENE, spec=replace(SCENE.spec, keep=1.0))
    q, k, v, w, _ = problem(case)
    want = dense_attention(*map(jnp.asarray, (q, k, v)), "reference")
    np.testing.assert_allclose(attend(case)(q, k, v, 0 * w), want, atol=2e-6)


@pytest.mark.parametrize(
    "layout",
    [
        TokenLayout(5, 1, (0, 0), "global"),
        pytest.param(TokenLayout(1, 2, (4, 5), "global"), marks=pytest.mark.slow),
    ],
)
def test_one_view_and_camera_tokens_alone_are_dense(layout):
    """There all keys are protected."""
    case = Case(SLA(keep=0.01, block=8), layout)
    q, k, v, w, _ = problem(case)
    want = dense_attention(*map(jnp.asarray, (q, k, v)), "reference")
    np.testing.assert_allclose(attend(case)(q, k, v, 0 * w), want, atol=2e-6)


def test_at_most_so_many_blocks_are_kept_whatever_their_fraction():
    """As by the fraction that has so many; fewer where the fraction has fewer."""
    args = problem(SCENE)[:4]
    free = int((labels(SCENE.layout, 8)[1] > 0).sum())
    by_fraction, limited = SLA(keep=3 / free + 1e-6, block=8), SLA(keep=0.9, keep_blocks=3, block=8)
    assert limited.budgets(free) == by_fraction.budgets(free) == (3, 0)
    got, wanted = (attend(Case(spec, SCENE.layout))(*args) for spec in (limited, by_fraction))
    np.testing.assert_array_equal(got, wanted)
    assert SLA(keep=0.1, keep_blocks=8).budgets(20) == (2, 0)
    assert SLA("block3", 0.5, 0.3, keep_blocks=4).budgets(20) == (4, 6)


def test_with_a_limit_of_blocks_a_query_costs_the_same_from_some_number_of_views_on():
    def of_a_query(views, spec):
        layout = TokenLayout(views, 0, (37, 37), "global")
        return spec.flops(Layouts.both(layout), 64)["softmax"] / layout.tokens

    limited, by_fraction = SLA(keep=0.1, keep_blocks=64), SLA(keep=0.1)
    assert of_a_query(10, limited) == of_a_query(10, by_fraction)
    assert of_a_query(100, limited) == pytest.approx(of_a_query(1000, limited), rel=1e-6)
    assert of_a_query(1000, by_fraction) > 9 * of_a_query(100, by_fraction)


def test_token_routing_keeps_one_key_of_a_short_sequence():
    """As Lite3R has it in the camera layers."""
    spec = SLA("token", 0.3, keep_special=False)
    case = Case(spec, TokenLayout(2, 1, (0, 0), "global"))
    q, k, v, w, _ = problem(case)
    best = np.einsum("bqnd,bknd->bqnk", q, k).argmax(-1)
    want = np.take_along_axis(v, best[..., None], 1)
    np.testing.assert_allclose(attend(case)(q, k, v, 0 * w), want, atol=1e-6)


def test_projection_starts_as_asked():
    def start(**settings):
        spec = SLA(**settings)
        return spec.build(
            heads=2, head_dim=64, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0)
        ).proj_lin[...]

    assert start().dtype == jnp.bfloat16
    assert np.asarray(start(), np.float32).std() == pytest.approx(1e-3, rel=0.05)
    assert (start(init=0.0) == 0).all()


def test_reports_name_routing_and_kernel():
    assert SLA().describe(jnp.float32, 64) == "sla block, keep 0.3 (blocked)"
    token = SLA("token", 0.3, keep_special=False)
    assert token.describe(jnp.bfloat16, 64) == "sla token, keep 0.3 (reference)"
    with described_gpu():
        assert SLA().describe(jnp.bfloat16, 64) == "sla block, keep 0.3 (blocked)"
    with proven_gpu():
        assert SLA().describe(jnp.bfloat16, 64) == "sla block, keep 0.3 (triton)"
        assert SLA().describe(jnp.bfloat16, 128) == "sla block, keep 0.3 (triton)"
        assert SLA().describe(jnp.bfloat16, 80) == "sla block, keep 0.3 (blocked)"
        assert SLA(block=32).describe(jnp.bfloat16, 64) == "sla block, keep 0.3 (blocked)"
        with pytest.raises(ValueError, match="'triton' cannot run this: head dim 80"):
            SLA(implementation="triton").describe(jnp.bfloat16, 80)


@pytest.mark.filterwarnings("ignore:.*Pallas Triton.*:DeprecationWarning")
def test_on_a_gpu_blocks_are_chosen_and_attended_to_by_kernels():
    layout = TokenLayout(2, 5, (37, 37), "global")
    core = SLA().build(heads=2, head_dim=64, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
    x = jax.ShapeDtypeStruct((1, layout.tokens, 2, 64), jnp.bfloat16)
    with proven_gpu():
        traced = jax.jit(lambda *x: core(AttentionInputs(*x, Layouts.both(layout)))).trace(x, x, x)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    kernels = re.findall(r'__gpu\$xla\.gpu\.triton.*?\bname = "(\w+)"', text)
    assert set(kernels) == {
        "block_map_select", "sla_forward", "sla_linear_state", "sla_linear_project"
    }  # fmt: skip
    assert len(kernels) == 4  # special tokens' queries choose nothing and are with the others
    assert "stablehlo.sort" not in text and "top_k" not in text


@pytest.mark.slow
def test_memory_is_of_one_head_and_grows_with_tokens_not_with_their_square():
    def temporary(views, heads):
        layout = TokenLayout(views, 1, (16, 16), "global")
        core = SLA(keep=0.1).build(
            heads=heads, head_dim=16, param_dtype=jnp.float32, rngs=nnx.Rngs(0)
        )
        x = jax.ShapeDtypeStruct((1, layout.tokens, heads, 16), jnp.float32)
        compiled = (
            jax.jit(lambda *x: core(AttentionInputs(*x, Layouts.both(layout))))
            .lower(x, x, x)
            .compile()
        )
        return compiled.memory_analysis().temp_size_in_bytes

    few, many = temporary(8, 1), temporary(32, 1)
    assert many < 4.5 * few
    assert temporary(32, 8) < 1.5 * many


@pytest.mark.parametrize(
    "settings,message",
    [
        ({"keep": 0}, r"keep must be in \(0, 1\], got 0"),
        ({"keep": 1.1}, "keep must be"),
        ({"keep": float("nan")}, "keep must be"),
        (
            {"negligible_fraction": 1.0, "routing": "block3"},
            r"negligible_fraction must be in \[0, 1\)",
        ),
        ({"negligible_fraction": 0.1}, "negligible_fraction is for routing 'block3'"),
        ({"block": 0}, "block must be at least 1"),
        ({"keep_blocks": 0}, "keep_blocks must be at least 1, or None"),
        (
            {"keep_blocks": 4, "routing": "token", "keep_special": False},
            "keep_blocks is for routing 'block' and 'block3', got 4 for 'token'",
        ),
        ({"q_block": 0}, "q_block must be at least 1"),
        ({"routing": "blocks"}, "routing must be one of token, block, block3, got 'blocks'"),
        ({"phi": "exp"}, "phi must be one of elu1, softmax, relu"),
        ({"eps": -1.0}, "eps must be"),
        ({"init": -1.0}, "init must be"),
        ({"routing": "token"}, "set keep_special=False"),
        ({"implementation": "fast"}, "implementation must be one of auto, .*blocked"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SLA(**settings)


def test_calls_that_do_not_fit_are_refused():
    q, k, v, w, _ = problem(SCENE)
    with pytest.raises(
        ValueError, match=r"queries: need .* as many as the layout has, got 110 for"
    ):
        attend(SCENE)(q[:, 1:], k, v, w)
    with pytest.raises(ValueError, match="expected q, k, v"):
        attend(SCENE)(q, k, v[:, 1:], w)
    none = Case(SLA(), TokenLayout(1, 0, (0, 0), "frame"))
    with pytest.raises(ValueError, match="need at least one token"):
        attend(none)(*problem(none)[:4])
    with pytest.raises(ValueError, match="head_dim must be at least 1"):
        SLA().build(heads=1, head_dim=0, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
    token = Case(SLA("token", 0.3, keep_special=False, implementation="blocked"), SCENE.layout)
    with pytest.raises(ValueError, match=r"'blocked' cannot run this: .* reference can"):
        attend(token)(q, k, v, w)
    with pytest.raises(ValueError, match="'blocked' cannot run this"):
        token.spec.describe(jnp.float32, 64)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sla_global", "sla_paper"])
def test_a_student_that_keeps_everything_predicts_as_its_teacher(tiny_dir, tiny_images, name):
    def predict(attention):
        model = load(tiny_dir, heads=("camera", "depth"), plan=attention)
        return model(jnp.asarray(tiny_images))[0]

    got, want = predict(plan(name, keep=1.0, init=0.0)), predict(None)
    np.testing.assert_allclose(got.pose_enc, want.pose_enc, atol=1e-5)
    np.testing.assert_allclose(got.depth, want.depth, atol=1e-5, rtol=1e-5)
