"""Dense prediction transformer head: four levels of tokens to a map at image resolution.

Source: vggt/heads/dpt_head.py, after Ranftl et al., arXiv 2103.13413.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lite3r_jax.layers.cpu_gradients import conv_general_dilated, dot_general
from lite3r_jax.layers.norm import layer_norm
from lite3r_jax.layers.resize import resize_aligned

_PAD = ((1, 1), (1, 1))


def uv_axes(width: int, height: int, aspect: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns the pixel centers of a map on the image's rectangle, whose half diagonal is 1.

    Args:
        width: width of the map.
        height: height of the map.
        aspect: image width over image height.

    Returns:
        (x [width], y [height]) float64, symmetric about 0.
    """
    diagonal = np.hypot(aspect, 1.0)

    def axis(count: int, span: float) -> np.ndarray:
        return (
            np.linspace(-1, 1, count) * (span * (count - 1) / count) if count > 1 else np.zeros(1)
        )

    return axis(width, aspect / diagonal), axis(height, 1.0 / diagonal)


def waves(position: np.ndarray, channels: int, base: float = 100.0) -> np.ndarray:
    """Returns the sinusoidal embedding of one coordinate, sines first (vggt/heads/utils.py).

    Args:
        position: [n] float64.
        channels: c, even.
        base: frequencies are base^(-2k / c), k = 0 .. c/2 - 1.

    Returns:
        [n, c] float32, computed in float64.
    """
    half = channels // 2
    angle = position[:, None] * base ** (-np.arange(half, dtype=np.float64) / half)
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=-1).astype(np.float32)


def add_uv_embedding(x: jax.Array, aspect: float, factor: float = 0.1) -> jax.Array:
    """Adds the position embedding of a map, in float32: half of the channels for x, half for y.

    A table of the whole map would be 100 MB at image resolution. One small table per axis, zero in
    the other axis's channels, gives the same sums and is never expanded in memory.

    Args:
        x: [B, h, w, C], C a multiple of 4.
        aspect: image width over image height.
        factor: factor of the embedding.

    Returns:
        [B, h, w, C] in the dtype of x.
    """
    _, h, w, c = x.shape
    half = c // 2
    across, down = (np.float32(factor) * waves(p, half) for p in uv_axes(w, h, aspect))
    across = jnp.asarray(np.pad(across, ((0, 0), (0, half))))
    down = jnp.asarray(np.pad(down, ((0, 0), (half, 0))))
    return (x.astype(jnp.float32) + across + down[:, None]).astype(x.dtype)


class Upsample(nnx.Module):
    """Transposed convolution with kernel = stride = k: every pixel becomes k x k pixels."""

    def __init__(
        self,
        dim: int,
        k: int,
        out: int | None = None,
        *,
        dtype: Any,
        param_dtype: Any,
        rngs: nnx.Rngs,
    ):
        """Creates the parameters for `dim` input channels and `out` output ones, None for `dim`."""
        self.dtype = dtype
        out = dim if out is None else out
        init = nnx.initializers.lecun_normal(in_axis=0, out_axis=3)
        self.kernel = nnx.Param(init(rngs.params(), (dim, k, k, out), param_dtype))
        self.bias = nnx.Param(jnp.zeros((out,), param_dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Upsamples a map, [B, h, w, C] -> [B, h*k, w*k, out]."""
        b, h, w, c = x.shape
        kernel = self.kernel[...].astype(self.dtype)
        k = kernel.shape[1]
        y = (x.astype(self.dtype).reshape(-1, c) @ kernel.reshape(c, -1)).reshape(b, h, w, k, k, -1)
        y = y.transpose(0, 1, 3, 2, 4, 5).reshape(b, h * k, w * k, -1)
        return y + self.bias[...].astype(self.dtype)


class ResidualUnit(nnx.Module):
    """Residual unit of two convolutions: skip + conv2(relu(conv1(relu(x)))).

    The skip is relu(x) in VGGT, whose first ReLU works in place, and x in Depth Anything 3.
    """

    def __init__(self, features: int, rectified_skip: bool = True, **kinds: Any):
        self.rectified_skip = rectified_skip
        self.conv1 = nnx.Conv(features, features, (3, 3), padding=_PAD, **kinds)
        self.conv2 = nnx.Conv(features, features, (3, 3), padding=_PAD, **kinds)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the unit to a map, [B, h, w, F] -> [B, h, w, F]."""
        rectified = nnx.relu(x)
        skip = rectified if self.rectified_skip else x
        return skip + self.conv2(nnx.relu(self.conv1(rectified)))


class Refine(nnx.Module):
    """Fuses the coarser map with the map of a level, refines it, mixes channels and resizes."""

    def __init__(self, features: int, skip: bool, rectified_skip: bool = True, **kinds: Any):
        self.unit1 = ResidualUnit(features, rectified_skip, **kinds) if skip else None
        self.unit2 = ResidualUnit(features, rectified_skip, **kinds)
        self.out = nnx.Linear(features, features, **kinds)

    def __call__(self, x: jax.Array, skip: jax.Array | None, size: tuple[int, int]) -> jax.Array:
        """Fuses the coarser map and the level's own, if any, [B, h, w, F] each, to [B, *size, F].

        The 1x1 mixing comes before the resize, which it commutes with: interpolation weights sum
        to one. Upstream mixes after it, at up to four times the cost.
        """
        if self.unit1 is not None and skip is not None:
            x = x + self.unit1(skip)
        return resize_aligned(self.out(self.unit2(x)), size)


def refinements(features: int, rectified_skip: bool = True, **kinds: Any) -> nnx.List:
    """Builds the fusion of four levels, finest first; the coarsest has no coarser one to fuse."""
    return nnx.List([Refine(features, level < 3, rectified_skip, **kinds) for level in range(4)])


def fuse(
    refine: Sequence[Refine], maps: Sequence[jax.Array]
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Fuses the maps of four levels from coarse to fine.

    Args:
        refine: result of `refinements`.
        maps: four levels [B, h_l, w_l, F], finest first.

    Returns:
        ([B, 2 h_0, 2 w_0, F]; `refine/i`, the map after every level).
    """
    out: dict[str, jax.Array] = {}
    x, skip = maps[3], None
    for i in (3, 2, 1, 0):
        finest = (2 * maps[0].shape[1], 2 * maps[0].shape[2])
        h, w = maps[i - 1].shape[1:3] if i else finest
        x = out[f"refine/{i}"] = refine[i](x, skip, (h, w))
        skip = maps[i - 1] if i else None
    return x, out


class DPT(nnx.Module):
    """Dense prediction head, from tokens of four layers to a feature map or per-pixel channels.

    Frames are independent: callers may split them as memory asks.
    """

    def __init__(
        self,
        dim: int,
        *,
        features: int,
        out_channels: Sequence[int],
        outputs: int | None,
        patch: int,
        rectified_skip: bool = True,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Creates the layers of the head.

        Args:
            dim: channels of the tokens.
            features: F, width of the fused maps.
            out_channels: width of each of the four levels before fusion.
            outputs: channels at image resolution; None gives a feature map of `features` channels
                at half resolution without position embeddings (VGGT's track features).
            patch: patch size.
            rectified_skip: see `ResidualUnit`.
            dtype: compute dtype.
            param_dtype: dtype of the parameters.
            rngs: random streams.
        """
        kinds = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.patch = patch
        self.norm = layer_norm(dim, 1e-5, **kinds)
        self.projects = nnx.List([nnx.Linear(dim, c, **kinds) for c in out_channels])
        c = out_channels
        self.upsample = nnx.List([Upsample(c[0], 4, **kinds), Upsample(c[1], 2, **kinds)])
        self.downsample = nnx.Conv(c[3], c[3], (3, 3), strides=2, padding=_PAD, **kinds)
        self.reassemble = nnx.List(
            [nnx.Conv(n, features, (3, 3), padding=_PAD, use_bias=False, **kinds) for n in c]
        )
        self.refine = refinements(features, rectified_skip, **kinds)
        half = features if outputs is None else features // 2
        self.out_conv1 = nnx.Conv(features, half, (3, 3), padding=_PAD, **kinds)
        self.maps_only = outputs is None
        if outputs is not None:
            self.out_conv2 = nnx.Conv(
                half, 32, (3, 3), padding=_PAD, conv_general_dilated=conv_general_dilated, **kinds
            )
            self.out_conv3 = nnx.Linear(32, outputs, dot_general=dot_general, **kinds)

    def __call__(
        self, levels: Sequence[jax.Array], grid: tuple[int, int]
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Computes the map of the head from the tokens of four layers.

        Args:
            levels: four token arrays [B, h*w, C] (patches only), shallow to deep.
            grid: (h, w).

        Returns:
            ([B, H, W, outputs], or [B, H/2, W/2, F] for feature maps; named intermediates).
        """
        maps, out = self.levels(levels, grid)
        x, more = self.decode(maps, grid)
        return x, out | more

    def _place(self, x: jax.Array, grid: tuple[int, int]) -> jax.Array:
        return x if self.maps_only else add_uv_embedding(x, grid[1] / grid[0])

    def levels(
        self, tokens: Sequence[jax.Array], grid: tuple[int, int]
    ) -> tuple[list[jax.Array], dict[str, jax.Array]]:
        """Turns tokens into four maps of different sizes, the first half of `__call__`.

        Args:
            tokens: four arrays [B, h*w, C], shallow to deep.
            grid: (h, w).

        Returns:
            (maps [B, h_l, w_l, F], finest first; named intermediates).
        """
        out: dict[str, jax.Array] = {}
        maps = []
        resize = [*self.upsample, lambda x: x, self.downsample]
        for i, level in enumerate(tokens):
            x = self.projects[i](self.norm(level))
            x = out[f"project/{i}"] = x.reshape(x.shape[0], *grid, -1)
            x = out[f"resize/{i}"] = resize[i](self._place(x, grid))
            x = out[f"reassemble/{i}"] = self.reassemble[i](x)
            maps.append(x)
        return maps, out

    def decode(
        self, maps: Sequence[jax.Array], grid: tuple[int, int]
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Turns the maps of `levels` into the results of `__call__`, its second half."""
        height, width = grid[0] * self.patch, grid[1] * self.patch
        x, out = fuse(self.refine, maps)
        x = out["out_conv1"] = self.out_conv1(x)
        scale = 2 if self.maps_only else 1
        x = self._place(resize_aligned(x, (height // scale, width // scale)), grid)
        out["out_conv2_in"] = x
        if not self.maps_only:
            x = out["logits"] = self.out_conv3(nnx.relu(self.out_conv2(x)))
        return x, out
