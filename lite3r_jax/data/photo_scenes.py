"""Photos of which nothing else is known, as a source for training.

Without cameras and depth there is no truth in such data, so objectives that need one cannot be
trained on it. Frames are read as for posed data: upright, cut from the middle to the shape of the
batch, resized by Pillow's antialiased bicubic filter.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from lite3r_jax.data.photos import SourcePhoto, find_scenes
from lite3r_jax.data.transforms import centre_box, fit_image
from lite3r_jax.data.video import VideoOptions
from lite3r_jax.data.views import Views
from lite3r_jax.errors import InputError

HELD_OUT = 10
"""One scene, or one photo, of so many is held out."""


class PhotoScenes:
    """Scenes of photos without cameras; see `data.views.ViewSource`.

    Travels to worker processes: photos by their paths, frames of videos as the PNG files that they
    are in memory.

    Attributes:
        scenes: their names.
    """

    def __init__(self, photos: Mapping[str, Mapping[int, SourcePhoto]]):
        """Keep what was found.

        Args:
            photos: scene -> number of the frame, ascending -> photo.
        """
        self.scenes = tuple(photos)
        self._photos = {scene: dict(numbered) for scene, numbered in photos.items()}

    @property
    def count(self) -> int:
        """Number of photos."""
        return sum(map(len, self._photos.values()))

    def frames(self, scene: str) -> tuple[int, ...]:
        """Numbers of the photos in their order, which leave out those that are held out."""
        return tuple(self._photos[scene])

    def photos(self, scene: str) -> dict[int, SourcePhoto]:
        """The photos by their numbers."""
        return dict(self._photos[scene])

    def pairs(self, scene: str) -> None:
        """None: nobody has said what the photos share."""
        del scene

    def read(self, scene: str, frames: Sequence[int], size: tuple[int, int]) -> Views:
        """Photos of a scene, cropped in the middle and resized.

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
            fit_image(image, centre_box((image.height, image.width), size), size, out=out)
        return Views("photos", scene, tuple(photo.name for photo in photos), images)


def find_photos(
    source: str, views: int, video: VideoOptions | None = None
) -> tuple[PhotoScenes, dict[str, int]]:
    """The scenes that a user means, by the rules of `data.photos.find_scenes`.

    Videos are decoded at once, and their frames kept in memory, also by each worker process: 1.4
    bytes a pixel.

    Args:
        source: a folder with photos or videos, one with such folders, a pattern, or several of
            these with commas between.
        views: scenes with fewer photos are left out.
        video: which frames of videos are taken; None: one per second.

    Returns:
        (the scenes in natural order, name -> number of photos of those that are left out).

    Raises:
        InputError: as `find_scenes`; no scene has enough photos.
    """
    found = {scene.name: scene.photos for scene in find_scenes(source, video=video)}
    left_out = {name: len(photos) for name, photos in found.items() if len(photos) < views}
    if len(left_out) == len(found):
        largest = max(left_out, key=left_out.__getitem__)
        raise InputError(
            f"{source}: no scene has the {views} photos that the buckets ask for, the largest"
            f" ({largest}) has {left_out[largest]}; add photos or ask for fewer views"
        )
    kept = {name: dict(enumerate(p)) for name, p in found.items() if name not in left_out}
    return PhotoScenes(kept), left_out


def hold_out(whole: PhotoScenes, views: int) -> tuple[PhotoScenes, PhotoScenes]:
    """Divide scenes into what is trained on and what is not.

    Of ten scenes or more every tenth is held out. Of fewer scenes the last tenth of the photos of
    each, but at least `views` of them; scenes with less than twice as many are trained on whole.

    Args:
        whole: all scenes.
        views: that a sample of either part needs.

    Returns:
        (to train on, held out).

    Raises:
        InputError: there are too few photos.
    """
    last = whole.scenes[HELD_OUT - 1 :: HELD_OUT]
    if last:
        return (
            PhotoScenes({s: whole.photos(s) for s in whole.scenes if s not in last}),
            PhotoScenes({s: whole.photos(s) for s in last}),
        )
    training, held = {}, {}
    for scene in whole.scenes:
        photos = list(whole.photos(scene).items())
        cut = len(photos) - max(views, len(photos) // HELD_OUT)
        if cut < views:
            cut = len(photos)
        else:
            held[scene] = dict(photos[cut:])
        training[scene] = dict(photos[:cut])
    if not held:
        raise InputError(
            f"photos: no scene has {2 * views}, {views} of which would be held out for evaluations;"
            " add photos, or set config.train.loop.evaluate_every=0"
        )
    return PhotoScenes(training), PhotoScenes(held)
