"""The folder of a run: whose it is, its settings, its logs.

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

from lite3r_jax.errors import InputError
from lite3r_jax.files import staged
from lite3r_jax.weights import strict_json

CONFIG, METRICS, EVENTS = "config.json", "metrics.jsonl", "events.jsonl"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder, which is made if need be, until the block ends.

    Raises:
        InputError: another process is in it, or it cannot be written.
    """
    import fcntl

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise InputError(
                    f"{folder}: another run is writing there; wait for it or take another folder"
                ) from error
            yield
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror or error})") from error


def claim(folder: Path, settings: Mapping[str, Any], free: Sequence[str] = ()) -> bool:
    """Write the settings into a new folder, or compare them with those that are there.

    Args:
        folder: of the run.
        settings: nested dictionaries of JSON values.
        free: dotted names of settings that may change, or of groups of them.

    Returns:
        Whether there has been a run with these settings.

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
        with staged(path) as partial:
            partial.write_bytes(strict_json.dump(here))
        return False
    there, here = _flat(strict_json.read_object(path)), _flat(here)
    changed = [
        name
        for name in sorted(there.keys() | here.keys())
        if there.get(name) != here.get(name)
        and not any(f"{name}.".startswith(f"{prefix}.") for prefix in free)
    ]
    if changed:
        shown = ", ".join(
            f"{name} was {json.dumps(there.get(name))}, is {json.dumps(here.get(name))}"
            for name in changed
        )
        raise InputError(f"{path}: {shown}; continue with the same settings or in another folder")
    return True


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


class Log:
    """A file of JSON lines that is only ever added to, a whole line at a time."""

    def __init__(self, path: Path, write: bool = True):
        """Open it.

        Args:
            path: the file, made if need be.
            write: False for processes that only pretend to.
        """
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        self.path = path
        self._file = os.open(path, flags, 0o644) if write else None

    def add(self, record: Mapping[str, Any]) -> None:
        """Add a line. Numbers that are not finite become null.

        Raises:
            InputError: it cannot be written.
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
        """Add a line with the time."""
        self.add({"time": datetime.now(UTC).isoformat(timespec="seconds"), "event": name, **facts})

    def close(self) -> None:
        """Make what was written durable, and close."""
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
    """Drop the lines of later steps from a file of metrics, and what follows a broken line.

    Args:
        path: the file; it need not exist.
        step: last one to stay.

    Raises:
        InputError: it cannot be written.
    """
    kept = []
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else []:
        try:
            if not line.endswith(b"\n") or json.loads(line)["step"] > step:
                break
        except (ValueError, KeyError, TypeError):
            break
        kept.append(line)
    with staged(path, overwrite=True) as partial:
        partial.write_bytes(b"".join(kept))
