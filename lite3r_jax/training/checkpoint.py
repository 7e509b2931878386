"""Checkpoints with a hash of every file: incomplete and damaged ones are not restored.

Orbax writes the arrays in the background into a folder with a temporary name, which it renames to
the number of the step when they are all there. Then a manifest with the SHA-256 of every file is
added, by a rename as well, and from that moment on the step is committed. Reading takes the newest
step whose files all agree with their manifest. So a process may be killed at any moment, and files
may be damaged in any way: what is read is what was saved.
"""

import copy
import logging
import os
import re
import shutil
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lite3r_jax.errors import InputError
from lite3r_jax.training.manifest import damage, write_manifest
from lite3r_jax.weights import strict_json

ARRAYS, EXTRA = "arrays", "extra"


@dataclass(frozen=True)
class CheckpointOptions:
    """Settings of checkpoints: how often they are saved, and which are kept.

    Attributes:
        every: steps from one checkpoint to the next. The last step, a stop by SIGTERM and a new
            best evaluation are saved besides.
        keep: how many of the newest to keep, at least 2: one may turn out damaged.
        keep_every: checkpoints of steps that this divides are kept for good; 0 for none.
    """

    every: int = 1000
    keep: int = 2
    keep_every: int = 0

    def __post_init__(self) -> None:
        """Raises `InputError` for settings that are out of range, which could lose work."""
        if self.every < 1 or self.keep < 2 or self.keep_every < 0:
            raise InputError(
                "checkpoint: expected every >= 1, keep >= 2 and keep_every >= 0, got"
                f" {self.every}, {self.keep} and {self.keep_every}"
            )


@dataclass(frozen=True)
class Restored:
    """The contents of a checkpoint that was restored.

    Attributes:
        step: number of the step.
        state: tree of arrays, placed as was asked for.
        extra: the JSON that was saved along.
        problems: what was wrong with newer checkpoints, one line each.
    """

    step: int
    state: Any
    extra: dict[str, Any]
    problems: tuple[str, ...]


class Checkpoints:
    """The checkpoints of one run; also a context manager, which waits for the last to be written.

    In runs of several processes each of them makes the same calls.
    """

    def __init__(self, folder: Path, options: CheckpointOptions = CheckpointOptions()):
        """Sets the folders of the checkpoints; nothing is read or written yet.

        Args:
            folder: of the run; checkpoints are in `checkpoints/` of it, damaged ones in `damaged/`.
            options: what to keep.
        """
        self.folder = folder.absolute() / "checkpoints"
        self.aside = folder.absolute() / "damaged"
        self.options = options
        self.best_step: int | None = None
        self._open: Any = None
        self._pending: int | None = None
        self._sealer: threading.Thread | None = None
        self._error: Exception | None = None

    def steps(self) -> list[int]:
        """Returns the steps of checkpoints with their final name, ascending; damaged ones too."""
        names = os.listdir(self.folder) if self.folder.is_dir() else []
        return sorted(int(name) for name in names if re.fullmatch(r"0|[1-9][0-9]*", name))

    def save(self, step: int, state: Any, extra: Mapping[str, Any], *, best: bool = False) -> None:
        """Begins to save a checkpoint; returns when arrays and `extra` may change again.

        Args:
            step: number of the step, larger than that of any checkpoint.
            state: tree of arrays.
            extra: JSON to be saved along.
            best: keep this one until a better one comes.

        Raises:
            InputError: this, or the save before, cannot be written.
        """
        from orbax import checkpoint as orbax

        named = _by_name(state)
        shapes = {name: [str(x.dtype), list(x.shape)] for name, x in named.items()}
        args = orbax.args.Composite(**{
            ARRAYS: orbax.args.StandardSave(named),
            # a copy, since it is written later
            EXTRA: orbax.args.JsonSave(copy.deepcopy({**extra, "shapes": shapes})),
        })  # fmt: skip
        self.wait()
        if best:
            self.best_step = step
        with _explained(self, step):
            self._manager().save(step, args=args, force=True)
        self._pending = step
        self._sealer = threading.Thread(target=self._seal, args=(step,), name="checkpoint seal")
        self._sealer.start()

    def poll(self) -> int | None:
        """Returns the step whose save has been completed since the last call, if any.

        Raises:
            InputError: the checkpoint could not be written.
        """
        if self._sealer is None or self._sealer.is_alive():
            return None
        return self.wait()

    def wait(self) -> int | None:
        """Waits for the save that is under way and returns its step, like `poll`."""
        if self._sealer is not None:
            self._sealer.join()
            self._sealer = None
        step, self._pending = self._pending, None
        error, self._error = self._error, None
        if error is not None and step is not None:
            with _explained(self, step):
                raise error
        return step

    def restore(self, like: Any) -> Restored | None:
        """Reads the newest intact checkpoint.

        Damaged ones that are newer are moved to `damaged/`, for they would be in the way of their
        successors.

        Args:
            like: tree of `jax.ShapeDtypeStruct` with the sharding that each array shall have.

        Returns:
            The contents of the checkpoint; None if there are no checkpoints at all.

        Raises:
            InputError: there are checkpoints, but none is intact; or the newest is of another
                model.
        """
        problems: list[str] = []
        good, steps = None, self.steps() if _first() else []
        for step in reversed(steps):
            reason = damage(self.folder / str(step))
            if reason is None:
                good = step
                break
            problems.append(f"checkpoint of step {step} is damaged: {reason}")
        good = _agree(-1 if good is None else good)
        if good < 0:
            if _agree(len(problems)):
                raise InputError(
                    f"{self.folder}: no checkpoint is intact ({'; '.join(problems) or 'none'});"
                    " start again in another folder"
                )
            return None
        if _first():
            for step in (step for step in steps if step > good):
                self._move_aside(step)
        _agree(0)
        return self._read(good, like, tuple(problems))

    def close(self) -> None:
        """Waits for the save that is under way and closes Orbax's manager."""
        try:
            self.wait()
        finally:
            if self._open is not None:
                with suppress(Exception):  # of a save that failed, which was reported
                    self._open.close()
                self._open = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.close()
        else:  # what went wrong first is what counts
            with suppress(InputError):
                self.close()

    def _read(self, step: int, like: Any, problems: tuple[str, ...]) -> Restored:
        from orbax import checkpoint as orbax

        manager = self._manager()
        wanted = _by_name(like)
        only = orbax.args.Composite(**{EXTRA: orbax.args.JsonRestore()})
        extra = manager.restore(step, args=only)[EXTRA]
        stored = {name: (dtype, tuple(shape)) for name, (dtype, shape) in extra["shapes"].items()}
        asked = {name: (str(x.dtype), tuple(x.shape)) for name, x in wanted.items()}
        if wrong := sorted(
            n for n in stored.keys() | asked.keys() if stored.get(n) != asked.get(n)
        ):
            here, there = asked.get(wrong[0]), stored.get(wrong[0])
            raise InputError(
                f"{self.folder / str(step)}: of another model or optimizer, {len(wrong)} arrays"
                f" differ, such as {wrong[0]}: {there} there, {here} here; use the settings that it"
                " was made with, or another folder"
            )
        args = orbax.args.Composite(**{ARRAYS: orbax.args.StandardRestore(wanted)})
        named = manager.restore(step, args=args)[ARRAYS]
        state = jax.tree.unflatten(jax.tree.structure(like), [named[name] for name in wanted])
        return Restored(step, state, extra, problems)

    def _move_aside(self, step: int) -> None:
        self.aside.mkdir(exist_ok=True)
        number = 0
        while (target := self.aside / f"{step}-{number}").exists():
            number += 1
        os.rename(self.folder / str(step), target)

    def _manager(self) -> Any:
        """Returns Orbax's manager; the first call makes it and removes unfinished saves."""
        if self._open is None:
            from orbax import checkpoint as orbax

            logging.getLogger("absl").addFilter(_without_failures)
            if _first():
                self.folder.mkdir(parents=True, exist_ok=True)
                for path in self._unfinished():
                    shutil.rmtree(path)
            _agree(0)
            self._open = orbax.CheckpointManager(
                self.folder,
                options=orbax.CheckpointManagerOptions(
                    preservation_policy=_Keep(self),
                    enable_async_checkpointing=True,
                    # In the background, a folder that cannot be made would leave threads waiting
                    # for it, and the process would not end for twenty minutes.
                    async_options=orbax.AsyncOptions(create_directories_asynchronously=False),
                    create=False,
                ),
            )
        return self._open

    def _unfinished(self) -> list[Path]:
        return [path for path in self.folder.iterdir() if ".orbax-checkpoint-tmp" in path.name]

    def _seal(self, step: int) -> None:
        try:
            self._manager().wait_until_finished()
            if _first():
                write_manifest(self.folder / str(step))
        except Exception as error:  # raised by `wait`, in the thread that can stop the run
            self._error = error


def _by_name(tree: Any) -> dict[str, Any]:
    """Returns the leaves of a tree by path (`params/a/b`, `opt_state/0/mu/a/b`), in its order."""
    leaves, _ = jax.tree.flatten_with_path(tree)
    return {
        "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in where): x
        for where, x in leaves
    }


def _first() -> bool:
    return jax.process_index() == 0


def _agree(number: int) -> int:
    """Returns the number that the first process has; all processes wait for each other."""
    if jax.process_count() == 1:
        return number
    from jax.experimental import multihost_utils

    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


class _Keep:
    """Orbax's preservation policy: keeps the newest checkpoints, every n-th and the best."""

    def __init__(self, checkpoints: Checkpoints):
        self.checkpoints = checkpoints

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        del context
        options = self.checkpoints.options
        newest = sorted(info.step for info in checkpoints)[-options.keep :]
        return [
            info.step in newest
            or info.step == self.checkpoints.best_step
            or (options.keep_every > 0 and info.step % options.keep_every == 0)
            for info in checkpoints
        ]


def _without_failures(record: logging.LogRecord) -> bool:
    """Returns whether a log record is shown: those of Orbax with a traceback are not.

    Orbax raises the same errors, and logs them from each of its threads; one line of `_explained`
    takes the place of hundreds.
    """
    return not (record.exc_info and "orbax" in record.pathname)


class _explained:
    """Turns any error of writing a checkpoint into an `InputError` that names the newest other."""

    def __init__(self, checkpoints: Checkpoints, step: int):
        self.checkpoints, self.step = checkpoints, step

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, Exception):
            there = [step for step in self.checkpoints.steps() if step != self.step]
            rest = f"step {there[-1]} is the last there is" if there else "there is no other"
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(
                f"{self.checkpoints.folder}: the checkpoint of step {self.step} cannot be written"
                f" ({first}); {rest}; free the disk or change permissions, and run again"
            ) from error


def newest_step(folder: Path) -> int:
    """Returns the step of the newest checkpoint of a run.

    Raises:
        InputError: the run has no checkpoint.
    """
    steps = Checkpoints(folder).steps()
    if not steps:
        raise InputError(f"{Checkpoints(folder).folder}: no checkpoint; there are none")
    return steps[-1]


def read_arrays(
    folder: Path, step: int | None = None, group: str = "params"
) -> dict[str, np.ndarray]:
    """Reads the parameters of a checkpoint to the host, whatever model they are of.

    Args:
        folder: of the run.
        step: of the checkpoint; the newest when None.
        group: params, or average for their moving average.

    Returns:
        Path -> array for every trained parameter; nothing if the run has no such group.

    Raises:
        InputError: there is no such checkpoint, or it is damaged.
    """
    from orbax import checkpoint as orbax

    checkpoints = Checkpoints(folder)
    steps = checkpoints.steps()
    if not steps or step not in (None, *steps):
        raise InputError(
            f"{checkpoints.folder}: no checkpoint{'' if step is None else f' of step {step}'};"
            f" there are {', '.join(map(str, steps)) or 'none'}"
        )
    step = steps[-1] if step is None else step
    if reason := damage(checkpoints.folder / str(step)):
        raise InputError(f"{checkpoints.folder / str(step)}: damaged ({reason}); take another step")
    place = checkpoints.folder / str(step)
    prefix = f"{group}/"
    shapes = strict_json.read_object(place / EXTRA / "metadata")["shapes"]
    one = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    wanted = {
        name: jax.ShapeDtypeStruct(shape, np.dtype(dtype), sharding=one)
        for name, (dtype, shape) in shapes.items()
        if name.startswith(prefix)
    }
    if not wanted:
        return {}
    args = orbax.args.PyTreeRestore(
        item=wanted,
        restore_args=orbax.checkpoint_utils.construct_restore_args(wanted),
        partial_restore=True,  # the optimizer stays where it is
    )
    with orbax.Checkpointer(orbax.PyTreeCheckpointHandler()) as reader:
        named = reader.restore(place / ARRAYS, args=args)
    return {name.removeprefix(prefix): np.asarray(x) for name, x in named.items()}
