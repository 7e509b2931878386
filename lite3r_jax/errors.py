"""The one exception type for bad input from outside: files, arrays, names and settings."""

import difflib
import re
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input, described in one line: what it is (file or key), what was expected, what to do.

    Command-line programs print the message without a traceback and exit with code 2.
    """


def unknown_name(what: str, name: str, known: Iterable[str]) -> InputError:
    """Returns the `InputError` for an unknown name: the nearest known name, then all of them.

    Args:
        what: the kind of thing that was asked for, for the start of the line ("precision").
        name: what was given.
        known: names that exist.
    """
    known = list(known)
    hint = did_you_mean(name, known)
    choose = f"{hint} choose one of" if hint else "; choose one of"
    return InputError(f"{what} {name!r} is not known{choose}: {', '.join(known)}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns the end of an error message that suggests the nearest name that exists.

    Args:
        name: what was asked for.
        known: names that exist. A dotted name with the same last part is nearer than one that is
            spelled alike; if `name` has no dot, the first one with that last part is taken.

    Returns:
        "; did you mean 'NAME'?", or "" where no name is near.
    """
    known, last = list(known), name.lstrip("-").rpartition(".")[2]
    ends_alike = [each for each in known if last and each.rpartition(".")[2] == last]
    near = difflib.get_close_matches(name, ends_alike, 1, 0.0) if "." in name else ends_alike
    near = near or difflib.get_close_matches(name, known, 1, 0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


# Controls of terminals, further ends of lines, turns of the direction of writing, and halves of
# characters, which stand for bytes of a file name that is not UTF-8.
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: object, *, lines: bool = False) -> str:
    """Escapes the characters of a text that would control a terminal or end a line of a log.

    Args:
        text: with names from outside, such as those of files.
        lines: whether line ends are kept.
    """

    def escaped(match: re.Match[str]) -> str:
        if lines and match[0] == "\n":
            return "\n"
        return match[0].encode("unicode_escape").decode()

    return _CONTROLS.sub(escaped, str(text))


def shown(name: object, limit: int = 160) -> str:
    """Returns a name for a one-line message: escaped where not printable, cut if it is long."""
    text = str(name)
    if not text.isprintable() or not text:
        text = ascii(text)
    return text if len(text) <= limit else text[: limit - 3] + "..."
