"""Camera files: read rightly, and refused with line and reason where they hold no camera."""

import re

import numpy as np
import pytest

from lite3r_jax.data.cam_file import CamFile, read_cam, write_cam
from lite3r_jax.errors import InputError
from tests.data.mutate import COUNTS, check_clear, mutants
from tests.data.world import cam_text, views

VIEW = views(1)[0]
TEXT = cam_text(VIEW, "1.5 0.02 128 4.25")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "00000000_cam.txt"


def refused(path, text: str, message: str):
    path.write_text(text)
    with pytest.raises(InputError, match=re.escape(message)) as error:
        read_cam(path)
    check_clear(error.value, path)


def test_camera_and_all_four_tail_numbers_are_read(path):
    path.write_text(TEXT)
    cam = read_cam(path)
    np.testing.assert_allclose(cam.extrinsics, VIEW.extrinsics, atol=1e-8)
    np.testing.assert_allclose(cam.intrinsics, VIEW.intrinsics, rtol=1e-8)
    tail = (cam.depth_min, cam.depth_interval, cam.depth_num, cam.depth_max)
    assert tail == (1.5, 0.02, 128, 4.25)
    assert cam.depth_range == (1.5, 4.25)


def test_tail_of_two_numbers_has_no_range(path):
    path.write_text(cam_text(VIEW, "425 2.5"))
    cam = read_cam(path)
    assert (cam.depth_min, cam.depth_interval) == (425, 2.5)
    assert cam.depth_num is cam.depth_max is cam.depth_range is None


@pytest.mark.parametrize(
    "tail,expected",
    [("-2 0.1 128 9", (0, 9)), ("-9 0.1 128 -2", None), ("0 0 128 0", None)],
)
def test_range_at_or_below_zero_is_read_but_not_used(path, tail, expected):
    path.write_text(cam_text(VIEW, tail))
    assert read_cam(path).depth_range == expected


def test_blank_lines_and_line_ends_do_not_count(path):
    path.write_text(TEXT)
    plain = read_cam(path)
    path.write_bytes(b"\n" + TEXT.replace("\n\n", "\n \n\n").replace("\n", " \r\n").encode())
    np.testing.assert_array_equal(read_cam(path).extrinsics, plain.extrinsics)
    path.write_text(TEXT.replace("\n\n", "\n").rstrip())
    np.testing.assert_array_equal(read_cam(path).intrinsics, plain.intrinsics)


def edit(line: int, text: str) -> str:
    lines = TEXT.split("\n")
    lines[line - 1] = text
    return "\n".join(lines)


@pytest.mark.parametrize(
    "text,message",
    [
        ("", "line 1: expected 10 lines"),
        (edit(12, ""), "line 10: expected 10 lines that are not blank"),
        (TEXT + "1\n", "line 13: expected 10 lines"),
        (edit(1, "extrinsics"), "line 1: expected the word extrinsic, got 'extrinsics'"),
        (edit(7, "extrinsic"), "line 7: expected the word intrinsic"),
        (edit(2, "1 0 0"), "line 2: expected 4 numbers, got 3"),
        (edit(8, "100 0 50 1"), "line 8: expected 3 numbers, got 4"),
        (edit(8, "100 0 1_0"), "line 8: expected a finite number, got '1_0'"),
        (edit(9, "0 nan 50"), "line 9: expected a finite number, got 'nan'"),
        (edit(12, "1 1e999"), "line 12: expected a finite number"),
        (edit(3, "0 0 0 0"), "line 2: expected a rotation"),
        (edit(5, "0 0 0 2"), "line 5: expected the row 0 0 0 1"),
        (edit(8, "-100 0 50"), "line 8: expected positive focal lengths"),
        (edit(8, "100 2 50"), "line 8: expected the rows fx 0 cx"),
        (edit(10, "0 0 2"), "line 8: expected the rows fx 0 cx"),
        (edit(8, "100 0 -50"), "line 8: expected intrinsics in pixels"),
        (edit(12, "1 2 3"), "line 12: expected 2 or 4 numbers, got 3"),
        (
            edit(12, "4 0.1 128 1"),
            "line 12: expected a depth range from small to large, got 4 to 1",
        ),
        (edit(12, "1 -0.1 128 4"), "line 12: expected an interval"),
        (edit(12, "1 0.1 12.5 4"), "line 12: expected a whole number of depth planes"),
    ],
)
def test_what_is_no_camera_is_named_by_line(path, text, message):
    refused(path, text, message)


def test_mirror_is_no_rotation(path):
    rows = TEXT.split("\n")
    rows[1] = " ".join(str(-float(x)) for x in rows[1].split())
    refused(path, "\n".join(rows), "line 2: expected a rotation, got a mirror")


def test_other_files_are_refused_before_they_are_read(path):
    refused(path, "1 " * 100_000, "has more than 16384 bytes")
    path.write_bytes(TEXT.encode() + b"\xff\xd8")
    with pytest.raises(InputError, match=f"byte {len(TEXT)}: expected ASCII"):
        read_cam(path)
    path.unlink()
    with pytest.raises(InputError, match="cannot be read"):
        read_cam(path)


@pytest.mark.parametrize("count", COUNTS)
def test_no_damaged_camera_is_accepted(path, count):
    taken = 0
    for data in mutants(path, TEXT.encode(), count, seed=2):
        try:
            cam = read_cam(path)
        except InputError as error:
            check_clear(error, path)
            continue
        taken += 1
        # what was taken is in the file word by word, and a camera
        words = data.decode("ascii").split()
        assert [words.pop(17), words.pop(0)] == ["intrinsic", "extrinsic"]
        numbers = np.array([float(word) for word in words])
        assert np.isfinite(numbers).all() and len(numbers) in (27, 29)
        np.testing.assert_array_equal(cam.extrinsics, numbers[:12].reshape(3, 4))
        np.testing.assert_array_equal(cam.intrinsics, numbers[16:25].reshape(3, 3))
        assert numbers[12:16].tolist() == [0, 0, 0, 1]
        u, stretch, v = np.linalg.svd(cam.extrinsics[:, :3])
        assert np.abs(stretch - 1).max() < 2e-3 and np.linalg.det(u @ v) > 0
        fx, fy = cam.intrinsics[0, 0], cam.intrinsics[1, 1]
        assert min(fx, fy) > 0
        np.testing.assert_array_equal(
            cam.intrinsics,
            [[fx, 0, cam.intrinsics[0, 2]], [0, fy, cam.intrinsics[1, 2]], [0, 0, 1]],
        )
        assert numbers[26] >= 0 and (len(numbers) == 27 or numbers[28] >= numbers[25])
    assert 0 < taken < count / 2


@pytest.mark.parametrize("ending", [(128.0, 4.25), (None, None)])
def test_what_is_written_is_read(path, ending):
    cam = CamFile(VIEW.extrinsics, VIEW.intrinsics, 1 / 3, 0.02, *ending)
    write_cam(path, cam)
    read = read_cam(path)
    for name, value in vars(cam).items():
        np.testing.assert_array_equal(getattr(read, name), value)
