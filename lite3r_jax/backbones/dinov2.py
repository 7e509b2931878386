"""DINOv2 vision transformer: token embedding, and an image encoder with register tokens.

Source: vggt/layers/vision_transformer.py.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lite3r_jax.attention.plan import Plan, build_cores, runs
from lite3r_jax.attention.strategy import TokenLayout
from lite3r_jax.layers.block import Block, BlockConfig, stack
from lite3r_jax.layers.norm import layer_norm
from lite3r_jax.layers.patch_embed import PatchEmbed, Resampling, resize_pos_embed
from lite3r_jax.layers.stacks import BlockStack, run_stacks
from lite3r_jax.mesh import ViewParts

EPS = 1e-6


@dataclass(frozen=True)
class EncoderConfig:
    """Depth, heads and MLP ratio of the encoder; the defaults are ViT-L."""

    depth: int = 24
    num_heads: int = 16
    mlp_ratio: float = 4.0


class TokenEmbed(nnx.Module):
    """Embeds single images as tokens; the base class of the encoders of the backbones."""

    def __init__(
        self,
        *,
        dim: int,
        patch: int,
        image: int,
        registers: int,
        resampling: Resampling = "antialias",
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Builds the embedding with random weights.

        Args:
            dim: C.
            patch: patch size.
            image: side of the images that the position table was made for.
            registers: R, number of register tokens.
            resampling: of the position table, see `resize_pos_embed`.
            dtype: compute dtype.
            param_dtype: dtype of the parameters.
            rngs: random streams.
        """
        kinds = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.patch = patch
        self.special = 1 + registers
        self.resampling: Resampling = resampling
        self.proj = PatchEmbed(patch, dim, **kinds)
        draw = nnx.initializers.truncated_normal(0.02)
        small = nnx.initializers.normal(1e-6)
        side = image // patch
        self.cls_token = nnx.Param(small(rngs.params(), (1, 1, dim), param_dtype))
        self.register_tokens = (
            nnx.Param(small(rngs.params(), (1, registers, dim), param_dtype)) if registers else None
        )
        self.pos_embed = nnx.Param(draw(rngs.params(), (1, 1 + side * side, dim), param_dtype))

    def embed(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Computes patch embeddings of images, and the tokens before the first block.

        Args:
            images: [B, H, W, 3], normalized.

        Returns:
            (patches [B, h*w, C], tokens [B, 1+R+h*w, C] as [class, registers, patches], float32).
        """
        b, height, width, _ = images.shape
        patches = self.proj(images).astype(jnp.float32)
        grid = (height // self.patch, width // self.patch)
        cls = jnp.broadcast_to(self.cls_token[...].astype(jnp.float32), (b, 1, patches.shape[-1]))
        x = jnp.concatenate([cls, patches], axis=1)
        x = x + resize_pos_embed(self.pos_embed[...], grid, height == width, self.resampling)
        if self.register_tokens is None:
            return patches, x
        registers = self.register_tokens[...].astype(jnp.float32)
        registers = jnp.broadcast_to(registers, (b, *registers.shape[1:]))
        return patches, jnp.concatenate([x[:, :1], registers, x[:, 1:]], axis=1)


class DinoEncoder(TokenEmbed):
    """A DINOv2 encoder that maps single images to patch tokens.

    Attention layers: role "patch", one per block.
    """

    def __init__(
        self,
        config: EncoderConfig,
        *,
        dim: int,
        plan: Plan,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
        **embed: Any,
    ):
        """Builds the encoder with C = `dim` channels; `embed` are arguments of `TokenEmbed`."""
        super().__init__(dim=dim, dtype=dtype, param_dtype=param_dtype, rngs=rngs, **embed)
        block = BlockConfig(dim, config.num_heads, config.mlp_ratio, eps=EPS, layer_scale=1.0)
        self.unroll = False  # see `run_stacks`
        self.blocks = stack(
            lambda r: Block(block, dtype=dtype, param_dtype=param_dtype, rngs=r),
            config.depth,
            rngs,
        )
        self.runs = runs(plan.specs("patch", config.depth))
        self.cores = build_cores(self.runs, 0, block.heads, dim // block.heads, param_dtype, rngs)
        # The trunk's residual stream starts from this result, so it stays float32.
        self.norm = layer_norm(dim, EPS, param_dtype=param_dtype, rngs=rngs)

    def layout(self, grid: tuple[int, int]) -> TokenLayout:
        """Returns the layout of the tokens of one image: class token, registers, patches."""
        return TokenLayout(1, self.special, grid, "frame")

    def __call__(
        self,
        images: jax.Array,
        taps: Collection[str] = (),
        remat: bool = False,
        views: int = 1,
        parts: ViewParts | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Encodes images as patch tokens.

        Args:
            images: [B, H, W, 3], normalized; H and W multiples of the patch size.
            taps: names of intermediates to return.
            remat: see `run_stacks`.
            views: S of the scene that they are of, for schedules.
            parts: see `run_stacks`.

        Returns:
            (normed patch tokens [B, h*w, C] float32, taps). Taps: `patch/embed` [B, h*w, C];
            `patch/tokens` [B, T, C]; `patch/blocks`, `patch/attn` [L, B, T, C] output of every
            block and of its attention layer; T = 1 + R + h*w.
        """
        patches, x = self.embed(images)
        out = {"patch/embed": patches, "patch/tokens": x}
        layout = self.layout((images.shape[1] // self.patch, images.shape[2] // self.patch))
        x, _, ys = run_stacks(
            x[:, None],
            [BlockStack("patch", self.blocks, self.cores, layout)],
            self.runs,
            views=views,
            taps=taps,
            remat=remat,
            unroll=self.unroll,
            parts=parts,
        )
        out |= {name: y[:, :, 0] for name, y in ys.items()}
        return self.norm(x[:, 0])[:, self.special :], {n: y for n, y in out.items() if n in taps}
