"""Iterators over training batches from worker processes, with a state that can be saved."""

import contextlib
import json
import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import weakref
from collections.abc import Generator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Self

import jax
import numpy as np

from lite3r_jax.data.pipeline.batch import Batch, BatchMaker, Record
from lite3r_jax.data.pipeline.options import Part, PipelineOptions
from lite3r_jax.data.pipeline.schedule import Schedule
from lite3r_jax.errors import InputError
from lite3r_jax.interrupts import kept_from_children

_VERSION = 1  # of the state
_ENDLESS = 2**62
_log = logging.getLogger(__name__)


class Pipeline:
    """Pipeline of training data, which makes any batch from its step and iterates over batches.

    Attributes:
        options: as given.
        schedule: what is in a step, over all processes.
        batch: `batch(step)` makes this process's rows of a step here and now.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        options: PipelineOptions,
        *,
        process_index: int = 0,
        process_count: int = 1,
    ):
        """Builds the schedule, for which the frames of every scene are listed and checked.

        Args:
            parts: the mixture of datasets.
            options: see `PipelineOptions`.
            process_index: which rows of each step to make; `jax.process_index()`.
            process_count: how many processes share each step; `jax.process_count()`.

        Raises:
            InputError: as `Schedule` and `BatchMaker`.
        """
        self.options = options
        self.schedule = Schedule(parts, options)
        self.batch = BatchMaker(self.schedule, process_index, process_count)

    @property
    def samples_per_epoch(self) -> int:
        """Number of samples over all processes until each scene of each part came at least once."""
        return self.schedule.samples_per_epoch

    def __iter__(self) -> "BatchIterator":
        """Returns an endless iterator from step 0; several iterators do not disturb each other."""
        return BatchIterator(self)


class BatchIterator:
    """Endless iterator over batches in order; as a context manager it ends its workers at exit.

    A fault of the data (an unreadable file, a scene that does not fit together) is logged once as a
    warning with its file, counted, and the sample replaced by the rule of `Schedule.draws`.

    `get_state`, `set_state` and `start_prefetch` are those that grain's checkpoint handlers for
    Orbax call (`grain.checkpoint.CheckpointSave`).
    """

    def __init__(self, pipeline: Pipeline):
        self._pipeline = pipeline
        self._step = 0
        self._faults: dict[str, int] = {}
        self._running: list[Any] = []  # what gives the batches, while it runs
        self._to_start = 0  # workers that may not have been started yet
        # at the end of the program too, while the modules that it needs are still there
        weakref.finalize(self, _end, self._running)

    @property
    def step(self) -> int:
        """Number of the batch that comes next."""
        return self._step

    @property
    def faults(self) -> Mapping[str, int]:
        """Faults of the data so far: message, which names the file, and how often it was met."""
        return MappingProxyType(self._faults)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        """Returns the next batch.

        After an error the workers have ended; a further call starts others at the same batch.

        Raises:
            InputError: more faults of the data than `fault_limit`; all are named.
            RuntimeError: a worker process ended; exit code -9 often means that memory was short,
                -7 that shared memory (/dev/shm) was.
        """
        self.start_prefetch()
        try:
            # grain starts a worker when its first batch is asked for
            held = kept_from_children(signal.SIGINT, signal.SIGTERM)
            with held if self._to_start else contextlib.nullcontext():
                arrays, record = next(self._running[0])
            self._to_start = max(0, self._to_start - 1)
            self._count(record)
        except BaseException as error:
            error.add_note(f"This was batch {self._step} of the data pipeline.")
            self.close()
            raise
        self._step += 1
        return Batch(record, **(_unpacked(arrays) if self._pipeline.options.workers else arrays))

    def _count(self, record: Record) -> None:
        faults = dict(self._faults)
        for message in record.faults:
            if message not in faults:
                _log.warning("%s; another sample takes its place", message)
            faults[message] = faults.get(message, 0) + 1
        limit = self._pipeline.options.fault_limit
        if len(faults) > limit:
            raise InputError(
                f"the data has {len(faults)} faults, fault_limit is {limit}: {'; '.join(faults)}"
            )
        self._faults = faults

    def start_prefetch(self) -> None:
        """Prepares iteration; without worker processes, a thread starts to make batches ahead.

        Workers start with the first batches that are asked for. With `prefetch` 0 nothing is made
        ahead.

        Raises:
            InputError: grain is not installed, and is needed.
        """
        if self._running:
            return
        options, source = self._pipeline.options, _From(self._pipeline.batch, self._step)
        if not options.prefetch:
            self._running.append(iter(source))
            return
        try:
            import grain
        except ImportError as error:
            raise InputError(
                "workers, prefetch: need the package grain; pip install 'lite3r_jax[train]', or set"
                " both to 0"
            ) from error
        here = 0 if options.workers else options.prefetch  # a worker has its queue instead
        dataset = grain.MapDataset.source(source).to_iter_dataset(
            grain.ReadOptions(num_threads=min(here, 1), prefetch_buffer_size=here)
        )
        if options.workers:
            from absl import flags

            if not flags.FLAGS.is_parsed():  # grain's workers read flags of its own
                flags.FLAGS.mark_as_parsed()
            dataset = dataset.map(_packed).mp_prefetch(
                grain.MultiprocessingOptions(options.workers, options.prefetch),
                worker_init_fn=_init_worker,
            )
        self._running.append(iter(dataset))
        self._to_start = options.workers
        self._running[0].start_prefetch()

    def close(self) -> None:
        """Ends the workers. The state stays, and iteration can go on with new ones."""
        _end(self._running)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def get_state(self) -> bytes:
        """Returns the number of the next batch and the faults so far as JSON, for a checkpoint.

        It does not depend on workers, prefetch and the number of processes; only the counts of
        faults belong to this process.
        """
        state = {
            "version": _VERSION,
            "step": self._step,
            "digest": self._pipeline.schedule.digest,
            "faults": self._faults,
        }
        return json.dumps(state).encode()

    def set_state(self, state: bytes | str) -> None:
        """Restores a state that `get_state` returned, so that its next batch comes next.

        Raises:
            InputError: no such state, or one of other data, buckets, seed or augmentation.
        """
        try:
            values = json.loads(state)
            version, step, digest = values["version"], values["step"], values["digest"]
            faults = {str(message): int(count) for message, count in values["faults"].items()}
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise InputError(
                f"state of the data pipeline: expected what get_state gave, got {state[:80]!r}"
            ) from error
        if version != _VERSION or type(step) is not int or not 0 <= step < _ENDLESS:
            raise InputError(
                f"state of the data pipeline: expected version {_VERSION} and a step, got version"
                f" {version!r} and step {step!r}"
            )
        if digest != self._pipeline.schedule.digest:
            raise InputError(
                "state of the data pipeline: it is of other data or other options (buckets, seed,"
                " augmentation, normalization, weights, strategies, scenes, frames); start anew or"
                " restore those"
            )
        self.close()
        self._step, self._faults = step, faults


class _From:
    """Batches from a step on as a random-access sequence, the form of a data source in grain."""

    def __init__(self, make: BatchMaker, start: int):
        self._make, self._start = make, start

    def __len__(self) -> int:
        return _ENDLESS - self._start

    def __getitem__(self, index: Any) -> tuple[dict[str, np.ndarray], Record]:
        batch = self._make(self._start + int(index))
        return batch.arrays(), batch.record

    def __iter__(self) -> Generator[tuple[dict[str, np.ndarray], Record], None, None]:
        for index in range(len(self)):
            yield self[index]


def _packed(element: tuple[dict[str, np.ndarray], Record]) -> tuple[dict[str, np.ndarray], Record]:
    """Packs a batch into few bytes on its way out of a worker, since new shared memory is slow.

    Images with 8-bit values, as all photos have, are sent as uint8; `_unpacked` gives the same
    floats.
    """
    arrays, record = element
    sent = {name: array for name, array in arrays.items() if name != "mask"}
    images, scale = arrays["images"], np.float32(255)
    levels, work = np.empty(images.shape, np.uint8), np.empty(images.shape[1:], images.dtype)
    for row, level in zip(images, levels, strict=True):
        np.multiply(row, scale, out=work)
        np.copyto(level, np.add(work, 0.5, out=work), casting="unsafe")
        if not np.array_equal(np.divide(level, scale, out=work), row):
            return sent, record  # it has more than 8 bits
    return {**sent, "images": levels}, record


def _unpacked(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Unpacks the arrays of a batch into copies, so that shared memory is freed at once."""
    copies = {name: np.array(array) for name, array in arrays.items()}
    if copies["images"].dtype == np.uint8:
        copies["images"] = copies["images"] / np.float32(255)
    return {**copies, "mask": copies["depth"] > 0} if "depth" in copies else copies


def _end(running: list[Any]) -> None:
    while running:
        running.pop().close()


def _init_worker(index: int, count: int) -> None:
    del index, count
    # A source that renders with JAX must not take the accelerator from the training.
    jax.config.update("jax_platforms", "cpu")
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    """Ends this worker process as soon as its parent process has ended.

    If the parent is killed, nobody reads the queue any more, and writers would wait.
    """
    multiprocessing.connection.wait([sentinel])
    os._exit(1)
