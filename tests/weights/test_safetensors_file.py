"""Strict reading of safetensors: good files exactly, bad ones not at all."""

import json
import os

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from lite3r_jax.errors import InputError
from lite3r_jax.weights.safetensors_file import (
    SafetensorsFile,
    SafetensorsShards,
    TensorSpec,
    open_safetensors,
)


def tensors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {
        "f32": rng.standard_normal((3, 4)).astype(np.float32),
        "f16": rng.standard_normal((5,)).astype(np.float16),
        "i64": rng.integers(-9, 9, (2, 2)),
        "bool": np.array([True, False, True]),
        "scalar": np.array(2.5, np.float32),
        "empty": np.zeros((0, 3), np.float32),
    }


def raw(path, header: dict | bytes, data: bytes = b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(shape=(2,), begin=0, end=8, dtype="F32", **more) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end], **more}


def test_files_of_the_reference_library_are_read_exactly(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file(tensors(), path, {"made by": "hand"})
    with open_safetensors(path) as file:
        assert isinstance(file, SafetensorsFile)
        assert file.metadata == {"made by": "hand"} and file.label == str(path)
        assert set(file.specs) == set(tensors())
        for name, tensor in tensors().items():
            assert file.specs[name].shape == tensor.shape
            actual = file.read(name)
            assert actual.dtype == tensor.dtype
            np.testing.assert_array_equal(actual, tensor)
        np.testing.assert_array_equal(file.read_row("f32", 2), tensors()["f32"][2])
        with pytest.raises(IndexError):
            file.read_row("f32", 3)


@pytest.mark.parametrize("dtype", ["BF16", "F8_E4M3", "F8_E5M2"])
def test_dtypes_that_numpy_lacks(tmp_path, dtype):
    kinds = {
        "BF16": ml_dtypes.bfloat16,
        "F8_E4M3": ml_dtypes.float8_e4m3fn,
        "F8_E5M2": ml_dtypes.float8_e5m2,
    }
    want = np.array([1.0, -2.5, 0.125], kinds[dtype])
    data = want.tobytes()
    path = raw(tmp_path / "x.safetensors", {"a": entry((3,), 0, len(data), dtype)}, data)
    with SafetensorsFile(path) as file:
        assert file.specs["a"] == TensorSpec((3,), dtype)
        actual = file.read("a")
    assert actual.dtype == want.dtype and actual.tobytes() == data


@pytest.mark.parametrize("given", [True, False])
def test_pieces_cover_a_tensor_once_and_in_order(tmp_path, given):
    path = tmp_path / "x.safetensors"
    whole = np.arange(1000, dtype=np.float32).reshape(10, 100)
    save_file({"a": whole}, path)
    buffer = np.zeros_like(whole) if given else None
    seen = np.zeros(1000, np.float32)
    with SafetensorsFile(path) as file:
        for where, piece in file.read_chunks("a", buffer, elements=64):
            assert piece.size <= 64
            seen[where] += piece
    np.testing.assert_array_equal(seen, whole.reshape(-1))
    if buffer is not None:
        np.testing.assert_array_equal(buffer, whole)


EIGHT = bytes(8)
BAD = {
    "too short": (b"\0\0\0", "too short"),
    "empty file": (b"", "too short"),
    "header longer than the file": ((99).to_bytes(8, "little") + b"{}", "truncated"),
    "absurd header length": (b"\xff" * 8 + b"{}", "truncated"),
    "no object": (b"[]", "no JSON header"),
    "space first": (b" {}", "no JSON header"),
    "no JSON": (b"{'a'}", "not valid JSON"),
    "twice": (b'{"a":1,"a":2}', "twice"),
    "metadata list": ({"__metadata__": []}, "__metadata__"),
    "metadata number": ({"__metadata__": {"a": 1}}, "__metadata__"),
    "entry no object": ({"a": 3}, "expected dtype, shape and data_offsets"),
    "missing key": ({"a": {"dtype": "F32", "shape": [2]}}, "expected dtype"),
    "extra key": ({"a": entry(more=1)}, "expected dtype"),
    "unknown dtype": ({"a": entry(dtype="F4")}, "has dtype F4"),
    "dtype number": ({"a": entry(dtype=4)}, "has dtype 4"),
    "negative size": ({"a": entry((-2,))}, r"has shape \[-2\]"),
    "bool size": ({"a": entry((True, 2))}, "has shape"),
    "float size": ({"a": entry((2.0,))}, "has shape"),
    "rank 65": ({"a": entry((1,) * 65, 0, 4)}, "has shape"),
    "huge": ({"a": entry((2**40, 2**40))}, "needs"),
    "huge sizes": ({"a": entry((2**62,) * 64)}, "needs"),
    "too many bytes": ({"a": entry((3,))}, "needs 12 bytes, the header gives 8"),
    "three offsets": ({"a": {**entry(), "data_offsets": [0, 8, 8]}}, "data_offsets"),
    "end before begin": ({"a": entry((2,), 8, 0)}, "gives -8"),
    "no name": ({"": entry()}, "empty name"),
    "control characters": ({"a\nb": entry()}, "control characters"),
    "lone surrogate": (b'{"\\ud800":' + json.dumps(entry()).encode() + b"}", "control char"),
    "overlap": ({"a": entry(), "b": entry((1,), 4, 8)}, "overlaps"),
    "hole": ({"a": entry((1,), 0, 4), "b": entry((0,), 8, 8)}, "hole"),
    "hole in front": ({"a": entry((1,), 4, 8)}, "hole"),
    "truncated": ({"a": entry((3,), 0, 12)}, "truncated"),
    "trailing": ({"a": entry((1,), 0, 4)}, "bytes of no tensor"),
    "nothing described": ({}, "bytes of no tensor"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused_with_the_reason(tmp_path, case):
    content, why = BAD[case]
    path = tmp_path / "x.safetensors"
    if isinstance(content, bytes) and not content.lstrip().startswith((b"{", b"[")):
        path.write_bytes(content)
    else:
        raw(path, content, EIGHT)
    with pytest.raises(InputError, match=why) as error:
        SafetensorsFile(path)
    assert str(path) in str(error.value) and str(error.value).isprintable()


def test_what_cannot_be_opened(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        SafetensorsFile(tmp_path / "x.safetensors")
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(InputError, match="not a regular file"):
        SafetensorsFile(tmp_path / "pipe.safetensors")


def test_a_file_that_shrinks_while_it_is_read(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"a": np.zeros(1000, np.float32)}, path)
    with SafetensorsFile(path) as file:
        os.truncate(path, 2000)
        with pytest.raises(InputError, match="it was cut"):
            file.read("a")


@pytest.fixture
def shards(tmp_path):
    save_file(
        {"a": np.zeros(2, np.float32), "b": np.ones(3, np.float32)}, tmp_path / "1.safetensors"
    )
    save_file({"c": np.full(4, 2, np.float32)}, tmp_path / "2.safetensors")
    index = tmp_path / "model.safetensors.index.json"

    def write(**changes):
        names = {"a": "1.safetensors", "b": "1.safetensors", "c": "2.safetensors"}
        names = {k: v for k, v in (names | changes).items() if v is not None}
        index.write_text(json.dumps({"metadata": {}, "weight_map": names}))
        return index

    write()
    return write


@pytest.mark.parametrize("as_directory", [True, False])
def test_shards_are_one_checkpoint(tmp_path, shards, as_directory):
    index = shards()
    source = open_safetensors(tmp_path if as_directory else index)
    assert isinstance(source, SafetensorsShards)
    assert set(source.specs) == {"a", "b", "c"}
    assert [p.name for p in source.files] == [index.name, "1.safetensors", "2.safetensors"]
    np.testing.assert_array_equal(source.read("c"), np.full(4, 2, np.float32))
    assert source.file_of("c") == tmp_path / "2.safetensors"
    source.close()


@pytest.mark.parametrize(
    "changes, why",
    [
        ({"d": "3.safetensors"}, "3.safetensors: missing, but named in model.safetensors.index"),
        ({"d": "1.safetensors"}, "1.safetensors: tensor d is missing"),
        ({"b": None}, "1.safetensors: tensor b is not assigned to it"),
        ({"b": "2.safetensors"}, "1.safetensors: tensor b is not assigned to it"),
        ({"d": "../1.safetensors"}, "plain name"),
        ({"d": "/etc/passwd"}, "plain name"),
        ({"d": "sub\\1.safetensors"}, "plain name"),
        ({"d": "1.bin"}, "plain name"),
        ({"d": 3}, "plain name"),
    ],
)
def test_an_index_that_does_not_agree_with_its_shards(shards, changes, why):
    with pytest.raises(InputError, match=why):
        open_safetensors(shards(**changes))


def test_a_tensor_in_two_shards(tmp_path, shards):
    save_file(
        {"c": np.zeros(4, np.float32), "a": np.zeros(2, np.float32)}, tmp_path / "2.safetensors"
    )
    with pytest.raises(InputError, match=r"tensor a is in 1.safetensors as well"):
        open_safetensors(shards())


@pytest.mark.parametrize("text", ["{}", '{"weight_map": {}}', '{"weight_map": [1]}', "[]", "x"])
def test_no_index(tmp_path, text):
    path = tmp_path / "m.safetensors.index.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"m.safetensors.index.json"):
        open_safetensors(path)


def test_a_directory_must_be_unambiguous(tmp_path):
    with pytest.raises(InputError, match="found none"):
        open_safetensors(tmp_path)
    for name in ("a", "b"):
        save_file({"a": np.zeros(2, np.float32)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(InputError, match=r"found a.safetensors, b.safetensors"):
        open_safetensors(tmp_path)
