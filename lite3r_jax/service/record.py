"""The record of one scene of the service: state, settings, files, as an object and as JSON."""

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from lite3r_jax.errors import InputError, shown
from lite3r_jax.files import atomic_write
from lite3r_jax.service.uploads import UploadedFile

State = Literal["waiting", "running", "done", "failed", "cancelled"]
STATES: tuple[str, ...] = get_args(State)
ENDED = ("done", "failed", "cancelled")
FILE = "scene.json"
INPUT, RESULTS, THUMBNAIL = "input", "results", "thumbnail.jpg"
"""Names of the folders of photos and of results, and of the thumbnail, beside the record."""
ID = re.compile(r"[0-9a-f]{16}")
_STORED = re.compile(r"photo_\d{4,6}\.[a-z0-9]{3,4}")
_LIMIT = 4 << 20  # bytes of a record: names and sizes of some thousand files


@dataclass(frozen=True)
class Progress:
    """The progress of a scene that is being computed: its stage, and steps of the stage.

    Attributes:
        stage: name of the current stage, such as "load photos".
        done: number of steps of the stage that are done.
        total: number of steps of the stage; None: unknown.
        unit: name of a step.
        expected: estimated seconds of a stage without steps; None: unknown.
        since: time of the start of the stage, in seconds since 1970.
    """

    stage: str
    done: int = 0
    total: int | None = None
    unit: str = ""
    expected: float | None = None
    since: float = 0.0


@dataclass(frozen=True)
class Record:
    """The record of one scene: what was sent, its state, and its results.

    Attributes:
        id: 16 hexadecimal digits, the name of the scene's folder.
        name: name of the scene for display.
        created: time of the upload, ISO 8601 in UTC.
        settings: requested settings: model, attention, size, formats, fps.
        files: the photos, or the video, in order.
        state: waiting, running, done, failed or cancelled.
        error: why the scene failed, in one line; "" if it did not.
        seconds: stage -> wall time, of a scene that is done.
        views: number of views, of a scene that is done.
        outputs: format -> bytes, of a scene that is done.
        adding: comma-separated formats that are to be added to a scene that was done; "": none.
    """

    id: str
    name: str
    created: str
    settings: Mapping[str, str]
    files: tuple[UploadedFile, ...]
    state: State = "waiting"
    error: str = ""
    seconds: Mapping[str, float] = field(default_factory=dict)
    views: int = 0
    outputs: Mapping[str, int] = field(default_factory=dict)
    adding: str = ""

    def given_up(self, state: State, error: str = "") -> "Record":
        """Returns the record after a computation that ended without new results.

        A scene that had results before gets the state done again, with the reason in `error`,
        unless it waits for the next start.

        Args:
            state: failed, cancelled, or waiting for the next start.
            error: why the computation failed.
        """
        if state == "waiting" or not self.outputs:
            return dataclasses.replace(self, state=state, error=error)
        return dataclasses.replace(self, state="done", error=error, adding="")


def now() -> str:
    """Returns the current time in the format of records, ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def write_record(record: Record, folder: Path) -> None:
    """Writes a record into the folder of its scene, and replaces an existing one.

    Raises:
        InputError: the record cannot be written.
    """
    with atomic_write(folder / FILE, overwrite=True) as partial:
        partial.write_bytes(_json(record).encode("utf-8", "backslashreplace"))


def _json(record: Record) -> str:
    body = dataclasses.asdict(record)
    return json.dumps(body, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def read_record(folder: Path) -> Record:
    """Reads the record in the folder of a scene.

    Raises:
        InputError: the file is missing, or is no valid record; the message names the file.
    """
    path = folder / FILE
    try:
        with path.open("rb") as file:
            data = file.read(_LIMIT + 1)
        body = json.loads(data) if len(data) <= _LIMIT else None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON ({shown(error)}); delete its folder") from error
    try:
        return _record(body, folder.name)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise InputError(
            f"{path}: is no record of a scene ({shown(error)}); delete its folder"
        ) from error


def _record(body: Any, folder: str) -> Record:
    files = tuple(UploadedFile(**entry) for entry in body["files"])
    for each in files:
        if not (_STORED.fullmatch(each.stored) and each.name and type(each.bytes) is int):
            raise ValueError("a file of another name or size")
    record = Record(**{**body, "files": files})
    good = (
        record.id == folder
        and ID.fullmatch(record.id)
        and record.state in STATES
        and all(
            isinstance(each, str)
            for each in (record.name, record.created, record.error, record.adding)
        )
        and all(isinstance(each.name, str) for each in files)
        and type(record.views) is int
        and _maps(record.settings, str)
        and _maps(record.outputs, int)
        and _maps(record.seconds, float, int)
    )
    if not good:
        raise ValueError("a value of the wrong type")
    _json(record).encode()  # what no answer could hold is a ValueError here
    return record


def _maps(value: Any, *kinds: type) -> bool:
    """Returns whether a value is a dict whose values are all of one of the given types."""
    return isinstance(value, dict) and all(type(each) in kinds for each in value.values())
