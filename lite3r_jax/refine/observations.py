"""Tracks of points through views as flat arrays: triangulation, reprojection errors, ray angles."""

from dataclasses import dataclass, replace

import numpy as np

from lite3r_jax.refine.geometry_of_views import Cameras

_STEPS = 8  # of the robust triangulation
_UPPER = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))  # of a symmetric 3 x 3 matrix
_SYMMETRIC = [0, 1, 2, 1, 3, 4, 2, 4, 5]  # all of it from these


@dataclass(frozen=True, eq=False)
class Observations:
    """M observations of N tracks, ordered by track, then view; no track is twice in a view.

    Attributes:
        track: int [M], track of each observation, 0 to N - 1.
        view: int [M], view of each observation.
        pixel: float64 [M, 2] in the photo, centers at integers.
    """

    track: np.ndarray
    view: np.ndarray
    pixel: np.ndarray

    def __len__(self) -> int:
        return len(self.track)

    @property
    def tracks(self) -> int:
        """Number N of tracks."""
        return int(self.track[-1]) + 1 if len(self.track) else 0

    def where(self, kept: np.ndarray) -> tuple["Observations", np.ndarray]:
        """Selects observations; returns them, and the old indices [N'] of the remaining tracks."""
        numbers, track = np.unique(self.track[kept], return_inverse=True)
        return replace(self, track=track, view=self.view[kept], pixel=self.pixel[kept]), numbers


def lengths(obs: Observations, kept: np.ndarray | None = None) -> np.ndarray:
    """Returns the number of observations (of those kept) of each track, int [N]."""
    track = obs.track if kept is None else obs.track[kept]
    return np.bincount(track, minlength=obs.tracks)


def errors(obs: Observations, cameras: Cameras, points: np.ndarray) -> np.ndarray:
    """Returns reprojection errors [M] in pixels of points [N, 3]; inf behind the camera."""
    place, z = cameras.project(obs.view, points[obs.track])
    off = np.linalg.norm(place - obs.pixel, axis=-1)
    return np.where((z > 0) & np.isfinite(off), off, np.inf)


def triangulate(
    obs: Observations, cameras: Cameras, scale: float, start: np.ndarray | None = None
) -> np.ndarray:
    """Triangulates the point of each track robustly from its observations.

    Least squares over distances to rays first, then Gauss-Newton steps on reprojection errors,
    weighted by 1 / (1 + (e / scale)^2) (Cauchy), so that outliers hardly move a point.

    Args:
        obs: observations, 1 or more of each track.
        cameras: cameras of the views.
        scale: error in pixels from which an observation counts less.
        start: [N, 3], other initial points to try; each track takes the better of both results.

    Returns:
        float64 [N, 3].
    """
    if cameras.radial is not None:
        obs = replace(obs, pixel=cameras.straightened(obs.view, obs.pixel))
        cameras = replace(cameras, radial=None)
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
    shift = cameras.extrinsics[obs.view][..., 3]
    k = cameras.intrinsics[obs.view]
    focal, center = k[:, (0, 1), (0, 1)], k[:, :2, 2]
    for _ in range(_STEPS):
        camera = np.einsum("mij,mj->mi", rotation, best[obs.track]) + shift
        z = np.maximum(camera[:, 2], 1e-9)
        slope = camera[:, :2] / z[:, None]
        residual = slope * focal + center - obs.pixel
        weight = 1 / (1 + (residual**2).sum(-1) / scale**2)
        weight = np.where(camera[:, 2] > 0, weight, 0)[:, None]
        # rows of the derivative of the pixel by the point
        u, v = (
            (rotation[:, i] - slope[:, i, None] * rotation[:, 2]) * (focal[:, i] / z)[:, None]
            for i in (0, 1)
        )
        wu, wv = weight * u, weight * v
        products = [wu[:, i] * u[:, j] + wv[:, i] * v[:, j] for i, j in _UPPER]
        normal = _summed(obs, np.stack(products, -1))[:, _SYMMETRIC].reshape(-1, 3, 3)
        right = _summed(obs, wu * residual[:, :1] + wv * residual[:, 1:])
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
    """Sums values [M, ...] over the observations of each track to [N, ...]."""
    first = np.flatnonzero(np.diff(obs.track, prepend=-1))
    return np.add.reduceat(values, first, axis=0)


def angles(obs: Observations, cameras: Cameras, points: np.ndarray) -> np.ndarray:
    """Returns for each track the largest angle in degrees between its first and its other rays."""
    ray = points[obs.track] - cameras.centers[obs.view]
    ray /= np.maximum(np.linalg.norm(ray, axis=-1, keepdims=True), 1e-300)
    first = np.flatnonzero(np.diff(obs.track, prepend=-1))
    cosine = (ray * ray[first][obs.track]).sum(-1)
    return np.degrees(np.arccos(np.clip(np.minimum.reduceat(cosine, first), -1, 1)))
