"""The loop: continued runs are the runs that were never stopped, and what stops a run."""

import dataclasses
import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from lite3r_jax.errors import InputError
from lite3r_jax.training import run_dir as folders
from lite3r_jax.training.checkpoint import CheckpointOptions, Checkpoints
from lite3r_jax.training.loop import Diverged, LoopOptions, train
from lite3r_jax.training.step import StepOptions
from tests.training.toy import Toy, ToyBatches, toy_evaluate, toy_trainer

STEPS = 20
OPTIONS = LoopOptions(STEPS, log_every=3, evaluate_every=5, best="error")


@pytest.fixture(scope="module")
def trainer():
    """Compiled once for all runs of this file: the step depends on nothing that differs."""
    return toy_trainer(STEPS, options=StepOptions(patience=4))


def go(trainer, folder, batches=None, options=OPTIONS, every=7, **more):
    return train(
        trainer, ToyBatches() if batches is None else batches, folder, options=options,
        checkpoint=CheckpointOptions(every), **{"evaluate": toy_evaluate} | more,
    )  # fmt: skip


def lines(folder: Path, name=folders.METRICS):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def events(folder: Path, name: str):
    return [line for line in lines(folder, folders.EVENTS) if line["event"] == name]


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def straight(trainer, tmp_path_factory):
    """(state, folder) of a run without a stop."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    outcome = go(trainer, folder)
    assert outcome.reason == "done"
    return outcome.state, folder


@pytest.mark.parametrize("stops", [(1,), (7, 8), (15, 19)])
def test_a_continued_run_is_the_run_that_was_never_stopped(trainer, straight, tmp_path, stops):
    state, folder = straight
    for stop in stops:
        assert go(trainer, tmp_path, until=stop).reason == "until"
    again = go(trainer, tmp_path)
    assert_same(again.state, state)
    assert (tmp_path / folders.METRICS).read_bytes() == (folder / folders.METRICS).read_bytes()
    assert [line["step"] for line in events(tmp_path, "start")] == [0, *stops]


def test_a_run_that_lost_its_last_steps_repeats_them(trainer, straight, tmp_path):
    state, folder = straight
    go(trainer, tmp_path, until=16)
    newest = tmp_path / "checkpoints" / "16"
    (newest / "manifest.json").unlink()  # as if killed while it was written
    again = go(trainer, tmp_path)
    assert_same(again.state, state)
    assert (tmp_path / folders.METRICS).read_bytes() == (folder / folders.METRICS).read_bytes()
    start = events(tmp_path, "start")[-1]
    assert start["step"] == 15  # the best evaluation so far
    assert "checkpoint of step 16 is damaged" in start["problems"][0]


def test_metrics_are_means_of_steps_and_evaluations(trainer, straight):
    _, folder = straight
    log = lines(folder)
    reports = [line for line in log if "loss" in line]
    assert [line["step"] for line in reports] == [3, 6, 9, 12, 15, 18]
    assert [line["step"] for line in log if "evaluation" in line] == [5, 10, 15, 20]
    losses = []
    state, batches = trainer.new_state(), ToyBatches()
    for _ in range(3):
        state, metrics = trainer.step(state, trainer.frozen, next(batches).arrays())
        losses.append(float(metrics["loss"]))
    assert reports[0]["loss"] == sum(losses) / 3
    error = [line["evaluation"]["error"] for line in log if "evaluation" in line]
    assert error[-1] < 0.8 * error[0]  # it learns


def test_checkpoints_of_the_schedule_the_best_and_the_end_are_there(trainer, straight, tmp_path):
    _, folder = straight
    assert Checkpoints(folder).steps() == [15, 20]
    assert {line["step"] for line in events(folder, "saved")} >= {5, 7, 10, 14, 20}
    go(trainer, tmp_path, options=LoopOptions(STEPS), evaluate=None)
    assert Checkpoints(tmp_path).steps() == [14, 20]


def test_speed_and_waiting_are_reported_without_the_step_that_compiles(
    trainer, tmp_path, monkeypatch
):
    now = [0.0]
    clock = SimpleNamespace(perf_counter=lambda: now[0])
    monkeypatch.setattr("lite3r_jax.training.loop.time", clock)

    class Slow(ToyBatches):
        def __next__(self):
            now[0] += 3
            return super().__next__()

    def step(*arguments):
        now[0] += 1
        return trainer.step(*arguments)

    go(dataclasses.replace(trainer, step=step), tmp_path, Slow(), until=1)
    assert events(tmp_path, "speed") == []
    go(dataclasses.replace(trainer, step=step), tmp_path, Slow())
    (speed,) = events(tmp_path, "speed")
    assert (speed["step"], speed["steps_per_second"], speed["input_share"]) == (STEPS, 0.25, 0.75)


@pytest.mark.parametrize(
    "number,reason", [(signal.SIGTERM, "terminated"), (signal.SIGINT, "interrupted")]
)
def test_signals_save_and_say_so(trainer, straight, tmp_path, number, reason, capfd):
    state, folder = straight

    class Terminated(ToyBatches):
        def __next__(self):
            if self.step == 9:
                os.kill(os.getpid(), number)
            return super().__next__()

    before = signal.getsignal(number)
    outcome = go(trainer, tmp_path, Terminated())
    assert outcome.reason == reason
    assert signal.getsignal(number) is before
    assert int(outcome.state.step) == Checkpoints(tmp_path).steps()[-1] == 10
    assert events(tmp_path, reason)[0]["step"] == 10
    assert ("stops after this step" in capfd.readouterr().err) == (number == signal.SIGINT)
    assert_same(go(trainer, tmp_path).state, state)
    assert (tmp_path / folders.METRICS).read_bytes() == (folder / folders.METRICS).read_bytes()


def test_a_second_interrupt_does_not_wait_for_the_step(trainer, tmp_path):
    class Interrupted(ToyBatches):
        def __next__(self):
            if self.step == 9:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)
            return super().__next__()

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        go(trainer, tmp_path, Interrupted())
    assert signal.getsignal(signal.SIGINT) is before
    assert max(Checkpoints(tmp_path).steps(), default=0) < 10


def test_bad_batches_are_skipped_counted_and_named(trainer, tmp_path):
    bad = {2, 6, 7, 8, 15}
    go(trainer, tmp_path, ToyBatches(bad), until=7)  # a stop in the middle of a row
    go(trainer, tmp_path, ToyBatches(bad))
    skipped = events(tmp_path, "skipped")
    assert [line["step"] for line in skipped] == sorted(bad)
    assert skipped[0]["samples"][0] == "toy 2/0"
    assert skipped[0]["loss"] is None  # JSON has no NaN
    reports = [line for line in lines(tmp_path) if "rate" in line]
    assert reports[-1]["skipped"] == 5
    assert all(line.get("loss", 0) is not None for line in reports)


def test_too_many_bad_batches_in_a_row_stop_the_run_and_are_named(trainer, tmp_path):
    with pytest.raises(Diverged) as caught:
        go(trainer, tmp_path, ToyBatches({5, 9, 10, 11, 12, 13}))
    message = str(caught.value)
    assert "4 steps in a row" in message and "toy 9/0" in message and "toy 12/7" in message
    assert "toy 5/" not in message
    assert Checkpoints(tmp_path).steps()[-1] == 10  # an evaluation; nothing of the end
    with pytest.raises(Diverged):  # again, from where it was good
        go(trainer, tmp_path, ToyBatches({5, 9, 10, 11, 12, 13}))


def test_changed_settings_are_named_before_anything_is_computed(trainer, tmp_path):
    settings = {"optimizer": {"learning_rate": 1e-3, "name": "adamw"}, "seed": 0, "note": "a"}
    go(trainer, tmp_path, settings=settings, until=1)
    changed = {
        "optimizer": {"learning_rate": 2e-3, "name": "adamw"},
        "seed": 0,
        "note": "b",
        "new": True,
    }
    message = r"new was null, is true, optimizer.learning_rate was 0.001, is 0.002; continue with"
    with pytest.raises(InputError, match=message):
        go(trainer, tmp_path, settings=changed, free=("note",))
    assert (
        go(trainer, tmp_path, settings={**settings, "note": "b"}, free=("note",)).reason == "done"
    )


def test_changes_that_are_allowed_are_recorded_and_count_from_there_on(trainer, tmp_path):
    go(trainer, tmp_path, settings={"seed": 0, "code": {"layers": "a"}}, until=1)
    with pytest.raises(InputError, match=r'code.layers was "a", is "b"; .* train.allow_changes'):
        go(trainer, tmp_path, settings={"seed": 0, "code": {"layers": "b"}})
    go(trainer, tmp_path, settings={"seed": 1, "code": {"layers": "b"}}, allow_changes=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (change,) = config.pop("changes")
    changed = ['code.layers was "a", is "b"', "seed was 0, is 1"]
    assert config == {"seed": 1, "code": {"layers": "b"}} and change["changed"] == changed
    assert [each.get("changed") for each in events(tmp_path, "start")] == [None, changed]
    go(trainer, tmp_path, settings={"seed": 1, "code": {"layers": "b"}})


def test_two_runs_cannot_share_a_folder(trainer, tmp_path):
    with folders.locked(tmp_path), pytest.raises(InputError, match="another run is writing there"):
        go(trainer, tmp_path)
    go(trainer, tmp_path, until=1)  # free again


def test_folders_of_something_else_are_refused(trainer, tmp_path):
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match=r"holds metrics.jsonl but no config.json"):
        go(trainer, tmp_path)


def test_other_frozen_weights_are_refused(tmp_path):
    for seed in (0, 1):
        trainer = toy_trainer(STEPS, Toy(seed=seed), trainable=("proj_lin",))
        if not seed:
            go(trainer, tmp_path, until=1)
    with pytest.raises(InputError, match="made with other frozen weights"):
        go(trainer, tmp_path)


@pytest.mark.parametrize(
    "options,evaluate,message",
    [
        ({"evaluate_every": 2}, None, "there is nothing to evaluate with"),
        ({"evaluate_every": 2, "best": "auc"}, toy_evaluate, "'auc' is no number of the evaluat"),
    ],
)
def test_evaluations_that_cannot_be_are_refused(trainer, tmp_path, options, evaluate, message):
    with pytest.raises(InputError, match=message):
        go(trainer, tmp_path, options=LoopOptions(STEPS, **options), evaluate=evaluate)


@pytest.mark.parametrize("options", [{"steps": 0}, {"log_every": 0}, {"best": "error"}])
def test_options_without_a_meaning_are_refused(options):
    with pytest.raises(InputError, match="loop"):
        LoopOptions(**options)


def test_logs_are_cut_behind_a_step_and_at_a_broken_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    whole = b'{"step": 1}\n{"step": 2}\n'
    for tail in (b"", b'{"step": 3}\n', b'{"st', b'{"step": 2', b"[]\n", b"\xff\n"):
        path.write_bytes(whole + tail)
        folders.truncate(path, 2)
        assert path.read_bytes() == whole
    folders.truncate(path, 0)
    assert path.read_bytes() == b""


@pytest.mark.slow
def test_tensorboard_has_what_the_log_has(trainer, tmp_path):
    options = LoopOptions(STEPS, log_every=3, tensorboard=True)
    go(trainer, tmp_path, options=options, evaluate=None, until=6)
    (board,) = (tmp_path / "tensorboard").iterdir()
    assert b"train/grad_norm" in board.read_bytes()
