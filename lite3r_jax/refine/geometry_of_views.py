"""Cameras and depth lookup of a scene in pixels of its photos, for matching and refinement."""

from dataclasses import dataclass

import numpy as np

from lite3r_jax.scene import Scene

_FOLDED = 1e6  # factor that puts what distortion folds back far out of the image
_NEWTON = 12  # steps to the ray of a distorted pixel


@dataclass(frozen=True, eq=False)
class Cameras:
    """S cameras in float64: pinhole cameras, or cameras with radial distortion of one term.

    A ray (x, y, 1) is seen at K (x d, y d, 1) with d = 1 + k (x^2 + y^2), as in COLMAP's
    SIMPLE_RADIAL (colmap/sensor/models.h).

    Attributes:
        extrinsics: [S, 3, 4] world-to-camera [R | t], OpenCV.
        intrinsics: [S, 3, 3] in pixels of the photos, centers at integers, without skew.
        radial: [S], distortion coefficient k of each camera; None: pinhole cameras.
    """

    extrinsics: np.ndarray
    intrinsics: np.ndarray
    radial: np.ndarray | None = None

    @classmethod
    def of(cls, scene: Scene) -> "Cameras":
        """Returns the cameras of a scene, with intrinsics in pixels of its photos."""
        return cls(scene.extrinsics.astype(np.float64), scene.source_intrinsics.copy())

    @property
    def centers(self) -> np.ndarray:
        """The camera centers float64 [S, 3] in the world."""
        return -np.einsum("sji,sj->si", self.extrinsics[..., :3], self.extrinsics[..., 3])

    def project(self, view: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Projects world points to pixels.

        Args:
            view: int [M], view that each point is projected into.
            points: [M, 3].

        Returns:
            (pixels [M, 2], z in the camera frame [M]); pixels of points that are not in front are
            meaningless, and points beyond the radius at which distortion folds the image get pixels
            far outside of it.
        """
        camera = self.in_camera(view, points)
        z = camera[:, 2]
        safe = np.where(np.abs(z) > 1e-12, z, 1e-12)
        x, y = camera[:, 0] / safe, camera[:, 1] / safe
        if self.radial is not None:
            r2, bent = x**2 + y**2, self.radial[view]
            factor = np.where(1 + 3 * bent * r2 > 0, 1 + bent * r2, _FOLDED)
            x, y = x * factor, y * factor
        focal, center = self._lens(view)
        pixels = np.empty((len(z), 2))
        pixels[:, 0] = x * focal[:, 0] + center[:, 0]
        pixels[:, 1] = y * focal[:, 1] + center[:, 1]
        return pixels, z

    def in_camera(self, view: np.ndarray, points: np.ndarray) -> np.ndarray:
        """Transforms world points [M, 3] into the camera frames of views [M]."""
        if _is_one(view):  # the usual case, and much quicker
            e = self.extrinsics[view[0]]
            camera = points @ e[:, :3].T
            for axis in range(3):  # whole rows at once take five times as long
                camera[:, axis] += e[axis, 3]
            return camera
        e = self.extrinsics[view]
        return np.einsum("mij,mj->mi", e[..., :3], points) + e[..., 3]

    def rays(self, view: np.ndarray, pixels: np.ndarray) -> np.ndarray:
        """Returns world directions [M, 3] of pixels [M, 2], with z = 1 in the camera frame."""
        xy = self.slopes(view, pixels)
        local = np.concatenate([xy, np.ones_like(xy[:, :1])], -1)
        if _is_one(view):
            return local @ self.extrinsics[view[0], :, :3]
        return np.einsum("mji,mj->mi", self.extrinsics[view][..., :3], local)

    def straightened(self, view: np.ndarray, pixels: np.ndarray) -> np.ndarray:
        """Undistorts pixels [M, 2] to those of pinhole cameras with the same intrinsics."""
        focal, center = self._lens(view)
        return self.slopes(view, pixels) * focal + center

    def slopes(self, view: np.ndarray, pixels: np.ndarray) -> np.ndarray:
        """Returns (x, y) [M, 2] of the rays (x, y, 1), in the camera frames, of pixels [M, 2]."""
        focal, center = self._lens(view)
        xy = (pixels - center) / focal
        if self.radial is None:
            return xy
        seen, bent = np.linalg.norm(xy, axis=-1), self.radial[view]
        r = seen.copy()
        for _ in range(_NEWTON):  # r (1 + k r^2) = seen
            slope = 1 + 3 * bent * r**2
            r = r - (r * (1 + bent * r**2) - seen) / np.where(slope > 0.05, slope, 0.05)
        return xy * np.where(seen > 1e-12, r / np.maximum(seen, 1e-12), 1)[:, None]

    def _lens(self, view: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns focal lengths and principal points of views, [M, 2], or [1, 2] if all are one."""
        view, k = view[:1] if _is_one(view) else view, self.intrinsics
        return k[:, (0, 1), (0, 1)][view], k[:, :2, 2][view]


def _is_one(view: np.ndarray) -> bool:
    """Returns whether `view` is not empty and all its entries are the same view."""
    return len(view) > 0 and bool((view == view[0]).all())


def to_network(scene: Scene, view: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Converts pixels [M, 2] of photos to pixels of the network images, centers at integers."""
    low, high = (edge[view] for edge in np.split(scene.boxes.astype(np.float64), 2, -1))
    return (pixels + 0.5) * (high - low) / scene.source_sizes[view] + low - 0.5


def to_photo(scene: Scene, view: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Converts pixels [M, 2] of network images to pixels of the photos, centers at integers."""
    low, high = (edge[view] for edge in np.split(scene.boxes.astype(np.float64), 2, -1))
    return (pixels + 0.5 - low) * scene.source_sizes[view] / (high - low) - 0.5


@dataclass(frozen=True, eq=False)
class DepthLookup:
    """Looks up predicted depth at pixels of photos.

    Attributes:
        scene: scene with the depth.
        usable: bool [S, H, W], where depth is valid and no mask leaves the pixel out.
    """

    scene: Scene
    usable: np.ndarray

    def at(self, view: np.ndarray, pixels: np.ndarray) -> np.ndarray:
        """Returns depth float64 [M] at the network pixels nearest to photo pixels; 0: none."""
        height, width = self.scene.size
        place = np.rint(to_network(self.scene, view, pixels))
        inside = np.all((place >= 0) & (place < (width, height)), axis=-1)
        u, v = np.where(inside[:, None], place, 0).astype(np.intp).T
        good = inside & self.usable[view, v, u]
        return np.where(good, self.scene.depth[view, v, u], 0.0).astype(np.float64)


def depth_lookup(scene: Scene, masked: np.ndarray | None) -> DepthLookup:
    """Returns a lookup of a scene's depth where it is on a photo, finite, positive, and not masked.

    Args:
        scene: the scene.
        masked: bool [S, H, W], pixels left out; None: none.
    """
    usable = scene.inside() & np.isfinite(scene.depth) & (scene.depth > 0)
    return DepthLookup(scene, usable if masked is None else usable & ~masked)
