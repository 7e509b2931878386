"""Unprojection of depth maps in float64 on the host, for metrics and pictures."""

import numpy as np


def world_points(depth: np.ndarray, extrinsics: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
    """Unprojects depth maps to world points in float64, as `geometry.unproject_to_world` does.

    Views are computed one after the other.

    Args:
        depth: [V, h, w], z in the camera frame; what is not finite gives points that are not.
        extrinsics: [V, 3, 4] world-to-camera.
        intrinsics: [V, 3, 3] in pixels of the maps.

    Returns:
        float64 [V, h, w, 3].
    """
    height, width = depth.shape[1:]
    v, u = np.mgrid[0:height, 0:width].astype(np.float64)
    pixels = np.stack([u, v, np.ones_like(u)], -1)
    points = np.empty((*depth.shape, 3))
    for s, (z, e, k) in enumerate(zip(depth, extrinsics, intrinsics, strict=True)):
        e = e.astype(np.float64)
        rays = pixels @ np.linalg.inv(k.astype(np.float64)).T
        points[s] = (rays * z[..., None] - e[:, 3]) @ e[:, :3]
    return points
