"""Schedules by closed form, AdamW against float64, Muon by what it does to singular values."""

import jax
import numpy as np
import optax
import pytest

from lite3r_jax.errors import InputError
from lite3r_jax.training.optimizer import OptimizerOptions, learning_rate, make_optimizer


def test_the_rate_rises_to_the_top_and_falls_along_a_cosine():
    options = OptimizerOptions(learning_rate=2.0, warmup=4, final_lr_scale=0.1)
    got = jax.vmap(learning_rate(options, 24))(np.arange(25))
    np.testing.assert_allclose(got[:5], [0.5, 1.0, 1.5, 2.0, 2.0], rtol=1e-6)
    np.testing.assert_allclose(got[14], 2 * (0.1 + 0.9 / 2), rtol=1e-6)
    np.testing.assert_allclose(got[24], 0.2, rtol=1e-6)
    assert (np.diff(got[4:]) < 0).all()


def test_a_linear_rate_falls_along_a_line():
    rate = learning_rate(
        OptimizerOptions(learning_rate=2.0, schedule="linear", warmup=2, final_lr_scale=0.5), 12
    )
    got = [rate(i) for i in (0, 1, 2, 7, 12, 20)]
    np.testing.assert_allclose(got, [1, 2, 2, 1.5, 1, 1], rtol=1e-6)


def test_a_constant_rate_stays():
    rate = learning_rate(OptimizerOptions(learning_rate=0.5, schedule="constant", warmup=2), 5)
    np.testing.assert_allclose([rate(i) for i in (0, 1, 2, 100)], [0.25, 0.5, 0.5, 0.5])


def test_adamw_is_adamw_and_only_kernels_decay():
    options = OptimizerOptions(
        learning_rate=0.1, schedule="constant", weight_decay=0.3, b1=0.8, b2=0.9
    )
    rng = np.random.default_rng(0)
    params = {name: rng.standard_normal(5) for name in ("a/kernel", "a/bias")}
    here = {name: x.astype(np.float32) for name, x in params.items()}
    optimizer = make_optimizer(options, here, 10)
    state = optimizer.init(here)
    first = {name: np.zeros(5) for name in params}
    second = {name: np.zeros(5) for name in params}
    for t in range(1, 4):
        grads = {name: rng.standard_normal(5) for name in params}
        updates, state = optimizer.update(
            {name: g.astype(np.float32) for name, g in grads.items()}, state, here
        )
        here = optax.apply_updates(here, updates)
        for name, g in grads.items():
            first[name] = 0.8 * first[name] + 0.2 * g
            second[name] = 0.9 * second[name] + 0.1 * g * g
            slope = first[name] / (1 - 0.8**t) / (np.sqrt(second[name] / (1 - 0.9**t)) + 1e-8)
            decay = 0.3 * params[name] if name == "a/kernel" else 0
            params[name] = params[name] - 0.1 * (slope + decay)
    for name, want in params.items():
        np.testing.assert_allclose(here[name], want, rtol=2e-5, err_msg=name)


def test_muon_equalizes_the_singular_values_of_every_layer_and_leaves_the_rest_to_adam():
    options = OptimizerOptions(
        "muon", learning_rate=1.0, schedule="constant", weight_decay=0.0, muon="k$"
    )
    rng = np.random.default_rng(1)
    grads = {"k": rng.standard_normal((2, 8, 4), np.float32), "bias": np.float32([3, -2])}
    grads["k"][1] *= 1e-3  # a layer of its own: its size does not matter
    params = {name: np.zeros_like(x) for name, x in grads.items()}
    optimizer = make_optimizer(options, params, 10)
    updates, _ = jax.jit(optimizer.update)(grads, optimizer.init(params), params)
    values = np.linalg.svd(updates["k"], compute_uv=False) / (0.2 * 8**0.5)
    assert (values > 0.6).all() and (values < 1.3).all()
    assert np.linalg.svd(grads["k"][0], compute_uv=False).max() > 1.5  # they were not before
    for layer in range(2):  # against the gradient
        assert (updates["k"][layer] * grads["k"][layer]).sum() < 0
    np.testing.assert_allclose(updates["bias"], [-1, 1], rtol=1e-5)


@pytest.mark.parametrize(
    "options,message",
    [
        ({"decay": "nothing"}, "optimizer.decay: 'nothing' is in the path of no parameter"),
        ({"name": "muon", "muon": "bias"}, "optimizer.muon: a/bias is no matrix"),
        ({"learning_rate": 0.0}, "expected learning_rate > 0"),
        ({"learning_rate": float("nan")}, "expected learning_rate > 0"),
        ({"b2": 1.0}, r"b1 and b2 in \[0, 1\)"),
    ],
)
def test_settings_without_a_meaning_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        params = {"a/kernel": np.ones((2, 2)), "a/bias": np.ones(2)}
        make_optimizer(OptimizerOptions(**options), params, 10)


def test_without_weight_decay_no_name_is_looked_for():
    make_optimizer(OptimizerOptions(weight_decay=0.0), {"scale": np.ones(2)}, 10)


def test_a_constant_rate_falls_along_a_line_over_the_last_updates():
    options = OptimizerOptions(
        learning_rate=2.0, schedule="constant", warmup=4, decay_steps=10, final_lr_scale=0.1
    )
    rate = learning_rate(options, 100)
    assert [float(rate(n)) for n in (0, 4, 50, 90)] == [0.5, 2, 2, 2]
    np.testing.assert_allclose([rate(95), rate(100), rate(120)], [1.1, 0.2, 0.2], rtol=1e-6)


def test_decay_steps_are_for_a_constant_rate_only():
    with pytest.raises(InputError, match="decay_steps: expected 0, or more with schedule=constant"):
        OptimizerOptions(decay_steps=5)
