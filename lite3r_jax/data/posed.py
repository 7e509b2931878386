"""Photos with their cameras, as the files of other programs describe them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from lite3r_jax.data.lens import Distortion, pinhole_intrinsics, undistort
from lite3r_jax.data.transforms import fit_intrinsics
from lite3r_jax.data.views import ROTATION_TOLERANCE
from lite3r_jax.errors import InputError

_ORIENTATION_TAG = 0x0112
FLIP = np.diag([1.0, -1.0, -1.0])
"""Converts camera axes from OpenCV to OpenGL (x right, y up, z backward), and back."""


@dataclass(frozen=True, eq=False)
class PosedPhoto:
    """One photo of a capture with its pose, its lens and perhaps its depth map.

    Attributes:
        name: relative file name, "/" between folders.
        size: (width, height) of the photo that the intrinsics are for; None: that of the file.
        extrinsics: float64 [3, 4] world-to-camera, OpenCV.
        lens: fx, fy, cx, cy in pixels with centers at integers; cx and cy may be None for the
            middle of the photo.
        distortion: of the lens, see `data.lens`; None for a pinhole.
        depth: file of the depth map; None without.
        depth_step: what the values of `depth` are multiplied with.
    """

    name: str
    size: tuple[int, int] | None
    extrinsics: np.ndarray
    lens: tuple[float, float, float | None, float | None]
    distortion: Distortion | None = None
    depth: Path | None = None
    depth_step: float = 1.0

    def intrinsics(self, size: tuple[int, int]) -> np.ndarray:
        """Returns intrinsics for a photo of (width, height) `size`, after `undistort` if needed.

        They are float64 [3, 3], in pixels with centers at integers.

        Raises:
            InputError: the distortion cannot be taken out of a photo of this size.
        """
        stored = self._stored_intrinsics(size)
        if self.distortion is None:
            return stored
        return pinhole_intrinsics(stored, self.distortion, size, self.name)

    def undistort(
        self, image: np.ndarray, size: tuple[int, int], *, nearest: bool = False
    ) -> np.ndarray:
        """Removes lens distortion: returns what a pinhole camera with `intrinsics` sees.

        Args:
            image: [h, w, ...] uint8 or float32: the photo, or a map that covers it at another
                resolution.
            size: (width, height) of the photo.
            nearest: take the nearest pixel, as depth needs it.

        Raises:
            InputError: see `lens.undistort`.
        """
        if self.distortion is None:
            return image
        whole, here = (0, 0, *size), image.shape[:2]
        stored, pinhole = (
            fit_intrinsics(k, whole, here)
            for k in (self._stored_intrinsics(size), self.intrinsics(size))
        )
        return undistort(image, stored, self.distortion, pinhole, self.name, nearest=nearest)

    def _stored_intrinsics(self, size: tuple[int, int]) -> np.ndarray:
        fx, fy, cx, cy = self.lens
        cx = (size[0] - 1) / 2 if cx is None else cx
        cy = (size[1] - 1) / 2 if cy is None else cy
        return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])


def relative_name(text: str, place: str) -> str:
    """Returns a file name inside its folder without "./" and with "/" between folders.

    Raises:
        InputError: naming `place`, for a name that is empty, absolute or leads out of the folder.
    """
    path = PurePosixPath(text.replace("\\", "/"))
    outside = path.is_absolute() or ".." in path.parts or not path.parts or ":" in path.parts[0]
    if outside or "\0" in text:
        raise InputError(
            f"{place}: expected the name of a file inside the capture, got {text[:80]!r}"
        )
    return str(path)


def check_lens(lens: Sequence[float | None], place: str) -> None:
    """Refuse focal lengths that are not positive and numbers that are not finite.

    Raises:
        InputError: naming `place`.
    """
    fx, fy, *center = lens
    finite = all(value is None or np.isfinite(value) for value in lens)
    if not finite or fx is None or fy is None or not (fx > 0 and fy > 0):
        raise InputError(
            f"{place}: expected positive focal lengths and a finite principal point, got"
            f" {fx}, {fy} and {center[0]}, {center[1]}"
        )


def check_rotation(rotation: np.ndarray, place: str) -> None:
    """Refuse a matrix [3, 3] that is no rotation.

    Raises:
        InputError: naming `place`.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        off = np.abs(rotation @ rotation.T - np.eye(3)).max()
    if not off <= ROTATION_TOLERANCE:
        raise InputError(f"{place}: expected a rotation, its rows are off by {off:.1e}")
    if np.linalg.det(rotation) < 0:
        raise InputError(f"{place}: expected a rotation, got a mirror (determinant -1)")


def check_upright(source: Any, place: str) -> None:
    """Refuse a photo that EXIF turns: cameras are for the pixels as they are stored.

    Args:
        source: a file or Pillow image that can be read; of anything else nothing is known.
        place: what the message calls it.

    Raises:
        InputError: naming `place`.
    """
    from PIL import Image

    if isinstance(source, str | os.PathLike):
        with Image.open(source) as image:
            turn = image.getexif().get(_ORIENTATION_TAG, 1)
    elif isinstance(source, Image.Image):
        turn = source.getexif().get(_ORIENTATION_TAG, 1)
    else:
        return
    if turn not in (0, 1):
        raise InputError(
            f"{place}: is stored turned (EXIF orientation), its camera is for the pixels as"
            " stored; save it upright and make the cameras again"
        )
