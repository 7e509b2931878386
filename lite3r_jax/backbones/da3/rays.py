"""The ray branch of the dense head, and cameras from rays.

Every pixel's ray is a direction, not normalized, and an origin in the world. The directions of one
view are a homography of its image plane, whose factors are rotation and intrinsics
(depth_anything_3/utils/ray_utils.py).
"""

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from lite3r_jax import geometry
from lite3r_jax.backbones.da3.cameras import camera_matrix
from lite3r_jax.layers.dpt import add_uv_embedding, fuse, refinements
from lite3r_jax.layers.norm import layer_norm

_PAD = ((1, 1), (1, 1))
RAY_DIM = 6
DRAWS = 100
DRAWN = 8
# Share of the points, by confidence, that homographies are drawn from.
CANDIDATES = 0.3
LEAST_Z = 1e-4
# On the plane z = 1, whose image is 2 wide and 2 high.
INLIER = 0.2


class RayHead(nnx.Module):
    """Predicts rays and their confidence from the depth head's levels (model/dualdpt.py).

    It has its own fusion of the levels. Upstream evaluates an output for each of the four levels
    and uses that of the finest one, which is the only one here.
    """

    def __init__(self, features: int, *, param_dtype: Any, rngs: nnx.Rngs):
        """Builds the branch for levels of F = `features` channels."""
        kinds = {"param_dtype": param_dtype, "rngs": rngs}
        half = features // 2
        self.refine = refinements(features, rectified_skip=False, **kinds)
        widths = (features, half, features, half, features, half)
        self.convs = nnx.List(
            [nnx.Conv(a, b, (3, 3), padding=_PAD, **kinds) for a, b in itertools.pairwise(widths)]
        )
        self.conv = nnx.Conv(half, 32, (3, 3), padding=_PAD, **kinds)
        self.norm = layer_norm(32, 1e-5, **kinds)
        self.out = nnx.Linear(32, RAY_DIM + 1, **kinds)

    def __call__(
        self, maps: Sequence[jax.Array], grid: tuple[int, int]
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Predicts rays and confidence, not activated, from the levels of the depth head.

        Args:
            maps: four levels [B, h_l, w_l, F] of `DPT.levels`.
            grid: (h, w).

        Returns:
            ([B, 8h, 8w, 7]: direction, origin, confidence, not activated; named intermediates).
        """
        x, out = fuse(self.refine, maps)
        for conv in self.convs:
            x = conv(x)
        out["convs"] = x
        x = add_uv_embedding(x, grid[1] / grid[0])
        return self.out(nnx.relu(self.norm(self.conv(x)))), out


def draw_samples(points: int, seed: int = 0) -> np.ndarray:
    """Draws the candidates that each trial homography is fitted to.

    Args:
        points: rays of one view.
        seed: equal seeds give equal draws. Upstream's differ from run to run.

    Returns:
        [100, 8] int32, ranks by confidence, different within a row.
    """
    rng = np.random.default_rng(seed)
    count = max(DRAWN, int(points * CANDIDATES))
    rows = [rng.choice(count, DRAWN, replace=False) for _ in range(DRAWS)]
    return np.stack(rows).astype(np.int32)


def cameras_from_rays(
    rays: jax.Array,
    confidence: jax.Array,
    image_size: tuple[int, int],
    samples: np.ndarray | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Computes cameras from maps of rays.

    Exact for rays of a camera whose principal point is the image center; for others upstream's
    decomposition, which is followed here, is not that of a pinhole camera.

    Args:
        rays: [B, S, h, w, 6] direction and origin.
        confidence: [B, S, h, w], positive.
        image_size: (H, W) of the images that the intrinsics refer to.
        samples: [draws, 8] as `draw_samples` gives, which it is when None.

    Returns:
        (world-to-camera extrinsics [B, S, 3, 4], intrinsics [B, S, 3, 3] in pixels).
    """
    b, s, h, w, _ = rays.shape
    if samples is None:
        samples = draw_samples(h * w)
    u, v = (np.linspace(-1 + 1 / n, 1 - 1 / n, n, dtype=np.float32) for n in (w, h))
    plane = jnp.asarray(np.stack(np.meshgrid(u, v), -1).reshape(-1, 2))
    picked = jnp.asarray(samples)

    def one(view: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, ...]:
        ray, weight = view
        z = ray[:, 2:3]
        valid = jnp.abs(z) > LEAST_Z
        weight = jnp.where(valid[:, 0], weight, 0)
        target = ray[:, :2] / jnp.where(valid, z, 1)
        matrix = robust_homography(plane, target, weight, picked)
        matrix = jnp.where(jnp.linalg.det(matrix) < 0, -matrix, matrix)
        rotation, lower = ql(matrix)
        lower = lower / lower[2, 2]
        origin = (ray[:, 3:] * weight[:, None]).sum(0) / weight.sum()
        pose = jnp.concatenate([rotation, origin[:, None]], -1)
        return pose, 1 / jnp.diagonal(lower)[:2], lower[2, :2] + 1

    flat = (rays.reshape(b * s, h * w, -1), confidence.reshape(b * s, h * w))
    poses, focal, center = (
        x.reshape(b, s, *x.shape[1:]) for x in lax.map(one, jax.tree.map(_real, flat))
    )
    half = jnp.asarray([image_size[1] / 2, image_size[0] / 2], focal.dtype)
    return geometry.invert_se3(poses), camera_matrix(focal * half, image_size, center * half)


def robust_homography(
    source: jax.Array, target: jax.Array, weight: jax.Array, samples: jax.Array
) -> jax.Array:
    """Fits the homography that points of the largest total weight agree with, by RANSAC.

    Args:
        source: [N, 2].
        target: [N, 2].
        weight: [N], not negative.
        samples: [draws, n] ranks by weight; each row is one trial.

    Returns:
        [3, 3] with 1 in the corner, fitted to all inliers of the best trial; upstream takes a
        random 8000 of them if there are more.
    """
    # Ties in the order of points, as a stable sort leaves them.
    index = jnp.argsort(-weight)[samples]
    trials = jax.vmap(homography)(source[index], target[index], weight[index])
    plane = jnp.concatenate([source, jnp.ones_like(source[:, :1])], -1)

    def inliers(trial: jax.Array) -> jax.Array:
        image = jnp.einsum("nj,ij->ni", plane, trial, precision=lax.Precision.HIGHEST)
        error = image[:, :2] / image[:, 2:] - target
        return jnp.where(jnp.sqrt((error * error).sum(-1)) < INLIER, weight, 0)

    scores = lax.map(lambda trial: inliers(trial).sum(), trials)
    return homography(source, target, inliers(trials[jnp.argmax(scores)]))


def homography(source: jax.Array, target: jax.Array, weight: jax.Array) -> jax.Array:
    """Fits a homography [3, 3] to weighted points [N, 2] by the direct linear transform.

    The entry in its corner is 1.
    """
    root = jnp.sqrt(weight)[:, None]
    plane = jnp.concatenate([source, jnp.ones_like(source[:, :1])], -1) * root
    zero = jnp.zeros_like(plane)
    rows = jnp.concatenate(
        [
            jnp.concatenate([-plane, zero, plane * target[:, :1]], -1),
            jnp.concatenate([zero, -plane, plane * target[:, 1:]], -1),
        ]
    )
    # The right singular vectors are those of the small triangle, whatever the number of points.
    triangle = jnp.linalg.qr(rows, mode="r")
    matrix = jnp.linalg.svd(triangle, full_matrices=False)[2][-1].reshape(3, 3)
    return matrix / matrix[2, 2]


def ql(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Factors a matrix [3, 3] into Q L: Q orthogonal, L lower triangular, its diagonal positive."""
    q, r = jnp.linalg.qr(matrix[:, ::-1])
    q, lower = q[:, ::-1], r[::-1, ::-1]
    sign = jnp.sign(jnp.diagonal(lower))
    return q * sign, lower * sign[:, None]


def _real(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
