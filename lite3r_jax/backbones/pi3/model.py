"""The pi^3 model (arXiv 2507.13347; pi3/models/pi3.py).

A DINOv2 encoder turns every view into patch tokens; 18 pairs of blocks attend in turn within each
view and over all views; three decoders of single views lead to points in the camera frame, their
confidence, and the pose of the camera. No view is a reference: permuting views permutes everything.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from lite3r_jax import geometry
from lite3r_jax.attention.plan import Plan
from lite3r_jax.attention.strategy import Role, TokenLayout
from lite3r_jax.backbones import operations
from lite3r_jax.backbones.base import (
    AREA,
    CAMERA_POINTS,
    POINTS,
    POSE_STAGES,
    Choice,
    ImageInput,
    Prediction,
    Tap,
)
from lite3r_jax.backbones.dinov2 import DinoEncoder, EncoderConfig
from lite3r_jax.backbones.heads import map_frames
from lite3r_jax.backbones.model import BackboneModel, Call, RoleSize
from lite3r_jax.backbones.pi3.cameras import intrinsics_of, poses_of, ray_sums
from lite3r_jax.backbones.pi3.config import EncoderSizes, Pi3Config, check_plan, own_plan
from lite3r_jax.backbones.pi3.heads import CameraHead, DepthHead
from lite3r_jax.backbones.pi3.metric import MetricHead
from lite3r_jax.backbones.pi3.trunk import Trunk, scene_layout, view_layout
from lite3r_jax.errors import InputError
from lite3r_jax.layers.patch_embed import normalize
from lite3r_jax.layers.rope import RopeTable, rope_table, view_positions
from lite3r_jax.mesh import ViewParts, views_of_all

PARTS = {"camera": "camera_head", "depth": "depth_head"}
HEAD_TAPS = ("head/blocks", "head/attn")
# L is the depth of the stack, P = R + h*w the tokens of a view in the trunk, T those in the
# encoder, D the channels of the head decoders.
TAPS = {
    "patch/embed": Tap("B*S h*w C", "patches before the position embedding"),
    "patch/tokens": Tap("B*S T C", "input of the first encoder block"),
    "patch/blocks": Tap("L B*S T C", "output of every encoder block"),
    "patch/attn": Tap("L B*S T C", "output of its attention layer"),
    "trunk/tokens": Tap("B S P C", "input of the first frame block"),
    "frame/blocks": Tap("L B S P C", "output of every frame block"),
    "frame/attn": Tap("L B S P C", "output of its attention layer"),
    "global/blocks": Tap("L B S P C", "output of every global block"),
    "global/attn": Tap("L B S P C", "output of its attention layer"),
    "head/blocks": Tap(
        "L B S P D", "output of the blocks of the decoders: points, confidence, cameras", "depth"
    ),
    "head/attn": Tap("L B S P D", "output of their attention layers", "depth"),
    CAMERA_POINTS: Tap("B S H W 3", "points in the camera frame", "depth"),
    "depth/conf_logits": Tap("B S H W", "the confidence before the sigmoid", "depth"),
    POSE_STAGES: Tap("1 B S 9", "pose encoding, world-to-camera", "camera"),
    "camera/camera_to_world": Tap("B S 3 4", "poses in the model's own world", "camera"),
}


class Pi3(BackboneModel):
    """The pi^3 model; `prediction, taps = model(images)` reconstructs scenes."""

    parts = PARTS
    taps = TAPS
    camera_outputs = ("camera_head/translation", "camera_head/rotation")
    view_tokens = "trunk/tokens"
    in_parts = True
    rests_on_host = True
    published_images: ClassVar = ImageInput(AREA, 255_000)
    choices: ClassVar[Mapping[str, Choice]] = {
        "world": Choice(
            {"first": None, "model": None},
            "the world: the camera frame of the first view, or the model's own",
        ),
        "intrinsics": Choice(
            {"view": None, "shared": None}, "whether they are fitted per view or per scene"
        ),
        "principal_point": Choice(
            {"free": None, "center": None}, "fitted as well, or in the middle of the image"
        ),
        POINTS: Choice(
            {False: None, True: "camera"}, "whether the points of the head are returned"
        ),
    }

    def __init__(
        self,
        config: Pi3Config,
        *,
        heads: Sequence[str] = tuple(PARTS),
        plan: Plan | None = None,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Builds the model with random weights.

        Args:
            config: sizes.
            heads: which of camera, depth to have; camera needs depth.
            plan: attention strategy of every site; when None that of the weights: dense, and
                `attention.speed3r` in the global layers of a sparse model. Roles: "patch" of the
                encoder, "frame" and "global" of the trunk, "head" of the decoders (points,
                confidence, cameras).
            dtype: compute dtype of encoder, trunk and head decoders, float32 or bfloat16.
                LayerNorm, softmax, residual stream, RoPE, position tables and the last layers of
                the heads are float32 in any case. (Upstream's RoPE has 8-bit angles under autocast,
                which is farther from float32.)
            param_dtype: dtype in which parameters are held.
            rngs: random streams.

        Raises:
            InputError: an unknown head, camera without depth, or a plan that leaves out what a
                sparse model has learned.
            ValueError: the plan has a rule without a site.
        """
        plan = own_plan(config) if plan is None else plan
        check_plan(config, plan)
        super().__init__(config, heads=heads, plan=plan, dtype=dtype)
        if "camera" in heads and "depth" not in heads:
            raise InputError("heads: camera has its focal lengths from depth; add depth")
        encoder = config.encoder
        kinds = {"plan": self.plan, "dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.encoder = DinoEncoder(
            EncoderConfig(encoder.depth, encoder.heads, config.mlp_ratio),
            dim=encoder.dim,
            patch=config.patch_size,
            image=encoder.img_size,
            registers=encoder.registers,
            **kinds,
        )
        self.trunk = Trunk(config, **kinds)
        sites = self.sites.get("head", 0)
        if "camera" in heads:
            self.camera_head = CameraHead(config, sites, **kinds)
        if "depth" in heads:
            self.depth_head = DepthHead(config, sites, **kinds)

    @classmethod
    def images_for(cls, config: Pi3Config) -> ImageInput:
        """Implements `Backbone.images_for`: the authors' limit, or pixels for another table."""
        side = config.encoder.img_size
        return cls.published_images if side == EncoderSizes.img_size else ImageInput(AREA, side**2)

    def __call__(
        self,
        images: jax.Array,
        *,
        world: Literal["first", "model"] = "first",
        intrinsics: Literal["view", "shared"] = "view",
        principal_point: Literal["free", "center"] = "free",
        points: bool = False,
        taps: Collection[str] = (),
        frame_chunk: int | None = None,
        remat: bool = False,
        views: int | None = None,
        on_host: bool = False,
        split_weights: bool = False,
    ) -> tuple[Prediction, dict[str, jax.Array]]:
        """Reconstructs scenes; the pass is compiled once per shape and set of choices.

        Args:
            images: [B, S, H, W, 3] float32 RGB in [0, 1]; H and W multiples of the patch size.
            world: "first": the camera frame of the first view; "model": the frame that the model
                has the scene in, which is arbitrary.
            intrinsics: fitted to the rays of every view, weighted with confidence, or to those of
                all views of a scene together ("shared").
            principal_point: fitted as well ("free"), or ((W - 1) / 2, (H - 1) / 2) ("center").
            points: whether to return `world_points`, the points of the head moved by the poses;
                their rays need not be those of a pinhole camera.
            taps: names of intermediates to return, from `TAPS`, which gives their shapes.
            frame_chunk: frames that the heads handle at a time: memory against speed, the result
                is the same. None: what `heads.default_frame_chunk` takes.
            remat: for training: whether the gradient computes layers and heads again instead of
                keeping all that is in them. Memory against about a third more time; values are the
                same.
            views: how many of the views count, where they are in parts; see `BackboneModel`.
            on_host: whether tokens rest on the host; see `BackboneModel`.
            split_weights: see `BackboneModel`.

        Returns:
            (`Prediction`, {tap: array}). Confidences are in (0, 1); the pose encoding leaves out
            where the principal point is.

        Raises:
            InputError: see `BackboneModel`.
        """
        return super().__call__(
            images,
            world=world,
            intrinsics=intrinsics,
            principal_point=principal_point,
            points=points,
            taps=taps,
            frame_chunk=frame_chunk,
            remat=remat,
            views=views,
            on_host=on_host,
            split_weights=split_weights,
        )

    def roles(self) -> dict[Role, RoleSize]:
        """Implements `BackboneModel.roles`: patch, frame, global, and head with the depth head."""
        encoder, trunk, heads = self.config.encoder, self.config.decoder, self.config.heads
        roles: dict[Role, RoleSize] = {
            "patch": RoleSize(encoder.depth, encoder.dim // encoder.heads),
            "frame": RoleSize(self.config.pairs, trunk.dim // trunk.heads),
            "global": RoleSize(self.config.pairs, trunk.dim // trunk.heads, heads=trunk.heads),
        }
        decoders = 2 * ("depth" in self.heads) + ("camera" in self.heads)
        if decoders:
            roles["head"] = RoleSize(decoders * heads.depth, heads.dim // heads.heads)
        return roles

    def scene_tokens(self, views: int, grid: tuple[int, int]) -> TokenLayout:
        """Implements `BackboneModel.scene_tokens`: registers and patches per view, no reference."""
        return scene_layout(self.config, grid, views)

    def operations(self, views: int, grid: tuple[int, int]) -> Mapping[str, Mapping[str, int]]:
        """Implements `BackboneModel.operations`: counts encoder, trunk and heads."""
        config, plan, sites = self.config, self.plan, self.sites
        encoder, trunk = config.encoder, config.decoder
        frame, scene = view_layout(config, grid), scene_layout(config, grid, views)
        block = (trunk.dim, trunk.heads, config.mlp_ratio)

        def specs(role: Role) -> Any:
            return plan.specs(role, sites[role], views)

        parts = {
            "encoder": operations.patch_embed(views, grid, config.patch_size, encoder.dim)
            + operations.blocks(
                specs("patch"),
                self.encoder.layout(grid),
                views,
                encoder.dim,
                encoder.heads,
                config.mlp_ratio,
            ),
            "frame": operations.blocks(specs("frame"), frame, views, *block),
            "global": operations.blocks(specs("global"), scene, 1, *block),
        }
        if "camera" in self.heads:
            parts["camera"] = self.camera_head.operations(plan, frame, views)
        if "depth" in self.heads:
            head = self.depth_head
            work = head.point.operations(plan, frame, views)
            parts["depth"] = work + head.conf.operations(plan, frame, views)
            if head.metric is not None:
                parts["depth"] += head.metric.operations(scene.tokens)
        return parts

    def forward(
        self, images: jax.Array, given: Mapping[str, jax.Array], call: Call
    ) -> tuple[Prediction, dict[str, jax.Array]]:
        """Implements `BackboneModel.forward`: runs encoder, trunk and heads."""
        del given
        b, s, height, width, _ = images.shape
        size, patch = (height, width), self.config.patch_size
        grid = (height // patch, width // patch)
        flat = normalize(images).reshape(b * s, height, width, 3)
        parts = call.parts(s)
        count = s if parts is None else parts.views
        patches, out = self.encoder(flat, call.taps, call.remat, views=count, parts=parts)
        kept, more = self.trunk(
            patches.reshape(b, s, *patches.shape[1:]),
            grid,
            call.taps,
            call.remat,
            parts,
            call.on_host,
        )
        out |= more
        if "depth" not in self.heads:
            return Prediction(), out

        maps = self._heads(kept, grid, count, call, parts)
        predicted: dict[str, Any] = {"depth_conf": nnx.sigmoid(maps["logits"])}
        if (metric := self.depth_head.metric) is not None:
            if call.on_host:
                raise InputError(
                    "compute.rest: the head for meters of these weights looks at the tokens of all"
                    " views together; leave it out"
                )
            scale = _meters(metric, kept, view_layout(self.config, grid), parts)[:, None, None]
            for name in ("depth", "points"):
                if name in maps:
                    maps[name] = maps[name] * scale[..., None, None]
            if "pose" in maps:
                translation, rotation = maps["pose"][..., :3], maps["pose"][..., 3:]
                maps["pose"] = jnp.concatenate([translation * scale, rotation], -1)
            predicted["unit"] = "meter"
        predicted["depth"] = maps["depth"]
        sums = maps["sums"]
        if call["intrinsics"] == "shared":
            every = views_of_all(sums, parts).sum(1, keepdims=True)
            sums = jnp.broadcast_to(every, sums.shape)
        predicted["intrinsics"] = intrinsics_of(sums, size, call["principal_point"])
        out["depth/conf_logits"] = maps["logits"]
        if "points" in maps:
            out[CAMERA_POINTS] = maps["points"]
        out |= {name: jnp.moveaxis(maps[name], 2, 0) for name in HEAD_TAPS if name in maps}
        if "camera" in self.heads:
            poses = poses_of(maps["pose"][..., :3], maps["pose"][..., 3:])
            world_to_camera = geometry.invert_se3(poses)
            out["camera/camera_to_world"] = poses
            if call["world"] == "first":
                world_to_camera = geometry.compose_se3(world_to_camera, poses[:, :1])
            predicted["extrinsics"] = world_to_camera
            predicted["pose_enc"] = geometry.cameras_to_pose_encoding(
                world_to_camera, predicted["intrinsics"], size
            )
            out[POSE_STAGES] = predicted["pose_enc"][None]
            if call["points"]:
                back = geometry.invert_se3(world_to_camera)
                predicted["world_points"] = geometry.transform_points(back, maps["points"])
                predicted["world_points_conf"] = predicted["depth_conf"]
        return Prediction(**predicted), out

    def _heads(
        self,
        kept: jax.Array,
        grid: tuple[int, int],
        views: int,
        call: Call,
        parts: ViewParts | None,
    ) -> dict[str, jax.Array]:
        """Runs the heads on the trunk's tokens [B, S, 1, P, 2C], some frames at a time.

        Results by name: depth [B, S, H, W, 1]; logits [B, S, H, W] of the confidence; sums
        [B, S, 2, 5] of `ray_sums`; points [B, S, H, W, 3] where they are asked for; pose [B, S, 12]
        with a camera head; taps of the decoders [B, S, L, P, D].
        """
        layout = view_layout(self.config, grid)
        taps = [name for name in HEAD_TAPS if name in call.taps]
        with_points = call["points"] or CAMERA_POINTS in call.taps
        graph, state = nnx.split(
            (self.depth_head, self.camera_head if "camera" in self.heads else None)
        )

        def one(state: Any, frame: jax.Array) -> dict[str, jax.Array]:
            depth_head, camera_head = nnx.merge(graph, state)
            arguments = (frame[:, 0], layout, views, taps)
            raw, *tapped = depth_head.point(*arguments)
            logits, second = depth_head.conf(*arguments)
            tapped.append(second)
            logits, rays, z = logits[..., 0], raw[..., :2], depth_head.depth(raw[..., 2:])
            maps = {"depth": z, "logits": logits, "sums": ray_sums(rays, nnx.sigmoid(logits))}
            if with_points:
                maps["points"] = jnp.concatenate([rays * z, z], -1)
            if camera_head is not None:
                features, third = camera_head.decoder(*arguments)
                tapped.append(third)
                maps["pose"] = camera_head.pose(features)
            return maps | {name: jnp.concatenate([x[name] for x in tapped], 1) for name in taps}

        return map_frames(one, state, kept, call.frame_chunk, call.remat, parts, call.on_host)


def _meters(
    metric: MetricHead, kept: jax.Array, view: TokenLayout, parts: ViewParts | None
) -> jax.Array:
    """Predicts the meters per unit of length [B] from the trunk's tokens [B, S, 1, P, 2C]."""
    rope = rope_table(view_positions(view), metric.head_dim)
    graph, state = nnx.split(metric)

    def of_device(state: Any, kept: jax.Array, rope: RopeTable) -> jax.Array:
        tokens = kept.reshape(len(kept), -1, kept.shape[-1])
        return nnx.merge(graph, state)(tokens, rope, parts)

    if parts is None:
        return of_device(state, kept, rope)
    return parts.on_each(of_device, (None, 1, None), None)(state, kept, rope)
