"""One step: what it changes, what it must not, and when it does nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import tree_map

from lite3r_jax.errors import InputError
from lite3r_jax.training.parameters import split
from lite3r_jax.training.sharding import place_batch
from lite3r_jax.training.step import StepOptions, make_step
from tests.training.toy import Toy, ToyBatch, toy_trainer


def plain_loss(model, batch, key):
    """Without noise; where `trap` is set, the root of 0: a value, but no slope."""
    del key
    error = model(batch["x"]) - batch["y"]
    trap = jnp.where(batch["trap"].max() > 0, 0 * model.proj_lin.bias[...], 1.0)
    return (error**2).mean() + jnp.sqrt(trap).sum(), {"nonfinite_x": batch["nan"].sum()}


def batch(step=1, **changes):
    arrays = ToyBatch(step, range(8)).arrays() | {"trap": np.zeros(8, np.float32)}
    return arrays | {k: np.asarray(v, np.float32) for k, v in changes.items()}


def run(trainer, batches, state=None):
    """(state, metrics of every step) on the host."""
    state = trainer.new_state() if state is None else state
    seen = []
    for arrays in batches:
        placed = place_batch(arrays, trainer.mesh, trainer.options.accumulate)
        state, metrics = trainer.step(state, trainer.frozen, placed)
        seen.append({k: float(v) for k, v in metrics.items()})
    return tree_map(functools.partial(np.array, copy=True), state), seen


def plain(**more):
    return toy_trainer(loss_fn=plain_loss, **more)


@pytest.fixture(scope="module")
def proj_only():
    return plain(options=StepOptions(spike_window=16), trainable=("proj_lin",), count=200)


def test_a_step_is_the_optimizer_on_the_clipped_gradient(proj_only):
    layout, trained, frozen = split(Toy(), ("proj_lin",))

    @jax.jit
    @jax.value_and_grad
    def loss(params):
        return ((layout.merge(params, frozen)(batch()["x"]) - batch()["y"]) ** 2).mean()

    value, grads = loss(trained)
    norm = np.sqrt(sum((np.asarray(g, np.float64) ** 2).sum() for g in grads.values()))
    assert norm > 1  # else nothing is clipped
    clipped = {k: g / norm for k, g in grads.items()}
    optimizer = proj_only.optimizer
    updates, _ = optimizer.update(clipped, optimizer.init(trained), trained)
    want = optax.apply_updates(trained, updates)
    state, (metrics,) = run(proj_only, [batch()])
    for path, x in want.items():
        np.testing.assert_allclose(state.params[path], x, rtol=1e-5, atol=1e-7, err_msg=path)
    np.testing.assert_allclose(metrics["loss"], value + 8, rtol=1e-6)  # roots of 1
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)
    np.testing.assert_allclose(metrics["rate"], 0.01 / 3, rtol=1e-6)
    assert (metrics["bad"], int(state.step), int(state.updates)) == (0, 1, 1)


def test_frozen_parameters_stay_and_have_no_optimizer_state(proj_only):
    before = {path: np.array(x) for path, x in proj_only.frozen.items()}
    state, _ = run(proj_only, [batch(i) for i in range(5)])
    assert set(state.params) == {"proj_lin/kernel", "proj_lin/bias"}
    for path, x in before.items():
        np.testing.assert_array_equal(proj_only.frozen[path], x)
    sizes = [np.size(x) for x in jax.tree.leaves(state.opt_state)]
    assert sum(sizes) <= 2 * 200 + 2  # two moments, and counters


def test_the_model_keeps_its_arrays(proj_only):
    model = Toy()
    trainer = plain(model=model, trainable=("proj_lin",))

    def place(array):
        return array.unsafe_buffer_pointer()

    # Frozen ones are not copied, a giant is held once; trained ones are, a step overwrites them.
    assert place(trainer.frozen["scale"]) == place(model.scale.get_value())
    kernel = trainer.new_state().params["proj_lin/kernel"]
    assert place(kernel) != place(model.proj_lin.kernel.get_value())
    np.testing.assert_array_equal(kernel, model.proj_lin.kernel.get_value())


def test_accumulating_parts_is_the_step_of_the_whole_batch():
    sgd = optax.sgd(0.1)
    layout, trained, frozen = split(Toy())
    outcomes = []
    for parts in (1, 4):
        trainer = plain(options=StepOptions(accumulate=parts, clip=0.0))
        step = jax.jit(make_step(layout, plain_loss, sgd, trainer.options))
        first = trainer.new_state()
        first = type(first)(**{**vars(first), "opt_state": sgd.init(trained)})
        state, metrics = step(first, frozen, batch())
        outcomes.append((state.params, metrics["loss"], metrics["grad_norm"]))
    for a, b in zip(*map(jax.tree.leaves, outcomes), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize(
    "bad",
    [
        {"x": np.full((8, 4, 24), np.nan)},
        {"x": np.full((8, 4, 24), 1e30)},  # the loss overflows
        {"trap": np.ones(8)},  # the loss is finite, its gradient is not
        {"nan": np.eye(8)[3]},  # the loss says that it threw values away
    ],
    ids=["nan", "overflow", "gradient", "nonfinite"],
)
def test_a_bad_step_changes_no_bit_of_parameters_and_optimizer(proj_only, bad):
    before, _ = run(proj_only, [batch(1), batch(2)])
    after, seen = run(proj_only, [batch(1), batch(2), batch(3, **bad), batch(4, **bad)])
    assert [m["bad"] for m in seen] == [0, 0, 1, 1]
    assert [m["in_row"] for m in seen] == [0, 0, 1, 2]
    tree_map(np.testing.assert_array_equal, before.params, after.params)
    tree_map(np.testing.assert_array_equal, before.opt_state, after.opt_state)
    assert (int(after.step), int(after.updates), int(after.guard.skipped)) == (4, 2, 2)
    np.testing.assert_array_equal(before.guard.losses, after.guard.losses)


def test_a_hundred_injected_nans_leave_the_run_of_the_good_batches(proj_only):
    rng = np.random.default_rng(5)
    bad = set(rng.choice(140, 100, replace=False).tolist())
    batches = [batch(i, **({"x": np.full((8, 4, 24), np.nan)} if i in bad else {}))
               for i in range(140)]  # fmt: skip
    with_bad, seen = run(proj_only, batches)
    without, _ = run(proj_only, [b for i, b in enumerate(batches) if i not in bad])
    tree_map(np.testing.assert_array_equal, with_bad.params, without.params)
    tree_map(np.testing.assert_array_equal, with_bad.opt_state, without.opt_state)
    assert {i for i, m in enumerate(seen) if m["bad"]} == bad
    assert int(with_bad.guard.skipped) == 100


def test_spikes_are_skipped_once_the_window_is_full_and_then_forgotten(proj_only):
    spike = batch(9, y=10 * batch(9)["y"])
    _, early = run(proj_only, [batch(1), batch(2), spike, batch(3)])
    assert [m["bad"] for m in early] == [0, 0, 0, 0]
    _, late = run(proj_only, [batch(i) for i in range(16)] + [spike, spike, batch(17)])
    assert [m["bad"] for m in late] == [0] * 16 + [1, 1, 0]


def test_random_keys_differ_from_step_to_step_and_not_from_run_to_run():
    def loss(model, batch, key):
        return model.proj_lin.bias[...].mean(), {"u": jax.random.uniform(key)}

    trainer = toy_trainer(loss_fn=loss, trainable=("proj_lin",))
    draws = [[m["u"] for m in run(trainer, [batch()] * 3)[1]] for _ in range(2)]
    assert draws[0] == draws[1]
    assert len(set(draws[0])) == 3


@pytest.mark.parametrize("options", [{"accumulate": 0}, {"clip": -1.0}, {"spike_window": 0},
                                     {"patience": 0}, {"spike_sigma": float("nan")}])  # fmt: skip
def test_options_without_a_meaning_are_refused(options):
    with pytest.raises(InputError, match="step: "):
        StepOptions(**options)


def test_the_average_follows_the_weights_and_is_what_is_shown():
    trainer = plain(options=StepOptions(average=0.5))
    state, _ = run(trainer, [batch(1)])
    later, _ = run(trainer, [batch(2)], jax.device_put(state))
    # after n steps an update leaves (1 + n) / (10 + n) of the average, or `average` if that is less
    for path, x in later.params.items():
        want = 2 / 11 * state.average[path] + 9 / 11 * x
        np.testing.assert_allclose(later.average[path], want, rtol=1e-5, atol=1e-7)
    shown = trainer.model(later).proj_lin.bias[...]
    np.testing.assert_array_equal(shown, later.average["proj_lin/bias"])
    assert not np.array_equal(shown, later.params["proj_lin/bias"])


def test_a_skipped_step_leaves_the_average_alone():
    trainer = plain(options=StepOptions(average=0.5))
    state, _ = run(trainer, [batch(1)])
    after, metrics = run(trainer, [batch(2, x=np.full((8, 4, 24), np.nan))], jax.device_put(state))
    assert metrics[0]["bad"] == 1
    for path, x in state.average.items():
        np.testing.assert_array_equal(after.average[path], x)


def test_without_an_average_the_state_has_none(proj_only):
    assert proj_only.new_state().average is None
    with pytest.raises(InputError, match=r"step\.average: expected 0 to below 1, got 1"):
        StepOptions(average=1)
