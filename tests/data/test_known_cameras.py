"""Known cameras: what files say, which photo they are of, and what is refused."""

import io
import json
import re
import tracemalloc
import warnings
import zipfile
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from lite3r_jax.data.images import Mode, load_images_with_boxes
from lite3r_jax.data.known_cameras import (
    known_cameras,
    network_intrinsics,
    read_known_cameras,
)
from lite3r_jax.errors import InputError
from lite3r_jax.exports import write
from tests.data.world import scene_of, views


def photos(*names):
    array = np.zeros((2, 2, 3), np.uint8)
    return [SimpleNamespace(name=name, label=name, source=array) for name in names]


def arrays(count=2):
    poses = np.tile(np.eye(4), (count, 1, 1))
    poses[:, 0, 3] = np.arange(count)
    return poses, np.tile(np.array([[90.0, 0, 49.5], [0, 90, 37], [0, 0, 1]]), (count, 1, 1))


def refused(*given, **more):
    with pytest.raises(InputError) as error:
        known_cameras(*given, **more)
    assert "\n" not in str(error.value)
    return str(error.value)


# -- where they come from --------------------------------------------------------------------------


def pose(*center):
    """World-to-camera of a camera there, looking along +z."""
    return np.concatenate([np.eye(3), -np.array(center, float)[:, None]], -1)


def write_colmap(folder):
    folder.mkdir(parents=True)
    (folder / "cameras.txt").write_text("1 PINHOLE 84 70 60 61 42 36\n")
    images = ("1 1 0 0 0 -1 -2 -3 1 a.png", "2 1 0 0 0 -4 -5 -6 1 b.png")
    (folder / "images.txt").write_text("\n\n".join(images) + "\n\n")


def write_transforms(path):
    def frame(name, x, y, z):
        matrix = [[1, 0, 0, x], [0, -1, 0, y], [0, 0, -1, z], [0, 0, 0, 1]]
        return {"file_path": f"./images/{name}", "transform_matrix": matrix}

    lens = {"w": 84, "h": 70, "fl_x": 60, "fl_y": 61, "cx": 42, "cy": 36}
    frames = [frame("a.png", 1, 2, 3), frame("b.png", 4, 5, 6)]
    path.write_text(json.dumps(lens | {"frames": frames}))


@pytest.mark.parametrize("kind", ["garden/sparse/0", "garden", "transforms.json", "nerf"])
def test_cameras_of_other_programs_are_brought_to_one_convention(tmp_path, kind):
    """World-to-camera, axes of OpenCV, pixel centers at integers."""
    write_colmap(tmp_path / "garden" / "sparse" / "0")
    (tmp_path / "nerf").mkdir()
    for path in (tmp_path / "transforms.json", tmp_path / "nerf" / "transforms.json"):
        write_transforms(path)
    given = photos("b.png", "a.png")
    known = read_known_cameras(tmp_path / kind).of(given)
    extrinsics, k = known.matrices(given, np.array([[84, 70]] * 2))
    np.testing.assert_allclose(extrinsics, [pose(4, 5, 6), pose(1, 2, 3)])
    np.testing.assert_allclose(k, np.array([[[60, 0, 41.5], [0, 61, 35.5], [0, 0, 1]]] * 2))
    with pytest.raises(InputError, match=r"a.png: is 80x70, its camera in .* is for 84x70"):
        known.matrices(given, np.array([[84, 70], [80, 70]]))


def test_results_of_this_package_give_their_cameras_back(tmp_path):
    scene = scene_of(views(2, (42, 56)))
    scene = replace(
        scene,
        boxes=np.tile(np.array([3, -4, 59, 46], np.float32), (2, 1)),
        source_sizes=np.array([[560, 500]] * 2),
    )
    path = write(scene, tmp_path, ("npz",))["npz"]
    given = photos(*scene.names)
    known = read_known_cameras(path).of(given)
    assert known.upright, "they are those of the photos as EXIF turns them"
    extrinsics, k = known.matrices(given, scene.source_sizes)
    np.testing.assert_array_equal(extrinsics, scene.extrinsics)
    np.testing.assert_array_equal(k, scene.source_intrinsics)
    boxes = np.concatenate([scene.boxes, scene.source_sizes], -1)
    back = network_intrinsics(k, boxes, scene.size)
    np.testing.assert_allclose(back, scene.intrinsics, rtol=1e-6)


def test_an_npz_of_ones_own_is_read(tmp_path):
    poses, k = arrays()
    path = tmp_path / "cameras.npz"
    np.savez(path, extrinsics=poses[:, :3], intrinsics=k, names=["b.png", "a.png"])
    known = read_known_cameras(path).of(photos("a.png", "b.png"))
    extrinsics, intrinsics = known.matrices(photos("a.png", "b.png"), np.array([[100, 75]] * 2))
    np.testing.assert_array_equal(extrinsics, poses[::-1, :3])
    np.testing.assert_array_equal(intrinsics, k)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extrinsics": None}, "has no extrinsics; add them"),
        ({"intrinsics": None, "extrinsics": None}, "has no extrinsics and no intrinsics"),
        ({"c2w": np.eye(4)}, r"arrays c2w are not known; expected extrinsics \(world-to-camera\)"),
        ({"depth": np.ones(3)}, "arrays depth are not known; .* in pixels of the photos"),
        ({"names": np.array([1, 2])}, "names: expected a list of texts"),
        ({"names": np.array(["a", "a"])}, "names: expected 2 different ones"),
        ({"names": np.array(["a", "../b"])}, "names: expected the name of a file"),
        ({"names": np.array([{}, {}])}, r"names is \|O \[2\], expected numbers or texts"),
        ({"intrinsics": np.array(["a", "b"])}, "intrinsics: expected numbers"),
        ({"sizes": np.ones((2, 2)) * 0.5}, "sizes: expected .* widths and heights"),
    ],
)
def test_an_npz_that_is_none_is_refused(tmp_path, change, message):
    poses, k = arrays()
    path = tmp_path / "cameras.npz"
    values = {"extrinsics": poses, "intrinsics": k} | change
    np.savez(path, **{key: value for key, value in values.items() if value is not None})
    with pytest.raises(InputError, match=message) as error:
        read_known_cameras(path)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


def test_an_npz_bomb_is_refused_before_it_is_unpacked(tmp_path):
    """A megabyte of zeros unpacks to a gigabyte of cameras."""
    path = tmp_path / "bomb.npz"
    head = io.BytesIO()
    shape = {"descr": "<f8", "fortran_order": False, "shape": (1 << 24, 3, 4)}
    np.lib.format.write_array_header_1_0(head, shape)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("extrinsics.npy", "intrinsics.npy"):
            archive.writestr(name, head.getvalue() + bytes(1 << 20))
    tracemalloc.start()
    with pytest.raises(InputError, match=r"bomb\.npz: extrinsics is .* at most 134,217,728 bytes"):
        read_known_cameras(path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_an_array_that_is_there_twice_is_refused(tmp_path):
    path = tmp_path / "twice.npz"
    np.savez(path, extrinsics=np.eye(4)[None], intrinsics=np.eye(3)[None])
    with zipfile.ZipFile(path, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile notices too
        archive.writestr("extrinsics.npy", archive.read("extrinsics.npy"))
    with pytest.raises(InputError, match="holds the array 'extrinsics' twice"):
        read_known_cameras(path)


@pytest.mark.parametrize("header", [b"{'descr': '<f8', 'shape': (", b"(", b"{'a'", b"\xff" * 40])
def test_a_cut_header_is_no_traceback(tmp_path, header):
    path = tmp_path / "cut.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("extrinsics.npy", "intrinsics.npy"):
            length = len(header).to_bytes(2, "little")
            archive.writestr(name, b"\x93NUMPY\x01\x00" + length + header)
    with pytest.raises(InputError, match=r"cut\.npz: cannot be read as NPZ"):
        read_known_cameras(path)


def test_what_holds_no_cameras_is_refused(tmp_path):
    with pytest.raises(InputError, match="nowhere: no such file or folder; give an NPZ"):
        read_known_cameras(tmp_path / "nowhere")
    with pytest.raises(InputError, match="has no cameras; expected one COLMAP model"):
        read_known_cameras(tmp_path)
    for name, message in (("a.txt", "expected cameras in a .npz"), ("a.npz", "cannot be read")):
        (tmp_path / name).write_bytes(b"nothing of use")
        with pytest.raises(InputError, match=f"{name}: {message}"):
            read_known_cameras(tmp_path / name)


# -- whose they are --------------------------------------------------------------------------------


def names(known):
    return [camera.name for camera in known.cameras]


def test_names_are_found_whatever_folders_stand_before_them():
    given = known_cameras(*arrays(3), ["images/b.png", "images/a.png", "images/c.png"])
    assert names(given.of(photos("a.png", "b.png"))) == ["images/a.png", "images/b.png"]
    given = known_cameras(*arrays(2), ["a 1.png", "a_2.png"])
    assert names(given.of(photos("in/a 2.png", "in/a 1.png"))) == ["a_2.png", "a 1.png"]
    given = known_cameras(*arrays(2), ["left/1.png", "right/1.png"])
    assert names(given.of(photos("x/right/1.png", "x/left/1.png"))) == ["right/1.png", "left/1.png"]
    given = known_cameras(*arrays(2), ["1.png", "sub/1.png"])
    assert names(given.of(photos("1.png", "sub/1.png"))) == ["1.png", "sub/1.png"]


@pytest.mark.parametrize(
    ("cameras", "given", "message"),
    [
        (["a.png"], ["a.png", "b.png", "c.png"], r"has no camera for b.png, c.png, but 1 others"),
        (["a.jpg"], ["a.png"], "has no camera for a.png"),
        (["1/a.png", "2/a.png"], ["a.png"], "1/a.png and 2/a.png could both be a.png"),
        (["a.png"], ["1/a.png", "2/a.png"], "the camera a.png fits 1/a.png and 2/a.png"),
        (None, ["a.png"], "has 2 cameras without names for 1 photos"),
    ],
)
def test_photos_and_cameras_that_do_not_match_are_refused(cameras, given, message):
    known = known_cameras(*arrays(len(cameras or [1, 2])), cameras, source="c.npz")
    with pytest.raises(InputError, match=f"c.npz: {message}"):
        known.of(photos(*given))


# -- what is no camera -----------------------------------------------------------------------------


def changed(which, index, value):
    given = [array.copy() for array in arrays()]
    given[which][(1, *index)] = value
    return given


@pytest.mark.parametrize(
    ("which", "index", "value", "message"),
    [
        (0, (0, 3), np.nan, "holds NaN or infinite values"),
        (1, (0, 0), np.inf, "holds NaN or infinite values"),
        (0, (3, 0), 1, "last row of its extrinsics is not 0 0 0 1; expected world-to-camera"),
        (0, (0, 0), 2, "its extrinsics hold no rotation"),
        (0, (slice(3), slice(3)), 2.5 * np.eye(3), "hold a rotation times 2.5"),
        (0, (0, 0), -1, "mirror image .determinant -1."),
        (1, (0, 0), 0, "focal lengths 0 and 90; expected positive ones"),
        (1, (1, 1), -5, "focal lengths 90 and -5"),
        (1, (2, 2), 2, "expected intrinsics fx 0 cx"),
        (1, (2, 0), 49.5, "expected intrinsics fx 0 cx .* transpose them"),
        (1, (0, 1), 3, "its pixels are skewed"),
    ],
)
def test_matrices_that_are_no_camera_are_refused_by_name(which, index, value, message):
    given = changed(which, index, value)
    error = refused(*given, names=["a.png", "b.png"], source="c.npz")
    assert error.startswith("c.npz: camera b.png: ")
    assert re.search(message, error)


def test_transposed_poses_are_called_so():
    poses, k = arrays()
    assert "0 0 0 1 (they are transposed)" in refused(poses.swapaxes(1, 2), k)


def test_arrays_of_other_shapes_are_refused():
    poses, k = arrays()
    assert "extrinsics are [2, 2, 4], expected [S, 3, 4] or [S, 4, 4]" in refused(poses[:, :2], k)
    assert "intrinsics are [1, 3, 3], expected [2, 3, 3]" in refused(poses, k[:1])
    assert "extrinsics are [0, 4, 4]" in refused(poses[:0], k[:0])
    assert "intrinsics: expected numbers" in refused(poses, k.astype(str))


# -- their photos ----------------------------------------------------------------------------------


def matrices(k, size, **more):
    poses = arrays(1)[0]
    known = known_cameras(poses, k[None], source="c.npz", **more)
    return known.matrices(photos("a.png"), np.array([size]))


def test_intrinsics_of_another_size_are_refused():
    k = arrays(1)[1][0]
    matrices(k, (100, 75))
    off = k + [[0, 0, 30], [0, 0, -9], [0, 0, 0]]
    matrices(off, (100, 75))  # a principal point off the middle
    message = "a.png: is {}x{}, but its camera in c.npz .* not of a resized one"
    for size in ((200, 150), (50, 38), (90, 36)):
        with pytest.raises(InputError, match=message.format(*size)):
            matrices(k, size)
    with pytest.raises(InputError, match=r"sees 178 degrees; .* not divided by its"):
        matrices(k / [[100], [75], [1]], (100, 75))
    matrices(off * [[0.5], [0.5], [1]], (100, 75), sizes=[[100, 75]])  # who says so, knows
    with pytest.raises(InputError, match=r"a.png: is 100x75, its camera in c.npz is for 50x38"):
        matrices(k, (100, 75), sizes=[[50, 38]])


def test_cameras_beyond_all_bounds_are_refused():
    poses, k = arrays(1)
    poses[0, 2, 3] = 1e30
    with pytest.raises(InputError, match="holds a number as large as 1e\\+30"):
        known_cameras(poses, k).matrices(photos("a.png"), np.array([[100, 75]]))


def test_photos_that_are_stored_turned_are_refused(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3
    path = tmp_path / "a.jpg"
    Image.new("RGB", (100, 75)).save(path, exif=exif)
    turned = [SimpleNamespace(name="a.jpg", label=str(path), source=path)]
    known = known_cameras(*arrays(1))
    with pytest.raises(InputError, match=r"a.jpg: is stored turned \(EXIF orientation\)"):
        known.matrices(turned, np.array([[100, 75]]))
    replace(known, upright=True).matrices(turned, np.array([[100, 75]]))


@pytest.mark.parametrize("mode", Mode.__args__)
def test_a_projected_point_stays_on_its_pixel(mode):
    """A blob is painted where the camera sees a point; the network image has it there as well."""
    size = 98 * 98 if mode == "pixel_limit" else 98
    point = np.array([0.1, -0.15, 1.0])
    shapes = [(201, 150), (150, 201)]
    wide, tall = [[130.0, 0, 99], [0, 120, 80]], [[120.0, 0, 70], [0, 130, 95]]
    k = np.array([[*wide, [0, 0, 1]], [*tall, [0, 0, 1]]])
    given = []
    for (width, height), camera in zip(shapes, k, strict=True):
        u, v, _ = camera @ point
        y, x = np.mgrid[:height, :width]
        blob = np.exp(-((x - u) ** 2 + (y - v) ** 2) / 2 / 6**2)
        given.append(np.rint(255 * blob[..., None].repeat(3, 2)).astype(np.uint8))
    images, boxes = load_images_with_boxes(given, mode, size)
    height, width = images.shape[1:3]
    fitted = network_intrinsics(k, boxes, (height, width))
    for image, camera in zip(images, fitted, strict=True):
        u, v, _ = camera @ point
        y, x = np.mgrid[:height, :width]
        near = (np.hypot(x - u, y - v) < 12) * image[..., 0]
        centroid = np.array([(near * x).sum(), (near * y).sum()]) / near.sum()
        np.testing.assert_allclose(centroid, [u, v], atol=0.05)
