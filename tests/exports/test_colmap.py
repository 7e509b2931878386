"""COLMAP models, read back by pycolmap, in the pixels of the images beside them."""

from dataclasses import replace

import numpy as np
import pycolmap
import pytest
from PIL import Image

from lite3r_jax.exports import ExportOptions, PointOptions, write

FORMATS = ("colmap", "colmap_txt")


@pytest.fixture(scope="module", params=["source", "network"])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def folders(room, kind, tmp_path_factory):
    out = tmp_path_factory.mktemp("colmap")
    options = ExportOptions(points=PointOptions(conf_percentile=0), images=kind, sparse_points=2000)
    return write(room.scene, out, FORMATS, options)


@pytest.fixture(scope="module", params=FORMATS)
def folder(folders, request):
    return folders[request.param]


@pytest.fixture(scope="module")
def model(folder):
    return pycolmap.Reconstruction(folder / "sparse" / "0")


def expected_pixels(room, kind, view, xyz):
    """Pixels in COLMAP's convention, from the truth."""
    pixels = room.project(view, xyz)
    return (pixels if kind == "source" else room.to_network(view, pixels)) + 0.5


def test_model_is_complete_and_consistent(model, room):
    assert model.num_images() == model.num_cameras() == model.num_reg_images() == 4
    assert model.num_points3D() == 2000
    assert [model.images[s + 1].camera_id for s in range(4)] == [1, 2, 3, 4]
    assert model.cameras[1].model == pycolmap.CameraModelId.PINHOLE


def test_files_are_of_the_form_asked_for(folder):
    suffix = ".txt" if folder.name == "colmap_txt" else ".bin"
    names = {path.name for path in (folder / "sparse" / "0").iterdir()}
    assert names == {f"{stem}{suffix}" for stem in ("cameras", "images", "points3D")}


def test_known_points_reproject_and_the_images_show_them(model, room, kind, folder):
    for s in range(4):
        image = model.images[s + 1]
        camera = model.cameras[image.camera_id]
        xyz = room.seen(s)
        pixels = np.array([image.project_point(x) for x in xyz])
        assert np.abs(pixels - expected_pixels(room, kind, s, xyz)).max() < 0.01
        with Image.open(folder / "images" / image.name) as picture:
            assert picture.size == (camera.width, camera.height)
            inside = ((pixels > 2) & (pixels < np.array(picture.size) - 2)).all(-1)
            assert inside.sum() > 20
            room.check_image(picture, pixels[inside] - 0.5, xyz[inside])


def test_every_point_is_where_its_view_observed_it(model, room):
    for point in model.points3D.values():
        (element,) = point.track.elements
        image = model.images[element.image_id]
        seen = image.points2D[element.point2D_idx]
        assert np.abs(image.project_point(point.xyz) - seen.xy).max() < 0.01
        assert np.abs(point.color - room.texture(point.xyz)).max() < 2
        assert point.error == 0
    observed = sorted(p.point3D_id for image in model.images.values() for p in image.points2D)
    assert observed == sorted(model.points3D)


def test_text_and_binary_hold_the_same_numbers(folders):
    one, two = (pycolmap.Reconstruction(folders[f] / "sparse" / "0") for f in FORMATS)
    for s in range(1, 5):
        assert one.images[s].name == two.images[s].name
        np.testing.assert_array_equal(one.cameras[s].params, two.cameras[s].params)
        np.testing.assert_array_equal(
            one.images[s].cam_from_world().matrix(), two.images[s].cam_from_world().matrix()
        )
        assert [tuple(p.xy) for p in one.images[s].points2D] == [
            tuple(p.xy) for p in two.images[s].points2D
        ]
    for i, point in one.points3D.items():
        np.testing.assert_array_equal(point.xyz, two.points3D[i].xyz)
        np.testing.assert_array_equal(point.color, two.points3D[i].color)


def test_upright_photos_are_copied_and_others_encoded(room, folders, kind):
    images = folders["colmap"] / "images"
    names = sorted(p.relative_to(images).as_posix() for p in images.rglob("*") if p.is_file())

    def read(name):
        with Image.open(images / name) as image:
            return image.format, np.asarray(image)

    if kind == "network":
        assert names == ["a.jpg.png", "a.png", "room/left_one.png", "room/plain.png"]
        np.testing.assert_array_equal(read("room/plain.png")[1], room.scene.images[3])
        return
    assert names == ["a.jpg", "a.png", "room/left_one.jpg", "room/plain.png"]
    for s, name in ((0, "a.jpg"), (2, "a.png")):
        assert (images / name).read_bytes() == room.scene.photos[s].file.read_bytes()
    assert read("room/left_one.jpg")[0] == "JPEG"
    np.testing.assert_array_equal(read("room/plain.png")[1], room.scene.photos[3].pixels)


def test_text_has_two_lines_per_image_even_without_points(room, tmp_path):
    depth = room.scene.depth.copy()
    depth[[1, 3]] = 0  # two views that observe nothing
    options = ExportOptions(images="network")
    paths = write(replace(room.scene, depth=depth), tmp_path, FORMATS, options)
    text = (paths["colmap_txt"] / "sparse/0/images.txt").read_text()
    lines = [line for line in text.split("\n")[:-1] if not line.startswith("#")]
    assert len(lines) == 8 and lines[3] == lines[7] == ""
    for path in paths.values():
        model = pycolmap.Reconstruction(path / "sparse" / "0")
        assert [model.images[s].num_points2D() > 0 for s in (1, 2, 3, 4)] == [
            True, False, True, False,
        ]  # fmt: skip
