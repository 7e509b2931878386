"""The Depth Anything 3 model (depth_anything_3/model/da3.py, arXiv 2511.10647).

One DINOv2 encodes all views; its later blocks attend in turn within each view and over all views.
A dense head turns tokens of four blocks into depth and, where asked for, rays; a small head
predicts cameras from the tokens. Known cameras can go in as camera tokens.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar, Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx

from lite3r_jax.attention.plan import Plan
from lite3r_jax.attention.strategy import Role, TokenLayout
from lite3r_jax.backbones import operations
from lite3r_jax.backbones.base import (
    KNOWN_CAMERAS,
    POSE_STAGES,
    Choice,
    ImageInput,
    Input,
    Prediction,
    Tap,
)
from lite3r_jax.backbones.da3.cameras import (
    POSE_DIM,
    CameraDecoder,
    CameraEncoder,
    check_cameras,
    decode_cameras,
    world_to_camera_encoding,
)
from lite3r_jax.backbones.da3.config import DA3Config
from lite3r_jax.backbones.da3.known_cameras import normalize as normalize_cameras
from lite3r_jax.backbones.da3.rays import RayHead, cameras_from_rays
from lite3r_jax.backbones.da3.reference_view import Strategy
from lite3r_jax.backbones.da3.trunk import Trunk
from lite3r_jax.backbones.heads import activate, map_frames
from lite3r_jax.backbones.model import BackboneModel, Call, RoleSize
from lite3r_jax.errors import InputError
from lite3r_jax.layers.dpt import DPT
from lite3r_jax.layers.patch_embed import normalize
from lite3r_jax.mesh import views_of_all

PARTS = {
    "camera": "camera_head",
    "depth": "depth_head",
    "ray": "ray_head",
    "camera_encoder": "camera_encoder",
}
# L counts the sites of a role, K the out layers, P = 1 + h*w the tokens of a view. Views are always
# in the order of the images.
TAPS = {
    "trunk/tokens": Tap("B S P C", "input of the first block"),
    "trunk/reference": Tap("B", "the view that was chosen as reference"),
    "frame/blocks": Tap("L B S P C", "output of every block within views"),
    "frame/attn": Tap("L B S P C", "output of its attention layer"),
    "global/blocks": Tap("L B S P C", "output of every block over views"),
    "global/attn": Tap("L B S P C", "output of its attention layer"),
    "features": Tap("B S K h*w 2C", "what the dense head reads: one half as it is, one normed"),
    "camera/encoded": Tap("B S C", "tokens of the known cameras", "camera_encoder", KNOWN_CAMERAS),
    "camera/tokens": Tap("B S K 2C", "camera tokens of the out layers"),
    POSE_STAGES: Tap("1 B S 9", "pose encoding, world-to-camera", "camera"),
    "camera/camera_to_world": Tap("B S 9", "the same of the inverse pose, as upstream", "camera"),
}


class DA3(BackboneModel):
    """The Depth Anything 3 model; `prediction, taps = model(images)` reconstructs scenes."""

    parts = PARTS
    taps = TAPS
    camera_outputs = (
        "camera_head/translation", "camera_head/quaternion", "camera_head/field_of_view",
    )  # fmt: skip
    view_tokens = "features"
    in_parts = True
    rests_on_host = True
    published_images: ClassVar = ImageInput("upper_bound_resize", 504)
    choices: ClassVar[Mapping[str, Choice]] = {
        "reference": Choice(
            dict.fromkeys(get_args(Strategy)), "how the reference view is chosen", KNOWN_CAMERAS
        ),
        "poses": Choice({"camera": None, "ray": "ray"}, "the head that cameras come from"),
        "rays": Choice({False: None, True: "ray"}, "whether rays are returned"),
    }
    inputs: ClassVar[Mapping[str, Input]] = {
        KNOWN_CAMERAS: Input(
            ("extrinsics", "intrinsics"),
            "camera_encoder",
            "[B, S, 3, 4] world-to-camera of `normalize_cameras`, [B, S, 3, 3] in pixels",
        )
    }

    # cameras of one scene to the extrinsics that the call takes
    normalize_cameras = staticmethod(normalize_cameras)

    def __init__(
        self,
        config: DA3Config,
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
            heads: which of camera, depth, ray, camera_encoder to have; ray needs depth.
            plan: attention strategy of every site; dense everywhere when None. Roles: "frame" and
                "global" of the trunk, "camera" of the camera encoder.
            dtype: compute dtype of the trunk, float32 or bfloat16. LayerNorm, softmax, residual
                stream, RoPE, position tables and the heads are float32 in any case, as upstream has
                it under autocast.
            param_dtype: dtype in which parameters are held.
            rngs: random streams.

        Raises:
            InputError: an unknown head, or ray without depth.
            ValueError: the plan has a rule without a site.
        """
        super().__init__(config, heads=heads, plan=plan, dtype=dtype)
        if "ray" in heads and "depth" not in heads:
            raise InputError("heads: ray reads the levels of the depth head; add depth")
        plan = self.plan
        self.trunk = Trunk(config, plan=plan, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        kinds = {"param_dtype": param_dtype, "rngs": rngs}
        dim = 2 * config.embed_dim
        if "camera" in heads:
            self.camera_head = CameraDecoder(dim, **kinds)
        if "depth" in heads:
            self.depth_head = DPT(
                dim,
                features=config.features,
                out_channels=config.out_channels,
                outputs=2,
                patch=config.patch_size,
                rectified_skip=False,
                **kinds,
            )
        if "ray" in heads:
            self.ray_head = RayHead(config.features, **kinds)
        if "camera_encoder" in heads:
            self.camera_encoder = CameraEncoder(config, plan=plan, **kinds)

    def __call__(
        self,
        images: jax.Array,
        extrinsics: jax.Array | None = None,
        intrinsics: jax.Array | None = None,
        *,
        reference: Strategy = "saddle_balanced",
        poses: Literal["camera", "ray"] = "camera",
        rays: bool = False,
        taps: Collection[str] = (),
        frame_chunk: int | None = None,
        remat: bool = False,
        views: int | None = None,
        on_host: bool = False,
        split_weights: bool = False,
    ) -> tuple[Prediction, dict[str, jax.Array]]:
        """Reconstructs scenes; the pass is compiled once per shape and set of choices.

        The world frame is the model's own, near the reference view's camera. Predicted cameras are
        the model's also where known cameras went in; `infer.alignment.align` brings them together.

        Args:
            images: [B, S, H, W, 3] float32 RGB in [0, 1]; H and W multiples of the patch size.
            extrinsics: [B, S, 3, 4] or [B, S, 4, 4] world-to-camera of known cameras, as
                `normalize_cameras` gives them.
            intrinsics: [B, S, 3, 3] of known cameras, in pixels of the images.
            reference: which view comes first, see `select_reference`; of 3 or more views without
                known cameras.
            poses: whether cameras come from the camera head or from rays; the latter takes longer.
            rays: whether to return rays; they cost as much as the depth, and nothing when off.
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
            InputError: see `BackboneModel`; known cameras with values that no camera has.
            ValueError: known cameras of another shape, or one of the two arrays without the other.
        """
        return super().__call__(
            images,
            extrinsics=extrinsics,
            intrinsics=intrinsics,
            reference=reference,
            poses=poses,
            rays=rays,
            taps=taps,
            frame_chunk=frame_chunk,
            remat=remat,
            views=views,
            on_host=on_host,
            split_weights=split_weights,
        )

    def check_given(
        self, given: dict[str, jax.Array], batch: int, views: int
    ) -> dict[str, jax.Array]:
        """Implements `BackboneModel.check_given`: checks both arrays of known cameras."""
        if not given:
            return given
        extrinsics, intrinsics = given.get("extrinsics"), given.get("intrinsics")
        extrinsics, intrinsics = check_cameras(extrinsics, intrinsics, batch, views)
        return {"extrinsics": extrinsics, "intrinsics": intrinsics}

    def roles(self) -> dict[Role, RoleSize]:
        """Implements `BackboneModel.roles`: frame, global, and camera with the camera encoder."""
        config = self.config
        head = config.embed_dim // config.num_heads
        roles: dict[Role, RoleSize] = {
            "frame": RoleSize(len(config.early_blocks) + len(config.frame_blocks), head),
            "global": RoleSize(
                len(config.lead_blocks) + len(config.global_blocks), head, heads=config.num_heads
            ),
        }
        if "camera_encoder" in self.heads:
            size = config.embed_dim // config.camera_heads
            roles["camera"] = RoleSize(config.camera_blocks, size, jnp.float32)
        return roles

    def scene_tokens(self, views: int, grid: tuple[int, int]) -> TokenLayout:
        """Implements `BackboneModel.scene_tokens`: a camera token and patches per view."""
        return TokenLayout(views, 1, grid, "global")

    def operations(self, views: int, grid: tuple[int, int]) -> Mapping[str, Mapping[str, int]]:
        """Implements `BackboneModel.operations`: counts a pass without rays and known cameras."""
        config, plan, sites = self.config, self.plan, self.sites
        c, d = config.embed_dim, 2 * config.embed_dim
        frame = TokenLayout(1, 1, grid, "frame")
        scene = self.scene_tokens(views, grid)
        block = (c, config.num_heads, config.mlp_ratio, config.swiglu)
        specs = plan.specs("frame", sites["frame"], views)
        early = len(config.early_blocks)
        parts = {
            "encoder": operations.patch_embed(views, grid, config.patch_size, c)
            + operations.blocks(specs[:early], frame, views, *block),
            "frame": operations.blocks(specs[early:], frame, views, *block),
            "global": operations.blocks(
                plan.specs("global", sites["global"], views), scene, 1, *block
            ),
        }
        if "camera" in self.heads:
            parts["camera"] = Counter(layers=2 * views * (2 * d**2 + POSE_DIM * d))
        if "depth" in self.heads:
            parts["depth"] = operations.dpt(
                views,
                grid,
                dim=d,
                features=config.features,
                out_channels=config.out_channels,
                outputs=2,
                patch=config.patch_size,
            )
        return parts

    def forward(
        self, images: jax.Array, given: Mapping[str, jax.Array], call: Call
    ) -> tuple[Prediction, dict[str, jax.Array]]:
        """Implements `BackboneModel.forward`: runs trunk and heads."""
        poses, rays, taps, remat = call["poses"], call["rays"], call.taps, call.remat
        size = (images.shape[2], images.shape[3])
        patch = self.config.patch_size
        grid = (size[0] // patch, size[1] // patch)
        parts = call.parts(images.shape[1])
        cameras = None
        if given:
            extrinsics = views_of_all(given["extrinsics"], parts)
            intrinsics = views_of_all(given["intrinsics"], parts)
            cameras = self.camera_encoder(extrinsics, intrinsics, size)
            fill = images.shape[1] - cameras.shape[1]
            cameras = jnp.pad(cameras, ((0, 0), (0, fill), (0, 0))) if fill else cameras
        encoded = self.trunk(
            normalize(images), cameras, call["reference"], taps, remat, parts, call.on_host
        )
        layers = range(len(self.config.out_layers))
        out = dict(encoded.taps)
        if call.on_host and {"features", "camera/tokens"} & {*taps}:
            raise InputError("on_host: taps of features need them on the device; leave it out")
        if "features" in taps:
            every = [self.trunk.features(encoded.kept, i) for i in layers]
            out["features"] = encoded.restore(jnp.stack(every, 2))
        if "camera/tokens" in taps:
            every = [self.trunk.level(encoded.kept, i)[..., 0, :] for i in layers]
            out["camera/tokens"] = encoded.restore(jnp.stack(every, 2))
        if cameras is not None:
            out["camera/encoded"] = cameras
        predicted: dict[str, Any] = {}

        with_rays = rays or poses == "ray"
        if "depth" in self.heads:
            modules = (self.depth_head, self.ray_head if with_rays else None, self.trunk.norm)
            graph, state = nnx.split(modules)

            def dense(state: Any, frame: jax.Array) -> tuple[jax.Array, jax.Array | None]:
                depth_head, ray_head, norm = nnx.merge(graph, state)
                tokens = [self.trunk.features(frame, i, norm) for i in layers]
                maps, _ = depth_head.levels(tokens, grid)
                depth, _ = depth_head.decode(maps, grid)
                return depth, None if ray_head is None else ray_head(maps, grid)[0]

            depth, ray = map_frames(
                dense, state, encoded.kept, call.frame_chunk, remat, parts, call.on_host
            )
            predicted["depth"], predicted["depth_conf"] = activate(
                encoded.restore(depth), "exp", "expp1"
            )
            if ray is not None:
                ray = activate(encoded.restore(ray), "linear", "expp1")
                if poses == "ray":
                    predicted["extrinsics"], predicted["intrinsics"] = cameras_from_rays(*ray, size)
                if rays:
                    predicted["rays"], predicted["rays_conf"] = ray

        if "camera" in self.heads:
            first = self.trunk.level(encoded.first[:, :, :, None], -1)[:, :, 0]
            tokens = views_of_all(first, parts)
            pose_enc = encoded.restore(self.camera_head(tokens))
            world_to_camera = world_to_camera_encoding(pose_enc)
            out["camera/camera_to_world"] = pose_enc
            out[POSE_STAGES] = world_to_camera[None]
            if poses == "camera":
                predicted["pose_enc"] = world_to_camera
                predicted["extrinsics"], predicted["intrinsics"] = decode_cameras(pose_enc, size)
        return Prediction(**predicted), out
