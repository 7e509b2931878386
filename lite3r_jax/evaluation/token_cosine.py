"""Cosine similarity between the tokens of two models."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

TRUNK = "global/blocks"
"""The tap whose last layer is compared: output of the blocks over all views, which heads read."""


def trunk_tokens(model: Any) -> Callable[[np.ndarray], np.ndarray]:
    """Returns a function from images to the tokens that a model gives to its heads.

    The function is compiled once for each shape of images.

    Args:
        model: a backbone with the tap `TRUNK`.

    Returns:
        Images [S, H, W, 3] float32 in [0, 1] to tokens [S, P, C] float32.
    """
    graph, state = nnx.split(model)

    @jax.jit
    def run(state: Any, images: jax.Array) -> jax.Array:
        return nnx.merge(graph, state)(images, taps=(TRUNK,))[1][TRUNK][-1, 0]

    return lambda images: np.asarray(run(state, jnp.asarray(images[None])))


def mean_cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Computes the mean over tokens of the cosine between [..., C] and [..., C], in float64."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    length = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return float(((a * b).sum(-1) / np.maximum(length, 1e-30)).mean())
