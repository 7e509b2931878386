"""Preprocessing of photos to network input, the same for files, Pillow images and arrays.

Every photo takes the same path: `read_image` (anything to an upright 8-bit RGB image), `fit_image`
(to network size, remembering where the photo went) and `stack_images` (one size for all, floats in
[0, 1]). Sizes, rounding and filter follow vggt/utils/load_fn.py, in the modes with a bound
depth_anything_3/utils/io/input_processor.py, with a limit of pixels pi3/utils/basic.py, so equal
pixels give equal tensors. On purpose it differs in three places: EXIF orientation is applied,
transparency of every kind (not only mode RGBA) is composited on white (and never dropped, as by
pi^3), and 16-bit gray keeps its range.
"""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from lite3r_jax.data import bounds
from lite3r_jax.data.bounds import METHODS, PATCH, Method
from lite3r_jax.data.image_file import (
    DECODE_ERRORS,
    check_content,
    damaged,
    head_of,
    open_image,
)
from lite3r_jax.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

    Source = str | os.PathLike[str] | PILImage | np.ndarray | bytes

Mode = Literal["crop", "pad", "square", "pixel_limit", Method]

MAX_PIXELS = 64_000_000  # default limit of one photo
MAX_SIDE = 16384  # of a network image, which a long, low photo would exceed in a lower_bound mode
MAX_CANVAS = 4 * MAX_PIXELS  # limit of what a fit may need in between

_ORIENTATION_TAG = 0x0112
# EXIF orientation to the name of the Pillow transposition that makes it upright; 1 is upright.
_UPRIGHT = {
    2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE", 6: "ROTATE_270", 7: "TRANSVERSE", 8: "ROTATE_90",
}  # fmt: skip
_MAX_WORKERS = 8  # a photo of 64 Mpx is up to 0.5 GB while it is converted
_shared_lock = threading.Lock()  # a Pillow image decodes itself on first use, and may come twice


@dataclass(frozen=True, eq=False)
class FittedImage:
    """One photo at network size, and the box of the whole photo in it.

    Attributes:
        pixels: uint8 [H, W, 3], RGB.
        box: (x1, y1, x2, y2), the edges of the whole upright photo in `pixels`; outside of them
            where the photo was cropped. Measured from the outer corner of the first pixel, so
            that the pixel whose center a camera calls (0, 0) covers 0..1.
        source_size: (width, height) of the upright photo in pixels.
    """

    pixels: np.ndarray
    box: tuple[float, float, float, float]
    source_size: tuple[int, int]


def load_images(
    sources: "Sequence[Source]",
    mode: Mode = "crop",
    size: int = 518,
    max_pixels: int = MAX_PIXELS,
) -> np.ndarray:
    """Read photos and bring them to network size, as the model expects them.

    Args:
        sources: paths, Pillow images, arrays (uint8, uint16 or float in [0, 1]; [H, W],
            [H, W, 1], [H, W, 3], or [H, W, 4] with alpha last) or the bytes of image files. The
            first is the reference view.
        mode: see `fit_image`.
        size: network size in pixels, a multiple of 14.
        max_pixels: photos with more pixels are refused before they are decoded.

    Returns:
        float32 [S, H, W, 3] in [0, 1], RGB; every value is a multiple of 1/255. Photos that end up
        with different sizes are centered on white, at the largest height and width among them; in
        the modes with a bound they are cut from the middle to the smallest.

    Raises:
        InputError: naming the photo, for what cannot be read or has no defined meaning.
    """
    return load_images_with_boxes(sources, mode, size, max_pixels)[0]


def load_images_with_boxes(
    sources: "Sequence[Source]",
    mode: Mode = "square",
    size: int = 1024,
    max_pixels: int = MAX_PIXELS,
) -> tuple[np.ndarray, np.ndarray]:
    """Does what `load_images` does, and also returns the box of each photo in the result.

    Args:
        sources: as for `load_images`, and so are `mode`, `size` and `max_pixels`.
        mode: the default is that of load_and_preprocess_images_square.
        size: likewise.
        max_pixels: likewise.

    Returns:
        (images as from `load_images`, float32 [S, 6] with rows (x1, y1, x2, y2, width, height)):
        the edges of the whole photo in the network image (see `FittedImage.box`) and the size of
        the photo. Its point (x, y) went to x1 + x * (x2 - x1) / width, y1 + y * (y2 - y1) / height.

    Raises:
        InputError: as `load_images`.
    """
    if isinstance(sources, str | os.PathLike) or not isinstance(sources, Sequence):
        raise InputError(
            "images: expected a list of paths, Pillow images or arrays, got one"
            f" {type(sources).__name__}; put it in a list (a batch of arrays: list(batch))"
        )
    names = [_name(source, i) for i, source in enumerate(sources)]
    readers = [
        (name, partial(read_image, source, name, max_pixels))
        for source, name in zip(sources, names, strict=True)
    ]
    return read_and_stack(readers, mode, size)


def read_and_stack(
    readers: "Sequence[tuple[str, Callable[[], PILImage]]]",
    mode: Mode,
    size: int,
    workers: int | None = None,
    progress: Callable[[], object] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Reads and fits photos in parallel threads, and stacks the results.

    Pillow decodes and resizes without the interpreter lock. Each worker holds one decoded photo at
    a time. The result, and the error where photos are bad, are the same as with one worker: the
    first bad photo in order is named.

    Args:
        readers: for each photo, what messages call it and a function as `read_image`.
        mode: see `fit_image`, and so is `size`.
        size: likewise.
        workers: number of threads; None: one for each core, at most 8.
        progress: called after each photo, in the calling thread.

    Returns:
        As `stack_images`.

    Raises:
        InputError: as `read_image`, `fit_image` and `stack_images`; fewer than one worker.
    """
    if workers is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        workers = min(_MAX_WORKERS, cores or 1)
    if workers < 1:
        raise InputError(f"workers: expected at least one, got {workers}")

    def fit(
        reader: "tuple[str, Callable[[], PILImage]]", same: FittedImage | None = None
    ) -> FittedImage:
        name, read = reader
        return fit_image(read(), mode, size, name, same)

    pool, fitted = ThreadPoolExecutor(workers, "photo"), []
    first, rest = 0, readers
    if mode == "pixel_limit":  # the first photo has the size of all
        first, rest = 1, readers[1:]
    try:
        for reader in readers[:first]:
            fitted.append(fit(reader))
            if progress is not None:
                progress()
        like = fitted[0] if fitted else None
        for image in pool.map(partial(fit, same=like), rest):
            fitted.append(image)
            if progress is not None:
                progress()
    finally:
        pool.shutdown(cancel_futures=True)
    return stack_images(fitted, cut=mode in METHODS)


def read_image(source: "Source", name: str = "image", max_pixels: int = MAX_PIXELS) -> "PILImage":
    """Turn any accepted source into an upright 8-bit RGB Pillow image.

    A file's type is read from its content, not from its name; of animations and multi-page files
    the first page counts. EXIF orientation is applied and transparency composited on white.
    Palette, CMYK, YCbCr and 1-bit images are converted by Pillow, without color profiles. 16-bit
    gray and uint16 arrays become round(v / 257); color files with 16 bits are decoded to 8 bits by
    Pillow. Integer and floating-point images with 32 bits have no defined range and are refused.
    HEIC is read where pi_heif or pillow_heif is installed, portable pixmaps in binary form only.
    The result carries no metadata, so that nobody turns it a second time.

    Args:
        source: a path, a Pillow image, an array or the bytes of a file, see `load_images`.
        name: what messages call it.
        max_pixels: limit of width * height.

    Raises:
        InputError: naming the photo, for what cannot be read or has no defined meaning.
    """
    from PIL import Image

    if isinstance(source, Image.Image):
        with _shared_lock:
            return _to_rgb(source, name, max_pixels)
    if isinstance(source, np.ndarray):
        return _to_rgb(_array_to_image(source, name), name, max_pixels)
    if isinstance(source, str | os.PathLike | bytes):
        head = head_of(source, name)
        check_content(source, head, name)
        with open_image(source, head, name) as image:
            return _to_rgb(image, name, max_pixels)
    raise InputError(
        f"{name}: expected a path, a Pillow image or an array, got {type(source).__name__}"
    )


def upright_format(path: str | os.PathLike[str], name: str = "image") -> str | None:
    """Returns the format of a file that stores just the pixels `read_image` gives, else None.

    Returns:
        "JPEG" or "PNG" for one upright picture with 8 bits per channel, RGB or gray; else None.

    Raises:
        InputError: as `read_image`, as far as the head of the file tells.
    """
    head = head_of(path, name)
    with open_image(path, head, name) as image:
        # a JPEG file with a second picture behind the first, as phones write them, is MPO to Pillow
        kind = "JPEG" if image.format == "MPO" else image.format
        if kind not in ("JPEG", "PNG") or image.mode not in ("RGB", "L"):
            return None
        if kind == "PNG" and (head[24] != 8 or getattr(image, "is_animated", False)):
            return None  # byte 24 is the bit depth in IHDR; Pillow gives RGB for 16 bits too
        try:
            turned = image.getexif().get(_ORIENTATION_TAG, 1) in _UPRIGHT
        except DECODE_ERRORS as error:
            raise damaged(name, error) from error
        return None if turned or image.has_transparency_data else kind


def upright_size(source: "Source", name: str = "image") -> tuple[int, int]:
    """Returns (width, height) of what `read_image` makes of a source, without decoding it.

    Raises:
        InputError: as `read_image`, as far as the head of a file tells.
    """
    from PIL import Image

    if isinstance(source, np.ndarray):
        return source.shape[1], source.shape[0]
    if isinstance(source, Image.Image):
        return _turned_size(source, name)
    with open_image(source, head_of(source, name), name) as image:
        return _turned_size(image, name)


def _turned_size(image: "PILImage", name: str) -> tuple[int, int]:
    try:
        turned = image.getexif().get(_ORIENTATION_TAG, 1)
    except DECODE_ERRORS as error:
        raise damaged(name, error) from error
    width, height = image.size
    return (height, width) if turned in (5, 6, 7, 8) else (width, height)


def fit_image(
    image: "PILImage",
    mode: Mode = "crop",
    size: int = 518,
    name: str = "image",
    same: FittedImage | None = None,
) -> FittedImage:
    """Resizes, crops or pads one upright RGB image to network size.

    The first three modes use Pillow's antialiased bicubic filter. Source:
    load_and_preprocess_images and load_and_preprocess_images_square of vggt/utils/load_fn.py.

    Args:
        image: mode RGB.
        mode: crop: width becomes `size`, height follows, rounded to a multiple of 14 (halves to
            even); if it exceeds `size`, the middle rows are kept. Width is never cropped.
            pad: the longer side becomes `size`, the other follows, rounded likewise; white borders
            make it size x size.
            square: black borders make it square, then it is resized to size x size.
            upper_bound_resize, upper_bound_crop: the longer side becomes `size`, the shorter in the
            lower_bound ones; then see `bounds.network_size`.
            pixel_limit: stretched, by Pillow's Lanczos filter, to the size of the first photo of
            the scene: the one of its shape with at most `size` pixels, sides multiples of 14; see
            `bounds.pixel_limit_size`.
        size: in pixels, a multiple of 14; with a bound any number from 14 on; of pixel_limit the
            number of pixels, from 196 on.
        name: what messages call it.
        same: in mode pixel_limit the first photo of the scene; None if this is it.

    Raises:
        InputError: an unknown mode or size; a photo too small or too narrow; no OpenCV for a mode
            with a bound.
    """
    if mode not in get_args(Mode):
        raise InputError(f"mode: expected one of {', '.join(get_args(Mode))}, got {mode!r}")
    if mode == "pixel_limit":
        return _fit_pixels(image, size, same)
    if isinstance(size, int) and size > MAX_SIDE:
        raise InputError(f"size: expected at most {MAX_SIDE} pixels in mode {mode}, got {size}")
    if not isinstance(size, int) or size < PATCH or (size % PATCH and mode not in METHODS):
        raise InputError(f"size: expected a positive multiple of {PATCH} pixels, got {size}")
    width, height = image.size
    if min(width, height) < PATCH:
        raise InputError(f"{name}: {width}x{height} pixels; both sides need at least {PATCH}")
    if mode == "square":
        return _fit_square(image, size, name)
    if mode not in ("crop", "pad"):
        return _fit_bounds(image, mode, size, name)
    return _fit_patches(image, mode, size, name)


def stack_images(fitted: Sequence[FittedImage], cut: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Stacks fitted photos; those of other sizes are centered on white, or cropped.

    White borders of an odd number of pixels are wider below and on the right.

    Args:
        fitted: results of `fit_image`.
        cut: whether photos of other sizes are cut from the middle instead, to the smallest width
            and height among them.

    Returns:
        (images float32 [S, H, W, 3] in [0, 1], boxes float32 [S, 6]), see `load_images_with_boxes`.

    Raises:
        InputError: there are no photos.
    """
    if not fitted:
        raise InputError("images: got none; at least one photo is needed")
    extreme = min if cut else max
    height = extreme(image.pixels.shape[0] for image in fitted)
    width = extreme(image.pixels.shape[1] for image in fitted)
    images = np.ones((len(fitted), height, width, 3), np.float32)
    boxes = np.empty((len(fitted), 6), np.float32)
    for s, image in enumerate(fitted):
        pixels = image.pixels
        h, w = pixels.shape[:2]
        if cut:
            x, y = bounds.middle((w, h), (width, height))
            pixels, left, top = pixels[y : y + height, x : x + width], -x, -y
            images[s] = pixels / np.float32(255)
        else:
            top, left = (height - h) // 2, (width - w) // 2
            images[s, top : top + h, left : left + w] = pixels / np.float32(255)
        x1, y1, x2, y2 = image.box
        boxes[s] = x1 + left, y1 + top, x2 + left, y2 + top, *image.source_size
    return images, boxes


def _name(source: "Source", index: int) -> str:
    return os.fspath(source) if isinstance(source, str | os.PathLike) else f"image {index}"


def _to_rgb(image: "PILImage", name: str, max_pixels: int) -> "PILImage":
    from PIL import Image

    width, height = image.size
    if width * height > max_pixels:
        raise InputError(
            f"{name}: {width}x{height} is {width * height / 1e6:.1f} Mpx, the limit is"
            f" {max_pixels / 1e6:.1f} Mpx; scale it down or raise max_pixels"
        )
    # Pillow reads 16-bit PGM as mode I, scaled to 0..65535
    if image.mode == "F" or (image.mode == "I" and image.format != "PPM"):
        raise InputError(
            f"{name}: 32-bit pixels (mode {image.mode}) have no defined range;"
            " save it with 8 or 16 bits per channel"
        )
    try:
        image.load()
        upright = _UPRIGHT.get(image.getexif().get(_ORIENTATION_TAG, 1))
        if upright is not None:
            image = image.transpose(Image.Transpose[upright])
        if image.mode == "I" or image.mode.startswith("I;16"):
            image = Image.fromarray(_to_uint8(np.asarray(image)))
        if image.has_transparency_data:
            layer = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
        rgb = image.convert("RGB")
        rgb.info = {}  # an orientation left in there would be applied again
        return rgb
    except DECODE_ERRORS as error:
        raise damaged(name, error) from error


def _array_to_image(array: np.ndarray, name: str) -> "PILImage":
    from PIL import Image

    channels = array.shape[2] if array.ndim == 3 else 1
    if array.ndim not in (2, 3) or channels not in (1, 3, 4) or array.size == 0:
        raise InputError(
            f"{name}: expected an array [H, W] or [H, W, 1, 3 or 4], got {list(array.shape)}"
        )
    if array.ndim == 3 and channels == 1:
        array = array[:, :, 0]
    if np.issubdtype(array.dtype, np.floating):
        if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            raise InputError(
                f"{name}: floating-point values must be finite and in [0, 1]; scale them"
            )
        array = np.rint(array.astype(np.float32) * 255).astype(np.uint8)
    elif array.dtype == np.uint16:
        array = _to_uint8(array)
    elif array.dtype != np.uint8:
        raise InputError(
            f"{name}: expected uint8, uint16 or floating-point values, got {array.dtype}"
        )
    return Image.fromarray(np.ascontiguousarray(array))


def _to_uint8(values: np.ndarray) -> np.ndarray:
    """Scales values of 0..65535 to 0..255 by round(v / 257), which sends 257 * k to k."""
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _fit_patches(image: "PILImage", mode: Mode, size: int, name: str) -> FittedImage:
    from PIL import Image

    width, height = image.size
    # the order of the operations decides how ties round; it is load_fn.py's
    if mode == "pad" and height > width:
        new_width, new_height = round(width * (size / height) / PATCH) * PATCH, size
    else:
        new_width, new_height = size, round(height * (size / width) / PATCH) * PATCH
    if min(new_width, new_height) == 0 or new_width * new_height > MAX_CANVAS:
        raise InputError(
            f"{name}: {width}x{height} is too narrow for mode {mode} at size {size}; crop it first"
        )
    resized = np.asarray(image.resize((new_width, new_height), Image.Resampling.BICUBIC))
    if mode == "crop":
        top = max(0, (new_height - size) // 2)
        box = (0, -top, new_width, new_height - top)
        return FittedImage(resized[top : top + size], box, image.size)
    left, top = (size - new_width) // 2, (size - new_height) // 2
    pixels = np.full((size, size, 3), 255, np.uint8)
    pixels[top : top + new_height, left : left + new_width] = resized
    return FittedImage(pixels, (left, top, left + new_width, top + new_height), image.size)


def _fit_bounds(image: "PILImage", method: Method, size: int, name: str) -> FittedImage:
    first, last = bounds.network_size(*image.size, size, method, name)
    if first[0] * first[1] > MAX_CANVAS or max(first) > MAX_SIDE:
        raise InputError(
            f"{name}: {image.width}x{image.height} is too narrow for mode {method} at size {size};"
            " crop it first"
        )
    pixels, box = bounds.fit_bounds(np.asarray(image), first, last, method)
    return FittedImage(pixels, box, image.size)


def _fit_pixels(image: "PILImage", limit: int, same: FittedImage | None) -> FittedImage:
    from PIL import Image

    if not isinstance(limit, int) or not PATCH**2 <= limit <= MAX_CANVAS:
        raise InputError(
            f"size: expected {PATCH**2} to {MAX_CANVAS} pixels in mode pixel_limit, got {limit}"
        )
    if same is None:
        target = bounds.pixel_limit_size(*image.size, limit)
    else:
        target = (same.pixels.shape[1], same.pixels.shape[0])
    pixels = np.asarray(image.resize(target, Image.Resampling.LANCZOS))
    width, height = target
    return FittedImage(pixels, (0, 0, width, height), image.size)


def _fit_square(image: "PILImage", size: int, name: str) -> FittedImage:
    from PIL import Image

    width, height = image.size
    side = max(width, height)
    if side * side > MAX_CANVAS:
        raise InputError(
            f"{name}: {width}x{height} is too long for mode square; crop it or scale it down"
        )
    left, top = (side - width) // 2, (side - height) // 2
    canvas = Image.new("RGB", (side, side), "black")
    canvas.paste(image, (left, top))
    pixels = np.asarray(canvas.resize((size, size), Image.Resampling.BICUBIC))
    scale = size / side
    box = (left * scale, top * scale, (left + width) * scale, (top + height) * scale)
    return FittedImage(pixels, box, image.size)
