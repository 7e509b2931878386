"""DINOv2 vision transformer: its tokens, and the one with registers as an image encoder.

Source: vggt/layers/vision_transformer.py.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lite3r_jax.attention.core import Layouts, Plan, TokenLayout, build_cores, runs
from lite3r_jax.layers.block import Block, BlockConfig, scan_stacks, stack
from lite3r_jax.layers.chunks import chunked, in_chunks
from lite3r_jax.layers.norm import layer_norm
from lite3r_jax.layers.patch_embed import PatchEmbed, Resampling, resize_pos_embed

EPS = 1e-6


@dataclass(frozen=True)
class EncoderConfig:
    """Depth and heads of the encoder; the defaults are ViT-L."""

    depth: int = 24
    num_heads: int = 16
    mlp_ratio: float = 4.0


class TokenEmbed(nnx.Module):
    """Single images to tokens; the encoders of the backbones derive from it."""

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
        """Build.

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
        """Patches, and tokens before the first block.

        Args:
            images: [B, H, W, 3], normalised.

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
    """Patch tokens of single images. Sites: role "patch", one per block."""

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
        """Args: config; dim C; plan; embed: the other arguments of `TokenEmbed`."""
        super().__init__(dim=dim, dtype=dtype, param_dtype=param_dtype, rngs=rngs, **embed)
        block = BlockConfig(dim, config.num_heads, config.mlp_ratio, eps=EPS, layer_scale=1.0)
        self.blocks = stack(
            lambda r: Block(block, dtype=dtype, param_dtype=param_dtype, rngs=r),
            config.depth,
            rngs,
        )
        self.runs = runs(plan.specs("patch", config.depth))
        self.cores = build_cores(self.runs, 0, block.heads, dim // block.heads, param_dtype, rngs)
        # The trunk's residual stream starts from this result, so it stays float32.
        self.norm = layer_norm(dim, EPS, param_dtype=param_dtype, rngs=rngs)

    def __call__(
        self, images: jax.Array, taps: Collection[str] = (), remat: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Encode images.

        Args:
            images: [B, H, W, 3], normalised; H and W multiples of the patch size.
            taps: names of intermediates to return.
            remat: see `scan_stacks`.

        Returns:
            (normed patch tokens [B, h*w, C] float32, taps). Taps: `patch/embed` [B, h*w, C];
            `patch/tokens` [B, T, C]; `patch/blocks`, `patch/attn` [L, B, T, C] output of every
            block and of its attention layer; T = 1 + R + h*w.
        """
        patches, x = self.embed(images)
        out = {"patch/embed": patches, "patch/tokens": x}
        grid = (images.shape[1] // self.patch, images.shape[2] // self.patch)
        layouts = Layouts.both(TokenLayout(1, self.special, grid, "frame"))

        def body(x, index, modules, cores):
            del index
            if not taken and chunked(modules[0], cores[0], x.shape[0] * x.shape[1]):
                return in_chunks(modules[0], x, cores[0], layouts)[0], {}
            x, attended = modules[0](x, cores[0], layouts)
            every = {"patch/blocks": x, "patch/attn": attended}
            return x, {name: every[name] for name in taken}

        taken = [name for name in ("patch/blocks", "patch/attn") if name in taps]
        x, ys = scan_stacks(body, x, [self.blocks], [self.cores], self.runs, remat)
        out = {name: y for name, y in (out | ys).items() if name in taps}
        return self.norm(x)[:, self.special :], out
