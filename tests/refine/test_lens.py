"""Lens distortion: found in generated photos, taken out of a scene, written and read back."""

from dataclasses import replace

import cv2
import numpy as np
import pycolmap
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lite3r_jax.data.lens import distort
from lite3r_jax.data.photos import SourcePhoto
from lite3r_jax.data.posed import PosedPhoto
from lite3r_jax.data.synthetic.source import SyntheticScenes
from lite3r_jax.errors import InputError
from lite3r_jax.exports import ExportOptions, read_npz, write
from lite3r_jax.refine import RefineOptions, refine
from lite3r_jax.refine.geometry_of_views import Cameras
from lite3r_jax.refine.straighten import distortion_of, straighten
from lite3r_jax.scene import StillPhoto
from tools.benchmark.refine import camera_errors, disturbed, scene_of

SIZE, RADIAL, ZOOM = 224, -0.12, 1.2
OPTIONS = RefineOptions(camera="SIMPLE_RADIAL")


def cameras_of(radial, focal=200.0, views=1):
    """Cameras in the origin."""
    k = np.array([[focal, 0, 111.5], [0, focal, 111.5], [0, 0, 1.0]])
    return Cameras(
        np.tile(np.eye(3, 4), (views, 1, 1)), np.tile(k, (views, 1, 1)), np.full(views, radial)
    )


@given(st.floats(-0.15, 0.4), st.integers(0, 10**6))
def test_rays_and_pixels_agree_and_are_opencv_s(radial, seed):
    cameras = cameras_of(radial)
    points = np.random.default_rng(seed).uniform([-1, -1, 2], [1, 1, 4], (20, 3))
    view = np.zeros(20, np.intp)
    pixels, z = cameras.project(view, points)
    np.testing.assert_allclose(cameras.rays(view, pixels) * z[:, None], points, atol=1e-8)
    x, y = distort(points[:, 0] / z, points[:, 1] / z, distortion_of(radial))
    np.testing.assert_allclose(pixels, np.stack([x, y], -1) * 200 + 111.5, atol=1e-9)


def test_what_distortion_would_fold_back_is_not_in_the_image():
    cameras = cameras_of(-0.2)
    pixels, _ = cameras.project(np.zeros(2, np.intp), np.array([[0.5, 0, 1], [3.0, 0, 1]]))
    assert 111 < pixels[0, 0] < 224 < 1e4 < pixels[1, 0]


@pytest.fixture(scope="module")
def taken():
    """(truth as pinholes, the same views through a lens with distortion and a longer focus)."""
    source = SyntheticScenes("test", 1, 4, samples=1)
    truth = scene_of(source.read(source.scenes[0], range(4), (SIZE, SIZE)))
    lens = truth.source_intrinsics.copy()
    lens[:, (0, 1), (0, 1)] *= ZOOM
    distorted = Cameras(truth.extrinsics.astype(np.float64), lens, np.full(4, RADIAL))
    u, v = np.meshgrid(np.arange(SIZE), np.arange(SIZE))
    pixels = np.stack([u.ravel(), v.ravel()], -1).astype(np.float64)
    images, depth = [], []
    for view in range(4):
        slopes = distorted.slopes(np.full(len(pixels), view), pixels)
        k = truth.source_intrinsics[view]
        place = (slopes * k[(0, 1), (0, 1)] + k[:2, 2]).astype(np.float32).reshape(SIZE, SIZE, 2)
        assert place.min() > 0 and place.max() < SIZE - 1
        images.append(cv2.remap(truth.images[view], place, None, cv2.INTER_CUBIC))
        depth.append(cv2.remap(truth.depth[view], place, None, cv2.INTER_NEAREST))
    images = np.array(images)
    photos = tuple(map(StillPhoto, images))
    same = replace(truth, images=images, depth=np.array(depth), photos=photos)
    same = replace(same, intrinsics=lens.astype(np.float32))
    return truth, same


@pytest.fixture(scope="module")
def refined(taken):
    return refine(disturbed(taken[1], 1, seed=0, depth_error=0.02), OPTIONS)


def test_the_distortion_is_found(taken, refined):
    assert refined.report["refined"], refined.report["reason"]
    assert refined.report["radial_distortion"] == pytest.approx([RADIAL, RADIAL], abs=0.02)
    truth = replace(taken[1], depth=refined.scene.depth)
    assert camera_errors(refined.scene, truth)["rotation"] < 0.5
    lenses = refined.scene.lenses
    np.testing.assert_allclose(lenses.intrinsics[:, 0, 0], taken[1].intrinsics[:, 0, 0], rtol=0.05)
    # without it the focal length takes its place
    plain = refine(disturbed(taken[1], 1, seed=0, depth_error=0.02), RefineOptions())
    assert camera_errors(plain.scene, truth)["focal"] > 0.08


def test_images_and_depth_are_those_of_pinholes(taken):
    truth, same = taken
    exact = Cameras(same.extrinsics.astype(np.float64), same.source_intrinsics, np.full(4, RADIAL))
    straight, pinholes = straighten(same, exact)
    assert pinholes.radial is None and straight.lenses is not None
    for view in range(4):
        # the renderer's image, looked up where the pinhole of the straight one sees it
        k, new = truth.source_intrinsics[view], pinholes.intrinsics[view]
        u, v = np.meshgrid(np.arange(SIZE), np.arange(SIZE))
        at = [
            ((a - new[i, 2]) / new[i, i] * k[i, i] + k[i, 2]).astype(np.float32)
            for i, a in enumerate((u, v))
        ]
        wanted = cv2.remap(truth.images[view], *at, cv2.INTER_CUBIC)
        off = np.abs(wanted.astype(int) - straight.images[view])[8:-8, 8:-8]
        assert np.median(off) <= 2 and off.mean() < 4
        depth = cv2.remap(truth.depth[view], *at, cv2.INTER_NEAREST)
        good = (depth > 0) & (straight.depth[view] > 0)
        assert good.mean() > 0.9
        assert np.median(np.abs(depth - straight.depth[view])[good] / depth[good]) < 0.005
        read = np.asarray(straight.photos[view].read())
        np.testing.assert_array_equal(read, straight.images[view])


@pytest.mark.parametrize("kind", ["colmap", "colmap_txt"])
def test_colmap_has_the_undistorted_set_and_the_model_of_the_photos(refined, tmp_path, kind):
    scene = refined.scene
    (path,) = write(scene, tmp_path, (kind,)).values()
    straight = pycolmap.Reconstruction(path / "sparse" / "0")
    taken = pycolmap.Reconstruction(path / "distorted" / "sparse" / "0")
    assert {camera.model.name for camera in straight.cameras.values()} == {"PINHOLE"}
    assert {camera.model.name for camera in taken.cameras.values()} == {"SIMPLE_RADIAL"}
    for camera in taken.cameras.values():
        assert camera.params[3] == pytest.approx(RADIAL, abs=0.02)
    for model in (straight, taken):
        assert model.num_points3D() == len(scene.tracks)
        off = [
            np.linalg.norm(image.project_point(model.points3D[p.point3D_id].xyz) - p.xy)
            for image in model.images.values()
            for p in image.points2D
            if p.has_point3D()
        ]
        assert len(off) == len(scene.tracks.track) and np.median(off) < 0.5
    assert {image.name for image in taken.images.values()} == set(scene.names)
    for view, image in enumerate(sorted(straight.images.values(), key=lambda i: i.image_id)):
        shown = cv2.imread(str(path / "images" / image.name))[..., ::-1]
        np.testing.assert_array_equal(shown, np.asarray(scene.photos[view].read()))


def test_an_npz_keeps_the_lenses(refined, tmp_path):
    write(refined.scene, tmp_path, ("npz",))
    lenses = read_npz(tmp_path / "predictions.npz").lenses
    np.testing.assert_array_equal(lenses.radial, refined.scene.lenses.radial)
    np.testing.assert_array_equal(lenses.intrinsics, refined.scene.lenses.intrinsics)
    with np.load(tmp_path / "predictions.npz") as file:
        arrays = {name: file[name] for name in file.files if name != "lens_radial"}
    np.savez(tmp_path / "broken.npz", **arrays)
    with pytest.raises(InputError, match="arrays missing or unknown: lens_radial"):
        read_npz(tmp_path / "broken.npz")


def test_images_of_the_network_have_no_model_of_photos(refined, tmp_path):
    (path,) = write(refined.scene, tmp_path, ("colmap",), ExportOptions(images="network")).values()
    assert not (path / "distorted").exists()


def test_settings_that_contradict_each_other_are_refused(taken):
    with pytest.raises(InputError, match=r"refine\.camera=SIMPLE_RADIAL: known cameras stay"):
        refine(taken[1], OPTIONS, known=True)
    with pytest.raises(InputError, match=r"with refine\.intrinsics=fixed nothing of a lens"):
        refine(taken[1], replace(OPTIONS, intrinsics="fixed"))


def test_known_cameras_with_distortion_are_honoured(taken):
    same = taken[1]
    exact = Cameras(same.extrinsics.astype(np.float64), same.source_intrinsics, np.full(4, RADIAL))
    straight, pinholes = straighten(same, exact)
    photos = []
    for view, name in enumerate(same.names):
        k = same.source_intrinsics[view]
        lens = (k[0, 0], k[1, 1], k[0, 2], k[1, 2])
        camera = PosedPhoto(name, (SIZE, SIZE), exact.extrinsics[view], lens, distortion_of(RADIAL))
        photos.append(SourcePhoto(name, same.images[view], name, camera=camera))
    intrinsics = pinholes.intrinsics.astype(np.float32)
    known = replace(straight, photos=tuple(photos), intrinsics=intrinsics, lenses=None)
    options = RefineOptions(rounds=1)
    result = refine(known, options, known=True)
    assert result.report["refined"] and result.report["error_pixels"]["after"] < 0.4
    np.testing.assert_array_equal(result.scene.extrinsics, known.extrinsics)
    # with photos that were not undistorted the same cameras fit worse
    distorted = refine(replace(known, photos=same.photos), options, known=True).report
    assert distorted["error_pixels"]["after"] > 1.2 * result.report["error_pixels"]["after"]
