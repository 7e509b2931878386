"""A folder of results that grows scene by scene, and can be gone on with.

settings.json                                  what is measured, of which weights
scenes/ROW/PROTOCOL-VIEWS/00000-SCENE.json     one for each sample
predictions/PROTOCOL-VIEWS/00000.npz           of the first row, if there are others
pictures/PROTOCOL-VIEWS/00000/truth.npz        of the samples that the page shows (`shown.Shown`)
pictures/PROTOCOL-VIEWS/00000/ROW.npz          what a row makes of them
report.json, report.md, report.html            when everything is done
"""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from lite3r_jax.errors import InputError
from lite3r_jax.evaluate.figures import SceneFigures
from lite3r_jax.evaluate.predictor import Output
from lite3r_jax.evaluate.protocols import Protocol
from lite3r_jax.evaluate.record import Record
from lite3r_jax.evaluate.shown import Shown, pack, unpack
from lite3r_jax.files import staged
from lite3r_jax.weights import strict_json

SETTINGS, SCENES, PREDICTIONS, PICTURES = "settings.json", "scenes", "predictions", "pictures"
TRUTH = "truth"
"""In place of a row, what its pictures are compared with."""
_OWN = (SCENES, PREDICTIONS, PICTURES, "report.json", "report.md", "report.html", SETTINGS)


class Results:
    """The folder of one evaluation.

    Scenes that are there are not done again; failures are. Every file appears when it is complete,
    so a run that was killed loses the scene it was at.
    """

    def __init__(self, root: Path, settings: Mapping[str, Any], *, overwrite: bool = False):
        """Begin, or go on.

        Args:
            root: the folder; made if need be.
            settings: JSON values that results depend on.
            overwrite: whether results of other settings may be removed. Nothing but what an
                evaluation writes is.

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
        elif found := [name for name in _OWN if (root / name).exists()]:
            raise InputError(
                f"{root / found[0]}: exists, but not {SETTINGS}; choose another config.output"
            )
        self.write(SETTINGS, strict_json.dump(settings))

    def write(self, name: str, data: bytes) -> Path:
        """Write a file, whether or not it exists.

        Raises:
            InputError: it cannot be written.
        """
        path = self.root / name
        with staged(path, overwrite=True) as partial:
            partial.write_bytes(data)
        return path

    def records(self, row: str, protocol: Protocol) -> dict[int, Record]:
        """What is done, by number of the sample; without failures.

        Raises:
            InputError: a file is damaged or of another scene.
        """
        found = {}
        for n, item in enumerate(protocol.items):
            path = self._scene(row, protocol, n)
            if path.exists():
                record = Record.from_json(strict_json.read_object(path), str(path))
                if (record.scene, record.frames) != (item.scene, item.frames):
                    raise InputError(
                        f"{path}: is of other frames than the protocol has now; the data has"
                        " changed, choose another config.output"
                    )
                if not record.failure:
                    found[n] = record
        return found

    def keep(self, row: str, protocol: Protocol, n: int, record: Record) -> None:
        """Write one record."""
        path = self._scene(row, protocol, n).relative_to(self.root)
        self.write(str(path), strict_json.dump(record.to_json()))

    def keep_output(self, protocol: Protocol, n: int, output: Output) -> None:
        """Write what the first row predicts, for the others."""
        arrays = {k: x for k, x in vars(output).items() if x is not None}
        path = self._prediction(protocol, n)
        with staged(path, overwrite=True) as partial, partial.open("wb") as file:
            np.savez(file, **arrays)

    def has_output(self, protocol: Protocol, n: int) -> bool:
        """Whether there is a prediction of the first row."""
        return self._prediction(protocol, n).exists()

    def output(self, protocol: Protocol, n: int) -> Output | None:
        """What the first row predicts; None where it failed.

        Raises:
            InputError: the file is damaged.
        """
        path = self._prediction(protocol, n)
        if not self.has_output(protocol, n):
            return None
        try:
            with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
                return Output(**{name: file[name] for name in file.files})
        except (OSError, ValueError, TypeError, KeyError, EOFError, BadZipFile) as error:
            raise InputError(f"{path}: is damaged; delete it") from error

    def keep_shown(self, row: str, protocol: Protocol, n: int, shown: Shown) -> None:
        """Write what pictures of a sample are made from; `row` may be `TRUTH`."""
        path = self._shown(row, protocol, n).relative_to(self.root)
        self.write(str(path), pack(shown))

    def has_shown(self, row: str, protocol: Protocol, n: int) -> bool:
        """Whether there are pictures of a sample, by this row."""
        return self._shown(row, protocol, n).exists()

    def _scene(self, row: str, protocol: Protocol, n: int) -> Path:
        scene = re.sub(r"[^\w.-]", "_", protocol.items[n].scene)
        return self.root / SCENES / row / folder_name(protocol) / f"{n:05d}-{scene}.json"

    def _prediction(self, protocol: Protocol, n: int) -> Path:
        return self.root / PREDICTIONS / folder_name(protocol) / f"{n:05d}.npz"

    def _shown(self, row: str, protocol: Protocol, n: int) -> Path:
        return self.root / PICTURES / folder_name(protocol) / f"{n:05d}" / f"{row}.npz"


def folder_name(protocol: Protocol) -> str:
    """Of one protocol with a number of views."""
    return _folder(protocol.name, protocol.views)


def shown_scenes(
    root: Path, results: Sequence[Mapping[str, Any]], count: int
) -> list[SceneFigures]:
    """What the page of an evaluation shows in pictures, by protocol.

    Args:
        root: the folder of the evaluation.
        results: of its report.json.
        count: so many samples of each list, the first ones.

    Raises:
        InputError: a file is damaged or missing.
    """
    found = []
    for name, views in dict.fromkeys((e["protocol"], e["views"]) for e in results):
        rows = [e["row"] for e in results if (e["protocol"], e["views"]) == (name, views)]
        folder = _folder(name, views)
        for first in sorted((root / SCENES / rows[0] / folder).glob("*.json"))[:count]:
            pictures = root / PICTURES / folder / first.name[:5]
            seen = {}
            for row in rows:
                path = root / SCENES / row / folder / first.name
                record = Record.from_json(strict_json.read_object(path), str(path))
                shown = None if record.failure else unpack(pictures / f"{row}.npz")
                seen[row] = record, shown
            truth = pictures / f"{TRUTH}.npz"
            found.append(
                SceneFigures(
                    f"{name}, {views} views",
                    seen[rows[0]][0],
                    unpack(truth) if truth.exists() else None,
                    seen,
                )
            )
    return found


def _folder(protocol: str, views: int) -> str:
    return f"{protocol.replace(':', '-')}-{views}"


def _difference(there: Any, now: Any, where: str = "") -> str:
    """The first setting that differs."""
    if isinstance(there, dict) and isinstance(now, dict):
        for name in sorted(there.keys() | now.keys()):
            if there.get(name) != now.get(name):
                inside = f"{where}.{name}".lstrip(".")
                return _difference(there.get(name), now.get(name), inside)
    return f"{where} was {there!r}, is {now!r}"
