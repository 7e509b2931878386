"""Result folders: what results were made of, which are done, and removal of older results."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lite3r_jax import exports
from lite3r_jax.errors import InputError
from lite3r_jax.experiment import Experiment, to_config
from lite3r_jax.infer import report as reports
from lite3r_jax.long_video import outputs as long_video
from lite3r_jax.long_video.outputs import PARTS
from lite3r_jax.long_video.store import CHUNKS
from lite3r_jax.weights import strict_json

DEPENDS_ON = ("backbone", "formats", "images", "video", "cameras", "compute", "refine", "export")
"""Settings and groups of settings that results depend on, besides the model and the input."""
REFINING = "refining"
"""Folder inside of a result folder that keeps the state of an unfinished refinement."""
State = Literal["new", "done", "unfinished", "other"]


def made_of(experiment: Experiment, model: Mapping[str, Any], files: Sequence[str]) -> str:
    """Returns a hash of what results are made of: settings, model, and the files of the input.

    Args:
        experiment: the settings.
        model: from `models.CheckedModel.facts`.
        files: photos or video; they count by name, size and time of their last change, and so do
            those of known cameras and masks.
    """
    settings = to_config(experiment).to_dict()
    known = Path(experiment.cameras.known) if experiment.cameras.known else None
    cameras = sorted(known.iterdir()) if known and known.is_dir() else [known] if known else []
    folder = experiment.export.points.mask_folder
    masks = sorted(path for path in Path(folder).rglob("*") if path.is_file()) if folder else []
    given = [*files, *map(str, [*cameras, *masks])]
    stats = [(os.path.basename(name), os.stat(name)) for name in given if os.path.exists(name)]
    body = {
        "settings": {name: settings[name] for name in DEPENDS_ON},
        "model": model,
        "version": reports.environment()["versions"]["lite3r_jax"],
        "files": [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats],
    }
    return hashlib.sha256(json.dumps(body, sort_keys=True, default=str).encode()).hexdigest()


@dataclass(frozen=True)
class ResultFolder:
    """The folder of one scene's results, and the state of the run that writes it.

    Attributes:
        path: of the folder.
        formats: that the folder will have.
        key: hash from `made_of`.
    """

    path: Path
    formats: tuple[str, ...]
    key: str

    def planned(self) -> list[Path]:
        """Returns the paths of all files and folders that the folder of a finished run has."""
        own = long_video.planned if self._in_chunks() else exports.planned
        return [*own(self.path, self.formats), self.path / reports.FILE_NAME]

    def existing(self) -> list[Path]:
        """Returns the planned paths that exist, and what a stopped run in chunks has left."""
        chunks = [self.path / CHUNKS] if self._in_chunks() else []
        every = dict.fromkeys([*self.planned(), *chunks])
        return [path for path in every if os.path.lexists(path)]

    def state(self) -> State:
        """Returns the state of the folder: new, done, unfinished or other.

        new: nothing is there; done: all is, of the same settings, model and input; unfinished: a
        run with the same began and was stopped; other: something else is there.
        """
        existing = self.existing()
        if not existing:
            return "new"
        report = self._report()
        if report.get("made_of") != self.key:
            return "other"
        complete = report.get("finished") is True and set(self.planned()) <= set(existing)
        return "done" if complete else "unfinished"

    @property
    def refining(self) -> Path:
        """Folder that keeps prediction and matches during a refinement.

        Its name is `key`: it is of these settings and files alone.
        """
        return self.path / REFINING / self.key

    def begin(self, *, chunks: bool = False, refining: bool = False) -> frozenset[str]:
        """Writes that a run has begun into the report; returns the formats of the run before.

        Args:
            chunks: whether the run is of a video in chunks. Chunks of other settings, weights or
                videos are deleted.
            refining: whether prediction and matches will be kept in `refining`. Those of other
                settings are deleted.
        """
        report = self._report()
        if report.get("made_of") != self.key:
            self.forget_chunks()
            self._forget_matches()
        older = report.get("outputs")
        names = set(older) if isinstance(older, dict) else set()
        outputs = {name: {} for name in (*sorted(names & set(exports.FORMATS)), *self.formats)}
        note = {
            "made_of": self.key, "finished": False, "in_chunks": chunks, "refining": refining,
            "outputs": outputs,
        }  # fmt: skip
        reports.write_report(note, self.path / reports.FILE_NAME, overwrite=True)
        return frozenset(names & set(exports.FORMATS))

    def finish(self, report: Mapping[str, Any], older: frozenset[str]) -> None:
        """Writes the report, and deletes formats of older runs that this run does not have."""
        self._forget_matches()
        mine = set(self.planned())
        for path in exports.planned(self.path, sorted(older)) if older else ():
            if path not in mine:
                _remove(path)
        whole = {**report, "made_of": self.key, "finished": True, "in_chunks": self._in_chunks()}
        reports.write_report(whole, self.path / reports.FILE_NAME, overwrite=True)

    def give_up(self) -> None:
        """Deletes what `begin` made after the scene failed, if nothing else was written."""
        self._forget_matches()
        if self.existing() == [self.path / reports.FILE_NAME]:
            with suppress(OSError):
                (self.path / reports.FILE_NAME).unlink()
                self.path.rmdir()

    def forget_chunks(self) -> None:
        """Deletes chunks that a run wrote, and results of parts that did not join."""
        if not self._in_chunks():
            return  # folders of these names are somebody else's
        for name in (CHUNKS, PARTS):
            _remove(self.path / name)

    def _forget_matches(self) -> None:
        if self._report().get("refining") is True:
            _remove(self.path / REFINING)

    def _in_chunks(self) -> bool:
        return self._report().get("in_chunks") is True

    def _report(self) -> Mapping[str, Any]:
        try:
            return strict_json.read_object(self.path / reports.FILE_NAME)
        except InputError:  # there is none, or none of ours
            return {}


def refuse_other(folders: Sequence[ResultFolder]) -> None:
    """Raises if folders have results of other settings, weights or photos.

    Raises:
        InputError: naming what is there.
    """
    there = [str(path) for folder in folders for path in folder.existing()]
    if there:
        more = f" and {len(there) - 3} more" if len(there) > 3 else ""
        raise InputError(
            f"{', '.join(there[:3])}{more}: exist already, made with other settings, weights or"
            " photos; choose another config.output or add --config.overwrite"
        )


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()
