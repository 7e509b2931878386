"""Sources of the frames of a long video, which hold the frames of at most one chunk in memory."""

from collections.abc import Callable, Iterator
from typing import Protocol

from lite3r_jax.data.photos import PhotoSet, SourcePhoto, UnopenedScene, photo_of_frame
from lite3r_jax.data.video import VideoFrame, VideoOptions, frames_of, list_frames
from lite3r_jax.errors import InputError


class Frames(Protocol):
    """A source of a scene's frames, in the order of capture.

    Attributes:
        name: name of the scene.
        names: names of all frames.
        ignored: see `PhotoSet`.
    """

    name: str
    names: tuple[str, ...]
    ignored: tuple[str, ...]

    def photos(self, start: int, stop: int) -> tuple[SourcePhoto, ...]:
        """Returns the frames from number `start` to before `stop`; fastest for ascending ranges.

        Raises:
            InputError: a frame cannot be read.
        """
        ...


class VideoFrames:
    """Implements `Frames` for a video file, which is decoded from its beginning to its end."""

    def __init__(
        self,
        scene: UnopenedScene,
        options: VideoOptions,
        max_pixels: int,
        progress: Callable[[], object] | None = None,
    ):
        """Decodes the file once to list the frames that are taken.

        Args:
            scene: a scene with a video.
            options: options that choose the frames.
            max_pixels: limit of width * height.
            progress: called after each frame that is taken.

        Raises:
            InputError: as `data.video.read_video`.
        """
        assert scene.video is not None
        self.name, self.ignored, self._path = scene.name, scene.ignored, scene.video
        self._options, self._max_pixels = options, max_pixels
        taken = list_frames(self._path, options, max_pixels=max_pixels, progress=progress)
        self.names = tuple(VideoFrame(index, seconds, b"").name for index, seconds in taken)
        self._reader: Iterator[VideoFrame] | None = None
        self._next = 0  # number of the frame that the reader gives next
        self._kept: dict[int, SourcePhoto] = {}

    def photos(self, start: int, stop: int) -> tuple[SourcePhoto, ...]:
        """Implements `Frames.photos`: decodes on, or anew for frames that have passed."""
        if self._reader is None or (start < self._next and start not in self._kept):
            self._reader = frames_of(
                self._path, self._options, first=start, max_pixels=self._max_pixels
            )
            self._next, self._kept = start, {}
        self._kept = {number: photo for number, photo in self._kept.items() if number >= start}
        while self._next < stop:
            frame = next(self._reader, None)
            if frame is None or frame.name != self.names[self._next]:
                raise InputError(f"{self._path}: has changed while it was read; run again")
            if self._next >= start:
                self._kept[self._next] = photo_of_frame(frame, self._path, self._max_pixels)
            self._next += 1
        return tuple(self._kept[number] for number in range(start, stop))


class PhotoFrames:
    """Implements `Frames` for photo files whose names give the order of capture."""

    def __init__(self, photos: PhotoSet):
        """Creates the source from the photos of a scene.

        Raises:
            InputError: the names of the photos give no order.
        """
        if not photos.in_order:
            raise InputError(
                f"video.chunk: {photos.name} is no video and the names of its photos"
                f" ({photos.photos[0].name}, ...) tell no order; number them in the order of"
                " capture, or leave video.chunk out"
            )
        self.name, self.ignored, self._photos = photos.name, photos.ignored, photos.photos
        self.names = tuple(photo.name for photo in photos.photos)

    def photos(self, start: int, stop: int) -> tuple[SourcePhoto, ...]:
        """Implements `Frames.photos`: returns the photos without opening their files."""
        return self._photos[start:stop]


def open_frames(
    scene: UnopenedScene,
    options: VideoOptions,
    max_pixels: int,
    progress: Callable[[], object] | None = None,
) -> Frames:
    """Returns the source of the frames of a scene, which is a video or numbered photos.

    Args:
        scene: the scene, of which no photo has been opened yet.
        options: options that choose the frames of a video.
        max_pixels: limit of width * height.
        progress: called after each frame of a video that is taken.

    Raises:
        InputError: the video cannot be read, or photos have no order.
    """
    if scene.video is not None:
        return VideoFrames(scene, options, max_pixels, progress)
    return PhotoFrames(scene.open(progress))
