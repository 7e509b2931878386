"""Camera loss on pose encodings of all refinement stages."""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from lite3r_jax.errors import InputError
from lite3r_jax.losses.elements import fit_scale, limit, magnitude, norm, residual
from lite3r_jax.losses.masked import Masked

PARTS = {"T": slice(0, 3), "R": slice(3, 7), "FL": slice(7, 9)}
"""Slices of the pose encoding: translation, rotation and field of view."""


@dataclass(frozen=True)
class CameraLoss:
    """Settings of the camera loss, `camera_terms`; the defaults are Lite3R's for VGGT.

    Attributes:
        weight: of the camera loss in the objective.
        norm: "l1" for absolute coordinates, "l2" for lengths of the three parts.
        gamma: stage k of K counts gamma^(K-1-k).
        trans: weight of the translation.
        rot: weight of the rotation.
        focal: weight of the fields of view.
        min_valid_pixels: a scene counts when its view 0 has more pixels with depth than this; -1
            counts every scene, for data with cameras alone.
    """

    weight: float = 1.0
    norm: Literal["l1", "l2"] = "l1"
    gamma: float = 0.6
    trans: float = 1.0
    rot: float = 1.0
    focal: float = 0.5
    min_valid_pixels: int = 100

    def __post_init__(self) -> None:
        """Check the choice of norm."""
        if self.norm not in ("l1", "l2"):
            raise InputError(f'CameraLoss.norm: expected "l1" or "l2", got {self.norm!r}')


def camera_terms(
    settings: CameraLoss, pose_enc_list: jax.Array, truth: jax.Array, mask: jax.Array
) -> dict[str, jax.Array]:
    """Computes the camera loss over all stages of pose encodings.

    Source: training/loss.py, compute_camera_loss and camera_loss_single.

    View 0 decides for its scene: the scene counts when that view has more valid pixels than
    `settings.min_valid_pixels`.
    Per stage, the translations of all views that count are first multiplied by one detached scale,
    the least-squares fit to the truth with its magnitude held in [0.1, 10]; it may be negative.
    Quaternions are compared as they are: q and -q differ. When nothing counts, all terms are 0.

    Args:
        settings: norm and weights.
        pose_enc_list: [K, B, S, 9], see `geometry.cameras_to_pose_encoding`; last stage is best.
        truth: [B, S, 9].
        mask: [B, S, H, W] bool, pixels with ground truth.

    Returns:
        Scalars loss_T, loss_R, loss_FL, each a mean per stage, weighted by gamma^(K-1-k) / K and
        summed; loss_camera, the weighted sum of the three; and nonfinite_camera, how many
        coordinates that count had an error of NaN or infinity, which is then taken as 0.

    Raises:
        InputError: shapes differ.
    """
    if pose_enc_list.ndim != 4 or not pose_enc_list.shape[1:] == truth.shape == (
        *mask.shape[:2],
        9,
    ):
        raise InputError(
            "pose_enc_list: expected [K, B, S, 9] for targets "
            f"{truth.shape} and mask {mask.shape}, got {pose_enc_list.shape}"
        )
    valid = mask[:, 0].sum((-1, -2), dtype=jnp.int32)
    counts = (valid > settings.min_valid_pixels)[:, None, None]
    pred = jnp.where(counts, pose_enc_list.astype(jnp.float32), 0)
    truth = jnp.where(counts, truth.astype(jnp.float32), 0)
    stages = len(pred)

    def one_stage(pred: jax.Array) -> tuple[dict[str, Masked], jax.Array]:
        scale = fit_scale(pred[..., :3], truth[..., :3])
        scale = jnp.sign(scale) * jnp.clip(jnp.abs(scale), 0.1, 10.0)
        error, bad = residual(pred, truth, jnp.where(jnp.arange(9) < 3, scale, 1.0))
        means = {}
        for name, part in PARTS.items():
            if settings.norm == "l2":
                broken = bad[..., part].any(-1, keepdims=True)
                size = norm(jnp.where(broken, 0, error[..., part]))[..., None]
            else:
                size = magnitude(error[..., part])
            means[name] = Masked.of(limit(size), counts)
        return means, (bad & counts).sum()

    means, bad = jax.vmap(one_stage)(pred)
    weights = jnp.array([settings.gamma ** (stages - 1 - k) / stages for k in range(stages)])
    terms = {f"loss_{name}": (weights * mean.mean).sum() for name, mean in means.items()}
    total = (
        settings.trans * terms["loss_T"]
        + settings.rot * terms["loss_R"]
        + settings.focal * terms["loss_FL"]
    )
    return {"loss_camera": total, **terms, "nonfinite_camera": bad.sum().astype(jnp.float32)}
