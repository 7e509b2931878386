"""The heads of pi^3: decoders of single views, points and confidence, cameras.

Source: pi3/models/layers/transformer_head.py and camera_head.py.
"""

import math
from collections import Counter
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lite3r_jax.attention.plan import Plan, build_cores, runs
from lite3r_jax.attention.strategy import TokenLayout
from lite3r_jax.backbones import operations
from lite3r_jax.backbones.pi3.config import Pi3Config
from lite3r_jax.backbones.pi3.conv_head import ConvHead
from lite3r_jax.backbones.pi3.metric import MetricHead
from lite3r_jax.backbones.pi3.trunk import EPS
from lite3r_jax.layers.block import Block, BlockConfig, stack
from lite3r_jax.layers.rope import rope_table, view_positions
from lite3r_jax.layers.stacks import BlockStack, run_stacks

Taps = dict[str, jax.Array]
LARGEST_LOG_DEPTH = 15.0
"""Largest logarithm of depth in Pi3X, before its metric branch scales depth."""


class HeadDecoder(nnx.Module):
    """Decodes tokens of single views to the features that one head reads.

    Linear, blocks within the view with RoPE, Linear. Attention layers: role "head".
    """

    def __init__(
        self,
        config: Pi3Config,
        out: int,
        which: int,
        sites: int,
        *,
        plan: Plan,
        dtype: Any,
        param_dtype: Any,
        rngs: nnx.Rngs,
    ):
        """Builds the decoder with random weights.

        Args:
            config: sizes of the model.
            out: channels of the features.
            which: number of this decoder among those of the model.
            sites: layers of the role "head" in the whole model.
            plan: as for `Pi3`, and so are `dtype`, `param_dtype` and `rngs`.
            dtype: likewise.
            param_dtype: likewise.
            rngs: likewise.
        """
        sizes = config.heads
        kinds = {"dtype": dtype, "param_dtype": param_dtype}
        block = BlockConfig(sizes.dim, sizes.heads, config.mlp_ratio, eps=EPS, layer_scale=None)
        self.head_dim = sizes.dim // sizes.heads
        self.heads, self.ratio, self.widths = sizes.heads, config.mlp_ratio, (sizes.dim, out)
        self.first, self.sites = which * sizes.depth, sites
        self.tokens_dim = 2 * config.decoder.dim
        self.projects = nnx.Linear(self.tokens_dim, sizes.dim, rngs=rngs, **kinds)
        self.blocks = stack(lambda r: Block(block, rngs=r, **kinds), sizes.depth, rngs)
        specs = plan.specs("head", sites)[self.first : self.first + sizes.depth]
        self.runs = runs(specs)
        self.cores = build_cores(self.runs, 0, sizes.heads, self.head_dim, param_dtype, rngs)
        self.out = nnx.Linear(sizes.dim, out, rngs=rngs, **kinds)

    def stream(
        self,
        tokens: jax.Array,
        layout: TokenLayout,
        views: int,
        taps: Collection[str] = (),
        remat: bool = False,
    ) -> tuple[jax.Array, Taps]:
        """Returns the output of the last block of the decoder.

        Args:
            tokens: [n, P, 2C] of the trunk.
            layout: of the tokens of a view.
            views: S of the scene, for schedules.
            taps: names of intermediates to return.
            remat: see `run_stacks`.

        Returns:
            ([n, P, D] float32; of `head/blocks` and `head/attn` [n, L, P, D] those in `taps`).
        """
        x = self.projects(tokens).astype(jnp.float32)
        rope = rope_table(view_positions(layout), self.head_dim)
        blocks = BlockStack("head", self.blocks, self.cores, layout, rope, self.first, self.sites)
        x, _, ys = run_stacks(x[:, None], [blocks], self.runs, views=views, taps=taps, remat=remat)
        return x[:, 0], {name: jnp.moveaxis(y[:, :, 0], 0, 1) for name, y in ys.items()}

    def __call__(
        self,
        tokens: jax.Array,
        layout: TokenLayout,
        views: int,
        taps: Collection[str] = (),
        remat: bool = False,
    ) -> tuple[jax.Array, Taps]:
        """Returns features [n, h*w, out] float32 of patches, and taps; arguments as `stream`."""
        x, tapped = self.stream(tokens, layout, views, taps, remat)
        return self.out(x[:, layout.special :]).astype(jnp.float32), tapped

    def operations(self, plan: Plan, layout: TokenLayout, views: int) -> Counter[str]:
        """Counts the operations of the decoder for all views of a scene."""
        last = self.first + self.runs[-1].stop
        specs = plan.specs("head", self.sites, views)[self.first : last]
        dim, out = self.widths
        count = operations.blocks(specs, layout, views, dim, self.heads, self.ratio)
        patches = layout.tokens - layout.special
        linear = layout.tokens * self.tokens_dim * dim + patches * dim * out
        return count + Counter(layers=2 * views * linear)


def pixel_shuffle(features: jax.Array, grid: tuple[int, int], patch: int) -> jax.Array:
    """Rearranges features of patches as pixels.

    Args:
        features: [n, h*w, c * patch^2], a patch as (channel, row, column).
        grid: (h, w).
        patch: size of a patch.

    Returns:
        [n, H, W, c].
    """
    n, (h, w) = len(features), grid
    x = features.reshape(n, h, w, -1, patch, patch).transpose(0, 1, 4, 2, 5, 3)
    return x.reshape(n, h * patch, w * patch, -1)


class DenseHead(nnx.Module):
    """A dense head: a decoder, and a float32 map of its features to the pixels of every patch.

    The map is a Linear, or in Pi3X convolutions, of which the outputs have separate last ones.
    """

    def __init__(
        self, config: Pi3Config, outputs: tuple[int, ...], which: int, sites: int, **kinds: Any
    ):
        """Builds the head; `outputs` are the channels of a pixel, by output.

        The other arguments are those of `HeadDecoder`.
        """
        self.patch, features = config.patch_size, config.heads.point_out
        self.channels = (features, sum(outputs))
        self.decoder = HeadDecoder(config, features, which, sites, **kinds)
        own = {"param_dtype": kinds["param_dtype"], "rngs": kinds["rngs"]}
        if config.metric:
            self.conv = ConvHead(features, outputs, config.conv_head, **own)
        else:
            self.conv = None
            self.pixels = nnx.Linear(features, self.channels[1] * self.patch**2, **own)

    def __call__(
        self,
        tokens: jax.Array,
        layout: TokenLayout,
        views: int,
        taps: Collection[str] = (),
        remat: bool = False,
    ) -> tuple[jax.Array, Taps]:
        """Returns ([n, H, W, all outputs] float32, taps); arguments as for `HeadDecoder.stream`."""
        x, tapped = self.decoder(tokens, layout, views, taps, remat)
        if self.conv is not None:
            return self.conv(x, layout.grid, self.patch), tapped
        return pixel_shuffle(self.pixels(x), layout.grid, self.patch), tapped

    def operations(self, plan: Plan, layout: TokenLayout, views: int) -> Counter[str]:
        """Counts the operations of the head for all views of a scene."""
        work = self.decoder.operations(plan, layout, views)
        if self.conv is not None:
            return work + self.conv.operations(layout.grid, self.patch, views)
        patches = layout.tokens - layout.special
        pixels = patches * math.prod(self.channels) * self.patch**2
        return work + Counter(layers=2 * views * pixels)


class DepthHead(nnx.Module):
    """Predicts points in the camera frame, their confidence, and in Pi3X the meters per unit."""

    def __init__(self, config: Pi3Config, sites: int, **kinds: Any):
        """Builds the head with random weights; the arguments are those of `HeadDecoder`."""
        self.point = DenseHead(config, (2, 1), 0, sites, **kinds)
        self.conf = DenseHead(config, (1,), 1, sites, **kinds)
        if not config.metric:
            self.metric = None
        else:
            own = {name: kind for name, kind in kinds.items() if name != "plan"}
            channels = 2 * config.decoder.dim
            self.metric = MetricHead(channels, config.metric_head, config.mlp_ratio, **own)

    def depth(self, raw: jax.Array) -> jax.Array:
        """Returns depth z from its logarithm, which the head predicts and Pi3X limits."""
        return jnp.exp(raw if self.metric is None else jnp.minimum(raw, LARGEST_LOG_DEPTH))


class ResidualUnit(nnx.Module):
    """A residual unit that adds to x three Linears of x, each with a ReLU behind it."""

    def __init__(self, dim: int, **kinds: Any):
        """Builds the unit for `dim` channels; `kinds` are param_dtype and rngs."""
        self.fc1 = nnx.Linear(dim, dim, **kinds)
        self.fc2 = nnx.Linear(dim, dim, **kinds)
        self.fc3 = nnx.Linear(dim, dim, **kinds)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the unit to x [..., C]; returns [..., C]."""
        return x + nnx.relu(self.fc3(nnx.relu(self.fc2(nnx.relu(self.fc1(x))))))


class CameraHead(nnx.Module):
    """Predicts the numbers of a view's pose from its tokens; all but the decoder is float32."""

    def __init__(self, config: Pi3Config, sites: int, **kinds: Any):
        """Builds the head with random weights; the arguments are those of `HeadDecoder`."""
        dim = self.dim = config.heads.camera_out
        self.decoder = HeadDecoder(config, dim, 2, sites, **kinds)
        own = {"param_dtype": kinds["param_dtype"], "rngs": kinds["rngs"]}
        self.units = nnx.List([ResidualUnit(dim, **own) for _ in range(2)])
        self.fc1 = nnx.Linear(dim, dim, **own)
        self.fc2 = nnx.Linear(dim, dim, **own)
        self.translation = nnx.Linear(dim, 3, **own)
        self.rotation = nnx.Linear(dim, 9, **own)

    def pose(self, x: jax.Array) -> jax.Array:
        """Predicts poses [n, 12] from features of patches [n, h*w, D].

        They are a translation, and a 3 x 3 matrix by rows.
        """
        for unit in self.units:
            x = unit(x)
        x = nnx.relu(self.fc2(nnx.relu(self.fc1(x.mean(1)))))
        return jnp.concatenate([self.translation(x), self.rotation(x)], -1)

    def operations(self, plan: Plan, layout: TokenLayout, views: int) -> Counter[str]:
        """Counts the operations of the head for all views of a scene."""
        dim, patches = self.dim, layout.tokens - layout.special
        linear = patches * 3 * len(self.units) * dim**2 + 2 * dim**2 + 12 * dim
        return self.decoder.operations(plan, layout, views) + Counter(layers=2 * views * linear)
