"""The training loop: steps over batches, with reports, evaluations and checkpoints.

The process may be killed at any moment: a run continues from its last intact checkpoint.
"""

import json
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import jax

from lite3r_jax.errors import InputError
from lite3r_jax.progress import Bar
from lite3r_jax.training import run_dir as folders
from lite3r_jax.training.checkpoint import CheckpointOptions, Checkpoints
from lite3r_jax.training.parameters import digest
from lite3r_jax.training.sharding import place_batch
from lite3r_jax.training.state import TrainState
from lite3r_jax.training.trainer import Trainer

_STATUS = ("bad", "skipped", "in_row", "rate")
"""Metrics of a step that a report does not average over its steps."""


class Batch(Protocol):
    """A batch as the training loop needs it, see `data.pipeline.Batch`."""

    @property
    def samples(self) -> Sequence[Any]:
        """Samples of the batch, which messages show as strings."""
        ...

    def arrays(self) -> Mapping[str, Any]:
        """Returns this process's part of the batch: NumPy arrays [b, ...] or [b, S, ...]."""
        ...


class Batches(Protocol):
    """An endless iterator of batches whose position can be saved and restored.

    See `data.pipeline.BatchIterator`.
    """

    def __next__(self) -> Batch: ...

    def get_state(self) -> bytes:
        """Returns the position of the iterator, as JSON."""
        ...

    def set_state(self, state: bytes) -> None:
        """Moves the iterator to a saved position; every process gets that of the first."""
        ...


@dataclass(frozen=True)
class LoopOptions:
    """Settings of the training loop: its length, reports and evaluations.

    Attributes:
        steps: of the whole run.
        log_every: steps that a line of metrics is the mean of.
        evaluate_every: steps from one evaluation to the next; the last step is evaluated too. 0 for
            none.
        best: name of the number of an evaluation that decides which checkpoint is the best; "" for
            none.
        best_mode: whether that is the smallest or the largest.
        tensorboard: also write metrics to `tensorboard/` of the folder; needs tensorboardX.
    """

    steps: int = 100_000
    log_every: int = 10
    evaluate_every: int = 0
    best: str = ""
    best_mode: Literal["min", "max"] = "min"
    tensorboard: bool = False

    def __post_init__(self) -> None:
        """Raises `InputError` for settings that are out of range or contradict each other."""
        if min(self.steps, self.log_every) < 1 or self.evaluate_every < 0:
            raise InputError(
                "loop: expected steps >= 1, log_every >= 1 and evaluate_every >= 0, got"
                f" {self.steps}, {self.log_every} and {self.evaluate_every}"
            )
        if self.best and not self.evaluate_every:
            raise InputError("loop.best: nothing is evaluated; set evaluate_every")


class Diverged(RuntimeError):
    """Raised when too many steps in a row were skipped.

    Nothing is saved after the last checkpoint.
    """


@dataclass(frozen=True)
class Outcome:
    """How a call of `train` ended.

    Attributes:
        state: training state at the end.
        reason: "done"; "terminated" by SIGTERM or "interrupted" by Ctrl-C, with everything saved;
            "until" was reached.
    """

    state: TrainState
    reason: Literal["done", "terminated", "interrupted", "until"]


def train(
    trainer: Trainer,
    batches: Batches,
    folder: Path,
    *,
    options: LoopOptions,
    checkpoint: CheckpointOptions,
    evaluate: Callable[[Any], Mapping[str, float]] | None = None,
    settings: Mapping[str, Any] | None = None,
    free: Sequence[str] = (),
    allow_changes: bool = False,
    facts: Mapping[str, Any] | None = None,
    until: int | None = None,
    show: bool = True,
) -> Outcome:
    """Trains to the end, from the newest intact checkpoint in the folder if there is one.

    On a CPU a run that is continued gives the same bits as one that was never stopped: parameters,
    optimizer, order of data and metrics.jsonl. A run of several processes calls this in each.

    Args:
        trainer: from `make_trainer`.
        batches: at its start; moved on when a run is continued.
        folder: of the run, see `training.run_dir`; made if need be.
        options: how long, what is reported.
        checkpoint: when to save, what to keep.
        evaluate: model -> numbers. Has to be deterministic, and to use no data of the training.
        settings: of the run, recorded; a run is continued with equal ones only.
        free: dotted names of settings that may change all the same.
        allow_changes: whether a run may go on with other settings and data all the same. What
            changed is added to its config.json and to the event of the start.
        facts: versions and machine, recorded at every start.
        until: stop after this step, with a checkpoint, as if it were the last.
        show: whether progress is shown: a bar on a terminal, elsewhere a line every half minute.

    Raises:
        InputError: the folder is another run's, a checkpoint of another model or data, nothing
            intact is left, something cannot be written, or what `batches` and `evaluate` raise.
        Diverged: `StepOptions.patience` steps in a row were skipped; names their samples.
    """
    if options.evaluate_every and evaluate is None:
        raise InputError("loop.evaluate_every: there is nothing to evaluate with; set it to 0")
    first = jax.process_index() == 0
    with folders.locked(folder) if first else nullcontext():
        changes: tuple[str, ...] = ()
        if first:
            changes = folders.claim(folder, settings or {}, free, allow=allow_changes)
        run = _Run(trainer, batches, folder, options, checkpoint, evaluate, first)
        try:
            with run.checkpoints, _Termination() as termination:
                run.begin(
                    {**(facts or {}), **({"changed": changes} if changes else {})}, allow_changes
                )
                return run.go(termination, options.steps if until is None else until, show)
        finally:
            run.close()


def _named(start: Mapping[str, Any] | None) -> str:
    """Names the state that a run began from, for a message."""
    if start is None:
        return "no state"
    return f"a state at step {start['step']} (SHA-256 {start['sha256'][:12]})"


class _Run:
    """The state of one call of `train`: batches, checkpoints, logs and sums of metrics."""

    def __init__(
        self,
        trainer: Trainer,
        batches: Batches,
        folder: Path,
        options: LoopOptions,
        checkpoint: CheckpointOptions,
        evaluate: Callable[[Any], Mapping[str, float]] | None,
        first: bool,
    ):
        self.trainer, self.batches, self.options = trainer, batches, options
        self.folder, self.evaluate, self.first = folder, evaluate, first
        self.every = checkpoint.every
        self.checkpoints = Checkpoints(folder, checkpoint)
        self.events = folders.Log(folder / folders.EVENTS, first)
        self.metrics: folders.Log | None = None
        self.board: Any = None
        self.saved = 0
        self.note = ""
        self.frozen = digest(trainer.frozen)
        start = trainer.start
        self.start = None if start is None else {"step": start.step, "sha256": start.digest}
        # What is saved besides the state, so that a continued run reports the same.
        self.sums: dict[str, list[float]] = {}
        self.bad: list[list[Any]] = []
        self.best: dict[str, Any] = {}

    def begin(self, facts: Mapping[str, Any], allow_changes: bool = False) -> None:
        """Makes the first state or restores the newest checkpoint, and opens the logs.

        Data that has changed begins at the step of the checkpoint.
        """
        restored = self.checkpoints.restore(self.trainer.shapes())
        step = 0
        if restored is None:
            self.state = self.trainer.new_state()
            step = int(self.state.step)
            if step:  # of a run that goes on from another: with the data that comes next
                self._move_data(step)
        else:
            extra, step = restored.extra, restored.step
            if extra["frozen"] != self.frozen:
                raise InputError(
                    f"{self.folder}: its checkpoints were made with other frozen weights; use"
                    " those, or another folder"
                )
            # The rate counts the updates since then, so another state would change it without a
            # word; checkpoints of before this was recorded have no entry.
            if extra.get("start", self.start) != self.start:
                raise InputError(
                    f"{self.folder}: began from {_named(extra['start'])}, and train.init_from is"
                    f" now {_named(self.start)}; give it a copy of the state that it was, or begin"
                    " a run in another folder"
                )
            if allow_changes and "step" in extra["data"]:
                self._move_data(extra["data"]["step"])
            else:
                self.batches.set_state(json.dumps(extra["data"]).encode())
            self.state = restored.state
            self.sums, self.bad, self.best = extra["sums"], extra["bad"], extra["best"]
            self.checkpoints.best_step = self.best.get("step")
        self.saved = step
        if self.first:
            folders.truncate(self.folder / folders.METRICS, step)
        self.metrics = folders.Log(self.folder / folders.METRICS, self.first)
        if self.options.tensorboard and self.first:
            self.board = _board(self.folder / "tensorboard", step)
        problems = restored.problems if restored else ()
        self.events.event("start", step=step, problems=list(problems), **facts)
        if self.first:
            for problem in problems:
                print(f"{self.folder}: {problem}", flush=True)
            if step:
                print(f"{self.folder}: continuing after step {step}", flush=True)

    def _move_data(self, step: int) -> None:
        """Moves the data iterator to the batch of a step, also if the data has changed."""
        data = json.loads(self.batches.get_state()) | {"step": step}
        self.batches.set_state(json.dumps(data).encode())

    def go(self, termination: "_Termination", last: int, show: bool) -> Outcome:
        """Runs training steps up to number `last`, or until a signal asks to stop."""
        last = min(last, self.options.steps)
        done = int(self.state.step)
        show = show and self.first
        queue: deque[tuple[int, list[str], Any]] = deque()
        clock = _Clock()
        bar = Bar("train", self.options.steps, "step", initial=done, show=show)
        with bar:
            while done < last:
                names, batch = clock.wait(self._read)
                arrays = place_batch(batch, self.trainer.mesh, self.trainer.options.accumulate)
                self.state, metrics = self.trainer.step(self.state, self.trainer.frozen, arrays)
                clock.stepped(metrics)
                done += 1
                queue.append((done, names, metrics))
                if len(queue) > 1:  # the devices work on the newest while the one before is read
                    self._take(*queue.popleft())
                stop = termination.asked(done)
                evaluate = self.options.evaluate_every and (
                    done % self.options.evaluate_every == 0 or done == self.options.steps
                )
                save = done % self.every == 0 or done == last or stop
                if evaluate or save:
                    while queue:
                        self._take(*queue.popleft())
                best = bool(evaluate) and self._evaluate(done)
                if save or best:
                    self.save(done, best)
                self._note_saved(self.checkpoints.poll())
                if (done % (100 * self.options.log_every) == 0 or done == last or stop) and (
                    speed := clock.facts()
                ):
                    self.events.event("speed", step=done, **speed)
                bar.update(self.note)
                if stop and done < last:
                    break
        self._note_saved(self.checkpoints.wait())
        if done < last:
            self.events.event(termination.reason, step=done)
            return Outcome(self.state, termination.reason)
        reason = "done" if done >= self.options.steps else "until"
        self.events.event(reason, step=done)
        return Outcome(self.state, reason)

    def _read(self) -> tuple[list[str], Mapping[str, Any]]:
        batch = next(self.batches)
        return [str(sample) for sample in batch.samples], batch.arrays()

    def save(self, step: int, best: bool) -> None:
        """Begins to write a checkpoint of a step, unless that is saved already."""
        if step == self.saved:
            return
        extra = {
            "frozen": self.frozen,
            "start": self.start,
            "data": json.loads(self.batches.get_state()),
            "sums": self.sums,
            "bad": self.bad,
            "best": self.best,
        }
        self._note_saved(self.checkpoints.wait())
        self.checkpoints.save(step, self.state, extra, best=best)
        self.saved = step

    def _note_saved(self, step: int | None) -> None:
        if step is not None:
            self.events.event("saved", step=step)

    def _take(self, step: int, names: list[str], metrics: Any) -> None:
        """Reads the metrics of a step, logs a skipped step and writes a report if one is due."""
        values = {name: float(x) for name, x in jax.device_get(metrics).items()}
        if values["bad"]:
            self.bad.append([step, names])
            self.events.event("skipped", step=step, samples=names, loss=values["loss"],
                              grad_norm=values["grad_norm"])  # fmt: skip
            if values["in_row"] >= self.trainer.options.patience:
                listed = "; ".join(f"step {n}: {', '.join(ids)}" for n, ids in self.bad)
                self.events.event("diverged", step=step)
                raise Diverged(
                    f"step {step}: {len(self.bad)} steps in a row had a loss or gradient that is"
                    f" not finite or a spike, and were skipped ({listed}); look at these samples,"
                    " or lower the learning rate"
                )
        else:
            self.bad = []
            for name in sorted(values.keys() - set(_STATUS)):
                entry = self.sums.setdefault(name, [0.0, 0])
                entry[0] += values[name]
                entry[1] += 1
        if step % self.options.log_every == 0:
            means = {name: total / count for name, (total, count) in sorted(self.sums.items())}
            self._report(
                {"step": step, **means, "rate": values["rate"], "skipped": int(values["skipped"])}
            )
            self.sums = {}
            self.note = f"loss {means['loss']:.4g}" if "loss" in means else ""

    def _evaluate(self, step: int) -> bool:
        """Evaluates the model and returns whether the result is the best so far."""
        assert self.evaluate is not None
        metrics = {k: float(v) for k, v in self.evaluate(self.trainer.model(self.state)).items()}
        self._report({"step": step, "evaluation": metrics})
        name = self.options.best
        if not name:
            return False
        if name not in metrics:
            raise InputError(
                f"loop.best: {name!r} is no number of the evaluation; choose from"
                f" {', '.join(sorted(metrics))}"
            )
        sign = 1 if self.options.best_mode == "min" else -1
        # A NaN is never better, and anything is better than none.
        better = sign * metrics[name] < sign * self.best.get("value", sign * float("inf"))
        if better:
            self.best = {"step": step, "value": metrics[name]}
        return better

    def _report(self, record: Mapping[str, Any]) -> None:
        assert self.metrics is not None
        self.metrics.add(record)
        if self.board is not None:
            values = record.get("evaluation", record)
            group = "evaluation" if "evaluation" in record else "train"
            for name, value in values.items():
                if name != "step":
                    self.board.add_scalar(f"{group}/{name}", value, record["step"])

    def close(self) -> None:
        """Closes the logs and the TensorBoard writer."""
        self.events.close()
        if self.metrics is not None:
            self.metrics.close()
        if self.board is not None:
            self.board.close()


class _Termination:
    """Notes SIGTERM and the first Ctrl-C; the second one interrupts as usual, without saving.

    With several processes JAX notes SIGTERM, and makes all stop after the same step.
    """

    def __init__(self) -> None:
        self.reason: Literal["terminated", "interrupted"] = "terminated"
        self._asked = False
        self._mine = (
            jax.process_count() == 1 and threading.current_thread() is threading.main_thread()
        )

    def __enter__(self) -> "_Termination":
        if self._mine:
            self._terminate = signal.signal(signal.SIGTERM, self._note)
            self._interrupt = signal.getsignal(signal.SIGINT)
            if self._interrupt is not signal.SIG_IGN:
                signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._mine:
            signal.signal(signal.SIGTERM, self._terminate)
            signal.signal(signal.SIGINT, self._interrupt)

    def _note(self, number: int, _: object) -> None:
        if number == signal.SIGINT:
            if self._asked:
                signal.signal(signal.SIGINT, self._interrupt)
                raise KeyboardInterrupt
            self.reason = "interrupted"
            # not by print, which may be interrupted itself
            os.write(2, b"\ninterrupted: stops after this step and saves; again: stops at once\n")
        self._asked = True

    def asked(self, step: int) -> bool:
        """Returns whether training has to stop after this step."""
        if jax.process_count() == 1:
            return self._asked
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(step)


class _Clock:
    """Measures steps per second and the share of the time spent waiting for data.

    The first step, which compiles, does not count.
    """

    def __init__(self) -> None:
        self._compiled = False
        self._restart()

    def _restart(self) -> None:
        self._start, self._waited, self._steps = time.perf_counter(), 0.0, 0

    def wait(self, get: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        try:
            return get()
        finally:
            self._waited += time.perf_counter() - start

    def stepped(self, metrics: Any) -> None:
        """Counts a step that was begun; for the first one, waits until its metrics are computed."""
        self._steps += 1
        if not self._compiled:
            jax.block_until_ready(metrics)
            self._compiled = True
            self._restart()

    def facts(self) -> dict[str, float]:
        """Returns speed and share of waiting since the last call; empty if there was no step."""
        if not self._steps:
            return {}
        spent = time.perf_counter() - self._start
        shares = {
            "steps_per_second": round(self._steps / spent, 4),
            "input_share": round(self._waited / spent, 4),
        }
        self._restart()
        return shares


def _board(folder: Path, step: int) -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise InputError(
            "loop.tensorboard: tensorboardX is not installed; pip install tensorboardX"
        ) from error
    return SummaryWriter(str(folder), purge_step=step + 1)
