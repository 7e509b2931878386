"""Cameras and depth of a scene in pixels of its photos, as refinement looks things up in them."""

from dataclasses import dataclass

import numpy as np

from lite3r_jax.scene import Scene


@dataclass(frozen=True, eq=False)
class Cameras:
    """S pinhole cameras in float64.

    Attributes:
        extrinsics: [S, 3, 4] world-to-camera [R | t], OpenCV.
        intrinsics: [S, 3, 3] in pixels of the photos, centers at integers, without skew.
    """

    extrinsics: np.ndarray
    intrinsics: np.ndarray

    @classmethod
    def of(cls, scene: Scene) -> "Cameras":
        """Those of a scene."""
        return cls(scene.extrinsics.astype(np.float64), scene.source_intrinsics.copy())

    @property
    def centers(self) -> np.ndarray:
        """float64 [S, 3] in the world."""
        return -np.einsum("sji,sj->si", self.extrinsics[..., :3], self.extrinsics[..., 3])

    def project(self, view: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """World points to pixels.

        Args:
            view: int [M].
            points: [M, 3].

        Returns:
            (pixels [M, 2], z in the camera frame [M]); what is not in front has no pixel to use.
        """
        e = self.extrinsics[view]
        camera = np.einsum("mij,mj->mi", e[..., :3], points) + e[..., 3]
        z = camera[:, 2]
        safe = np.where(np.abs(z) > 1e-12, z, 1e-12)
        k = self.intrinsics[view]
        return camera[:, :2] / safe[:, None] * k[:, (0, 1), (0, 1)] + k[:, :2, 2], z

    def rays(self, view: np.ndarray, pixels: np.ndarray) -> np.ndarray:
        """Directions [M, 3] in the world, whose z in the camera frame is 1, of pixels [M, 2]."""
        k = self.intrinsics[view]
        xy = (pixels - k[:, :2, 2]) / k[:, (0, 1), (0, 1)]
        local = np.concatenate([xy, np.ones_like(xy[:, :1])], -1)
        return np.einsum("mji,mj->mi", self.extrinsics[view][..., :3], local)


def to_network(scene: Scene, view: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Pixels of photos [M, 2] to those of the network images, centers at integers."""
    low, high = (edge[view] for edge in np.split(scene.boxes.astype(np.float64), 2, -1))
    return (pixels + 0.5) * (high - low) / scene.source_sizes[view] + low - 0.5


def to_photo(scene: Scene, view: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Pixels of network images [M, 2] to those of the photos, centers at integers."""
    low, high = (edge[view] for edge in np.split(scene.boxes.astype(np.float64), 2, -1))
    return (pixels + 0.5 - low) * scene.source_sizes[view] / (high - low) - 0.5


@dataclass(frozen=True, eq=False)
class DepthLookup:
    """Predicted depth at pixels of photos.

    Attributes:
        scene: whose depth it is.
        usable: bool [S, H, W], where depth means something and no mask leaves the pixel out.
    """

    scene: Scene
    usable: np.ndarray

    def at(self, view: np.ndarray, pixels: np.ndarray) -> np.ndarray:
        """float64 [M] depth at the nearest network pixel of photo pixels [M, 2]; 0: none."""
        height, width = self.scene.size
        place = np.rint(to_network(self.scene, view, pixels))
        inside = np.all((place >= 0) & (place < (width, height)), axis=-1)
        u, v = np.where(inside[:, None], place, 0).astype(np.intp).T
        good = inside & self.usable[view, v, u]
        return np.where(good, self.scene.depth[view, v, u], 0.0).astype(np.float64)


def depth_lookup(scene: Scene, masked: np.ndarray | None) -> DepthLookup:
    """The depth of a scene where it is on a photo, finite, in front, and not masked.

    Args:
        scene: the scene.
        masked: bool [S, H, W], pixels left out; None: none.
    """
    usable = scene.inside() & np.isfinite(scene.depth) & (scene.depth > 0)
    return DepthLookup(scene, usable if masked is None else usable & ~masked)
