"""Speed3R's attention by its meaning: an oracle in loops, what matters to whom, bad settings."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lite3r_jax.attention.dense import Dense
from lite3r_jax.attention.key_views import KeyViews
from lite3r_jax.attention.plan import plan_from_json, plan_to_json, strategies_of, trained_alike
from lite3r_jax.attention.presets import parse_plan, plan, plan_name
from lite3r_jax.attention.speed3r import Speed3R
from lite3r_jax.attention.strategy import Layouts, TokenLayout
from lite3r_jax.attention.window_selection import pooled, windows_of
from lite3r_jax.errors import InputError
from lite3r_jax.layers.attention import Attention
from lite3r_jax.layers.rope import rope_table, view_positions
from tests.attention.quick import jit
from tests.benchmarking.jaxpr_products import is_jaxpr, products

N, D = 2, 8
C = N * D
# 2 x 2 windows do not divide it; views 0 and 2 are attended to by all
LAYOUT = TokenLayout(4, 2, (3, 5), "global")
SPEC = Speed3R(window=2, top=2, always=2)
EQUAL_VIEWS = TokenLayout(4, 2, (3, 5), "global", has_reference=False)


@functools.cache
def modules(spec):
    """A layer with random weights, and a core whose gates differ from token to token."""
    draw, rngs = nnx.initializers.normal(0.5), nnx.Rngs(1)
    attn = Attention(C, N, qk_norm=True, kernel_init=draw, rngs=rngs)
    core = spec.build(heads=N, head_dim=D, param_dtype=jnp.float32, rngs=rngs)
    inner = getattr(core, "inner", core)
    if hasattr(inner, "gate"):
        inner.gate.kernel.set_value(draw(rngs.params(), (C, 2 * N)))
    return attn, core


def gated(core, compression, selection):
    """Gates that are the same for every token."""
    core.gate.kernel.set_value(jnp.zeros((C, 2 * N)))
    logits = [200.0 if gate else -200.0 for gate in (compression, selection)]
    core.gate.bias.set_value(jnp.tile(jnp.asarray(logits), N))
    return core


@functools.cache
def compiled(spec, layout, gates=None):
    attn, core = modules(spec)
    if gates is not None:
        core = gated(nnx.clone(core), *gates)
    rope = rope_table(view_positions(layout), D)

    def run(x):
        context = core.spec.context(x, layout)
        return attn(x, core, Layouts.both(layout), rope, context)

    return jit(run)


def attend(x, spec=SPEC, layout=LAYOUT, gates=None):
    return np.asarray(compiled(spec, layout, gates)(x))


def tokens(layout=LAYOUT, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((1, layout.tokens, C)).astype(np.float32)


def by_view(x, layout=LAYOUT):
    return x.reshape(1, layout.views, layout.tokens_per_view, C)


def softmax(logits, v):
    weights = np.exp(logits - logits.max())
    return weights @ v / weights.sum()


def oracle(x, spec, layout, key_views):
    """Window by window, query by query; keys are those of some views. [T, C]."""
    attn, core = modules(spec)
    core = getattr(core, "inner", core)
    spec = core.spec
    positions = view_positions(layout)
    table = rope_table(positions, D)
    q, k, v = (np.asarray(a[0], np.float64) for a in attn.project(x, table))
    per, m, (h, w), edge = layout.tokens_per_view, layout.special, layout.grid, spec.window
    patches = np.arange(m, per).reshape(h, w)
    windows, means = [], []
    for view in range(layout.views):
        for i in range(0, h, edge):
            for j in range(0, w, edge):
                ids = patches[i : i + edge, j : j + edge].reshape(-1)
                mean = attn.raw(x[:, view * per + ids].mean(axis=1, keepdims=True))
                place = positions[ids].sum(axis=0, keepdims=True) // len(ids)
                qc, kc = (attn.functions(table).rotate(a, place) for a in attn.norm(*mean[:2]))
                windows.append((view, view * per + ids))
                means.append([np.asarray(a[0, 0], np.float64) for a in (qc, kc, mean[2])])
    always = [s for s in key_views if spec.always and s % spec.always == 0]
    always = always if layout.has_reference else []
    every_key = [s * per + i for s in key_views for i in range(per)]
    base = [s * per + i for s in key_views for i in range(per) if i < m or s in always]
    usable = [j for j, (view, _) in enumerate(windows) if view in key_views]
    free = [j for j in usable if windows[j][0] not in always]
    gates = np.asarray(nnx.sigmoid(core.gate(x))[0]).reshape(-1, N, 2)
    out = np.zeros((layout.tokens, N, D))
    for head in range(N):
        for s in range(layout.views):
            for t in s * per + np.arange(m):
                logits = k[every_key, head] @ q[t, head] / D**0.5
                out[t, head] = softmax(logits, v[every_key, head])
        for i, (_, ids) in enumerate(windows):
            score = {j: means[i][0][head] @ means[j][1][head] for j in usable}
            best = sorted(free, key=lambda j: (-score[j], j))[: spec.top]
            values = np.stack([means[j][2][head] for j in usable])
            compressed = softmax(np.array([score[j] for j in usable]) / D**0.5, values)
            keys = base + [t for j in best for t in windows[j][1]]
            for t in ids:
                chosen = softmax(k[keys, head] @ q[t, head] / D**0.5, v[keys, head])
                out[t, head] = gates[t, head] @ np.stack([compressed, chosen])
    return np.asarray(attn.unpack(jnp.asarray(out[None], jnp.float32))[0])


@pytest.mark.parametrize(
    ("spec", "layout", "kept"),
    [
        pytest.param(SPEC, LAYOUT, range(4), marks=pytest.mark.slow),
        pytest.param(Speed3R(4, 3), EQUAL_VIEWS, range(4), marks=pytest.mark.slow),
        pytest.param(Speed3R(2, 10**6, 0), LAYOUT, range(4), marks=pytest.mark.slow),
        (KeyViews("stride", every=3, inner=SPEC), LAYOUT, (0, 3)),
    ],
)
def test_it_is_what_loops_over_windows_and_queries_compute(spec, layout, kept):
    x = tokens(layout)
    np.testing.assert_allclose(
        attend(x, spec, layout)[0], oracle(x, spec, layout, list(kept)), atol=2e-5
    )


def test_both_forms_have_the_same_gradients():
    x, up = tokens(), tokens(seed=1)
    rope = rope_table(view_positions(LAYOUT), D)
    parts, state = nnx.split(modules(SPEC))

    def gradients(state, x, form):
        def objective(state, x):
            attn, core = nnx.merge(parts, state)
            core.adopt(form)
            return (attn(x, core, Layouts.both(LAYOUT), rope) * up).sum()

        return jax.grad(objective, argnums=(0, 1))(state, x)

    forms = (SPEC, Speed3R(window=2, top=2, always=2, implementation="reference"))
    one, other = jit(lambda state, x: [gradients(state, x, form) for form in forms])(state, x)
    for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * float(np.abs(b).max()))
        assert np.abs(b).max() > 0


def test_all_windows_alone_are_dense_attention():
    x, spec = tokens(), Speed3R(window=2, top=10**6)
    selected = attend(x, spec, gates=(0, 1))
    np.testing.assert_allclose(selected, attend(x, Dense()), atol=1e-5)


def test_windows_of_one_patch_compressed_are_dense_attention():
    layout = TokenLayout(3, 0, (3, 5), "global")
    x = tokens(layout)
    compressed = attend(x, Speed3R(window=1, top=1), layout, gates=(1, 0))
    np.testing.assert_allclose(compressed, attend(x, Dense(), layout), atol=1e-5)


def test_permuted_views_permute_the_output_and_equal_views_have_equal_outputs():
    layout, spec = EQUAL_VIEWS, Speed3R(window=2, top=3)
    x, order = tokens(layout), [2, 0, 3, 1]
    moved = by_view(x)[:, order].reshape(x.shape)
    out, other = attend(x, spec, layout), attend(moved, spec, layout)
    np.testing.assert_allclose(by_view(other), by_view(out)[:, order], atol=1e-5)
    x = by_view(x)[:, [0, 1, 1, 2]].reshape(x.shape)
    out = by_view(attend(x, spec, layout))
    np.testing.assert_allclose(out[:, 1], out[:, 2], atol=1e-5)
    assert np.abs(out[:, 0] - out[:, 1]).max() > 0.1


def test_keys_of_windows_that_were_not_selected_matter_to_compression_alone():
    spec, layout = Speed3R(window=4, top=1), TokenLayout(3, 1, (4, 8), "global")
    attn, _ = modules(spec)
    x = tokens(layout, seed=3)
    table = rope_table(view_positions(layout), D)
    of = spec.selection(layout, layout)
    raw = attn.raw(pooled(x, layout, 4))
    places = np.tile([[2, 2], [2, 6]], (3, 1))
    q, k = (attn.functions(table).rotate(a, places) for a in attn.norm(*raw[:2]))
    ids = np.asarray(of.ids(q, k))[0]  # [N, 6, 1], none of view 0, which all see
    assert ids.shape == (N, 6, 1) and (ids > 1).all()
    for window in range(2, 6):
        changed = x.copy()
        # keeps the mean, so that the choice and compression stay as they are
        changed[:, windows_of(layout, 4).tokens[window, :2]] += np.float32([[3], [-3]])
        out, other = (attend(a, spec, layout, gates=(0, 1)) for a in (x, changed))
        moved = np.abs(other - out).reshape(-1, C).max(axis=-1) > 1e-4
        selects = (ids == window).any(axis=(0, 2))
        for i, tokens_of in enumerate(windows_of(layout, 4).tokens):
            if i != window:
                assert moved[tokens_of].all() if selects[i] else not moved[tokens_of].any()
        assert moved.reshape(3, -1)[:, 0].all(), "special tokens see everything"


def test_a_window_of_equal_tokens_is_pooled_to_what_each_of_them_is():
    layout = TokenLayout(2, 1, (3, 5), "global")
    windows = windows_of(layout, 2)
    x = np.zeros((1, layout.tokens, C), np.float32)
    values = np.random.default_rng(0).standard_normal((len(windows.tokens), C), np.float32)
    for ids, value in zip(windows.tokens, values, strict=True):
        x[:, ids[ids < layout.tokens]] = value
    np.testing.assert_allclose(pooled(x, layout, 2)[0], values, atol=1e-6)


@pytest.mark.parametrize("grid", [(1, 1), (3, 5), (4, 8), (9, 2)])
@pytest.mark.parametrize("edge", [1, 2, 4])
def test_every_patch_stands_in_one_window(grid, edge):
    layout = TokenLayout(2, 3, grid, "global")
    windows = windows_of(layout, edge)
    there = windows.tokens[windows.tokens < layout.tokens]
    patches = np.arange(layout.tokens).reshape(2, -1)[:, 3:].reshape(-1)
    assert sorted(there) == patches.tolist()
    assert ((windows.tokens < layout.tokens).any(axis=1)).all(), "no window is empty"
    assert (windows.tokens[:, 0] // layout.tokens_per_view == windows.views).all()
    special = windows.special[windows.special < layout.tokens]
    assert sorted({*there} | {*special}) == list(range(layout.tokens))


def sizes(jaxpr):
    """Sizes of all arrays of a trace."""
    for equation in jaxpr.eqns:
        yield from (v.aval.size for v in equation.outvars)
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=is_jaxpr):
            if is_jaxpr(inner):
                yield from sizes(getattr(inner, "jaxpr", inner))


def test_nothing_of_all_pairs_is_in_memory_nor_for_gradients():
    layout = TokenLayout(300, 0, (36, 36), "global")
    spec, d = Speed3R(window=4, top=32), 4
    core = nnx.eval_shape(
        lambda: spec.build(heads=1, head_dim=d, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
    )
    attn = nnx.eval_shape(
        lambda: Attention(d, 1, kernel_init=nnx.initializers.zeros, rngs=nnx.Rngs(0))
    )
    parts, state = nnx.split((attn, core))
    rope = rope_table(view_positions(layout), d)

    def objective(state, x):
        attn, core = nnx.merge(parts, state)
        return attn(x, core, Layouts.both(layout), rope).sum()

    x = jax.ShapeDtypeStruct((1, layout.tokens, d), jnp.float32)
    trace = jax.make_jaxpr(jax.grad(objective, argnums=(0, 1)))(state, x)
    windows = 300 * 81
    assert max(sizes(trace.jaxpr)) < windows**2 / 30


def test_operations_are_those_of_the_specification():
    # reduction.md A.3: 504 x 504, 16 heads of 64, no special tokens, 10^12 operations
    for views, compression, selection in (
        (2, 0.0001, 0.0054),
        (32, 0.028, 0.087),
        (100, 0.27, 0.27),
    ):
        layouts = Layouts.both(TokenLayout(views, 0, (36, 36), "global", has_reference=False))
        work = Speed3R().flops(layouts, 64)
        pairs = 4 * (views * 81) ** 2 * 64
        assert work["selection"] == pairs / 2
        assert 16 * pairs / 1e12 == pytest.approx(compression, rel=0.3 if views == 2 else 0.05)
        assert 16 * (work["softmax"] - pairs) / 1e12 == pytest.approx(selection, rel=0.01)
    always = Speed3R().flops(Layouts.both(TokenLayout(100, 5, (37, 37), "global")), 64)
    # (1374 + 495) keys in whole windows of 10 x 10 per view, and the dense queries of 500 tokens
    kept = 100 + 32 + 32
    assert always["softmax"] == 4 * 64 * (10000**2 + 160000 * kept * 16 + 500 * 137400)


def test_operations_are_the_products_of_the_trace():
    attn, core = modules(SPEC)
    rope = rope_table(view_positions(LAYOUT), D)
    layouts = Layouts.both(LAYOUT)
    traced, in_turns = products(lambda x: attn(x, core, layouts, rope), tokens())
    work, of = SPEC.flops(layouts, D), SPEC.selection(LAYOUT, LAYOUT)
    kept = (len(of.always) + of.chosen + len(of.key.special)) * of.key.places
    selected = 4 * of.query.tokens.size * kept * D
    whole = N * (work["softmax"] - selected + work["selection"])
    layer = 8 * LAYOUT.tokens * C**2 + SPEC.layer_flops(layouts, N, D)
    assert traced == whole + layer
    assert in_turns == N * selected  # in one turn of the loop over the selected windows


def test_operations_with_weights_are_counted():
    layout = TokenLayout(2, 1, (3, 5), "global")
    # 2 x 6 windows, projected to queries, keys and values; two gates a head of every token
    means, gates = 2 * 12 * C * 3 * C, 2 * 32 * C * 2 * N
    both = Layouts.both(layout)
    assert Speed3R(window=2).layer_flops(both, N, D) == means + gates
    some = KeyViews("stride", every=2, inner=Speed3R(window=2))
    assert some.layer_flops(both, N, D) == 2 * (12 + 6) * C * 3 * C + gates


def test_settings_are_text_and_json():
    text = "speed3r(window=8,top=64,always=0)"
    here = parse_plan(text)
    assert plan_name(here) == text
    assert plan_from_json(json.loads(json.dumps(plan_to_json(here)))) == here
    assert plan_name(plan("speed3r")) == "speed3r(window=4,top=32)"
    assert here.at("global", 0) == Speed3R(8, 64, 0) and here.at("frame", 0) == Dense()
    core = Speed3R(gate=(-2.0, 3.0)).build(
        heads=2, head_dim=4, param_dtype=jnp.float32, rngs=nnx.Rngs(0)
    )
    assert core.gate.bias[...].tolist() == [-2, 3, -2, 3] and not core.gate.kernel[...].any()


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("speed3r(top=8)", "speed3r(top=64,implementation=reference)", True),
        ("speed3r(top=8)", "speed3r(top=8,window=8)", False),
        ("speed3r(top=8)", "dense", False),
        ("key_views(inner=speed3r(top=8))", "key_views(inner=speed3r)", True),
        ("key_views(inner=speed3r)", "key_views(count=9,inner=speed3r)", False),
        ("sla_global(keep=0.1)", "sla_global(keep=0.2)", False),
        ("sla_global(keep=0.1)", "sla_global(keep=0.1,keep_blocks=8)", True),
    ],
)
def test_a_student_takes_another_number_of_windows_or_blocks_and_nothing_else(one, other, alike):
    plans = parse_plan(one), parse_plan(other)
    assert trained_alike(*plans) == alike
    names = {strategy.name for strategy in strategies_of(plans[0]) if strategy.adjustable}
    assert names == {"speed3r" if "speed3r" in one else "sla"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("speed3r(top=0)", "top must be at least 1, got 0"),
        ("speed3r(window=0)", "window must be at least 1, got 0"),
        (
            "speed3r(gate=[1.0])",
            r"gate must be two numbers, for compression and selection, got \[1",
        ),
        ("speed3r(tops=3)", "'tops' is not known; did you mean 'top'"),
        ("speed3r_frame", "'speed3r_frame': speed3r is for global attention, not for frame"),
        ("gotohunt(inner=speed3r)", "inner=speed3r needs all patches .* set patch_step=1"),
        ("spark3r(inner=speed3r)", "inner=speed3r needs queries with a grid .* query_factor=1"),
    ],
)
def test_bad_settings_are_refused(text, message):
    with pytest.raises(InputError, match=message):
        parse_plan(text)


def test_windows_that_do_not_divide_the_grid_are_refused_without_padding():
    spec = Speed3R(window=2, pad=False)
    with pytest.raises(InputError, match=r"windows of 2 x 2 do not divide a grid of 3 x 5 .*pad=t"):
        spec.selection(LAYOUT, LAYOUT)
    even = TokenLayout(2, 1, (4, 6), "global")
    assert len(spec.selection(even, even).key.tokens) == 12
