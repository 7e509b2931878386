"""Photos to the sizes that Depth Anything 3 was published with (utils/io/input_processor.py).

The sides of a photo become multiples of 14 with little change of shape. Intrinsics go along, in
upstream's convention that a resize multiplies the principal point (pixel corners at integers).
"""

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from lite3r_jax.errors import InputError

PATCH = 14
Method = Literal["upper_bound_resize", "upper_bound_crop", "lower_bound_resize", "lower_bound_crop"]


def network_size(
    width: int, height: int, size: int = 504, method: Method = "upper_bound_resize"
) -> tuple[tuple[int, int], tuple[int, int]]:
    """What a photo is resized to, and what becomes of that.

    Args:
        width: of the photo.
        height: of the photo.
        size: length of the longer side ("upper_bound") or the shorter side ("lower_bound").
        method: "resize" then moves each side to the nearest multiple of 14, "crop" cuts it to one.

    Returns:
        ((width, height) with the photo's shape, (width, height) in multiples of 14).

    Raises:
        ValueError: an unknown method, or a size below 14.
        InputError: a side would be shorter than one patch.
    """
    if method not in get_args(Method):
        raise ValueError(f"method: expected one of {', '.join(get_args(Method))}, got {method!r}")
    if size < PATCH:
        raise ValueError(f"size: expected at least {PATCH}, got {size}")
    bound = max if method.startswith("upper") else min
    scale = size / bound(width, height)
    first = (round(width * scale), round(height * scale))

    def multiple(n: int) -> int:
        lower = n // PATCH * PATCH
        # Ties go up.
        return lower + PATCH * (method.endswith("resize") and 2 * (n - lower) >= PATCH)

    last = (multiple(first[0]), multiple(first[1]))
    if min(last) < PATCH:
        raise InputError(
            f"a photo of {width} x {height} has a side of less than {PATCH} pixels at size {size}; "
            "choose a larger size, or a lower_bound method"
        )
    return first, last


def fit_photo(
    photo: np.ndarray,
    intrinsics: np.ndarray | None = None,
    *,
    size: int = 504,
    method: Method = "upper_bound_resize",
) -> tuple[np.ndarray, np.ndarray | None]:
    """Bring a photo to network size; both steps round to 8 bits, as upstream's do.

    Args:
        photo: [H, W, 3] uint8 RGB.
        intrinsics: [3, 3] in pixels of the photo, or None.
        size: see `network_size`.
        method: likewise.

    Returns:
        (image [h, w, 3] uint8 with h and w multiples of 14, intrinsics [3, 3] float32 or None).

    Raises:
        ValueError: another shape or dtype, an unknown method, or a size below 14.
        InputError: the photo is too narrow, or OpenCV is not installed.
    """
    if photo.ndim != 3 or photo.shape[2] != 3 or photo.dtype != np.uint8:
        raise ValueError(f"photo: expected [H, W, 3] uint8, got {photo.shape} {photo.dtype}")
    first, last = network_size(photo.shape[1], photo.shape[0], size, method)
    image, k = _resize(photo, first, None if intrinsics is None else np.array(intrinsics, float))
    if method.endswith("resize"):
        image, k = _resize(image, last, k)
    else:
        image, k = _crop(image, last, k)
    return image, None if k is None else k.astype(np.float32)


def crop_alike(
    images: Sequence[np.ndarray], intrinsics: Sequence[np.ndarray | None]
) -> tuple[np.ndarray, list[np.ndarray | None]]:
    """Cut images of several sizes to the smallest width and height, from the middle.

    Args:
        images: [h, w, 3] each, of `fit_photo`.
        intrinsics: [3, 3] or None each.

    Returns:
        (images [S, h, w, 3], intrinsics).
    """
    smallest = (min(i.shape[1] for i in images), min(i.shape[0] for i in images))
    cut = [_crop(i, smallest, k) for i, k in zip(images, intrinsics, strict=True)]
    return np.stack([image for image, _ in cut]), [k for _, k in cut]


def _resize(
    image: np.ndarray, size: tuple[int, int], k: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray | None]:
    height, width = image.shape[:2]
    if size == (width, height):
        return image, k
    try:
        import cv2
    except ImportError as error:
        raise InputError(
            "photos: OpenCV is needed to resize as upstream does; pip install lite3r_jax[video]"
        ) from error
    grows = size[0] > width or size[1] > height
    how = cv2.INTER_CUBIC if grows else cv2.INTER_AREA
    scale = np.array([size[0] / width, size[1] / height, 1])
    return cv2.resize(image, size, interpolation=how), None if k is None else scale[:, None] * k


def _crop(
    image: np.ndarray, size: tuple[int, int], k: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray | None]:
    left, top = (image.shape[1] - size[0]) // 2, (image.shape[0] - size[1]) // 2
    if k is not None:
        k = k - np.array([[0, 0, left], [0, 0, top], [0, 0, 0]], k.dtype)
    return image[top : top + size[1], left : left + size[0]], k
