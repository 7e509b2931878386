"""Strict reader and writer of MVSNet's camera files (*_cam.txt), as BlendedMVS and DTU have them.

A file has "extrinsic" and four rows of a world-to-camera matrix with OpenCV's axes, "intrinsic" and
three rows in pixels, then "depth_min depth_interval" or "depth_min depth_interval depth_num
depth_max" (github.com/YoYo000/MVSNet, README: file formats). Blank lines do not count.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lite3r_jax.data.text_file import number, read_text
from lite3r_jax.data.views import ROTATION_TOLERANCE
from lite3r_jax.errors import InputError

_MAX_BYTES = 16_384  # real ones have less than 1000


@dataclass(frozen=True, eq=False)
class CamFile:
    """Contents of one camera file: pose, intrinsics and the planned range of depth.

    Attributes:
        extrinsics: float64 [3, 4] world-to-camera.
        intrinsics: float64 [3, 3] in pixels, as in the file: the datasets do not say whether pixel
            centers are at integers or halves; it is read as integers.
        depth_min: smallest depth that the scene was planned for. In few files of BlendedMVS it is
            0 or below, and so is `depth_max` (its README): these have no range, see `depth_range`.
        depth_interval: distance of depth planes.
        depth_num: number of planes; None with a tail of two numbers.
        depth_max: largest depth; None with a tail of two numbers.
    """

    extrinsics: np.ndarray
    intrinsics: np.ndarray
    depth_min: float
    depth_interval: float
    depth_num: float | None
    depth_max: float | None

    @property
    def depth_range(self) -> tuple[float, float] | None:
        """(smallest, largest) depth if the file has both and they make sense, else None."""
        if self.depth_max is None or self.depth_max <= max(self.depth_min, 0.0):
            return None
        return max(self.depth_min, 0.0), self.depth_max


def read_cam(path: str | os.PathLike[str]) -> CamFile:
    """Read one camera file.

    Raises:
        InputError: with line and expectation, for whatever is not as the module says: numbers
            missing, left over or not finite, a last row other than 0 0 0 1, no rotation, focal
            lengths that are not positive, skew, a negative interval, a range from large to small.
    """
    rows = [
        (place, line.split())
        for place, line in enumerate(read_text(path, _MAX_BYTES).split("\n"), 1)
        if line.strip()
    ]
    if len(rows) != 10:
        raise InputError(
            f"{path}: line {rows[-1][0] if rows else 1}: expected 10 lines that are not blank"
            f" (extrinsic, 4 rows, intrinsic, 3 rows, depth range), got {len(rows)}"
        )
    for at, word in ((0, "extrinsic"), (5, "intrinsic")):
        place, words = rows[at]
        if words != [word]:
            raise InputError(
                f"{path}: line {place}: expected the word {word}, got {' '.join(words)[:32]!r}"
            )
    extrinsics = np.array([_numbers(path, row, (4,)) for row in rows[1:5]])
    intrinsics = np.array([_numbers(path, row, (3,)) for row in rows[6:9]])
    tail = _numbers(path, rows[9], (2, 4))
    _check_extrinsics(extrinsics, f"{path}: line {rows[1][0]}", f"{path}: line {rows[4][0]}")
    _check_intrinsics(intrinsics, f"{path}: line {rows[6][0]}")
    depth_min, interval = tail[:2]
    num, depth_max = tail[2:] or (None, None)
    place = f"{path}: line {rows[9][0]}"
    if interval < 0:
        raise InputError(f"{place}: expected an interval of 0 or more, got {interval:g}")
    if num is not None and (num < 0 or num != int(num)):
        raise InputError(f"{place}: expected a whole number of depth planes, got {num:g}")
    if depth_max is not None and depth_max < depth_min:
        raise InputError(
            f"{place}: expected a depth range from small to large, got {depth_min:g} to"
            f" {depth_max:g}"
        )
    return CamFile(extrinsics[:3], intrinsics, depth_min, interval, num, depth_max)


def write_cam(path: str | os.PathLike[str], cam: CamFile) -> None:
    """Writes one camera file, with enough digits that reading it gives the same numbers.

    Args:
        path: the file; it is written directly, not atomically: stage it where that matters.
        cam: the camera; with `depth_num` and `depth_max`, or without both.
    """
    rows = [*cam.extrinsics.tolist(), [0.0, 0.0, 0.0, 1.0], *cam.intrinsics.tolist()]
    lines = [" ".join(map(repr, row)) for row in rows]
    tail = [cam.depth_min, cam.depth_interval, cam.depth_num, cam.depth_max]
    ending = " ".join(f"{value!r}" for value in tail if value is not None)
    text = ["extrinsic", *lines[:4], "", "intrinsic", *lines[4:], "", ending, ""]
    Path(path).write_text("\n".join(text), "ascii")


def _numbers(
    path: str | os.PathLike[str], row: tuple[int, list[str]], counts: tuple[int, ...]
) -> list[float]:
    place, words = row
    if len(words) not in counts:
        wanted = " or ".join(map(str, counts))
        raise InputError(f"{path}: line {place}: expected {wanted} numbers, got {len(words)}")
    return [number(word, f"{path}: line {place}") for word in words]


def _check_extrinsics(matrix: np.ndarray, place: str, last: str) -> None:
    if matrix[3].tolist() != [0, 0, 0, 1]:
        raise InputError(f"{last}: expected the row 0 0 0 1")
    rotation = matrix[:3, :3]
    with np.errstate(over="ignore", invalid="ignore"):
        off = np.abs(rotation @ rotation.T - np.eye(3)).max()
    if not off <= ROTATION_TOLERANCE:
        raise InputError(
            f"{place}: expected a rotation in the first three columns, rows are off by {off:.1e}"
        )
    if np.linalg.det(rotation) < 0:
        raise InputError(f"{place}: expected a rotation, got a mirror (determinant -1)")


def _check_intrinsics(matrix: np.ndarray, place: str) -> None:
    (fx, skew, cx), (low, fy, cy), last = matrix.tolist()
    if skew != 0 or low != 0 or last != [0, 0, 1]:
        raise InputError(f"{place}: expected the rows fx 0 cx, 0 fy cy, 0 0 1")
    if not (fx > 0 and fy > 0):
        raise InputError(f"{place}: expected positive focal lengths, got {fx:g} and {fy:g}")
    # the image's size stands elsewhere; its reader checks these against it once more
    if not (0 < cx < 1e6 and 0 < cy < 1e6 and max(fx, fy) < 1e6):
        raise InputError(
            f"{place}: expected intrinsics in pixels, got focal lengths {fx:g}, {fy:g} and"
            f" principal point ({cx:g}, {cy:g})"
        )
