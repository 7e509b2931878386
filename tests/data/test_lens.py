"""Lens distortion: the model is COLMAP's, and photos come out as a pinhole camera sees them."""

import json

import numpy as np
import pycolmap
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lite3r_jax.data.captures import Capture
from lite3r_jax.data.known_cameras import read_known_cameras
from lite3r_jax.data.lens import distort, pinhole_intrinsics, undistort
from lite3r_jax.data.photos import find_scenes, load_photos
from lite3r_jax.errors import InputError

WIDTH, HEIGHT = 140, 112
LENSES = {
    "SIMPLE_RADIAL": [120, 70, 56, -0.25],
    "RADIAL": [120, 72, 54, 0.3, -0.05],
    "OPENCV": [120, 126, 68, 57, -0.2, 0.05, 0.004, -0.003],
    "FULL_OPENCV": [120, 126, 68, 57, -0.2, 0.05, 0.004, -0.003, 0.01, 0.02, -0.01, 0.003],
}


def color(x, y):
    """What is seen along the ray (x, y, 1): smooth, and different in every direction."""
    waves = np.sin(9 * x + 2 * y), np.cos(8 * y - x), np.sin(6 * (x + y))
    return 127.5 + 100 * np.stack(waves, -1)


def photo(camera) -> np.ndarray:
    """What a camera of COLMAP sees of `color`, by COLMAP's own unprojection."""
    u, v = np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5)
    rays = camera.cam_from_img(np.stack([u, v], -1).reshape(-1, 2)).reshape(HEIGHT, WIDTH, 2)
    return np.rint(color(rays[..., 0], rays[..., 1])).astype(np.uint8)


def camera_of(model):
    return pycolmap.Camera(
        camera_id=1, model=getattr(pycolmap.CameraModelId, model), width=WIDTH, height=HEIGHT,
        params=LENSES[model],
    )  # fmt: skip


def seen(k, size=(HEIGHT, WIDTH)):
    """What a pinhole camera sees of `color`."""
    u, v = np.meshgrid(np.arange(size[1]), np.arange(size[0]))
    return color((u - k[0, 2]) / k[0, 0], (v - k[1, 2]) / k[1, 1])


def model_in(root, model):
    """A capture with one photo of such a camera, written by COLMAP."""
    camera = camera_of(model)
    (root / "images").mkdir(parents=True)
    (root / "sparse" / "0").mkdir(parents=True)
    Image.fromarray(photo(camera)).save(root / "images" / "a.png")
    rebuilt = pycolmap.Reconstruction()
    rebuilt.add_camera_with_trivial_rig(camera)
    image = pycolmap.Image(name="a.png", camera_id=1, image_id=1)
    rebuilt.add_image_with_trivial_frame(image, pycolmap.Rigid3d())
    rebuilt.write_binary(root / "sparse" / "0")
    return root


@pytest.mark.parametrize("model", LENSES)
def test_the_model_is_that_of_colmap(tmp_path, model):
    (read,) = Capture(model_in(tmp_path, model)).photos
    assert read.distortion is not None
    x, y = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 200))
    theirs = camera_of(model).img_from_cam(np.stack([x, y, np.ones_like(x)], -1))
    u, v = distort(x, y, read.distortion)
    fx, fy, cx, cy = read.lens
    ours = np.stack([fx * u + cx + 0.5, fy * v + cy + 0.5], -1)
    np.testing.assert_allclose(ours, theirs, atol=1e-9)


@pytest.mark.parametrize("model", LENSES)
def test_photos_of_a_capture_come_out_as_a_pinhole_sees_them(tmp_path, model):
    capture = Capture(model_in(tmp_path, model))
    frame = capture.read_frame(capture.scenes[0], 0)
    assert frame.image.size == (WIDTH, HEIGHT)
    off = np.abs(np.asarray(frame.image, float) - seen(frame.intrinsics))
    assert off.mean() < 0.5 and off.max() < 4
    straight = np.abs(photo(camera_of(model)) - seen(frame.intrinsics))
    assert straight.max() > 20, "without it they are off"


def test_depth_is_taken_from_the_nearest_pixel_at_its_own_resolution(tmp_path):
    root = model_in(tmp_path, "OPENCV")
    (tmp_path / "depth").mkdir()
    camera = camera_of("OPENCV")
    u, v = np.meshgrid(np.arange(0, WIDTH, 2) + 1.0, np.arange(0, HEIGHT, 2) + 1.0)
    rays = camera.cam_from_img(np.stack([u, v], -1).reshape(-1, 2)).reshape(*u.shape, 2)
    near = rays[..., 0] < 0.05
    steps = np.where(near, 2000, 3000).astype(np.uint16)
    Image.fromarray(steps).save(tmp_path / "depth" / "a.png")
    (tmp_path / "depth" / "depth.json").write_text(json.dumps({"scale": 0.001, "views": []}))
    capture = Capture(root, depth=tmp_path / "depth")
    frame = capture.read_frame(capture.scenes[0], 0)
    assert set(np.unique(frame.depth)) == {np.float32(2), np.float32(3)}
    k = frame.intrinsics
    x = ((np.arange(0, WIDTH, 2) + 0.5) - k[0, 2]) / k[0, 0]
    wrong = (frame.depth == 2) != (x < 0.05)
    assert wrong.any(0).sum() <= 1, "only in the column of the edge"


def test_known_cameras_undistort_the_photos_that_they_are_for(tmp_path):
    root = model_in(tmp_path, "OPENCV")
    (scene,) = find_scenes(str(root / "images"))
    known = read_known_cameras(root).of(scene.photos)
    photos = known.photographed(scene.photos)
    images, boxes = load_photos(photos, "crop", WIDTH)
    _, (k,) = known.matrices(photos, boxes[:, 4:].astype(int))
    assert images.shape[1:3] == (HEIGHT, WIDTH)
    assert np.abs(images[0] * 255 - seen(k)).mean() < 0.5
    assert photos[0].upright_file() is None and scene.photos[0].upright_file() is not None


def test_a_transforms_json_with_distortion_is_read(tmp_path):
    camera, (fx, fy, cx, cy, k1, k2, p1, p2) = camera_of("OPENCV"), LENSES["OPENCV"]
    Image.fromarray(photo(camera)).save(tmp_path / "a.png")
    (tmp_path / "transforms.json").write_text(json.dumps({
        "fl_x": fx, "fl_y": fy, "cx": cx, "cy": cy, "w": WIDTH, "h": HEIGHT,
        "camera_model": "OPENCV", "k1": k1, "k2": k2, "p1": p1, "p2": p2,
        "frames": [{"file_path": "a.png", "transform_matrix": np.eye(4).tolist()}],
    }))  # fmt: skip
    frame = Capture(tmp_path).read_frame("", 0)
    assert np.abs(np.asarray(frame.image, float) - seen(frame.intrinsics)).mean() < 0.5


coefficient = st.floats(-0.4, 0.4)


@settings(max_examples=60, deadline=None)
@given(st.tuples(*[coefficient] * 2, *[st.floats(-0.02, 0.02)] * 2, *[coefficient] * 4))
def test_a_pinhole_photo_lies_on_the_distorted_one_or_is_refused(distortion):
    k = np.array([[120.0, 0, 65], [0, 110, 60], [0, 0, 1]])
    try:
        pinhole = pinhole_intrinsics(k, distortion, (WIDTH, HEIGHT), "a.png")
    except InputError as error:
        assert str(error).startswith("a.png: lens distortion ")
        return
    u, v = np.meshgrid([-0.5, WIDTH / 2, WIDTH - 0.5], [-0.5, HEIGHT / 2, HEIGHT - 0.5])
    x, y = distort((u - pinhole[0, 2]) / pinhole[0, 0], (v - pinhole[1, 2]) / pinhole[1, 1],
                   distortion)  # fmt: skip
    u, v = k[0, 0] * x + k[0, 2], k[1, 1] * y + k[1, 2]
    assert u.min() > -0.51 and u.max() < WIDTH - 0.49
    assert v.min() > -0.51 and v.max() < HEIGHT - 0.49


def test_distortion_that_folds_a_photo_is_refused():
    k = np.array([[60.0, 0, 70], [0, 60, 56], [0, 0, 1]])
    with pytest.raises(InputError, match=r"b: lens distortion -0.9 folds a photo of 140x112"):
        pinhole_intrinsics(k, (-0.9, *[0.0] * 7), (WIDTH, HEIGHT), "b")


def test_a_photo_that_is_too_large_for_opencv_is_refused():
    k = np.eye(3)
    with pytest.raises(InputError, match="32001x1 pixels"):
        undistort(np.zeros((1, 32001), np.uint8), k, (0.1, *[0.0] * 7), k, "c")
