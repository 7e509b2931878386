"""Camera encoder (known cameras to tokens) and camera decoder (tokens to cameras).

Poses are encoded camera-to-world here (depth_anything_3/model/utils/transform.py), in VGGT
world-to-camera; the nine numbers are the same otherwise.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer

from lite3r_jax import geometry
from lite3r_jax.attention.plan import Plan, build_cores, runs
from lite3r_jax.attention.strategy import TokenLayout
from lite3r_jax.backbones.da3.config import DA3Config
from lite3r_jax.errors import InputError
from lite3r_jax.layers.block import Block, BlockConfig, stack
from lite3r_jax.layers.mlp import Mlp
from lite3r_jax.layers.norm import layer_norm
from lite3r_jax.layers.stacks import BlockStack, run_stacks

POSE_DIM = 9
# The half angle's tangent is at least this one, so that a field of view of 0 has a focal length.
LEAST_TANGENT = 1e-6
# Written with five digits, as in text files, a rotation is off by up to 3e-5.
ROTATION_TOLERANCE = 1e-3


def encode_cameras(
    extrinsics: jax.Array, intrinsics: jax.Array, image_size: Sequence[int]
) -> jax.Array:
    """Encodes world-to-camera poses [..., 3, 4] and intrinsics [..., 3, 3] as vectors [..., 9].

    The principal point is not part of the encoding.
    """
    poses = geometry.invert_se3(extrinsics)
    return geometry.cameras_to_pose_encoding(poses, intrinsics, image_size)


def decode_cameras(pose_enc: jax.Array, image_size: Sequence[int]) -> tuple[jax.Array, jax.Array]:
    """Decodes vectors [..., 9] to world-to-camera [..., 3, 4] and intrinsics [..., 3, 3] in pixels.

    Fields of view of 0, or of more than half a turn, give focal lengths of 1e6 half image sizes.
    """
    height, width = image_size
    rotation = geometry.quat_to_mat(pose_enc[..., 3:7])
    poses = jnp.concatenate([rotation, pose_enc[..., :3, None]], -1)
    tangent = jnp.maximum(jnp.tan(pose_enc[..., 7:] / 2), LEAST_TANGENT)
    fy, fx = (height / 2) / tangent[..., 0], (width / 2) / tangent[..., 1]
    focal = jnp.stack([fx, fy], -1)
    return geometry.invert_se3(poses), camera_matrix(focal, image_size)


def camera_matrix(
    focal: jax.Array, image_size: Sequence[int], center: jax.Array | None = None
) -> jax.Array:
    """Builds intrinsics [..., 3, 3] of focal lengths and principal points [..., 2] in pixels.

    The last axis of both is (x, y). The principal point is that of the image, (W / 2, H / 2), when
    None.
    """
    height, width = image_size
    if center is None:
        center = jnp.broadcast_to(jnp.asarray([width / 2, height / 2], focal.dtype), focal.shape)
    zero, one = jnp.zeros_like(focal[..., 0]), jnp.ones_like(focal[..., 0])
    rows = (
        (focal[..., 0], zero, center[..., 0]),
        (zero, focal[..., 1], center[..., 1]),
        (zero, zero, one),
    )
    return jnp.stack([jnp.stack(row, -1) for row in rows], -2)


def world_to_camera_encoding(pose_enc: jax.Array) -> jax.Array:
    """Converts camera-to-world encodings to those of the inverse, as `Prediction.pose_enc` has."""
    quat = pose_enc[..., 3:7] * jnp.asarray([-1, -1, -1, 1], pose_enc.dtype)
    rotation = geometry.quat_to_mat(quat)
    shift = -jnp.einsum("...ij,...j->...i", rotation, pose_enc[..., :3], precision="highest")
    return jnp.concatenate([shift, quat, pose_enc[..., 7:]], -1)


class CameraDecoder(nnx.Module):
    """Decodes a pose from the camera token of every view (depth_anything_3/model/cam_dec.py)."""

    def __init__(self, dim: int, *, param_dtype: Any, rngs: nnx.Rngs):
        """Builds the decoder for camera tokens of `dim` channels (both streams together)."""
        linear = {"dtype": jnp.float32, "param_dtype": param_dtype, "rngs": rngs}
        self.fc1 = nnx.Linear(dim, dim, **linear)
        self.fc2 = nnx.Linear(dim, dim, **linear)
        self.translation = nnx.Linear(dim, 3, **linear)
        self.quaternion = nnx.Linear(dim, 4, **linear)
        self.field_of_view = nnx.Linear(dim, 2, **linear)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Maps camera tokens [B, S, 2C] to camera-to-world encodings [B, S, 9]."""
        x = nnx.relu(self.fc2(nnx.relu(self.fc1(tokens.astype(jnp.float32)))))
        fov = nnx.relu(self.field_of_view(x))
        return jnp.concatenate([self.translation(x), self.quaternion(x), fov], axis=-1)


class CameraEncoder(nnx.Module):
    """Encodes known cameras as camera tokens (depth_anything_3/model/cam_enc.py).

    Attends over the S views of a scene. Attention layers: role "camera", one per block. Always
    float32.
    """

    def __init__(self, config: DA3Config, *, plan: Plan, param_dtype: Any, rngs: nnx.Rngs):
        c = config.embed_dim
        kinds = {"param_dtype": param_dtype, "rngs": rngs}
        self.pose_branch = Mlp(POSE_DIM, c // 2, c, **kinds)
        self.token_norm = layer_norm(c, 1e-5, **kinds)
        block = BlockConfig(c, config.camera_heads)
        self.trunk = stack(
            lambda r: Block(block, param_dtype=param_dtype, rngs=r), config.camera_blocks, rngs
        )
        self.trunk_norm = layer_norm(c, 1e-5, **kinds)
        self.runs = runs(plan.specs("camera", config.camera_blocks))
        self.cores = build_cores(self.runs, 0, block.heads, c // block.heads, param_dtype, rngs)

    def __call__(
        self, extrinsics: jax.Array, intrinsics: jax.Array, image_size: tuple[int, int]
    ) -> jax.Array:
        """Encodes known cameras as one token for every view.

        Args:
            extrinsics: [B, S, 3, 4] world-to-camera.
            intrinsics: [B, S, 3, 3] in pixels of images of size `image_size`.
            image_size: (H, W).

        Returns:
            [B, S, C].
        """
        x = self.token_norm(self.pose_branch(encode_cameras(extrinsics, intrinsics, image_size)))
        # A view is one token here, without a patch grid.
        layout = TokenLayout(x.shape[1], 1, (0, 0), "global")
        trunk = [BlockStack("camera", self.trunk, self.cores, layout)]
        x, _, _ = run_stacks(x[:, :, None], trunk, self.runs, views=x.shape[1])
        return self.trunk_norm(x[:, :, 0])


def check_cameras(
    extrinsics: Any, intrinsics: Any, batch: int, views: int
) -> tuple[jax.Array, jax.Array]:
    """Checks known cameras and returns them in float32; values are looked at outside of jit only.

    Args:
        extrinsics: [B, S, 3, 4] or [B, S, 4, 4] world-to-camera.
        intrinsics: [B, S, 3, 3] in pixels of the images.
        batch: B of the images.
        views: S of the images.

    Returns:
        (extrinsics [B, S, 3, 4], intrinsics [B, S, 3, 3]) float32.

    Raises:
        ValueError: one of them without the other, or another shape.
        InputError: values that are no camera; the message names the view.
    """
    if extrinsics is None or intrinsics is None:
        raise ValueError("known cameras: give extrinsics and intrinsics together, or neither")
    wanted = f"({batch}, {views}, 3, 4) or ({batch}, {views}, 4, 4)"
    if extrinsics.shape not in ((batch, views, 3, 4), (batch, views, 4, 4)):
        raise ValueError(f"extrinsics: expected {wanted} for these images, got {extrinsics.shape}")
    if intrinsics.shape != (batch, views, 3, 3):
        raise ValueError(
            f"intrinsics: expected ({batch}, {views}, 3, 3) for these images, got "
            f"{intrinsics.shape}"
        )
    if not isinstance(extrinsics, Tracer) and not isinstance(intrinsics, Tracer):
        _check_values(np.asarray(extrinsics, float), np.asarray(intrinsics, float))
    extrinsics = jnp.asarray(extrinsics, jnp.float32)[..., :3, :]
    return extrinsics, jnp.asarray(intrinsics, jnp.float32)


def _check_values(extrinsics: np.ndarray, intrinsics: np.ndarray) -> None:
    rotation, k = extrinsics[..., :3, :3], intrinsics
    with np.errstate(invalid="ignore"):
        square = rotation @ rotation.swapaxes(-1, -2) - np.eye(3)
        last = extrinsics[..., 3:, :] - np.array([0, 0, 0, 1.0])
        rules = [
            (
                np.isfinite(extrinsics).all((-1, -2)) & np.isfinite(k).all((-1, -2)),
                "holds NaN or infinite values",
            ),
            ((np.abs(last) < 1e-5).all((-1, -2)), "the last row of its extrinsics is not 0 0 0 1"),
            (
                (np.abs(square) < ROTATION_TOLERANCE).all((-1, -2)),
                "its extrinsics hold no rotation; give world-to-camera [R | t] without scale",
            ),
            (
                np.linalg.det(np.nan_to_num(rotation)) > 0,
                "its rotation is a mirror image (determinant -1); convert it to OpenCV axes",
            ),
            ((k[..., 0, 0] > 0) & (k[..., 1, 1] > 0), "its focal length is not positive"),
            (
                (np.abs(k[..., 2, :] - np.array([0, 0, 1.0])) < 1e-5).all(-1),
                "the last row of its intrinsics is not 0 0 1; they are 3 x 3 in pixels",
            ),
        ]
    for good, fault in rules:
        if not good.all():
            b, s = np.argwhere(~good)[0]
            raise InputError(f"known camera of scene {b}, view {s}: {fault}")
