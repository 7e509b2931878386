"""The streaming writer: a file that the reference library reads exactly, or no file."""

import hashlib

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open

from lite3r_jax.errors import InputError
from lite3r_jax.weights import safetensors_writer
from lite3r_jax.weights.safetensors_file import SafetensorsFile, TensorSpec
from lite3r_jax.weights.safetensors_writer import (
    FileRecord,
    SafetensorsWriter,
    data_order,
    hash_file,
    write_file,
)

SPECS = {
    "wide": TensorSpec((3, 2), "F32"),
    "scalar": TensorSpec((), "F32"),
    "none": TensorSpec((0, 4), "F32"),
    "narrow": TensorSpec((5,), "BF16"),
}


def values(name: str) -> np.ndarray:
    kind = {"F32": np.float32, "BF16": ml_dtypes.bfloat16}[SPECS[name].dtype]
    return np.arange(SPECS[name].size, dtype=np.float32).reshape(SPECS[name].shape).astype(kind)


def test_the_reference_library_reads_it(tmp_path):
    path = tmp_path / "x.safetensors"
    with SafetensorsWriter(path, SPECS, {"format": "pt"}) as writer:
        for row in values("wide"):  # a stack comes layer by layer
            writer.write("wide", row)
        for name in ("scalar", "none", "narrow"):
            writer.write(name, values(name))
        assert not path.exists()
    data = path.read_bytes()
    assert writer.record == FileRecord(len(data), hashlib.sha256(data).hexdigest())
    assert hash_file(path) == writer.record
    assert int.from_bytes(data[:8], "little") % 8 == 0
    with safe_open(path, "np") as file:
        assert file.metadata() == {"format": "pt"}
        np.testing.assert_array_equal(file.get_tensor("wide"), values("wide"))
    with SafetensorsFile(path) as file:
        assert file.specs == SPECS
        assert file.read("narrow").tobytes() == values("narrow").tobytes()


def test_wide_dtypes_come_first():
    specs = {"b": SPECS["narrow"], "z": SPECS["wide"], "a": SPECS["wide"]}
    assert data_order(specs) == ["a", "z", "b"]


@pytest.mark.parametrize(
    "name, array",
    [
        ("scalar", values("scalar")),
        ("wide", values("wide").astype(np.float64)),
        ("wide", np.zeros((4, 2), np.float32)),
        ("other", values("wide")),
    ],
)
def test_anything_but_the_next_tensor_is_a_mistake(tmp_path, name, array):
    with pytest.raises(ValueError), SafetensorsWriter(tmp_path / "x", SPECS) as writer:
        writer.write(name, array)
    assert list(tmp_path.iterdir()) == []


def test_an_incomplete_file_never_appears(tmp_path):
    with (
        pytest.raises(ValueError, match="incomplete"),
        SafetensorsWriter(tmp_path / "x", SPECS) as w,
    ):
        w.write("wide", values("wide"))
    with pytest.raises(KeyboardInterrupt), SafetensorsWriter(tmp_path / "x", SPECS):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_failure_keeps_the_file_that_was_there(tmp_path):
    path = tmp_path / "x"
    path.write_text("old")
    with pytest.raises(RuntimeError), SafetensorsWriter(path, SPECS):
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_bad_input_of_this_file(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors_writer.os, "fsync", full)
    specs = {"scalar": SPECS["scalar"]}
    with (
        pytest.raises(InputError, match="No space left"),
        SafetensorsWriter(tmp_path / "x", specs) as w,
    ):
        w.write("scalar", values("scalar"))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="No space left"):
        write_file(tmp_path / "y", b"data")


def test_where_nothing_can_be_written(tmp_path):
    with pytest.raises(InputError, match=r"no/x: cannot be written \(No such file"):
        SafetensorsWriter(tmp_path / "no" / "x", SPECS)
    with pytest.raises(InputError, match="cannot be read"):
        hash_file(tmp_path / "no")
