"""The scenes of the service: on disk, waiting in a queue, computed one after the other.

A folder holds a folder for each scene, named by its id: `scene.json` (the record), `input/` (what
was sent), `results/` (what was made of it) and a small picture. What is being uploaded lies in a
folder `.upload-*` beside them and gets its name when it is complete. One thread computes.
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
    """What was made of a scene.

    Attributes:
        outputs: format -> bytes.
        seconds: stage -> wall time.
        views: number of views.
    """

    outputs: dict[str, int]
    seconds: dict[str, float]
    views: int


class Engine(Protocol):
    """What computes scenes, one at a time."""

    def compute(
        self,
        record: Record,
        folder: Path,
        report: Callable[[Progress], None],
        cancelled: threading.Event,
    ) -> Made:
        """Write the results of a scene into `folder/results`, or those that `adding` names.

        Args:
            record: of the scene.
            folder: of the scene, with what was sent in `input`.
            report: called as it goes on.
            cancelled: set when it should be given up.

        Raises:
            InputError: it cannot be done; one line that the sender understands.
            Cancelled: it was given up.
        """
        ...

    def close(self) -> None:
        """Give up what is being computed, and all resources."""
        ...


class Scenes:
    """All scenes, and the thread that computes them. Methods may be called from any thread."""

    def __init__(self, folder: Path, engine: Engine, options: ServeOptions):
        """Read the records of earlier scenes; those that waited wait again.

        Args:
            folder: of all scenes; nobody else writes there.
            engine: computes them.
            options: limits.
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
        """Begin to compute."""
        self._thread.start()

    def close(self) -> None:
        """Stop; a scene that is being computed waits for the next start."""
        with self._lock:
            self._closed = True
            self._lock.notify_all()
        self._engine.close()
        if self._thread.ident is not None:
            self._thread.join(5)

    # -- what there is -------------------------------------------------------------------------

    def all(self) -> list[Record]:
        """Every scene, the newest first."""
        with self._lock:
            return sorted(self._records.values(), key=lambda r: (r.created, r.id), reverse=True)

    def get(self, name: str) -> Record:
        """The scene of that id.

        Raises:
            Refused: there is none.
        """
        with self._lock:
            if name not in self._records:
                raise Refused("there is no such scene; GET /scenes lists them", 404)
            return self._records[name]

    def where(self, name: str) -> tuple[int, Progress | None, bool]:
        """Where a scene is: (place in the queue from 1, or 0; progress; whether it will end)."""
        with self._lock:
            place = self._queue.index(name) + 1 if name in self._queue else 0
            flag = self._cancelled.get(name)
            return place, self._progress.get(name), flag is not None and flag.is_set()

    def counts(self) -> dict[str, int]:
        """How many scenes there are, wait, and are on their way."""
        with self._lock:
            return {
                "scenes": len(self._records),
                "waiting": len(self._queue),
                "arriving": self._arriving,
            }

    def path(self, record: Record) -> Path:
        """The folder of a scene."""
        return self.folder / record.id

    # -- what changes --------------------------------------------------------------------------

    @contextmanager
    def arriving(self, size: int | None) -> Iterator[Path]:
        """A folder for an upload, which goes when the block ends, unless `add` has taken it.

        Args:
            size: bytes that will come, where that is known.

        Raises:
            Refused: there are too many, or too little room.
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
        """An id that no scene has, and that nobody guesses."""
        return secrets.token_hex(8)

    def add(self, record: Record, arrived: Path) -> None:
        """Put a scene into the queue.

        Args:
            record: of it.
            arrived: the folder of `arriving`, with its photos.

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
        """Give a scene up; a running one ends soon after.

        Raises:
            Refused: there is none, or it has ended.
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

    def extend(self, name: str, formats: str) -> Record:
        """Let a scene that is done wait for further formats.

        Args:
            name: its id.
            formats: checked, with commas between.

        Raises:
            Refused: there is none, it is not done or has them, or too many scenes wait.
        """
        with self._lock:
            record = self.get(name)
            if record.state != "done":
                raise Refused(f"the scene is {record.state}; files are added when it is done", 409)
            if "npz" not in record.outputs:
                raise Refused("the scene was made without npz, of which others are made", 409)
            if formats in record.outputs:
                raise Refused(f"the scene has {formats} already", 409)
            self._admit_another()
            self._queue.append(name)
            self._lock.notify_all()
            return self._change(replace(record, state="waiting", adding=formats, error=""))

    def remove(self, name: str) -> None:
        """Delete a scene with everything of it.

        Raises:
            Refused: there is none, or it is being computed.
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
        """Keep a record in memory and on disk."""
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
        """The next scene, which is then running; None when the service ends."""
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
        """Take up what an earlier service left."""
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
