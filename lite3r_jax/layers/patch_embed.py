"""Embeds images as patch tokens, and resizes position embeddings to any patch grid."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

# ImageNet statistics, RGB (vggt/models/aggregator.py).
IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)

Resampling = Literal["antialias", "offset"]


def normalize(images: jax.Array) -> jax.Array:
    """Normalizes RGB [..., 3] in [0, 1] to zero mean and unit deviation over ImageNet."""
    return (images - jnp.asarray(IMAGE_MEAN, images.dtype)) / jnp.asarray(IMAGE_STD, images.dtype)


class PatchEmbed(nnx.Module):
    """Patch embedding: convolution with kernel = stride = patch, written as one matrix product."""

    def __init__(self, patch: int, dim: int, *, dtype: Any, param_dtype: Any, rngs: nnx.Rngs):
        self.patch = patch
        self.dtype = dtype
        init = nnx.initializers.truncated_normal(0.02)
        self.kernel = nnx.Param(init(rngs.params(), (patch, patch, 3, dim), param_dtype))
        self.bias = nnx.Param(jnp.zeros((dim,), param_dtype))

    def __call__(self, images: jax.Array) -> jax.Array:
        """Embeds the patches of images as tokens, row by row.

        Args:
            images: [B, H, W, 3], H and W multiples of the patch size.

        Returns:
            [B, h*w, C] in the compute dtype.
        """
        b, height, width, _ = images.shape
        p = self.patch
        h, w = height // p, width // p
        x = images.reshape(b, h, p, w, p, 3).transpose(0, 1, 3, 2, 4, 5).reshape(b, h * w, -1)
        kernel = self.kernel[...].reshape(-1, self.kernel.shape[-1]).astype(self.dtype)
        return x.astype(self.dtype) @ kernel + self.bias[...].astype(self.dtype)


def resize_pos_embed(
    pos_embed: jax.Array,
    grid: tuple[int, int],
    square: bool,
    resampling: Resampling = "antialias",
) -> jax.Array:
    """Resizes a position embedding to a patch grid, always in float32.

    "antialias": Keys cubic with a = -0.5 and antialiasing, which is what PyTorch's bicubic with
    antialias=True computes (`interpolate_pos_encoding` in vggt/layers/vision_transformer.py).

    "offset": Keys cubic with a = -0.75, without antialiasing, border repeated, and coordinates
    scaled by (n + 0.1) / M instead of n / M (the same function in
    depth_anything_3/model/dinov2/vision_transformer.py, as DINOv2 has it without registers).

    Args:
        pos_embed: [1, 1 + M*M, C], class token first.
        grid: (h, w) wanted.
        square: whether the image is square; only then a grid of M*M patches needs no resizing.
        resampling: see above.

    Returns:
        [1, 1 + h*w, C] float32.
    """
    pos_embed = pos_embed.astype(jnp.float32)
    cls, patches = pos_embed[:, :1], pos_embed[:, 1:]
    m = round(patches.shape[1] ** 0.5)
    h, w = grid
    if square and h * w == m * m:
        return pos_embed
    c = patches.shape[-1]
    table = patches.reshape(m, m, c)
    if resampling == "antialias":
        resized = jax.image.resize(
            table, (h, w, c), "cubic", antialias=True, precision=lax.Precision.HIGHEST
        )
    else:
        down, across = _cubic_weights(m, h), _cubic_weights(m, w)
        resized = jnp.einsum("hy,yxc,wx->hwc", down, table, across, precision=lax.Precision.HIGHEST)
    return jnp.concatenate([cls, resized.reshape(1, h * w, c)], axis=1)


def _cubic_weights(size: int, out: int, a: float = -0.75, offset: float = 0.1) -> np.ndarray:
    """Returns weights [out, size] float32 of cubic interpolation, see `resize_pos_embed`."""
    source = (np.arange(out) + 0.5) * size / (out + offset) - 0.5
    first = np.floor(source).astype(int)
    weights = np.zeros((out, size))
    for tap in range(-1, 3):
        t = np.abs(source - (first + tap))
        near = ((a + 2) * t - (a + 3)) * t * t + 1
        far = a * (((t - 5) * t + 8) * t - 4)
        value = np.where(t <= 1, near, far)
        np.add.at(weights, (np.arange(out), np.clip(first + tap, 0, size - 1)), value)
    return weights.astype(np.float32)
