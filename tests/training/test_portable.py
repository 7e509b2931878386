"""A run that goes on elsewhere from a small folder."""

import json

import numpy as np
import pytest

from lite3r_jax.errors import InputError
from lite3r_jax.training.checkpoint import CheckpointOptions
from lite3r_jax.training.loop import LoopOptions, train
from lite3r_jax.training.portable import ARRAYS, RECORD, read_portable, write_portable
from lite3r_jax.training.step import StepOptions
from tests.training.toy import ToyBatches, toy_trainer

AVERAGED = StepOptions(average=0.9)


def go(trainer, folder, steps, batches=None):
    return train(
        trainer,
        batches or ToyBatches(),
        folder,
        options=LoopOptions(steps, log_every=1),
        checkpoint=CheckpointOptions(every=100),
    )


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run of 6 steps and its folder."""
    run = tmp_path_factory.mktemp("portable") / "run"
    outcome = go(toy_trainer(6, options=AVERAGED), run, 6)
    write_portable(run, run / "state", views=192, parts=[{"steps": [0, 6]}])
    return run, outcome.state


def test_it_holds_weights_average_and_place_within_bfloat16(begun):
    run, state = begun
    portable = read_portable(run / "state")
    assert (portable.step, portable.views, portable.parts) == (6, 192, ({"steps": [0, 6]},))
    for path, x in state.params.items():
        np.testing.assert_allclose(portable.params[path], x, rtol=2**-8)
        np.testing.assert_allclose(portable.average[path], state.average[path], rtol=2**-8)
    assert (run / "state" / ARRAYS).stat().st_size < 2 * 2 * 2068 + 4096


def test_a_run_goes_on_from_it_with_the_data_that_comes_next(begun, tmp_path):
    start, batches = read_portable(begun[0] / "state"), ToyBatches()
    trainer = toy_trainer(9, options=AVERAGED, start=start)
    first = trainer.new_state()
    for path, x in first.params.items():
        np.testing.assert_array_equal(x, start.params[path])
        np.testing.assert_array_equal(first.average[path], start.average[path])
    assert int(first.step) == 6 and int(first.updates) == 0
    outcome = go(trainer, tmp_path / "run", 9, batches)
    assert int(outcome.state.step) == 9 and int(outcome.state.updates) == 3
    assert batches.step == 9
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [7, 8, 9]


def test_the_average_goes_on_from_that_of_the_run_before(begun, tmp_path):
    start = read_portable(begun[0] / "state")
    outcome = go(toy_trainer(7, options=AVERAGED, start=start), tmp_path / "run", 7)
    for path, x in outcome.state.params.items():
        want = 7 / 16 * start.average[path] + 9 / 16 * x  # (1 + 6) / (10 + 6) of it stays
        np.testing.assert_allclose(outcome.state.average[path], want, rtol=1e-5, atol=1e-7)
        assert not np.array_equal(start.average[path], start.params[path])


def test_a_killed_run_that_began_from_it_continues_from_its_own_checkpoint(begun, tmp_path):
    start = read_portable(begun[0] / "state")
    whole = go(toy_trainer(9, options=AVERAGED, start=start), tmp_path / "whole", 9)
    options = {"options": LoopOptions(9, log_every=1), "checkpoint": CheckpointOptions(every=100)}
    trainer = toy_trainer(9, options=AVERAGED, start=start)
    train(trainer, ToyBatches(), tmp_path / "cut", until=8, **options)
    outcome = train(trainer, ToyBatches(), tmp_path / "cut", **options)
    for path, x in whole.state.params.items():
        np.testing.assert_array_equal(x, outcome.state.params[path])


def test_a_run_is_not_continued_from_another_state_than_it_began_from(begun, tmp_path):
    start = read_portable(begun[0] / "state")
    options = {"options": LoopOptions(9, log_every=1), "checkpoint": CheckpointOptions(every=100)}
    folder = tmp_path / "run"
    train(toy_trainer(9, start=start), ToyBatches(), folder, until=8, **options)
    write_portable(folder, tmp_path / "later", views=1, parts=[])
    later = read_portable(tmp_path / "later")
    assert (start.step, later.step) == (6, 8)
    for other, words in ((later, "now a state at step 8"), (None, "now no state")):
        trainer = toy_trainer(9, start=other)
        with pytest.raises(InputError, match=rf"began from a state at step 6 .*{words}"):
            train(trainer, ToyBatches(), folder, **options, allow_changes=True)


@pytest.mark.parametrize("name", [ARRAYS, RECORD])
def test_damage_is_found(begun, tmp_path, name):
    write_portable(begun[0], tmp_path / "state", views=1, parts=[])
    path = tmp_path / "state" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(InputError, match=r"damaged|JSON|UTF-8"):
        read_portable(tmp_path / "state")
    path.unlink()
    with pytest.raises(InputError, match="missing"):
        read_portable(tmp_path / "state")


def test_what_does_not_fit_is_refused(begun):
    start = read_portable(begun[0] / "state")
    with pytest.raises(InputError, match="init_from: it is at step 6 and the run ends at 6"):
        toy_trainer(6, start=start)
    with pytest.raises(InputError, match=r"other trained parameters; .* is only in that one"):
        toy_trainer(9, start=start, trainable=("proj_lin",), count=200)
