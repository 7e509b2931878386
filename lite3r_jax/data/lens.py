"""Radial and tangential lens distortion: photos and depth maps as a pinhole camera would see them.

The model is OpenCV's (docs.opencv.org, calib3d), of which COLMAP's SIMPLE_RADIAL, RADIAL, OPENCV
and FULL_OPENCV are special cases (colmap/sensor/models.h). With a ray at (x, y, 1) and
r2 = x^2 + y^2, a photo shows it at K (x', y', 1):

    radial = (1 + k1 r2 + k2 r2^2 + k3 r2^3) / (1 + k4 r2 + k5 r2^2 + k6 r2^3)
    x' = x radial + 2 p1 x y + p2 (r2 + 2 x^2)
    y' = y radial + p1 (r2 + 2 y^2) + 2 p2 x y
"""

from typing import Any

import numpy as np

from lite3r_jax.errors import InputError

Distortion = tuple[float, float, float, float, float, float, float, float]
"""Coefficients of lens distortion: k1, k2, p1, p2, k3, k4, k5, k6, in OpenCV's order."""

_ROUNDS = 200  # of the fixed point, which gains a digit in one to ten
_EXACT = 1e-3  # pixels
_MAX_SIDE = 32_000  # of what OpenCV remaps


def distort(x: Any, y: Any, distortion: Distortion) -> tuple[np.ndarray, np.ndarray]:
    """Returns (x', y') at which rays (x, y, 1) appear through the lens; arrays of one shape."""
    k1, k2, p1, p2, k3, k4, k5, k6 = distortion
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    r2 = x * x + y * y
    radial = 1 + r2 * (k1 + r2 * (k2 + r2 * k3))
    if k4 or k5 or k6:
        radial = radial / (1 + r2 * (k4 + r2 * (k5 + r2 * k6)))
    return (
        x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x),
        y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y,
    )


def pinhole_intrinsics(
    intrinsics: np.ndarray, distortion: Distortion, size: tuple[int, int], place: str
) -> np.ndarray:
    """Returns intrinsics of an equally large pinhole photo that lies wholly in the distorted one.

    Args:
        intrinsics: [3, 3] of the distorted photo, pixel centers at integers, without skew.
        distortion: of its lens.
        size: its (width, height).
        place: what messages call it.

    Returns:
        float64 [3, 3] by the same conventions; the corners of what the pinhole photo shows are
        those of the largest upright rectangle that the distorted photo covers.

    Raises:
        InputError: the distortion folds the photo, so that no pinhole photo shows it.
    """
    width, height = size
    across, down = np.linspace(-0.5, width - 0.5, 65), np.linspace(-0.5, height - 0.5, 65)
    with np.errstate(all="ignore"):
        (left, _), (right, _), (_, top), (_, bottom) = (
            _undistort(u, v, intrinsics, distortion)
            for u, v in ((-0.5, down), (width - 0.5, down), (across, -0.5), (across, height - 0.5))
        )
        x1, x2, y1, y2 = left.max(), right.min(), top.max(), bottom.min()
        fx, fy = width / (x2 - x1), height / (y2 - y1)
        pinhole = np.array([[fx, 0, -0.5 - fx * x1], [0, fy, -0.5 - fy * y1], [0, 0, 1]])
        u, v = _source(*np.meshgrid(across, down), intrinsics, distortion, pinhole)
    inside = (u > -0.5 - _EXACT) & (u < width - 0.5 + _EXACT)
    inside &= (v > -0.5 - _EXACT) & (v < height - 0.5 + _EXACT)
    unfolded = (np.diff(u, axis=1) > 0).all() and (np.diff(v, axis=0) > 0).all()
    if not (np.isfinite(pinhole).all() and fx > 0 and fy > 0 and inside.all() and unfolded):
        raise InputError(
            f"{place}: lens distortion {', '.join(f'{c:g}' for c in distortion if c)} folds a photo"
            f" of {width}x{height}; expected that of its own lens and size"
        )
    return pinhole


def undistort(
    image: np.ndarray,
    intrinsics: np.ndarray,
    distortion: Distortion,
    pinhole: np.ndarray,
    place: str,
    *,
    nearest: bool = False,
) -> np.ndarray:
    """Resamples a distorted image to what the pinhole camera sees, at the same size.

    Args:
        image: [H, W, ...] uint8 or float32.
        intrinsics: [3, 3] of the image, pixel centers at integers.
        distortion: of its lens.
        pinhole: [3, 3] of the result, see `pinhole_intrinsics`.
        place: what messages call it.
        nearest: take the nearest pixel, as depth needs it; otherwise interpolate (bicubic).

    Raises:
        InputError: OpenCV is not installed; the image is too large for it.
    """
    try:
        import cv2
    except ImportError as error:
        raise InputError(
            f"{place}: OpenCV is needed to take lens distortion out of photos; pip install"
            f" 'lite3r_jax[lens]' ({error})"
        ) from error
    height, width = image.shape[:2]
    if max(height, width) > _MAX_SIDE:
        raise InputError(
            f"{place}: {width}x{height} pixels; lens distortion can be taken out of photos of up to"
            f" {_MAX_SIDE} pixels a side, undistort it with another program first"
        )
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    source = _source(columns, rows, intrinsics, distortion, pinhole)
    u, v = (a.astype(np.float32) for a in source)
    how = cv2.INTER_NEAREST if nearest else cv2.INTER_CUBIC
    return cv2.remap(image, u, v, how, borderMode=cv2.BORDER_REPLICATE)


def _source(
    u: Any, v: Any, intrinsics: np.ndarray, distortion: Distortion, pinhole: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the pixels of the distorted photo that pixels (u, v) of the pinhole photo show."""
    x, y = (u - pinhole[0, 2]) / pinhole[0, 0], (v - pinhole[1, 2]) / pinhole[1, 1]
    x, y = distort(x, y, distortion)
    return intrinsics[0, 0] * x + intrinsics[0, 2], intrinsics[1, 1] * y + intrinsics[1, 2]


def _undistort(
    u: Any, v: Any, intrinsics: np.ndarray, distortion: Distortion
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rays (x, y, 1) of distorted pixels as (x, y); NaN where the iteration fails."""
    u, v = np.broadcast_arrays(np.asarray(u, np.float64), np.asarray(v, np.float64))
    seen_x = (u - intrinsics[0, 2]) / intrinsics[0, 0]
    seen_y = (v - intrinsics[1, 2]) / intrinsics[1, 1]
    x, y = seen_x, seen_y
    for _ in range(_ROUNDS):
        there_x, there_y = distort(x, y, distortion)
        x, y = x + (seen_x - there_x), y + (seen_y - there_y)
    there_x, there_y = distort(x, y, distortion)
    off = np.hypot((there_x - seen_x) * intrinsics[0, 0], (there_y - seen_y) * intrinsics[1, 1])
    return np.where(off < _EXACT, x, np.nan), np.where(off < _EXACT, y, np.nan)
