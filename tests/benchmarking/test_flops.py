"""Counts against what a trace holds, what XLA says, closed forms and the figures of others."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lite3r_jax.attention.dense import Dense
from lite3r_jax.attention.plan import Plan
from lite3r_jax.attention.presets import plan
from lite3r_jax.attention.sla import SLA
from lite3r_jax.attention.strategy import AttentionInputs, Layouts, TokenLayout
from lite3r_jax.backbones.base import get_backbone
from lite3r_jax.backbones.dinov2 import EncoderConfig
from lite3r_jax.backbones.heads import DPTConfig
from lite3r_jax.backbones.vggt.camera_head import CameraConfig
from lite3r_jax.backbones.vggt.config import TrunkConfig, VGGTConfig
from lite3r_jax.benchmarking.flops import count
from lite3r_jax.layers.rngs import traced_rngs
from tests.benchmarking.jaxpr_products import products

WHOLE = Plan(default=Dense("reference"))


@functools.cache
def abstract(name, config, attention=WHOLE, heads=("camera", "depth")):
    build = get_backbone(name).build
    return nnx.eval_shape(lambda: build(config, heads=heads, plan=attention, rngs=traced_rngs(0)))


def traced(model, views, size):
    graph, state = nnx.split(model)
    images = jax.ShapeDtypeStruct((1, views, *size, 3), jnp.float32)
    return products(lambda s, x: nnx.merge(graph, s)(x, frame_chunk=views)[0], state, images)[0]


@pytest.mark.parametrize(
    "name", ["vggt", *(pytest.param(n, marks=pytest.mark.slow) for n in ("da3", "pi3"))]
)
def test_dense_models_have_the_products_of_their_trace(
    name, golden_dir, tiny_da3_json, tiny_pi3_json
):
    backbone = get_backbone(name)
    config = {"da3": tiny_da3_json, "pi3": tiny_pi3_json}.get(name)
    if config is None:
        config = json.loads((golden_dir / "config.json").read_text())
        config.pop("param_count")
    config = backbone.config_from_json(config)
    heads = ("camera", "depth", "point")[: 2 + (name == "vggt")]
    model = abstract(name, config, heads=heads)
    # the table of positions fits these images as it is; what cameras are made of is left
    side = (config.encoder if name == "pi3" else config).img_size
    work = count(model, 2, side, side)
    rest = traced(model, 2, (side, side)) - work.total
    assert 0 <= rest < 3000 and work.total > 10**8
    assert set(work.parts) == {"encoder", "frame", "global", *heads}


@pytest.mark.slow
def test_xla_counts_a_small_vggt_alike():
    config = VGGTConfig(
        img_size=70, embed_dim=256, vit=EncoderConfig(1, 4), aggregator=TrunkConfig(1, 4),
        camera_head=CameraConfig(1, 4, 2), dpt=DPTConfig(64, (64, 64, 64, 64), (0, 0, 0, 0)),
    )  # fmt: skip
    # XLA looks at the body of a loop once, and these have one turn
    model = abstract("vggt", config)
    graph, state = nnx.split(model)
    images = jax.ShapeDtypeStruct((1, 3, 70, 70, 3), jnp.float32)
    lowered = jax.jit(lambda s, x: nnx.merge(graph, s)(x, frame_chunk=3)[0]).lower(state, images)
    ours = count(model, 3, 70, 70).total
    # it leaves out the border of convolutions, and adds what goes by element
    assert lowered.cost_analysis()["flops"] == pytest.approx(ours, rel=0.03)


def test_shares_and_sums_of_the_published_models_are_those_of_the_specification():
    # methods.md 3.5 and 2.3: transformer blocks at 518 x 518, counted with another program
    shares = {2: 0.11, 4: 0.21, 8: 0.34, 16: 0.51, 32: 0.67, 64: 0.81, 100: 0.87, 1000: 0.98}
    for name, trillions in (("vggt", 6.46), ("da3", 2.15)):
        model = abstract(name, get_backbone(name).default_config, WHOLE, heads=())
        for views, share in shares.items():
            work = count(model, views, 518, 518)
            assert work.parts["global"]["softmax"] / work.total == pytest.approx(share, abs=0.006)
        assert count(model, 2, 518, 518).total == pytest.approx(trillions * 1e12, rel=0.01)


def test_sparse_attention_speeds_up_as_the_specification_bounds_it():
    # methods.md 3.5: 10 % of the keys kept; here special tokens and the reference view besides, so
    # it is below that bound and comes near to it
    for views, bound in ((8, 1.44), (32, 2.55), (100, 4.54)):
        dense, sparse = (
            count(abstract("vggt", VGGTConfig(), attention, heads=()), views, 518, 518).total
            for attention in (WHOLE, plan("sla_global", keep=0.1))
        )
        assert 0.82 * bound < dense / sparse < bound


@pytest.mark.parametrize("routing", ["block", "block3"])
def test_selection_and_linear_part_have_the_products_of_their_trace(routing):
    spec = SLA(routing, 0.3, block=8, implementation="blocked")
    layout = TokenLayout(4, 4, (8, 8), "global")
    heads, d = 2, 16
    core = nnx.eval_shape(
        lambda: spec.build(heads=heads, head_dim=d, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
    )
    graph, state = nnx.split(core)
    x = jax.ShapeDtypeStruct((1, layout.tokens, heads, d), jnp.float32)

    def run(state, q):
        return nnx.merge(graph, state)(AttentionInputs(q, q, q, Layouts.both(layout)))

    counts = spec.flops(Layouts.both(layout), d)
    outside, inside = products(run, state, x)
    assert outside == heads * (counts["selection"] + counts["linear"])
    assert inside > 0  # the softmax part, whose loops end where the fullest row ends


def test_softmax_part_counts_kept_and_protected_blocks():
    d, layout = 16, TokenLayout(3, 2, (4, 8), "global")
    # keys: 1 block of 6 special tokens, 3 views of 4 blocks; queries: 1 and 3 * 2 blocks of 16
    columns, special, view = 13, 1, 4
    kept = special + view + int(0.3 * (columns - special - view))
    counts = SLA(keep=0.3, block=8).flops(Layouts.both(layout), d)
    assert counts["softmax"] == 4 * d * 16 * 8 * (1 * columns + 6 * kept)
    assert counts["selection"] == 2 * d * 6 * columns
    alone = SLA(keep=0.3, block=8, keep_special=False).flops(Layouts.both(layout), d)
    assert alone["softmax"] == 4 * d * 16 * 8 * 7 * int(0.3 * columns)
    within = TokenLayout(1, 2, (4, 8), "frame")  # no view is a reference there
    assert SLA(keep=0.3, block=8).flops(Layouts.both(within), d)["softmax"] == (
        4 * d * 16 * 8 * (1 * 5 + 2 * (1 + 1))
    )


def test_everything_kept_costs_dense_attention_on_whole_blocks():
    layout = TokenLayout(2, 8, (8, 8), "global")
    layouts = Layouts.both(layout)
    all_kept = SLA(keep=1.0, block=8).flops(layouts, 32)
    assert all_kept["softmax"] == Dense().flops(layouts, 32)["softmax"]


def test_routing_by_token_costs_what_its_trace_costs():
    spec = SLA("token", 0.3, keep_special=False)
    layout = TokenLayout(2, 1, (3, 4), "global")
    x = np.zeros((1, layout.tokens, 2, 8), np.float32)
    core = spec.build(heads=2, head_dim=8, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
    traced, _ = products(lambda q: core(AttentionInputs(q, q, q, Layouts.both(layout))), x)
    assert traced == 2 * sum(spec.flops(Layouts.both(layout), 8).values())


def test_wrong_sizes_are_refused():
    model = abstract("vggt", VGGTConfig(), WHOLE, heads=())
    for views, height in ((0, 518), (2, 519), (2, 0)):
        with pytest.raises(ValueError, match="in multiples of 14"):
            count(model, views, height, 518)
