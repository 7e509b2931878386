"""The training objective (training/loss.py of the Lite3R repository: MultitaskLoss).

    objective = w_c L_camera + w_d (L_conf + L_reg + L_grad)_depth + w_p (...)_points

Unlike the file of facebookresearch/vggt, it first fits a detached scale to translations, depths and
points, and keeps confidences above 1e-3. What upstream selects with boolean indices is masked here:
shapes are static, and masked pixels stay out of every value and gradient.

Under `jit` all sums, scales and quantiles are global, so sharding a batch does not change the
result. Cutting it into accumulation steps does, because scales, quantiles and the rules about few
points look at the batch as a whole.
"""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from lite3r_jax.errors import InputError
from lite3r_jax.geometry import cameras_to_pose_encoding
from lite3r_jax.losses.camera import CameraLoss, camera_terms
from lite3r_jax.losses.maps import MapLoss, map_terms


@dataclass(frozen=True)
class MultitaskLoss:
    """Parts of the training objective; None leaves a part out. Defaults: Lite3R's for VGGT.

    Attributes:
        camera: needs the prediction `pose_enc_list`.
        depth: needs `depth` and `depth_conf`.
        points: needs `world_points` and `world_points_conf`.
    """

    camera: CameraLoss | None = field(default_factory=CameraLoss)
    depth: MapLoss | None = field(default_factory=lambda: MapLoss(valid_range=0.95))
    points: MapLoss | None = None

    def __post_init__(self) -> None:
        """Raises an error for the gradient term "normal" on depth, and where all parts are None."""
        if self.depth is not None and self.depth.gradient == "normal":
            raise InputError(
                'MultitaskLoss.depth.gradient: "normal" needs 3D points; use "grad" for depth'
            )
        if self.camera is None and self.depth is None and self.points is None:
            raise InputError(
                "MultitaskLoss: expected at least one of camera, depth, points, all are None"
            )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Targets:
    """Ground truth in the unit of length to be learned, see `geometry.normalize_scene`.

    Attributes:
        extrinsics: [B, S, 3, 4] world-to-camera, OpenCV.
        intrinsics: [B, S, 3, 3] in pixels of the (H, W) maps.
        depth: [B, S, H, W], z in the camera frame.
        mask: [B, S, H, W] bool, pixels with ground truth.
        world_points: [B, S, H, W, 3]; None when points are not trained.
    """

    extrinsics: jax.Array
    intrinsics: jax.Array
    depth: jax.Array
    mask: jax.Array
    world_points: jax.Array | None = None


def multitask_loss(
    settings: MultitaskLoss,
    targets: Targets,
    *,
    pose_enc_list: jax.Array | None = None,
    depth: jax.Array | None = None,
    depth_conf: jax.Array | None = None,
    world_points: jax.Array | None = None,
    world_points_conf: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Computes the training objective and its terms.

    Args:
        settings: which parts, how weighted. Predictions of other parts are not looked at.
        targets: ground truth.
        pose_enc_list: [K, B, S, 9] pose encodings of all refinement stages, the last is the result.
        depth: [B, S, H, W, 1].
        depth_conf: [B, S, H, W].
        world_points: [B, S, H, W, 3].
        world_points_conf: [B, S, H, W].

    Returns:
        (objective, terms), float32 scalars. Terms are loss_camera, loss_T, loss_R, loss_FL and
        loss_{conf,reg,grad}_{depth,point}, all before `weight`, and
        nonfinite_{camera,depth,point}: how many elements were NaN or infinite and taken as 0.
        These last are for a training loop to watch: a broken prediction has a small loss.

    Raises:
        InputError: a part lacks its prediction or target, or shapes differ.
    """
    objective = jnp.zeros((), jnp.float32)
    terms: dict[str, jax.Array] = {}
    if settings.camera is not None:
        (pose_enc_list,) = _need("camera", pose_enc_list=pose_enc_list)
        size = targets.mask.shape[-2:]
        truth = cameras_to_pose_encoding(targets.extrinsics, targets.intrinsics, size)
        part = camera_terms(settings.camera, pose_enc_list, truth, targets.mask)
        objective += settings.camera.weight * part["loss_camera"]
        terms |= part
    if settings.depth is not None:
        pred, conf = _need("depth", depth=depth, depth_conf=depth_conf)
        part = map_terms(settings.depth, pred, conf, targets.depth[..., None], targets.mask)
        objective += settings.depth.weight * (part["conf"] + part["reg"] + part["grad"])
        terms |= _named(part, "depth")
    if settings.points is not None:
        pred, conf, truth = _need(
            "points",
            world_points=world_points,
            world_points_conf=world_points_conf,
            **{"targets.world_points": targets.world_points},
        )
        part = map_terms(settings.points, pred, conf, truth, targets.mask)
        objective += settings.points.weight * (part["conf"] + part["reg"] + part["grad"])
        terms |= _named(part, "point")
    return objective, terms


def _need(part: str, **arrays: jax.Array | None) -> list[jax.Array]:
    missing = [name for name, x in arrays.items() if x is None]
    if missing:
        raise InputError(
            f"MultitaskLoss.{part} needs {' and '.join(missing)}; pass it or set {part}=None"
        )
    return [x for x in arrays.values() if x is not None]


def _named(part: dict[str, jax.Array], what: str) -> dict[str, jax.Array]:
    terms = {f"loss_{name}_{what}": part[name] for name in ("conf", "reg", "grad")}
    return terms | {f"nonfinite_{what}": part["nonfinite"]}
