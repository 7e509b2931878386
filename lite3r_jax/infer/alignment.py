"""Aligns predictions with known cameras by a similarity, for scenes in the known world.

This follows depth_anything_3/api.py and utils/pose_align.py, and takes one and two views as well.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax
import numpy as np

from lite3r_jax.backbones.base import Prediction
from lite3r_jax.geometry import fit_sim3

World = Literal["known", "predicted"]

# From this many views on outliers are looked for.
RANSAC_VIEWS = 10
RANSAC_TRIALS = 10
RANSAC_SEED = 42
# Second singular value over the first, below which centers count as being on one line.
COLLINEAR = 1e-6
# Spread of centers over their distance from the origin, below which they are one place: what is
# left is the rounding of -R^T t, in float64 of known cameras and in float32 of predicted ones.
ONE_PLACE = {np.dtype(np.float64): 1e-9, np.dtype(np.float32): 1e-6}


@dataclass(frozen=True)
class Similarity:
    """A similarity transform of points: p -> scale * rotation p + translation.

    Attributes:
        rotation: [3, 3].
        translation: [3].
        scale: positive.
    """

    rotation: np.ndarray
    translation: np.ndarray
    scale: float

    def cameras(self, extrinsics: np.ndarray) -> np.ndarray:
        """Transforms world-to-camera poses to [S, 3, 4]; the cameras' own axes keep their unit."""
        rotation, centers = _poses(extrinsics)
        moved = self.rotation @ rotation
        return _extrinsics(moved, self.points(centers))

    def points(self, points: np.ndarray) -> np.ndarray:
        """Applies the transform to points and returns them, [N, 3]."""
        return self.scale * points @ self.rotation.T + self.translation


def align(
    prediction: Prediction, extrinsics: Any, intrinsics: Any, world: World = "known"
) -> tuple[Prediction, tuple[Similarity, ...]]:
    """Replaces predicted cameras by known ones, and puts depth and cameras into one world.

    Args:
        prediction: with depth and cameras.
        extrinsics: [B, S, 3, 4] or [B, S, 4, 4] world-to-camera, the known cameras in their own
            world.
        intrinsics: [B, S, 3, 3] in pixels of the network images.
        world: "known": the cameras as given, and depth in their unit; "predicted": depth as
            predicted, and the known cameras moved to the predicted ones.

    Returns:
        (the prediction on the host with these cameras, and depth in the unit of their world; what
        does not fit them (pose encodings, rays, points) is None; for each scene what moves the
        known cameras onto the predicted ones).

    Raises:
        ValueError: another shape, or an unknown `world`.
    """
    if world not in get_args(World):
        raise ValueError(f"world: expected one of {', '.join(get_args(World))}, got {world!r}")
    host = jax.device_get(prediction)
    extrinsics, intrinsics = np.asarray(extrinsics), np.asarray(intrinsics)
    b, s = host.extrinsics.shape[:2]
    if extrinsics.shape not in ((b, s, 3, 4), (b, s, 4, 4)):
        raise ValueError(
            f"extrinsics: expected {(b, s, 3, 4)} or {(b, s, 4, 4)}, got {extrinsics.shape}"
        )
    if intrinsics.shape != (b, s, 3, 3):
        raise ValueError(f"intrinsics: expected {(b, s, 3, 3)}, got {intrinsics.shape}")
    cameras, depths, fits = [], [], []
    for known, predicted, depth in zip(extrinsics, host.extrinsics, host.depth, strict=True):
        fit = fit_cameras(known, predicted)
        in_known = world == "known"
        cameras.append(known[:, :3] if in_known else fit.cameras(known))
        depths.append(depth / fit.scale if in_known else depth)
        fits.append(fit)
    aligned = dataclasses.replace(
        Prediction(depth_conf=host.depth_conf),
        extrinsics=np.stack(cameras).astype(np.float32),
        intrinsics=intrinsics.astype(np.float32),
        depth=np.stack(depths).astype(np.float32),
        unit="known cameras" if in_known else host.unit,
    )
    return aligned, tuple(fits)


def misfit(known: Any, predicted: Any, fit: Similarity) -> tuple[np.ndarray, np.ndarray]:
    """Computes how far predicted cameras are from known cameras that were moved onto them.

    Args:
        known: [S, 3, 4] world-to-camera.
        predicted: likewise.
        fit: of `fit_cameras`.

    Returns:
        (angles between their axes [S] in degrees, distances of their centers [S] in the unit of the
        known world).
    """
    (rotation, start), (target, end) = _poses(known), _poses(predicted)
    # rotations that differ by an angle a are sqrt(8) sin(a / 2) apart
    apart = np.linalg.norm(fit.rotation @ rotation - target, axis=(-2, -1))
    angles = 2 * np.arcsin(np.minimum(apart / np.sqrt(8), 1))
    return np.degrees(angles), np.linalg.norm(fit.points(start) - end, axis=-1) / fit.scale


def fit_cameras(source: Any, target: Any) -> Similarity:
    """Fits the similarity that moves cameras onto others, view by view.

    The fit is least squares over the centers (Umeyama, PAMI 1991), of ten or more views over those
    that agree. Centers of one or two views, or on one line, leave the rotation open, which upstream
    refuses: it is then taken from the cameras' own rotations, and the scale of a single place is 1.

    Args:
        source: [S, 3, 4] or [S, 4, 4] world-to-camera.
        target: likewise.
    """
    (from_rotation, start), (to_rotation, end) = _poses(source), _poses(target)
    turning = _is_one_place(start, source) or _is_one_place(end, target)
    fit = None if turning else _fit_points(start, end)
    if fit is None:
        return _by_rotations(from_rotation, start, to_rotation, end, 1.0 if turning else None)
    if len(start) < RANSAC_VIEWS:
        return fit
    return _consensus(fit, start, end)


def _consensus(first: Similarity, start: np.ndarray, end: np.ndarray) -> Similarity:
    """Refines a fit by RANSAC over random halves of the views, drawn as upstream draws them."""
    rng = np.random.default_rng(RANSAC_SEED)
    count = len(start)
    moved = first.points(start)
    nearest = np.linalg.norm(moved[:, None] - end[None], axis=-1).min(1)
    limit = np.median(nearest)
    best, inliers, score = first, None, (-1, -np.inf)
    for _ in range(RANSAC_TRIALS):
        sample = rng.choice(np.arange(count), size=max(3, (count + 1) // 2), replace=False)
        fit = _fit_points(start[sample], end[sample])
        if fit is None:
            continue
        errors = np.linalg.norm(fit.points(start) - end, axis=1)
        near = errors <= limit
        rank = (int(near.sum()), -float(errors[near].mean()) if near.any() else -np.inf)
        if rank > score:
            best, inliers, score = fit, near, rank
    if inliers is not None and inliers.sum() >= 3:
        return _fit_points(start[inliers], end[inliers]) or best
    return best


def _is_one_place(centers: np.ndarray, extrinsics: Any) -> bool:
    """Returns whether all cameras stand in one place, where a fit would scale rounding noise."""
    tolerance = ONE_PLACE.get(np.asarray(extrinsics).dtype, ONE_PLACE[np.dtype(np.float32)])
    spread = np.linalg.norm(centers - centers.mean(0), axis=-1).max()
    return bool(spread <= tolerance * np.linalg.norm(centers, axis=-1).max())


def _fit_points(start: np.ndarray, end: np.ndarray) -> Similarity | None:
    """Fits a similarity to points [N, 3] by least squares; None if they leave rotation open."""
    covariance = (end - end.mean(0)).T @ (start - start.mean(0)) / len(start)
    first, second, _ = np.linalg.svd(covariance, compute_uv=False)
    if second <= COLLINEAR * max(first, np.finfo(float).tiny):
        return None
    fit = fit_sim3(start, end, xp=np)
    return Similarity(fit.rotation, fit.translation, float(fit.scale))


def _by_rotations(
    from_rotation: np.ndarray,
    start: np.ndarray,
    to_rotation: np.ndarray,
    end: np.ndarray,
    scale: float | None,
) -> Similarity:
    """Fits the rotation to the cameras' axes, and a scale of None to the spread of centers."""
    u, _, vt = np.linalg.svd((to_rotation @ from_rotation.swapaxes(1, 2)).sum(0))
    rotation = (u * np.array([1, 1, np.sign(np.linalg.det(u @ vt))])) @ vt
    if scale is None:
        spread = [np.sqrt(((x - x.mean(0)) ** 2).sum()) for x in (start, end)]
        scale = float(spread[1] / spread[0])
    return Similarity(rotation, end.mean(0) - scale * rotation @ start.mean(0), scale)


def _poses(extrinsics: Any) -> tuple[np.ndarray, np.ndarray]:
    """Returns camera-to-world rotations [S, 3, 3] and centers [S, 3] of extrinsics, float64."""
    extrinsics = np.asarray(extrinsics, np.float64)[:, :3]
    rotation = extrinsics[..., :3].swapaxes(-1, -2)
    return rotation, -(rotation @ extrinsics[..., 3:])[..., 0]


def _extrinsics(rotation: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """Returns world-to-camera poses [S, 3, 4] from camera-to-world rotations and centers."""
    back = rotation.swapaxes(-1, -2)
    return np.concatenate([back, -(back @ centers[..., None])], -1)
