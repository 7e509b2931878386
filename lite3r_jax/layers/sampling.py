"""Bilinear sampling of feature maps, and windows of correlations around points.

Coordinates are (x, y) in pixels of the map with centers at integers: (0, 0) is the center of the
upper left pixel (`align_corners=True`). Positions are constants of differentiation: gradients
reach what is sampled, never where.

`correlation_windows` is what the tracker runs; `dense_correlation_windows` is its definition.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lite3r_jax.errors import InputError

# Values of gathered windows, all levels, in memory together; 2^27 in float32 are 512 MiB.
_WINDOW_VALUES = 2**27

Tap = tuple[jax.Array, jax.Array]


def _taps(position: jax.Array, size: int, outside: str) -> tuple[Tap, Tap]:
    """Returns index and weight of the two pixels around a position on one axis."""
    if size == 1:
        # Upstream rescales by 2 / max(size - 1, 1) to [-1, 1] and by (size - 1) / 2 back: every
        # position on a one-pixel axis becomes 0 and none is outside.
        first = jnp.zeros_like(position, jnp.int32)
        return (first, jnp.ones_like(position)), (first, jnp.zeros_like(position))
    if outside == "border":
        position = jnp.clip(position, 0, size - 1)
    low = jnp.floor(position)

    def tap(index: jax.Array, weight: jax.Array) -> Tap:
        inside = (index >= 0) & (index <= size - 1)
        # Clipped before the conversion, because a far position would overflow int32.
        return jnp.clip(index, 0, size - 1).astype(jnp.int32), jnp.where(inside, weight, 0.0)

    return tap(low, 1 - (position - low)), tap(low + 1, position - low)


def bilinear_sample(
    maps: jax.Array, points: jax.Array, *, outside: Literal["border", "zeros"]
) -> jax.Array:
    """Samples maps at points bilinearly (`bilinear_sampler`, vggt/heads/track_modules/utils.py).

    Without the detour of upstream over normalized coordinates, which only adds rounding.

    Args:
        maps: [B, h, w, C].
        points: [B, Q, 2].
        outside: "border" moves points to the nearest pixel center of the map, "zeros" reads zeros
            beyond the outermost centers; an axis of one pixel is constant in both.

    Returns:
        [B, Q, C] in the dtype of `maps`, interpolated in float32.

    Raises:
        InputError: any other `outside`.
    """
    if outside not in ("border", "zeros"):
        raise InputError(f"bilinear_sample outside={outside!r}: expected 'border' or 'zeros'")
    points = lax.stop_gradient(points.astype(jnp.float32))
    columns = _taps(points[..., 0], maps.shape[2], outside)
    rows = _taps(points[..., 1], maps.shape[1], outside)
    read = jax.vmap(lambda one, y, x: one[y, x])
    total = jnp.zeros((*points.shape[:-1], maps.shape[-1]), jnp.float32)
    for y, weight_y in rows:
        for x, weight_x in columns:
            total += read(maps, y, x).astype(jnp.float32) * (weight_y * weight_x)[..., None]
    return total.astype(maps.dtype)


def halve(maps: jax.Array) -> jax.Array:
    """Halves maps by means of 2x2 cells, [M, h, w, C] -> [M, h // 2, w // 2, C].

    An odd last row or column is dropped, as torch's `avg_pool2d(2, 2)` does.
    """
    m, h, w, c = maps.shape
    cells = maps[:, : h // 2 * 2, : w // 2 * 2].reshape(m, h // 2, 2, w // 2, 2, c)
    return cells.mean(axis=(2, 4), dtype=jnp.float32).astype(maps.dtype)


def pyramid(maps: jax.Array, levels: int) -> tuple[jax.Array, ...]:
    """Returns maps [M, h, w, C] and their successive halves, `levels` in all.

    Raises:
        InputError: a side is shorter than 2^(levels - 1) pixels.
    """
    h, w = maps.shape[1:3]
    least = 2 ** (levels - 1)
    if min(h, w) < least:
        raise InputError(
            f"feature map of {h}x{w}: {levels} pyramid levels need at least {least} pixels on each "
            "side; use larger images or fewer corr_levels"
        )
    result = [maps]
    for _ in range(levels - 1):
        result.append(halve(result[-1]))
    return tuple(result)


def dense_correlation_windows(
    features: jax.Array, levels: tuple[jax.Array, ...], points: jax.Array, radius: int
) -> jax.Array:
    """Samples all correlations of each level, which is the definition of `correlation_windows`.

    As `CorrBlock`, vggt/heads/track_modules/blocks.py. Holds M * N * h * w values at a time.
    """
    m, n, c = features.shape
    step = jnp.arange(-radius, radius + 1, dtype=jnp.float32)
    # Entry (i, j) of a window is at x + (i - r), y + (j - r): the first index moves along x.
    steps = jnp.stack(jnp.meshgrid(step, step, indexing="ij"), axis=-1).reshape(-1, 2)
    windows = []
    for level, maps in enumerate(levels):
        volume = jnp.einsum(
            "mnc,mhwc->mnhw", features.astype(maps.dtype), maps, preferred_element_type=jnp.float32
        )
        at = points[:, :, None] / 2**level + steps  # [M, N, (2r+1)^2, 2]
        volume = volume.reshape(m * n, *maps.shape[1:3], 1) / np.sqrt(c).astype(np.float32)
        sampled = bilinear_sample(volume, at.reshape(m * n, -1, 2), outside="zeros")
        windows.append(sampled.reshape(m, n, -1))
    return jnp.concatenate(windows, axis=-1)


def _pad(maps: jax.Array, window: int) -> jax.Array:
    """Adds the margins that a window may read beyond the map.

    They are zeros on both sides; an axis of one pixel, which has no outside, is repeated to one
    window.
    """
    for axis in (1, 2):
        if maps.shape[axis] == 1:
            maps = jnp.repeat(maps, window, axis)
        else:
            maps = jnp.pad(maps, [(window, window) if a == axis else (0, 0) for a in range(4)])
    return maps


def _window(padded: jax.Array, feature: jax.Array, point: jax.Array, radius: int) -> jax.Array:
    """Correlates the feature of one point with a window of one padded map.

    [hp, wp, C], [C], [2] -> [(2r+1)^2] float32, not yet scaled.
    """
    side = 2 * radius + 2
    low = jnp.floor(point)
    fraction_x, fraction_y = point - low
    # The first pixel read is floor(point) - r, in padded coordinates side more. A window that
    # misses the map stops in the margin, and on a repeated axis the only start is 0.
    last = jnp.array([padded.shape[1] - side, padded.shape[0] - side], jnp.float32)
    x, y = jnp.clip(low - radius + side, 0, last).astype(jnp.int32)
    patch = lax.dynamic_slice(padded, (y, x, 0), (side, side, padded.shape[2]))
    dots = jnp.einsum(
        "yxc,c->yx", patch, feature.astype(padded.dtype), preferred_element_type=jnp.float32
    )
    # All positions of a window share one fraction: interpolate rows, then columns.
    dots = dots[:-1] + fraction_y * (dots[1:] - dots[:-1])
    dots = dots[:, :-1] + fraction_x * (dots[:, 1:] - dots[:, :-1])
    return dots.T.reshape(-1)  # x first


def correlation_windows(
    features: jax.Array, levels: tuple[jax.Array, ...], points: jax.Array, radius: int
) -> jax.Array:
    """Correlates each feature with the maps around its point, on every level of a pyramid.

    dot(feature, map) / sqrt(C), bilinear, zero outside, at x + (i - r), y + (j - r) for the entry
    (i, j) of a window. Equals `dense_correlation_windows`, but takes dot products only with the
    (2r+2)^2 pixels that are read (700 instead of 67 000 per point for 7 levels of 196x259 and
    r = 4), and gathers windows for a bounded number of points at a time, again for the gradient.

    Args:
        features: [M, N, C].
        levels: maps [M, h_l, w_l, C] of `pyramid`.
        points: [M, N, 2] in pixels of level 0.
        radius: r.

    Returns:
        [M, N, levels * (2r+1)^2] float32; no gradient to `points`.
    """
    m, n, c = features.shape
    side = 2 * radius + 2
    points = lax.stop_gradient(points.astype(jnp.float32))
    padded = [_pad(maps, side) for maps in levels]

    # Chunks are cut along the points, which leaves an axis of views free to be sharded.
    @jax.checkpoint
    def one(track: Any) -> jax.Array:
        feature, point = track  # [M, C], [M, 2]
        windows = [
            jax.vmap(_window, (0, 0, 0, None))(maps, feature, point / 2**level, radius)
            for level, maps in enumerate(padded)
        ]
        return jnp.concatenate(windows, axis=-1)

    together = max(1, min(n, _WINDOW_VALUES // (len(levels) * m * side * side * c)))
    tracks = (features.swapaxes(0, 1), points.swapaxes(0, 1))
    windows = lax.map(one, tracks, batch_size=together)
    return windows.swapaxes(0, 1) / np.sqrt(c).astype(np.float32)
