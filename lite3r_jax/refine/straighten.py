"""Removes the estimated lens distortion from a scene, as if pinhole cameras had taken it."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lite3r_jax.data.known_cameras import network_intrinsics
from lite3r_jax.data.lens import Distortion, distort, pinhole_intrinsics, undistort
from lite3r_jax.refine.geometry_of_views import Cameras
from lite3r_jax.scene import Photo, PhotoLenses, Scene

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage


@dataclass(frozen=True, eq=False)
class StraightPhoto:
    """Implements `scene.Photo` for a photo whose lens distortion is removed when it is read.

    Attributes:
        photo: the photo as it was taken.
        name: name of the photo in messages.
        intrinsics: [3, 3], intrinsics of the photo, centers at integers.
        distortion: distortion of its lens.
        pinhole: [3, 3], intrinsics of the image that `read` returns.
    """

    photo: Photo
    name: str
    intrinsics: np.ndarray
    distortion: Distortion
    pinhole: np.ndarray

    def read(self) -> "PILImage":
        """Implements `Photo.read`: returns the undistorted image, of the size of the photo."""
        from PIL import Image

        pixels = np.asarray(self.photo.read())
        straight = undistort(pixels, self.intrinsics, self.distortion, self.pinhole, self.name)
        return Image.fromarray(straight)

    def upright_file(self) -> Path | None:
        """Implements `Photo.upright_file`: returns None: no file has the undistorted pixels."""
        return None


def distortion_of(radial: float) -> Distortion:
    """Converts k of COLMAP's SIMPLE_RADIAL to the distortion coefficients of `data.lens`."""
    return (float(radial), 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


def straighten(scene: Scene, cameras: Cameras) -> tuple[Scene, Cameras]:
    """Removes radial distortion from the images, depth, points and photos of a scene.

    Images are interpolated; depth, confidence and points are those of the nearest pixel, and depth
    is 0 where the pinhole camera sees beyond the network image.

    Args:
        scene: scene with distorted images.
        cameras: cameras of its photos, with `radial`.

    Returns:
        (the scene with pinhole images, depth, points, photos and `lenses`, but its old cameras;
        pinhole cameras of the new photos).

    Raises:
        InputError: distortion folds a photo, or OpenCV is missing.
    """
    assert cameras.radial is not None
    pinholes = cameras.intrinsics.copy()
    boxes = np.concatenate([scene.boxes, scene.source_sizes], -1)
    photos = list(scene.photos)
    names = ("images", "depth", "depth_conf", "world_points", "world_points_conf")
    maps = {name: getattr(scene, name) for name in names}
    maps = {name: values.copy() for name, values in maps.items() if values is not None}
    for view in np.flatnonzero(cameras.radial).tolist():
        name, k = scene.names[view], cameras.intrinsics[view]
        distortion = distortion_of(cameras.radial[view])
        width, height = scene.source_sizes[view].tolist()
        pinhole = pinholes[view] = pinhole_intrinsics(k, distortion, (width, height), name)
        of, to = (
            network_intrinsics(each[None], boxes[view : view + 1], scene.size)[0]
            for each in (k, pinhole)
        )
        maps["images"][view] = undistort(scene.images[view], of, distortion, to, name)
        u, v, inside = _nearest(of, distortion, to, scene.size)
        for each in set(maps) - {"images"}:
            maps[each][view] = maps[each][view][v, u]
        maps["depth"][view][~inside] = 0
        if photos:
            photos[view] = StraightPhoto(photos[view], name, k, distortion, pinhole)
    single = cameras.intrinsics.copy()  # views that are not tied may have had two focal lengths
    single[:, 0, 0] = single[:, 1, 1] = np.sqrt(single[:, 0, 0] * single[:, 1, 1])
    lenses = PhotoLenses(single, cameras.radial)
    straight = replace(scene, photos=tuple(photos), lenses=lenses, **maps)
    return straight, Cameras(cameras.extrinsics, pinholes)


def _nearest(
    intrinsics: np.ndarray, distortion: Distortion, pinhole: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns column and row [H, W] in the distorted image of each pinhole pixel, and if inside."""
    height, width = size
    u, v = np.meshgrid(np.arange(width), np.arange(height))
    x, y = (u - pinhole[0, 2]) / pinhole[0, 0], (v - pinhole[1, 2]) / pinhole[1, 1]
    x, y = distort(x, y, distortion)
    u = np.rint(intrinsics[0, 0] * x + intrinsics[0, 2]).astype(np.intp)
    v = np.rint(intrinsics[1, 1] * y + intrinsics[1, 2]).astype(np.intp)
    inside = (u >= 0) & (u < width) & (v >= 0) & (v < height)
    return u.clip(0, width - 1), v.clip(0, height - 1), inside
