"""Reads PyTorch pickles (.pt, .pth, .bin): the only place that needs torch to convert weights.

`weights_only=True` always, so that nothing in the file is ever executed.
"""

import pickle
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from lite3r_jax.errors import InputError
from lite3r_jax.weights.safetensors_file import TensorSpec
from lite3r_jax.weights.strict_json import shown

SUFFIXES = (".pt", ".pth", ".bin")

# What torch.load and its unpickler raise on damaged files.
_DAMAGE = (
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    OverflowError,
    MemoryError,
    struct.error,
    zipfile.BadZipFile,
    NotImplementedError,
)


class TorchFile:
    """One PyTorch checkpoint file, mapped into memory where its format allows.

    Attributes:
        path: the file.
        specs: name -> TensorSpec.
    """

    def __init__(self, path: Path, key: str | None = None):
        """Open and check a file.

        Args:
            path: the file.
            key: entry of the file that is the state dict; None when the file is the state dict.

        Raises:
            InputError: torch is missing; the file cannot be read, holds other things than tensors,
                or needs (or lacks) a key.
        """
        try:
            import torch
        except ImportError as error:
            raise InputError(
                f"{path}: reading {path.suffix} needs torch; pip install 'lite3r_jax[torch]' (or "
                "pip install torch), or use the .safetensors form of the checkpoint"
            ) from error
        self._torch = torch
        self.path = path
        version = tuple(int(part) for part in torch.__version__.split(".")[:2])
        if version < (2, 6):
            raise InputError(
                f"{path}: torch {torch.__version__} can run code that is in such a file"
                " (CVE-2025-32434); pip install 'torch>=2.6'"
            )
        if not path.is_file():
            raise InputError(f"{path}: no such file")
        try:
            archive = zipfile.is_zipfile(path)
            if archive:
                _check_archive(path)
            with warnings.catch_warnings():
                # On unusual but readable pickles; what comes out is checked below.
                warnings.simplefilter("ignore")
                # Files of torch before 1.6 are no zip archives and can only be read as a whole.
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
        except pickle.UnpicklingError as error:
            raise InputError(
                f"{path}: refused, it is damaged or holds other objects than tensors, which could "
                "run code; save the plain state dict, best as .safetensors"
            ) from error
        except _DAMAGE as error:
            why = shown(" ".join(str(error).split()) or type(error).__name__)
            raise InputError(f"{path}: not a readable PyTorch file ({why})") from error
        self._tensors = _state_dict(content, path, key, torch.Tensor)
        kinds = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
        self.specs: dict[str, TensorSpec] = {}
        for name, tensor in self._tensors.items():
            if tensor.layout is not torch.strided or tensor.device.type != "cpu":
                raise InputError(f"{path}: tensor {shown(name)} is not a plain dense tensor")
            stored, size = tensor.untyped_storage().nbytes(), tensor.numel() * tensor.itemsize
            if stored < size:
                raise InputError(
                    f"{path}: tensor {shown(name)} repeats {stored:,} stored bytes to {size:,};"
                    " expected a tensor without strides of 0; save its .contiguous()"
                )
            if tensor.dtype not in kinds:
                raise InputError(
                    f"{path}: tensor {shown(name)} is {tensor.dtype}; expected float32, float16 or "
                    "bfloat16"
                )
            self.specs[name] = TensorSpec(tuple(tensor.shape), kinds[tensor.dtype])

    @property
    def label(self) -> str:
        """Path of the file as text, for messages."""
        return str(self.path)

    @property
    def files(self) -> tuple[Path, ...]:
        """Paths of the files of the checkpoint: the one file."""
        return (self.path,)

    def file_of(self, name: str) -> Path:
        """Implements `TensorSource.file_of`: returns the one file, which holds every tensor."""
        del name
        return self.path

    def read(self, name: str) -> np.ndarray:
        """Implements `TensorSource.read`: returns one tensor as an array."""
        tensor = self._tensors[name].detach().contiguous()
        if tensor.dtype is self._torch.bfloat16:
            return tensor.view(self._torch.int16).numpy().view(ml_dtypes.bfloat16)
        return tensor.numpy()

    def close(self) -> None:
        """Releases the tensors and with them the mapping of the file into memory."""
        self._tensors = {}


def _check_archive(path: Path) -> None:
    """Compare every member of the file with its CRC-32."""
    with zipfile.ZipFile(path) as archive:
        if (damaged := archive.testzip()) is not None:
            raise zipfile.BadZipFile(f"{damaged} does not have the checksum that the file gives")


def _state_dict(content: Any, path: Path, key: str | None, kind: type) -> dict[str, Any]:
    if not isinstance(content, Mapping):
        raise InputError(f"{path}: expected a state dict, found {type(content).__name__}")
    nested = [shown(k) for k, v in content.items() if isinstance(v, Mapping)]
    if key is not None:
        if key not in content or not isinstance(content[key], Mapping):
            raise InputError(
                f"{path}: no state dict under {shown(key)}; there is {', '.join(nested) or 'none'}"
            )
        content = content[key]
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, kind):
            hint = f"; if the weights are under one of {', '.join(nested)}, pass --key"
            raise InputError(
                f"{path}: {shown(name)} is a {type(value).__name__}, expected only tensors"
                f"{hint if nested and key is None else ''}"
            )
    return dict(content)
