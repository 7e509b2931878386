"""The scenes of the service: stored on disk, queued, and computed one after the other.

A folder holds a folder for each scene, named by its id: `scene.json` (the record), `input/` (the
uploaded files), `results/` and a small picture. An upload that is arriving is in a folder
`.upload-*` beside these and gets its name when it is complete. One thread computes the scenes.
"""

import os
import secrets
import shutil
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from lite3r_jax.errors import InputError, printable
from lite3r_jax.service import record as records
from lite3r_jax.service.options import ServeOptions
from lite3r_jax.service.record import ENDED, INPUT, RESULTS, Progress, Record
from lite3r_jax.service.refusals import Cancelled, Refused

_UPLOAD = ".upload-"
STOPPED = "the service ended while the scene was computed; send it again"


@dataclass(frozen=True)
class Made:
    """The outcome of computing a scene: sizes of the outputs, times, number of views.

    Attributes:
        outputs: format -> bytes.
        seconds: stage -> wall time.
        views: number of views.
    """

    outputs: dict[str, int]
    seconds: dict[str, float]
    views: int


class Engine(Protocol):
    """Interface of the engine that computes scenes, one at a time."""

    def compute(
        self,
        record: Record,
        folder: Path,
        report: Callable[[Progress], None],
        cancelled: threading.Event,
    ) -> Made:
        """Computes a scene, or the formats in `record.adding`, and writes into `folder/results`.

        Args:
            record: record of the scene.
            folder: folder of the scene, with the uploaded files in `input`.
            report: called with the progress during the computation.
            cancelled: set when the computation should stop.

        Raises:
            InputError: the scene cannot be computed; the message is one line that the sender
                understands.
            Cancelled: the computation was stopped.
        """
        ...

    def close(self) -> None:
        """Stops the current computation, and releases all resources."""
        ...


class Scenes:
    """All scenes of the service, and the thread that computes them; thread-safe."""

    def __init__(self, folder: Path, engine: Engine, options: ServeOptions):
        """Reads the records of earlier scenes, and queues those that were waiting again.

        Args:
            folder: folder of all scenes; no other process writes to it.
            engine: engine that computes the scenes.
            options: limits of the service.
        """
        self.folder, self._engine, self._options = folder, engine, options
        self._lock = threading.Condition()
        self._records: dict[str, Record] = {}
        self._queue: deque[str] = deque()
        self._progress: dict[str, Progress] = {}
        self._cancelled: dict[str, threading.Event] = {}
        self._arriving, self._closed = 0, False
        self._read()
        self._thread = threading.Thread(target=self._work, name="scenes", daemon=True)

    def start(self) -> None:
        """Starts the thread that computes queued scenes."""
        self._thread.start()

    def close(self) -> None:
        """Stops computing; a scene that is being computed waits for the next start."""
        with self._lock:
            self._closed = True
            self._lock.notify_all()
        self._engine.close()
        if self._thread.ident is not None:
            self._thread.join(5)

    # -- what there is -------------------------------------------------------------------------

    def all(self) -> list[Record]:
        """Returns the records of all scenes, the newest first."""
        with self._lock:
            return sorted(self._records.values(), key=lambda r: (r.created, r.id), reverse=True)

    def get(self, name: str) -> Record:
        """Returns the record of the scene with the id `name`.

        Raises:
            Refused: there is no such scene.
        """
        with self._lock:
            if name not in self._records:
                raise Refused("there is no such scene; GET /scenes lists them", 404)
            return self._records[name]

    def where(self, name: str) -> tuple[int, Progress | None, bool]:
        """Returns (place in the queue from 1, or 0; progress; whether it is being cancelled)."""
        with self._lock:
            place = self._queue.index(name) + 1 if name in self._queue else 0
            flag = self._cancelled.get(name)
            return place, self._progress.get(name), flag is not None and flag.is_set()

    def counts(self) -> dict[str, int]:
        """Returns the numbers of all scenes, of waiting scenes, and of arriving uploads."""
        with self._lock:
            return {
                "scenes": len(self._records),
                "waiting": len(self._queue),
                "arriving": self._arriving,
            }

    def path(self, record: Record) -> Path:
        """Returns the path of the folder of a scene."""
        return self.folder / record.id

    # -- what changes --------------------------------------------------------------------------

    @contextmanager
    def arriving(self, size: int | None) -> Iterator[Path]:
        """Makes a folder for an upload, deleted at the end of the block unless `add` has moved it.

        Args:
            size: bytes of the upload; None: unknown.

        Raises:
            Refused: there are too many scenes, too little space on the disk, or the service is
                about to end.
        """
        self._admit(size)
        folder = self.folder / f"{_UPLOAD}{secrets.token_hex(8)}"
        try:
            (folder / INPUT).mkdir(parents=True)
            yield folder
        except OSError as error:
            raise Refused(
                f"the upload cannot be stored here ({error.strerror or error})", 507
            ) from error
        finally:
            with self._lock:
                self._arriving -= 1
            shutil.rmtree(folder, ignore_errors=True)

    def _admit(self, size: int | None) -> None:
        with self._lock:
            if self._closed:
                raise Refused("the service is about to end; come again later", 503)
            if len(self._records) + self._arriving >= self._options.max_scenes:
                raise Refused(
                    f"{self._options.max_scenes} scenes are kept already (serve.max_scenes);"
                    " delete some",
                    507,
                )
            self._admit_another()
            if size and shutil.disk_usage(self.folder).free < 2 * size:
                raise Refused("too little room on the disk for this upload; delete scenes", 507)
            self._arriving += 1

    def _admit_another(self) -> None:
        if len(self._queue) + self._arriving >= self._options.max_waiting:
            raise Refused(
                f"{self._options.max_waiting} scenes wait already (serve.max_waiting); come again"
                " later",
                503,
            )

    def new_id(self) -> str:
        """Returns a random id for a new scene, which cannot be guessed."""
        return secrets.token_hex(8)

    def add(self, record: Record, arrived: Path) -> None:
        """Stores a new scene, and puts it into the queue.

        Args:
            record: record of the scene.
            arrived: folder of `arriving`, with the photos of the scene.

        Raises:
            Refused: the disk is full.
        """
        try:
            records.write_record(record, arrived)
        except InputError as error:
            raise Refused(f"the scene cannot be stored here ({error})", 507) from error
        with self._lock:
            os.rename(arrived, self.path(record))
            self._records[record.id] = record
            self._queue.append(record.id)
            self._lock.notify_all()

    def cancel(self, name: str) -> Record:
        """Cancels a scene; a running scene ends soon after.

        Raises:
            Refused: there is no such scene, or it has ended.
        """
        with self._lock:
            record = self.get(name)
            if record.state in ENDED:
                raise Refused(f"the scene is {record.state} already", 409)
            if record.state == "running":
                self._cancelled[name].set()
                return record
            self._queue.remove(name)
            return self._change(record.given_up("cancelled"))

    def extend(self, name: str, file_format: str) -> Record:
        """Queues a scene that is done again, to add another format to its results.

        Args:
            name: id of the scene.
            file_format: name of an export format, checked before.

        Raises:
            Refused: there is no such scene, it is not done, has no npz or has the format, or too
                many scenes wait.
        """
        with self._lock:
            record = self.get(name)
            if record.state != "done":
                raise Refused(f"the scene is {record.state}; files are added when it is done", 409)
            if "npz" not in record.outputs:
                raise Refused("the scene was made without npz, of which others are made", 409)
            if file_format in record.outputs:
                raise Refused(f"the scene has {file_format} already", 409)
            self._admit_another()
            self._queue.append(name)
            self._lock.notify_all()
            return self._change(replace(record, state="waiting", adding=file_format, error=""))

    def remove(self, name: str) -> None:
        """Deletes a scene with its photos and results.

        Raises:
            Refused: there is no such scene, or it is being computed.
        """
        with self._lock:
            record = self.get(name)
            if record.state == "running":
                raise Refused("the scene is being computed; cancel it first", 409)
            if name in self._queue:
                self._queue.remove(name)
            del self._records[name]
            gone = self.folder / f"{_UPLOAD}{name}"  # a name that the next start clears
            os.rename(self.path(record), gone)
        shutil.rmtree(gone, ignore_errors=True)

    def _change(self, record: Record) -> Record:
        """Stores a changed record in memory and on disk, and returns the record."""
        self._records[record.id] = record
        try:
            records.write_record(record, self.path(record))
        except InputError as error:  # of a full disk; what is known in memory still counts
            print(f"error: {printable(error)}", file=sys.stderr, flush=True)
        return record

    # -- the thread that computes --------------------------------------------------------------

    def _work(self) -> None:
        while (record := self._next()) is not None:
            flag = self._cancelled[record.id]
            try:
                made = self._engine.compute(
                    record, self.path(record), lambda p, r=record: self._report(r, p), flag
                )
                ended = replace(
                    record,
                    state="done",
                    outputs=made.outputs,
                    seconds=made.seconds,
                    views=made.views,
                    adding="",
                )
            except Cancelled:
                stop = self._closed and not flag.is_set()
                ended = record.given_up("waiting" if stop else "cancelled")
            except InputError as error:
                ended = record.given_up("failed", printable(error))
            except Exception as error:  # the queue goes on, whatever it is
                import traceback

                traceback.print_exc()
                reason = " ".join(str(error).split())[:300] or type(error).__name__
                ended = record.given_up("failed", f"internal error: {reason}")
            with self._lock:
                self._progress.pop(record.id, None)
                del self._cancelled[record.id]
                if not ended.outputs:
                    shutil.rmtree(self.path(record) / RESULTS, ignore_errors=True)
                self._change(ended)

    def _next(self) -> Record | None:
        """Waits for the next queued scene and marks it as running; returns None when closed."""
        with self._lock:
            while not self._queue and not self._closed:
                self._lock.wait()
            if self._closed:
                return None
            name = self._queue.popleft()
            self._cancelled[name] = threading.Event()
            return self._change(replace(self._records[name], state="running"))

    def _report(self, record: Record, progress: Progress) -> None:
        with self._lock:
            before = self._progress.get(record.id)
            same = before is not None and before.stage == progress.stage
            since = before.since if before is not None and same else time.time()
            self._progress[record.id] = replace(progress, since=since)

    # -- the start -----------------------------------------------------------------------------

    def _read(self) -> None:
        """Reads scenes of an earlier service, queues waiting ones, and ends interrupted ones."""
        for place in sorted(self.folder.iterdir()) if self.folder.is_dir() else ():
            if place.name.startswith(_UPLOAD):
                shutil.rmtree(place, ignore_errors=True)
            elif records.ID.fullmatch(place.name) and place.is_dir() and not place.is_symlink():
                try:
                    self._records[place.name] = records.read_record(place)
                except InputError as error:
                    print(f"error: {printable(error)}; left out", file=sys.stderr, flush=True)
        for record in reversed(self.all()):
            if record.state == "waiting":
                self._queue.append(record.id)
            elif record.state == "running":  # the service was killed: this scene may be the reason
                if not record.outputs:
                    shutil.rmtree(self.path(record) / RESULTS, ignore_errors=True)
                self._change(record.given_up("failed", STOPPED))
