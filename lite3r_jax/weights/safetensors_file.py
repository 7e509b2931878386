"""Reads safetensors files strictly, one tensor at a time.

The format: 8 bytes little-endian header length, a JSON header {name: {dtype, shape, data_offsets}},
then the data without holes. Everything is checked before a byte of data is read or allocated.
Plain reads are used, not a memory map, so that a 5 GB file never counts as resident memory.
"""

import math
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from lite3r_jax.errors import InputError
from lite3r_jax.weights import strict_json
from lite3r_jax.weights.strict_json import shown

DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}

# The limit of the safetensors library itself.
_MAX_HEADER = 100_000_000
# The limit of numpy.
_MAX_RANK = 64
_INDEX_SUFFIX = ".safetensors.index.json"


@dataclass(frozen=True)
class TensorSpec:
    """Shape and dtype (safetensors name, e.g. "F32") of one stored tensor."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        """Number of elements of the tensor."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size of the tensor in bytes."""
        return self.size * DTYPES[self.dtype].itemsize


class TensorSource(Protocol):
    """A checkpoint: named tensors that are read one at a time."""

    @property
    def label(self) -> str:
        """Name of the checkpoint for messages, usually its path."""
        ...

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that the checkpoint is made of."""
        ...

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Shape and dtype of every tensor by name."""
        ...

    def file_of(self, name: str) -> Path:
        """Returns the file that holds one tensor."""
        ...

    def read(self, name: str) -> np.ndarray:
        """Reads one tensor."""
        ...

    def close(self) -> None:
        """Closes the files of the checkpoint."""
        ...


class SafetensorsFile:
    """One open `.safetensors` file.

    Attributes:
        path: the file.
        specs: name -> TensorSpec, in the order of the data.
        metadata: strings by name from the header (`__metadata__`).
        header: the header as it is in the file, with its length in front.
    """

    def __init__(self, path: Path):
        """Open and check a file.

        Raises:
            InputError: it cannot be read or violates the format in any way.
        """
        self.path = path
        try:
            # Not blocking on a pipe: only a regular file can be mapped and measured.
            if not stat.S_ISREG(os.stat(path).st_mode):
                raise InputError(f"{path}: not a regular file; expected a .safetensors file")
            self._file = path.open("rb", buffering=0)
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from error
        try:
            size = os.fstat(self._file.fileno()).st_size
            self.header = self._read_header(size)
            self.metadata, self._entries = parse_header(self.header[8:], path)
            self._data = len(self.header)
            _check_layout(self._entries, size - self._data, path)
            self._check_with_library()
        except BaseException:
            self._file.close()
            raise
        self.specs = {name: spec for name, (spec, _) in self._entries.items()}

    @property
    def label(self) -> str:
        """Path of the file, for messages."""
        return str(self.path)

    @property
    def files(self) -> tuple[Path, ...]:
        """Path of the file, as a tuple of one."""
        return (self.path,)

    def file_of(self, name: str) -> Path:
        """Returns the path of the file, which holds every tensor."""
        del name
        return self.path

    def _read_header(self, size: int) -> bytes:
        if size < 8:
            raise InputError(f"{self.path}: {size} bytes, too short for a safetensors file")
        prefix = self._exactly(0, 8)
        length = int.from_bytes(prefix, "little")
        if not 2 <= length <= min(size - 8, _MAX_HEADER):
            raise InputError(
                f"{self.path}: header of {length} bytes in a file of {size}; the file is truncated "
                "or not in safetensors format"
            )
        return prefix + self._exactly(8, length)

    def _check_with_library(self) -> None:
        """Checks that the safetensors library, too, accepts the file and reads the same names."""
        try:
            with safe_open(self.path, framework="np") as reference:
                names = set(reference.keys())
        except (SafetensorError, OSError) as error:
            why = shown(error)
            raise InputError(f"{self.path}: refused by the safetensors library ({why})") from error
        if names != set(self._entries):
            raise InputError(f"{self.path}: its header can be read in two ways; refused")

    def _exactly(self, offset: int, length: int) -> bytes:
        buffer = bytearray(length)
        self._read_into(offset, memoryview(buffer))
        return bytes(buffer)

    def _read_into(self, offset: int, buffer: memoryview) -> None:
        done = 0
        try:
            self._file.seek(offset)
            while done < len(buffer):
                count = self._file.readinto(buffer[done:])
                if not count:
                    raise InputError(f"{self.path}: ends at byte {offset + done}, it was cut")
                done += count
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read ({error.strerror})") from error

    def read(self, name: str) -> np.ndarray:
        """Reads one tensor into a new array."""
        spec, offset = self._entries[name]
        array = np.empty(spec.shape, DTYPES[spec.dtype])
        self._read_into(self._data + offset, as_bytes(array))
        return array

    def read_row(self, name: str, index: int) -> np.ndarray:
        """Reads `tensor[index]` of one tensor without the rest."""
        spec, offset = self._entries[name]
        if not 0 <= index < spec.shape[0]:
            raise IndexError(f"{name} has {spec.shape[0]} rows, asked for row {index}")
        row = np.empty(spec.shape[1:], DTYPES[spec.dtype])
        self._read_into(self._data + offset + index * row.nbytes, as_bytes(row))
        return row

    def read_chunks(
        self, name: str, buffer: np.ndarray | None = None, elements: int = 1 << 22
    ) -> Iterator[tuple[slice, np.ndarray]]:
        """Yields the elements of one tensor in order, as (range, flat array) pieces.

        Args:
            name: the tensor.
            buffer: where to read to, of the tensor's dtype and size; pieces are views of it. None:
                a piece is only valid until the next one is asked for.
            elements: number of elements of the largest piece.
        """
        spec, offset = self._entries[name]
        dtype = DTYPES[spec.dtype]
        flat = buffer.reshape(-1) if buffer is not None else None
        scratch = np.empty(min(elements, spec.size), dtype) if flat is None else None
        for start in range(0, spec.size, elements):
            stop = min(start + elements, spec.size)
            if flat is not None:
                piece = flat[start:stop]
            else:
                assert scratch is not None
                piece = scratch[: stop - start]
            self._read_into(self._data + offset + start * dtype.itemsize, as_bytes(piece))
            yield slice(start, stop), piece

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def __enter__(self) -> "SafetensorsFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class SafetensorsShards:
    """A checkpoint in several `.safetensors` files, described by a `*.safetensors.index.json`."""

    def __init__(self, index: Path):
        """Open and check the index and all its shards.

        Raises:
            InputError: index or a shard is malformed, a shard or tensor is missing, extra or in two
                shards, or the index points outside its own directory.
        """
        self.index = index
        weight_map = strict_json.read_object(index, _MAX_HEADER).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise InputError(f"{index}: no 'weight_map' object; expected an index of safetensors")
        for name, shard in weight_map.items():
            plain = isinstance(shard, str) and shard.isprintable() and Path(shard).name == shard
            if not plain or "\\" in shard or not shard.endswith(".safetensors"):
                raise InputError(
                    f"{index}: tensor {shown(name)} is said to be in {shown(shard)}; expected the "
                    "plain name of a .safetensors file in the same directory"
                )
        self._shards: dict[str, SafetensorsFile] = {}
        self._of: dict[str, SafetensorsFile] = {}
        try:
            for shard in sorted(set(weight_map.values())):
                path = index.parent / shard
                if not os.path.isfile(path):
                    raise InputError(f"{path}: missing, but named in {index.name}; put it there")
                self._shards[shard] = file = SafetensorsFile(path)
                for name in file.specs:
                    if name in self._of:
                        other = self._of[name].path.name
                        raise InputError(f"{path}: tensor {shown(name)} is in {other} as well")
                    if weight_map.get(name) != shard:
                        raise InputError(
                            f"{path}: tensor {shown(name)} is not assigned to it in {index.name}"
                        )
                    self._of[name] = file
            for name, shard in weight_map.items():
                if name not in self._of:
                    raise InputError(
                        f"{index.parent / shard}: tensor {shown(name)} is missing, though "
                        f"{index.name} names it"
                    )
        except BaseException:
            self.close()
            raise
        self.specs = {name: file.specs[name] for name, file in self._of.items()}

    @property
    def label(self) -> str:
        """The path of the index, for messages."""
        return str(self.index)

    @property
    def files(self) -> tuple[Path, ...]:
        """The index and its shards."""
        return (self.index, *(file.path for file in self._shards.values()))

    def file_of(self, name: str) -> Path:
        """Returns the path of the shard that holds one tensor."""
        return self._of[name].path

    def read(self, name: str) -> np.ndarray:
        """Reads one tensor into a new array."""
        return self._of[name].read(name)

    def close(self) -> None:
        """Closes the files of the checkpoint."""
        for file in self._shards.values():
            file.close()


def open_safetensors(path: Path) -> SafetensorsFile | SafetensorsShards:
    """Open a safetensors file, a shard index, or the directory that holds one of the two.

    Raises:
        InputError: nothing or more than one candidate there, or a malformed one.
    """
    if os.path.isdir(path):
        indices = sorted(path.glob(f"*{_INDEX_SUFFIX}"))
        candidates = indices or sorted(path.glob("*.safetensors"))
        if len(candidates) != 1:
            names = ", ".join(shown(c.name) for c in candidates[:4]) or "none"
            raise InputError(
                f"{path}: expected one .safetensors file or one {_INDEX_SUFFIX} in it, found "
                f"{names}; name the file"
            )
        path = candidates[0]
    if path.name.endswith(_INDEX_SUFFIX):
        return SafetensorsShards(path)
    return SafetensorsFile(path)


def as_bytes(array: np.ndarray) -> memoryview:
    """Returns the memory of a C-contiguous array as bytes, not copied."""
    return array.reshape(-1).view(np.uint8).data


def parse_header(
    text: bytes, path: Path
) -> tuple[dict[str, str], dict[str, tuple[TensorSpec, int]]]:
    """Checks and parses the JSON header of a safetensors file, without the length in front.

    Returns:
        Metadata, and name -> (spec, offset in the data), in the order of the data.

    Raises:
        InputError: the header violates the format.
    """
    if not text.startswith(b"{"):
        raise InputError(f"{path}: no JSON header; damaged or not in safetensors format")
    header = strict_json.parse(text, f"{path} (header)")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise InputError(f"{path}: __metadata__ in the header must map strings to strings")
    spans: list[tuple[int, int, str, TensorSpec]] = []
    for name, entry in header.items():
        where = f"{path}: tensor {shown(name)}"
        if not name or not name.isprintable():
            raise InputError(f"{where} has an empty name or one with control characters")
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise InputError(f"{where}: expected dtype, shape and data_offsets in the header")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise InputError(f"{where} has dtype {shown(dtype)}; known are {', '.join(DTYPES)}")
        if not _naturals(shape) or len(shape) > _MAX_RANK:
            raise InputError(f"{where} has shape {shown(shape)}; expected a list of sizes")
        if not _naturals(offsets) or len(offsets) != 2:
            raise InputError(f"{where} has data_offsets {shown(offsets)}; expected begin and end")
        spec = TensorSpec(tuple(shape), dtype)
        begin, end = offsets
        if end - begin != spec.nbytes:
            raise InputError(
                f"{where}: {dtype} {shown(shape)} needs {shown(spec.nbytes)} bytes, the header "
                f"gives {shown(end - begin)}"
            )
        spans.append((begin, end, name, spec))
    spans.sort(key=lambda item: item[:3])
    return metadata, {name: (spec, begin) for begin, _, name, spec in spans}


def _naturals(value: Any) -> bool:
    # bool is an int in Python and "true" would pass for 1.
    return isinstance(value, list) and all(type(v) is int and 0 <= v < 1 << 63 for v in value)


def _check_layout(entries: dict[str, tuple[TensorSpec, int]], size: int, path: Path) -> None:
    """Raises `InputError` unless the data is exactly the tensors, one after the other."""
    position = 0
    for name, (spec, begin) in entries.items():
        if begin != position:
            kind = "overlaps the one before it" if begin < position else "leaves a hole before it"
            raise InputError(f"{path}: tensor {shown(name)} {kind} (byte {begin} of the data)")
        position += spec.nbytes
    if position != size:
        state = "truncated" if position > size else "followed by bytes of no tensor"
        raise InputError(f"{path}: {state}; expected {position} bytes of data, found {size}")
