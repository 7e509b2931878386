"""Manifests: JSON objects that name their format and carry their own SHA-256.

Converted weights, deployed models, students and checkpoints of a training each have a manifest with
the size and SHA-256 of their files. The manifest has the SHA-256 of its own canonical form, so the
hash of one small file vouches for the whole directory.
"""

import dataclasses
import hashlib
import json
import string
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lite3r_jax.errors import InputError
from lite3r_jax.weights.safetensors_writer import FileRecord
from lite3r_jax.weights.strict_json import shown

FILE_NAME = "manifest.json"


def digest(body: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of a JSON object, whatever the order of its keys."""
    written = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(written.encode()).hexdigest()


def seal(form: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a JSON object with the name of its format in front and the SHA-256 of both behind."""
    whole = {"format": form, **body}
    return {**whole, "sha256": digest(whole)}


def unseal(form: str, value: Mapping[str, Any], path: Path, remedy: str) -> dict[str, Any]:
    """Checks a JSON object that `seal` made and returns it without format and SHA-256.

    Args:
        form: name of the format that is expected.
        value: what the file holds.
        path: of the file, for messages.
        remedy: what to do when it is damaged.

    Raises:
        InputError: the object is of another format, or was damaged or edited.
    """
    body = dict(value)
    if body.get("format") != form:
        raise InputError(f"{path}: format {shown(body.get('format'))}, expected '{form}'; {remedy}")
    if body.pop("sha256", None) != digest(body):
        raise InputError(f"{path}: damaged or edited (its own SHA-256 differs); {remedy}")
    del body["format"]
    return body


def records(value: Mapping[str, Any]) -> dict[str, FileRecord]:
    """Reads file name -> record from JSON; ValueError or TypeError if a record is not valid."""
    files = {name: FileRecord(**record) for name, record in value.items()}
    for record in files.values():
        if type(record.size) is not int or record.size < 0:
            raise ValueError("size")
        if len(record.sha256) != 64 or not set(record.sha256) <= set(string.hexdigits.lower()):
            raise ValueError("SHA-256")
    return files


def flat_records(value: Mapping[str, Any]) -> dict[str, FileRecord]:
    """Reads file name -> record from JSON, for files in the directory of the manifest itself.

    Errors are those of `records`; a name with a folder in it is a ValueError, too.
    """
    files = records(value)
    for name in files:
        if Path(name).name != name or "\\" in name or name == FILE_NAME:
            raise ValueError(f"file {name}")
    return files


def written(files: Mapping[str, FileRecord], verb: str = "written") -> list[str]:
    """Returns a line of text for each file, with its name, size and SHA-256."""
    return [
        f"{verb:9}{name}  {record.size:,} bytes  sha256 {record.sha256}"
        for name, record in files.items()
    ]


def check_types(value: Any, hint: Any = None) -> None:
    """Refuse a dataclass whose values, read from JSON, do not have the types of its fields.

    A manifest with a valid SHA-256 may still be somebody else's, with a number where a name
    belongs, which would come up much later.

    Args:
        value: an instance of a dataclass, whose fields are checked, and the fields of fields.
        hint: type that the value has to have; None: that of a dataclass. Known are str, int,
            float, bool, None, Literal, unions, tuples, mappings and dataclasses; other classes by
            isinstance.

    Raises:
        TypeError: naming the field.
    """
    if dataclasses.is_dataclass(value) and hint in (None, type(value)):
        hints = typing.get_type_hints(type(value))
        for field in dataclasses.fields(value):
            try:
                check_types(getattr(value, field.name), hints[field.name])
            except TypeError as error:
                raise TypeError(f"{field.name}: {error}") from error
        return
    kind, inner = typing.get_origin(hint), typing.get_args(hint)
    if kind in (types.UnionType, typing.Union):
        if not any(_fits(value, each) for each in inner):
            raise TypeError(f"got {shown(value, 60)}")
    elif kind is typing.Literal:
        if not any(value == each and type(value) is type(each) for each in inner):
            raise TypeError(f"got {shown(value, 60)}")
    elif kind is tuple:
        for each in value if isinstance(value, tuple) else (None,):
            check_types(each, inner[0])
    elif kind in (Mapping, dict):
        for key, each in value.items() if isinstance(value, Mapping) else [(None, None)]:
            check_types(key, inner[0])
            check_types(each, inner[1])
    elif hint in (str, bool):
        if type(value) is not hint:
            raise TypeError(f"expected {hint.__name__}, got {shown(value, 60)}")
    elif hint in (int, float):
        if type(value) not in (int, hint) or not abs(typing.cast(float, value)) < 2**63:
            raise TypeError(f"expected {hint.__name__}, got {shown(value, 60)}")
    elif hint is not Any and not isinstance(value, kind or hint):
        raise TypeError(f"got {shown(value, 60)}")


def _fits(value: Any, hint: Any) -> bool:
    try:
        check_types(value, hint)
    except TypeError:
        return False
    return True
