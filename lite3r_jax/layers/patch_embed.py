"""Image to patch tokens, and position embeddings for any patch grid."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

# ImageNet statistics, RGB (vggt/models/aggregator.py).
IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)


def normalise(images: jax.Array) -> jax.Array:
    """[..., 3] RGB in [0, 1] -> zero mean and unit deviation over ImageNet."""
    return (images - jnp.asarray(IMAGE_MEAN, images.dtype)) / jnp.asarray(IMAGE_STD, images.dtype)


class PatchEmbed(nnx.Module):
    """Convolution with kernel = stride = patch, written as one matrix product."""

    def __init__(self, patch: int, dim: int, *, dtype: Any, param_dtype: Any, rngs: nnx.Rngs):
        self.patch = patch
        self.dtype = dtype
        init = nnx.initializers.truncated_normal(0.02)
        self.kernel = nnx.Param(init(rngs.params(), (patch, patch, 3, dim), param_dtype))
        self.bias = nnx.Param(jnp.zeros((dim,), param_dtype))

    def __call__(self, images: jax.Array) -> jax.Array:
        """Patches row by row.

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


def resize_pos_embed(pos_embed: jax.Array, grid: tuple[int, int], square: bool) -> jax.Array:
    """Position embedding of a patch grid.

    Keys cubic with a = -0.5 and antialiasing, which is what PyTorch's bicubic with antialias=True
    computes (`interpolate_pos_encoding` in vggt/layers/vision_transformer.py). Always float32.

    Args:
        pos_embed: [1, 1 + M*M, C], class token first.
        grid: (h, w) wanted.
        square: whether the image is square; only then a grid of M*M patches needs no resizing.

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
    resized = jax.image.resize(
        patches.reshape(m, m, c),
        (h, w, c),
        "cubic",
        antialias=True,
        precision=lax.Precision.HIGHEST,
    )
    return jnp.concatenate([cls, resized.reshape(1, h * w, c)], axis=1)
