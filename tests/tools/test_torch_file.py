"""PyTorch pickles: the same numbers as safetensors, and nothing in them is ever run."""

import os
import sys

import ml_dtypes
import numpy as np
import pytest
import torch

from lite3r_jax.errors import InputError
from tools.convert_torch_weights.torch_file import TorchFile


def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    base = torch.randn(6, 4)
    return {
        "plain": torch.randn(3, 2),
        "transposed": base.t(),
        "view": base[2:4],
        "half": torch.randn(5).half(),
        "bfloat": torch.randn(2, 3).bfloat16(),
        "parameter": torch.nn.Parameter(torch.randn(2)),
        "scalar": torch.tensor(2.5),
    }


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin"])
@pytest.mark.parametrize("archive", [True, False])
def test_tensors_are_read_exactly(tmp_path, suffix, archive):
    path = tmp_path / f"x{suffix}"
    torch.save(state(), path, _use_new_zipfile_serialization=archive)
    file = TorchFile(path)
    assert {name: spec.shape for name, spec in file.specs.items()} == {
        name: tuple(tensor.shape) for name, tensor in state().items()
    }
    assert file.specs["half"].dtype == "F16" and file.specs["bfloat"].dtype == "BF16"
    for name, tensor in state().items():
        array = file.read(name)
        assert array.flags.c_contiguous
        if name == "bfloat":
            assert array.dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(
            array.astype(np.float32), tensor.detach().float().numpy(), name
        )
    assert file.files == (path,) and file.label == str(path) and file.file_of("plain") == path
    file.close()


class Malicious:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


@pytest.mark.parametrize("archive", [True, False])
@pytest.mark.parametrize("beside", [True, False])
def test_objects_that_would_run_code_are_refused(tmp_path, archive, beside):
    target = tmp_path / "was_run"
    content = (
        {"plain": torch.zeros(2), "x": Malicious(str(target))} if beside else Malicious(target)
    )
    path = tmp_path / "x.pt"
    torch.save(content, path, _use_new_zipfile_serialization=archive)
    with pytest.raises(InputError, match="refused") as error:
        TorchFile(path)
    assert str(path) in str(error.value) and str(error.value).isprintable()
    assert not target.exists()


@pytest.mark.parametrize(
    "content, why",
    [
        ([torch.zeros(2)], "expected a state dict, found list"),
        (torch.zeros(2), "expected a state dict, found Tensor"),
        ({"a": torch.zeros(2), "epoch": 3}, "epoch is a int, expected only tensors"),
        ({3: torch.zeros(2)}, "3 is a Tensor"),
        ({"model": {"a": torch.zeros(2)}}, "under one of model, pass --key"),
        ({"a": torch.zeros(2, dtype=torch.int64)}, "tensor a is torch.int64"),
        ({"a": torch.zeros(2, dtype=torch.float64)}, "tensor a is torch.float64"),
        ({"a": torch.eye(2).to_sparse()}, "not a plain dense tensor"),
        ({"a": torch.zeros(2, device="meta")}, "not a plain dense tensor"),
    ],
)
def test_what_is_no_state_dict(tmp_path, content, why):
    path = tmp_path / "x.pt"
    torch.save(content, path)
    with pytest.raises(InputError, match=why):
        TorchFile(path)


def test_a_state_dict_inside_a_training_checkpoint(tmp_path):
    path = tmp_path / "x.pt"
    torch.save({"model": state(), "epoch": 3}, path)
    assert set(TorchFile(path, "model").specs) == set(state())
    for key in ("weights", "epoch"):
        with pytest.raises(InputError, match=f"no state dict under {key}; there is model"):
            TorchFile(path, key)


def test_damaged_files_are_refused_by_name(tmp_path):
    path = tmp_path / "x.pt"
    torch.save(state(), path)
    data = path.read_bytes()
    torch.save(state(), path, _use_new_zipfile_serialization=False)
    rng = np.random.default_rng(5)
    refused = 0
    for number, whole in enumerate([data, path.read_bytes()] * 150):
        changed = bytearray(whole)
        if number % 3:
            for _ in range(rng.integers(1, 6)):
                changed[rng.integers(len(changed))] = rng.integers(256)
        else:
            del changed[rng.integers(len(changed)) :]
        path.write_bytes(changed)
        try:
            file = TorchFile(path)
            for name in file.specs:
                file.read(name)
        except InputError as error:
            assert str(path) in str(error) and str(error).isprintable(), number
            refused += 1
    assert refused > 100


def test_flipped_bits_of_tensors_are_noticed(tmp_path):
    """They would be other weights, with a manifest that says they are right."""
    path = tmp_path / "x.pt"
    torch.save({"a": torch.arange(4096.0)}, path)
    whole = path.read_bytes()
    start = whole.index(np.arange(4096, dtype="<f4").tobytes())
    for place in np.random.default_rng(0).integers(start, start + 4 * 4096, 20):
        changed = bytearray(whole)
        changed[place] ^= 4
        path.write_bytes(changed)
        with pytest.raises(InputError, match=r"x\.pt: not a readable PyTorch file \(.*checksum"):
            TorchFile(path)


def test_a_tensor_that_repeats_what_is_stored_is_refused(tmp_path):
    torch.save({"a": torch.zeros(1).expand(1 << 20)}, tmp_path / "x.pt")
    with pytest.raises(InputError, match=r"tensor a repeats 4 stored bytes to 4,194,304"):
        TorchFile(tmp_path / "x.pt")
    torch.save({"a": torch.zeros(8)[2:6]}, tmp_path / "x.pt")
    assert TorchFile(tmp_path / "x.pt").read("a").shape == (4,), "a part of a storage is fine"


def test_torch_that_runs_what_is_in_a_file_is_refused(tmp_path, monkeypatch):
    torch.save(state(), tmp_path / "x.pt")
    monkeypatch.setattr(torch, "__version__", "2.5.1")
    with pytest.raises(InputError, match=r"torch 2\.5\.1 can run code .* 'torch>=2\.6'"):
        TorchFile(tmp_path / "x.pt")


def test_not_there(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        TorchFile(tmp_path / "x.pt")


def test_without_torch(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InputError, match=r"needs torch; pip install 'lite3r_jax\[torch\]'"):
        TorchFile(tmp_path / "x.pt")
