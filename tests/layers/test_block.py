"""Blocks and scanned stacks of blocks."""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lite3r_jax.attention.plan import Plan, Rule, build_cores, runs
from lite3r_jax.attention.strategy import AttentionCore, AttentionStrategy, Layouts, TokenLayout
from lite3r_jax.layers.block import Block, BlockConfig, stack
from lite3r_jax.layers.norm import layer_norm
from lite3r_jax.layers.rngs import traced_rngs
from lite3r_jax.layers.stacks import BlockStack, run_stacks, scan_layers

LAYOUTS = Layouts.both(TokenLayout(1, 0, (1, 6), "frame"))


@dataclass(frozen=True)
class Scaled(AttentionStrategy):
    """A strategy with a parameter of its own: values times a learned number."""

    start: float = 1.0

    def build(self, *, heads, head_dim, param_dtype, rngs):
        return ScaledCore(self, rngs)


class ScaledCore(AttentionCore):
    def __init__(self, spec, rngs):
        self.spec = spec
        self.factor = nnx.Param(spec.start + 0.1 * jax.random.normal(rngs.params(), ()))

    def __call__(self, inputs):
        return inputs.v * self.factor[...]


def make(layers, specs, rngs):
    config = BlockConfig(8, 2, qk_norm=True, layer_scale=0.5)
    blocks = stack(lambda r: Block(config, rngs=r), layers, rngs)
    plan_runs = runs(specs)
    return blocks, build_cores(plan_runs, 0, 2, 4, jnp.float32, rngs), plan_runs


def run(blocks, cores, plan_runs, x):
    trunk = BlockStack("frame", blocks, cores, LAYOUTS.query)
    y, _, ys = run_stacks(x[:, None], [trunk], plan_runs, views=1, taps=["frame/blocks"])
    return y[:, 0], ys["frame/blocks"][:, :, 0]


def one_by_one(blocks, cores, plan_runs, x):
    graph, params = nnx.split(blocks)
    for r, segment in enumerate(plan_runs):
        core_graph, core_params = nnx.split(cores[r])
        for i in range(segment.start, segment.stop):
            block = nnx.merge(graph, jax.tree.map(lambda a, i=i: a[i], params))
            at = i - segment.start
            core = nnx.merge(core_graph, jax.tree.map(lambda a, at=at: a[at], core_params))
            x, _ = block(x, core, LAYOUTS)
    return x


@pytest.mark.slow
@pytest.mark.parametrize(
    "rules",
    [
        pytest.param((), id="dense"),
        pytest.param((Rule("global", Scaled(1.0), (1,)),), id="mixed"),
        pytest.param((Rule("global", Scaled(2.0)),), id="all replaced"),
    ],
)
def test_scan_equals_the_loop_in_value_and_gradient(rules):
    specs = Plan(rules).specs("global", 3)
    blocks, cores, plan_runs = make(3, specs, nnx.Rngs(0))
    x = np.random.default_rng(0).standard_normal((2, 6, 8), dtype=np.float32)
    got, every = jax.jit(lambda x: run(blocks, cores, plan_runs, x))(x)
    assert len(every) == 3
    np.testing.assert_array_equal(every[-1], got)
    want = jax.jit(lambda x: one_by_one(blocks, cores, plan_runs, x))(x)
    np.testing.assert_allclose(got, want, atol=1e-5)

    graph, params = nnx.split(blocks)

    def loss(params, how):
        return jnp.sum(how(nnx.merge(graph, params), cores, plan_runs, x)[0] ** 2)

    def loop(*args):
        return (one_by_one(*args),)

    gradient = jax.jit(jax.grad(loss), static_argnums=1)
    a, b = gradient(params, run), gradient(params, loop)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_strategies_only_add_parameters():
    """A student's parameters are a superset of its teacher's, whatever the runs."""
    teacher, _, _ = make(4, Plan().specs("global", 4), nnx.Rngs(0))
    rules = (Rule("global", Scaled(1.0), (1, 2)),)
    student, cores, _ = make(4, Plan(rules).specs("global", 4), nnx.Rngs(0))
    shapes = [jax.tree.map(jnp.shape, nnx.state(m, nnx.Param)) for m in (teacher, student)]
    assert jax.tree.leaves(shapes[0]) == jax.tree.leaves(shapes[1])
    assert [jnp.shape(x) for x in jax.tree.leaves(nnx.state(cores, nnx.Param))] == [(2,)]


@functools.partial(jax.jit, static_argnums=(1, 2))
def new_block(x, config, dtype=jnp.float32):
    """What a block of random weights with dense attention makes of x."""
    rngs = traced_rngs(0)
    block = Block(config, dtype=dtype, rngs=rngs)
    core = Plan().default.build(heads=2, head_dim=4, param_dtype=jnp.float32, rngs=rngs)
    return block(x, core, LAYOUTS)


def test_block_by_hand():
    """LayerScale 0 leaves the residual stream alone; the attention tap is still computed."""
    x = np.random.default_rng(0).standard_normal((1, 6, 8), dtype=np.float32)
    y, attended = new_block(x, BlockConfig(8, 2, layer_scale=0.0))
    np.testing.assert_array_equal(y, x)
    assert np.abs(attended).max() > 0


def test_residual_stream_is_float32_under_bfloat16():
    y, attended = new_block(np.ones((1, 6, 8), np.float32), BlockConfig(8, 2), jnp.bfloat16)
    assert (y.dtype, attended.dtype) == (jnp.float32, jnp.bfloat16)


@pytest.mark.parametrize("mean", [10, 100])
def test_layer_norm_keeps_its_digits_far_from_zero(mean):
    x = mean + np.random.default_rng(0).standard_normal((4, 512))
    want = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    got = layer_norm(512, 1e-5, rngs=nnx.Rngs(0))(x.astype(np.float32))
    # Rounding the input itself costs 2^-24 of the mean.
    np.testing.assert_allclose(got, want, atol=1e-6 + mean * 2e-7)


@pytest.mark.slow
def test_remat_changes_no_value_and_keeps_less():
    graph, state = nnx.split(stack(lambda r: nnx.Linear(8, 8, rngs=r), 12, nnx.Rngs(0)))
    plan_runs = runs(Plan().specs("frame", 12))
    cores = build_cores(plan_runs, 0, 2, 4, jnp.float32, nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (4096, 8))

    def loss(state, x, remat):
        def body(x, index, modules, here, run):
            del index, here, run
            y = modules[0](x)
            return x + jnp.sin(jnp.cos(y) * jnp.exp(-y * y)), ()

        y, _ = scan_layers(body, x, [nnx.merge(graph, state)], [cores], plan_runs, remat)
        return (y**2).sum()

    leaves, memory = [], []
    for remat in (False, True):
        compiled = jax.jit(jax.value_and_grad(loss, (0, 1)), static_argnums=2)
        compiled = compiled.lower(state, x, remat).compile()
        memory.append(compiled.memory_analysis().temp_size_in_bytes)
        leaves.append(jax.tree.leaves(compiled(state, x)))
    np.testing.assert_array_equal(leaves[1][0], leaves[0][0])
    for got, want in zip(leaves[1][1:], leaves[0][1:], strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    carries = 12 * x.nbytes
    assert memory[1] < 1.5 * carries < 3 * carries < memory[0]


def test_runs_of_some_layers_copy_no_weights():
    graph, state = nnx.split(stack(lambda r: nnx.Linear(64, 64, rngs=r), 6, nnx.Rngs(0)))
    plan_runs = runs(Plan((Rule("frame", Scaled(), (2, 3)),)).specs("frame", 6))
    cores = build_cores(plan_runs, 0, 2, 4, jnp.float32, nnx.Rngs(0))
    x = np.random.default_rng(0).standard_normal((2, 64), np.float32)

    def forward(state, x, remat):
        def body(x, index, modules, here, run):
            del index, here, run
            return x + modules[0](x), ()

        return scan_layers(body, x, [nnx.merge(graph, state)], [cores], plan_runs, remat)[0]

    def compiled(remat):
        return jax.jit(forward, static_argnums=2).lower(state, x, remat).compile()

    plain, sliced = map(compiled, (False, True))
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert plain.memory_analysis().temp_size_in_bytes < 0.5 * weights
    np.testing.assert_allclose(plain(state, x), sliced(state, x), rtol=1e-6, atol=1e-6)
