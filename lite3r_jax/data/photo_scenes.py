"""Photos without cameras and depth, as a source for training.

Such data has no ground truth, so objectives that need cameras or depth cannot be trained on it.
Frames are read as for posed data: upright, cut from the middle to the shape of the batch, resized
by Pillow's antialiased bicubic filter.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from lite3r_jax.data.photos import SourcePhoto, find_scenes
from lite3r_jax.data.transforms import center_box, fit_image
from lite3r_jax.data.video import VideoOptions
from lite3r_jax.data.views import Views
from lite3r_jax.errors import InputError


class PhotoScenes:
    """Source of scenes of photos without cameras; implements `data.views.ViewSource`.

    It can be sent to worker processes: photos by their paths, frames of videos as the PNG files
    that they are in memory.

    Attributes:
        scenes: names of the scenes.
        left_out: scenes that have too few photos, name -> number of photos.
    """

    def __init__(
        self,
        photos: Mapping[str, Mapping[int, SourcePhoto]],
        left_out: Mapping[str, int] = MappingProxyType({}),
    ):
        """Stores the photos of each scene; none is read yet.

        Args:
            photos: scene -> number of the frame, ascending -> photo.
            left_out: see the attributes.
        """
        self.scenes, self.left_out = tuple(photos), dict(left_out)
        self._photos = {scene: dict(numbered) for scene, numbered in photos.items()}

    def frames(self, scene: str) -> tuple[int, ...]:
        """Returns the numbers of a scene's photos in their order."""
        return tuple(self._photos[scene])

    def pairs(self, scene: str) -> None:
        """Returns None: nothing is known about the overlap of the photos."""
        del scene

    def read(self, scene: str, frames: Sequence[int], size: tuple[int, int]) -> Views:
        """Reads photos of a scene as `Views`, center-cropped and resized.

        Args:
            scene: one of `scenes`.
            frames: some of `frames(scene)`, in the order of the result.
            size: (height, width).

        Raises:
            InputError: naming the photo that is missing or damaged.
        """
        photos = [self._photos[scene][frame] for frame in frames]
        images = np.empty((len(photos), *size, 3), np.float32)
        for photo, out in zip(photos, images, strict=True):
            image = photo.read()
            fit_image(image, center_box((image.height, image.width), size), size, out=out)
        return Views("photos", scene, tuple(photo.name for photo in photos), images)


def find_photos(source: str, views: int, video: VideoOptions | None = None) -> PhotoScenes:
    """Finds the scenes of photos that `source` names, by the rules of `data.photos.find_scenes`.

    Videos are decoded at once, and their frames kept in memory, also by each worker process: 1.4
    bytes a pixel.

    Args:
        source: a folder with photos or videos, one with such folders, a pattern, or several of
            these with commas between.
        views: scenes with fewer photos are left out.
        video: which frames of videos are taken; None: one per second.

    Raises:
        InputError: as `find_scenes`; no scene has enough photos.
    """
    photos = {scene.name: scene.photos for scene in find_scenes(source, video=video)}
    left_out = {name: len(p) for name, p in photos.items() if len(p) < views}
    if len(left_out) == len(photos):
        largest = max(left_out, key=left_out.__getitem__)
        raise InputError(
            f"{source}: no scene has the {views} photos that the buckets ask for, the largest"
            f" ({largest}) has {left_out[largest]}; add photos or ask for fewer views"
        )
    kept = {name: dict(enumerate(p)) for name, p in photos.items() if name not in left_out}
    return PhotoScenes(kept, left_out)
