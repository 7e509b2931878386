"""The objective of pi^3: points in the camera frame, normals and relative poses, up to one scale.

Only the unit of the truth depends on which view is the first. Source: pi3/models/loss.py of the
public code of Speed3R, which has the loss of pi^3 (arXiv 2507.13347).
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from lite3r_jax import geometry
from lite3r_jax.errors import InputError
from lite3r_jax.losses.multitask import Targets

LEAST_DEPTH = 0.1
"""Least depth in the weight of a pixel, as a share of the mean depth of its view."""
DEPTH_STEP = 0.03
"""Largest relative change of true depth around a normal; normals at larger ones do not count."""
ANGLES = (1.0, 90.0)
"""Bounds in degrees to which angles between normals are clamped; beyond them there is no slope."""
ANGLE_BETA = 3.0
"""Threshold in degrees below which angles between normals are squared (smooth L1)."""
TRANSLATION_DELTA = 0.1
"""Threshold in units of the scene below which errors of translations are squared (Huber)."""
TRANSLATION_WEIGHT = 100.0
EPS = 1e-6


@dataclass(frozen=True)
class ScaleAligned:
    """Weights of the parts of the objective of pi^3; 0 leaves a part out.

    Attributes:
        points: of the points in the camera frame.
        normals: of the angles between normals.
        cameras: of the relative poses of all pairs of views.
        samples: valid points of a scene that its scale is fitted to, at most.
    """

    points: float = 1.0
    normals: float = 1.0
    cameras: float = 0.1
    samples: int = 4096


def scale_aligned_loss(
    settings: ScaleAligned, targets: Targets, *, points: jax.Array, extrinsics: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Computes the objective of pi^3 and its terms.

    The truth is divided by the mean distance of its valid points from the first camera, the
    prediction by the mean distance of its points from their own cameras. With
    w = 1 / max(z, 0.1 mean z of the view) of the truth and the scale s = argmin sum w |s p - q| of
    a scene, without gradient:

        points = mean of w |s p - q| over valid pixels and coordinates,
        normals = mean smooth-L1 angle of normals at the four corners of 2 x 2 pixels, over
            max(H, W), where the true depth has no edge,
        cameras = mean over ordered pairs of views of 100 Huber(s t - t*) + angle(R, R*).

    Args:
        settings: which parts, how weighted.
        targets: ground truth; its unit of length does not matter.
        points: [B, S, H, W, 3] predicted points in the camera frame.
        extrinsics: [B, S, 3, 4] predicted cameras, world-to-camera.

    Returns:
        (objective, terms): loss_points, loss_normals, loss_cameras, before weights, and scale, the
        mean s. A scene without a valid pixel counts as 0.

    Raises:
        InputError: shapes differ.
    """
    mask = targets.mask
    if points.shape != (*mask.shape, 3) or extrinsics.shape != (*mask.shape[:2], 3, 4):
        raise InputError(
            f"points, extrinsics: expected {(*mask.shape, 3)} and {(*mask.shape[:2], 3, 4)} as the"
            f" targets are, got {points.shape} and {extrinsics.shape}"
        )
    truth, valid = geometry.unproject(targets.depth, targets.intrinsics)
    mask = mask & valid
    points = jnp.where(mask[..., None], points.astype(jnp.float32), 0)
    truth = jnp.where(mask[..., None], truth, 0)
    poses, true_poses = (geometry.invert_se3(e) for e in (extrinsics, targets.extrinsics))
    to_first = geometry.compose_se3(targets.extrinsics[:, :1], true_poses)
    unit = _mean_distance(points, mask)
    true_unit = _mean_distance(geometry.transform_points(to_first, truth), mask)
    points, truth = points / _wide(unit), truth / _wide(true_unit)

    z = truth[..., 2]
    count = jnp.maximum(mask.sum((-2, -1), keepdims=True), 1)
    least = LEAST_DEPTH * z.sum((-2, -1), keepdims=True) / count
    weight = jnp.where(mask, 1 / (jnp.maximum(z, least) + EPS), 0)
    scale = jax.lax.stop_gradient(
        jax.vmap(lambda p, q, w: fit_scale(p, q, w, settings.samples))(points, truth, weight)
    )
    aligned = points * _wide(scale)
    error = (jnp.abs(aligned - truth) * weight[..., None]).sum()
    terms = {"loss_points": error / jnp.maximum(3 * mask.sum(), 1)}
    terms["loss_normals"] = _normals(aligned, truth, mask)
    lengths = scale / unit, 1 / true_unit
    has_truth = mask.any((1, 2, 3))
    terms["loss_cameras"] = _cameras(poses, true_poses, *lengths, has_truth)
    objective = (
        settings.points * terms["loss_points"]
        + settings.normals * terms["loss_normals"]
        + settings.cameras * terms["loss_cameras"]
    )
    return objective, {**terms, "scale": scale.mean()}


def fit_scale(points: jax.Array, truth: jax.Array, weight: jax.Array, samples: int) -> jax.Array:
    """Fits the scale s of least sum of w |s p - q|, which is a weighted median of q / p.

    The sum is over points and coordinates.

    Args:
        points: [S, H, W, 3] of one scene.
        truth: [S, H, W, 3].
        weight: [S, H, W], 0 where not valid.
        samples: valid points that count, at most; evenly spread.

    Returns:
        A scalar, made positive; 1 without a valid point.
    """
    p, q, w = points.reshape(-1, 3), truth.reshape(-1, 3), weight.reshape(-1)
    valid = w > 0
    # All of them, or evenly spread ones: the n-th by its place in the running count.
    number, total, size = jnp.cumsum(valid) - 1, valid.sum(), min(samples, len(w))
    n = jnp.arange(size)
    n = jnp.where(total <= size, n, jnp.floor(n * (total / size)).astype(n.dtype))
    chosen = jnp.minimum(jnp.searchsorted(number, n), len(w) - 1)
    w = jnp.where(n < total, w[chosen], 0)
    p, q, w = p[chosen].reshape(-1), q[chosen].reshape(-1), jnp.repeat(w, 3)
    usable = jnp.abs(p) > EPS
    mass = jnp.where(usable, w * jnp.abs(p), 0)
    ratio = jnp.where(usable, q / jnp.where(usable, p, 1), 0)
    order = jnp.argsort(ratio)
    reached = jnp.cumsum(mass[order])
    middle = jnp.searchsorted(reached, reached[-1] / 2)
    scale = jnp.abs(ratio[order][jnp.minimum(middle, len(order) - 1)])
    return jnp.where((total > 0) & (reached[-1] > 0), jnp.maximum(scale, EPS), 1.0)


def _wide(x: jax.Array) -> jax.Array:
    """Reshapes [B] to [B, 1, 1, 1, 1]."""
    return x[:, None, None, None, None]


def _mean_distance(points: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns the mean distance [B] of the valid points from the origin; 1 where there is none."""
    points = jnp.where(mask[..., None], points, 0)
    square = (points * points).sum(-1)
    distance = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
    count = mask.sum((1, 2, 3))
    mean = distance.sum((1, 2, 3)) / jnp.maximum(count, 1)
    return jnp.where((count > 0) & (mean > EPS), mean, 1)


def _normals(points: jax.Array, truth: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns the mean cost of angles between normals; point maps are [B, S, H, W, 3].

    The cost is defined in `scale_aligned_loss`.
    """
    height, width = mask.shape[-2:]
    if min(height, width) < 2:
        return jnp.zeros(())
    z = truth[..., 2]
    corners = [_corners(x) for x in (points, truth)]
    depths = jnp.stack([z[..., i : height - 1 + i, j : width - 1 + j] for i, j in _CORNERS])
    inside = jnp.stack([mask[..., i : height - 1 + i, j : width - 1 + j] for i, j in _CORNERS])
    smooth = depths.max(0) - depths.min(0) <= DEPTH_STEP * depths.min(0)
    counts = inside.all(0) & smooth
    low, high = (jnp.radians(angle) for angle in ANGLES)
    total = jnp.zeros(())
    for k in range(4):
        ours, theirs = (jnp.cross(c[(k + 1) % 4] - c[k], c[(k - 1) % 4] - c[k]) for c in corners)
        product = jnp.cross(ours, theirs)
        square = (product * product).sum(-1)
        sine = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
        angle = jnp.arctan2(sine, jnp.where(counts, (ours * theirs).sum(-1), 1))
        angle = jnp.clip(angle, low, high)
        beta = jnp.radians(ANGLE_BETA)
        cost = jnp.where(angle < beta, 0.5 * angle**2 / beta, angle - 0.5 * beta)
        total += jnp.where(counts, cost, 0).sum()
    return total / jnp.maximum(counts.sum(), 1) / (4 * max(height, width))


_CORNERS = ((0, 0), (0, 1), (1, 1), (1, 0))


def _corners(points: jax.Array) -> list[jax.Array]:
    """Returns the four corners of every cell of 2 x 2 pixels, in order around the cell."""
    height, width = points.shape[-3:-1]
    return [points[..., i : height - 1 + i, j : width - 1 + j, :] for i, j in _CORNERS]


def _cameras(
    poses: jax.Array,
    truth: jax.Array,
    length: jax.Array,
    true_length: jax.Array,
    counts: jax.Array,
) -> jax.Array:
    """Returns the mean error of relative poses T_i^-1 T_j over ordered pairs of views.

    The error is defined in `scale_aligned_loss`.

    Args:
        poses: [B, S, 3, 4] camera-to-world.
        truth: likewise.
        length: [B], by which predicted translations are multiplied.
        true_length: [B], by which true translations are multiplied.
        counts: [B] bool.
    """
    b, s = poses.shape[:2]
    if s < 2:
        return jnp.zeros(())

    def relative(poses: jax.Array, length: jax.Array) -> jax.Array:
        back = jnp.broadcast_to(geometry.invert_se3(poses)[:, :, None], (b, s, s, 3, 4))
        both = geometry.compose_se3(back, jnp.broadcast_to(poses[:, None], (b, s, s, 3, 4)))
        shift = both[..., 3] * length[:, None, None, None]
        return jnp.concatenate([both[..., :3], shift[..., None]], -1)

    ours, theirs = relative(poses, length), relative(truth, true_length)
    error = jnp.abs(ours[..., 3] - theirs[..., 3])
    delta = TRANSLATION_DELTA
    huber = jnp.where(error < delta, 0.5 * error**2, delta * (error - 0.5 * delta)).mean(-1)
    trace = (ours[..., :3] * theirs[..., :3]).sum((-2, -1))
    angle = jnp.arccos(jnp.clip((trace - 1) / 2, -1 + EPS, 1 - EPS))
    pairs = (~jnp.eye(s, dtype=bool))[None] & counts[:, None, None]
    total = jnp.where(pairs, TRANSLATION_WEIGHT * huber + angle, 0).sum()
    return total / jnp.maximum(pairs.sum(), 1)
