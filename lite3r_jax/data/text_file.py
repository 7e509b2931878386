"""Strict reading of small text files of datasets: of bounded size, ASCII, plain numbers only."""

import math
import os
import re
from pathlib import Path

from lite3r_jax.errors import InputError

_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_COUNT = re.compile(r"[0-9]{1,9}")


def read_text(path: str | os.PathLike[str], max_bytes: int, *, encoding: str = "ascii") -> str:
    """Reads the text of a file of at most `max_bytes` bytes.

    Raises:
        InputError: it cannot be read, is larger, or has bytes that are no text.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror or error}); check the dataset"
        ) from error
    if len(data) > max_bytes:
        raise InputError(
            f"{path}: has more than {max_bytes} bytes; it is not the file it should be"
        )
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: byte {error.start}: expected {encoding.upper()} text; copy the file again"
        ) from error


def number(text: str, place: str) -> float:
    """Parses a finite decimal number; refuses what else Python reads (nan, 1_0, other digits).

    Raises:
        InputError: naming `place`, which is file and line.
    """
    value = float(text) if _NUMBER.fullmatch(text) else math.nan
    if not math.isfinite(value):
        raise InputError(f"{place}: expected a finite number, got {text[:32]!r}")
    return value


def count(text: str, place: str) -> int:
    """Parses a whole number that is not negative, of at most nine digits.

    Raises:
        InputError: naming `place`, which is file and line.
    """
    if not _COUNT.fullmatch(text):
        raise InputError(f"{place}: expected a whole number, got {text[:32]!r}")
    return int(text)
