"""Settings as they are shown to people: by group, with their values and what they mean."""

import dataclasses
import inspect
import re
import shlex
import textwrap
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from lite3r_jax.experiment import Experiment

WIDTH = 100
_COLUMN = 42


@dataclass(frozen=True)
class Setting:
    """One setting of an experiment: its name, value and meaning.

    Attributes:
        name: dotted.
        value: that it has.
        meaning: what its dataclass says about it.
    """

    name: str
    value: Any
    meaning: str

    def word(self, prefix: str = "--") -> str:
        """Returns the setting as it is written on a command line."""
        text = str(self.value).lower() if isinstance(self.value, bool) else str(self.value)
        return shlex.quote(f"{prefix}{self.name}={text}")


def settings_by_group(settings: Experiment) -> dict[str, list[Setting]]:
    """Returns settings in declared order by their group's dotted name, "" for those without."""
    groups: dict[str, list[Setting]] = {}
    for group, values in _groups(settings, ""):
        meanings = _meanings(type(values))
        groups[group] = [
            Setting(
                f"{group}.{entry.name}" if group else entry.name,
                getattr(values, entry.name),
                meanings.get(entry.name, ""),
            )
            for entry in dataclasses.fields(values)
            if not dataclasses.is_dataclass(getattr(values, entry.name))
        ]
    return groups


def describe(settings: Experiment, only: Collection[str] = (), prefix: str = "--") -> str:
    """Formats settings as a table for the screen: a line each, with value and start of meaning.

    Args:
        settings: whose values are shown.
        only: top-level names of settings and groups that are shown; empty for all.
        prefix: of the names.
    """
    lines: list[str] = []
    for group, entries in settings_by_group(settings).items():
        entries = [e for e in entries if not only or e.name.partition(".")[0] in only]
        if not entries:
            continue
        lines += ["", f"{group or 'general'}:"]
        for entry in entries:
            word = f"  {entry.word(prefix)}"
            if len(word) > _COLUMN:
                lines.append(word)
                word = ""
            room = WIDTH - _COLUMN - 2
            lines.append(f"{word.ljust(_COLUMN)}  {_first_clause(entry.meaning, room)}".rstrip())
    return "\n".join(lines[1:])


def explain(settings: Experiment, name: str) -> str:
    """Explains one setting, or all of a group, with the whole meaning of each."""
    blocks = []
    for entries in settings_by_group(settings).values():
        for entry in entries:
            if entry.name == name or entry.name.startswith(f"{name}."):
                meaning = textwrap.wrap(entry.meaning, WIDTH - 4)
                blocks.append("\n    ".join([entry.word(), *meaning]))
    return "\n".join(blocks)


def names(settings: Experiment) -> list[str]:
    """Returns the dotted names of all groups and settings."""
    groups = settings_by_group(settings)
    return [*filter(None, groups), *(entry.name for each in groups.values() for entry in each)]


def _groups(values: Any, name: str) -> Iterator[tuple[str, Any]]:
    yield name, values
    for entry in dataclasses.fields(values):
        inner = getattr(values, entry.name)
        if dataclasses.is_dataclass(inner):
            yield from _groups(inner, f"{name}.{entry.name}".lstrip("."))


def _meanings(cls: type) -> dict[str, str]:
    """Maps fields to their texts in the section "Attributes" of their dataclass's docstring."""
    _, _, section = (inspect.getdoc(cls) or "").partition("\nAttributes:\n")
    entries = re.findall(r"^ {4}(\w+): (.*(?:\n {8,}.*)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}


def _first_clause(text: str, width: int) -> str:
    """Shortens a text to a width, cut where a clause ends and else between words."""
    for end in (r"\. ", r"; "):
        if len(text) > width:
            text = re.split(end, text, maxsplit=1)[0]
    return textwrap.shorten(text.rstrip("."), width, placeholder=" ...")
