"""Finds the scenes of photos in folders, videos, patterns or arrays, and loads network input."""

import glob
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lite3r_jax.data.images import MAX_PIXELS, Mode, read_and_stack, read_image, upright_format
from lite3r_jax.data.posed import PosedPhoto
from lite3r_jax.data.video import VIDEO_SUFFIXES, VideoFrame, VideoOptions, read_video
from lite3r_jax.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

    from lite3r_jax.data.images import Source

PHOTO_SUFFIXES = frozenset(
    [".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm", ".avif",
     ".heic", ".heif"]
)  # fmt: skip

_CLUTTER = frozenset(["thumbs.db", "desktop.ini", "__macosx"])  # like dot-files: never mentioned
_OWN_SUFFIXES = {"JPEG": (".jpg", ".jpeg"), "PNG": (".png",)}


@dataclass(frozen=True, eq=False)
class SourcePhoto:
    """One photo with its name, its source and perhaps its camera, read only on demand.

    Attributes:
        name: relative file name, "/" between folders, different from that of every other photo of
            the scene up to case; it cannot lead out of its folder.
        source: path, Pillow image, array, or bytes of an image file.
        label: what messages call it.
        max_pixels: limit of width * height.
        camera: whose lens distortion is taken out as it is read; None: the photo as it is.
    """

    name: str
    source: "Source" = field(repr=False)
    label: str
    max_pixels: int = MAX_PIXELS
    camera: PosedPhoto | None = None

    def read(self, max_pixels: int | None = None) -> "PILImage":
        """Reads the upright RGB image (see `data.images.read_image`) and removes lens distortion.

        Args:
            max_pixels: in place of the photo's own limit.
        """
        from PIL import Image

        image = read_image(self.source, self.label, max_pixels or self.max_pixels)
        if self.camera is None or self.camera.distortion is None:
            return image
        return Image.fromarray(self.camera.undistort(np.asarray(image), image.size))

    def upright_file(self) -> Path | None:
        """Returns the file if any program reads from it the same pixels as `read`, else None.

        That is a JPEG or PNG with 8-bit RGB or gray, stored upright, without transparency, whose
        suffix tells the truth. A photo that was undistorted has no such file.

        Raises:
            InputError: the file cannot be opened.
        """
        distorted = self.camera is not None and self.camera.distortion is not None
        if distorted or not isinstance(self.source, str | os.PathLike):
            return None
        path = Path(self.source)
        kind = upright_format(path, self.label)
        return path if path.suffix.lower() in _OWN_SUFFIXES.get(kind or "", ()) else None


@dataclass(frozen=True, eq=False)
class PhotoSet:
    """The photos of one scene.

    Attributes:
        name: of the scene, usable as the name of a folder; different from that of every other
            scene of the same call up to case.
        photos: at least one, the first is the reference view.
        ignored: what lies beside the photos and was not used; folders end in "/".
    """

    name: str
    photos: tuple[SourcePhoto, ...]
    ignored: tuple[str, ...] = ()

    @property
    def in_order(self) -> bool:
        """Whether names differ in numbers alone, as those of video frames and camera photos do."""
        stems = {os.path.splitext(photo.name)[0].casefold() for photo in self.photos}
        alike = {re.sub(r"[0-9]+", "0", stem) for stem in stems}
        return len(stems) == 1 or (len(alike) == 1 and "0" in alike.pop())


@dataclass(frozen=True)
class UnopenedScene:
    """A scene whose photos or video nobody has opened yet.

    Attributes:
        name: see `PhotoSet`.
        files: paths of its photos, or of its video.
        video: path of its video; None where it is of photos.
        ignored: see `PhotoSet`.
    """

    name: str
    files: tuple[str, ...]
    _open: Callable[[Callable[[], object] | None], PhotoSet] = field(repr=False)
    video: str | None = None
    ignored: tuple[str, ...] = ()

    def open(self, progress: Callable[[], object] | None = None) -> PhotoSet:
        """Opens the scene and returns its photos; a video is decoded.

        Args:
            progress: called after each frame of a video that is kept.

        Raises:
            InputError: there are no photos or too few, or the video cannot be read.
        """
        return self._open(progress)


@dataclass(frozen=True)
class _Place:
    """The files of one scene, photos or a video, or the reason why there are none."""

    called: str  # the path that gives the scene its name
    photos: tuple[str, ...] = ()
    video: str | None = None
    ignored: tuple[str, ...] = ()
    fault: str = ""


def find_scenes(
    source: "str | os.PathLike[str] | PILImage | np.ndarray | Sequence[Source]",
    *,
    video: VideoOptions | None = None,
    max_pixels: int = MAX_PIXELS,
    min_views: int = 1,
    progress: Callable[[], object] | None = None,
) -> list[PhotoSet]:
    """Finds the scenes of photos that `source` names; decodes videos, but opens no photo yet.

    - A folder with photos, told by their suffixes, is one scene. Photos are in natural order (img2
      before img10). Hidden files do not count; what else lies there is named in `ignored`.
    - A folder with videos and without photos gives a scene for each video.
    - A folder with neither stands for its folders, each of which must hold photos or videos.
    - A glob pattern ("photos/*.jpg", "rooms/*", "**" for any depth) stands for what it matches.
    - A video file is one scene; so are image files together, whatever their suffix.
    - A string with commas that is no path itself, and a list, stand for their entries in order.
      Image files, Pillow images and arrays among them make one scene together; folders and videos
      make their own. Both kinds in one call are an error.
    - An array [S, H, W], or [S, H, W, C] with C of 1, 3 or 4, is one scene of S photos; [H, W] or
      [H, W, C] is one photo. Values are as for `data.images.load_images`.

    A scene is named after its folder or video, a photo after its file; where these would be the
    same for two, the folders above are added. Links are followed, and go by their own name.

    Args:
        source: as above.
        video: which frames of videos are taken; None: one per second.
        max_pixels: limit of width * height of a photo or frame.
        min_views: scenes with fewer photos are refused.
        progress: called after each frame of a video that is kept.

    Raises:
        InputError: naming the path, for what is missing, empty, unreadable or ambiguous, and for
            videos as `data.video.read_video`.
    """
    scenes = list_scenes(source, video=video, max_pixels=max_pixels, min_views=min_views)
    return [scene.open(progress) for scene in scenes]


def list_scenes(
    source: "str | os.PathLike[str] | PILImage | np.ndarray | Sequence[Source]",
    *,
    video: VideoOptions | None = None,
    max_pixels: int = MAX_PIXELS,
    min_views: int = 1,
) -> list[UnopenedScene]:
    """Lists the scenes that `find_scenes` would return, to be opened one by one.

    One of several scenes that is empty is listed all the same, and raises when it is opened.

    Args:
        source: see `find_scenes`, and so are the others.
        video: likewise.
        max_pixels: likewise.
        min_views: likewise.

    Raises:
        InputError: naming the path, for what is missing or ambiguous, or is all that was given and
            empty.
    """
    photos, places, ignored = _sort_out(_entries(source))
    if photos and places:
        raise InputError(
            f"{_show(photos[0])} is one photo, {places[0]} is a scene of its own; give the photos"
            " of one scene, or scenes, and not both"
        )
    if photos:
        pool = PhotoSet(_pool_name(photos), _source_photos(photos, max_pixels), ignored)
        files = tuple(photo for photo in photos if isinstance(photo, str))
        return [UnopenedScene(pool.name, files, lambda progress: _enough(pool, min_views))]
    scene_places = [place for path in places for place in _scenes_at(path)]
    if len(scene_places) == 1 and scene_places[0].fault:
        raise InputError(scene_places[0].fault)
    first = scene_places[0]
    scene_places[0] = replace(first, ignored=first.ignored + ignored)

    def opener(place: _Place, name: str) -> Callable[[Callable[[], object] | None], PhotoSet]:
        return lambda progress: _enough(
            _open_place(place, name, video, max_pixels, progress), min_views
        )

    return [
        UnopenedScene(
            name,
            place.photos or (place.video or place.called,),
            opener(place, name),
            place.video,
            place.ignored,
        )
        for name, place in zip(_scene_names(scene_places), scene_places, strict=True)
    ]


def _enough(scene: PhotoSet, min_views: int) -> PhotoSet:
    if len(scene.photos) < min_views:
        raise InputError(
            f"{scene.name}: too few views: {len(scene.photos)}, at least {min_views} are"
            " needed; add photos, or take more frames of a video"
        )
    return scene


def load_photos(
    photos: Sequence[SourcePhoto],
    mode: Mode = "crop",
    size: int = 518,
    *,
    max_pixels: int | None = None,
    workers: int | None = None,
    progress: Callable[[], object] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Read photos and bring them to network size, several at a time.

    Args:
        photos: of one scene.
        mode: see `data.images.fit_image`, and so is `size`.
        size: likewise.
        max_pixels: limit of width * height; None: that of each photo.
        workers: see `data.images.read_and_stack`, and so is `progress`.
        progress: likewise.

    Returns:
        (images float32 [S, H, W, 3] in [0, 1], boxes float32 [S, 6]), see
        `data.images.load_images_with_boxes`.

    Raises:
        InputError: naming the first photo that cannot be used.
    """
    readers = [(p.label, partial(p.read, max_pixels)) for p in photos]
    return read_and_stack(readers, mode, size, workers, progress)


# -- from what was given to photos and places ------------------------------------------------------


def _entries(source) -> list:
    """Splits what was given into single entries: paths, Pillow images and arrays."""
    if isinstance(source, str):
        if "," in source and not os.path.lexists(source):
            return [entry.strip() for entry in source.split(",")]
        return [source]
    if isinstance(source, list | tuple):
        return list(source)
    if isinstance(source, np.ndarray) and (
        source.ndim == 4 or (source.ndim == 3 and source.shape[2] not in (1, 3, 4))
    ):
        return list(source)
    return [source]


def _sort_out(entries: list) -> tuple[list, list[str], tuple[str, ...]]:
    """Sorts entries into photos, paths of folders and videos, and other matches of patterns."""
    photos, places, ignored = [], [], []
    for entry in entries:
        if not isinstance(entry, str | os.PathLike):
            photos.append(entry)
            continue
        given = os.path.expanduser(os.fspath(entry))
        matched = not os.path.lexists(given) and glob.has_magic(given)
        for path in _matches(given) if matched else [given]:
            if not path or not os.path.lexists(path):
                raise InputError(
                    f"{path or 'input: an empty path'}: no such file or folder; give a folder, a"
                    " pattern, a video or image files"
                )
            if os.path.isdir(path) or _suffix(path) in VIDEO_SUFFIXES:
                places.append(path)
            elif not matched or _suffix(path) in PHOTO_SUFFIXES:
                photos.append(path)
            else:
                ignored.append(path)
    if not photos and not places:
        raise InputError("input: no photos were given; at least one is needed")
    return photos, places, tuple(ignored)


def _matches(pattern: str) -> list[str]:
    paths = sorted((p.rstrip("/") for p in glob.glob(pattern, recursive=True)), key=_natural)
    paths = [path for path in paths if os.path.basename(path).casefold() not in _CLUTTER]
    if not any(os.path.isdir(p) or _suffix(p) in PHOTO_SUFFIXES | VIDEO_SUFFIXES for p in paths):
        raise InputError(
            f"{pattern}: the pattern matches no photo, video or folder; check it, letters count"
            " as upper or lower case"
        )
    return paths


def _scenes_at(path: str, inside: bool = False) -> list[_Place]:
    """Returns the scenes of a folder or of a video.

    Argument `inside` says that its parent folder was given, not the path itself.
    """
    if not os.path.isdir(path):
        return [_Place(path, video=path)]
    photos, videos, folders, others = _listed(path)
    beside = (*others, *(f"{folder}/" for folder in folders))
    if photos:
        paths = tuple(os.path.join(path, name) for name in photos)
        return [_Place(path, paths, ignored=(*beside, *videos))]
    if videos:
        called = [path] if len(videos) == 1 else [os.path.join(path, name) for name in videos]
        scenes = [
            _Place(name, video=os.path.join(path, video))
            for name, video in zip(called, videos, strict=True)
        ]
        return [replace(scenes[0], ignored=beside), *scenes[1:]]
    if inside or not folders:
        kinds = ", ".join(sorted(s[1:] for s in PHOTO_SUFFIXES | VIDEO_SUFFIXES))
        fault = (
            f"{path}: the folder has no photos or videos ({kinds}); check it,"
            " or choose folders with a pattern or a list with commas"
        )
        return [_Place(path, fault=fault)]
    scenes = [s for folder in folders for s in _scenes_at(os.path.join(path, folder), inside=True)]
    return [replace(scenes[0], ignored=(*scenes[0].ignored, *others)), *scenes[1:]]


def _listed(folder: str) -> tuple[list[str], list[str], list[str], list[str]]:
    """Returns names of photos, videos, folders and other files in a folder, in natural order."""
    try:
        names = sorted(os.listdir(folder), key=_natural)
    except OSError as error:
        raise InputError(
            f"{folder}: the folder cannot be read ({error.strerror}); allow reading it"
        ) from error
    photos, videos, folders, others = [], [], [], []
    for name in names:
        if name.startswith(".") or name.casefold() in _CLUTTER:
            continue
        if os.path.isdir(os.path.join(folder, name)):
            folders.append(name)
        elif _suffix(name) in PHOTO_SUFFIXES:
            photos.append(name)
        elif _suffix(name) in VIDEO_SUFFIXES:
            videos.append(name)
        else:
            others.append(name)
    return photos, videos, folders, others


def _open_place(
    place: _Place,
    name: str,
    video: VideoOptions | None,
    max_pixels: int,
    progress: Callable[[], object] | None,
) -> PhotoSet:
    if place.fault:
        raise InputError(place.fault)
    if place.video is None:
        return PhotoSet(name, _source_photos(place.photos, max_pixels), place.ignored)
    frames = read_video(place.video, video, max_pixels=max_pixels, progress=progress)
    photos = [photo_of_frame(frame, place.video, max_pixels) for frame in frames]
    return PhotoSet(name, tuple(photos), place.ignored)


def photo_of_frame(frame: VideoFrame, video: str, max_pixels: int = MAX_PIXELS) -> SourcePhoto:
    """Makes a photo from a frame of a video; its messages name the video."""
    return SourcePhoto(frame.name, frame.png, f"{video}, frame {frame.index}", max_pixels)


def _source_photos(sources: Sequence, max_pixels: int) -> tuple[SourcePhoto, ...]:
    is_path = [isinstance(source, str) for source in sources]
    names = iter(_photo_names([s for s, path in zip(sources, is_path, strict=True) if path]))
    return tuple(
        SourcePhoto(next(names), source, source, max_pixels)
        if path
        else SourcePhoto(f"image_{i:06d}.png", source, f"image {i}", max_pixels)
        for i, (source, path) in enumerate(zip(sources, is_path, strict=True))
    )


# -- names -----------------------------------------------------------------------------------------


def _photo_names(paths: Sequence[str]) -> list[str]:
    whole = [os.path.abspath(path) for path in paths]  # without ".."
    if len(set(whole)) < len(whole):
        twice = next(path for path in whole if whole.count(path) > 1)
        raise InputError(f"{twice}: is given more than once; once is enough")
    return _distinct([[os.path.basename(path) for path in whole], _below_common(whole)], paths)


def _scene_names(places: Sequence[_Place]) -> list[str]:
    paths = [place.called for place in places]
    whole = [os.path.abspath(path) for path in paths]
    bare = [
        path if os.path.isdir(path) or place.video is None else os.path.splitext(path)[0]
        for path, place in zip(whole, places, strict=True)
    ]
    choices = [[os.path.basename(path) for path in bare]]
    choices += [[name.replace("/", "_") for name in _below_common(c)] for c in (bare, whole)]
    return [name or "scene" for name in _distinct(choices, paths)]


def _pool_name(photos: Sequence) -> str:
    paths = [os.path.abspath(photo) for photo in photos if isinstance(photo, str)]
    if not paths:
        return "scene"
    if len(photos) == 1:
        name = os.path.splitext(os.path.basename(paths[0]))[0]
    else:
        name = os.path.basename(os.path.commonpath([os.path.dirname(path) for path in paths]))
    return name or "scene"


def _below_common(paths: Sequence[str]) -> list[str]:
    if not paths:
        return []
    root = os.path.commonpath([os.path.dirname(path) for path in paths])
    return [Path(path).relative_to(root).as_posix() for path in paths]


def _distinct(choices: list[list[str]], paths: Sequence[str]) -> list[str]:
    """Returns the first choice of names that has no two equal ones up to case."""
    seen: dict[str, str] = {}
    for names in choices:
        if len({name.casefold() for name in names}) == len(names):
            return names
    for name, path in zip(choices[-1], paths, strict=True):
        other = seen.setdefault(name.casefold(), path)
        if other != path:
            raise InputError(f"{other} and {path}: would have the same name; rename one of them")
    raise InputError(f"{paths[0]}: is given more than once; once is enough")


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _natural(path: str) -> tuple:
    """Returns a sort key: numbers by value, letters whatever their case; then exactly."""
    parts = [re.split(r"([0-9]+)", part.casefold()) for part in path.split("/")]
    return [[int(p) if i % 2 else p for i, p in enumerate(part)] for part in parts], path


def _show(photo) -> str:
    return photo if isinstance(photo, str) else f"an image in memory ({type(photo).__name__})"
