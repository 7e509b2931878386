"""The heads of pi^3: decoders of single views, points and confidence, cameras.

Source: pi3/models/layers/transformer_head.py and camera_head.py.
"""

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
from lite3r_jax.backbones.pi3.trunk import EPS
from lite3r_jax.layers.block import Block, BlockConfig, stack
from lite3r_jax.layers.rope import rope_table, view_positions
from lite3r_jax.layers.stacks import BlockStack, run_stacks

Taps = dict[str, jax.Array]


class HeadDecoder(nnx.Module):
    """Tokens of single views to the features that one head reads.

    Linear, blocks within the view with RoPE, Linear. Sites: role "head".
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
        """Build.

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
        self.first, self.sites = which * sizes.depth, sites
        self.projects = nnx.Linear(2 * config.decoder.dim, sizes.dim, rngs=rngs, **kinds)
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
        """What comes out of the last block.

        Args:
            tokens: [n, P, 2C] of the trunk.
            layout: of the tokens of a view.
            views: S of the scene, for schedules.
            taps: names of intermediates to return.
            remat: see `run_stacks`.

        Returns:
            ([n, P, D] float32, `head/blocks` and `head/attn` [n, L, P, D] of these).
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
        """See `stream`; features [n, h*w, out] float32 of the patches, and taps."""
        x, tapped = self.stream(tokens, layout, views, taps, remat)
        return self.out(x[:, layout.special :]).astype(jnp.float32), tapped

    def operations(self, plan: Plan, layout: TokenLayout, views: int) -> Counter[str]:
        """Operations for all views of a scene."""
        last = self.first + self.runs[-1].stop
        specs = plan.specs("head", self.sites, views)[self.first : last]
        dim, out = self.out.in_features, self.out.out_features
        attn = self.blocks.attn
        hidden = self.blocks.mlp.fc1.out_features
        count = operations.blocks(specs, layout, views, dim, attn.heads, hidden / dim)
        patches = layout.tokens - layout.special
        linear = layout.tokens * self.projects.in_features * dim + patches * dim * out
        return count + Counter(layers=2 * views * linear)


def pixel_shuffle(features: jax.Array, grid: tuple[int, int], patch: int) -> jax.Array:
    """Features of patches to pixels.

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
    """A decoder, and a Linear to the pixels of every patch; the Linear is float32."""

    def __init__(self, config: Pi3Config, outputs: int, which: int, sites: int, **kinds: Any):
        """Args: outputs: channels of a pixel; others as `HeadDecoder`."""
        self.patch = config.patch_size
        self.decoder = HeadDecoder(config, config.heads.point_out, which, sites, **kinds)
        self.pixels = nnx.Linear(
            config.heads.point_out,
            outputs * config.patch_size**2,
            param_dtype=kinds["param_dtype"],
            rngs=kinds["rngs"],
        )

    def __call__(
        self,
        tokens: jax.Array,
        layout: TokenLayout,
        views: int,
        taps: Collection[str] = (),
        remat: bool = False,
    ) -> tuple[jax.Array, Taps]:
        """Tokens as for `HeadDecoder.stream`; ([n, H, W, outputs] float32, taps)."""
        x, tapped = self.decoder(tokens, layout, views, taps, remat)
        return pixel_shuffle(self.pixels(x), layout.grid, self.patch), tapped

    def operations(self, plan: Plan, layout: TokenLayout, views: int) -> Counter[str]:
        """Operations for all views of a scene."""
        patches = layout.tokens - layout.special
        pixels = patches * self.pixels.in_features * self.pixels.out_features
        return self.decoder.operations(plan, layout, views) + Counter(layers=2 * views * pixels)


class DepthHead(nnx.Module):
    """Points in the camera frame, and how sure they are; a decoder for each."""

    def __init__(self, config: Pi3Config, sites: int, **kinds: Any):
        """Args: as `HeadDecoder`."""
        self.point = DenseHead(config, 3, 0, sites, **kinds)
        self.conf = DenseHead(config, 1, 1, sites, **kinds)


class ResidualUnit(nnx.Module):
    """x + three Linears, each with a ReLU behind it."""

    def __init__(self, dim: int, **kinds: Any):
        """Args: dim: channels; param_dtype; rngs."""
        self.fc1 = nnx.Linear(dim, dim, **kinds)
        self.fc2 = nnx.Linear(dim, dim, **kinds)
        self.fc3 = nnx.Linear(dim, dim, **kinds)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., C] -> [..., C]."""
        return x + nnx.relu(self.fc3(nnx.relu(self.fc2(nnx.relu(self.fc1(x))))))


class CameraHead(nnx.Module):
    """Patches of a view to the numbers of its pose. All but the decoder is float32."""

    def __init__(self, config: Pi3Config, sites: int, **kinds: Any):
        """Args: as `HeadDecoder`."""
        dim = config.heads.camera_out
        self.decoder = HeadDecoder(config, dim, 2, sites, **kinds)
        own = {"param_dtype": kinds["param_dtype"], "rngs": kinds["rngs"]}
        self.units = nnx.List([ResidualUnit(dim, **own) for _ in range(2)])
        self.fc1 = nnx.Linear(dim, dim, **own)
        self.fc2 = nnx.Linear(dim, dim, **own)
        self.translation = nnx.Linear(dim, 3, **own)
        self.rotation = nnx.Linear(dim, 9, **own)

    def pose(self, x: jax.Array) -> jax.Array:
        """Features of patches [n, h*w, D] -> [n, 12]: translation, and a 3 x 3 matrix by rows."""
        for unit in self.units:
            x = unit(x)
        x = nnx.relu(self.fc2(nnx.relu(self.fc1(x.mean(1)))))
        return jnp.concatenate([self.translation(x), self.rotation(x)], -1)

    def operations(self, plan: Plan, layout: TokenLayout, views: int) -> Counter[str]:
        """Operations for all views of a scene."""
        dim, patches = self.fc1.in_features, layout.tokens - layout.special
        linear = patches * 3 * len(self.units) * dim**2 + 2 * dim**2 + 12 * dim
        return self.decoder.operations(plan, layout, views) + Counter(layers=2 * views * linear)
