"""Losses for training from scratch: depth as logarithms, one scale per scene.

The losses of VGGT (`multitask`) suppose a model that is nearly right: residuals in units of length,
weighted by a confidence that divides the gradient of what is far off. A model that knows nothing
learns faster from ratios of depths and from camera errors that are bounded in slope.
"""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from lite3r_jax.errors import InputError
from lite3r_jax.geometry import cameras_to_pose_encoding
from lite3r_jax.losses.camera import PARTS
from lite3r_jax.losses.elements import magnitude
from lite3r_jax.losses.masked import Masked
from lite3r_jax.losses.multitask import Targets

MIN_DEPTH = 1e-6
"""Least predicted depth: smaller ones count as this, and their logarithm has no slope."""


@dataclass(frozen=True)
class HuberCamera:
    """Settings of the camera loss of `ScratchLoss`, with Huber errors.

    Attributes:
        weight: of the sum in the objective.
        trans: weight of the translation, Huber with threshold `trans_delta` (scene units).
        rot: weight of the quaternion, Huber with threshold `rot_delta`.
        focal: weight of the fields of view (radians), absolute.
        trans_delta: errors below it are squared.
        rot_delta: likewise.
        gamma: stage k of K counts gamma^(K-1-k).
    """

    weight: float = 2.0
    trans: float = 1.0
    rot: float = 2.0
    focal: float = 0.3
    trans_delta: float = 0.05
    rot_delta: float = 0.02
    gamma: float = 0.6


@dataclass(frozen=True)
class LogDepth:
    """Settings of the depth loss of `ScratchLoss`, on logarithms of depth.

    Attributes:
        weight: of the depth and gradient terms in the objective.
        gradient: weight of the differences between neighboring pixels.
        conf: weight of the confidence, which learns the error and does not change it.
        alpha: of the confidence: it tends to alpha / error, where that is at least its minimum.
    """

    weight: float = 1.0
    gradient: float = 0.5
    conf: float = 0.0
    alpha: float = 0.2


@dataclass(frozen=True)
class ScratchLoss:
    """Parts of the objective for training from scratch; None leaves a part out.

    Attributes:
        camera: needs the prediction `pose_enc_list`.
        depth: needs `depth`, and `depth_conf` if `LogDepth.conf` is not 0.
        align: first fit one scale per scene, the geometric mean of true over predicted depth, and
            multiply depths and translations by it. The objective then does not depend on the unit
            of length of a prediction. False: the unit of the targets is to be learned.
    """

    camera: HuberCamera | None = field(default_factory=HuberCamera)
    depth: LogDepth | None = field(default_factory=LogDepth)
    align: bool = False

    def __post_init__(self) -> None:
        """Raises an error if the settings leave out both parts."""
        if self.camera is None and self.depth is None:
            raise InputError("ScratchLoss: expected camera or depth, both are None")


def scratch_loss(
    settings: ScratchLoss,
    targets: Targets,
    *,
    pose_enc_list: jax.Array | None = None,
    depth: jax.Array | None = None,
    depth_conf: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Computes the objective for training from scratch, and its terms.

    With e = log(depth) - log(truth) at valid pixels, minus its mean over the scene if `align`:

        depth = mean |e|,   grad = mean |e(x+1) - e(x)| + mean |e(y+1) - e(y)|,
        conf = mean of |e| c - alpha log c, with |e| held fixed,
        T, R, FL = mean per scene and view of the Huber or absolute errors, summed over coordinates.

    Means are over all elements of the batch, so cutting a batch into accumulation steps of equally
    many valid pixels does not change them.

    Args:
        settings: which parts, how weighted.
        targets: ground truth, see `geometry.normalize_scene`. A scene without a valid pixel has no
            scale; if `align`, its cameras do not count.
        pose_enc_list: [K, B, S, 9] pose encodings of all refinement stages, the last is the result.
        depth: [B, S, H, W, 1], positive.
        depth_conf: [B, S, H, W], positive.

    Returns:
        (objective, terms), float32 scalars: loss_depth, loss_grad, loss_conf, loss_T, loss_R,
        loss_FL, before weights; and nonfinite_depth, nonfinite_camera: how many predictions that
        count were NaN or infinite and taken as 0 error.

    Raises:
        InputError: a part lacks its prediction, or shapes differ.
    """
    mask = targets.mask
    objective = jnp.zeros((), jnp.float32)
    terms: dict[str, jax.Array] = {}
    shift = jnp.zeros(mask.shape[0], jnp.float32)
    if settings.depth is not None or settings.align:
        if depth is None or depth.shape != (*mask.shape, 1):
            got = None if depth is None else depth.shape
            raise InputError(f"depth: expected {(*mask.shape, 1)} as the targets are, got {got}")
        error, mask, bad = _log_error(depth[..., 0], targets.depth, mask)
        if settings.align:
            shift = _scene_mean(error, mask)
            error = jnp.where(mask, error - shift[:, None, None, None], 0)
        if settings.depth is not None:
            new_terms = _depth_terms(settings.depth, error, mask, depth_conf)
            objective += settings.depth.weight * (
                new_terms["loss_depth"] + settings.depth.gradient * new_terms["loss_grad"]
            )
            if settings.depth.conf:
                objective += settings.depth.conf * new_terms["loss_conf"]
            terms |= new_terms
        terms["nonfinite_depth"] = bad
    if settings.camera is not None:
        if pose_enc_list is None or pose_enc_list.shape[1:] != (*mask.shape[:2], 9):
            got = None if pose_enc_list is None else pose_enc_list.shape
            raise InputError(f"pose_enc_list: expected [K, {mask.shape[:2]}, 9], got {got}")
        truth = cameras_to_pose_encoding(
            targets.extrinsics, targets.intrinsics, targets.mask.shape[-2:]
        )
        counts = mask.any((1, 2, 3)) if settings.align else jnp.ones(mask.shape[0], bool)
        new_terms = _camera_terms(settings.camera, pose_enc_list, truth, jnp.exp(-shift), counts)
        camera = settings.camera
        objective += camera.weight * (
            camera.trans * new_terms["loss_T"]
            + camera.rot * new_terms["loss_R"]
            + camera.focal * new_terms["loss_FL"]
        )
        terms |= new_terms
    return objective, terms


def _log_error(
    depth: jax.Array, truth: jax.Array, mask: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Computes log(predicted depth / true depth), 0 at pixels that do not count.

    Returns:
        (errors, mask of the pixels that count, how many predictions were not finite).
    """
    known = mask & (truth > 0) & jnp.isfinite(truth)
    bad = known & ~jnp.isfinite(depth)
    valid = known & ~bad
    # NaN must go before the logarithm: behind a `where` its gradient would stay.
    depth = jnp.where(valid, depth.astype(jnp.float32), 1)
    depth = jnp.where(depth > MIN_DEPTH, depth, MIN_DEPTH)
    truth = jnp.where(valid, truth.astype(jnp.float32), 1)
    error = jnp.log(depth) - jnp.log(truth)
    return error, valid, bad.sum().astype(jnp.float32)


def _scene_mean(error: jax.Array, mask: jax.Array) -> jax.Array:
    count = mask.sum((1, 2, 3))
    return jnp.where(mask, error, 0).sum((1, 2, 3)) / jnp.maximum(count, 1)


def _depth_terms(
    settings: LogDepth, error: jax.Array, mask: jax.Array, conf: jax.Array | None
) -> dict[str, jax.Array]:
    size = magnitude(error)
    terms = {"loss_depth": Masked.of(size, mask).mean}
    down = Masked.of(magnitude(jnp.diff(error, axis=2)), mask[:, :, 1:] & mask[:, :, :-1])
    right = Masked.of(magnitude(jnp.diff(error, axis=3)), mask[..., 1:] & mask[..., :-1])
    terms["loss_grad"] = down.mean + right.mean
    if settings.conf:
        if conf is None or conf.shape != mask.shape:
            got = None if conf is None else conf.shape
            raise InputError(f"depth_conf: expected {mask.shape}, got {got}; or LogDepth(conf=0)")
        usable = mask & (conf > 0) & jnp.isfinite(conf)
        c = jnp.where(usable, conf.astype(jnp.float32), 1)
        known = jax.lax.stop_gradient(size)
        terms["loss_conf"] = Masked.of(known * c - settings.alpha * jnp.log(c), usable).mean
    return terms


def _camera_terms(
    settings: HuberCamera, stages: jax.Array, truth: jax.Array, scale: jax.Array, counts: jax.Array
) -> dict[str, jax.Array]:
    factor = jnp.where(jnp.arange(9) < 3, scale[:, None, None], 1.0)
    bad = ~jnp.isfinite(stages)
    stages = jnp.where(bad, 0, stages.astype(jnp.float32))
    error = jnp.where(bad, 0, factor * stages - truth)
    counts = jnp.broadcast_to(counts[:, None], error.shape[1:3])
    last = len(stages) - 1
    weights = jnp.array([settings.gamma ** (last - k) / len(stages) for k in range(len(stages))])
    deltas = {"T": settings.trans_delta, "R": settings.rot_delta, "FL": 0.0}
    terms = {}
    for name, part in PARTS.items():
        each = _huber(error[..., part], deltas[name]).sum(-1)
        means = jax.vmap(lambda x: Masked.of(x, counts).mean)(each)
        terms[f"loss_{name}"] = (weights * means).sum()
    terms["nonfinite_camera"] = (bad & counts[..., None]).sum().astype(jnp.float32)
    return terms


def _huber(x: jax.Array, delta: float) -> jax.Array:
    """Computes a Huber loss scaled to slope 1: |x| - delta / 2, below delta x^2 / (2 delta)."""
    size = magnitude(x)
    if not delta:
        return size
    return jnp.where(size < delta, 0.5 * x * x / delta, size - 0.5 * delta)
