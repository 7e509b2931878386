"""3D similarity transforms (Sim(3)) in NumPy: composition, inverse, use on points and scenes.

A similarity is a `geometry.Sim3`, y = scale * rotation x + translation, in float64 NumPy arrays
with leading axes. S_i of chunk i brings points from the world of its own prediction into the world
of the video.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lite3r_jax.geometry import Sim3
from lite3r_jax.scene import Scene

ARRAYS = (
    "images", "depth", "depth_conf", "extrinsics", "intrinsics", "boxes", "source_sizes",
    "world_points", "world_points_conf",
)  # fmt: skip
"""Names of the arrays of a `Scene` that have one entry for each view."""


def identity() -> Sim3:
    """Returns the identity similarity."""
    return Sim3(np.float64(1), np.eye(3), np.zeros(3))


def compose(left: Sim3, right: Sim3) -> Sim3:
    """Returns the similarity that applies `right` first, then `left`; leading axes broadcast."""
    return Sim3(
        left.scale * right.scale,
        left.rotation @ right.rotation,
        apply(left, right.translation),
    )


def inverse(sim3: Sim3) -> Sim3:
    """Returns the inverse of similarities."""
    back = np.swapaxes(sim3.rotation, -1, -2)
    scale = 1 / sim3.scale
    moved = -np.asarray(scale)[..., None] * (back @ sim3.translation[..., None])[..., 0]
    return Sim3(scale, back, moved)


def apply(sim3: Sim3, points: np.ndarray) -> np.ndarray:
    """Transforms points [..., 3], one point for each similarity."""
    turned = (sim3.rotation @ points[..., None])[..., 0]
    return np.asarray(sim3.scale)[..., None] * turned + sim3.translation


def apply_to_many(sim3: Sim3, points: np.ndarray) -> np.ndarray:
    """Transforms points [N, 3] by one similarity."""
    return sim3.scale * (points @ sim3.rotation.T) + sim3.translation


def exp_rotation(vectors: np.ndarray) -> np.ndarray:
    """Converts rotation vectors [..., 3] in radians to matrices [..., 3, 3] (Rodrigues)."""
    angle = np.linalg.norm(vectors, axis=-1)[..., None, None]
    k = cross_matrix(vectors)
    safe = np.where(angle < 1e-8, 1.0, angle)
    first = np.where(angle < 1e-8, 1.0, np.sin(safe) / safe)
    second = np.where(angle < 1e-8, 0.5, (1 - np.cos(safe)) / safe**2)
    return np.eye(3) + first * k + second * (k @ k)


def log_rotation(rotation: np.ndarray) -> np.ndarray:
    """Converts matrices [..., 3, 3] to rotation vectors [..., 3] in radians, at most pi long."""
    from scipy.spatial.transform import Rotation

    flat = rotation.reshape(-1, 3, 3)
    return Rotation.from_matrix(flat).as_rotvec().reshape((*rotation.shape[:-2], 3))


def cross_matrix(vectors: np.ndarray) -> np.ndarray:
    """Returns the skew-symmetric matrices M [..., 3, 3] of vectors a [..., 3], with M b = a x b."""
    x, y, z = np.moveaxis(vectors, -1, 0)
    o = np.zeros_like(x)
    rows = ((o, -z, y), (z, o, -x), (-y, x, o))
    return np.stack([np.stack(row, -1) for row in rows], -2)


def moved_cameras(extrinsics: np.ndarray, sim3: Sim3) -> np.ndarray:
    """Moves world-to-camera poses [S, 3, 4] to the target world of a similarity; float32."""
    r = extrinsics[..., :3].astype(np.float64) @ sim3.rotation.T
    t = sim3.scale * extrinsics[..., 3].astype(np.float64) - r @ sim3.translation
    return np.concatenate([r, t[..., None]], -1).astype(np.float32)


def moved(scene: Scene, sim3: Sim3) -> Scene:
    """Transforms a scene into the target world and unit of a similarity.

    Args:
        scene: scene in its own world, without tracks.
        sim3: similarity without leading axes.
    """
    points = scene.world_points
    if points is not None:
        points = apply_to_many(sim3, points.reshape(-1, 3)).reshape(points.shape)
        points = points.astype(np.float32)
    return replace(
        scene,
        extrinsics=moved_cameras(scene.extrinsics, sim3),
        depth=scene.depth * np.float32(sim3.scale),
        world_points=points,
    )


def views_of(scene: Scene, views: slice | list[int]) -> Scene:
    """Returns the scene with some of its views only, without tracks and `predicted`."""
    numbers = range(scene.views)[views] if isinstance(views, slice) else views
    arrays: dict[str, Any] = {
        name: value[views] for name in ARRAYS if (value := getattr(scene, name)) is not None
    }
    return replace(
        scene,
        names=tuple(scene.names[i] for i in numbers),
        photos=tuple(scene.photos[i] for i in numbers) if scene.photos else (),
        tracks=None,
        predicted=None,
        **arrays,
    )


def stacked(scenes: Sequence[Scene]) -> Scene:
    """Concatenates scenes that are in the same world to one scene, without photos."""
    arrays: dict[str, Any] = {
        name: np.concatenate([getattr(scene, name) for scene in scenes])
        for name in ARRAYS
        if getattr(scenes[0], name) is not None
    }
    names = tuple(name for scene in scenes for name in scene.names)
    return Scene(names=names, unit=scenes[0].unit, **arrays)
