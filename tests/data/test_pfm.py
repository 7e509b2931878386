"""PFM files: read as others read them; damaged ones are named, never used."""

import re
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from lite3r_jax.data.pfm import read_depth_pfm, read_pfm, write_pfm
from lite3r_jax.errors import InputError
from lite3r_jax.exports import write
from lite3r_jax.exports.depth_maps import masked_depth
from tests.data.mutate import COUNTS, check_clear, mutants
from tests.data.world import pfm_bytes, scene_of, views

DEPTH = np.where(np.arange(12) % 5, np.linspace(0.5, 90, 12), 0).reshape(3, 4).astype(np.float32)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "map.pfm"


def refused(path, data: bytes, message: str, read=read_pfm):
    path.write_bytes(data)
    with pytest.raises(InputError, match=message) as error:
        read(path)
    check_clear(error.value, path)


@pytest.mark.parametrize("endian", ["<", ">"])
def test_pillow_reads_the_same(path, endian):
    path.write_bytes(pfm_bytes(DEPTH, endian))
    values = read_pfm(path)
    with Image.open(path) as image:
        np.testing.assert_array_equal(values, np.asarray(image))
    np.testing.assert_array_equal(values, DEPTH)
    assert values.dtype == np.float32 and values.dtype.isnative and values.flags.c_contiguous


def test_lowest_row_stands_first_in_the_file(path):
    path.write_bytes(b"Pf\n1 2\n-1\n" + np.array([5, 7], "<f4").tobytes())
    assert read_pfm(path).tolist() == [[7], [5]]


@settings(max_examples=30, deadline=None)
@given(
    values=arrays.arrays(
        np.float32,
        st.tuples(st.integers(1, 5), st.integers(1, 5), st.just(3)),
        elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
    ),
    endian=st.sampled_from("<>"),
)
def test_color_files_come_back(tmp_path_factory, values, endian):
    path = tmp_path_factory.getbasetemp() / "color.pfm"
    path.write_bytes(pfm_bytes(values, endian))
    np.testing.assert_array_equal(read_pfm(path), values)


def test_depth_maps_of_the_export_read_back(tmp_path):
    scene = scene_of(views(2, (28, 42)))
    folder = write(scene, tmp_path, ["depth_pfm"])["depth_pfm"]
    for name, depth in zip(scene.names, masked_depth(scene), strict=True):
        path = (folder / name).with_suffix(".pfm")
        np.testing.assert_array_equal(read_depth_pfm(path, (28, 42)), depth)


@pytest.mark.parametrize(
    "header,message",
    [
        (b"P6\n4 3\n-1\n", "line 1: expected Pf or PF, got b'P6'"),
        (b"Pf\r\n4 3\r\n-1\r\n", "line 1: expected Pf"),
        (b"Pf\n4\n3\n-1\n", "line 2: expected width and height, got b'4'"),
        (b"Pf\n4 -3\n-1\n", "line 2: expected width and height"),
        (b"Pf\n0 3\n-1\n", "line 2: expected width and height"),
        (b"Pf\n4 3\nnan\n", "line 3: expected a scale"),
        (b"Pf\n4 3\n0.0\n", "line 3: expected a scale other than 0"),
        (b"Pf\n4 3\n1e999\n", "line 3: expected a scale other than 0"),
        (b"Pf\n4 3", "line 2: expected width and height"),
        (b"", "line 1: expected Pf or PF"),
        (b"Pf\n" + b"4" * 200, "line 2: expected width and height"),
    ],
)
def test_wrong_headers_are_named_by_line(path, header, message):
    body = DEPTH[::-1].tobytes() if header.count(b"\n") == 3 else b""
    refused(path, header + body, re.escape(message))


def test_size_must_be_that_of_the_header(path):
    data = pfm_bytes(DEPTH)
    refused(path, data[:-1], f"has {len(data) - 1} bytes, {len(data)} are expected for 4x3")
    refused(path, data + b"\n", f"has {len(data) + 1} bytes")
    refused(path, data.replace(b"Pf", b"PF"), "with 3 channels")


@pytest.mark.parametrize("size", ["999999999 999999999", "8000 8000", "8001 8000"])
def test_no_memory_is_taken_for_what_a_header_claims(path, size):
    tracemalloc.start()
    refused(path, f"Pf\n{size}\n-1\n".encode() + bytes(100), "are expected|1 to 64000000 pixels")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_named_by_row_and_column(path, bad):
    values = DEPTH.copy()
    values[0, 2] = bad
    refused(path, pfm_bytes(values), "row 0, column 2: expected finite values")
    color = np.stack([DEPTH, DEPTH, values], -1)
    refused(path, pfm_bytes(color), f"row 0, column 2: expected finite values, got {bad:g}")


@pytest.mark.parametrize("bad", [-0.5, 1e-9, 1e9])
def test_values_that_cannot_be_depth_are_refused_in_depth_maps(path, bad):
    values = DEPTH.copy()
    values[2, 3] = bad
    refused(path, pfm_bytes(values), "row 2, column 3: expected depth", read_depth_pfm)
    np.testing.assert_array_equal(read_pfm(path), values)


def test_depth_maps_have_one_channel_and_the_size_of_the_image(path):
    refused(path, pfm_bytes(np.dstack([DEPTH] * 3)), "one channel", read_depth_pfm)
    refused(
        path, pfm_bytes(DEPTH), "depth map is 4x3, its image is 4x4",
        lambda path: read_depth_pfm(path, (4, 4)),
    )  # fmt: skip


@pytest.mark.parametrize("what", ["nothing", "folder"])
def test_what_is_no_file_is_named(tmp_path, what):
    path = tmp_path / "x.pfm"
    if what == "folder":
        path.mkdir()
    with pytest.raises(InputError, match=re.escape(f"{path}: cannot be read")):
        read_pfm(path)


@pytest.mark.parametrize("count", COUNTS)
def test_no_damaged_depth_map_is_accepted(path, count):
    taken = 0
    for data in mutants(path, pfm_bytes(DEPTH), count, seed=1):
        try:
            depth = read_depth_pfm(path, DEPTH.shape)
        except InputError as error:
            check_clear(error, path)
            continue
        taken += 1
        # what was taken is a whole map in the file's own words
        kind, size, scale, values = data.split(b"\n", 3)
        assert kind.strip() == b"Pf" and [int(x) for x in size.split()] == [4, 3]
        plain = np.frombuffer(values, "<f4" if float(scale) < 0 else ">f4")
        np.testing.assert_array_equal(depth, plain.reshape(3, 4)[::-1])
        assert ((depth == 0) | ((depth >= 1e-6) & (depth <= 1e6))).all()
    assert 0 < taken < count / 2


@pytest.mark.parametrize("shape", [(3, 5), (4, 2, 3), (1, 1)])
def test_what_is_written_is_read(path, shape):
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    write_pfm(path, values)
    np.testing.assert_array_equal(read_pfm(path), values)
    assert path.read_bytes() == pfm_bytes(values)


@pytest.mark.parametrize(
    "values", [np.ones(3), np.ones((2, 2, 2)), np.ones((0, 2)), [[np.nan]], [[1e39]]]
)
def test_what_is_no_map_is_not_written(path, values):
    with pytest.raises(ValueError, match="values: expected"):
        write_pfm(path, np.array(values))
    assert not path.exists()
