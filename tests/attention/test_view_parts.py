"""Attention over views on several devices: the numbers of one, by the way that sends less."""

import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest

from lite3r_jax.attention.dense import Dense
from lite3r_jax.attention.key_views import KeyViews
from lite3r_jax.attention.layouts import TokenLayout
from lite3r_jax.attention.query_merging import MergeQueries
from lite3r_jax.attention.sla import SLA
from lite3r_jax.attention.view_parts import plan_parts
from lite3r_jax.errors import InputError
from lite3r_jax.mesh import ViewParts

ROOT = Path(__file__).parents[2]


def in_parts(views: int, devices: int) -> TokenLayout:
    parts = ViewParts(devices, views)
    return TokenLayout(parts.each, 5, (4, 6), "global", parts=parts)


def test_the_way_is_the_one_that_sends_less():
    query = in_parts(16, 8)
    tokens = query.whole.tokens
    by_heads = plan_parts(Dense(), query, 16)
    assert by_heads.way == "heads"
    # queries, keys, values and outputs of all tokens, of an eighth of the heads, but for its own
    assert by_heads.tokens == pytest.approx(4 * tokens / 8 * 7 / 8)
    by_queries = plan_parts(Dense(), query, 12)
    assert by_queries.way == "queries", "12 heads do not divide by 8"
    assert by_queries.tokens == pytest.approx(2 * tokens * 7 / 8)
    assert plan_parts(Dense(), in_parts(4, 2), 16).way == "heads"
    few = plan_parts(KeyViews(count=2), query, 16)
    assert few.way == "queries", "every device has the keys of the few views"
    assert few.tokens == pytest.approx(4 * 2 * query.tokens_per_view * 7 / 8)
    stepped = plan_parts(KeyViews(count=16, patch_step=3), query, 16)
    assert stepped.way == "heads", "all views give some keys"
    assert stepped.tokens == pytest.approx(2 * 16 * (query.tokens_per_view + 5 + 4) / 8 * 7 / 8)
    assert plan_parts(KeyViews(choose="own"), query, 16) == plan_parts(
        KeyViews(choose="own", inner=SLA()), query, 3
    )
    assert plan_parts(KeyViews(choose="own"), query, 16).tokens == 0
    dropped = KeyViews(count=2, inner=SLA(linear_over="all"))
    assert plan_parts(dropped, query, 16).way == "heads"


@pytest.mark.parametrize(
    ("spec", "heads", "message"),
    [
        (MergeQueries(), 8, "attention merge_queries cannot be split over devices; choose dense"),
        (KeyViews(inner=MergeQueries()), 8, "cannot be split over devices"),
        (SLA(keep_special=False), 6, "has to be split by heads, and 6 heads do not divide by 4"),
    ],
)
def test_what_would_not_be_exact_is_refused_by_name(spec, heads, message):
    with pytest.raises(InputError, match=message) as error:
        plan_parts(spec, in_parts(6, 4), heads)
    assert "\n" not in str(error.value)


PROGRAM = textwrap.dedent("""
    import sys
    import jax, jax.numpy as jnp, numpy as np
    from dataclasses import replace
    from flax import nnx
    from lite3r_jax.attention.dense import Dense
    from lite3r_jax.attention.key_views import KeyViews
    from lite3r_jax.attention.sla import SLA
    from lite3r_jax.attention.strategy import AttentionInputs, Layouts, TokenLayout
    from lite3r_jax.attention.view_parts import attend_in_parts
    from lite3r_jax.mesh import check_views, make_view_mesh, put_views

    jax.config.update("jax_default_matmul_precision", "highest")
    rng = np.random.default_rng(0)
    views, heads, d = 5, 4, 8  # the devices do not get equally many
    layout = TokenLayout(views, 2, (4, 6), "global")
    p = layout.tokens_per_view
    x = rng.standard_normal((1, views, p, 32), np.float32)
    q, k, v = rng.standard_normal((3, 1, views, p, heads, d), np.float32)
    sparse = SLA(keep=0.4, block=8, init=0.5)

    def attend(core, layout, x, q, k, v):
        shared = core.spec.context(x.reshape(1, -1, 32), layout)
        flat = [a.reshape(1, -1, heads, d) for a in (q, k, v)]
        inputs = AttentionInputs(*flat, Layouts.both(layout), shared)
        o = core(inputs) if layout.parts is None else attend_in_parts(core, inputs)
        return o.reshape(q.shape)

    quick = (
        (sparse, 5),  # which do not divide the heads
        (KeyViews(count=2, patch_step=2, inner=replace(sparse, linear_over="all")), 2),
    )
    others = (
        (Dense(), 2), (Dense(), 5), (sparse, 2), (replace(sparse, keep_special=False), 4),
        (KeyViews(count=3, inner=sparse), 4), (KeyViews(choose="stride", every=2), 4),
        (KeyViews(choose="own", patch_step=2), 2),
    )
    for spec, devices in {"quick": quick, "others": others}[sys.argv[1]]:
        core = spec.build(heads=heads, head_dim=d, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
        wanted = jax.jit(lambda *a: attend(core, layout, *a))(x, q, k, v)
        mesh = make_view_mesh(f"view:{devices}", jax.devices()[:devices])
        parts = check_views(mesh, views)
        here = replace(layout, views=parts.each, parts=parts)
        graph, state = nnx.split(core)
        with jax.set_mesh(mesh):
            run = parts.on_each(
                lambda s, *a: attend(nnx.merge(graph, s), here, *a), (None, 1, 1, 1, 1), 1
            )
            got = jax.jit(run)(state, *(put_views(a, mesh, parts) for a in (x, q, k, v)))
        assert got.shape[1] == parts.filled and len(got.addressable_shards) == devices
        error = np.abs(np.asarray(got)[:, :views] - wanted).max()
        assert error < 1e-5, (spec, devices, error)
    print("compared")
""")


@pytest.mark.parametrize("cases", ["quick", pytest.param("others", marks=pytest.mark.slow)])
def test_values_are_those_of_one_device(cases):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, cases],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert ended.stdout == "compared\n", ended.stderr[-3000:]


def test_the_whole_of_a_part():
    layout = TokenLayout(5, 2, (4, 6), "global", has_reference=False)
    part = replace(layout, views=3, parts=ViewParts(2, 5))
    assert part.whole == layout
    assert layout.whole is layout
