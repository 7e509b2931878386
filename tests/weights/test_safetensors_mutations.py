"""Damaged checkpoints and damaged converted weights, by the thousand."""

import contextlib
import copy
import json
import shutil

import numpy as np
import pytest

from lite3r_jax.errors import InputError
from lite3r_jax.weights.load import load
from lite3r_jax.weights.safetensors_file import DTYPE_NAMES


def _split(data: bytes) -> tuple[bytes, bytes]:
    """JSON header and tensor data of a safetensors file."""
    length = int.from_bytes(data[:8], "little")
    return data[8 : 8 + length], data[8 + length :]


def _join(header: bytes, tensors: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + tensors


def _flip(data: bytes, rng: np.random.Generator, count: int, text: bool = False) -> bytes:
    changed = bytearray(data)
    for _ in range(count):
        changed[rng.integers(len(changed))] = rng.integers(*((32, 127) if text else (0, 256)))
    return bytes(changed)


def _byte_mutation(data: bytes, kind: int, rng: np.random.Generator) -> bytes:
    header, tensors = _split(data)
    match kind:
        case 0:  # length field
            return _flip(data[:8], rng, 1 + int(rng.integers(3))) + data[8:]
        case 1:  # header
            text = bool(rng.integers(4))  # mostly, or nearly all would fail as not UTF-8
            return _join(_flip(header, rng, 1 + int(rng.integers(4)), text), tensors)
        case 2:  # data
            return _join(header, _flip(tensors, rng, 1 + int(rng.integers(8))))
        case 3:  # truncation
            return data[: rng.integers(len(data))]
        case 4:  # appended bytes
            return data + rng.bytes(1 + int(rng.integers(64)))
        case 5:  # header shortened or lengthened, the length field agreeing
            at, count = int(rng.integers(len(header))), int(rng.integers(1, 8))
            if rng.integers(2):
                return _join(header[:at] + header[at + count :], tensors)
            return _join(header[:at] + _flip(b" " * count, rng, count, True) + header[at:], tensors)
        case _:  # a stretch moved
            a, b = sorted(rng.integers(len(data), size=2))
            return data[:a] + data[b:] + data[a:b]


def _json_mutation(data: bytes, kind: int, rng: np.random.Generator) -> bytes:
    header, tensors = _split(data)
    table = json.loads(header)
    names = [name for name in table if name != "__metadata__"]
    one, two = (names[i] for i in rng.choice(len(names), 2, replace=False))
    entry, other = table[one], table[two]
    wild = [0, 1, -1, 2**31, 2**62, 2**64, 2**63 - 1, 1.5, True, None, "3", [], {}]
    odd = wild[rng.integers(len(wild))]
    match kind:
        case 0:
            entry["dtype"], other["dtype"] = other["dtype"], entry["dtype"]
        case 1:
            kinds = ["F64", "F32", "F16", "BF16", "I32", "U8", "F8_E4M3", "F4", "f32", "", odd]
            entry["dtype"] = kinds[rng.integers(len(kinds))]
        case 2:
            entry["data_offsets"], other["data_offsets"] = (
                other["data_offsets"],
                entry["data_offsets"],
            )
        case 3:
            entry["data_offsets"][rng.integers(2)] += int(rng.integers(-16, 17))
        case 4:
            entry["data_offsets"] = copy.copy(other["data_offsets"])
        case 5:
            entry["shape"] = entry["shape"][::-1]
        case 6:
            entry["shape"] = [int(np.prod(entry["shape"]))]
        case 7:
            entry["shape"].insert(int(rng.integers(len(entry["shape"]) + 1)), odd)
        case 8:
            entry["shape"][rng.integers(len(entry["shape"]))] = odd
        case 9:
            entry["data_offsets"][rng.integers(2)] = odd
        case 10:
            table[one + "x" * int(rng.integers(1, 4))] = table.pop(one)
        case 11:
            table[one], table[two] = other, entry
        case 12:
            del table[one]
        case 13:
            del entry[["dtype", "shape", "data_offsets"][rng.integers(3)]]
        case 14:
            entry["extra"] = odd
        case 15:
            table[one] = odd
        case 16:
            table["__metadata__"] = [odd, {"format": odd}, {"a": "b"}][rng.integers(3)]
        case 17:
            table[one.replace("0", "00")] = table.pop(one)
        case 18:
            text = json.dumps(table)
            twice = f'{{"{one}":{json.dumps(other if rng.integers(2) else entry)},'
            return _join((twice + text[1:]).encode(), tensors)
        case 19:
            table["\n\ud800\x1b"[: rng.integers(1, 4)] + one] = table.pop(one)
        case 20:
            depth = int(rng.integers(1, 200_000))
            return _join(b'{"a":' + b"[" * depth + b"]" * depth + b"}", tensors)
        case 21:
            entry["shape"] = [0, *entry["shape"]]
            entry["data_offsets"][1] = entry["data_offsets"][0]
        case 22:
            text = json.dumps(table).replace(str(entry["data_offsets"][1]), "9" * 5000)
            return _join(text.encode(), tensors)
        case 23:
            return _join(json.dumps(table).replace(":", ":NaN,", 1).encode(), tensors)
        case _:
            text = json.dumps(table)
            return _join(text.encode(["utf-16", "utf-8-sig"][rng.integers(2)]), tensors)
    return _join(json.dumps(table).encode(), tensors)


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda handle: None)


@pytest.mark.parametrize("share", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_no_mutated_checkpoint_is_accepted_wrongly(toy, toy_file, tmp_path, read_plain, share):
    data = toy_file.read_bytes()
    rng = np.random.default_rng(20260)
    cases = [_byte_mutation(data, i % 7, rng) for i in range(1400 // share)]
    cases += [_json_mutation(data, i % 25, rng) for i in range(1000 // share)]
    path, out = tmp_path / "mutated.safetensors", tmp_path / "out"
    accepted = refused = 0
    for number, case in enumerate(cases):
        path.write_bytes(case)
        try:
            toy.convert(path, out)
        except InputError as error:
            message = str(error)
            assert str(path) in message, number
            assert len(message.splitlines()) == 1 and message.isprintable(), number
            assert not out.exists(), number
            refused += 1
            continue
        accepted += 1
        source = read_plain(path)
        assert {n: (DTYPE_NAMES[t.dtype], t.shape) for n, t in source.items()} == toy.specs, number
        for name, tensor in source.items():
            assert np.isfinite(tensor.astype(np.float64)).all(), (number, name)
        expected = toy.expected(source)
        actual = read_plain(out / "trunk.safetensors") | read_plain(out / "head.safetensors")
        assert set(actual) == set(expected), number
        for name, tensor in expected.items():
            assert tensor.dtype == actual[name].dtype, (number, name)
            np.testing.assert_array_equal(_bits(tensor), _bits(actual[name]), f"{number} {name}")
        shutil.rmtree(out)
    assert not [entry for entry in tmp_path.iterdir() if ".partial-" in entry.name]
    assert accepted + refused == 2400 // share
    # Refusing everything would be wrong too: most changes of the data alone leave it finite.
    assert accepted > 150 // share


def _bits(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}")


def test_data_that_stays_finite_is_accepted(toy, toy_file, tmp_path, read_plain):
    data = toy_file.read_bytes()
    rng = np.random.default_rng(7)
    path, out = tmp_path / "mutated.safetensors", tmp_path / "out"
    for _ in range(100):
        path.write_bytes(_byte_mutation(data, 2, rng))
        finite = all(np.isfinite(t.astype(np.float64)).all() for t in read_plain(path).values())
        with contextlib.nullcontext() if finite else pytest.raises(InputError, match="NaN"):
            toy.convert(path, out)
            shutil.rmtree(out)


def test_every_damaged_file_of_converted_weights_is_named(toy, toy_file, tmp_path):
    out, copy_of = tmp_path / "out", tmp_path / "copy"
    toy.convert(toy_file, out)
    rng = np.random.default_rng(3)
    needed = ["trunk.safetensors", "head.safetensors", "config.json"]
    for number in range(240):
        shutil.rmtree(copy_of, ignore_errors=True)
        shutil.copytree(out, copy_of)
        path = copy_of / needed[number % 3]
        data = path.read_bytes()
        match number // 3 % 6:
            case 0:
                changed = _flip(data, rng, 1)
            case 1:
                changed = data[: rng.integers(len(data))]
            case 2:
                changed = data + b"\0"
            case 3:
                changed = _byte_mutation(data, 1, rng) if path.suffix != ".json" else b"{}"
            case 4:
                changed = (copy_of / needed[(number + 1) % 3]).read_bytes()
            case _:
                changed = None
        if changed == data:
            load(copy_of)
            continue
        path.unlink() if changed is None else path.write_bytes(changed)
        with pytest.raises(InputError) as error:
            load(copy_of)
        assert str(path) in str(error.value), number
        assert len(str(error.value).splitlines()) == 1, number


def test_an_edited_manifest_is_refused(toy, toy_file, tmp_path):
    out = tmp_path / "out"
    toy.convert(toy_file, out)
    path = out / "manifest.json"
    data = path.read_bytes()
    rng = np.random.default_rng(11)
    refused = 0
    for _ in range(300):
        kind = rng.integers(3)
        changed = _flip(data, rng, 1) if kind else data[: rng.integers(len(data))]
        path.write_bytes(changed)
        with contextlib.suppress(ValueError, RecursionError):
            if json.loads(changed) == json.loads(data):
                load(out)
                continue
        with pytest.raises(InputError) as error:
            load(out)
        assert str(path) in str(error.value)
        assert str(error.value).isprintable()
        refused += 1
    assert refused > 200
