"""Window attention: kernels' code run on a CPU, their lowering to CUDA, and what is refused."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lite3r_jax.attention import window_selection
from lite3r_jax.attention.key_views import KeyViews
from lite3r_jax.attention.presets import parse_plan
from lite3r_jax.attention.speed3r import Speed3R
from lite3r_jax.attention.strategy import Layouts, TokenLayout
from lite3r_jax.kernels.window_attention.api import OPERATOR, window_attention
from lite3r_jax.kernels.window_attention.blocked import window_attention_blocked
from lite3r_jax.kernels.window_attention.check import CASES, problem, wrong
from lite3r_jax.kernels.window_attention.limits import WindowCall
from lite3r_jax.kernels.window_attention.pallas_triton import window_attention_triton
from lite3r_jax.layers.attention import Attention
from lite3r_jax.layers.rope import rope_table, view_positions
from tests.kernels.devices import described_gpu, proven_gpu

slow = pytest.mark.slow
interpreted = functools.partial(window_attention_triton, interpret=True)
SHORT = CASES[:-1]


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=slow)])
@pytest.mark.parametrize(
    "case",
    [*SHORT[:1], *(pytest.param(case, marks=slow) for case in SHORT[1:])],
    ids=lambda case: case.name,
)
def test_kernels_equal_the_definition_in_float64(case, dtype):
    assert wrong(interpreted, case, dtype) is None


@slow
@pytest.mark.parametrize("case", SHORT, ids=lambda case: case.name)
def test_the_plain_form_equals_the_definition_in_float64(case):
    assert wrong(window_attention_blocked, case, "float32") is None


def layer(spec, layout):
    """Values and gradients of a layer with that attention, by its parameters and its input."""
    draw, rngs = nnx.initializers.normal(0.3), nnx.Rngs(1)
    attn = Attention(128, 2, qk_norm=True, kernel_init=draw, rngs=rngs)
    core = spec.build(heads=2, head_dim=64, param_dtype=jnp.float32, rngs=rngs)
    getattr(core, "inner", core).gate.kernel.set_value(draw(rngs.params(), (128, 4)))
    parts, state = nnx.split((attn, core))
    rope = rope_table(view_positions(layout), 64)
    rng = np.random.default_rng(0)
    x, up = (rng.standard_normal((1, layout.tokens, 128)).astype(np.float32) for _ in range(2))

    def objective(state, x):
        attn, core = nnx.merge(parts, state)
        out = attn(x, core, Layouts.both(layout), rope, core.spec.context(x, layout))
        return (out * up).sum(), out

    return jax.jit(jax.value_and_grad(objective, argnums=(0, 1), has_aux=True))(state, x)


@slow
@pytest.mark.parametrize(
    "spec",
    [
        KeyViews("stride", every=2, inner=Speed3R(4, 3)),
        Speed3R(8, 1),
        Speed3R(4, 2, always=0),
    ],
    ids=lambda spec: spec.name,
)
def test_a_layer_with_kernels_is_that_with_the_plain_form(spec, monkeypatch):
    """Grids that windows do not divide, special tokens, views that all see, fewer keys."""
    layout = TokenLayout(3, 2, (6, 9), "global")
    plain = layer(spec, layout)

    def with_kernels(*args, implementation, **settings):
        assert implementation == "auto"
        return interpreted(*args, **settings)

    monkeypatch.setattr(window_selection, "window_attention", with_kernels)
    (got, wanted) = (jax.tree.leaves(x) for x in (layer(spec, layout), plain))
    for x, y in zip(got, wanted, strict=True):
        np.testing.assert_allclose(x, y, atol=2e-5 * float(np.abs(y).max()))


@pytest.mark.filterwarnings("ignore:.*Pallas Triton.*:DeprecationWarning")
@pytest.mark.parametrize("edge", [8, pytest.param(4, marks=slow)])
def test_lowers_to_cuda_at_the_size_of_100_views(edge):
    """Scores of windows and pairs of tokens are in no array; gradients too."""
    layout = TokenLayout(100, 5, (37, 37), "global")
    of = Speed3R(edge).selection(layout, layout)
    windows = len(of.query.tokens)

    def both(q, k, v, qc, kc, vc, up):
        run = functools.partial(of.attend, implementation="auto")
        o, pull = jax.vjp(lambda q, k, v: run(q, k, v, (qc, kc, vc))[0], q, k, v)
        return o, *pull(up)

    x = jax.ShapeDtypeStruct((1, layout.tokens, 16, 64), "bfloat16")
    pooled = jax.ShapeDtypeStruct((1, windows, 16, 64), "bfloat16")
    with proven_gpu():
        lowered = jax.jit(both).trace(x, x, x, pooled, pooled, pooled, x)
        text = lowered.lower(lowering_platforms=("cuda",)).as_text()
    names = set(re.findall(r'__gpu\$xla\.gpu\.triton.*?\bname = "(\w+)"', text))
    choice = {"block_map_maxima", "block_map_tiles", "block_map_among"}
    assert names == choice | KERNELS
    assert f"{windows}x{windows}x" not in text and f"x{layout.tokens}x{layout.tokens}x" not in text


KERNELS = {
    f"{of}_{what}"
    for of in ("window", "window_all")
    for what in ("forward", "query_gradient", "key_gradient")
}


def test_is_chosen_where_it_is_proven_and_named():
    spec, call = Speed3R(8), WindowCall(64, 64, "bfloat16")
    assert spec.describe("float32", 64) == "speed3r, window 8, top 32 (blocked)"
    with described_gpu():
        assert spec.choose(64, "bfloat16") == "blocked", "nothing was proven there"
        assert Speed3R(8, implementation="triton").choose(64, "bfloat16") == "triton"
    with proven_gpu():
        assert spec.describe("bfloat16", 64) == "speed3r, window 8, top 32 (triton)"
        assert OPERATOR.choose("auto", call) == "triton"
        assert Speed3R(2).choose(64, "bfloat16") == "blocked"
        with pytest.raises(
            ValueError, match=r"head dim 32 is not one of .*; reference, blocked can"
        ):
            Speed3R(8, implementation="triton").choose(32, "bfloat16")
        with pytest.raises(ValueError, match="windows of 25 tokens are not of 16 or 64"):
            Speed3R(5, implementation="triton").choose(64, "bfloat16")
    with pytest.raises(ValueError, match="for NVIDIA GPUs and this is cpu"):
        Speed3R(8, implementation="triton").describe("float32", 64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": np.s_[:, :, :1]}, r"expected q, k, v as \[B, T, N, D\]"),
        ({"ids": np.s_[:, :, :1]}, r"expected ids as \[B, N, Nq, K\] .* 5 windows"),
        ({"k_windows": np.s_[:, :4]}, "windows of queries have 16 places and those of keys 4"),
        ({"v": "int32"}, "q, k, v need one float dtype"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change, message):
    (q, k, v, _), settings = problem(CASES[0], "float32")
    args = {"q": q, "k": k, "v": v, **settings}
    for name, part in change.items():
        args[name] = args[name].astype(part) if isinstance(part, str) else args[name][part]
    with pytest.raises(ValueError, match=message):
        window_attention(**args)


def test_an_unknown_form_is_refused_in_a_plan():
    with pytest.raises(Exception, match="unknown implementation 'tritn'"):
        parse_plan("speed3r(implementation=tritn)")
