"""Attention over views on several devices: the numbers of one, by the way that sends less."""

import os
import subprocess
import sys
import textwrap
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest

from lite3r_jax.attention.dense import Dense
from lite3r_jax.attention.key_views import KeyViews
from lite3r_jax.attention.layouts import TokenLayout
from lite3r_jax.attention.query_merging import MergeQueries
from lite3r_jax.attention.sla import SLA
from lite3r_jax.attention.spark3r import Spark3R
from lite3r_jax.attention.speed3r import Speed3R
from lite3r_jax.attention.strategy import AttentionStrategy
from lite3r_jax.attention.token_merging import FastVGGT
from lite3r_jax.attention.view_parts import plan_parts
from lite3r_jax.errors import InputError
from lite3r_jax.mesh import ViewParts

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Whole(AttentionStrategy):
    """Says nothing of several devices."""

    name: ClassVar[str] = "whole"


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


def test_what_is_decided_by_all_heads_is_sent_as_well():
    query = in_parts(16, 8)
    tokens, dense = query.whole.tokens, plan_parts(Dense(), query, 16).tokens
    # queries of all views as sums over devices, of which two passes are made
    merged = plan_parts(MergeQueries(), query, 16)
    assert merged.way == "heads" and merged.tokens - dense == pytest.approx(2 * tokens * 7 / 8)
    assert plan_parts(MergeQueries(factor=1), query, 16).tokens == dense
    spark = Spark3R(query_factor=2, key_factor=4)
    few = plan_parts(KeyViews(choose="stride", every=4), query, 16)
    assert few.tokens == pytest.approx(4 * tokens / 4 * 7 / 8)
    by_heads = 2 * tokens / 8 * 7 / 8
    assert plan_parts(spark, query, 16).tokens == pytest.approx(
        few.tokens + by_heads + 2 * tokens * 7 / 8
    )
    assert plan_parts(FastVGGT(), query, 16).tokens - dense == pytest.approx(tokens * 7 / 8)
    # three means of each of 16 x 2 windows of 4 x 4 patches, for the heads of a device
    windows = plan_parts(Speed3R(), query, 16).tokens - dense
    assert windows == pytest.approx(3 * 16 * 2 / 8 * 7 / 8)


@pytest.mark.parametrize(
    ("spec", "heads", "message"),
    [
        (Whole(), 8, "attention whole cannot be split over devices; choose another, such as dense"),
        (KeyViews(inner=Whole()), 8, "cannot be split over devices"),
        (MergeQueries(), 6, "merge_queries has to be split by heads, and 6 heads do not divide"),
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
    from lite3r_jax.attention.query_merging import MergeQueries
    from lite3r_jax.attention.sla import SLA
    from lite3r_jax.attention.spark3r import Spark3R
    from lite3r_jax.attention.speed3r import Speed3R
    from lite3r_jax.attention.strategy import (
        AttentionInputs, LayerFunctions, Layouts, TokenLayout,
    )
    from lite3r_jax.attention.token_merging import FastVGGT
    from lite3r_jax.attention.view_parts import attend_in_parts
    from lite3r_jax.mesh import check_views, make_view_mesh, put_views

    jax.config.update("jax_default_matmul_precision", "highest")

    def attend(core, layout, weight, x, q, k, v):
        (heads, d), shape = q.shape[-2:], q.shape
        flat_x = x.reshape(1, -1, x.shape[-1])
        shared = core.spec.context(flat_x, layout)
        flat = [a.reshape(1, -1, heads, d) for a in (q, k, v)]
        layer = LayerFunctions(
            lambda x: tuple(jnp.moveaxis((x @ weight).reshape(1, -1, 3, heads, d), 2, 0)),
            lambda q, k: (q, k), lambda x, _: x, None,
        )
        inputs = AttentionInputs(
            *flat, Layouts.both(layout), shared, layer, lambda: flat_x, lambda: flat_x
        )
        o = core(inputs) if layout.parts is None else attend_in_parts(core, inputs)
        return o.reshape(shape)

    sparse = SLA(keep=0.4, block=8, init=0.5)
    quick = (
        (5, 4, sparse, 5),  # which do not divide the heads
        (5, 4, KeyViews(count=2, patch_step=2, inner=replace(sparse, linear_over="all")), 2),
        (5, 4, Spark3R(query_factor=2, key_factor=2, others=1, group=2), 4),
    )
    others = (
        (Dense(), 2), (Dense(), 5), (sparse, 2), (replace(sparse, keep_special=False), 4),
        (KeyViews(count=3, inner=sparse), 4), (KeyViews(choose="stride", every=2), 4),
        (KeyViews(choose="own", patch_step=2), 2),
    )
    merging = (
        MergeQueries(factor=2, group=3), MergeQueries(factor=4, protect_reference=False),
        MergeQueries(factor=3, group=2, inner=KeyViews(choose="stride", every=2)),
        KeyViews(count=3, inner=MergeQueries(factor=2, group=4)),
        Spark3R(query_factor=1, key_factor=3, others=1),
        Spark3R(query_factor=3, key_factor=2, others=1, choose="diverse", group=4),
        FastVGGT(), FastVGGT(ratio=0.4, protect=0.2),
        Speed3R(window=2, top=3, always=4), Speed3R(window=4, top=2, always=0),
        KeyViews(count=3, inner=Speed3R(window=2, top=2)),
    )
    cases = {
        "quick": quick,
        "others": [(5, 4, *case) for case in others],
        "merging": [(9, 8, spec, n) for spec in merging for n in (2, 4, 8)],
    }
    for views, heads, spec, devices in cases[sys.argv[1]]:  # not equally many views each
        rng, d = np.random.default_rng(0), 32 // heads
        layout = TokenLayout(views, 2, (4, 6), "global")
        p = layout.tokens_per_view
        x = rng.standard_normal((1, views, p, 32), np.float32)
        weight = rng.standard_normal((32, 96), np.float32)
        q, k, v = rng.standard_normal((3, 1, views, p, heads, d), np.float32)
        core = spec.build(heads=heads, head_dim=d, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
        wanted = jax.jit(lambda *a: attend(core, layout, *a))(weight, x, q, k, v)
        mesh = make_view_mesh(f"view:{devices}", jax.devices()[:devices])
        parts = check_views(mesh, views)
        here = replace(layout, views=parts.each, parts=parts)
        graph, state = nnx.split(core)
        with jax.set_mesh(mesh):
            run = parts.on_each(
                lambda s, *a: attend(nnx.merge(graph, s), here, *a), (None, None, 1, 1, 1, 1), 1
            )
            placed = (put_views(a, mesh, parts) for a in (x, q, k, v))
            got = jax.jit(run)(state, weight, *placed)
        assert got.shape[1] == parts.filled and len(got.addressable_shards) == devices
        error = np.abs(np.asarray(got)[:, :views] - wanted).max()
        assert error < 1e-5, (spec, devices, error)
    print("compared")
""")


@pytest.mark.parametrize(
    "cases", ["quick", *(pytest.param(n, marks=pytest.mark.slow) for n in ("others", "merging"))]
)
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
