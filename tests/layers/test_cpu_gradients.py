"""Forms of gradients for a CPU: values and gradients are those of JAX's own functions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType

from lite3r_jax.layers import cpu_gradients
from lite3r_jax.layers.gelu import exact_gelu
from lite3r_jax.layers.resize import _along, resize_aligned

HIGHEST = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def conv(function, x, kernel):
    return function(x, kernel, (1, 1), ((1, 1), (1, 1)), **HIGHEST)


def dot(function, x, kernel):
    return function(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))


def pulled(function, *args, seed=5):
    """(value, gradients) for a random gradient of the value."""
    value, pull = jax.vjp(function, *args)
    return value, pull(draw(*value.shape, seed=seed))


@pytest.mark.parametrize("side,channels", [(96, 8), (97, 16)])
def test_a_convolution_of_large_maps_has_the_same_value_and_gradients(side, channels):
    x, kernel = draw(2, 96, side, channels), draw(3, 3, channels, 5, seed=1)
    got = pulled(lambda x, k: conv(cpu_gradients.conv_general_dilated, x, k), x, kernel)
    want = pulled(lambda x, k: conv(lax.conv_general_dilated, x, k), x, kernel)
    np.testing.assert_array_equal(got[0], want[0])
    for a, b in zip(got[1], want[1], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-3)


def test_its_weight_gradient_is_no_convolution_over_the_image():
    """XLA's form has a window as large as the map: the one that is slow on a CPU."""
    x, kernel = draw(1, 96, 96, 8), draw(3, 3, 8, 4)

    def windows(function):
        text = str(jax.make_jaxpr(jax.grad(lambda k: conv(function, x, k).sum()))(kernel))
        return text.count("conv_general_dilated")

    # the forward pass, and the gradient of x, which nobody asked for and XLA leaves out
    assert "scan" in str(
        jax.make_jaxpr(jax.grad(lambda k: conv(cpu_gradients.conv_general_dilated, x, k).sum()))(
            kernel
        )
    )
    assert windows(lax.conv_general_dilated) == 2


@pytest.mark.parametrize("shape", [(1, 40, 40, 8), (1, 96, 96, 32)])
def test_other_shapes_are_left_to_jax(shape):
    x, kernel = draw(*shape), draw(3, 3, shape[-1], 4)
    text = jax.make_jaxpr(lambda x, k: conv(cpu_gradients.conv_general_dilated, x, k))(x, kernel)
    assert "custom_vjp" not in str(text)


@pytest.mark.parametrize("outputs", [2, 24, 96])
def test_a_linear_has_the_same_value_and_gradients(outputs):
    x, kernel = draw(3, 50, 48), draw(48, outputs, seed=1)
    got = pulled(lambda x, k: dot(cpu_gradients.dot_general, x, k), x, kernel)
    want = pulled(lambda x, k: dot(lax.dot_general, x, k), x, kernel)
    assert got[0].shape == (3, 50, outputs)
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5, atol=1e-5)
    for a, b in zip(got[1], want[1], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_on_a_mesh_of_several_devices_both_are_jax_functions():
    mesh = jax.sharding.AbstractMesh((2,), ("data",), axis_types=(AxisType.Auto,))
    x, kernel = draw(2, 96, 96, 8), draw(3, 3, 8, 4)
    with jax.sharding.use_abstract_mesh(mesh):
        one = jax.make_jaxpr(lambda: conv(cpu_gradients.conv_general_dilated, x, kernel))()
        two = jax.make_jaxpr(lambda: dot(cpu_gradients.dot_general, x, kernel[0, 0]))()
    assert "custom_vjp" not in str(one) + str(two)


def test_the_gelu_is_that_of_jax_and_keeps_its_input_alone():
    x = np.concatenate([draw(2000) * 3, np.float32([0, -30, 30, -5.5, 5.5])])
    np.testing.assert_array_equal(exact_gelu(x), jax.nn.gelu(x, approximate=False))
    got, pull = jax.vjp(exact_gelu, x)
    want, wanted = jax.vjp(lambda x: jax.nn.gelu(x, approximate=False), x)
    np.testing.assert_allclose(got, want, atol=1e-6)
    up = draw(*x.shape, seed=2)
    np.testing.assert_allclose(pull(up)[0], wanted(up)[0], atol=2e-6)
    assert sum(np.size(kept) for kept in jax.tree.leaves(pull)) <= x.size


def test_the_gelu_of_half_precision_has_its_dtype_and_slope():
    x = jnp.linspace(-4, 4, 101, dtype=jnp.bfloat16)
    value, pull = jax.vjp(exact_gelu, x)
    (slope,) = pull(jnp.ones_like(value))
    assert value.dtype == slope.dtype == jnp.bfloat16
    want = jax.vmap(jax.grad(lambda x: jax.nn.gelu(x, approximate=False)))(x.astype(jnp.float32))
    np.testing.assert_allclose(slope.astype(jnp.float32), want, atol=1e-2)


@pytest.mark.parametrize("size", [(7, 7), (12, 9), (3, 20), (1, 1)])
def test_the_gradient_of_a_resize_is_that_of_its_gather(size):
    x, up = draw(2, 5, 7, 3), draw(2, *size, 3, seed=1)
    got = jax.vjp(lambda x: resize_aligned(x, size), x)[1](up)[0]
    want = jax.vjp(lambda x: _along(_along(x, 1, size[0]), 2, size[1]), x)[1](up)[0]
    np.testing.assert_allclose(got, want, atol=1e-5)
