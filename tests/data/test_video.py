"""Video: the right frames, upright, as decoded; clear on what is no video or half of one."""

import random
import struct
import sys

import cv2
import numpy as np
import pytest

from lite3r_jax.data.images import read_image
from lite3r_jax.data.video import VIDEO_SUFFIXES, VideoOptions, read_video
from lite3r_jax.errors import InputError

CODECS = {".avi": "MJPG", ".webm": "VP80"}
FRAMES = 20
RATE = 10.0


def record(path, frames: int = FRAMES, rate: float = RATE, width: int = 64, height: int = 48):
    """Frame i is gray of value 10 * i (modulo 256) with a red corner at the top left."""
    codec = CODECS.get(path.suffix.lower(), "mp4v")
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), rate, (width, height))
    assert writer.isOpened()
    for i in range(frames):
        frame = np.full((height, width, 3), 10 * i % 256, np.uint8)
        frame[: height // 3, : width // 3] = (0, 0, 255)
        writer.write(frame)
    writer.release()
    return path


def pixels(frame) -> np.ndarray:
    return np.asarray(read_image(frame.png), np.int64)


def box(data: bytes, *path: bytes) -> tuple[int, int]:
    """(start, length) of a box of an MP4 file (ISO/IEC 14496-12)."""
    start, end = 0, len(data)
    for kind in path:
        while data[start + 4 : start + 8] != kind:
            start += int.from_bytes(data[start : start + 4])
            assert start < end
        length = int.from_bytes(data[start : start + 4])
        start, end = start + 8, start + length
    return start - 8, end - start + 8


TRACK = (b"moov", b"trak")
TIMES = (*TRACK, b"mdia", b"minf", b"stbl", b"stts")


def with_durations(data: bytes, milliseconds: list[int]) -> bytes:
    """The MP4 file with these durations of its frames; their sum must stay."""
    start, _ = box(data, *TRACK, b"mdia", b"mdhd")
    ticks = int.from_bytes(data[start + 20 : start + 24]) / 1000
    entries = b"".join(struct.pack(">II", 1, round(ms * ticks)) for ms in milliseconds)
    new = struct.pack(">I4sII", 16 + len(entries), b"stts", 0, len(milliseconds)) + entries
    start, length = box(data, *TIMES)
    result = bytearray(data[:start] + new + data[start + length :])
    for depth in range(1, len(TIMES)):
        outer, size = box(data, *TIMES[:depth])
        result[outer : outer + 4] = struct.pack(">I", size + len(new) - length)
    return bytes(result)


# -- which frames ---------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", sorted(VIDEO_SUFFIXES))
def test_every_container_gives_all_frames_in_color(tmp_path, suffix):
    frames = read_video(record(tmp_path / f"clip{suffix}"), VideoOptions(stride=1))
    assert [frame.index for frame in frames] == list(range(FRAMES))
    for i, frame in enumerate(frames):
        rgb = pixels(frame)
        assert rgb.shape == (48, 64, 3)
        assert abs(rgb[24:, 32:] - 10 * i).max() <= 8
        assert abs(rgb[4:12, 4:16] - (255, 0, 0)).max() <= 60  # chroma has half the resolution


def test_frames_are_those_of_the_decoder_bit_by_bit(tmp_path):
    path = record(tmp_path / "clip.mp4")
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    for frame in read_video(path, VideoOptions(stride=1)):
        bgr = capture.read()[1]
        np.testing.assert_array_equal(pixels(frame), bgr[:, :, ::-1])
    assert not capture.read()[0]


def test_names_carry_the_index_in_the_video(tmp_path):
    frames = read_video(record(tmp_path / "clip.mp4"), VideoOptions(stride=6))
    assert [frame.name for frame in frames] == [
        "frame_000000.jpg", "frame_000006.jpg", "frame_000012.jpg", "frame_000018.jpg",
    ]  # fmt: skip
    assert [frame.seconds for frame in frames] == pytest.approx([0, 0.6, 1.2, 1.8])


def test_one_frame_per_second_is_the_default(tmp_path):
    frames = read_video(record(tmp_path / "clip.mp4", frames=25))
    assert [frame.seconds for frame in frames] == pytest.approx([0, 1, 2])


@pytest.mark.parametrize("rate", [10.0, 24.0, 30000 / 1001, 60.0])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi"])
def test_asking_for_the_rate_of_the_video_gives_every_frame(tmp_path, suffix, rate):
    path = record(tmp_path / f"clip{suffix}", frames=70, rate=rate)
    assert len(read_video(path, VideoOptions(fps=rate))) == 70
    assert len(read_video(path, VideoOptions(fps=3 * rate))) == 70  # none is doubled
    assert len(read_video(path, VideoOptions(fps=rate / 2))) == 35


@pytest.mark.parametrize("fps", [1.0, 2.5, 4.0, 9.0])
def test_time_stamps_count_where_the_rate_varies(tmp_path, fps):
    path = record(tmp_path / "clip.mp4")
    durations = [50] * 10 + [150] * 10
    path.write_bytes(with_durations(path.read_bytes(), durations))
    times = np.cumsum([0, *durations[:-1]])
    wanted = {int(np.argmax(times >= k * 1000 / fps - 1e-6)) for k in range(20)}
    wanted = sorted(i for i in wanted if i or not times[i])
    frames = read_video(path, VideoOptions(fps=fps))
    assert [frame.index for frame in frames] == wanted
    assert [frame.seconds * 1000 for frame in frames] == pytest.approx(times[wanted])
    for frame in frames:
        assert abs(pixels(frame)[24:, 32:] - 10 * frame.index).max() <= 8


@pytest.mark.parametrize(
    "limit,indices",
    [
        (1, [0]),
        (2, [0, 18]),
        (3, [0, 8, 18]),
        (9, [0, 2, 4, 6, 8, 12, 14, 16, 18]),
        (10, [0, 2, 4, 6, 8, 10, 12, 14, 16, 18]),
    ],
)
def test_a_limit_spreads_the_frames_evenly(tmp_path, limit, indices):
    path = record(tmp_path / "clip.mp4")
    options = VideoOptions(stride=2, max_frames=limit)
    actual = [frame.index for frame in read_video(path, options)]
    assert actual == indices
    assert [frame.index for frame in read_video(path, VideoOptions(stride=2, max_frames=99))] == (
        list(range(0, 20, 2))
    )


def test_two_readings_are_equal_and_progress_counts_frames(tmp_path):
    path = record(tmp_path / "clip.mp4")
    ticks = []
    first = read_video(path, VideoOptions(fps=5, max_frames=7), progress=lambda: ticks.append(1))
    second = read_video(path, VideoOptions(fps=5, max_frames=7))
    assert [frame.png for frame in first] == [frame.png for frame in second]
    assert len(ticks) == len(first) == 7


# quarter turns clockwise, and the matrix (a, b, c, d) of ISO/IEC 14496-12, 8.3.2
@pytest.mark.parametrize(
    "turns,matrix", [(0, (1, 0, 0, 1)), (1, (0, 1, -1, 0)), (2, (-1, 0, 0, -1)), (3, (0, -1, 1, 0))]
)
def test_rotation_of_phone_videos_is_applied(tmp_path, turns, matrix):
    path = record(tmp_path / "phone.mov")
    plain = pixels(read_video(path)[0])
    data = bytearray(path.read_bytes())
    start, _ = box(data, *TRACK, b"tkhd")
    a, b, c, d = (value << 16 for value in matrix)
    data[start + 48 : start + 84] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    turned = pixels(read_video(path)[0])
    np.testing.assert_array_equal(turned, np.rot90(plain, -turns))


# -- bad input ------------------------------------------------------------------------------------


def refuses(path, *words: str, options: VideoOptions | None = None, **arguments) -> None:
    with pytest.raises(InputError) as caught:
        read_video(path, options, **arguments)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    for word in words:
        assert word in message, message


def test_options_must_make_sense():
    for fps in (0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match=r"video\.fps"):
            VideoOptions(fps=fps)
    for key in ("stride", "max_frames"):
        for value in (-1, 1.5):
            with pytest.raises(InputError, match=rf"video\.{key}"):
                VideoOptions(**{key: value})
    with pytest.raises(InputError, match="choose one of the two"):
        VideoOptions(fps=2.0, stride=5)


def test_what_is_no_video_is_named(tmp_path):
    refuses(tmp_path / "none.mp4", "no such file")
    refuses(tmp_path, "is not a file")
    (tmp_path / "empty.mp4").touch()
    refuses(tmp_path / "empty.mp4", "0 bytes")
    (tmp_path / "text.mp4").write_text("no frames in here\n" * 9)
    refuses(tmp_path / "text.mp4", "not a video in a supported format", "MP4", "convert")
    # FFmpeg would go and open the other file
    (tmp_path / "list.avi").write_text("ffconcat version 1.0\nfile clip.mp4\n")
    refuses(tmp_path / "list.avi", "not a video in a supported format")
    (tmp_path / "list.mp4").write_text("#EXTM3U\n#EXTINF:1,\nclip.mp4\n")
    refuses(tmp_path / "list.mp4", "not a video in a supported format")


def test_a_video_without_frames_is_refused(tmp_path):
    sound = struct.pack(">I4s4sI4s", 20, b"ftyp", b"isom", 0, b"isom")
    (tmp_path / "sound.mp4").write_bytes(sound + struct.pack(">I4s", 8, b"moov"))
    refuses(tmp_path / "sound.mp4", "no video stream")
    path = record(tmp_path / "clip.avi")
    data = bytearray(path.read_bytes())
    start = data.index(b"movi") + 4
    data[start : data.index(b"idx1")] = bytes(data.index(b"idx1") - start)
    path.write_bytes(data)
    refuses(path, "no frame that can be decoded")


@pytest.mark.parametrize("suffix", sorted(VIDEO_SUFFIXES))
def test_a_file_that_is_cut_off_is_refused_wherever_it_ends(tmp_path, suffix):
    path = record(tmp_path / f"clip{suffix}")
    whole = path.read_bytes()
    for share in (0.01, 0.3, 0.6, 0.9, 0.999):
        path.write_bytes(whole[: max(16, int(share * len(whole)))])
        refuses(path, "cut off")


def test_a_camera_may_add_data_of_its_own_behind_the_film(tmp_path):
    path = record(tmp_path / "clip.mp4")
    path.write_bytes(path.read_bytes() + b"\x7f\xff\xff\xffCAMERA DATA")
    assert len(read_video(path, VideoOptions(stride=1))) == FRAMES


def test_a_live_recording_of_unknown_length_is_read(tmp_path):
    path = record(tmp_path / "clip.mkv")
    data = bytearray(path.read_bytes())
    start = data.index(b"\x18\x53\x80\x67") + 4
    assert data[start] == 1  # a length of 8 bytes
    data[start : start + 8] = b"\x01" + b"\xff" * 7
    path.write_bytes(data)
    assert len(read_video(path, VideoOptions(stride=1))) == FRAMES


def test_a_film_of_which_little_can_be_decoded_is_damaged(tmp_path, capfd):
    path = record(tmp_path / "clip.avi")
    data = bytearray(path.read_bytes())
    chunks = [i for i in range(len(data)) if data.startswith(b"00dc", i)]
    keep = chunks[5]
    data[keep : data.index(b"idx1")] = bytes(data.index(b"idx1") - keep)
    path.write_bytes(data)
    refuses(path, "damaged", options=VideoOptions(stride=1))


@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".mkv"])
def test_mutated_videos_are_read_or_refused(tmp_path, suffix, capfd):
    path = record(tmp_path / f"clip{suffix}")
    good = path.read_bytes()
    rng = random.Random(suffix)
    read = 0
    for _ in range(80):
        data = bytearray(good)
        for _ in range(rng.randint(1, 6)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(data)
        try:
            frames = read_video(path, VideoOptions(stride=4), max_pixels=10**6)
            assert frames
            assert all(read_image(frame.png).mode == "RGB" for frame in frames)
            read += 1
        except InputError as error:
            assert str(error).startswith(str(path))
            assert "\n" not in str(error)
    assert 0 < read < 80


def test_frames_above_the_limit_are_refused_before_decoding(tmp_path):
    path = record(tmp_path / "clip.mp4")
    refuses(path, "64x48", "max_pixels", max_pixels=64 * 48 - 1)
    assert read_video(path, max_pixels=64 * 48)


def test_without_opencv_the_error_says_what_to_install(tmp_path, monkeypatch):
    path = record(tmp_path / "clip.mp4")
    monkeypatch.setitem(sys.modules, "cv2", None)
    refuses(path, "pip install 'lite3r_jax[video]'")


def test_opencv_keeps_its_log_level_and_says_nothing(tmp_path, capfd):
    log = cv2.utils.logging
    before = log.getLogLevel()
    path = tmp_path / "sound.mkv"
    path.write_bytes(b"\x1a\x45\xdf\xa3\x80\x18\x53\x80\x67\x80")
    refuses(path, "no video stream")
    assert log.getLogLevel() == before
    assert "WARN" not in capfd.readouterr().err
