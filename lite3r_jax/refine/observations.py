"""Tracks of points through views as flat arrays: triangulation, reprojection errors, angles."""

from dataclasses import dataclass, replace

import numpy as np

from lite3r_jax.refine.geometry_of_views import Cameras

_STEPS = 8  # of the robust triangulation


@dataclass(frozen=True, eq=False)
class Observations:
    """M observations of N tracks, ordered by track, then view; no track is twice in a view.

    Attributes:
        track: int [M], 0 to N - 1.
        view: int [M].
        pixel: float64 [M, 2] in the photo, centers at integers.
    """

    track: np.ndarray
    view: np.ndarray
    pixel: np.ndarray

    def __len__(self) -> int:
        return len(self.track)

    @property
    def tracks(self) -> int:
        """N."""
        return int(self.track[-1]) + 1 if len(self.track) else 0

    def where(self, kept: np.ndarray) -> tuple["Observations", np.ndarray]:
        """The observations that are kept, and the former numbers [N'] of the tracks left."""
        numbers, track = np.unique(self.track[kept], return_inverse=True)
        return replace(self, track=track, view=self.view[kept], pixel=self.pixel[kept]), numbers


def lengths(obs: Observations, kept: np.ndarray | None = None) -> np.ndarray:
    """Int [N]: how many (kept) observations each track has."""
    track = obs.track if kept is None else obs.track[kept]
    return np.bincount(track, minlength=obs.tracks)


def errors(obs: Observations, cameras: Cameras, points: np.ndarray) -> np.ndarray:
    """Distance [M] in pixels from observations to their points [N, 3]; inf behind the camera."""
    place, z = cameras.project(obs.view, points[obs.track])
    off = np.linalg.norm(place - obs.pixel, axis=-1)
    return np.where((z > 0) & np.isfinite(off), off, np.inf)


def triangulate(
    obs: Observations, cameras: Cameras, scale: float, start: np.ndarray | None = None
) -> np.ndarray:
    """The points that observations fit best, robustly.

    Least squares over distances to rays first, then Gauss-Newton steps on reprojection errors,
    weighted by 1 / (1 + (e / scale)^2) (Cauchy), which outliers hardly move.

    Args:
        obs: 1 or more of each track.
        cameras: of the views.
        scale: error in pixels from which an observation counts less.
        start: [N, 3] points to try besides; the better start of each track is taken.

    Returns:
        float64 [N, 3].
    """
    candidates = [_nearest_to_rays(obs, cameras)] + ([] if start is None else [start])
    refined = [_gauss_newton(obs, cameras, points, scale) for points in candidates]
    costs = np.stack([_costs(obs, cameras, points, scale) for points in refined])
    best = np.argmin(costs, axis=0)
    return np.stack(refined)[best, np.arange(obs.tracks)]


def _costs(obs: Observations, cameras: Cameras, points: np.ndarray, scale: float) -> np.ndarray:
    off = np.minimum(errors(obs, cameras, points), 1e6)
    return np.bincount(obs.track, np.log1p((off / scale) ** 2), minlength=obs.tracks)


def _nearest_to_rays(obs: Observations, cameras: Cameras) -> np.ndarray:
    ray = cameras.rays(obs.view, obs.pixel)
    ray /= np.linalg.norm(ray, axis=-1, keepdims=True)
    across = np.eye(3) - ray[:, :, None] * ray[:, None, :]
    center = cameras.centers[obs.view]
    normal = _summed(obs, across)
    right = _summed(obs, np.einsum("mij,mj->mi", across, center))
    # a little towards the mean of the centers, for rays that are parallel
    slack = 1e-9 * np.eye(3)
    middle = _summed(obs, center) / lengths(obs)[:, None]
    return np.linalg.solve(normal + slack, (right + 1e-9 * middle)[..., None])[..., 0]


def _gauss_newton(
    obs: Observations, cameras: Cameras, points: np.ndarray, scale: float
) -> np.ndarray:
    best, least = points, _costs(obs, cameras, points, scale)
    rotation = cameras.extrinsics[obs.view][..., :3]
    focal = cameras.intrinsics[obs.view][:, (0, 1), (0, 1)]
    for _ in range(_STEPS):
        e = cameras.extrinsics[obs.view]
        camera = np.einsum("mij,mj->mi", rotation, best[obs.track]) + e[..., 3]
        z = np.maximum(camera[:, 2], 1e-9)
        place = camera[:, :2] / z[:, None] * focal + cameras.intrinsics[obs.view][:, :2, 2]
        residual = place - obs.pixel
        weight = 1 / (1 + (residual**2).sum(-1) / scale**2)
        weight = np.where(camera[:, 2] > 0, weight, 0)
        local = np.zeros((len(obs), 2, 3))
        local[:, 0, 0] = local[:, 1, 1] = 1
        local[:, :, 2] = -camera[:, :2] / z[:, None]
        jacobian = np.einsum("mij,mjk->mik", local, rotation) * (focal / z[:, None])[..., None]
        normal = _summed(obs, np.einsum("m,mji,mjk->mik", weight, jacobian, jacobian))
        right = _summed(obs, np.einsum("m,mji,mj->mi", weight, jacobian, residual))
        slack = 1e-9 * np.trace(normal, axis1=1, axis2=2)[:, None, None] + 1e-30
        step = np.linalg.solve(normal + slack * np.eye(3), right[..., None])[..., 0]
        new = best - step
        cost = _costs(obs, cameras, new, scale)
        better = cost < least
        if not better.any():
            break
        best = np.where(better[:, None], new, best)
        least = np.where(better, cost, least)
    return best


def _summed(obs: Observations, values: np.ndarray) -> np.ndarray:
    """Sums over the observations of each track: [M, ...] to [N, ...]."""
    first = np.flatnonzero(np.diff(obs.track, prepend=-1))
    return np.add.reduceat(values, first, axis=0)


def angles(obs: Observations, cameras: Cameras, points: np.ndarray) -> np.ndarray:
    """Largest angle [N] in degrees between the rays of a track's first and its other views."""
    ray = points[obs.track] - cameras.centers[obs.view]
    ray /= np.maximum(np.linalg.norm(ray, axis=-1, keepdims=True), 1e-300)
    first = np.flatnonzero(np.diff(obs.track, prepend=-1))
    cosine = (ray * ray[first][obs.track]).sum(-1)
    return np.degrees(np.arccos(np.clip(np.minimum.reduceat(cosine, first), -1, 1)))
