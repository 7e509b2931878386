"""Cameras of pi^3: the nearest rotation, poses, and intrinsics from rays.

Source: pi3/models/layers/camera_head.py (rotation), pi3/utils/geometry.py (intrinsics).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

LEAST_WEIGHT = 1e-6
"""Added to the weight of every pixel in the fit of intrinsics.

The fit then has a solution even if no pixel has any confidence."""


def _product(*factors: jax.Array) -> jax.Array:
    """Multiplies 3 x 3 matrices at full precision."""
    result, *rest = factors
    for factor in rest:
        result = jnp.matmul(result, factor, precision=lax.Precision.HIGHEST)
    return result


def _transposed(matrix: jax.Array) -> jax.Array:
    return jnp.swapaxes(matrix, -1, -2)


def _decomposed(matrix: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns (R, V, signed singular values) of M = U diag(s) V^T, R being the nearest rotation.

    R = U diag(1, 1, det U V^T) V^T.
    """
    u, s, vt = jnp.linalg.svd(matrix)
    sign = jnp.where(jnp.linalg.det(u) * jnp.linalg.det(vt) < 0, -1.0, 1.0).astype(s.dtype)
    signs = jnp.stack([jnp.ones_like(sign), jnp.ones_like(sign), sign], -1)
    return _product(u * signs[..., None, :], vt), _transposed(vt), s * signs


@jax.custom_jvp
def nearest_rotation(matrix: jax.Array) -> jax.Array:
    """Returns the rotation with the least squared distance to a matrix.

    M = U S V^T gives R = U diag(1, 1, det(U V^T)) V^T. It is unique unless the two smallest signed
    singular values cancel, as those of -I do. Its derivative is defined apart: the derivative of
    singular vectors is infinite where singular values are equal, as they are of every exact
    rotation, where R is smooth all the same.

    Args:
        matrix: [..., 3, 3].

    Returns:
        [..., 3, 3].
    """
    return _decomposed(matrix)[0]


@nearest_rotation.defjvp
def _nearest_rotation_jvp(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Computes the JVP of `nearest_rotation` for a change dM of the matrix.

    dR = R V W V^T with W_ij = X_ij / (l_i + l_j) and X = V^T (R^T dM - dM^T R) V, where l are the
    signed singular values. (From R^T M being symmetric for the nearest rotation.)
    """
    (matrix,), (change,) = primals, tangents
    rotation, v, values = _decomposed(matrix)
    turn = _product(_transposed(rotation), change)
    x = _product(_transposed(v), turn - _transposed(turn), v)
    sums = values[..., :, None] + values[..., None, :]
    defined = (jnp.abs(sums) > 0) & ~jnp.eye(3, dtype=bool)
    w = jnp.where(defined, x / jnp.where(defined, sums, 1), 0)
    return rotation, _product(rotation, v, w, _transposed(v))


def poses_of(translation: jax.Array, numbers: jax.Array) -> jax.Array:
    """Builds camera-to-world poses from the numbers that the camera head predicts.

    Args:
        translation: [..., 3].
        numbers: [..., 9], a 3 x 3 matrix row by row; its rows are normalized, then the nearest
            rotation is taken.

    Returns:
        [..., 3, 4] camera-to-world [R | t], OpenCV axes.
    """
    rows = numbers.reshape(*numbers.shape[:-1], 3, 3)
    length = jnp.sqrt(jnp.maximum(jnp.sum(rows * rows, axis=-1, keepdims=True), 1e-24))
    return jnp.concatenate([nearest_rotation(rows / length), translation[..., None]], -1)


def ray_sums(rays: jax.Array, weight: jax.Array) -> jax.Array:
    """Computes the weighted sums of a view from which `intrinsics_of` fits intrinsics.

    Sums of several views add up.

    Args:
        rays: [..., H, W, 2] (x / z, y / z) of every pixel.
        weight: [..., H, W], 0 or more.

    Returns:
        [..., 2, 5]: for x and y the weighted sums of 1, ray, pixel, ray^2 and ray * pixel, the
        pixel counted from the middle of the image.
    """
    height, width = weight.shape[-2:]
    u = jnp.arange(width, dtype=jnp.float32) - (width - 1) / 2
    v = jnp.arange(height, dtype=jnp.float32)[:, None] - (height - 1) / 2
    weight = weight + LEAST_WEIGHT
    sums = []
    for axis, pixel in enumerate((u, v)):
        ray = rays[..., axis]
        terms = (jnp.ones_like(ray), ray, pixel, ray * ray, ray * pixel)
        sums.append(jnp.stack([(weight * term).sum((-1, -2)) for term in terms], -1))
    return jnp.stack(sums, -2)


def intrinsics_of(sums: jax.Array, size: Sequence[int], principal_point: str = "free") -> jax.Array:
    """Fits intrinsics by least squares: pixel = focal * ray + principal point, for x and for y.

    Args:
        sums: [..., 2, 5] of `ray_sums`.
        size: (H, W) of the image in pixels.
        principal_point: "free", fitted too; or "center", the middle of the image.

    Returns:
        [..., 3, 3] in pixels, pixel centers at integers.
    """
    count, ray, pixel, ray2, product = jnp.moveaxis(sums, -1, 0)
    middle = jnp.array([(size[1] - 1) / 2, (size[0] - 1) / 2], jnp.float32)
    if principal_point == "center":
        focal, point = product / ray2, jnp.broadcast_to(middle, ray.shape)
    else:
        focal = (product - ray * pixel / count) / (ray2 - ray * ray / count)
        point = middle + (pixel - focal * ray) / count
    zero, one = jnp.zeros_like(focal[..., 0]), jnp.ones_like(focal[..., 0])
    rows = (
        (focal[..., 0], zero, point[..., 0]),
        (zero, focal[..., 1], point[..., 1]),
        (zero, zero, one),
    )
    return jnp.stack([jnp.stack(row, -1) for row in rows], -2)
