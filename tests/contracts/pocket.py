"""A backbone in a few lines: patches, two pairs of blocks, two linear heads. `register(ENTRY)`."""

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx

from lite3r_jax import geometry
from lite3r_jax.attention.plan import build_cores, runs
from lite3r_jax.attention.strategy import TokenLayout
from lite3r_jax.backbones import operations, tensor_rules
from lite3r_jax.backbones.base import POSE_STAGES, BackboneEntry, Choice, Prediction, Tap
from lite3r_jax.backbones.config_json import from_json, to_json
from lite3r_jax.backbones.model import BackboneModel, RoleSize
from lite3r_jax.layers.block import Block, BlockConfig, stack
from lite3r_jax.layers.patch_embed import PatchEmbed, normalize
from lite3r_jax.layers.rope import rope_table, view_positions
from lite3r_jax.layers.stacks import BLOCK_TAPS, BlockStack, Slots, run_stacks
from lite3r_jax.name_map import Checkpoint, NameMap, Transform


@dataclass(frozen=True)
class PocketConfig:
    patch_size: int = 14
    embed_dim: int = 16
    depth: int = 2
    num_heads: int = 2


class Trunk(nnx.Module):
    def __init__(self, config, plan, dtype, param_dtype, rngs):
        c, n, depth = config.embed_dim, config.num_heads, config.depth
        kinds = {"dtype": dtype, "param_dtype": param_dtype}
        make = lambda r: Block(BlockConfig(c, n, qk_norm=True), rngs=r, **kinds)  # noqa: E731
        self.patches = PatchEmbed(config.patch_size, c, rngs=rngs, **kinds)
        self.frame_blocks, self.global_blocks = stack(make, depth, rngs), stack(make, depth, rngs)
        self.runs = runs(plan.specs("frame", depth), plan.specs("global", depth))
        self.frame_cores = build_cores(self.runs, 0, n, c // n, param_dtype, rngs)
        self.global_cores = build_cores(self.runs, 1, n, c // n, param_dtype, rngs)


class Pocket(BackboneModel):
    camera_outputs = ("camera_head",)
    parts: ClassVar = {"camera": "camera_head", "depth": "depth_head"}
    taps: ClassVar = {name: Tap("L B S P C", name) for name in BLOCK_TAPS} | {
        POSE_STAGES: Tap("1 B S 9", "the only stage", "camera")
    }
    choices: ClassVar = {"side": Choice({"front": None, "back": None}, "where the cameras stand")}

    def __init__(self, config, *, heads=("camera", "depth"), plan=None, dtype=jnp.float32,
                 param_dtype=jnp.float32, rngs):  # fmt: skip
        super().__init__(config, heads=heads, plan=plan, dtype=dtype)
        self.trunk = Trunk(config, self.plan, dtype, param_dtype, rngs)
        sizes = {"camera": 9, "depth": 2 * config.patch_size**2}
        kinds = {"param_dtype": param_dtype, "rngs": rngs}
        for head in self.heads:
            setattr(self, self.parts[head], nnx.Linear(2 * config.embed_dim, sizes[head], **kinds))

    def roles(self):
        size = RoleSize(self.config.depth, self.config.embed_dim // self.config.num_heads)
        return {"frame": size, "global": size}

    def operations(self, views, grid):
        c, n, depth = self.config.embed_dim, self.config.num_heads, self.config.depth
        frame, scene = (self.plan.specs(role, depth, views) for role in ("frame", "global"))
        heads = {"camera": 9, "depth": 2 * grid[0] * grid[1] * self.patch_size**2}
        return {head: {"layers": 4 * views * c * heads[head]} for head in self.heads} | {
            "encoder": operations.patch_embed(views, grid, self.patch_size, c),
            "frame": operations.blocks(frame, TokenLayout(1, 0, grid, "frame"), views, c, n),
            "global": operations.blocks(
                scene, TokenLayout(views, 0, grid, "global", has_reference=False), 1, c, n
            ),
        }

    def forward(self, images, given, call):
        b, s, height, width, _ = images.shape
        p, trunk = self.patch_size, self.trunk
        grid = (height // p, width // p)
        x = trunk.patches(normalize(images).reshape(b * s, height, width, 3)).astype(jnp.float32)
        scene = TokenLayout(s, 0, grid, "global", has_reference=False)
        layouts = TokenLayout(1, 0, grid, "frame"), scene
        rope = rope_table(view_positions(layouts[0]), self.roles()["frame"].head_dim)
        stacks = [
            BlockStack("frame", trunk.frame_blocks, trunk.frame_cores, layouts[0], rope),
            BlockStack("global", trunk.global_blocks, trunk.global_cores, layouts[1], rope),
        ]
        slots = Slots([self.config.depth - 1], self.dtype)
        x = x.reshape(b, s, -1, x.shape[-1])
        _, kept, taps = run_stacks(
            x, stacks, trunk.runs, views=s, taps=call.taps, slots=slots, remat=call.remat
        )
        tokens, fields = kept[:, :, 0].astype(jnp.float32), {}
        if "camera" in self.heads:
            upright = jnp.array([0, 0, 0, 0, 0, 0, 1, 1, 1], jnp.float32)
            pose = upright + 0.1 * jnp.tanh(self.camera_head(tokens.mean(2)))
            pose = pose.at[..., 2].add(9.0 if call["side"] == "back" else 0.0)
            taps[POSE_STAGES] = pose[None]
            names, size = ("extrinsics", "intrinsics"), (height, width)
            fields = dict(zip(names, geometry.pose_encoding_to_cameras(pose, size), strict=True))
            fields["pose_enc"] = pose
        if "depth" in self.heads:
            maps = self.depth_head(tokens).reshape(b, s, *grid, p, p, 2)
            maps = jnp.exp(maps.swapaxes(3, 4).reshape(b, s, height, width, 2))
            fields |= {"depth": maps[..., :1], "depth_conf": 1 + maps[..., 1]}
        return Prediction(**fields), taps


NAMES = NameMap(
    fields={**tensor_rules.FIELDS, "head": {"cam": "camera_head", "dpt": "depth_head"}},
    rules=(
        *tensor_rules.layer("net.patches", "trunk/patches", Transform.CONV),
        *tensor_rules.blocks("net.frame", "trunk/frame_blocks"),
        *tensor_rules.blocks("net.global", "trunk/global_blocks"),
        *tensor_rules.layer("{head}", "{head}", Transform.LINEAR),
    ),
)
ENTRY = BackboneEntry(
    name="pocket",
    model=Pocket,
    default_config=PocketConfig(),
    config_from_json=lambda data: from_json(PocketConfig, data, "config"),
    config_to_json=to_json,
    checkpoint=Checkpoint("Pocket", lambda config: NAMES, "net", {"camera": "cam", "depth": "dpt"}),
)
