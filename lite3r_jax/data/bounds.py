"""Resizing of photos to the network sizes of Depth Anything 3 and pi^3, as published.

Depth Anything 3 (utils/io/input_processor.py): the longer or the shorter side gets a given length,
then both become multiples of the patch. Both steps are OpenCV's and round to 8 bits, as upstream's
do; Pillow's filters give other pixels.

pi^3 (pi3/utils/basic.py): a limit of pixels, and one size for all photos of a scene.
"""

from typing import Literal, get_args

import numpy as np

from lite3r_jax.errors import InputError

PATCH = 14  # network sizes are multiples of this

Method = Literal["upper_bound_resize", "upper_bound_crop", "lower_bound_resize", "lower_bound_crop"]
METHODS: tuple[str, ...] = get_args(Method)


def network_size(
    width: int,
    height: int,
    size: int = 504,
    method: Method = "upper_bound_resize",
    name: str = "photo",
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Returns the size that a photo is resized to first, and the final size in multiples of 14.

    Args:
        width: of the photo.
        height: of the photo.
        size: length of the longer side ("upper_bound") or the shorter side ("lower_bound").
        method: "resize" then moves each side to the nearest multiple of 14, ties up; "crop" cuts it
            to one.
        name: what messages call the photo.

    Returns:
        ((width, height) with the photo's shape, (width, height) in multiples of 14).

    Raises:
        InputError: a side would be shorter than one patch.
    """
    bound = max if method.startswith("upper") else min
    scale = size / bound(width, height)
    first = (round(width * scale), round(height * scale))

    def multiple(n: int) -> int:
        lower = n // PATCH * PATCH
        return lower + PATCH * (method.endswith("resize") and 2 * (n - lower) >= PATCH)

    last = (multiple(first[0]), multiple(first[1]))
    if min(last) < PATCH:
        raise InputError(
            f"{name}: {width}x{height} has a side of less than {PATCH} pixels at size {size};"
            " choose a larger size, or a lower_bound mode"
        )
    return first, last


def pixel_limit_size(width: int, height: int, limit: int) -> tuple[int, int]:
    """Returns the size for all photos of a scene from its first photo's size and a pixel limit.

    Both sides are multiples of 14, at least one patch; their ratio is near that of the photo. Small
    photos become larger.

    Args:
        width: of the first photo.
        height: likewise.
        limit: pixels that an image has at most.

    Returns:
        (width, height).
    """
    scale = (limit / (width * height)) ** 0.5
    wide, high = width * scale, height * scale
    columns, rows = round(wide / PATCH), round(high / PATCH)
    while PATCH**2 * columns * rows > limit:
        if columns / rows > wide / high:
            columns -= 1
        else:
            rows -= 1
    return PATCH * max(1, columns), PATCH * max(1, rows)


def fit_bounds(
    photo: np.ndarray, first: tuple[int, int], last: tuple[int, int], method: Method
) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """Resizes a photo to network size, and crops it where the method says so.

    Args:
        photo: [H, W, 3] uint8 RGB.
        first: the first size that `network_size` returns.
        last: the second size that it returns.
        method: the one that was given to it.

    Returns:
        (image [h, w, 3] uint8, edges (x1, y1, x2, y2) of the whole photo in it, measured from the
        outer corner of the first pixel).

    Raises:
        InputError: OpenCV is not installed.
    """
    image = _resize(photo, first)
    if method.endswith("resize"):
        return _resize(image, last), (0, 0, *last)
    left, top = middle(first, last)
    image = image[top : top + last[1], left : left + last[0]]
    return image, (-left, -top, first[0] - left, first[1] - top)


def middle(size: tuple[int, int], inner: tuple[int, int]) -> tuple[int, int]:
    """Returns (left, top) of a piece of size `inner` centered in `size`, both (width, height)."""
    return (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2


def _resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    height, width = image.shape[:2]
    if size == (width, height):
        return image
    try:
        import cv2
    except ImportError as error:
        raise InputError(
            "photos: OpenCV is needed for the sizes of Depth Anything 3; pip install"
            f" 'lite3r_jax[da3]', or use images.mode=crop ({error})"
        ) from error
    grows = size[0] > width or size[1] > height
    how = cv2.INTER_CUBIC if grows else cv2.INTER_AREA
    return cv2.resize(image, size, interpolation=how)
