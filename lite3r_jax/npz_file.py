"""Reading of untrusted NPZ files: headers are checked before data is read, data as it is read."""

import math
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from lite3r_jax.errors import InputError

# What zipfile and NumPy raise on damaged files.
_DAMAGE = (
    OSError, EOFError, ValueError, TypeError, LookupError, SyntaxError, RuntimeError, MemoryError,
    ArithmeticError, zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError,
)  # fmt: skip
_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


class NpzFile:
    """The arrays of an open NPZ file.

    Attributes:
        names: of the arrays.
    """

    def __init__(self, archive: zipfile.ZipFile):
        """Lists the arrays of an archive without reading them.

        Args:
            archive: open for reading.

        Raises:
            InputError: an array is there twice.
        """
        self._archive = archive
        self._members: dict[str, zipfile.ZipInfo] = {}
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            if name in self._members:
                raise InputError(f"holds the array {name[:80]!r} twice")
            self._members[name] = info
        self.names = tuple(self._members)

    def compressed(self, name: str) -> bool:
        """Returns whether an array is compressed."""
        return self._members[name].compress_type != zipfile.ZIP_STORED

    def read(self, name: str, kind: str = "", axes: int | None = None, most: int = 1 << 34) -> Any:
        """Reads one array, and decompresses nothing that its header does not announce.

        Args:
            name: of the array.
            kind: what `dtype.str` has to start with.
            axes: number of dimensions that it has to have; None: any.
            most: bytes that it may have.

        Returns:
            The array, read-only, in C order.

        Raises:
            InputError: it is of another kind or too large, or holds other than its header says.
        """
        with self._archive.open(self._members[name]) as file:
            version = np.lib.format.read_magic(file)
            if version not in _READERS:
                raise InputError(f"{name} has NPY version {version}, expected (1, 0) or (2, 0)")
            shape, fortran, dtype = _READERS[version](file)
            if dtype.hasobject or not dtype.str.startswith(kind) or axes not in (None, len(shape)):
                wanted = kind or "numbers or texts"
                wanted += "" if axes is None else f" with {axes} axes"
                raise InputError(f"{name} is {dtype.str} {list(shape)}, expected {wanted}")
            size = math.prod(shape) * dtype.itemsize
            if size > most:
                raise InputError(
                    f"{name} is {dtype.str} {list(shape)}, expected at most {most:,} bytes"
                )
            data = file.read(size + 1)
            # one more, which is the end, where zipfile compares the checksum
            if len(data) != size or file.read(1):
                raise InputError(f"{name} does not hold {dtype.str} {list(shape)} as it says")
        order = "F" if fortran else "C"
        return np.asarray(np.frombuffer(data, dtype).reshape(shape, order=order), order="C")


@contextmanager
def open_npz(
    path: str | os.PathLike[str], remedy: str = "copy or write it again"
) -> Iterator[NpzFile]:
    """Open an NPZ file for reading.

    Nothing of the file is executed. Errors that a damaged file causes inside of the block become an
    `InputError` that names the file.

    Args:
        path: the file.
        remedy: what to do where it is damaged.

    Raises:
        InputError: it cannot be read, or is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            yield NpzFile(archive)
    except InputError as error:
        raise InputError(f"{os.fspath(path)}: {error}") from error
    except _DAMAGE as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or "cut short"
        raise InputError(
            f"{os.fspath(path)}: cannot be read as NPZ ({reason}); {remedy}"
        ) from error
