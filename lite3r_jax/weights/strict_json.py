"""Reads JSON strictly: refuses repeated keys, NaN and Infinity, which `json` lets through."""

import json
from pathlib import Path
from typing import Any, NoReturn

from lite3r_jax.errors import InputError, shown


def parse(data: bytes, what: str) -> Any:
    """Parses a JSON document strictly and returns its value.

    Args:
        data: the document, UTF-8.
        what: names the document in messages, usually its path.

    Raises:
        InputError: not UTF-8, not JSON, a key twice in one object, NaN or Infinity, nested beyond
            what can be read.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key, value in pairs:
            if key in values:
                raise InputError(f"{what}: the key {shown(key)} is there twice")
            values[key] = value
        return values

    def no_constant(text: str) -> NoReturn:
        raise InputError(f"{what}: {text} is no JSON number")

    try:
        return json.loads(
            data.decode("utf-8"), object_pairs_hook=unique, parse_constant=no_constant
        )
    except InputError:
        raise
    except UnicodeDecodeError as error:
        raise InputError(f"{what}: not UTF-8 text (byte {error.start})") from error
    except ValueError as error:  # JSONDecodeError, or an integer of thousands of digits
        raise InputError(f"{what}: not valid JSON ({error})") from error
    except RecursionError as error:
        raise InputError(f"{what}: not valid JSON (nested too deeply)") from error


def read_object(path: Path, limit: int = 16 << 20) -> dict[str, Any]:
    """Reads the JSON object in a file of at most `limit` bytes.

    Raises:
        InputError: the file cannot be read, is larger, or does not hold one strict JSON object.
    """
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    if len(data) > limit:
        raise InputError(f"{path}: larger than {limit} bytes, this is no such JSON file")
    value = parse(data, str(path))
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def dump(value: Any) -> bytes:
    """Returns a value as readable JSON: indented, keys in the order given, a final newline."""
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()
