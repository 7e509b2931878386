"""Scenes of the service computed in a process of their own, which keeps one model loaded.

The process is started at the first scene and ended when a scene that was cancelled does not stop by
itself, since nothing else ends a compiled pass; the next scene then starts it again. A scene that
takes it down, by memory for instance, fails alone.
"""

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from lite3r_jax import exports
from lite3r_jax.backbones.base import register_places, registered_places
from lite3r_jax.errors import InputError
from lite3r_jax.experiment import Experiment
from lite3r_jax.files import atomic_write
from lite3r_jax.infer import report as reports
from lite3r_jax.interrupts import kept_from_children
from lite3r_jax.models import CheckedModel
from lite3r_jax.progress import Progress, Tick
from lite3r_jax.runs.reconstruct import SceneRun, build, check, find, open_scene, result_folders
from lite3r_jax.service.record import THUMBNAIL, Record
from lite3r_jax.service.record import Progress as SceneProgress
from lite3r_jax.service.refusals import Cancelled
from lite3r_jax.service.scenes import Made
from lite3r_jax.service.uploads import with_names_of_senders
from lite3r_jax.weights import strict_json

_PATIENCE = 3.0  # seconds that a cancelled scene has to stop by itself
_EVERY = 0.1  # seconds between reports of steps
_THUMBNAIL = (320, 240)
_CANCEL = "cancel"


class Process:
    """Implements `service.scenes.Engine` with a process that keeps one model loaded."""

    def __init__(self, settings: Callable[[Record, Path], Experiment]):
        """Takes what makes the settings of scenes; no process is started yet.

        Args:
            settings: scene and its folder -> settings of its reconstruction, checked.
        """
        self._settings = settings
        self._lock = threading.Lock()
        self._process: Any = None
        self._pipe: Connection | None = None
        self._closed = False

    def compute(
        self,
        record: Record,
        folder: Path,
        report: Callable[[SceneProgress], None],
        cancelled: threading.Event,
    ) -> Made:
        """Implements `service.scenes.Engine.compute`: has the process write a scene's results."""
        pipe = self._running()
        names = {each.stored: each.name for each in record.files}
        asked: float | None = None
        try:
            pipe.send((self._settings(record, folder), names, record.adding))
            while True:
                if asked is None and cancelled.is_set():
                    pipe.send(_CANCEL)
                    asked = time.monotonic()
                if asked is not None and time.monotonic() - asked > _PATIENCE:
                    self._end()
                    raise Cancelled
                if not pipe.poll(0.1):
                    continue
                kind, value = pipe.recv()
                if kind == "progress":
                    report(value)
                elif kind == "made":
                    return value
                elif kind == "cancelled":
                    raise Cancelled
                elif kind == "input":
                    raise InputError(value)
                else:
                    raise RuntimeError(value)
        except (EOFError, OSError) as error:
            code = self._end()
            if self._closed:
                raise Cancelled from error
            raise InputError(f"the scene could not be computed: {_reason(code)}") from error

    def close(self) -> None:
        """Implements `service.scenes.Engine.close`: ends the process, whatever it is doing."""
        self._closed = True
        self._end()

    def _running(self) -> Connection:
        with self._lock:
            if self._closed:
                raise Cancelled
            if self._process is None or not self._process.is_alive():
                if self._pipe is not None:
                    self._pipe.close()
                context = multiprocessing.get_context("spawn")
                self._pipe, there = context.Pipe()
                self._process = context.Process(
                    target=_work, args=(there, registered_places()), daemon=True, name="model"
                )
                with kept_from_children(signal.SIGINT, signal.SIGTERM):  # this process ends it
                    self._process.start()
                there.close()  # so that the end of the process ends the pipe
            assert self._pipe is not None
            return self._pipe

    def _end(self) -> int | None:
        with self._lock:
            if self._process is None:
                return None
            self._process.kill()  # files are complete or not there, and nothing else is lost
            self._process.join()
            code, self._process = self._process.exitcode, None
            return code


def _reason(code: int | None) -> str:
    if code == -signal.SIGKILL:
        return "the system ended the process, as it does where memory is short; send fewer photos"
    return f"its process ended with code {code}; the log of the service may say why"


# -- inside of the process -------------------------------------------------------------------------


def _work(pipe: Connection, backbones: tuple[tuple[str, str], ...]) -> None:
    register_places(backbones)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    kept = _Kept()
    while True:
        try:
            job = pipe.recv()
        except (EOFError, OSError):
            return
        if job == _CANCEL:  # it came when its scene had ended
            continue
        experiment, names, adding = job
        folder = Path(experiment.input)
        try:
            make = kept.reconstruct if not adding else partial(_add, adding)
            pipe.send(("made", make(experiment, _Reported(pipe))))
        except Cancelled:
            pipe.send(("cancelled", None))
        except InputError as error:
            pipe.send(("input", with_names_of_senders(str(error), folder, names)))
        except Exception as error:  # whatever it is, the service goes on
            traceback.print_exc()
            pipe.send(("error", f"{type(error).__name__}: {error}"))


def _add(formats: str, experiment: Experiment, progress: "_Reported") -> Made:
    """Writes a scene that was reconstructed before in further formats."""
    folder, names = Path(experiment.output), exports.parse_formats(formats)
    with progress.stage("read the scene"):
        (saved,) = exports.planned(folder, ("npz",))
        scene = exports.read_npz(saved)
        report = strict_json.read_object(folder / reports.FILE_NAME)
    photos = open_scene(experiment, find(experiment)[0], progress).photos
    if tuple(photo.name for photo in photos) != scene.names:
        raise InputError("the photos of the scene were changed; send them again")
    with progress.stage("export", len(names), "format") as tick:
        written = exports.write(
            replace(scene, photos=photos),
            folder,
            names,
            experiment.export,
            overwrite=True,
            progress=tick,
            report={key: report[key] for key in ("model", "versions", "device")},
        )
    new = {
        name: {"path": path.relative_to(folder).as_posix(), "bytes": reports.size_of(path)}
        for name, path in written.items()
    }
    report["outputs"] = report["outputs"] | new
    reports.write_report(report, folder / reports.FILE_NAME, overwrite=True)
    return _made(report)


def _made(report: Mapping[str, Any]) -> Made:
    outputs = {name: entry["bytes"] for name, entry in report["outputs"].items()}
    return Made(outputs, dict(report["seconds"]), report["scene"]["views"])


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


class _Kept:
    """Keeps the loaded model, and its programs for the last settings of images."""

    def __init__(self):
        self._key: Any = None
        self._checked: CheckedModel | None = None
        self._built: tuple[Any, Mapping[str, Any]] | None = None
        self._run: SceneRun | None = None

    def reconstruct(self, experiment: Experiment, progress: "_Reported") -> Made:
        """Reconstructs the scene of these settings into `experiment.output`."""
        formats = exports.parse_formats(experiment.formats)
        scenes = find(experiment)
        if len(scenes) != 1:
            raise InputError("a scene is photos or one video; send them one by one")
        photos = open_scene(experiment, scenes[0], progress)
        run, checked = self._of(experiment, formats, progress)
        folder = result_folders(experiment, scenes, formats, checked)[scenes[0].name]
        run(photos, folder, progress)
        with atomic_write(folder.path.with_name(THUMBNAIL), overwrite=True) as partial:
            picture = photos.photos[0].read()
            picture.thumbnail(_THUMBNAIL)
            picture.save(partial, "JPEG", quality=80)
        return _made(strict_json.read_object(folder.path / reports.FILE_NAME))

    def _of(
        self, experiment: Experiment, formats: tuple[str, ...], progress: Progress
    ) -> tuple[SceneRun, CheckedModel]:
        """Returns the run and model for these settings; a new model takes the last one's place."""
        points = experiment.export.points.source
        spec = experiment.model_spec(), experiment.backbone, points, experiment.cameras
        if self._key != spec or self._built is None or self._checked is None:
            self._key = self._built = self._run = None  # its memory is free before the next comes
            self._checked = check(experiment, points, progress)
            self._built = build(experiment, self._checked, points, progress)
            self._key = spec
        if self._run is None or self._run.experiment.images != experiment.images:
            self._run = None
            self._run = SceneRun(experiment, self._built, None, formats)
        self._run = self._run.like(experiment, formats)
        return self._run, self._checked


class _Reported(Progress):
    """Progress that is told to the service, and that raises when the service cancels a scene."""

    def __init__(self, pipe: Connection):
        super().__init__(show=True)  # so that the time of a pass is estimated
        self._pipe, self._last = pipe, 0.0

    @contextmanager
    def stage(
        self, name: str, total: int | None = None, unit: str = "", expected: float | None = None
    ) -> Iterator[Tick]:
        """Implements `Progress.stage`: tells the steps of a stage to the service.

        Raises:
            Cancelled: at the beginning of a stage, and from its ticks.
        """
        self._check()
        self._tell(SceneProgress(name, 0, total, unit, expected))
        start, done = time.perf_counter(), 0

        def tick() -> None:
            nonlocal done
            done += 1
            if time.monotonic() - self._last >= _EVERY or done == total:
                self._check()
                self._tell(SceneProgress(name, done, total, unit, expected))

        try:
            yield tick
        finally:
            spent = time.perf_counter() - start
            self.seconds[name] = self.seconds.get(name, 0.0) + spent

    def _check(self) -> None:
        if self._pipe.poll() and self._pipe.recv() == _CANCEL:
            raise Cancelled

    def _tell(self, progress: SceneProgress) -> None:
        self._last = time.monotonic()
        self._pipe.send(("progress", progress))
