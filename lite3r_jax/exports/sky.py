"""Finds the sky in a photo by color, smoothness and place, without a network.

Sky is smooth, blue or pale, reaches the upper border, and is brighter than most of the rest of the
photo. Each of these alone is also true of walls; together they err on the side of leaving sky in:
sky that does not reach the upper border, such as sky between leaves, is not found. How often the
result is right is in docs/reconstruct.md, measured by `python -m tools.benchmark.sky`.
"""

from typing import Any

import numpy as np

from lite3r_jax.scene import Scene

_SMOOTH = 0.02  # largest change of color per pixel, of the range of colors
_AREA = 0.01  # of the photo, at least
_WIDTH = 0.15  # of the upper border, at least
_BRIGHTER = 0.75  # part of the rest of the photo that is darker than the sky
_SIDE = 518  # longer side in pixels for which mean changes are given
_CALM = 0.0035  # mean change per pixel; walls of photos have 0.004 and more, skies 0.001 to 0.002
_DUSK_CALM, _DUSK_WIDTH = 0.0025, 0.5  # a dark sky is calmer still, and wide
_ALIKE = 0.1  # difference of colors within one sky, of the range of colors
_RIM = 3  # pixels around the smooth part that may belong to the sky


def sky_pixels(scene: Scene) -> np.ndarray:
    """Finds the pixels of the sky in all images of a scene.

    Returns:
        bool [S, H, W].
    """
    inside = scene.inside()
    return np.stack([sky(image, inside[s]) for s, image in enumerate(scene.images)])


def sky(image: np.ndarray, inside: np.ndarray | None = None) -> np.ndarray:
    """Finds the pixels of the sky in one upright photo.

    Args:
        image: uint8 [H, W, 3], RGB.
        inside: bool [H, W], pixels of the photo, without added borders; None: all.

    Returns:
        bool [H, W].
    """
    ndimage = _ndimage()
    inside = np.ones(image.shape[:2], bool) if inside is None else inside
    nothing = np.zeros(image.shape[:2], bool)
    if not inside.any():
        return nothing
    # channels first: reductions over three neighbors in memory are slow
    color = np.ascontiguousarray(np.moveaxis(image, -1, 0), np.float32) / 255
    soft = ndimage.uniform_filter(color, (1, 3, 3))
    likely = inside & _sky_colored(soft)
    if _top(likely, inside).any(0).mean() < _WIDTH:
        return nothing
    change = _change(soft)
    label, count = ndimage.label(likely & (change < _SMOOTH))
    area = np.bincount(label.ravel(), minlength=count + 1) / inside.sum()
    top = _top(label, inside)
    parts = []
    for number in np.unique(top[top > 0]):
        if area[number] > 0.2 * _AREA:
            width = float((top == number).any(0).mean())
            part = _Part(label == number, float(area[number]), width)
            part.measure(soft, change * (max(image.shape) / _SIDE), inside)
            parts.append(part)
    skies = [part for part in parts if part.is_sky()]
    if not skies:
        return nothing
    # pieces between masts and roofs
    skies += [p for p in parts if p not in skies and any(p.continues(other) for other in skies)]
    mask = np.any([part.pixels for part in skies], 0)
    mask |= ndimage.binary_fill_holes(mask) & likely  # clouds
    # smoothness is unknown along roofs: the color of the sky nearby tells
    side = 2 * _RIM + 1
    share = ndimage.uniform_filter(mask.astype(np.float32), side)
    nearby = ndimage.uniform_filter(color * mask, (1, side, side))
    alike = np.abs(color * share - nearby).max(0) < _ALIKE * share
    return mask | (inside & alike & (share > 1e-3))


class _Part:
    """A smooth connected region of a photo that reaches its upper border: a candidate for sky."""

    def __init__(self, pixels: np.ndarray, area: float, width: float):
        self.pixels, self.area, self.width = pixels, area, width
        self.calm = np.inf  # mean change per pixel
        self.brighter = self.blue = 0.0
        self.color = np.full(3, np.inf)

    def measure(self, soft: np.ndarray, change: np.ndarray, inside: np.ndarray) -> None:
        deep = _ndimage().binary_erosion(self.pixels, iterations=2)
        if not deep.any():
            return
        self.calm = float(change[deep].mean())
        self.color = np.median(soft[:, deep], 1)
        self.blue = float(self.color[2] - self.color[0])
        rest = soft[:, inside & ~self.pixels].mean(0)
        self.brighter = float((rest < self.color.mean()).mean()) if rest.size else 1.0

    def is_sky(self) -> bool:
        if self.area < _AREA or self.width < _WIDTH:
            return False
        by_day = self.brighter >= _BRIGHTER and self.calm < _CALM
        at_dusk = self.blue >= 0.1 and self.width >= _DUSK_WIDTH and self.calm < _DUSK_CALM
        return by_day or at_dusk

    def continues(self, other: "_Part") -> bool:
        return self.calm < _CALM and bool(np.abs(self.color - other.color).max() < _ALIKE)


def _ndimage() -> Any:
    from scipy import ndimage

    return ndimage


def _change(soft: np.ndarray) -> np.ndarray:
    """Returns the length [H, W] of the color gradient, of the channel where it is largest."""
    padded = np.pad(soft, ((0, 0), (1, 1), (1, 1)), "edge")
    down = padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]
    across = padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]
    return np.sqrt((down * down + across * across).max(0)) / 2


def _sky_colored(soft: np.ndarray) -> np.ndarray:
    """Finds pixels [H, W] that are blue of any brightness, or bright and pale but not yellowish."""
    red, green, blue = soft
    high, low = soft.max(0), soft.min(0)
    is_blue = (blue >= green - 0.02) & (blue >= red + 0.03) & (green >= red - 0.06)
    is_pale = (high - low < 0.16) & (high > 0.6) & (blue >= red - 0.03)
    return is_blue | is_pale


def _top(values: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Returns the values [3, columns] of an array [H, W] in the upper three rows of the photo."""
    columns = np.flatnonzero(inside.any(0))
    rows = inside[:, columns].argmax(0) + np.arange(3)[:, None]
    return values[np.minimum(rows, len(values) - 1), columns]
