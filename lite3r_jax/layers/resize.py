"""Bilinear resizing with aligned corners, as PyTorch does it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def _taps(size: int, out: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns lower and upper source index, and the upper one's weight, for every output index.

    PyTorch forms source coordinates in float32 as index * ((size - 1) / (out - 1)); doing the same
    keeps the result within rounding on high frequencies.
    """
    step = np.float32(size - 1) / np.float32(out - 1) if out > 1 else np.float32(0)
    source = np.arange(out, dtype=np.float32) * step
    low = np.minimum(source.astype(np.int32), size - 1)
    high = np.minimum(low + 1, size - 1)
    return low, high, source - low


def _along(x: jax.Array, axis: int, out: int) -> jax.Array:
    if x.shape[axis] == out:
        return x
    low, high, weight = _taps(x.shape[axis], out)
    weight = jnp.asarray(weight, x.dtype).reshape([-1 if a == axis else 1 for a in range(x.ndim)])
    lower, upper = (jnp.take(x, index, axis, mode="clip") for index in (low, high))
    return lower * (1 - weight) + upper * weight


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def resize_aligned(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Resizes maps bilinearly, corner pixels on corner pixels (`align_corners=True`).

    The backward pass is two products with matrices: that of a gather would be a scatter, pixel by
    pixel. Differentiable in reverse mode only.

    Args:
        x: [B, h, w, C].
        size: (h', w') wanted.

    Returns:
        [B, h', w', C].
    """
    return _along(_along(x, 1, size[0]), 2, size[1])


def _matrix(size: int, out: int) -> np.ndarray:
    """Returns the weights of input pixels in output pixels along an axis, [out, size] float32."""
    low, high, weight = _taps(size, out)
    matrix = np.zeros((out, size), np.float32)
    np.add.at(matrix, (np.arange(out), low), 1 - weight)
    np.add.at(matrix, (np.arange(out), high), weight)
    return matrix


def _forward(x: jax.Array, size: tuple[int, int]) -> tuple[jax.Array, tuple[int, int]]:
    return resize_aligned(x, size), (x.shape[1], x.shape[2])


def _backward(size: tuple[int, int], kept: tuple[int, int], g: jax.Array) -> tuple[jax.Array]:
    high = lax.Precision.HIGHEST
    if kept[1] != size[1]:
        across = jnp.asarray(_matrix(kept[1], size[1]), g.dtype)
        g = jnp.einsum("ow,bhoc->bhwc", across, g, precision=high)
    if kept[0] != size[0]:
        down = jnp.asarray(_matrix(kept[0], size[0]), g.dtype)
        g = jnp.einsum("oh,bowc->bhwc", down, g, precision=high)
    return (g,)


resize_aligned.defvjp(_forward, _backward)
