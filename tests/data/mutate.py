"""Damaged copies of files, and what every error about one must look like."""

import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from lite3r_jax.errors import InputError

# how many damaged copies of a file each parser gets
COUNTS = [2_000, pytest.param(20_000, marks=pytest.mark.slow)]
WORDS = [
    b"nan",
    b"-inf",
    b"1e999",
    b"-1",
    b"0",
    b"1_0",
    b"0x10",
    b"",
    b"99999999999",
    b"\xff",
    b".",
]


def mutants(path: Path, data: bytes, count: int, seed: int) -> Iterator[bytes]:
    """Damaged copies, each written to `path`: bytes, words, lines and ends, all as likely."""
    rng = random.Random(seed)
    for _ in range(count):
        damaged = bytearray(data)
        for _ in range(rng.choice([1, 1, 1, 2, 5])):
            damage(damaged, rng)
        path.unlink(missing_ok=True)  # some file systems flush a file that is written over
        path.write_bytes(damaged)
        yield bytes(damaged)


def damage(data: bytearray, rng: random.Random) -> None:
    """Change bytes, words, lines or the end, in place."""
    at = rng.randrange(len(data)) if data else 0
    end = min(len(data), at + rng.randrange(1, 9))
    head = min(len(data), 40)  # where headers are
    kind = rng.randrange(8)
    if kind == 0:
        data[at:end] = bytes(rng.randrange(256) for _ in range(end - at))
    elif kind == 1 and data:
        data[at] ^= 1 << rng.randrange(8)
    elif kind == 2 and head:
        data[rng.randrange(head)] = rng.randrange(256)
    elif kind == 3:
        del data[at:end]
    elif kind == 4:
        data[at:at] = data[at:end]
    elif kind == 5:
        del data[at:]
    elif kind == 6:
        words = list(re.finditer(rb"\S+", data[:4000]))
        if words:
            word = rng.choice(words)
            data[word.start() : word.end()] = rng.choice(WORDS)
    else:
        lines = bytes(data).split(b"\n")
        a, b = rng.randrange(len(lines)), rng.randrange(len(lines))
        lines[a], lines[b] = lines[b], rng.choice([lines[a], lines[b]])
        data[:] = b"\n".join(lines)


def check_clear(error: InputError, path: Path) -> None:
    """One line: the file, the place in it, and what was expected."""
    text = str(error)
    assert text.startswith(f"{path}: ") and "\n" not in text and len(text) < len(str(path)) + 250
    assert re.match(r"(line|byte|row) \d+|has (more than )?\d+ bytes", text[len(str(path)) + 2 :])
    assert re.search(r"expected|must be|comes twice|need", text) or "has more than" in text, text
