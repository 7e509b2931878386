"""The output folder of a training run: which process writes it, its settings and its logs.

config.json     the settings; a run is continued with the same ones only
metrics.jsonl   one line per report; depends on nothing but settings, data and machine
events.jsonl    what happened when: starts, checkpoints, skipped steps, speed; with times
checkpoints/    see `checkpoint`
"""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lite3r_jax import folder_lock
from lite3r_jax.errors import InputError
from lite3r_jax.files import atomic_write
from lite3r_jax.weights import strict_json

CONFIG, METRICS, EVENTS = "config.json", "metrics.jsonl", "events.jsonl"
CHANGES = "changes"
"""Entry of config.json that lists how the settings of a run were changed later."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of the folder of a training, see `folder_lock.locked`.

    Raises:
        InputError: another process is in it, or it can no longer be written.
    """
    try:
        with folder_lock.locked(folder, "training"):
            yield
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror or error})") from error


def claim(
    folder: Path, settings: Mapping[str, Any], free: Sequence[str] = (), *, allow: bool = False
) -> tuple[str, ...]:
    """Write the settings into a new run folder, or compare them with those that it records.

    Args:
        folder: of the run.
        settings: nested dictionaries of JSON values.
        free: dotted names of settings that may change, or of groups of them.
        allow: whether others may change as well. They are then added to `changes` of the file,
            with the time, and count from here on.

    Returns:
        What changed, one line each; nothing for a new folder.

    Raises:
        InputError: the settings differ, by name, or the folder holds something else.
    """
    path = folder / CONFIG
    here = json.loads(json.dumps(settings))
    if not path.exists():
        if other := [name for name in (METRICS, "checkpoints") if (folder / name).exists()]:
            raise InputError(
                f"{folder}: holds {other[0]} but no {CONFIG}, so it is not known what with;"
                " take another folder"
            )
        with atomic_write(path) as partial:
            partial.write_bytes(strict_json.dump(here))
        return ()
    before = strict_json.read_object(path)
    changes = before.pop(CHANGES, [])
    there, new = _flat(before), _flat(here)
    if not any(name.startswith("code.") for name in there):  # of a version that did not record it
        new = {name: value for name, value in new.items() if not name.startswith("code.")}
    changed = [
        name
        for name in sorted(there.keys() | new.keys())
        if there.get(name) != new.get(name)
        and not any(f"{name}.".startswith(f"{prefix}.") for prefix in free)
    ]
    lines = tuple(
        f"{name} was {json.dumps(there.get(name))}, is {json.dumps(new.get(name))}"
        for name in changed
    )
    if lines and not allow:
        raise InputError(
            f"{path}: {', '.join(lines)}; continue with the same settings or in another folder, or"
            " set train.allow_changes, which is recorded"
        )
    if lines:
        changes.append({"time": _now(), "changed": list(lines)})
        with atomic_write(path, overwrite=True) as partial:
            partial.write_bytes(strict_json.dump(here | {CHANGES: changes}))
    return lines


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


class Log:
    """A file of JSON lines that is only ever added to, a whole line at a time."""

    def __init__(self, path: Path, write: bool = True):
        """Opens the file for appending.

        Args:
            path: the file, made if need be.
            write: False for processes that write nothing; all calls then do nothing.
        """
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        self.path = path
        self._file = os.open(path, flags, 0o644) if write else None

    def add(self, record: Mapping[str, Any]) -> None:
        """Appends a record as a line of JSON; numbers that are not finite become null.

        Raises:
            InputError: the file cannot be written.
        """
        if self._file is None:
            return
        line = (json.dumps(_finite(record), allow_nan=False) + "\n").encode()
        try:
            if os.write(self._file, line) < len(line):
                raise OSError("disk full")
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written ({error})") from error

    def event(self, name: str, **facts: Any) -> None:
        """Appends a line with the time, the name of an event and facts about it."""
        self.add({"time": _now(), "event": name, **facts})

    def close(self) -> None:
        """Makes the written lines durable (fsync) and closes the file."""
        if self._file is not None:
            os.fsync(self._file)
            os.close(self._file)
            self._file = None


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(x) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(x) for x in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def truncate(path: Path, step: int) -> None:
    """Drops lines of steps after `step` from a file of metrics, and all from a broken line on.

    Args:
        path: the file; it need not exist.
        step: last step whose lines stay.

    Raises:
        InputError: the file cannot be written.
    """
    kept = []
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else []:
        try:
            if not line.endswith(b"\n") or json.loads(line)["step"] > step:
                break
        except (ValueError, KeyError, TypeError, RecursionError):
            break
        kept.append(line)
    with atomic_write(path, overwrite=True) as partial:
        partial.write_bytes(b"".join(kept))
