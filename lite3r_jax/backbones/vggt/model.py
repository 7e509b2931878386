"""The VGGT model (arXiv 2503.11651; vggt/models/vggt.py).

A DINOv2 encoder turns every view into patch tokens; 24 pairs of blocks attend in turn within each
view ("frame") and over all views of the scene ("global"); heads read the tokens of four layers.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from lite3r_jax import geometry
from lite3r_jax.attention.plan import Plan
from lite3r_jax.attention.strategy import Role, TokenLayout
from lite3r_jax.backbones import operations
from lite3r_jax.backbones.base import POSE_STAGES, Input, Prediction, Tap, Tracks
from lite3r_jax.backbones.heads import activate, run_frames
from lite3r_jax.backbones.model import BackboneModel, Call, RoleSize
from lite3r_jax.backbones.vggt.aggregator import Aggregator
from lite3r_jax.backbones.vggt.camera_head import IterativeCameraHead
from lite3r_jax.backbones.vggt.config import VGGTConfig
from lite3r_jax.backbones.vggt.tracker import TrackConfig, Tracker
from lite3r_jax.errors import InputError
from lite3r_jax.layers.dpt import DPT
from lite3r_jax.layers.stacks import first_tokens
from lite3r_jax.mesh import views_of_all

PARTS = {
    "camera": "camera_head",
    "depth": "depth_head",
    "point": "point_head",
    "track": "track_head",
}
QUERIES = "query points"
# L is the depth of the stack, P the tokens of a view in the trunk, T = 1 + R + h*w in the encoder,
# K and I camera and track iterations.
TAPS = {
    "patch/embed": Tap("B*S h*w C", "patches before the position embedding"),
    "patch/tokens": Tap("B*S T C", "input of the first encoder block"),
    "patch/blocks": Tap("L B*S T C", "output of every encoder block"),
    "patch/attn": Tap("L B*S T C", "output of its attention layer"),
    "patch/norm": Tap("B*S h*w C", "output of the encoder"),
    "trunk/tokens": Tap("B S P C", "input of the first frame block"),
    "frame/blocks": Tap("L B S P C", "output of every frame block"),
    "frame/attn": Tap("L B S P C", "output of its attention layer"),
    "global/blocks": Tap("L B S P C", "output of every global block"),
    "global/attn": Tap("L B S P C", "output of its attention layer"),
    POSE_STAGES: Tap("K B S 9", "pose encoding after every iteration", "camera"),
    "camera/attn": Tap(
        "K L B S 2C", "output of the attention layers of the camera trunk", "camera"
    ),
    "track/features": Tap("B S H/2 W/2 F", "feature maps of the tracker", "track", QUERIES),
    "track/coords": Tap("I B S N 2", "tracks in pixels after every iteration", "track", QUERIES),
}


class TrackHead(nnx.Module):
    """A DPT that computes feature maps, and the tracker on them (vggt/heads/track_head.py)."""

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


class VGGT(BackboneModel):
    """The VGGT model; `prediction, taps = model(images)` reconstructs scenes."""

    parts = PARTS
    taps = TAPS
    camera_outputs = ("camera_head/pose_branch/fc2",)
    view_tokens = "trunk/tokens"
    in_parts = True
    rests_on_host = True
    inputs: ClassVar[Mapping[str, Input]] = {
        QUERIES: Input(("query_points",), "track", "[B, N, 2] (x, y) in pixels of the first view")
    }

    def __init__(
        self,
        config: VGGTConfig,
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
        super().__init__(config, heads=heads, plan=plan, dtype=dtype)
        plan = self.plan
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
            self.camera_head = IterativeCameraHead(config.camera_head, dim, plan=plan, **kinds)
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
        frame_chunk: int | None = None,
        remat: bool = False,
        views: int | None = None,
        on_host: bool = False,
        split_weights: bool = False,
    ) -> tuple[Prediction, dict[str, jax.Array]]:
        """Reconstructs scenes; the pass is compiled once per shape of its arguments.

        Args:
            images: [B, S, H, W, 3] float32 RGB in [0, 1]; H and W multiples of the patch size. The
                first view defines the world frame.
            query_points: [B, N, 2] (x, y) in pixels of the first view, to be tracked; None for no
                tracks.
            taps: names of intermediates to return, from `TAPS`, which gives their shapes.
            frame_chunk: frames that the dense heads handle at a time: memory against speed, the
                result is the same. None: what `heads.default_frame_chunk` takes.
            remat: for training: whether the gradient computes layers and dense heads again instead
                of keeping all that is in them. Memory against about a third more time; values are
                the same.
            views: how many of the views count, where they are in parts; see `BackboneModel`.
            on_host: whether tokens rest on the host; see `BackboneModel`.
            split_weights: see `BackboneModel`.

        Returns:
            (`Prediction`, {tap: array}).

        Raises:
            InputError: see `BackboneModel`.
        """
        return super().__call__(
            images,
            query_points=query_points,
            taps=taps,
            frame_chunk=frame_chunk,
            remat=remat,
            views=views,
            on_host=on_host,
            split_weights=split_weights,
        )

    def roles(self) -> dict[Role, RoleSize]:
        """Implements `BackboneModel.roles`: patch, frame, global, and camera with its head."""
        c, config = self.config.embed_dim, self.config
        vit, trunk, camera = config.vit, config.aggregator, config.camera_head
        roles: dict[Role, RoleSize] = {
            "patch": RoleSize(vit.depth, c // vit.num_heads),
            "frame": RoleSize(trunk.depth, c // trunk.num_heads),
            "global": RoleSize(trunk.depth, c // trunk.num_heads, heads=trunk.num_heads),
        }
        if "camera" in self.heads:
            roles["camera"] = RoleSize(camera.trunk_depth, 2 * c // camera.num_heads, jnp.float32)
        return roles

    def scene_tokens(self, views: int, grid: tuple[int, int]) -> TokenLayout:
        """Implements `BackboneModel.scene_tokens`: camera token, registers and patches per view."""
        return TokenLayout(views, 1 + self.config.num_register_tokens, grid, "global")

    def operations(self, views: int, grid: tuple[int, int]) -> Mapping[str, Mapping[str, int]]:
        """Implements `BackboneModel.operations`: counts the operations of a pass without tracks."""
        config, plan, sites = self.config, self.plan, self.sites
        c, special = config.embed_dim, 1 + config.num_register_tokens
        frame = TokenLayout(1, special, grid, "frame")
        scene = self.scene_tokens(views, grid)
        vit, trunk, camera = config.vit, config.aggregator, config.camera_head
        block = (c, trunk.num_heads, trunk.mlp_ratio)
        encoder = (c, vit.num_heads, vit.mlp_ratio)
        parts = {
            "encoder": operations.patch_embed(views, grid, config.patch_size, c)
            + operations.blocks(plan.specs("patch", sites["patch"], views), frame, views, *encoder),
            "frame": operations.blocks(
                plan.specs("frame", trunk.depth, views), frame, views, *block
            ),
            "global": operations.blocks(plan.specs("global", trunk.depth, views), scene, 1, *block),
        }
        if "camera" in self.heads:
            parts["camera"] = self.camera_head.operations(
                plan.specs("camera", camera.trunk_depth, views), views
            )
        for head, outputs in (("depth", 2), ("point", 4)):
            if head in self.heads:
                parts[head] = operations.dpt(
                    views,
                    grid,
                    dim=2 * c,
                    features=config.dpt.features,
                    out_channels=config.dpt.out_channels,
                    outputs=outputs,
                    patch=config.patch_size,
                )
        return parts

    def forward(
        self, images: jax.Array, given: Mapping[str, jax.Array], call: Call
    ) -> tuple[Prediction, dict[str, jax.Array]]:
        """Implements `BackboneModel.forward`: runs encoder, trunk and heads."""
        query_points = given.get("query_points")
        config = self.config
        size = images.shape[2:4]
        grid = (size[0] // config.patch_size, size[1] // config.patch_size)
        parts = call.parts(images.shape[1])
        if parts is not None and query_points is not None:
            raise InputError("compute.mesh: tracks follow points through all views; leave it out")
        kept, taps = self.aggregator(images, call.taps, call.remat, parts, call.on_host)
        predicted: dict[str, Any] = {}

        if "camera" in self.heads:
            pose_encs, taps["camera/attn"] = self.camera_head.attended(
                views_of_all(first_tokens(kept, taps)[:, :, -1], parts)
            )
            taps[POSE_STAGES] = pose_encs
            predicted["pose_enc"] = pose_encs[-1]
            predicted["extrinsics"], predicted["intrinsics"] = geometry.pose_encoding_to_cameras(
                pose_encs[-1], size
            )

        def dense(head: DPT, finish: Callable[[jax.Array], Any] | None = None) -> Any:
            read, special = self.aggregator.read, self.aggregator.special
            levels = [read.index(layer) for layer in config.dpt.intermediate_layer_idx]
            return run_frames(
                head, kept, levels, special, call.frame_chunk, grid,
                call.remat, parts, call.on_host, finish,
            )  # fmt: skip

        if "depth" in self.heads:
            predicted["depth"], predicted["depth_conf"] = dense(
                self.depth_head, lambda logits: activate(logits, "exp", "expp1")
            )
        if "point" in self.heads:
            predicted["world_points"], predicted["world_points_conf"] = dense(
                self.point_head, lambda logits: activate(logits, "inv_log", "expp1")
            )
        if query_points is not None:
            head = self.track_head
            maps = dense(head.feature_extractor)
            tracked, _ = head.tracker(query_points, maps)
            taps["track/features"], taps["track/coords"] = maps, tracked.coords
            predicted["tracks"] = Tracks(tracked.coords[-1], tracked.visibility, tracked.confidence)
        return Prediction(**predicted), taps
