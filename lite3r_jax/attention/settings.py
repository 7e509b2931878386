"""Reads and writes settings of attention strategies as JSON and as text, by dataclass field."""

import dataclasses
import difflib
import functools
import json
import math
import re
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from lite3r_jax.attention.registry import known_name, strategies, strategy
from lite3r_jax.attention.strategy import AttentionStrategy
from lite3r_jax.errors import InputError


def make(cls: type[AttentionStrategy], settings: Mapping[str, Any], where: str) -> Any:
    """Builds a strategy from the given settings; settings left out have their defaults.

    Args:
        cls: class of the strategy.
        settings: as in JSON (lists, objects) or as the class has them (tuples, strategies).
        where: what is read, for messages.

    Raises:
        InputError: unknown settings with the nearest name, wrong types, values out of range.
    """
    hints = _hints(cls)
    for name in settings:
        known_name(name, hints, f"{where}: setting of {cls.name}")
    values = {k: _value(v, hints[k], f"{where}: {cls.name}.{k}") for k, v in settings.items()}
    try:
        return cls(**values)
    except ValueError as error:
        raise InputError(f"{where}: {cls.name}: {error}") from error


def to_json(spec: AttentionStrategy) -> dict[str, Any]:
    """Returns a strategy as JSON: what it computes, not by which kernel or on which devices.

    Raises:
        InputError: the strategy is not registered.
    """
    return {"strategy": _name(spec), **{k: _plain(v, to_json) for k, v in _model(spec).items()}}


def from_json(data: Any, where: str) -> AttentionStrategy:
    """Builds a strategy from the JSON of `to_json`; runtime settings have their defaults.

    Raises:
        InputError: the JSON is not of that form; the message has the key and the nearest name.
    """
    if not isinstance(data, dict) or not isinstance(data.get("strategy"), str):
        raise InputError(
            f'{where}: expected an object with "strategy", one of {", ".join(strategies())}, got'
            f" {data!r}"
        )
    cls = strategy(data["strategy"], where)
    settings = {name: value for name, value in data.items() if name != "strategy"}
    if wrong := sorted(cls.runtime & settings.keys()):
        raise InputError(
            f"{where}: {cls.name}.{wrong[0]} is chosen where the model runs and no part of it;"
            " leave it out"
        )
    return make(cls, settings, where)


def told(spec: AttentionStrategy, base: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Returns the settings that a text has to name: headlines, and those with unusual values.

    Usual is the value in `base`, and the default for settings that `base` does not have.

    Args:
        spec: a strategy.
        base: settings of a preset, which stand before the defaults.
    """
    usual = {f.name: _default(f) for f in dataclasses.fields(spec)} | dict(base or {})
    return {
        name: getattr(spec, name)
        for name, was in usual.items()
        if name in spec.headline or getattr(spec, name) != was
    }


def to_text(spec: AttentionStrategy) -> str:
    """Returns a strategy as text, NAME(SETTING=VALUE,...), with the settings of `told`."""
    return call_text(_name(spec), told(spec))


def call_text(name: str, settings: Mapping[str, Any]) -> str:
    """Formats a name and settings as NAME(SETTING=VALUE,...), or as NAME without settings."""
    inner = ",".join(f"{key}={_value_text(value)}" for key, value in settings.items())
    return f"{name}({inner})" if inner else name


def parse_settings(cls: type[AttentionStrategy], inner: str, where: str) -> dict[str, Any]:
    """Parses settings of a strategy from "SETTING=VALUE,...", for `make`.

    Raises:
        InputError: the text is not of that form, or names an unknown setting; with the nearest.
    """
    hints = _hints(cls)
    settings = {}
    for entry in split(inner, ","):
        key, equals, value = (part.strip() for part in entry.partition("="))
        if not equals:
            raise InputError(f"{where}: expected SETTING=VALUE, got {entry!r}")
        known_name(key, hints, f"{where}: setting of {cls.name}")
        if key in settings:
            raise InputError(f"{where}: {cls.name}.{key} is there twice; give it once")
        settings[key] = _parse(value, hints[key], f"{where}: {cls.name}.{key}")
    return settings


def parse_call(text: str, where: str) -> tuple[str, str]:
    """Splits NAME(...) or NAME into the name and what is in the parentheses.

    Raises:
        InputError: the text is not of that form.
    """
    match = re.fullmatch(r"\s*([A-Za-z_]\w*)\s*(?:\((.*)\))?\s*", text, re.DOTALL)
    if not match:
        raise InputError(f"{where}: expected NAME or NAME(SETTING=VALUE,...), got {text!r}")
    return match[1], match[2] or ""


def split(text: str, separator: str) -> list[str]:
    """Splits a text at a separator, but not inside of parentheses, brackets or quotes.

    Parts are stripped, empty ones left out; brackets that do not match are left as they are.
    """
    parts, depth, quoted, start = [], 0, False, 0
    for at, character in enumerate(text):
        quoted ^= character == '"'
        if not quoted:
            depth += (character in "([{") - (character in ")]}")
        if character == separator and depth <= 0 and not quoted:
            parts.append(text[start:at])
            start = at + 1
    parts.append(text[start:])
    return [part.strip() for part in parts if part.strip()]


def _name(spec: AttentionStrategy) -> str:
    if strategies().get(spec.name) is not type(spec):
        raise InputError(
            f"attention strategy {type(spec).__qualname__}: not registered, so it has no form in"
            " files and texts; call attention.registry.register"
        )
    return spec.name


def _model(spec: AttentionStrategy) -> dict[str, Any]:
    """Returns the settings of a strategy that are part of the model, without runtime settings."""
    names = (f.name for f in dataclasses.fields(spec))
    return {name: getattr(spec, name) for name in names if name not in spec.runtime}


def _default(entry: Any) -> Any:
    if entry.default_factory is not dataclasses.MISSING:
        return entry.default_factory()
    return entry.default


@functools.cache
def _hints(cls: type[AttentionStrategy]) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {entry.name: hints[entry.name] for entry in dataclasses.fields(cls)}


def _plain(value: Any, of: Any) -> Any:
    """Converts the value of a setting to JSON, a strategy by the function `of`."""
    if isinstance(value, AttentionStrategy):
        return of(value)
    return [_plain(v, of) for v in value] if isinstance(value, tuple) else value


def _or_none(hint: Any) -> tuple[Any, bool]:
    """Returns the type of a setting, and whether the setting may be None instead."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        some = [h for h in typing.get_args(hint) if h is not type(None)]
        if len(some) == 1:
            return some[0], True
        raise TypeError(f"a setting has one type, or one and None, not {hint}")
    return hint, False


def _is_strategy(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, AttentionStrategy)


def _expected(hint: Any) -> str:
    hint, optional = _or_none(hint)
    if typing.get_origin(hint) is Literal:
        what = f"one of {', '.join(typing.get_args(hint))}"
    elif typing.get_origin(hint) is tuple:
        what = f"a list, each {_expected(typing.get_args(hint)[0])}"
    elif _is_strategy(hint):
        what = f"an attention strategy ({', '.join(strategies())})"
    else:
        kinds = {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}
        what = kinds[hint]
    return f"{what} or none" if optional else what


def _value(value: Any, hint: Any, where: str) -> Any:
    """Converts the value of a setting, from JSON or Python, to the type that its class declares."""
    inner, optional = _or_none(hint)
    if value is None and optional:
        return None
    if _is_strategy(inner):
        return value if isinstance(value, inner) else from_json(value, where)
    if typing.get_origin(inner) is tuple:
        if isinstance(value, (list, tuple)):
            return tuple(_value(v, typing.get_args(inner)[0], where) for v in value)
    elif typing.get_origin(inner) is Literal:
        if value in (choices := typing.get_args(inner)):
            return value
        near = difflib.get_close_matches(str(value), choices, 1)
        hint_text = f"; did you mean {near[0]!r}?" if near else ""
        raise InputError(f"{where}: expected {_expected(hint)}, got {value!r}{hint_text}")
    elif inner is float:
        if isinstance(value, (int, float)) and type(value) is not bool and math.isfinite(value):
            return float(value)
    elif type(value) is inner:
        return value
    raise InputError(f"{where}: expected {_expected(hint)}, got {value!r}")


def _parse(text: str, hint: Any, where: str) -> Any:
    """Parses the value of a setting from text, into the form that JSON has."""
    inner, optional = _or_none(hint)
    wrong = InputError(f"{where}: expected {_expected(hint)}, got {text!r}")
    if optional and text.lower() == "none":
        return None
    if _is_strategy(inner):
        name, settings = parse_call(text, where)
        return make(cls := strategy(name, where), parse_settings(cls, settings, where), where)
    if typing.get_origin(inner) is tuple:
        if not re.fullmatch(r"\[.*\]", text, re.DOTALL):
            raise wrong
        return [_parse(t, typing.get_args(inner)[0], where) for t in split(text[1:-1], ",")]
    try:
        if inner is bool:
            return {"true": True, "false": False}[text.lower()]
        if inner is int or inner is float:
            return (int if inner is int else float)(text)
        return json.loads(text) if text.startswith('"') else text
    except (KeyError, ValueError):
        raise wrong from None


def _value_text(value: Any) -> str:
    """Formats the value of a setting as text, the inverse of `_parse`."""
    if isinstance(value, AttentionStrategy):
        return to_text(value)
    if isinstance(value, tuple):
        return f"[{','.join(map(_value_text, value))}]"
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str) and not re.fullmatch(r"[\w./:-]+", value):
        return json.dumps(value)
    return value if isinstance(value, str) else repr(value)
