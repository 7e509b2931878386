"""Photographs as textures of synthetic surfaces, and how their colors are looked up.

scikit-image ships them under licenses that allow any use (its `data` module names each: public
domain or CC0). Each becomes a square of `SIDE` pixels and a pyramid of halved copies of it, between
which colors are interpolated, so that one sample a pixel suffices as for other textures.
"""

import functools
import hashlib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from lite3r_jax.errors import InputError

Array = Any  # of the module xp

SIDE = 256
LEVELS = 7
"""Number of levels of a pyramid, with sides of 256 down to 4 pixels."""
_SHA256 = {
    "astronaut.png": "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
    "chelsea.png": "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb",
    "coffee.png": "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7",
    "brick.png": "7966caf324f6ba843118d98f7a07746d22f6a343430add0233eca5f6eaaa8fcf",
    "gravel.png": "c48615b451bf1e606fbd72c0aa9f8cc0f068ab7111ef7d93bb9b0f2586440c12",
    "rocket.jpg": "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c",
    "camera.png": "b0793d2adda0fa6ae899c03989482bff9a42d3d5690fc7e3648f2795d730c23a",
    "grass.png": "b6b6022426b38936c43a4ac09635cd78af074e90f42ffa8227ac8b7452d39f89",
    "ihc.png": "f8dd1aa387ddd1f49d8ad13b50921b237df8e9b262606d258770687b0ef93cef",
    "hubble_deep_field.jpg": "3a19c5dd8a927a9334bb1229a6d63711b1c0c767fb27e2286e7c84a3e2c2f5f4",
}
TRAINING = ("astronaut.png", "chelsea.png", "coffee.png", "brick.png", "gravel.png")
"""Photographs that training shows."""
HELD_OUT = ("rocket.jpg", "camera.png", "grass.png", "ihc.png", "hubble_deep_field.jpg")
"""As many photographs that training never shows."""


@functools.cache
def pyramids(names: tuple[str, ...]) -> np.ndarray:
    """Returns image pyramids of photographs: uint8 [P, sum of the levels' pixels, 3].

    Pixels of a level stand row by row, levels from the largest to the smallest.

    Args:
        names: files of scikit-image's folder of data.

    Raises:
        InputError: scikit-image is not there, or has other pictures under these names: a seed of
            the generated world names the same scene for ever.
    """
    try:
        from skimage import data_dir
    except ImportError as error:
        raise InputError(
            "synthetic: splits with photographs need scikit-image; pip install 'lite3r_jax[demo]'"
        ) from error
    made = []
    for name in names:
        path = Path(data_dir) / name
        data = path.read_bytes() if path.is_file() else b""
        if hashlib.sha256(data).hexdigest() != _SHA256[name]:
            raise InputError(
                f"{path}: not the photograph that the splits of the generated world were made of;"
                " install scikit-image 0.26"
            )
        made.append(_pyramid(path))
    return np.stack(made)


def _pyramid(path: Path) -> np.ndarray:
    """Returns the pyramid of a photograph's largest centered square: uint8 [pixels, 3]."""
    from PIL import Image

    with Image.open(path) as file:
        picture = file.convert("RGB")
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    picture = picture.resize(
        (SIDE, SIDE), Image.Resampling.BOX, (left, top, left + side, top + side)
    )
    level, parts = np.asarray(picture, np.float64), []
    for _ in range(LEVELS):
        parts.append(np.rint(level).astype(np.uint8).reshape(-1, 3))
        level = level.reshape(len(level) // 2, 2, -1, 2, 3).mean((1, 3))
    return np.concatenate(parts)


def look_up(
    xp: ModuleType, photographs: Array, number: Array, x: Array, y: Array, width: Array
) -> list[Array]:
    """Returns red, green and blue of points on photographs, each [...] in [0, 1].

    Beyond its edges a photograph goes on as its mirror image.

    Args:
        xp: numpy or jax.numpy.
        photographs: result of `pyramids`, [P, ..., 3].
        number: integer [...], which photograph.
        x: [...] from left to right; the photograph is 1 wide.
        y: [...] from above to below.
        width: [...] of a pixel of the picture, in the same unit.
    """
    level = xp.clip(xp.log2(xp.maximum(width * SIDE, 1)), 0, LEVELS - 1)
    fine = xp.minimum(xp.floor(level), LEVELS - 2)
    at = fine.astype(xp.int32)
    x, y = (1 - xp.abs(1 - (t - 2 * xp.floor(0.5 * t))) for t in (x, y))
    low = _bilinear(xp, photographs, number, at, x, y)
    high = _bilinear(xp, photographs, number, at + 1, x, y)
    part = level - fine
    return [a + (b - a) * part for a, b in zip(low, high, strict=True)]


def _bilinear(
    xp: ModuleType, photographs: Array, number: Array, level: Array, x: Array, y: Array
) -> list[Array]:
    side = SIDE >> level
    first = (SIDE * SIDE - side * side) // 3 * 4  # pixels of the levels before
    x, y = (xp.clip(t * side - 0.5, 0, side - 1) for t in (x, y))
    left, top = (xp.minimum(xp.floor(t), side - 2) for t in (x, y))
    a, b = x - left, y - top
    at = first + top.astype(xp.int32) * side + left.astype(xp.int32)
    color = 0
    for row, weight in ((0, 1 - b), (1, b)):
        for column, share in ((0, 1 - a), (1, a)):
            texel = photographs[number, at + row * side + column].astype(x.dtype)
            color = color + (weight * share * (1 / 255))[..., None] * texel
    return [color[..., channel] for channel in range(3)]
