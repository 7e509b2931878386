"""Encoder and alternating trunk of VGGT (vggt/models/aggregator.py)."""

from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lite3r_jax.attention.plan import Plan, build_cores, runs
from lite3r_jax.attention.strategy import TokenLayout
from lite3r_jax.backbones.dinov2 import DinoEncoder
from lite3r_jax.backbones.vggt.config import VGGTConfig
from lite3r_jax.layers.block import Block, BlockConfig, stack
from lite3r_jax.layers.patch_embed import normalize
from lite3r_jax.layers.rope import rope_table, view_positions
from lite3r_jax.layers.stacks import BlockStack, Slots, run_stacks
from lite3r_jax.mesh import ViewParts


class Aggregator(nnx.Module):
    """The encoder, and a trunk of frame and global blocks in turn (vggt/models/aggregator.py).

    Attention layers: roles "patch", "frame" and "global". Frame block i runs before global block i;
    the residual stream passes through both.
    """

    def __init__(
        self,
        config: VGGTConfig,
        *,
        read: Collection[int],
        plan: Plan,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Builds encoder and trunk; `read` are trunk layers that heads read, besides the last.

        The other arguments are those of `VGGT`.
        """
        c, trunk = config.embed_dim, config.aggregator
        kinds = {"dtype": dtype, "param_dtype": param_dtype}
        self.dtype = dtype
        self.patch = config.patch_size
        self.special = 1 + config.num_register_tokens
        self.read = tuple(sorted({*read, trunk.depth - 1}))
        self.patch_embed = DinoEncoder(
            config.vit,
            dim=c,
            patch=config.patch_size,
            image=config.img_size,
            registers=config.num_register_tokens,
            plan=plan,
            rngs=rngs,
            **kinds,
        )
        small = nnx.initializers.normal(1e-6)
        r = config.num_register_tokens
        self.camera_token = nnx.Param(small(rngs.params(), (1, 2, 1, c), param_dtype))
        self.register_token = nnx.Param(small(rngs.params(), (1, 2, r, c), param_dtype))
        block = BlockConfig(c, trunk.num_heads, trunk.mlp_ratio, qk_norm=True)

        def make(layer_rngs: nnx.Rngs) -> Block:
            return Block(block, rngs=layer_rngs, **kinds)

        self.head_dim = c // trunk.num_heads
        self.unroll = False  # see `run_stacks`
        self.frame_blocks = stack(make, trunk.depth, rngs)
        self.global_blocks = stack(make, trunk.depth, rngs)
        self.runs = runs(plan.specs("frame", trunk.depth), plan.specs("global", trunk.depth))
        site = (trunk.num_heads, self.head_dim, param_dtype, rngs)
        self.frame_cores = build_cores(self.runs, 0, *site)
        self.global_cores = build_cores(self.runs, 1, *site)

    def tokens(self, patches: jax.Array) -> jax.Array:
        """Puts camera and register tokens before the patches.

        Slot 0 of both belongs to the first view of every scene, slot 1 to all others.

        Args:
            patches: [B, S, h*w, C].

        Returns:
            [B, S, P, C], P = 1 + R + h*w, as [camera, registers, patches].
        """
        b, s = patches.shape[:2]
        table = jnp.concatenate([self.camera_token[...], self.register_token[...]], axis=2)[0]
        special = table[(np.arange(s) > 0).astype(int)].astype(patches.dtype)
        special = jnp.broadcast_to(special, (b, *special.shape))
        return jnp.concatenate([special, patches], axis=2)

    def __call__(
        self,
        images: jax.Array,
        taps: Collection[str] = (),
        remat: bool = False,
        parts: ViewParts | None = None,
        on_host: bool = False,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Runs encoder and trunk on images.

        Args:
            images: [B, S, H, W, 3] in [0, 1].
            taps: names of intermediates to return, see `model.TAPS`.
            remat: see `run_stacks`.
            parts: likewise.
            on_host: see `Slots`.

        Returns:
            (tokens [B, S, K, P, 2C] in the compute dtype: frame and global stream, side by side, of
            the K layers that heads read; taps).
        """
        b, s, height, width, _ = images.shape
        grid = (height // self.patch, width // self.patch)
        flat = normalize(images).reshape(b * s, height, width, 3)
        count = s if parts is None else parts.views
        patches, out = self.patch_embed(flat, taps, remat, views=count, parts=parts)
        c = patches.shape[-1]
        x = self.tokens(patches.reshape(b, s, -1, c))
        out |= {n: t for n, t in {"patch/norm": patches, "trunk/tokens": x}.items() if n in taps}

        frame = TokenLayout(1, self.special, grid, "frame")
        scene = TokenLayout(count, self.special, grid, "global")
        rope = rope_table(view_positions(frame), self.head_dim)
        stacks = [
            BlockStack("frame", self.frame_blocks, self.frame_cores, frame, rope),
            BlockStack("global", self.global_blocks, self.global_cores, scene, rope),
        ]
        _, kept, ys = run_stacks(
            x,
            stacks,
            self.runs,
            views=count,
            taps=taps,
            slots=Slots(self.read, self.dtype, on_host),
            remat=remat,
            unroll=self.unroll,
            parts=parts,
        )
        assert kept is not None
        return kept, out | ys
