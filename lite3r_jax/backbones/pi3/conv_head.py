"""The convolutional head of Pi3X, from features of patches to outputs of pixels.

Source: pi3/models/layers/conv_head.py, after MoGe (arXiv 2410.19115).
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lite3r_jax.backbones.pi3.config import ConvHeadSizes
from lite3r_jax.layers.dpt import Upsample, uv_axes

GROUP = 32
"""Number of channels in a group of the inner norm of a residual unit."""


class ConvHead(nnx.Module):
    """Three stages that double the size, a resize to pixels, and a small block for every output.

    In front of every stage and of the outputs two channels with the position of the pixel are
    appended. All of it is float32.
    """

    def __init__(self, dim: int, outputs: Sequence[int], sizes: ConvHeadSizes, **kinds: Any):
        """Builds the head with random weights.

        Args:
            dim: channels of the features.
            outputs: channels of every output.
            sizes: see `ConvHeadSizes`.
            **kinds: param_dtype and rngs.
        """
        into = (dim, *sizes.stages[:-1])
        self.stages = nnx.List(
            [Stage(a, b, sizes.units, **kinds) for a, b in zip(into, sizes.stages, strict=True)]
        )
        self.outputs = nnx.List(
            [Output(sizes.stages[-1] + 2, sizes.last, count, **kinds) for count in outputs]
        )

    def __call__(self, x: jax.Array, grid: tuple[int, int], patch: int) -> jax.Array:
        """Computes all outputs of every pixel from features of patches.

        Args:
            x: [n, h*w, C] features of patches.
            grid: (h, w).
            patch: size of a patch.

        Returns:
            [n, H, W, all outputs] float32, one output after the other.
        """
        aspect = grid[1] / grid[0]
        x = x.astype(jnp.float32).reshape(len(x), *grid, -1)
        for stage in self.stages:
            x = stage(with_places(x, aspect))
        size = (len(x), grid[0] * patch, grid[1] * patch, x.shape[-1])
        x = with_places(jax.image.resize(x, size, "linear", antialias=False), aspect)
        return jnp.concatenate([output(x) for output in self.outputs], -1)

    def operations(self, grid: tuple[int, int], patch: int, frames: int) -> Counter[str]:
        """Counts the operations of the head for `frames` frames."""
        (h, w), work = grid, 0
        for stage in self.stages:
            h, w = 2 * h, 2 * w
            work += h * w * stage.products
        pixels = grid[0] * grid[1] * patch**2
        work += pixels * sum(output.products for output in self.outputs)
        return Counter(layers=2 * frames * work)


def with_places(x: jax.Array, aspect: float) -> jax.Array:
    """Appends to x [n, h, w, C] two channels: (x, y) of pixels where half the diagonal is 1."""
    n, h, w, _ = x.shape
    across, down = (jnp.asarray(axis, x.dtype) for axis in uv_axes(w, h, aspect))
    places = jnp.stack(jnp.broadcast_arrays(across, down[:, None]), -1)
    return jnp.concatenate([x, jnp.broadcast_to(places, (n, h, w, 2))], -1)


class Conv(nnx.Module):
    """A 3 x 3 convolution that repeats the pixels of the edge.

    Attributes:
        products: multiply-adds of a pixel.
    """

    def __init__(self, dim: int, out: int, **kinds: Any):
        """Builds a convolution from `dim` to `out` channels; `kinds` are param_dtype and rngs."""
        self.conv = nnx.Conv(dim, out, (3, 3), padding="VALID", **kinds)
        self.products = 9 * dim * out

    def __call__(self, x: jax.Array) -> jax.Array:
        """Convolves x [n, h, w, dim]; returns [n, h, w, out]."""
        return self.conv(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge"))


class Unit(nnx.Module):
    """A residual unit of two convolutions, twice as wide within.

    It computes x + conv(relu(norm(conv(relu(norm(x)))))).
    """

    def __init__(self, dim: int, **kinds: Any):
        """Builds the unit for `dim` channels; `kinds` are param_dtype and rngs."""
        norm = {"epsilon": 1e-5, "use_fast_variance": False, **kinds}
        self.norm1 = nnx.GroupNorm(dim, num_groups=1, **norm)
        self.conv1 = Conv(dim, 2 * dim, **kinds)
        self.norm2 = nnx.GroupNorm(2 * dim, num_groups=2 * dim // GROUP, **norm)
        self.conv2 = Conv(2 * dim, dim, **kinds)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the unit to x [n, h, w, C]; returns [n, h, w, C]."""
        y = self.conv1(nnx.relu(self.norm1(x)))
        return x + self.conv2(nnx.relu(self.norm2(y)))

    @property
    def products(self) -> int:
        """Number of multiply-adds per pixel."""
        return self.conv1.products + self.conv2.products


class Stage(nnx.Module):
    """A stage that doubles height and width, then applies a convolution and residual units."""

    def __init__(self, dim: int, out: int, units: int, **kinds: Any):
        """Builds a stage from `dim` to `out` channels with `units` residual units.

        `dim` does not count the two channels of positions; `kinds` are param_dtype and rngs.
        """
        self.up = Upsample(dim + 2, 2, out, dtype=jnp.float32, **kinds)
        self.mix = Conv(out, out, **kinds)
        self.units = nnx.List([Unit(out, **kinds) for _ in range(units)])

    def __call__(self, x: jax.Array) -> jax.Array:
        """Upsamples x [n, h, w, dim + 2]; returns [n, 2h, 2w, out]."""
        x = self.mix(self.up(x))
        for unit in self.units:
            x = unit(x)
        return x

    @property
    def products(self) -> int:
        """Number of multiply-adds per pixel of the output."""
        dim, *_, out = self.up.kernel.shape
        return dim * out + self.mix.products + sum(unit.products for unit in self.units)


class Output(nnx.Module):
    """A small block that computes one output of pixels from their features.

    Attributes:
        products: multiply-adds of a pixel.
    """

    def __init__(self, dim: int, hidden: int, outputs: int, **kinds: Any):
        """Builds a block from `dim` over `hidden` to `outputs` channels.

        `kinds` are param_dtype and rngs.
        """
        self.conv = Conv(dim, hidden, **kinds)
        self.out = nnx.Linear(hidden, outputs, **kinds)
        self.products = self.conv.products + hidden * outputs

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps features of pixels [n, H, W, dim] to an output [n, H, W, outputs]."""
        return self.out(nnx.relu(self.conv(x)))
