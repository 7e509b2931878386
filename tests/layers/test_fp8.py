"""Blocks with float8 weights: fused kernels in the place of norms, GELU and quantization."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lite3r_jax.attention.strategy import AttentionCore, Layouts, TokenLayout
from lite3r_jax.layers.block import Block, BlockConfig
from lite3r_jax.layers.fp8 import Fp8Linear, describe_products, products
from lite3r_jax.precision import Fp8Rule, deploy
from tests.kernels.devices import described_gpu, proven_gpu

LAYOUTS = Layouts.both(TokenLayout(1, 1, (2, 6), "frame"))
WIDTH = 32
RULES = [Fp8Rule(".")]


class Looks(AttentionCore):
    """A strategy that looks at the input of the layer."""

    def __call__(self, inputs):
        mean = inputs.x.mean(axis=-1)[..., None, None]
        return jnp.tanh(inputs.q) + inputs.v * (inputs.k.mean(axis=1, keepdims=True) + mean)


class Net(nnx.Module):
    def __init__(self, ffn="mlp", dtype=jnp.float32, dim=WIDTH):
        config = BlockConfig(dim, 2, ffn=ffn, qk_norm=True, layer_scale=1.0)
        self.block = Block(config, dtype=dtype, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.block(x, Looks(), LAYOUTS)[0]


def build(**kinds):
    """With numbers from the host: nothing is compiled."""
    rng = np.random.default_rng(0)
    graph, state = nnx.split(nnx.eval_shape(lambda: Net(**kinds)))
    state = jax.tree.map(lambda a: jnp.asarray(rng.normal(0, 0.3, a.shape), a.dtype), state)
    return nnx.merge(graph, state)


def fused(model, name="triton"):
    """The deployed model with the code of its kernels as plain JAX."""
    model = nnx.merge(*nnx.split(model))
    for _, module in nnx.iter_modules(model):
        if isinstance(module, Fp8Linear) and module.weight.shape[-1] % 16 == 0:
            module.implementation, module.interpret = name, True
    return model


def kernel_calls(model, x):
    graph, state = nnx.split(model)
    text = str(jax.make_jaxpr(lambda state, x: nnx.merge(graph, state)(x))(state, x))
    return text.count("pallas_call[") + text.count("core_map[")


@pytest.mark.parametrize(
    "ffn,dtype",
    [
        ("mlp", "float32"),
        pytest.param("mlp", "bfloat16", marks=pytest.mark.slow),
        pytest.param("swiglu", "float32", marks=pytest.mark.slow),
    ],
)
def test_a_block_computes_the_same_with_a_kernel_for_each_quantization(ffn, dtype):
    model = deploy(build(ffn=ffn, dtype=jnp.dtype(dtype)), RULES, "fp8_dynamic")
    x = jnp.asarray(np.random.default_rng(1).normal(1, 3, (2, 13, WIDTH)), jnp.float32)
    kernels = fused(model)
    # One for each Linear: with norm1, alone, with norm2, and with GELU. The last Linear of this
    # SwiGLU has 88 inputs, which the kernel is not made for.
    count = {"mlp": 4, "swiglu": 3}[ffn]
    assert (kernel_calls(model, x), kernel_calls(kernels, x)) == (0, count)
    plain, got = (np.asarray(jax.jit(m)(x), np.float64) for m in (model, kernels))
    size = np.abs(plain).max()
    assert np.abs(plain - np.asarray(x)).max() > 0.1 * size
    # A sum in another order may move a value over the edge between two codes.
    near = 0.02 if dtype == "float32" else 0.05
    error = np.abs(got - plain)
    assert error.max() < near * size and np.median(error) < near / 20 * size


def test_on_a_cpu_nothing_is_fused_and_on_a_hopper_gpu_what_fits():
    model = nnx.eval_shape(lambda: deploy(Net(dim=256), RULES, "fp8_dynamic"))
    paths = ["block/attn/proj", "block/attn/qkv", "block/mlp/fc1", "block/mlp/fc2"]
    assert products(model, 2748) == dict.fromkeys(paths, "xla")
    assert describe_products(model) == "xla x 4" and describe_products(build()) == ""
    x = jax.ShapeDtypeStruct((2, 13, 256), jnp.float32)
    assert kernel_calls(model, x) == 0
    with described_gpu():
        assert products(model, 2748) == dict.fromkeys(paths, "xla"), "nothing is proven"
    with proven_gpu():
        assert products(model, 2748) == dict.fromkeys(paths, "mosaic")
        assert products(model, 100) == dict.fromkeys(paths, "triton")
        weights = nnx.eval_shape(lambda: deploy(Net(dim=256), RULES, "fp8_weight_only"))
        assert products(weights, 2748) == dict.fromkeys(paths, "xla")
        named = nnx.eval_shape(
            lambda: deploy(Net(dim=256), RULES, "fp8_dynamic", implementation="mosaic")
        )
        with pytest.raises(ValueError, match="100 tokens are fewer than the 128 of a tile"):
            products(named, 100)
    with pytest.raises(ValueError, match="cannot run this: its kernels are for NVIDIA GPUs"):
        products(named, 2748)
    with pytest.raises(ValueError, match="unknown implementation 'fast'"):
        deploy(model, RULES, "fp8_dynamic", implementation="fast")


def test_a_norm_in_another_dtype_than_the_linear_stays_with_xla():
    model = fused(deploy(build(), RULES, "fp8_dynamic"))
    model.block.norm1.dtype = jnp.bfloat16
    x = jax.ShapeDtypeStruct((2, 13, WIDTH), jnp.float32)
    assert kernel_calls(model, x) == 4  # that of the Linear, which then quantizes what it gets
