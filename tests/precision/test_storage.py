"""Weights stored as float8: their size, their dtype, and the whole model that runs with them."""

from dataclasses import replace

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from lite3r_jax.errors import InputError
from lite3r_jax.layers.fp8 import Fp8Linear
from lite3r_jax.precision import (
    Fp8Rule,
    apply_precision,
    deploy,
    freeze_quantized,
    preset,
)
from lite3r_jax.training import parameters
from tests.kernels.devices import described_tpu
from tests.precision.net import ALL, WIDTH


def test_stored_weights_take_a_byte_each_and_are_no_parameters(published):
    model = published("vggt")
    student = freeze_quantized(apply_precision(model, preset("default")), ("proj_lin",))
    _, _, frozen = parameters.split(student, ("proj_lin",), count=360_448)
    before = parameters.split(model, ("proj_lin",))[2]
    weights = {path for path in frozen if path.endswith("/weight")}
    assert len(weights) == 3 * 4 + 4 + 3
    for path in weights:
        *lead, inputs, outputs = before[path.removesuffix("weight") + "kernel"].shape
        assert frozen[path].shape == (*lead, outputs, inputs)
        assert frozen[path].dtype == ml_dtypes.float8_e4m3fn
        assert frozen[path + "_scale"].shape == (*lead, outputs)
    with pytest.raises(InputError, match="is in the path of no parameter"):
        parameters.split(student, (r"qkv/weight",))

    def size(arrays):
        return sum(np.prod(a.shape) * a.dtype.itemsize for a in arrays.values())

    assert size(frozen) < 0.52 * size(before)


def test_what_no_rule_is_for_is_held_in_the_dtype_that_is_asked_for(net):
    before = {path: np.asarray(x) for path, x in nnx.to_flat_state(nnx.state(net))}
    stored = deploy(net, (Fp8Rule("layers"),), "fp8_weight_only", rest=jnp.bfloat16)
    variables = dict(nnx.to_flat_state(nnx.state(stored)))
    rest = {path for path in variables.keys() & before.keys() if type(variables[path]) is nnx.Param}
    assert rest
    for path in rest:
        assert variables[path].dtype == jnp.bfloat16
        np.testing.assert_array_equal(variables[path], before[path].astype(jnp.bfloat16))
    kept = {str(x.dtype) for path, x in variables.items() if path not in rest}
    assert kept == {"float8_e4m3fn", "float32"}
    for path, x in nnx.to_flat_state(nnx.state(net)):  # the model is not changed
        np.testing.assert_array_equal(x, before[path])


def test_weights_in_int8_are_stored_and_multiplied_as_they_were_simulated(net):
    rules = (Fp8Rule("layers|heads", weights="int8", activations=None),)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((4, WIDTH)), jnp.float32)
    exact, simulated = net(x)[0], apply_precision(net, rules)(x)[0]
    for kind in ("fp8_weight_only", "fp8_dynamic"):
        with described_tpu("TPU v6 lite"):
            stored = deploy(net, rules, kind)
        variables = dict(nnx.to_flat_state(nnx.state(stored)))
        assert sum(v.dtype == jnp.int8 for v in variables.values()) == 2
        np.testing.assert_allclose(stored(x)[0], simulated, rtol=1e-5, atol=1e-5)
    error = float(jnp.abs(simulated - exact).max() / jnp.abs(exact).max())
    e4m3 = apply_precision(net, (Fp8Rule("layers", activations=None),))(x)[0]
    assert 0 < error < 0.01 and error < float(jnp.abs(e4m3 - exact).max() / jnp.abs(exact).max())
    with pytest.raises(InputError, match="weights in int8 are multiplied by activations as they"):
        Fp8Rule("layers", weights="int8")
    with pytest.raises(InputError, match="activations must be one of e4m3, e5m2 or None"):
        Fp8Rule("layers", activations="int8")  # pyright: ignore


def test_deployment_names_what_it_does_not_know(net):
    with pytest.raises(InputError, match="choose fp8_weight_only, fp8_dynamic"):
        deploy(net, ALL, "int8")  # pyright: ignore
    with pytest.raises(InputError, match="can only be simulated"):
        deploy(net, (Fp8Rule("layers", weights=None),), "fp8_dynamic")
    with pytest.raises(InputError, match="quantize 5 Linears, expected 6"):
        deploy(net, ALL, "fp8_dynamic", count=6)


def test_float8_products_are_refused_by_name_on_a_tpu_that_has_none(net):
    for kind in ("TPU v5 lite", "TPU v5"):
        with described_tpu(kind):
            with pytest.raises(InputError, match=f"{kind} has no float8 products, .*weight_only"):
                deploy(net, ALL, "fp8_dynamic")
            deploy(net, ALL, "fp8_weight_only")
            apply_precision(net, ALL)
    with described_tpu("TPU v6 lite"):
        deploy(net, ALL, "fp8_dynamic")


@pytest.mark.slow
def test_the_whole_model_simulated_frozen_and_deployed(tiny_vggt, tiny_images):
    def forward(model):
        prediction, taps = model(tiny_images, taps=("frame/blocks",))
        tensors = prediction.depth, prediction.pose_enc, taps["frame/blocks"][0]
        return [np.asarray(x, np.float64) for x in tensors]

    def apart(actual, wanted):
        return max(
            np.abs(a - b).max() / np.abs(b).max() for a, b in zip(actual, wanted, strict=True)
        )

    plain = forward(tiny_vggt)
    weights = tuple(replace(rule, activations=None) for rule in preset("default"))
    exact = forward(apply_precision(tiny_vggt, weights))
    assert 1e-3 < apart(exact, plain) < 0.3
    assert apart(forward(freeze_quantized(apply_precision(tiny_vggt, weights))), exact) < 1e-4
    assert apart(forward(deploy(tiny_vggt, weights, "fp8_weight_only")), exact) < 1e-4

    # The order of a sum moves activations over the edge between two codes, and every layer makes
    # more of it: at the end it counts as much as quantization itself. It reaches few values of the
    # first block, and activations that are not rounded change most of them.
    def typical(actual, wanted):
        return np.median(np.abs(actual[-1] - wanted[-1])) / np.abs(wanted[-1]).mean()

    rules = preset("default")
    simulated = forward(apply_precision(tiny_vggt, rules))
    frozen = forward(freeze_quantized(apply_precision(tiny_vggt, rules)))
    deployed = forward(deploy(tiny_vggt, rules, "fp8_dynamic"))
    assert typical(simulated, exact) > 0.02
    assert typical(frozen, simulated) < 0.005 and typical(deployed, simulated) < 0.005
    for outputs in (simulated, frozen, deployed):
        assert apart(outputs, plain) < 0.5


@pytest.mark.slow
def test_the_whole_deployed_model_with_fused_kernels(tiny_vggt, tiny_images):
    def forward(model):
        prediction, _ = model(tiny_images[:1, :2])
        return [np.asarray(a, np.float64) for a in (prediction.depth, prediction.pose_enc)]

    model = deploy(tiny_vggt, preset("default"), "fp8_dynamic")
    plain, deployed = forward(tiny_vggt), forward(model)
    fused = 0
    for _, module in nnx.iter_modules(model):
        # What the kernels are made for, with their code as plain JAX.
        if isinstance(module, Fp8Linear) and module.weight.shape[-1] % 16 == 0:
            module.implementation, module.interpret = "triton", True
            fused += 1
    assert fused >= 4 * 4  # Linears of the encoder, of two stacks of the trunk, of the camera head
    for a, b, c, part in zip(plain, deployed, forward(model), (0.5, 1.5), strict=True):
        # Sums in another order move values over the edge between two codes, at every layer again,
        # and poses are refined four times: beside quantization itself it counts for depth half at
        # most, and for poses as much as another quantization.
        quantization, kernels = (np.sqrt(np.mean((x - y) ** 2)) for x, y in ((a, b), (b, c)))
        print(f"of {np.abs(a).max():.3g}: quantization {quantization:.2g}, kernels {kernels:.2g}")
        assert 0 < kernels < part * quantization
