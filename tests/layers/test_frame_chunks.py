"""Blocks in chunks of frames are the blocks of all frames together, in less memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, AxisType

from lite3r_jax.attention.dense import Dense
from lite3r_jax.attention.plan import Plan, build_cores, runs
from lite3r_jax.attention.presets import plan
from lite3r_jax.attention.strategy import Layouts, TokenLayout
from lite3r_jax.backbones.heads import map_frames
from lite3r_jax.layers import frame_chunks
from lite3r_jax.layers.block import Block, BlockConfig, stack
from lite3r_jax.layers.rope import rope_table, view_positions
from lite3r_jax.layers.stacks import BlockStack, Slots, first_tokens, run_stacks
from lite3r_jax.precision import Fp8Rule, apply_precision, deploy

GRID, SPECIAL, C, HEADS = (2, 3), 1, 16, 2
P = SPECIAL + GRID[0] * GRID[1]


def make_block():
    return Block(BlockConfig(C, HEADS, qk_norm=True), rngs=nnx.Rngs(0))


def drawn(make):
    """A module's graph and parameters, which take no compilations to draw."""
    rng = np.random.default_rng(0)
    graph, shapes = nnx.split(nnx.eval_shape(make))
    return graph, jax.tree.map(
        lambda x: (0.3 * rng.standard_normal(x.shape)).astype(np.float32), shapes
    )


def dense():
    return Dense("reference").build(heads=HEADS, head_dim=8, param_dtype=jnp.float32, rngs=None)


def layout(views):
    return TokenLayout(views, SPECIAL, GRID, "frame" if views == 1 else "global")


def table(views):
    return rope_table(view_positions(layout(views)), C // HEADS)


@pytest.mark.slow
@pytest.mark.parametrize("views", [1, 5])
def test_values_and_gradients_are_those_of_all_frames_together(views, monkeypatch):
    monkeypatch.setattr(frame_chunks, "_TOKENS", 4 * P)  # of 10 frames: 4, 4 and 2
    graph, params = drawn(make_block)
    rng = np.random.default_rng(0)
    x, up = (rng.standard_normal((10, P, C)).astype(np.float32) for _ in range(2))
    layouts = Layouts.both(layout(views))

    def whole(params, x):
        sequences = x.reshape(10 // views, views * P, C)
        y, _ = nnx.merge(graph, params)(sequences, dense(), layouts, table(views))
        return y.reshape(x.shape), y.reshape(x.shape)

    def map_frame_chunks(params, x):
        def keep(kept, frames, first):
            return jax.lax.dynamic_update_slice_in_dim(kept, frames, first, 0)

        block = nnx.merge(graph, params)
        return frame_chunks.map_frame_chunks(
            block, x, dense(), layouts, table(views), None, jnp.zeros(x.shape), keep
        )

    @jax.jit
    def both(params, x):
        results = []
        for f in (whole, map_frame_chunks):
            y, pull = jax.vjp(f, params, x)
            results.append((y, pull((up, 0.5 * up))))
        return results

    together, apart = both(params, x)
    for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(apart), strict=True):
        np.testing.assert_allclose(b, a, rtol=0, atol=2e-6 * max(1, np.abs(a).max()))


def trunk(depth, specs, x, on_host=False):
    """Two stacks over `depth` pairs, of which two are read; with on_host by a loop over frames."""
    s, c = x.shape[1], x.shape[-1]
    plan_runs = runs(specs.specs("frame", depth), specs.specs("global", depth))

    def make():
        block = BlockConfig(c, HEADS, qk_norm=True)
        site = HEADS, c // HEADS, jnp.float32, nnx.Rngs(1)
        blocks = [stack(lambda r: Block(block, rngs=r), depth, nnx.Rngs(i)) for i in range(2)]
        return nnx.List([*blocks, *(build_cores(plan_runs, i, *site) for i in range(2))])

    graph, params = drawn(make)

    @jax.jit
    def call(params, x):
        made = nnx.merge(graph, params)
        scene = TokenLayout(s, SPECIAL, GRID, "global")
        stacks = [
            BlockStack("frame", made[0], made[2], layout(1), table(1)),
            BlockStack("global", made[1], made[3], scene, table(1)),
        ]
        slots = Slots((0, depth - 1), jnp.float32, on_host)
        _, kept, taps = run_stacks(x, stacks, plan_runs, views=s, slots=slots)
        if not on_host:
            return kept
        read = map_frames(lambda _, tokens: 1 * tokens, (), kept, 4, on_host=True)
        return read, first_tokens(kept, taps)

    return functools.partial(call, params)


@pytest.mark.slow
def test_a_trunk_in_chunks_keeps_what_heads_read(monkeypatch):
    x = jnp.asarray(np.random.default_rng(1).standard_normal((2, 5, P, C)), jnp.float32)
    specs = plan("sla_global", block=4, keep=0.5, implementation="blocked")
    whole = trunk(3, specs, x)(x)
    assert np.abs(whole[:, :, 0] - whole[:, :, 1]).min() > 0, "the slots hold different pairs"
    monkeypatch.setattr(frame_chunks, "_TOKENS", 3 * P)
    np.testing.assert_allclose(trunk(3, specs, x)(x), whole, rtol=0, atol=2e-6)


def test_tokens_that_rest_on_the_host_are_those_of_the_device(monkeypatch):
    x = jnp.asarray(np.random.default_rng(1).standard_normal((1, 6, P, C)), jnp.float32)
    monkeypatch.setattr(frame_chunks, "_TOKENS", 3 * P)
    wanted = trunk(2, Plan(), x)(x)
    read, first = trunk(2, Plan(), x, on_host=True)(x)
    np.testing.assert_array_equal(read, wanted)
    np.testing.assert_array_equal(first, wanted[:, :, :, 0])


@pytest.mark.slow
@pytest.mark.optimized  # memory as users have it
def test_a_trunk_of_many_frames_takes_less_memory(monkeypatch):
    x = jax.ShapeDtypeStruct((1, 400, P, C), jnp.float32)

    def temporary():
        call = trunk(2, Plan(default=Dense("blocked", q_block=64, k_block=64)), x)
        return call.func.lower(*call.args, x).compile().memory_analysis().temp_size_in_bytes

    whole = temporary()
    monkeypatch.setattr(frame_chunks, "_TOKENS", 2 * P)
    assert temporary() < 0.72 * whole


def test_frames_are_taken_in_chunks_only_where_tokens_are_many_and_apart():
    block, many = nnx.eval_shape(make_block), 2**17
    assert frame_chunks.chunked(block, many)
    assert not frame_chunks.chunked(block, 2**16)
    assert not frame_chunks.chunked(nnx.Module(), many), "what stands in a block's place"
    with jax.sharding.use_abstract_mesh(AbstractMesh((4,), ("fsdp",), (AxisType.Auto,))):
        assert not frame_chunks.chunked(block, many)


@pytest.mark.parametrize("scale,apart", [("row", True), ("tensor", False)])
def test_tokens_that_share_a_scale_stay_together(scale, apart):
    rules = (Fp8Rule("qkv", scale=scale),)
    block = nnx.eval_shape(make_block)
    for quantized in (apply_precision(block, rules), deploy(block, rules, "fp8_dynamic")):
        assert frame_chunks.chunked(quantized, 2**17) == apart
