"""Products of Linears in bfloat16 with sums in float32, and residual sums computed once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType

from lite3r_jax.layers.cpu_gradients import KEEP_BARRIERS, computed_once, dot_general
from lite3r_jax.layers.mlp import Mlp
from lite3r_jax.layers.norm import layer_norm
from lite3r_jax.layers.rounded_products import active, product, product_on_cpu, rounded_products
from lite3r_jax.training.optimizer import OptimizerOptions
from lite3r_jax.training.sharding import MeshOptions
from lite3r_jax.training.step import StepOptions
from lite3r_jax.training.trainer import make_trainer


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def rounded(x):
    """In float64, so that sums of the reference have no error of their own."""
    return np.asarray(jnp.asarray(x, jnp.bfloat16)).astype(np.float64)


@pytest.mark.parametrize("c,f", [(48, 160), (160, 48), (32, 2)])
@pytest.mark.parametrize("function", [product, product_on_cpu])
def test_value_and_gradients_are_sums_of_rounded_operands(function, c, f):
    x, kernel, g = draw(70, c), draw(c, f, seed=1), draw(70, f, seed=2)
    value, pull = jax.jit(lambda x, k, g: (lambda y, p: (y, p(g)))(*jax.vjp(function, x, k)))(
        x, kernel, g
    )
    assert value.dtype == pull[0].dtype == pull[1].dtype == jnp.float32
    wanted = (
        rounded(x) @ rounded(kernel),
        rounded(g) @ rounded(kernel).T,
        rounded(x).T @ rounded(g),
    )
    for got, want in zip((value, *pull), wanted, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-4)
    assert np.abs(value - x @ kernel).max() > 1e-3  # it did round


def test_a_linear_rounds_only_within_and_only_float32():
    linear = nnx.Linear(24, 8, dot_general=dot_general, rngs=nnx.Rngs(0))
    x, kernel = draw(2, 5, 24), np.asarray(linear.kernel[...])
    plain = linear(x)
    with rounded_products():
        assert active()
        got, half = linear(x), jax.eval_shape(
            lambda: dot_general(jnp.ones((3, 24), jnp.bfloat16), jnp.ones((24, 8), jnp.bfloat16),
                                (((1,), (0,)), ((), ())))
        )  # fmt: skip
        with rounded_products(False):
            np.testing.assert_array_equal(linear(x), plain)
    assert not active()
    np.testing.assert_array_equal(linear(x), plain)
    np.testing.assert_allclose(got, rounded(x) @ rounded(kernel), rtol=1e-5, atol=1e-5)
    assert half.dtype == jnp.bfloat16


def test_on_a_mesh_of_several_devices_operands_are_rounded_without_merging_axes():
    mesh = jax.sharding.AbstractMesh((2,), ("data",), axis_types=(AxisType.Auto,))
    layer, x = Mlp(16, 64, rngs=nnx.Rngs(0)), draw(2, 6, 16)
    with jax.sharding.use_abstract_mesh(mesh), rounded_products():
        text = str(jax.make_jaxpr(lambda x: layer(x))(x))
    assert "bf16[2,6,16]" in text and "bf16[12,16]" not in text


def test_a_step_multiplies_rounded_operands_alone():
    """The gradient of an MLP has no product of float32 operands."""
    layer = Mlp(64, 256, rngs=nnx.Rngs(0))
    graph, state = nnx.split(layer)
    slope = jax.grad(lambda state, x: nnx.merge(graph, state)(x).sum(), (0, 1))
    with rounded_products():
        text = jax.jit(slope).lower(state, draw(3, 40, 64)).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert len(products) == 5
    assert all("xbf16>" in line.partition("->")[0] for line in products)


class Layers(nnx.Module):
    """Residual MLPs, one after the other."""

    def __init__(self, depth, settle=computed_once):
        rngs = nnx.Rngs(0)
        self.settle = settle
        self.mlps = nnx.List([Mlp(64, 128, rngs=rngs) for _ in range(depth)])
        self.norms = nnx.List([layer_norm(64, 1e-5, rngs=rngs) for _ in range(depth)])

    def __call__(self, x):
        for mlp, norm in zip(self.mlps, self.norms, strict=True):
            x = self.settle(x + mlp(norm(x)))
        return x


def slope_of(depth, options, settle=computed_once):
    graph, state = nnx.split(Layers(depth, settle))

    def objective(state, x):
        return jnp.square(nnx.merge(graph, state)(x)).sum()

    return jax.jit(jax.grad(objective, (0, 1)), compiler_options=options), state


def test_the_work_of_residual_sums_grows_with_depth_alone_where_barriers_stay():
    """Otherwise each use of the gradient of a stream computes the sums of all later layers."""

    def additions(depth, *settle):
        slope, state = slope_of(depth, KEEP_BARRIERS, *settle)
        return slope.lower(state, draw(40, 64)).compile().as_text().count(" add(")

    few, many = additions(3), additions(6)
    assert many == pytest.approx(2 * few, rel=0.02)
    assert additions(6, lambda x: x) > 1.2 * many


@pytest.mark.parametrize("products", ["dtype", "bfloat16"])
def test_a_training_step_on_a_cpu_keeps_barriers_and_rounds_as_its_option_says(products):
    def loss(model, batch, key):
        del key
        return jnp.square(model(batch["x"])).mean(), {}

    trainer = make_trainer(
        Layers(2), loss, steps=1, optimizer=OptimizerOptions(), mesh=MeshOptions(data=1),
        options=StepOptions(products=products),
    )  # fmt: skip
    lowered = trainer.step.lower(trainer.new_state(), trainer.frozen, {"x": draw(40, 64)})
    dots = [line for line in lowered.as_text().splitlines() if "dot_general" in line]
    rounded = ["xbf16>" in line.partition("->")[0] for line in dots]
    assert len(dots) >= 11 and set(rounded) == {products == "bfloat16"}
    assert "opt-barrier" in lowered.compile().as_text()


def test_barriers_change_no_number_beyond_rounding():
    (kept, state), (plain, _), x = slope_of(3, KEEP_BARRIERS), slope_of(3, None), draw(40, 64)
    for a, b in zip(jax.tree.leaves(kept(state, x)), jax.tree.leaves(plain(state, x)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)
