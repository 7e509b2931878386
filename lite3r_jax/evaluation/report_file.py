"""Reads the report.json of an evaluation, and checks all that later steps need of it."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lite3r_jax.errors import InputError, shown
from lite3r_jax.evaluation.score import ScoreOptions
from lite3r_jax.weights import strict_json

_MOST = 1e15
"""Largest absolute value of any number in a report."""


@dataclass(frozen=True)
class _Each:
    """The form of a JSON object of any keys whose values all have one form."""

    form: Any


_NUMBER, _NAME, _COUNT = (int, float, type(None)), "name", "count"
_RESULT = {
    "variant": _NAME,
    "protocol": _NAME,
    "views": _COUNT,
    "size": {"height": _COUNT, "width": _COUNT},
    "samples": int,
    "failures": [{"scene": str, "frames": [int], "reason": str}],
    "metrics": _Each({"value": _NUMBER, "low": _NUMBER, "high": _NUMBER, "missing": _Each(int)}),
}
_SCORE = {name: type(value) for name, value in asdict(ScoreOptions()).items()}
_REPORT = {
    "settings": {"backbone": str, "evaluate": {"pictures": int, "score": _SCORE}},
    "results": [_RESULT],
}


def read_report(path: Path, where: str) -> dict[str, Any]:
    """Reads and checks the report.json of an evaluation.

    Args:
        path: the file.
        where: the setting that names it, for messages.

    Returns:
        The object, with all that tables, charts and pictures are made of.

    Raises:
        InputError: it cannot be read, or is no such report, with the first place that is wrong.
    """
    body = strict_json.read_object(path)
    for entry in body["results"] if isinstance(body.get("results"), list) else ():
        if isinstance(entry, dict) and "row" in entry:  # its name until 0.1.0
            entry.setdefault("variant", entry.pop("row"))
    if wrong := _wrong(body, _REPORT, ""):
        raise InputError(f"{where}: {path} is not the report.json of lite3r evaluate: {wrong}")
    return body


def _wrong(value: Any, form: Any, place: str) -> str:
    """Returns the first place where a JSON value is not of a form, and what was expected; or ""."""
    if isinstance(form, list):
        if not isinstance(value, list):
            return f"{place}: expected a list"
        inner = ((f"{place}[{n}]", one, form[0]) for n, one in enumerate(value))
    elif isinstance(form, dict | _Each):
        if not isinstance(value, dict):
            return f"{place or 'the file'}: expected an object"
        if isinstance(form, _Each):
            inner = ((f"{place}.{shown(key, 40)}", one, form.form) for key, one in value.items())
        else:
            dot = f"{place}." if place else ""
            for name in form:
                if name not in value:
                    return f"{dot}{name}: missing"
            inner = ((f"{dot}{name}", value[name], one) for name, one in form.items())
    else:
        return _wrong_leaf(value, form, place)
    return next((text for at, one, kind in inner if (text := _wrong(one, kind, at))), "")


def _wrong_leaf(value: Any, form: Any, place: str) -> str:
    if form == _NAME:  # becomes part of a path
        plain = isinstance(value, str) and value and value.isprintable()
        bad = not plain or "/" in value or value in (".", "..") or len(value) > 200
        return f"{place}: expected a name, got {shown(value, 60)}" if bad else ""
    if form == _COUNT:  # drawn on an axis with a logarithmic scale
        good = type(value) is int and 0 < value <= _MOST
        return "" if good else f"{place}: expected a number of 1 or more, got {shown(value, 60)}"
    kinds = form if isinstance(form, tuple) else (form,)
    kinds = (*kinds, int) if float in kinds else kinds
    fits = type(value) in kinds
    if fits and isinstance(value, int | float):
        fits = math.isfinite(value) and abs(value) <= _MOST
    if fits:
        return ""
    expected = {str: "a text", bool: "true or false", int: "a whole number"}.get(form, "a number")
    return f"{place}: expected {expected}, got {shown(value, 60)}"
