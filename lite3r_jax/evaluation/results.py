"""The folder of an evaluation, written scene by scene so that a stopped one can be resumed.

settings.json                                  what is measured, of which weights
sources.json                                   the data source of each protocol
scenes/VARIANT/PROTOCOL-VIEWS/00000-SCENE.json one for each sample
predictions/PROTOCOL-VIEWS/00000.npz           of the first variant, if there are others
pictures/PROTOCOL-VIEWS/00000/truth.npz        of the samples that the page shows (`Thumbnails`)
pictures/PROTOCOL-VIEWS/00000/VARIANT.npz      what a variant makes of them
report.json, report.md, report.html            when everything is done
"""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lite3r_jax.errors import InputError
from lite3r_jax.evaluation.figures import SceneFigures
from lite3r_jax.evaluation.predictor import Output
from lite3r_jax.evaluation.protocols import Protocol
from lite3r_jax.evaluation.record import Record
from lite3r_jax.evaluation.thumbnails import Thumbnails, pack, unpack
from lite3r_jax.files import atomic_write
from lite3r_jax.npz_file import open_npz
from lite3r_jax.weights import strict_json

SETTINGS, SOURCES = "settings.json", "sources.json"
SCENES, PREDICTIONS, PICTURES = "scenes", "predictions", "pictures"
TRUTH = "truth"
"""Name of the ground truth among the variants that pictures are kept of."""
_OWN = (SCENES, PREDICTIONS, PICTURES, "report.json", "report.md", "report.html", SOURCES, SETTINGS)


class Results:
    """The folder of one evaluation, which can be resumed.

    Scenes with a result are not evaluated again; failures are. Every file appears when it is
    complete, so a run that was killed loses the scene it was at.
    """

    def __init__(self, root: Path, settings: Mapping[str, Any], *, overwrite: bool = False):
        """Opens the folder to begin an evaluation, or to resume one with equal settings.

        Args:
            root: the folder; made if need be.
            settings: JSON values that results depend on.
            overwrite: whether results of other settings may be removed. Nothing is removed but
                what an evaluation writes.

        Raises:
            InputError: there are results of other settings, or files that no evaluation wrote.
        """
        self.root = root
        settings = json.loads(json.dumps(settings))
        path = root / SETTINGS
        if path.exists():
            there = strict_json.read_object(path)
            if there == settings:
                return
            if not overwrite:
                raise InputError(
                    f"{path}: {_difference(there, settings)}; choose another config.output, or"
                    " --config.overwrite to begin anew"
                )
            for name in _OWN:
                if (root / name).is_dir():
                    shutil.rmtree(root / name)
                else:
                    (root / name).unlink(missing_ok=True)
        elif leftovers := [name for name in _OWN if (root / name).exists()]:
            raise InputError(
                f"{root / leftovers[0]}: exists, but not {SETTINGS}; choose another config.output"
            )
        self.write(SETTINGS, strict_json.dump(settings))

    def claim(self, protocols: Sequence[Protocol], sources: Sequence[str]) -> None:
        """Records the data source of each protocol; raises if one name stands for different data.

        Args:
            protocols: of this run.
            sources: what each was opened with.

        Raises:
            InputError: two protocols have one name, or results of the name are of another source.
        """
        path = self.root / SOURCES
        there = strict_json.read_object(path) if path.exists() else {}
        for protocol, source in zip(protocols, sources, strict=True):
            name = folder_name(protocol)
            if there.setdefault(name, source) != source:
                raise InputError(
                    f"{self.root}: {name} is of {there[name]}, not of {source}; evaluate that into"
                    " another config.output"
                )
        self.write(SOURCES, strict_json.dump(there))

    def write(self, name: str, data: bytes) -> Path:
        """Write a file, whether or not it exists.

        Raises:
            InputError: it cannot be written.
        """
        path = self.root / name
        with atomic_write(path, overwrite=True) as partial:
            partial.write_bytes(data)
        return path

    def records(self, variant: str, protocol: Protocol) -> dict[int, Record]:
        """Reads the records of a variant, by number of the sample; without failures.

        Raises:
            InputError: a file is damaged or of another scene.
        """
        records = {}
        for n, item in enumerate(protocol.items):
            path = self._scene(variant, protocol, n)
            if path.exists():
                record = Record.from_json(strict_json.read_object(path), str(path))
                if (record.scene, record.frames) != (item.scene, item.frames):
                    raise InputError(
                        f"{path}: is of other frames than the protocol has now; the data has"
                        " changed, choose another config.output"
                    )
                if not record.failure:
                    records[n] = record
        return records

    def keep(self, variant: str, protocol: Protocol, n: int, record: Record) -> None:
        """Writes the record of one sample."""
        path = self._scene(variant, protocol, n).relative_to(self.root)
        self.write(str(path), strict_json.dump(record.to_json()))

    def keep_output(self, protocol: Protocol, n: int, output: Output) -> None:
        """Writes the first variant's prediction, to which those of other variants are compared."""
        arrays = {k: x for k, x in vars(output).items() if x is not None}
        path = self._prediction(protocol, n)
        with atomic_write(path, overwrite=True) as partial, partial.open("wb") as file:
            np.savez(file, **arrays)

    def has_output(self, protocol: Protocol, n: int) -> bool:
        """Returns whether the prediction of the first variant is there."""
        return self._prediction(protocol, n).exists()

    def output(self, protocol: Protocol, n: int) -> Output | None:
        """Reads the first variant's prediction of a sample; None where it failed.

        Raises:
            InputError: the file is damaged.
        """
        path = self._prediction(protocol, n)
        if not self.has_output(protocol, n):
            return None
        with open_npz(path, "delete it") as file:
            return Output(**{name: file.read(name) for name in file.names})

    def keep_thumbnails(self, variant: str, protocol: Protocol, n: int, shown: Thumbnails) -> None:
        """Writes the thumbnails of a sample for its pictures; `variant` may be `TRUTH`."""
        path = self._shown(variant, protocol, n).relative_to(self.root)
        self.write(str(path), pack(shown))

    def has_shown(self, variant: str, protocol: Protocol, n: int) -> bool:
        """Returns whether the thumbnails of a sample by this variant are there."""
        return self._shown(variant, protocol, n).exists()

    def _scene(self, variant: str, protocol: Protocol, n: int) -> Path:
        scene = re.sub(r"[^\w.-]", "_", protocol.items[n].scene)
        return self.root / SCENES / variant / folder_name(protocol) / f"{n:05d}-{scene}.json"

    def _prediction(self, protocol: Protocol, n: int) -> Path:
        return self.root / PREDICTIONS / folder_name(protocol) / f"{n:05d}.npz"

    def _shown(self, variant: str, protocol: Protocol, n: int) -> Path:
        return self.root / PICTURES / folder_name(protocol) / f"{n:05d}" / f"{variant}.npz"


def folder_name(protocol: Protocol) -> str:
    """Returns the folder name of one protocol with a number of views."""
    return _folder(protocol.name, protocol.views)


def thumbnail_scenes(
    root: Path, results: Sequence[Mapping[str, Any]], count: int
) -> list[SceneFigures]:
    """Reads the scenes that the page of an evaluation shows in pictures, by protocol.

    Args:
        root: the folder of the evaluation.
        results: of its report.json.
        count: so many samples of each list, the first ones.

    Raises:
        InputError: a file is damaged or missing.
    """
    scenes = []
    for name, views in dict.fromkeys((e["protocol"], e["views"]) for e in results):
        variants = [e["variant"] for e in results if (e["protocol"], e["views"]) == (name, views)]
        folder = _folder(name, views)
        for first in sorted((root / SCENES / variants[0] / folder).glob("*.json"))[:count]:
            pictures = root / PICTURES / folder / first.name[:5]
            seen = {}
            for variant in variants:
                path = root / SCENES / variant / folder / first.name
                record = Record.from_json(strict_json.read_object(path), str(path))
                shown = None if record.failure else unpack(pictures / f"{variant}.npz")
                seen[variant] = record, shown
            path = pictures / f"{TRUTH}.npz"
            truth = unpack(path) if path.exists() else None
            for record, shown in seen.values():
                if not _belong_together(record, truth, shown):
                    raise InputError(f"{pictures}: pictures of other views or sizes; delete it")
            scenes.append(SceneFigures(f"{name}, {views} views", seen[variants[0]][0], truth, seen))
    return scenes


def _belong_together(record: Record, truth: Thumbnails | None, shown: Thumbnails | None) -> bool:
    """Returns whether record and thumbnails of a scene are of the same views, at the same size."""
    both = [one for one in (truth, shown) if one is not None]
    return (
        all(one.views.max() < len(record.frames) for one in both)
        and len({one.views.tobytes() for one in both}) <= 1
        and len({x.shape[1:3] for one in both for x in (one.images, one.depth) if x is not None})
        <= 1
    )


def _folder(protocol: str, views: int) -> str:
    return f"{protocol.replace(':', '-')}-{views}"


def _difference(there: Any, now: Any, where: str = "") -> str:
    """Returns a text about the first setting that differs."""
    if isinstance(there, dict) and isinstance(now, dict):
        for name in sorted(there.keys() | now.keys()):
            if there.get(name) != now.get(name):
                inside = f"{where}.{name}".lstrip(".")
                return _difference(there.get(name), now.get(name), inside)
    return f"{where} was {there!r}, is {now!r}"
