"""Normalization of known cameras (depth_anything_3/api.py, _normalize_extrinsics)."""

from typing import Any

import numpy as np

LEAST_DISTANCE = 0.1


def normalize(extrinsics: Any) -> np.ndarray:
    """Makes known cameras relative to the first one, in units of the median distance from it.

    The median is the lower one and counts the first camera itself; it is at least 0.1. With one or
    two views it is therefore 0.1, whatever their distance: upstream has it so.

    Args:
        extrinsics: [S, 3, 4] or [S, 4, 4] world-to-camera, of one scene.

    Returns:
        [S, 3, 4] float32.
    """
    extrinsics = np.asarray(extrinsics, np.float64)[:, :3]
    rotation = extrinsics[..., :3].swapaxes(-1, -2)
    centers = -(rotation @ extrinsics[..., 3:])[..., 0]
    first = rotation[0]
    centers = (centers - centers[0]) @ first
    distances = np.sort(np.linalg.norm(centers, axis=-1))
    unit = max(distances[(len(distances) - 1) // 2], LEAST_DISTANCE)
    back = rotation.swapaxes(-1, -2) @ first
    return np.concatenate([back, -(back @ (centers / unit)[..., None])], -1).astype(np.float32)
