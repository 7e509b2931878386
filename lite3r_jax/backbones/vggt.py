"""VGGT: views to cameras, depth, points and tracks in one pass (arXiv 2503.11651; vggt/models/).

A DINOv2 encoder turns every view into patch tokens; 24 pairs of blocks attend in turn within each
view ("frame") and over all views of the scene ("global"); heads read the tokens of four layers.
"""

import dataclasses
import functools
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lite3r_jax import geometry
from lite3r_jax.attention.core import Plan, Role, TokenLayout, build_cores, runs
from lite3r_jax.backbones.base import (
    Backbone,
    Prediction,
    Tracks,
    check_call,
    check_heads,
    check_images,
    count_parameters,
    from_json,
)
from lite3r_jax.backbones.dinov2 import DinoEncoder, EncoderConfig
from lite3r_jax.backbones.heads import (
    CameraConfig,
    CameraHead,
    DPTConfig,
    activate,
    run_frames,
)
from lite3r_jax.backbones.track_head import TrackConfig, Tracker
from lite3r_jax.backbones.trunk import alternate
from lite3r_jax.errors import InputError
from lite3r_jax.layers.block import Block, BlockConfig, stack
from lite3r_jax.layers.dpt import DPT
from lite3r_jax.layers.patch_embed import normalise
from lite3r_jax.layers.rngs import traced_rngs
from lite3r_jax.layers.rope import rope_table, view_positions

HEADS = ("camera", "depth", "point", "track")


@dataclass(frozen=True)
class TrunkConfig:
    """Frame and global blocks: `depth` of each."""

    depth: int = 24
    num_heads: int = 16
    mlp_ratio: float = 4.0


@dataclass(frozen=True)
class VGGTConfig:
    """Sizes of a VGGT; the defaults are VGGT-1B."""

    img_size: int = 518
    patch_size: int = 14
    embed_dim: int = 1024
    num_register_tokens: int = 4
    vit: EncoderConfig = field(default_factory=EncoderConfig)
    aggregator: TrunkConfig = field(default_factory=TrunkConfig)
    camera_head: CameraConfig = field(default_factory=CameraConfig)
    dpt: DPTConfig = field(default_factory=DPTConfig)
    track: TrackConfig = field(default_factory=TrackConfig)


class Aggregator(nnx.Module):
    """Encoder and alternating trunk (vggt/models/aggregator.py).

    Sites: roles "patch", "frame" and "global". Frame block i runs before global block i; the
    residual stream passes through both.
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
        """Args: config; read: trunk layers that heads read, besides the last; others as `VGGT`."""
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
        self.frame_blocks = stack(make, trunk.depth, rngs)
        self.global_blocks = stack(make, trunk.depth, rngs)
        self.runs = runs(plan.specs("frame", trunk.depth), plan.specs("global", trunk.depth))
        site = (trunk.num_heads, self.head_dim, param_dtype, rngs)
        self.frame_cores = build_cores(self.runs, 0, *site)
        self.global_cores = build_cores(self.runs, 1, *site)

    def tokens(self, patches: jax.Array) -> jax.Array:
        """Put camera and register tokens before the patches.

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
        self, images: jax.Array, taps: Collection[str] = (), remat: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Run encoder and trunk.

        Args:
            images: [B, S, H, W, 3] in [0, 1].
            taps: names of intermediates to return, see `TAPS`.
            remat: see `scan_stacks`.

        Returns:
            (tokens [B, S, K, P, 2C] in the compute dtype: frame and global stream, side by side, of
            the K layers that heads read; taps).
        """
        b, s, height, width, _ = images.shape
        grid = (height // self.patch, width // self.patch)
        flat = normalise(images).reshape(b * s, height, width, 3)
        patches, out = self.patch_embed(flat, taps, remat)
        c = patches.shape[-1]
        x = self.tokens(patches.reshape(b, s, -1, c))
        out |= {n: t for n, t in {"patch/norm": patches, "trunk/tokens": x}.items() if n in taps}

        frame = TokenLayout(1, self.special, grid, "frame")
        scene = TokenLayout(s, self.special, grid, "global")
        rope = rope_table(view_positions(frame), self.head_dim)
        kept, ys = alternate(
            x,
            (self.frame_blocks, self.global_blocks),
            (self.frame_cores, self.global_cores),
            self.runs,
            (frame, scene),
            (rope, rope),
            read=self.read,
            dtype=self.dtype,
            taps=taps,
            remat=remat,
        )
        return kept, out | ys


class TrackHead(nnx.Module):
    """Feature maps by DPT, then the tracker (vggt/heads/track_head.py)."""

    def __init__(
        self, config: TrackConfig, dim: int, patch: int, *, param_dtype: Any, rngs: nnx.Rngs
    ):
        self.feature_extractor = DPT(
            dim,
            features=config.features,
            out_channels=config.dpt_out_channels,
            outputs=None,
            patch=patch,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.tracker = Tracker(config, param_dtype=param_dtype, rngs=rngs)


# Intermediates that can be asked for, and their shapes. L is the depth of the stack, P the tokens
# of a view in the trunk, T = 1 + R + h*w in the encoder, K and I camera and track iterations.
TAPS = {
    "patch/embed": "[B*S, h*w, C] patches before the position embedding",
    "patch/tokens": "[B*S, T, C] input of the first encoder block",
    "patch/blocks": "[L, B*S, T, C] output of every encoder block",
    "patch/attn": "[L, B*S, T, C] output of its attention layer",
    "patch/norm": "[B*S, h*w, C] output of the encoder",
    "trunk/tokens": "[B, S, P, C] input of the first frame block",
    "frame/blocks": "[L, B, S, P, C] output of every frame block",
    "frame/attn": "[L, B, S, P, C] output of its attention layer",
    "global/blocks": "[L, B, S, P, C] output of every global block",
    "global/attn": "[L, B, S, P, C] output of its attention layer",
    "camera/pose_enc": "[K, B, S, 9] pose encoding after every iteration",
    "camera/attn": "[K, J, B, S, 2C] output of the J attention layers of the camera trunk",
    "track/features": "[B, S, H/2, W/2, F] feature maps of the tracker",
    "track/coords": "[I, B, S, N, 2] tracks in pixels after every iteration",
}


class VGGT(nnx.Module):
    """The model. `prediction, taps = model(images)`."""

    def __init__(
        self,
        config: VGGTConfig,
        *,
        heads: Sequence[str] = HEADS,
        plan: Plan | None = None,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Build with random weights.

        Args:
            config: sizes.
            heads: which of camera, depth, point, track to have.
            plan: attention strategy of every site; dense everywhere when None.
            dtype: compute dtype of encoder and trunk, float32 or bfloat16. LayerNorm, softmax,
                residual stream, RoPE, position tables and the heads are float32 in any case, as
                upstream has it under autocast.
            param_dtype: dtype in which parameters are held.
            rngs: random streams.

        Raises:
            InputError: an unknown head.
            ValueError: the plan has a rule without a site.
        """
        self.heads = check_heads(heads, HEADS)
        plan = Plan() if plan is None else plan
        sites: dict[Role, int] = {
            "patch": config.vit.depth,
            "frame": config.aggregator.depth,
            "global": config.aggregator.depth,
        }
        if "camera" in heads:
            sites["camera"] = config.camera_head.trunk_depth
        plan.check(sites)
        self.config = config
        self.dtype = jnp.dtype(dtype)
        self._sites = plan, tuple(sites.items())
        dense_heads = {*self.heads} & {"depth", "point", "track"}
        self.aggregator = Aggregator(
            config,
            read=config.dpt.intermediate_layer_idx if dense_heads else (),
            plan=plan,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        dim = 2 * config.embed_dim
        kinds = {"param_dtype": param_dtype, "rngs": rngs}

        def dense_head(outputs: int) -> DPT:
            return DPT(
                dim,
                features=config.dpt.features,
                out_channels=config.dpt.out_channels,
                outputs=outputs,
                patch=config.patch_size,
                **kinds,
            )

        if "camera" in heads:
            self.camera_head = CameraHead(config.camera_head, dim, plan=plan, **kinds)
        if "depth" in heads:
            self.depth_head = dense_head(2)
        if "point" in heads:
            self.point_head = dense_head(4)
        if "track" in heads:
            self.track_head = TrackHead(config.track, dim, config.patch_size, **kinds)

    def __call__(
        self,
        images: jax.Array,
        query_points: jax.Array | None = None,
        *,
        taps: Collection[str] = (),
        frame_chunk: int = 1,
        remat: bool = False,
    ) -> tuple[Prediction, dict[str, jax.Array]]:
        """Reconstruct scenes. Compiled once per shape.

        Args:
            images: [B, S, H, W, 3] float32 RGB in [0, 1]; H and W multiples of the patch size. The
                first view defines the world frame.
            query_points: [B, N, 2] (x, y) in pixels of the first view, to be tracked; None for no
                tracks.
            taps: names of intermediates to return, from `TAPS`, which gives their shapes.
            frame_chunk: frames that the dense heads handle at a time: memory against speed, the
                result is the same.
            remat: for training: whether the gradient computes layers and dense heads again instead
                of keeping all that is in them. Memory against about a third more time; values are
                the same.

        Returns:
            (`Prediction`, {tap: array}).

        Raises:
            InputError: images of wrong rank, dtype, size or range; query points without a track
                head; a tap that is unknown or that nothing computes; frame_chunk below 1.
        """
        check_images(images, self.config.patch_size)
        check_call(taps, TAPS, frame_chunk)
        if query_points is not None and "track" not in self.heads:
            raise InputError("query_points need the track head, which this model was built without")
        absent = [] if "camera" in self.heads else ["camera/attn", "camera/pose_enc"]
        absent += [] if query_points is not None else ["track/features", "track/coords"]
        if missing := sorted(set(taps) & set(absent)):
            raise InputError(
                f"taps {missing} need the camera head, or query_points; add or drop them"
            )
        graph, state = nnx.split(self)
        choices = (tuple(sorted(taps)), frame_chunk, remat)
        return _forward(graph, state, images, query_points, choices)

    @property
    def plan(self) -> Plan:
        """Attention strategy of every site."""
        return self._sites[0]

    @property
    def sites(self) -> dict[Role, int]:
        """Number of attention layers of every role."""
        return dict(self._sites[1])

    def attention(self) -> dict[str, str]:
        """Strategy and kernel of every role on this machine, for reports."""
        plan, sites = self._sites
        # the heads are float32 in any case
        dtypes: dict[Role, Any] = {
            role: jnp.float32 if role == "camera" else self.dtype for role, _ in sites
        }
        c, config = self.config.embed_dim, self.config
        heads: dict[Role, int] = {
            "patch": c // config.vit.num_heads,
            "frame": c // config.aggregator.num_heads,
            "global": c // config.aggregator.num_heads,
            "camera": 2 * c // config.camera_head.num_heads,
        }
        return plan.describe(dict(sites), dtypes, heads)

    def _run(
        self,
        images: jax.Array,
        query_points: jax.Array | None,
        choices: tuple[tuple[str, ...], int, bool],
    ) -> tuple[Prediction, dict[str, jax.Array]]:
        taps, frame_chunk, remat = choices
        config = self.config
        size = images.shape[2:4]
        grid = (size[0] // config.patch_size, size[1] // config.patch_size)
        kept, out = self.aggregator(images, taps, remat)
        found: dict[str, Any] = {}

        if "camera" in self.heads:
            pose_encs, out["camera/attn"] = self.camera_head.attended(kept[:, :, -1, 0])
            out["camera/pose_enc"] = pose_encs
            found["pose_enc"] = pose_encs[-1]
            found["extrinsics"], found["intrinsics"] = geometry.pose_encoding_to_cameras(
                pose_encs[-1], size
            )

        def dense(head: DPT) -> jax.Array:
            read, special = self.aggregator.read, self.aggregator.special
            levels = [read.index(layer) for layer in config.dpt.intermediate_layer_idx]
            return run_frames(head, kept, levels, special, frame_chunk, grid, remat)

        if "depth" in self.heads:
            logits = dense(self.depth_head)
            found["depth"], found["depth_conf"] = activate(logits, "exp", "expp1")
        if "point" in self.heads:
            logits = dense(self.point_head)
            found["world_points"], found["world_points_conf"] = activate(logits, "inv_log", "expp1")
        if query_points is not None:
            head = self.track_head
            maps = dense(head.feature_extractor)
            tracked, _ = head.tracker(query_points, maps)
            out["track/features"], out["track/coords"] = maps, tracked.coords
            found["tracks"] = Tracks(tracked.coords[-1], tracked.visibility, tracked.confidence)
        return Prediction(**found), {name: x for name, x in out.items() if name in taps}


@functools.partial(jax.jit, static_argnums=(0, 4))
def _forward(graph, state, images, query_points, choices):
    return nnx.merge(graph, state)._run(images, query_points, choices)


# Keys of the JSON form that describe a test run and not the model.
_RUN_KEYS = {"batch", "views", "height", "width"}


def config_to_json(config: VGGTConfig) -> dict[str, Any]:
    """The JSON form: one key per setting, nested as the dataclasses are."""
    return dataclasses.asdict(config, dict_factory=_jsonable)


def _jsonable(items: list[tuple[str, Any]]) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in items}


def config_from_json(data: dict[str, Any]) -> VGGTConfig:
    """Read the JSON form; settings that are absent keep VGGT-1B's values.

    `param_count`, if present, is checked against the model with all heads. Keys of a test run
    (batch, views, height, width) are accepted and ignored.

    Raises:
        InputError: unknown keys, wrong types, sizes that do not fit together.
    """
    expected = None
    if isinstance(data, dict):
        data = {k: v for k, v in data.items() if k not in _RUN_KEYS}
        expected = data.pop("param_count", None)
    config = from_json(VGGTConfig, data, "config")
    _check_config(config)
    if expected is not None:
        model = nnx.eval_shape(lambda: VGGT(config, rngs=traced_rngs(0)))
        # DINOv2's mask token is in every checkpoint and in no forward pass.
        count = count_parameters(model) + config.embed_dim
        if count != expected:
            raise InputError(
                f"config: param_count says {expected:,} but these sizes give {count:,}; correct one"
            )
    return config


def _check_config(config: VGGTConfig) -> None:
    depth = config.aggregator.depth
    c = config.embed_dim
    rules = [
        (config.img_size % config.patch_size == 0, "img_size must be a multiple of patch_size"),
        (
            c % (4 * config.aggregator.num_heads) == 0,
            "embed_dim / aggregator.num_heads must be a multiple of 4",
        ),
        (c % config.vit.num_heads == 0, "vit.num_heads must divide embed_dim"),
        (
            2 * c % config.camera_head.num_heads == 0,
            "camera_head.num_heads must divide 2 * embed_dim",
        ),
        (len(config.dpt.out_channels) == 4, "dpt.out_channels must have 4 entries"),
        (len(config.track.dpt_out_channels) == 4, "track.dpt_out_channels must have 4 entries"),
        (
            all(n % 4 == 0 for n in (*config.dpt.out_channels, config.dpt.features // 2)),
            "dpt.out_channels and dpt.features / 2 must be multiples of 4",
        ),
        (
            len(config.dpt.intermediate_layer_idx) == 4
            and all(0 <= i < depth for i in config.dpt.intermediate_layer_idx),
            f"dpt.intermediate_layer_idx must name 4 of the {depth} trunk layers",
        ),
    ]
    broken = [text for ok, text in rules if not ok]
    if broken:
        raise InputError(f"config: {'; '.join(broken)}")


BACKBONE = Backbone(
    name="vggt",
    default_config=VGGTConfig(),
    heads=HEADS,
    config_from_json=config_from_json,
    config_to_json=config_to_json,
    build=VGGT,
    taps=TAPS,
)
