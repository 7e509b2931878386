"""Sizes of models as JSON: frozen dataclasses to dicts and back."""

import dataclasses
from typing import Any

from lite3r_jax.errors import InputError


def to_json(config: Any) -> dict[str, Any]:
    """Returns the JSON form of a frozen dataclass: one key per setting, nested likewise."""
    return dataclasses.asdict(config, dict_factory=_jsonable)


def _jsonable(items: list[tuple[str, Any]]) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in items}


def from_json(cls: type, data: Any, where: str) -> Any:
    """Read a frozen dataclass of numbers, bools, tuples of integers and further such dataclasses.

    Args:
        cls: the dataclass; all its fields have defaults.
        data: what `json.load` gave.
        where: dotted name of this place, for messages.

    Raises:
        InputError: unknown keys or wrong types, named with `where`.
    """
    if not isinstance(data, dict):
        raise InputError(f"{where}: expected an object, got {type(data).__name__}")
    default = cls()
    known = {f.name: getattr(default, f.name) for f in dataclasses.fields(cls)}
    unknown = sorted(set(data) - set(known))
    if unknown:
        raise InputError(f"{where}: unknown keys {unknown}; expected some of {sorted(known)}")
    values = {}
    for key, value in data.items():
        name, was = f"{where}.{key}", known[key]
        if dataclasses.is_dataclass(was):
            values[key] = from_json(type(was), value, name)
        elif isinstance(was, tuple):
            if not isinstance(value, list) or not all(type(v) is int and v >= 0 for v in value):
                raise InputError(f"{name}: expected a list of integers, got {value!r}")
            values[key] = tuple(value)
        elif isinstance(was, bool):
            if type(value) is not bool:
                raise InputError(f"{name}: expected true or false, got {value!r}")
            values[key] = value
        else:
            number = type(value) is int or (isinstance(was, float) and type(value) is float)
            if not number or not 0 < value < 1 << 20:
                raise InputError(f"{name}: expected a positive {type(was).__name__}, got {value!r}")
            values[key] = type(was)(value)
    return cls(**values)
