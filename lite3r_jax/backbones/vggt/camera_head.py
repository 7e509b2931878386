"""Camera head of VGGT, which refines pose encodings iteratively (vggt/heads/camera_head.py)."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from lite3r_jax.attention.plan import Plan, build_cores, runs
from lite3r_jax.attention.strategy import AttentionStrategy, TokenLayout
from lite3r_jax.backbones import operations
from lite3r_jax.layers.block import Block, BlockConfig, stack
from lite3r_jax.layers.mlp import Mlp
from lite3r_jax.layers.norm import layer_norm
from lite3r_jax.layers.stacks import BlockStack, run_stacks

POSE_DIM = 9


@dataclass(frozen=True)
class CameraConfig:
    """Sizes of the camera head."""

    trunk_depth: int = 4
    num_heads: int = 16
    num_iterations: int = 4


class IterativeCameraHead(nnx.Module):
    """Predicts a pose encoding from the camera token of each view (vggt/heads/camera_head.py).

    The trunk attends over the S views of a scene. Attention layers: role "camera", one per trunk
    block. Always float32: it is small, and upstream keeps it out of autocast.
    """

    def __init__(
        self, config: CameraConfig, dim: int, *, plan: Plan, param_dtype: Any, rngs: nnx.Rngs
    ):
        """Builds the head for camera tokens of `dim` channels (frame and global stream joined)."""
        self.config = config
        kinds = {"param_dtype": param_dtype, "rngs": rngs}
        self.empty_pose_tokens = nnx.Param(jnp.zeros((1, 1, POSE_DIM), param_dtype))
        self.token_norm = layer_norm(dim, 1e-5, **kinds)
        self.trunk_norm = layer_norm(dim, 1e-5, **kinds)
        self.adaln_norm = layer_norm(dim, 1e-6, affine=False, **kinds)
        linear = {"dtype": jnp.float32, **kinds}
        self.embed_pose = nnx.Linear(POSE_DIM, dim, **linear)
        self.pose_modulation = nnx.Linear(dim, 3 * dim, **linear)
        self.pose_branch = Mlp(dim, dim // 2, POSE_DIM, **linear)
        block = BlockConfig(dim, config.num_heads)
        self.trunk = stack(
            lambda r: Block(block, param_dtype=param_dtype, rngs=r), config.trunk_depth, rngs
        )
        self.runs = runs(plan.specs("camera", config.trunk_depth))
        self.cores = build_cores(self.runs, 0, block.heads, dim // block.heads, param_dtype, rngs)

    def operations(self, specs: Sequence[AttentionStrategy], views: int) -> Counter[str]:
        """Counts the operations of all iterations for one scene.

        `specs` are the strategies of the layers of the trunk.
        """
        config, d = self.config, self.token_norm.num_features
        layout = TokenLayout(views, 1, (0, 0), "global")
        once = operations.blocks(specs, layout, 1, d, config.num_heads)
        once["layers"] += 2 * views * (POSE_DIM * d + 3 * d**2 + d // 2 * (d + POSE_DIM))
        return Counter({kind: config.num_iterations * n for kind, n in once.items()})

    def __call__(self, tokens: jax.Array, iterations: int | None = None) -> jax.Array:
        """Predicts pose encodings by refinement that starts from a learned empty encoding.

        The unactivated encoding is fed back without gradient, so every iteration is trained
        through its own increment only.

        Args:
            tokens: [B, S, C] camera tokens.
            iterations: K; the config's when None.

        Returns:
            [K, B, S, 9] activated encodings: translation and quaternion linear, fields of view
            rectified.
        """
        return self.attended(tokens, iterations)[0]

    def attended(
        self, tokens: jax.Array, iterations: int | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Refines pose encodings, and also returns the outputs of the attention layers.

        Args:
            tokens: [B, S, C] camera tokens.
            iterations: K; the config's when None.

        Returns:
            (encodings [K, B, S, 9] as `__call__` gives, outputs of the attention layers
            [K, L, B, S, C]).
        """
        b, s, _ = tokens.shape
        t = self.token_norm(tokens.astype(jnp.float32))
        normed = self.adaln_norm(t)
        # A view is one token here, without a patch grid.
        layout = TokenLayout(s, 1, (0, 0), "global")
        trunk = [BlockStack("camera", self.trunk, self.cores, layout)]

        def refine(raw: jax.Array, previous: jax.Array) -> tuple[jax.Array, jax.Array]:
            e = nnx.silu(self.embed_pose(previous))
            shift, scale, gate = jnp.split(self.pose_modulation(e), 3, axis=-1)
            h = gate * (normed * (1 + scale) + shift) + t
            h, _, ys = run_stacks(h[:, :, None], trunk, self.runs, views=s, taps=("camera/attn",))
            outputs = ys["camera/attn"][:, :, :, 0]
            return raw + self.pose_branch(self.trunk_norm(h[:, :, 0])), outputs

        empty = self.empty_pose_tokens[...].astype(jnp.float32)
        first = refine(jnp.zeros((b, s, POSE_DIM)), jnp.broadcast_to(empty, (b, s, POSE_DIM)))

        def step(raw: jax.Array, _: None) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            raw = lax.stop_gradient(raw)
            new, outputs = refine(raw, raw)
            return new, (new, outputs)

        count = self.config.num_iterations if iterations is None else iterations
        _, rest = lax.scan(step, first[0], length=count - 1)
        every, outputs = (
            jnp.concatenate([x[None], others]) for x, others in zip(first, rest, strict=True)
        )
        every = jnp.concatenate([every[..., :7], nnx.relu(every[..., 7:])], axis=-1)
        return every, outputs
