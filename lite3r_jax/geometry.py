"""Cameras and points: pose encodings, quaternions, SE(3), Sim(3), project, unproject, normalize.

Conventions. Cameras follow OpenCV: x right, y down, z forward. Extrinsics are [R | t], 3 x 4, and
take world to camera: p_cam = R p_world + t. Intrinsics are in pixels, [[fx, skew, cx], [0, fy, cy],
[0, 0, 1]]. Pixel (u, v) has its center at integers, u to the right, v down.

Cameras carry leading axes L, for example [B, S]. Points start with the same axes and may have more
of their own, so that cameras [B, S, 3, 4] serve points [B, S, H, W, 3]; an axis of L may be 1 on
either side. All functions are pure and work under jit, vmap and grad. Results are float32, or
float64 for float64 inputs, which is also what 16-bit inputs are raised to before anything is
computed. Products run at full precision on every device.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lite3r_jax.errors import InputError

DEPTH_EPS = 1e-8
"""Depths up to this one mean "nothing measured here" (vggt/utils/geometry.py)."""


def quat_to_mat(quat: Any) -> jax.Array:
    """Returns the rotation matrix of a quaternion of any length but 0 (vggt/utils/rotation.py).

    Args:
        quat: [..., 4] in the order x, y, z, w (scalar last).

    Returns:
        [..., 3, 3]. A zero quaternion has no rotation and gives NaN.
    """
    quat = _real(quat, "quat", (4,))
    x, y, z, w = jnp.moveaxis(quat, -1, 0)
    s = 2.0 / (quat * quat).sum(-1)
    rows = (
        (1 - s * (y * y + z * z), s * (x * y - z * w), s * (x * z + y * w)),
        (s * (x * y + z * w), 1 - s * (x * x + z * z), s * (y * z - x * w)),
        (s * (x * z - y * w), s * (y * z + x * w), 1 - s * (x * x + y * y)),
    )
    return jnp.stack([jnp.stack(row, -1) for row in rows], -2)


def mat_to_quat(mat: Any) -> jax.Array:
    """Returns the unit quaternion of a rotation, w >= 0 (vggt/utils/rotation.py, after PyTorch3D).

    Of the four ways to write the quaternion, each dividing by another of its components, the one
    with the largest component is taken; the first of w, x, y, z where they tie. Half turns have
    w = 0 and two valid signs: the one with that largest component positive is returned.

    Args:
        mat: [..., 3, 3] rotations.

    Returns:
        [..., 4] in the order x, y, z, w.
    """
    mat = _real(mat, "mat", (3, 3))
    (m00, m01, m02), (m10, m11, m12), (m20, m21, m22) = (
        tuple(mat[..., i, j] for j in range(3)) for i in range(3)
    )
    # Twice the absolute value of each component, w first.
    twice = _safe_sqrt(
        jnp.stack(
            [1 + m00 + m11 + m22, 1 + m00 - m11 - m22, 1 - m00 + m11 - m22, 1 - m00 - m11 + m22], -1
        )
    )
    square = twice * twice
    # Row i is the quaternion (w, x, y, z) times four times its component i.
    rows = (
        (square[..., 0], m21 - m12, m02 - m20, m10 - m01),
        (m21 - m12, square[..., 1], m10 + m01, m02 + m20),
        (m02 - m20, m10 + m01, square[..., 2], m12 + m21),
        (m10 - m01, m20 + m02, m21 + m12, square[..., 3]),
    )
    table = jnp.stack([jnp.stack(row, -1) for row in rows], -2)
    # The largest component is at least 1/2, so the floor only keeps rows finite that lose anyway.
    table = table / (2 * jnp.maximum(twice, 0.1))[..., None]
    best = jnp.argmax(twice, -1)[..., None, None]
    quat = jnp.take_along_axis(table, best, axis=-2)[..., 0, :]
    quat = jnp.roll(quat, -1, axis=-1)
    return jnp.where(quat[..., 3:] < 0, -quat, quat)


def invert_se3(se3: Any) -> jax.Array:
    """Returns the inverses [R^T | -R^T t] of rigid transforms (vggt/utils/geometry.py).

    Args:
        se3: [..., 3, 4] or [..., 4, 4] whose R is a rotation.

    Returns:
        The same shape as `se3`.

    Raises:
        InputError: another shape.
    """
    se3 = _real(se3, "se3", (3, 4), (4, 4))
    rotation = jnp.swapaxes(se3[..., :3, :3], -1, -2)
    shift = -_einsum("...ij,...jk->...ik", rotation, se3[..., :3, 3:])
    return jnp.concatenate([jnp.concatenate([rotation, shift], -1), se3[..., 3:, :]], -2)


def compose_se3(left: Any, right: Any) -> jax.Array:
    """Returns the rigid transform that applies `right` first, then `left`.

    Args:
        left: [..., 3, 4].
        right: [..., 3, 4]; leading axes broadcast.

    Returns:
        [..., 3, 4].
    """
    left, right = _real(left, "left", (3, 4)), _real(right, "right", (3, 4))
    product = _einsum("...ij,...jk->...ik", left[..., :3], right)
    return product.at[..., 3].add(left[..., 3])


def transform_points(se3: Any, points: Any) -> jax.Array:
    """Applies rigid transforms to points: R p + t.

    Args:
        se3: [*L, 3, 4].
        points: [*L, ..., 3].

    Returns:
        [*L, ..., 3].
    """
    se3, points = _real(se3, "se3", (3, 4)), _real(points, "points", (3,))
    flat, shape = _flatten(points, se3.shape[:-2], "points")
    moved = _einsum("...ij,...nj->...ni", se3[..., :3], flat) + se3[..., None, :, 3]
    return moved.reshape(shape + (3,))


def cameras_to_pose_encoding(
    extrinsics: Any, intrinsics: Any, image_size: Sequence[int]
) -> jax.Array:
    """Encodes each camera as 9 numbers, "absT_quaR_FoV" (vggt/utils/pose_enc.py).

    The principal point is not part of the encoding.

    Args:
        extrinsics: [..., 3, 4] world-to-camera.
        intrinsics: [..., 3, 3] in pixels of an image of size (H, W).
        image_size: (H, W).

    Returns:
        [..., 9] = t (3), quaternion x, y, z, w with w >= 0 (4), vertical and horizontal field of
        view in radians (2).
    """
    extrinsics = _real(extrinsics, "extrinsics", (3, 4))
    intrinsics = _real(intrinsics, "intrinsics", (3, 3))
    height, width = image_size
    fov_h = 2 * jnp.arctan((height / 2) / intrinsics[..., 1, 1])
    fov_w = 2 * jnp.arctan((width / 2) / intrinsics[..., 0, 0])
    quat = mat_to_quat(extrinsics[..., :3])
    return jnp.concatenate([extrinsics[..., 3], quat, jnp.stack([fov_h, fov_w], -1)], -1)


def pose_encoding_to_cameras(
    pose_enc: Any, image_size: Sequence[int]
) -> tuple[jax.Array, jax.Array]:
    """Decodes pose encodings to extrinsics and intrinsics (vggt/utils/pose_enc.py).

    Args:
        pose_enc: [..., 9], see `cameras_to_pose_encoding`; the quaternion need not be normalized.
        image_size: (H, W).

    Returns:
        (extrinsics [..., 3, 4] world-to-camera, intrinsics [..., 3, 3] in pixels with the
        principal point at (W / 2, H / 2)). A field of view of 0 gives an infinite focal length.
    """
    pose_enc = _real(pose_enc, "pose_enc", (9,))
    height, width = image_size
    rotation = quat_to_mat(pose_enc[..., 3:7])
    extrinsics = jnp.concatenate([rotation, pose_enc[..., :3, None]], -1)
    fy = (height / 2) / jnp.tan(pose_enc[..., 7] / 2)
    fx = (width / 2) / jnp.tan(pose_enc[..., 8] / 2)
    zero, one = jnp.zeros_like(fx), jnp.ones_like(fx)
    rows = ((fx, zero, one * (width / 2)), (zero, fy, one * (height / 2)), (zero, zero, one))
    return extrinsics, jnp.stack([jnp.stack(row, -1) for row in rows], -2)


def pixels_to_rays(pixels: Any, intrinsics: Any) -> jax.Array:
    """Maps pixels to the plane z = 1 of the camera (vggt/utils/geometry.py: cam_from_img).

    Args:
        pixels: [*L, ..., 2] (u, v).
        intrinsics: [*L, 3, 3] in pixels, free of lens distortion.

    Returns:
        [*L, ..., 2] (x / z, y / z).
    """
    pixels = _real(pixels, "pixels", (2,))
    intrinsics = _real(intrinsics, "intrinsics", (3, 3))
    flat, shape = _flatten(pixels, intrinsics.shape[:-2], "pixels")
    k = intrinsics[..., None, :, :]
    y = (flat[..., 1] - k[..., 1, 2]) / k[..., 1, 1]
    x = (flat[..., 0] - k[..., 0, 2] - k[..., 0, 1] * y) / k[..., 0, 0]
    return jnp.stack([x, y], -1).reshape(shape + (2,))


def unproject(depth: Any, intrinsics: Any) -> tuple[jax.Array, jax.Array]:
    """Unprojects depth maps to points in the camera frame (vggt/utils/geometry.py).

    Args:
        depth: [*L, H, W], z in the camera frame.
        intrinsics: [*L, 3, 3] in pixels of these maps.

    Returns:
        (points [*L, H, W, 3], mask [*L, H, W] bool: finite depth > 1e-8). Depths that are not
        finite count as 0, so that points and gradients stay finite where the mask is false.

    Raises:
        InputError: depth and intrinsics do not belong together.
    """
    depth, intrinsics = _real(depth, "depth"), _real(intrinsics, "intrinsics", (3, 3))
    if depth.ndim != intrinsics.ndim:
        raise InputError(
            f"depth: expected [*L, H, W] for intrinsics {intrinsics.shape}, got {depth.shape}; "
            "drop a channel axis with depth[..., 0]"
        )
    finite = jnp.isfinite(depth)
    depth = jnp.where(finite, depth, 0)
    height, width = depth.shape[-2:]
    u, v = jnp.meshgrid(jnp.arange(width), jnp.arange(height))
    grid = jnp.stack([u, v], -1).astype(depth.dtype)
    rays = pixels_to_rays(grid.reshape((1,) * (depth.ndim - 2) + grid.shape), intrinsics)
    points = jnp.concatenate([rays, jnp.ones_like(rays[..., :1])], -1) * depth[..., None]
    return points, jnp.broadcast_to(finite & (depth > DEPTH_EPS), points.shape[:-1])


def unproject_to_world(
    depth: Any, extrinsics: Any, intrinsics: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Unprojects depth maps to world points (vggt/utils/geometry.py: depth_to_world_coords_points).

    Args:
        depth: [*L, H, W], z in the camera frame.
        extrinsics: [*L, 3, 4] world-to-camera.
        intrinsics: [*L, 3, 3] in pixels of these maps.

    Returns:
        (world points [*L, H, W, 3], camera points [*L, H, W, 3], mask [*L, H, W] bool).

    Raises:
        InputError: shapes do not belong together.
    """
    points, mask = unproject(depth, intrinsics)
    return transform_points(invert_se3(extrinsics), points), points, mask


def project(
    points: Any, extrinsics: Any, intrinsics: Any, *, default: float = 0.0
) -> tuple[jax.Array, jax.Array]:
    """Projects world points to pixels (vggt/utils/geometry.py: project_world_points_to_cam).

    Points behind the camera are projected through its center as in the original: the z of the
    camera points tells them apart. Points at z = 0 and points that are not finite have no pixel.

    Args:
        points: [*L, ..., 3] in the world; [1, N, 3] for N points that all cameras [V, 3, 4] see.
        extrinsics: [*L, 3, 4] world-to-camera.
        intrinsics: [*L, 3, 3] in pixels.
        default: both coordinates of a point without a pixel.

    Returns:
        (pixels [*L, ..., 2] (u, v), camera points [*L, ..., 3]).
    """
    points = _real(points, "points", (3,))
    intrinsics = _real(intrinsics, "intrinsics", (3, 3))
    # NaN and the pole are replaced before, not after: there a zero cotangent would become NaN.
    finite = jnp.isfinite(points).all(-1, keepdims=True)
    cam = transform_points(extrinsics, jnp.where(finite, points, 0))
    seen = finite & jnp.isfinite(cam).all(-1, keepdims=True) & (cam[..., 2:] != 0)
    kept = jnp.where(seen, cam, 1)
    flat, shape = _flatten(kept[..., :2] / kept[..., 2:], intrinsics.shape[:-2], "points")
    pixels = _einsum("...ij,...nj->...ni", intrinsics[..., :2, :2], flat)
    pixels = (pixels + intrinsics[..., None, :2, 2]).reshape(shape + (2,))
    pixels = jnp.nan_to_num(jnp.where(seen, pixels, default), nan=default)
    return pixels, jnp.where(finite, cam, jnp.nan)


def normalize_scene(
    extrinsics: Any, world_points: Any, depth: Any, mask: Any
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Moves the world frame to view 0 and scales the mean distance of the valid points to 1.

    This is the training normalization (training/train_utils/normalization.py): E_i <- E_i E_0^-1,
    points into the camera of view 0, then points, translations and depths divided by
    scale = clip(sum |p| / (count + 1e-3), 1e-6, 1e6) of the scene.

    Args:
        extrinsics: [B, S, 3, 4] world-to-camera.
        world_points: [B, S, H, W, 3].
        depth: [B, S, H, W].
        mask: [B, S, H, W] bool; only finite points inside of it count for the scale.

    Returns:
        (extrinsics, world_points, depth, scale [B]). Divide camera points by `scale` as well, and
        multiply by it to return to the old unit. Values that are not finite become 0. A scene
        without a valid point has the scale 1e-6.

    Raises:
        InputError: shapes do not belong together.
    """
    extrinsics = _real(extrinsics, "extrinsics", (3, 4))
    points, depth = _real(world_points, "world_points", (3,)), _real(depth, "depth")
    mask = jnp.asarray(mask, bool)
    if not points.shape[:-1] == depth.shape == mask.shape or depth.ndim != 4:
        raise InputError(
            "world_points, depth, mask: expected [B, S, H, W, 3], [B, S, H, W] and [B, S, H, W], "
            f"got {points.shape}, {depth.shape} and {mask.shape}"
        )
    first = extrinsics[:, 0]
    moved = compose_se3(extrinsics, invert_se3(first)[:, None])
    points = transform_points(first, points)
    mask = mask & jnp.isfinite(points).all(-1)
    dist = _safe_sqrt((jnp.where(mask[..., None], points, 0) ** 2).sum(-1))
    scale = jnp.clip(dist.sum((1, 2, 3)) / (mask.sum((1, 2, 3)) + 1e-3), 1e-6, 1e6)
    wide = scale[:, None, None, None]
    moved = jnp.concatenate([moved[..., :3], moved[..., 3:] / wide], -1)
    return _finite(moved), _finite(points / wide[..., None]), _finite(depth / wide), scale


class Sim3(NamedTuple):
    """A similarity y = scale * rotation x + translation, with leading axes L.

    Attributes:
        scale: [*L], 0 or more.
        rotation: [*L, 3, 3].
        translation: [*L, 3].
    """

    scale: Any
    rotation: Any
    translation: Any


def fit_sim3(source: Any, target: Any, weights: Any = None, *, xp: Any = jnp) -> Sim3:
    """Fits the similarity that maps source to target points with the least squared distance.

    Umeyama, IEEE PAMI 13(4), 1991, equations 34 to 43: never a reflection, also where a reflection
    would fit better. Points on one line leave the rotation about the line open, and one point
    leaves all but the translation open: any of the solutions is returned. Source points that are
    all the same give the scale 0.

    Args:
        source: [*L, N, 3].
        target: [*L, N, 3], the same points elsewhere.
        weights: [*L, N], 0 or more and not all 0; None: all equal. Points of weight 0 may be
            anything.
        xp: jax.numpy, for jit and devices (the gradient of the singular vectors is undefined where
            singular values are equal); or numpy, for float64 on the host.

    Returns:
        The similarity, in the dtype of the inputs.

    Raises:
        InputError: shapes differ.
    """
    x, y = (_points(points, name, xp) for points, name in ((source, "source"), (target, "target")))
    if x.shape != y.shape or x.ndim < 2:
        raise InputError(f"source, target: expected [*L, N, 3] twice, got {x.shape}, {y.shape}")
    w = xp.ones(x.shape[:-1], x.dtype) if weights is None else xp.asarray(weights, x.dtype)
    if w.shape != x.shape[:-1]:
        raise InputError(f"weights: expected {x.shape[:-1]}, got {w.shape}")
    counts = (w > 0)[..., None]
    w = (w / w.sum(-1, keepdims=True))[..., None]
    x, y = xp.where(counts, x, 0), xp.where(counts, y, 0)
    from_, to = (w * x).sum(-2, keepdims=True), (w * y).sum(-2, keepdims=True)
    x, y = x - from_, y - to
    variance = (w * x * x).sum((-2, -1))
    u, d, vt = xp.linalg.svd(_einsum("...ni,...nj->...ij", w * y, x))
    mirror = xp.linalg.det(u) * xp.linalg.det(vt) < 0
    signs = xp.stack([xp.ones_like(d[..., 0])] * 2 + [xp.where(mirror, -1.0, 1.0)], -1)
    signs = signs.astype(x.dtype)
    rotation = _einsum("...ij,...jk->...ik", u * signs[..., None, :], vt)
    spread = variance > 0
    scale = xp.where(spread, (d * signs).sum(-1) / xp.where(spread, variance, 1), 0)
    moved = scale[..., None] * _einsum("...ij,...j->...i", rotation, from_[..., 0, :])
    return Sim3(scale, rotation, to[..., 0, :] - moved)


def apply_sim3(sim3: Sim3, points: Any, *, xp: Any = jnp) -> Any:
    """Applies similarities to points: scale * R p + t.

    Args:
        sim3: with leading axes L.
        points: [*L, N, 3].
        xp: see `fit_sim3`.

    Returns:
        [*L, N, 3].
    """
    points = _points(points, "points", xp)
    turned = _einsum("...ij,...nj->...ni", sim3.rotation, points)
    return sim3.scale[..., None, None] * turned + sim3.translation[..., None, :]


def _points(points: Any, name: str, xp: Any) -> Any:
    if xp is jnp:
        return _real(points, name, (3,))
    points = xp.asarray(points, xp.float64)
    if points.shape[-1:] != (3,):
        raise InputError(f"{name}: expected shape [..., 3], got {points.shape}")
    return points


def _real(x: Any, name: str, *tails: tuple[int, ...]) -> jax.Array:
    """Returns `x` in float32 or wider, after a check of its last axes."""
    x = jnp.asarray(x)
    if tails and not any(x.shape[max(x.ndim - len(t), 0) :] == t for t in tails):
        wanted = " or ".join("[..., " + ", ".join(map(str, t)) + "]" for t in tails)
        raise InputError(f"{name}: expected shape {wanted}, got {x.shape}; check the axis order")
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _flatten(
    points: jax.Array, lead: tuple[int, ...], name: str
) -> tuple[jax.Array, tuple[int, ...]]:
    """Flattens [*L, ..., C] to [*L, N, C]; also returns the shape of the result without C."""
    own = points.shape[:-1]
    try:
        wide = jnp.broadcast_shapes(lead, own[: len(lead)])
    except ValueError:
        wide = ()
    if len(own) < len(lead) or len(wide) != len(lead):
        raise InputError(
            f"{name}: expected the leading axes {lead} of the cameras, got shape {points.shape}"
        )
    tail = own[len(lead) :]
    return points.reshape(own[: len(lead)] + (math.prod(tail), points.shape[-1])), wide + tail


def _einsum(equation: str, *operands: Any) -> Any:
    if all(isinstance(x, np.ndarray) for x in operands):
        return np.einsum(equation, *operands, optimize=True)
    # GPUs round float32 operands to TF32 unless told otherwise.
    return jnp.einsum(equation, *operands, precision=lax.Precision.HIGHEST)


def _safe_sqrt(x: jax.Array) -> jax.Array:
    """Computes sqrt(max(x, 0)), with gradient 0 where the result is 0."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1)), 0)


def _finite(x: jax.Array) -> jax.Array:
    return jnp.where(jnp.isfinite(x), x, 0)
