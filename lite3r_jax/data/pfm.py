"""Strict reader and writer of portable float maps (PFM), the format of BlendedMVS's depth maps.

A header of three lines in ASCII: "Pf" (one channel) or "PF" (three), width and height, and a scale
whose sign is the byte order: negative for little endian. Then 32-bit floats, the lowest row first
(www.pauldebevec.com/Research/HDR/PFM). The size of the scale has no agreed meaning and is not
applied, as in MVSNet's readers.
"""

import math
import os
import re
from pathlib import Path

import numpy as np

from lite3r_jax.errors import InputError

MAX_PIXELS = 64_000_000  # as for photos
_HEADER = re.compile(
    rb"(P[fF])[ \t]*\n"
    rb"([0-9]{1,9})[ \t]+([0-9]{1,9})[ \t]*\n"
    rb"([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)[ \t]*\n"
)
_HEADER_BYTES = 128  # more than any header that makes sense


def read_pfm(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Reads the values of a PFM file, with the uppermost row first.

    Args:
        path: the file.
        max_pixels: limit of width * height, checked before anything large is read.

    Returns:
        float32 [H, W], or [H, W, 3] for three channels. Row 0 is the uppermost.

    Raises:
        InputError: the file cannot be read; its header is not valid; it is shorter or longer than
            the header says; a value is not finite.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(_HEADER_BYTES)
            start, shape, dtype = _parse_header(head, size, str(path), max_pixels)
            file.seek(start)
            values = np.fromfile(file, dtype, math.prod(shape))
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror or error}); check the dataset"
        ) from error
    if values.size != math.prod(shape):  # the file changed while it was read
        raise InputError(f"{path}: ended early; copy it again")
    values = np.ascontiguousarray(values.reshape(shape)[::-1]).astype(np.float32, copy=False)
    _check(values, np.isfinite(values), "expected finite values", str(path))
    return values


def read_depth_pfm(
    path: str | os.PathLike[str], size: tuple[int, int] | None = None, *, max_depth: float = 1e6
) -> np.ndarray:
    """Reads a depth map from a PFM file of one channel; 0 where there is no depth.

    Args:
        path: the file.
        size: (height, width) that it must have; None: any.
        max_depth: larger values cannot be depth; neither can positive ones below 1 / `max_depth`.

    Returns:
        float32 [H, W].

    Raises:
        InputError: as `read_pfm`; three channels; another size; a value that cannot be depth.
    """
    depth = read_pfm(path)
    if depth.ndim != 2:
        raise InputError(f"{path}: line 1: expected Pf, a map with one channel, got PF with three")
    if size is not None and depth.shape != tuple(size):
        raise InputError(
            f"{path}: line 2: the depth map is {depth.shape[1]}x{depth.shape[0]}, its image is"
            f" {size[1]}x{size[0]}; they must be of one size"
        )
    possible = (depth == 0) | ((depth >= 1 / max_depth) & (depth <= max_depth))
    _check(depth, possible, f"expected depth from {1 / max_depth:g} to {max_depth:g}, or 0", path)
    return depth


def write_pfm(path: str | os.PathLike[str], values: np.ndarray) -> None:
    """Writes a map as a PFM file of little-endian 32-bit floats.

    Args:
        path: the file; it is written directly, not atomically: stage it where that matters.
        values: [H, W] or [H, W, 3]; row 0 is the uppermost.

    Raises:
        ValueError: another shape, or a value that is not finite in 32 bits.
    """
    values = np.asarray(values)
    if values.ndim not in (2, 3) or values.shape[2:] not in ((), (3,)) or not values.size:
        raise ValueError(f"values: expected [H, W] or [H, W, 3], got {list(values.shape)}")
    with np.errstate(over="ignore"):
        single = values[::-1].astype("<f4")
    if not np.isfinite(single).all():
        raise ValueError("values: expected numbers that are finite in 32 bits")
    kind = "PF" if values.ndim == 3 else "Pf"
    header = f"{kind}\n{values.shape[1]} {values.shape[0]}\n-1.000000\n"
    Path(path).write_bytes(header.encode() + single.tobytes())


def _parse_header(
    head: bytes, size: int, name: str, max_pixels: int
) -> tuple[int, tuple[int, ...], np.dtype]:
    """Returns the byte offset, the shape and the dtype of a PFM file's values from its header."""
    match = _HEADER.match(head)
    if match is None:
        raise InputError(f"{name}: {_header_fault(head)}; it is damaged or not a PFM file")
    channels = 3 if match[1] == b"PF" else 1
    width, height, scale = int(match[2]), int(match[3]), float(match[4])
    if not 0 < width * height <= max_pixels:
        raise InputError(
            f"{name}: line 2: expected width and height of 1 to {max_pixels} pixels together, got"
            f" {width} {height}"
        )
    if scale == 0 or not np.isfinite(scale):
        raise InputError(f"{name}: line 3: expected a scale other than 0, got {match[4].decode()}")
    expected = match.end() + 4 * channels * width * height
    if size != expected:
        raise InputError(
            f"{name}: has {size} bytes, {expected} are expected for {width}x{height} with"
            f" {channels} channel{'s' * (channels > 1)}; copy it again"
        )
    shape = (height, width, 3) if channels == 3 else (height, width)
    return match.end(), shape, np.dtype("<f4" if scale < 0 else ">f4")


def _header_fault(head: bytes) -> str:
    lines = head.split(b"\n")
    wanted = ("Pf or PF", "width and height", "a scale, negative for little endian")
    patterns = _HEADER.pattern.split(rb"\n")
    for number, (text, pattern) in enumerate(zip(wanted, patterns, strict=False), 1):
        line = lines[number - 1] if number <= len(lines) else b""
        if not re.fullmatch(pattern, line) or number == len(lines):
            return f"line {number}: expected {text}, got {line[:32]!r}"
    raise AssertionError(head)  # all three lines match, so the header does


def _check(values: np.ndarray, passed: np.ndarray, rule: str, name: str | os.PathLike[str]) -> None:
    if not passed.all():
        row, column = (int(i) for i in np.unravel_index(np.argmin(passed), passed.shape)[:2])
        value = float(values[row, column].flat[int(np.argmin(passed[row, column]))])
        raise InputError(
            f"{name}: row {row}, column {column}: {rule}, got {value:g}; copy the file again"
        )
