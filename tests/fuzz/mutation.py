"""Damaged copies of files, of JSON and of texts; the same seed gives the same case everywhere."""

import copy
import json
import random
from collections.abc import Callable
from typing import Any

from tests.data.mutate import damage

Mutation = Callable[[bytes, random.Random], bytes]

WILD = (
    None, True, False, -1, 0, 1, 2**31, 2**62, 2**64, -(2**63), 10**30, 1.5, -0.0, 1e-320, 1e308,
    "", "x", "../x", "/etc/passwd", "\x00", "\x1b[2J", "\ud800", "n" * 300, "9" * 4400, [], {},
    [[]], {"": None}, [0] * 100, [1, "a", None],
)  # fmt: skip
WORDS = (
    "nan", "inf", "-1", "0", "1e999", "9" * 4400, "n" * 300, "(", ")", "[", "]", "=", ",", "+", ":",
    "@", "*", "..", "/", "\\", "\x00", "\n", "\x1b", "\udcff", "🜚", "layers=[0-9999999999]", "None",
    "true", "{}", '"', "'", "--", "%s", "{0}", "~", "$HOME", "*.png", "**",
)  # fmt: skip


def any_bytes(data: bytes, rng: random.Random) -> bytes:
    """Bytes, words, lines, ends, and larger pieces: zeroed, moved, written twice, made huge."""
    damaged = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        if rng.random() < 0.75 or len(damaged) < 8:
            damage(damaged, rng)
            continue
        a, b = sorted(rng.sample(range(len(damaged) + 1), 2))
        kind = rng.randrange(5)
        if kind == 0:
            damaged[a:b] = bytes(b - a)
        elif kind == 1:
            damaged[a:a] = damaged[a:b]
        elif kind == 2:
            damaged[:] = damaged[:a] + damaged[b:] + damaged[a:b]
        elif kind == 3:
            size = rng.choice([2, 4, 8])
            number = rng.choice([0, 1, 2**15, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1])
            number &= 256**size - 1
            damaged[a : a + size] = number.to_bytes(size, rng.choice(["little", "big"]))
        else:
            damaged += rng.randbytes(rng.randrange(1, 4000))
    return bytes(damaged)


def any_json(data: bytes, rng: random.Random) -> bytes:
    """A value changed, dropped, moved or renamed at any place, or the text damaged."""
    if rng.random() < 0.3:
        return any_bytes(data, rng)
    value = changed(json.loads(data), rng)
    if rng.random() < 0.1:
        value = changed(value, rng) if isinstance(value, dict | list) and value else value
    return json.dumps(value).encode()


def changed(value: Any, rng: random.Random) -> Any:
    """A JSON value with one place changed."""
    value = copy.deepcopy(value)
    places = list(_places(value))
    if not places or rng.random() < 0.02:
        return rng.choice(WILD)
    inside, key = rng.choice(places)
    kind = rng.randrange(6)
    if kind == 0:
        del inside[key]
    elif kind == 1 and isinstance(inside, dict):
        inside[rng.choice(["x", "", "\x1b", key + "x"])] = inside.pop(key)
    elif kind == 2:
        other, name = rng.choice(places)
        inside[key] = copy.deepcopy(other[name]) if other is not inside else rng.choice(WILD)
    elif kind == 3 and isinstance(inside[key], int | float):
        inside[key] += rng.choice([-1, 1, 0.5, 2**40])
    else:
        inside[key] = copy.deepcopy(rng.choice(WILD))
    return value


def _places(value: Any) -> Any:
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in list(pairs):
        yield value, key
        if isinstance(inner, dict | list):
            yield from _places(inner)


def any_text(data: bytes, rng: random.Random) -> bytes:
    """Words in place of words, at any place, and characters damaged."""
    text = data.decode()
    for _ in range(rng.choice([1, 1, 2, 4])):
        a, b = sorted(rng.choices(range(len(text) + 1), k=2))
        b = min(b, a + rng.choice([0, 1, 2, 8, 100]))
        text = text[:a] + rng.choice([*WORDS, "", text[a:b] * 2]) + text[b:]
    return text.encode("utf-8", "surrogatepass")


def bulk(data: bytes, size: int = 5_000_000) -> dict[str, bytes]:
    """Files of five megabytes: of one thing, and the good file with that behind it."""
    rng = random.Random(5)
    fill = {
        "zeros": bytes(size), "blanks": b" " * size, "lines": b"\n" * size, "digits": b"9" * size,
        "lists": b"[" * size, "objects": b'{"a":' * (size // 5), "numbers": b"1 " * (size // 2),
        "commas": b"[" + b"1," * (size // 2), "comments": b"# a\n" * (size // 4),
        "noise": rng.randbytes(size),
    }  # fmt: skip
    cases = dict(fill)
    for name in ("zeros", "lines", "numbers", "noise"):
        cases[f"a good one and {name}"] = data + fill[name]
    cases["a good one many times"] = data * (size // max(1, len(data)))
    half = len(data) // 2
    cases["noise in a good one"] = data[:half] + fill["noise"] + data[half:]
    return cases
