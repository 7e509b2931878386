"""Depth Anything 3: the model (depth_anything_3/model/da3.py, arXiv 2511.10647).

One DINOv2 encodes all views; its later blocks attend in turn within each view and over all views.
A dense head turns tokens of four blocks into depth and, where asked for, rays; a small one reads
cameras off the tokens. Known cameras can go in as camera tokens.
"""

import functools
from collections.abc import Collection, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from lite3r_jax.attention.core import Plan, Role
from lite3r_jax.backbones.base import (
    Backbone,
    Prediction,
    check_call,
    check_heads,
    check_images,
)
from lite3r_jax.backbones.da3.cameras import (
    CameraHead,
    PriorHead,
    check_cameras,
    decode_cameras,
    world_to_camera_encoding,
)
from lite3r_jax.backbones.da3.config import DA3Config, config_from_json, config_to_json
from lite3r_jax.backbones.da3.known_cameras import normalise as normalise_cameras
from lite3r_jax.backbones.da3.rays import RayHead, cameras_from_rays
from lite3r_jax.backbones.da3.reference_view import Strategy, check_strategy
from lite3r_jax.backbones.da3.trunk import Trunk
from lite3r_jax.backbones.heads import activate, map_frames
from lite3r_jax.errors import InputError
from lite3r_jax.layers.dpt import DPT
from lite3r_jax.layers.patch_embed import normalise

# camera: cameras of tokens. depth: depth and confidence. ray: rays, from the levels of the depth
# head. prior: known cameras to tokens.
HEADS = ("camera", "depth", "ray", "prior")

# Intermediates that can be asked for, and their shapes. L counts the sites of a role, K the out
# layers, P = 1 + h*w the tokens of a view. Views are always in the order of the images.
TAPS = {
    "trunk/tokens": "[B, S, P, C] input of the first block",
    "trunk/reference": "[B] the view that was chosen as reference",
    "frame/blocks": "[L, B, S, P, C] output of every block within views",
    "frame/attn": "[L, B, S, P, C] output of its attention layer",
    "global/blocks": "[L, B, S, P, C] output of every block over views",
    "global/attn": "[L, B, S, P, C] output of its attention layer",
    "features": "[B, S, K, h*w, 2C] what the dense head reads: one half as it is, one normed",
    "camera/prior": "[B, S, C] tokens of the known cameras",
    "camera/tokens": "[B, S, K, 2C] camera tokens of the out layers",
    "camera/pose_enc": "[B, S, 9] pose encoding as upstream has it, camera-to-world",
}


class DA3(nnx.Module):
    """The model. `prediction, taps = model(images)`."""

    # cameras of one scene to the extrinsics that the call takes
    normalise_cameras = staticmethod(normalise_cameras)

    def __init__(
        self,
        config: DA3Config,
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
            heads: which of camera, depth, ray, prior to have; ray needs depth.
            plan: attention strategy of every site; dense everywhere when None. Roles: "frame" and
                "global" of the trunk, "camera" of the prior head.
            dtype: compute dtype of the trunk, float32 or bfloat16. LayerNorm, softmax, residual
                stream, RoPE, position tables and the heads are float32 in any case, as upstream has
                it under autocast.
            param_dtype: dtype in which parameters are held.
            rngs: random streams.

        Raises:
            InputError: an unknown head, or ray without depth.
            ValueError: the plan has a rule without a site.
        """
        self.heads = check_heads(heads, HEADS)
        if "ray" in heads and "depth" not in heads:
            raise InputError("heads: ray reads the levels of the depth head; add depth")
        plan = Plan() if plan is None else plan
        sites: dict[Role, int] = {
            "frame": len(config.early_blocks) + len(config.frame_blocks),
            "global": len(config.lead_blocks) + len(config.global_blocks),
        }
        if "prior" in heads:
            sites["camera"] = config.camera_blocks
        plan.check(sites)
        self.config = config
        self.dtype = jnp.dtype(dtype)
        self._sites = plan, tuple(sites.items())
        self.trunk = Trunk(config, plan=plan, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        kinds = {"param_dtype": param_dtype, "rngs": rngs}
        dim = 2 * config.embed_dim
        if "camera" in heads:
            self.camera_head = CameraHead(dim, **kinds)
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
        if "prior" in heads:
            self.prior_head = PriorHead(config, plan=plan, **kinds)

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
        frame_chunk: int = 1,
        remat: bool = False,
    ) -> tuple[Prediction, dict[str, jax.Array]]:
        """Reconstruct scenes. Compiled once per shape and choice.

        The world frame is the model's own, near the reference view's camera. Predicted cameras are
        the model's also where known cameras went in; `infer.alignment.align` brings them together.

        Args:
            images: [B, S, H, W, 3] float32 RGB in [0, 1]; H and W multiples of the patch size.
            extrinsics: [B, S, 3, 4] or [B, S, 4, 4] world-to-camera of known cameras, as
                `normalise_cameras` gives them.
            intrinsics: [B, S, 3, 3] of known cameras, in pixels of the images.
            reference: which view comes first, see `select_reference`; of 3 or more views without
                known cameras.
            poses: whether cameras come from the camera head or from rays; the latter takes longer.
            rays: whether to return rays; they cost as much as the depth, and nothing when off.
            taps: names of intermediates to return, from `TAPS`, which gives their shapes.
            frame_chunk: frames that the dense heads handle at a time: memory against speed, the
                result is the same.
            remat: for training: whether the gradient computes layers and dense heads again instead
                of keeping all that is in them. Memory against about a third more time; values are
                the same.

        Returns:
            (`Prediction`, {tap: array}).

        Raises:
            InputError: images of wrong rank, dtype, size or range; known cameras that are none; a
                strategy, tap or choice that is unknown or that this model has no head for;
                frame_chunk below 1.
            ValueError: known cameras of another shape, or one half of them.
        """
        check_images(images, self.config.patch_size)
        check_call(taps, TAPS, frame_chunk)
        check_strategy(reference)
        if poses not in ("camera", "ray"):
            raise InputError(f"poses: {poses!r} is not known; choose camera or ray")
        known = extrinsics is not None or intrinsics is not None
        needs = {
            "poses='ray'": "ray" if poses == "ray" else None,
            "rays": "ray" if rays else None,
            "known cameras": "prior" if known else None,
            "tap camera/prior": "prior" if "camera/prior" in taps else None,
            "tap camera/pose_enc": "camera" if "camera/pose_enc" in taps else None,
        }
        for what, head in needs.items():
            if head is not None and head not in self.heads:
                raise InputError(f"{what}: needs the {head} head, which this model is without")
        if "camera/prior" in taps and not known:
            raise InputError("tap camera/prior: needs known cameras; give them or drop it")
        cameras = None
        if known:
            cameras = check_cameras(extrinsics, intrinsics, *images.shape[:2])
        graph, state = nnx.split(self)
        choices = (reference, poses, bool(rays), tuple(sorted(taps)), frame_chunk, remat)
        return _forward(graph, state, images, cameras, choices)

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
        trunk = c // config.num_heads
        heads: dict[Role, int] = {
            "frame": trunk, "global": trunk, "camera": c // config.camera_heads
        }  # fmt: skip
        return plan.describe(dict(sites), dtypes, heads)

    def _run(
        self,
        images: jax.Array,
        cameras: tuple[jax.Array, jax.Array] | None,
        choices: tuple[Strategy, str, bool, tuple[str, ...], int, bool],
    ) -> tuple[Prediction, dict[str, jax.Array]]:
        reference, poses, rays, taps, frame_chunk, remat = choices
        size = (images.shape[2], images.shape[3])
        patch = self.config.patch_size
        grid = (size[0] // patch, size[1] // patch)
        prior = None if cameras is None else self.prior_head(*cameras, size)
        encoded = self.trunk(normalise(images), prior, reference, taps, remat)
        layers = range(len(self.config.out_layers))
        out = dict(encoded.taps)
        if "features" in taps:
            every = [self.trunk.features(encoded.kept, i) for i in layers]
            out["features"] = encoded.restore(jnp.stack(every, 2))
        if "camera/tokens" in taps:
            every = [self.trunk.level(encoded.kept, i)[..., 0, :] for i in layers]
            out["camera/tokens"] = encoded.restore(jnp.stack(every, 2))
        if prior is not None:
            out["camera/prior"] = prior
        found: dict[str, Any] = {}

        with_rays = rays or poses == "ray"
        if "depth" in self.heads:
            graph, state = nnx.split((self.depth_head, self.ray_head if with_rays else None))

            def dense(state: Any, frame: jax.Array) -> tuple[jax.Array, jax.Array | None]:
                depth_head, ray_head = nnx.merge(graph, state)
                tokens = [self.trunk.features(frame, i) for i in layers]
                maps, _ = depth_head.levels(tokens, grid)
                depth, _ = depth_head.decode(maps, grid)
                return depth, None if ray_head is None else ray_head(maps, grid)[0]

            depth, ray = map_frames(dense, state, encoded.kept, frame_chunk, remat)
            found["depth"], found["depth_conf"] = activate(encoded.restore(depth), "exp", "expp1")
            if ray is not None:
                ray = activate(encoded.restore(ray), "linear", "expp1")
                if poses == "ray":
                    found["extrinsics"], found["intrinsics"] = cameras_from_rays(*ray, size)
                if rays:
                    found["rays"], found["rays_conf"] = ray

        if "camera" in self.heads:
            tokens = self.trunk.level(encoded.kept, -1)[:, :, 0]
            pose_enc = encoded.restore(self.camera_head(tokens))
            out["camera/pose_enc"] = pose_enc
            if poses == "camera":
                found["pose_enc"] = world_to_camera_encoding(pose_enc)
                found["extrinsics"], found["intrinsics"] = decode_cameras(pose_enc, size)
        return Prediction(**found), {name: x for name, x in out.items() if name in taps}


@functools.partial(jax.jit, static_argnums=(0, 4))
def _forward(graph, state, images, cameras, choices):
    return nnx.merge(graph, state)._run(images, cameras, choices)


BACKBONE = Backbone(
    name="da3",
    default_config=DA3Config(),
    heads=HEADS,
    config_from_json=config_from_json,
    config_to_json=config_to_json,
    build=DA3,
    taps=TAPS,
)
