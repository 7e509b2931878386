"""Decodes frames of a video file, for use as photos.

Decoding is OpenCV's (opencv-python-headless: Apache-2.0, with an LGPL FFmpeg inside). PyAV would
give more control, but its wheels carry the GPL libraries x264 and x265 (av 18.1.0: configured with
--enable-libx264 --enable-libx265).

A frame is kept as a PNG in memory, at about 1.4 bytes per pixel (2.8 MB at 1920x1080): what the
network sees and what is exported are the same pixels, those that the decoder gave.
"""

import itertools
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from lite3r_jax.data.images import MAX_PIXELS
from lite3r_jax.errors import InputError

if TYPE_CHECKING:
    import cv2

VIDEO_SUFFIXES = frozenset({".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm"})

_TICK = 1e-3  # s; Matroska rounds times to milliseconds
# What a file of ISO/IEC 14496-12 (MP4) or QuickTime may have at its top level.
_BOXES = frozenset(
    [b"ftyp", b"moov", b"mdat", b"moof", b"mfra", b"meta", b"free", b"skip", b"wide", b"pnot",
     b"uuid", b"sidx", b"styp", b"pdin", b"emsg", b"prft", b"udta"]
)  # fmt: skip
_SEGMENT = b"\x18\x53\x80\x67"  # Matroska's outer element (RFC 9559, 5.1)
_EBML = b"\x1a\x45\xdf\xa3"  # RFC 8794, 11.2.1


@dataclass(frozen=True)
class VideoOptions:
    """Options that choose the frames of a video and the chunks that long videos are divided into.

    Attributes:
        fps: frames per second: the first frame at or after each multiple of 1 / fps seconds from
            the first one, by the time stamps in the file. Frames are never doubled.
        stride: if above 0, every so many frames instead, whatever their times.
        max_frames: if above 0, the most frames to take: if `fps` or `stride` give more, so many of
            them evenly spread from the first to the last.
        chunk: if above 0, so many frames go through the model at a time, in chunks that overlap
            and are joined; for videos that are too long for one pass.
        overlap: frames that neighboring chunks share; 0: a third of `chunk`.
        loops: with `chunk`, how many returns to a place that was seen before are tried at most;
            each is one more pass over a chunk. 0: none.
    """

    fps: float = 1.0
    stride: int = 0
    max_frames: int = 0
    chunk: int = 0
    overlap: int = 0
    loops: int = 20

    def __post_init__(self):
        if not (math.isfinite(self.fps) and self.fps > 0):
            raise InputError(f"video.fps: expected frames per second above 0, got {self.fps}")
        for key in ("stride", "max_frames", "chunk", "overlap", "loops"):
            value = getattr(self, key)
            if not isinstance(value, int) or value < 0:
                raise InputError(f"video.{key}: expected a whole number, 0 for none, got {value!r}")
        if self.stride and self.fps != VideoOptions.fps:
            raise InputError(
                f"video.fps={self.fps} and video.stride={self.stride}: choose one of the two"
            )
        if self.chunk and not (self.chunk >= 2 and self.overlap < self.chunk):
            raise InputError(
                f"video.chunk={self.chunk} and video.overlap={self.overlap}: expected a chunk of 2"
                " or more frames and an overlap below it; lower video.overlap or raise video.chunk"
            )
        if self.overlap and not self.chunk:
            raise InputError(
                f"video.overlap={self.overlap}: is for chunks; set video.chunk as well"
            )

    @property
    def shared(self) -> int:
        """Number of frames that neighboring chunks share."""
        return self.overlap or max(1, self.chunk // 3)


@dataclass(frozen=True, eq=False)
class VideoFrame:
    """One decoded frame of a video, upright, as a PNG in memory.

    Attributes:
        index: of the frame in the video, from 0.
        seconds: its time after the first frame.
        png: the 8-bit RGB pixels as a PNG file.
    """

    index: int
    seconds: float
    png: bytes

    @property
    def name(self) -> str:
        """File name such as frame_000012.jpg; exports write frames as JPEG, as videos are lossy."""
        return f"frame_{self.index:06d}.jpg"


def read_video(
    path: str | os.PathLike[str],
    options: VideoOptions | None = None,
    *,
    max_pixels: int = MAX_PIXELS,
    progress: Callable[[], object] | None = None,
) -> list[VideoFrame]:
    """Decode a video from beginning to end and keep the frames that the options choose.

    MP4, MOV and M4V, AVI, MKV and WebM files, told by content. Rotation as phones note it is
    applied. Colors are those of 8-bit video; HDR is not tone-mapped. With `max_frames` the video
    is decoded twice, so that only frames that are kept ever lie in memory.

    Args:
        path: of the file.
        options: None: one frame per second.
        max_pixels: limit of width * height.
        progress: called after each frame that is kept.

    Returns:
        At least one frame, in order.

    Raises:
        InputError: there is no such file; it is no video, is cut off or damaged, has no frames or,
            for `fps`, no time stamps; frames are too large; OpenCV is missing.
    """
    return list(frames_of(path, options, max_pixels=max_pixels, progress=progress))


def frames_of(
    path: str | os.PathLike[str],
    options: VideoOptions | None = None,
    *,
    first: int = 0,
    max_pixels: int = MAX_PIXELS,
    progress: Callable[[], object] | None = None,
) -> Iterator[VideoFrame]:
    """Yields the frames of `read_video` one by one, so that only those in use are in memory.

    Args:
        path: see `read_video`, and so are `options`, `max_pixels` and `progress`.
        options: likewise.
        first: number of chosen frames that are skipped at the beginning.
        max_pixels: likewise.
        progress: likewise.

    Raises:
        InputError: as `read_video`, while frames are asked for.
    """
    name = os.fspath(path)
    options = options or VideoOptions()
    _check_container(name)
    keep = None
    if options.max_frames:
        keep = {index for index, _ in list_frames(path, options, max_pixels=max_pixels)}
    with _opened(name, max_pixels) as capture:
        passed = 0
        for index, seconds in _sample(capture, options, name):
            if keep is not None and index not in keep:
                continue
            passed += 1
            if passed > first:
                yield VideoFrame(index, seconds, _png(capture, name, max_pixels))
                if progress is not None:
                    progress()


def list_frames(
    path: str | os.PathLike[str],
    options: VideoOptions | None = None,
    *,
    max_pixels: int = MAX_PIXELS,
    progress: Callable[[], object] | None = None,
) -> list[tuple[int, float]]:
    """Returns (index, seconds) of each frame that the options choose, without keeping a pixel.

    Args:
        path: see `read_video`, and so are the others.
        options: likewise.
        max_pixels: likewise.
        progress: called after each frame that is chosen.

    Raises:
        InputError: as `read_video`.
    """
    name = os.fspath(path)
    options = options or VideoOptions()
    _check_container(name)
    chosen = []
    with _opened(name, max_pixels) as capture:
        for frame in _sample(capture, options, name):
            chosen.append(frame)
            if progress is not None:
                progress()
    if options.max_frames and len(chosen) > options.max_frames:
        places = np.linspace(0, len(chosen) - 1, options.max_frames).round().astype(int)
        chosen = [chosen[place] for place in places.tolist()]
    return chosen


def _sample(
    capture: "cv2.VideoCapture", options: VideoOptions, name: str
) -> Iterator[tuple[int, float]]:
    """Yields (index, seconds) of frames that fps or stride choose, grabbed but not retrieved."""
    import cv2

    start = seconds = 0.0
    wanted = 0  # the next multiple of 1 / fps
    index = -1
    for index in itertools.count():
        if not capture.grab():
            index -= 1
            break
        before, seconds = seconds, capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
        if index == 0:
            start = before = seconds
        if options.stride:
            take = index % options.stride == 0
        else:
            if seconds < before:
                raise _untimed(name)
            place = (seconds - start + _TICK) * options.fps
            take = place >= wanted
            if take:
                wanted = math.floor(place) + 1
        if take:
            yield index, seconds - start
    if index < 0:
        raise InputError(f"{name}: has no frame that can be decoded; convert it or copy it again")
    untimed = index > 0 and seconds == start
    if untimed and not options.stride:
        raise _untimed(name)
    count, rate = capture.get(cv2.CAP_PROP_FRAME_COUNT), capture.get(cv2.CAP_PROP_FPS)
    promised = (count - 1) / rate if count > 0 and rate > 0 else 0.0
    # Half: what an edit list leaves out counts as promised, what was trimmed on a phone for example
    if not untimed and seconds - start < promised / 2:
        raise InputError(
            f"{name}: can be decoded for {seconds - start:.1f} s of {promised:.1f} s only;"
            " it is damaged, copy it again"
        )


def _png(capture: "cv2.VideoCapture", name: str, max_pixels: int) -> bytes:
    import cv2

    decoded, frame = capture.retrieve()
    if not decoded:
        raise _damaged(name, "a frame could not be decoded")
    _check_size(frame.shape[1], frame.shape[0], name, max_pixels)
    # cheap filter and coder: half the time of zlib's own at the same size
    fast = [
        cv2.IMWRITE_PNG_COMPRESSION, 1,
        cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE,
        cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP,
    ]  # fmt: skip
    return cv2.imencode(".png", frame, fast)[1].tobytes()


@contextmanager
def _opened(name: str, max_pixels: int) -> Iterator["cv2.VideoCapture"]:
    try:
        import cv2
    except ImportError as error:
        raise InputError(
            f"{name}: reading a video needs OpenCV; pip install 'lite3r_jax[video]' ({error})"
        ) from error
    log = cv2.utils.logging
    level = log.getLogLevel()
    log.setLogLevel(log.LOG_LEVEL_SILENT)  # what it would say is said by the errors below
    try:
        # an absolute path, which FFmpeg does not take for the name of a protocol
        capture = cv2.VideoCapture(
            os.path.abspath(name),
            cv2.CAP_FFMPEG,
            # the same pixels on every machine
            [cv2.CAP_PROP_HW_ACCELERATION, cv2.VIDEO_ACCELERATION_NONE],
        )
        try:
            if not capture.isOpened():
                raise _damaged(name, "no video stream that FFmpeg can decode")
            capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)
            width = capture.get(cv2.CAP_PROP_FRAME_WIDTH)
            height = capture.get(cv2.CAP_PROP_FRAME_HEIGHT)
            _check_size(int(width), int(height), name, max_pixels)
            yield capture
        finally:
            capture.release()
    except cv2.error as error:
        raise _damaged(name, " ".join(str(error).split())) from error
    finally:
        log.setLogLevel(level)


def _check_size(width: int, height: int, name: str, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise InputError(
            f"{name}: frames of {width}x{height} are {width * height / 1e6:.1f} Mpx, the limit is"
            f" {max_pixels / 1e6:.1f} Mpx; scale it down or raise max_pixels"
        )


def _untimed(name: str) -> InputError:
    return InputError(
        f"{name}: has no usable time stamps; choose frames with video.stride instead of video.fps"
    )


def _damaged(name: str, reason: str) -> InputError:
    return InputError(f"{name}: cannot be read ({reason}); convert it to MP4 or copy it again")


# -- containers -------------------------------------------------------------------------------


def _check_container(name: str) -> None:
    """Refuses a file that is no MP4, AVI or Matroska container, or that is cut off.

    FFmpeg reads far more formats, among them play lists that name other files, and takes what is
    there of a file that is cut off, without an error.
    """
    try:
        if not os.path.isfile(name):
            reason = "is not a file" if os.path.exists(name) else "no such file"
            raise InputError(f"{name}: {reason}; pass the path of a video file")
        with open(name, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(12)
            if not head:
                raise InputError(f"{name}: is empty (0 bytes); copy it again")
            if head[4:8] in _BOXES:
                whole = _mp4_is_whole(file, size)
            elif head[:4] == b"RIFF" and head[8:] == b"AVI ":
                whole = _avi_is_whole(file, size)
            elif head[:4] == _EBML:
                whole = _matroska_is_whole(file, size)
            else:
                raise InputError(
                    f"{name}: is not a video in a supported format (MP4, MOV, AVI, MKV, WebM);"
                    " convert it"
                )
    except PermissionError as error:
        raise InputError(f"{name}: permission denied; allow reading it") from error
    except OSError as error:
        raise _damaged(name, error.strerror or str(error)) from error
    if not whole:
        raise InputError(
            f"{name}: is cut off: the file ends early or its recording was not finished;"
            " copy it again"
        )


def _mp4_is_whole(file: BinaryIO, size: int) -> bool:
    place, index = 0, False
    while place < size:
        file.seek(place)
        head = file.read(16)
        if head[4:8] not in _BOXES:
            break  # cameras append data of their own
        index |= head[4:8] == b"moov"
        length = int.from_bytes(head[:4])
        if length == 1:
            length = int.from_bytes(head[8:])
        elif length == 0:  # up to the end of the file
            length = size - place
        place += max(length, 8)
    return index and place <= size


def _avi_is_whole(file: BinaryIO, size: int) -> bool:
    place = 0
    while place < size:  # above 1 GB further RIFF chunks follow
        file.seek(place)
        head = file.read(8)
        if head[:4] != b"RIFF":
            break
        place += 8 + int.from_bytes(head[4:8], "little")
    return place <= size


def _matroska_is_whole(file: BinaryIO, size: int) -> bool:
    place = 0
    for element in (_EBML, _SEGMENT):
        file.seek(place)
        head = file.read(12)
        if head[:4] != element or len(head) < 5 or not head[4]:
            return False
        width = (
            9 - head[4].bit_length()
        )  # leading zeros give the length of the number (RFC 8794, 4)
        length = int.from_bytes(head[4 : 4 + width]) & ((1 << 7 * width) - 1)
        if length == (1 << 7 * width) - 1:  # unknown, from live recorders
            return True
        place += 4 + width + length
    return place <= size
