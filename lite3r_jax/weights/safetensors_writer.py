"""Writes safetensors in one pass: header first, then the data in order, hashed on the way."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lite3r_jax.errors import InputError
from lite3r_jax.files import temporary_name
from lite3r_jax.weights.safetensors_file import DTYPE_NAMES, DTYPES, TensorSpec, as_bytes


@dataclass(frozen=True)
class FileRecord:
    """Size in bytes and SHA-256 (lower-case hexadecimal) of one file."""

    size: int
    sha256: str


def data_order(specs: Mapping[str, TensorSpec]) -> list[str]:
    """Returns the order of tensors in a file: wide dtypes first, to align all, then by name."""
    return sorted(specs, key=lambda name: (-DTYPES[specs[name].dtype].itemsize, name))


def header_bytes(specs: Mapping[str, TensorSpec], metadata: Mapping[str, str] | None) -> bytes:
    """Returns length and JSON header, padded to 8 bytes, of tensors in the order of `specs`."""
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for name, spec in specs.items():
        end = position + spec.nbytes
        header[name] = {
            "dtype": spec.dtype,
            "shape": list(spec.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


class SafetensorsWriter:
    """Writes a safetensors file under a temporary name and renames it when it is complete.

    Use as a context manager: leaving it normally completes the file (every tensor must have been
    written), leaving it by an exception removes it. `record` is set afterwards.
    """

    def __init__(
        self,
        path: Path,
        specs: Mapping[str, TensorSpec],
        metadata: Mapping[str, str] | None = None,
        header: bytes | None = None,
    ):
        """Open the file and write the header.

        Args:
            path: the file; replaced if it exists.
            specs: what will be written, in this order.
            metadata: free strings for the header.
            header: a ready header with its length in front, which must describe `specs`.

        Raises:
            InputError: the file cannot be created.
        """
        self.path = path
        self.record: FileRecord | None = None
        self._specs = dict(specs)
        self._order = iter(self._specs)
        self._current: str | None = None
        self._missing = 0
        self._hash = hashlib.sha256()
        self._size = 0
        self._partial = temporary_name(path)
        try:
            self._file = self._partial.open("xb", buffering=0)
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror})") from error
        try:
            self._put(memoryview(header or header_bytes(specs, metadata)))
        except BaseException:
            self._discard()
            raise

    def write(self, name: str, array: np.ndarray) -> None:
        """Write one tensor, or the next piece along the leading axis of a large one.

        Raises:
            ValueError: not the tensor that is next, of another dtype or too long.
            InputError: the file cannot be written.
        """
        if self._missing == 0:
            self._current = next(self._order, None)
            self._missing = self._specs[self._current].nbytes if self._current is not None else 0
        if name != self._current:
            raise ValueError(f"{self.path}: expected tensor {self._current} next, got {name}")
        if DTYPE_NAMES.get(array.dtype) != self._specs[name].dtype or array.nbytes > self._missing:
            raise ValueError(
                f"{self.path}: {name} got {array.dtype} {array.shape}, expected {self._specs[name]}"
            )
        self._put(as_bytes(np.ascontiguousarray(array)))
        self._missing -= array.nbytes

    @property
    def so_far(self) -> FileRecord:
        """Size and SHA-256 of what has been written up to now."""
        return FileRecord(self._size, self._hash.hexdigest())

    def _put(self, data: memoryview) -> None:
        self._hash.update(data)
        self._size += len(data)
        try:
            done = 0
            while done < len(data):
                done += self._file.write(data[done:]) or 0
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written ({error.strerror})") from error

    def _finish(self) -> None:
        left = [name for name in self._order if self._specs[name].nbytes]
        if self._missing or left:
            raise ValueError(f"{self.path}: incomplete, {[self._current, *left][:3]} not written")
        try:
            os.fsync(self._file.fileno())
            self._file.close()
            os.replace(self._partial, self.path)
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written ({error.strerror})") from error
        self.record = self.so_far

    def _discard(self) -> None:
        self._file.close()
        self._partial.unlink(missing_ok=True)

    def __enter__(self) -> "SafetensorsWriter":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            if self.record is None:
                self._discard()


def write_file(path: Path, data: bytes) -> FileRecord:
    """Write a small file durably (fsync) and return its size and SHA-256.

    Raises:
        InputError: the file cannot be written.
    """
    try:
        with path.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from error
    return FileRecord(len(data), hashlib.sha256(data).hexdigest())


def hash_file(path: Path) -> FileRecord:
    """Returns the size and SHA-256 of an existing file.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            return FileRecord(size, hashlib.file_digest(file, "sha256").hexdigest())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error


def sync_directory(path: Path) -> None:
    """Make names in a directory durable, where the system knows how to (POSIX)."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
