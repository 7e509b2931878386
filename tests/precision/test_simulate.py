"""What simulated quantization computes, and what its gradients reach."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from lite3r_jax.attention.sla import SLA
from lite3r_jax.attention.strategy import AttentionInputs, Layouts, TokenLayout
from lite3r_jax.errors import InputError
from lite3r_jax.kernels.fp8.reference import (
    fake_quantize_reference,
    int_reference,
    linear_reference,
    quantize_reference,
)
from lite3r_jax.layers.fp8 import Fp8Linear
from lite3r_jax.precision import (
    Fp8Rule,
    Int4Rule,
    QuantizedParam,
    apply_precision,
    deploy,
    freeze_quantized,
)
from lite3r_jax.training import parameters
from tests.precision.net import ALL, LAYERS, build, by_hand, flat, near, run


def test_off_is_the_model_itself(net):
    off = apply_precision(net, ())
    assert nnx.split(off)[0] == nnx.split(net)[0]
    before, after = flat(net), flat(off)
    assert before.keys() == after.keys()
    assert all(after[path].get_value() is before[path].get_value() for path in before)


def test_the_model_it_is_applied_to_does_not_change(net, x):
    before = nnx.split(net)[0]
    quantized = apply_precision(net, ALL)
    for other in (quantized, freeze_quantized(quantized), deploy(net, ALL, "fp8_dynamic")):
        assert nnx.split(net)[0] == before != nnx.split(other)[0]
    for path, variable in flat(quantized).items():
        assert variable.get_value() is flat(net)[path].get_value(), path


def test_equal_rules_give_equal_programs(net):
    graphs = [nnx.split(apply_precision(net, preset))[0] for preset in (ALL, tuple(ALL))]
    assert graphs[0] == graphs[1] and hash(graphs[0]) == hash(graphs[1])
    assert nnx.split(apply_precision(net, (*ALL[:1], Fp8Rule(".", scale="tensor"))))[0] != graphs[0]


@pytest.mark.parametrize("scale", ["row", pytest.param("tensor", marks=pytest.mark.slow)])
def test_simulated_frozen_and_deployed_compute_the_definition(net, x, scale):
    rules = (Fp8Rule("proj_lin", activations=None, scale=scale), Fp8Rule(".", scale=scale))
    options = {"weights": "e4m3", "scale": scale}
    simulated = apply_precision(net, rules, count=5)
    wanted = by_hand(net, x, activations="e4m3", **options)
    plain = by_hand(net, x, weights=None, activations=None, scale=scale)
    assert np.abs(wanted - plain).max() > 0.003 * np.abs(plain).max()
    matrix = np.asarray(net.cores[0].proj_lin[...])
    matrix = fake_quantize_reference(matrix, "e4m3", 0 if scale == "row" else None)
    *same, weights_only = run(
        x,
        simulated,
        freeze_quantized(simulated),
        deploy(net, rules, "fp8_dynamic"),
        deploy(net, rules, "fp8_weight_only"),
    )
    for ys, head, proj_lin in same:
        near(ys, wanted)
        kernel = np.asarray(net.heads[0].kernel[...])
        near(head, linear_reference(np.asarray(ys[0]), kernel, activations="e4m3", **options))
        near(proj_lin, matrix)
    near(weights_only[0], by_hand(net, x, activations=None, **options))
    near(weights_only[2], matrix)


LAYOUTS = Layouts.both(TokenLayout(2, 1, (4, 5), "global"))


class Attention(nnx.Module):
    """A core by itself."""

    def __init__(self, spec):
        self.core = spec.build(heads=2, head_dim=8, param_dtype=jnp.float32, rngs=nnx.Rngs(0))

    def __call__(self, qkv):
        """[3, B, T, N, D] -> [B, T, N, D]."""
        return self.core(AttentionInputs(*qkv, LAYOUTS))


@pytest.mark.parametrize(
    "spec",
    [
        SLA("token", 0.3, keep_special=False),
        *(
            pytest.param(spec, marks=pytest.mark.slow)
            for spec in (SLA(keep=0.3, block=4), SLA("block3", 0.3, 0.2, block=4))
        ),
    ],
    ids=lambda spec: spec.routing,
)
def test_the_input_of_proj_lin_is_quantized_for_every_token_of_a_head(spec):
    rng = np.random.default_rng(2)
    qkv = rng.standard_normal((3, 2, LAYOUTS.query.tokens, 2, 8)).astype("f4")
    model = Attention(spec)
    w = rng.standard_normal((8, 8)).astype("f4")

    def holding(value):
        other = nnx.merge(*nnx.split(model))
        other.core.proj_lin = nnx.Param(jnp.asarray(value))
        return other

    rules = (Fp8Rule("proj_lin"),)
    full = holding(w)
    off, unit, simulated, frozen, deployed, weights_only, folded = map(
        np.asarray,
        run(
            qkv,
            holding(np.zeros_like(w)),
            holding(np.eye(8, dtype="f4")),
            apply_precision(full, rules, count=1),
            freeze_quantized(apply_precision(full, rules)),
            deploy(full, rules, "fp8_dynamic"),
            deploy(full, rules, "fp8_weight_only"),
            apply_precision(full, (Fp8Rule("proj_lin", activations=None),)),
        ),
    )
    wanted = off + linear_reference(unit - off, w, weights="e4m3", activations="e4m3", scale="row")
    # A value between two codes can fall on either side.
    close = np.isclose(simulated, wanted, rtol=0, atol=1e-5).all(-1)
    assert close.mean() > 0.97
    assert np.abs(simulated - folded).max() > 20 * np.abs(simulated - wanted)[close].max()
    for same in (frozen, deployed):
        near(same, simulated, 1e-5)
    near(weights_only, folded, 1e-5)


def test_weights_are_quantized_as_they_are_held_and_not_as_they_are_computed_with(x):
    model = build(dtype=jnp.bfloat16)
    kernels = np.asarray(model.layers.kernel[...])
    stored = freeze_quantized(apply_precision(model, ALL)).layers
    codes, scale = quantize_reference(kernels, "e4m3", -2)
    got = np.asarray(stored.weight[...]).astype(np.float32)
    np.testing.assert_array_equal(got, codes.astype(np.float32).swapaxes(-1, -2))
    np.testing.assert_array_equal(stored.weight_scale[...], scale[:, 0])
    rounded = quantize_reference(kernels.astype(ml_dtypes.bfloat16), "e4m3", -2)[0]
    assert (rounded != codes).any()

    x = x.astype(ml_dtypes.bfloat16)
    wanted = by_hand(model, x, weights="e4m3", activations="e4m3", scale="row")
    for ys, *_ in run(x, apply_precision(model, ALL), deploy(model, ALL, "fp8_dynamic")):
        assert ys.dtype == jnp.bfloat16
        near(ys, wanted, 2.0**-7)


def test_integers_of_the_first_stage(net, x):
    rules = (Int4Rule("layers", group=8, activation_bits=8), Int4Rule("proj_lin", group=128))
    [(ys, _, proj_lin)] = run(x, apply_precision(net, rules, count=4))
    scale = np.abs(x).max(-1, keepdims=True) * np.float32(1 / 127)
    tokens = (np.round(x / scale) * scale).astype(np.float64)
    for y, w, b in zip(ys, net.layers.kernel[...], net.layers.bias[...], strict=True):
        near(y, tokens @ int_reference(np.asarray(w), 4, 8) + np.asarray(b), 2e-6)
    near(proj_lin, int_reference(np.asarray(net.cores[0].proj_lin[...]), 4, 8))
    with pytest.raises(InputError, match="stores no float8 weights"):
        deploy(net, rules, "fp8_dynamic")


def test_a_matrix_is_stored_as_it_is_and_read_quantized(net):
    model = apply_precision(net, ALL)
    matrix = model.cores[0].proj_lin
    raw = np.asarray(net.cores[0].proj_lin[...])
    assert isinstance(matrix, QuantizedParam) and isinstance(matrix, nnx.Param)
    np.testing.assert_array_equal(matrix.get_value(), raw)
    quantized = fake_quantize_reference(raw, "e4m3", 0)
    near(matrix[...], quantized)
    near(matrix[2], quantized[2])
    layout, trained, _ = parameters.split(model, ("proj_lin",), count=64)
    np.testing.assert_array_equal(trained["cores/0/proj_lin"], raw)
    again = layout.merge(*parameters.split(model)[1:])
    assert again.cores[0].proj_lin.get_metadata("rule") == ALL[0]


@pytest.mark.parametrize("frozen", [False, True])
def test_gradients_reach_what_is_trained(net, x, frozen):
    selected = ("bias" if frozen else "layers/", "proj_lin")
    model = freeze_quantized(apply_precision(net, ALL), selected)
    assert isinstance(model.layers, Fp8Linear if frozen else nnx.Linear)
    assert isinstance(model.heads[0], Fp8Linear)
    layout, trained, kept = parameters.split(model, selected)
    up = np.random.default_rng(3).standard_normal((LAYERS, 2, 5, 10)).astype(np.float32)

    def loss(trained, x):
        ys, _, proj_lin = layout.merge(trained, kept)(x)
        return (ys * up).sum() + (proj_lin**2).sum()

    grads, dx = jax.jit(jax.grad(loss, (0, 1)))(trained, x)
    assert grads.keys() == trained.keys()
    near(grads["layers/bias"], up.sum((1, 2)), 1e-5)
    raw = np.asarray(net.cores[0].proj_lin[...])
    near(grads["cores/0/proj_lin"], 2 * fake_quantize_reference(raw, "e4m3", 0))
    kernels = fake_quantize_reference(np.asarray(net.layers.kernel[...]), "e4m3", -2)
    near(dx, np.einsum("labn,lkn->abk", up, kernels.astype(np.float64)), 1e-5)
    if not frozen:
        tokens = fake_quantize_reference(x, "e4m3", -1)
        near(grads["layers/kernel"], np.einsum("abk,labn->lkn", tokens, up), 1e-5)
