"""The multi-view trunk of pi^3 (the decoder of pi3/models/pi3.py)."""

from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lite3r_jax.attention.plan import Plan, build_cores, runs
from lite3r_jax.attention.strategy import TokenLayout
from lite3r_jax.backbones.pi3.config import Pi3Config
from lite3r_jax.layers.block import Block, BlockConfig, stack
from lite3r_jax.layers.rope import rope_table, view_positions
from lite3r_jax.layers.stacks import BlockStack, Slots, run_stacks
from lite3r_jax.mesh import ViewParts

EPS = 1e-6


def view_layout(config: Pi3Config, grid: tuple[int, int]) -> TokenLayout:
    """Returns the layout of the tokens of one view: registers, then patches."""
    return TokenLayout(1, config.registers, grid, "frame")


def scene_layout(config: Pi3Config, grid: tuple[int, int], views: int) -> TokenLayout:
    """Returns the layout of the tokens of all views of a scene, none of which is a reference."""
    return TokenLayout(views, config.registers, grid, "global", has_reference=False)


class Trunk(nnx.Module):
    """Blocks that attend in turn within each view and over all views of the scene.

    Attention layers: roles "frame" and "global". Upstream's block 2i is frame block i, block
    2i + 1 is global block i. Nothing tells one view from another, so permuting views permutes the
    tokens.
    """

    def __init__(
        self,
        config: Pi3Config,
        *,
        plan: Plan,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Builds the trunk with random weights; the arguments are those of `Pi3`."""
        sizes, pairs = config.decoder, config.pairs
        kinds = {"dtype": dtype, "param_dtype": param_dtype}
        self.config = config
        self.dtype = dtype
        self.head_dim = sizes.dim // sizes.heads
        small = nnx.initializers.normal(1e-6)
        if config.registers:
            self.register_token = nnx.Param(
                small(rngs.params(), (1, 1, config.registers, sizes.dim), param_dtype)
            )
        block = BlockConfig(sizes.dim, sizes.heads, config.mlp_ratio, qk_norm=True, eps=EPS)

        def make(layer_rngs: nnx.Rngs) -> Block:
            return Block(block, rngs=layer_rngs, **kinds)

        self.frame_blocks = stack(make, pairs, rngs)
        self.global_blocks = stack(make, pairs, rngs)
        self.runs = runs(plan.specs("frame", pairs), plan.specs("global", pairs))
        site = (sizes.heads, self.head_dim, param_dtype, rngs)
        self.frame_cores = build_cores(self.runs, 0, *site)
        self.global_cores = build_cores(self.runs, 1, *site)

    def __call__(
        self,
        patches: jax.Array,
        grid: tuple[int, int],
        taps: Collection[str] = (),
        remat: bool = False,
        parts: ViewParts | None = None,
        on_host: bool = False,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Runs the blocks on the patch tokens of the encoder.

        Args:
            patches: [B, S, h*w, C] float32 of the encoder.
            grid: (h, w).
            taps: names of intermediates to return, see `model.TAPS`.
            remat: see `run_stacks`.
            parts: likewise.
            on_host: see `Slots`.

        Returns:
            (tokens [B, S, 1, P, 2C] in the compute dtype: outputs of the last frame and of the last
            global block, side by side; taps).
        """
        b, s = patches.shape[:2]
        x = patches
        if self.config.registers:
            registers = self.register_token[...].astype(patches.dtype)
            registers = jnp.broadcast_to(registers, (b, s, *registers.shape[2:]))
            x = jnp.concatenate([registers, patches], axis=2)
        count = s if parts is None else parts.views
        frame, scene = view_layout(self.config, grid), scene_layout(self.config, grid, count)
        rope = rope_table(view_positions(frame), self.head_dim)
        _, kept, ys = run_stacks(
            x,
            [
                BlockStack("frame", self.frame_blocks, self.frame_cores, frame, rope),
                BlockStack("global", self.global_blocks, self.global_cores, scene, rope),
            ],
            self.runs,
            views=count,
            taps=taps,
            slots=Slots([self.config.pairs - 1], self.dtype, on_host),
            remat=remat,
            parts=parts,
        )
        assert kept is not None
        return kept, ys | ({"trunk/tokens": x} if "trunk/tokens" in taps else {})
