"""True matches of patches between views, and losses that teach tokens to find them.

A model that starts from random weights learns depth from single views and leaves poses at their
mean: nothing tells it early that views have to be compared. These terms do, from exact depth and
cameras. They read tokens that the model has in any case.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from lite3r_jax.errors import InputError
from lite3r_jax.geometry import invert_se3, pixels_to_rays, project, transform_points
from lite3r_jax.losses.elements import magnitude
from lite3r_jax.losses.masked import Masked
from lite3r_jax.losses.multitask import Targets

SAME_DEPTH = 0.06
"""Largest relative difference of two depths of one place; beyond it the place is occluded."""
FIELD = 1.3
"""Largest flow coordinate that counts in the loss; the image reaches from -1 to 1."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Matches:
    """True matches, points and flow of patches, each represented by its middle pixel.

    Attributes:
        patch: [B, S-1, N] int32, the patch of view 1 + j in which the middle of patch n of view 0
            is seen; -1 where it is not seen.
        points: [B, S, N, 3], middle of every patch in the frame of view 0.
        valid: [B, S, N] bool, whether that middle has a depth.
        flow: [B, S-1, N, 2], where the middle of patch n of view 1 + j lies in view 0: (x, y),
            -1 to 1 over the image.
        in_view: [B, S-1, N] bool, whether that is in front of view 0 and within `FIELD`.
    """

    patch: jax.Array
    points: jax.Array
    valid: jax.Array
    flow: jax.Array
    in_view: jax.Array


def matches(targets: Targets, patch: int) -> Matches:
    """Computes the true matches of patches by projecting their middles from view to view.

    Args:
        targets: ground truth whose world frame is that of view 0, see `geometry.normalize_scene`.
        patch: side of a patch in pixels; it divides height and width.

    Raises:
        InputError: one view only, or a patch that does not fit.
    """
    b, s, height, width = targets.depth.shape
    if s < 2 or height % patch or width % patch:
        raise InputError(
            f"matches: expected 2 or more views of multiples of {patch} pixels, got {s} of"
            f" {height} x {width}"
        )
    size = jnp.array([width, height])
    u, v = jnp.meshgrid(*(jnp.arange(n // patch) * patch + patch // 2 for n in (width, height)))
    pixels = jnp.stack([u, v], -1).reshape(-1, 2)
    known = targets.mask & (targets.depth > 0) & jnp.isfinite(targets.depth)
    depth = jnp.where(known, targets.depth, 0)
    z, valid = (x[:, :, pixels[:, 1], pixels[:, 0]] for x in (depth, known))
    rays = pixels_to_rays(pixels[None, None].astype(z.dtype), targets.intrinsics)
    cam = jnp.concatenate([rays, jnp.ones_like(rays[..., :1])], -1) * z[..., None]
    points = transform_points(invert_se3(targets.extrinsics), cam)

    there, cam = project(points[:, :1], targets.extrinsics[:, 1:], targets.intrinsics[:, 1:])
    at = jnp.round(there).astype(jnp.int32)
    inside = ((at >= 0) & (at < size)).all(-1) & (cam[..., 2] > 0)
    x, y = jnp.moveaxis(jnp.where(inside[..., None], at, 0), -1, 0)
    met = jnp.take_along_axis(
        depth[:, 1:].reshape(b, s - 1, -1), (y * width + x).reshape(b, s - 1, -1), -1
    )
    seen = inside & valid[:, :1] & (jnp.abs(met - cam[..., 2]) < SAME_DEPTH * cam[..., 2])
    index = (y // patch) * (width // patch) + x // patch

    back, cam = project(points[:, 1:], targets.extrinsics[:, :1], targets.intrinsics[:, :1])
    flow = (2 * back + 1) / size - 1
    in_view = valid[:, 1:] & (cam[..., 2] > 0) & (jnp.abs(flow) < FIELD).all(-1)
    return Matches(
        patch=jnp.where(seen, index, -1),
        points=points,
        valid=valid,
        flow=jnp.where(in_view[..., None], flow, 0),
        in_view=in_view,
    )


def match_loss(logits: jax.Array, patch: jax.Array) -> jax.Array:
    """Computes the cross entropy of the true patch among all patches of its view.

    Args:
        logits: [B, S-1, N, N]: patch n of view 0 against the patches of view 1 + j. Products of
            descriptors (InfoNCE, arXiv 1807.03748), or of queries and keys of an attention head.
        patch: of `Matches`.
    """
    likely = jax.nn.log_softmax(logits.astype(jnp.float32), -1)
    chosen = jnp.take_along_axis(likely, jnp.maximum(patch, 0)[..., None], -1)[..., 0]
    return Masked.of(-chosen, patch >= 0).mean


def flow_loss(flow: jax.Array, truth: Matches) -> jax.Array:
    """Computes the mean absolute error of flows [..., B, S-1, N, 2], summed over x and y."""
    error = magnitude(flow - truth.flow).sum(-1)
    return Masked.of(error, truth.in_view).mean


def point_loss(points: jax.Array, truth: Matches) -> jax.Array:
    """Computes the mean absolute error of points [B, S, N, 3], summed over coordinates."""
    return Masked.of(magnitude(points - truth.points).sum(-1), truth.valid).mean
