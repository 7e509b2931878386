"""nerfstudio data, read back with json, Pillow and trimesh after nerfstudio's conventions."""

import json

import numpy as np
import pytest
import trimesh
from PIL import Image

from lite3r_jax.errors import InputError
from lite3r_jax.exports import ExportOptions, PointOptions, write


@pytest.fixture(scope="module", params=["source", "network"])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def folder(room, kind, tmp_path_factory):
    out = tmp_path_factory.mktemp("nerfstudio")
    options = ExportOptions(points=PointOptions(conf_percentile=0), images=kind)
    return write(room.scene, out, ["nerfstudio"], options)["nerfstudio"]


@pytest.fixture(scope="module")
def transforms(folder):
    return json.loads((folder / "transforms.json").read_text())


def project(frame, xyz):
    """Pixels with centers at halves, through an OpenGL camera."""
    pose = np.array(frame["transform_matrix"])
    assert pose.shape == (4, 4)
    x, y, z = ((xyz - pose[:3, 3]) @ pose[:3, :3]).T
    assert (z < 0).all()
    u = frame["fl_x"] * x / -z + frame["cx"]
    v = -frame["fl_y"] * y / -z + frame["cy"]
    return np.stack([u, v], -1)


def true_depth(room, s):
    return room.wall(s, room.to_photo(s, grid(room)))[1]


def grid(room):
    height, width = room.scene.size
    return np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).astype(float)


def to_image(room, kind, s, pixels):
    return pixels if kind == "source" else room.to_network(s, pixels)


def test_known_points_reproject_and_the_images_show_them(room, kind, folder, transforms):
    assert len(transforms["frames"]) == 4
    for s, frame in enumerate(transforms["frames"]):
        xyz = room.seen(s)
        pixels = project(frame, xyz)
        wanted = to_image(room, kind, s, room.project(s, xyz)) + 0.5
        assert np.abs(pixels - wanted).max() < 0.01
        with Image.open(folder / frame["file_path"]) as image:
            assert image.size == (frame["w"], frame["h"])
            inside = ((pixels > 2) & (pixels < np.array(image.size) - 2)).all(-1)
            assert inside.sum() > 20
            room.check_image(image, pixels[inside] - 0.5, xyz[inside])


def test_depth_stretched_to_the_image_is_that_of_its_pixels(room, kind, folder, transforms):
    step = transforms["depth_unit_scale_factor"]
    assert step == 0.001
    for s, frame in enumerate(transforms["frames"]):
        with Image.open(folder / frame["depth_file_path"]) as image:
            assert image.mode == "I;16"
            # as nerfstudio does: steps to units, then nearest, to the size of the image
            depth = np.asarray(image) * step
        rows = np.arange(frame["h"]) * depth.shape[0] // frame["h"]
        columns = np.arange(frame["w"]) * depth.shape[1] // frame["w"]
        depth = depth[np.ix_(rows, columns)]
        v, u = np.nonzero(depth)
        assert len(u) > 0.5 * depth.size
        pixels = np.stack([u, v], -1).astype(float)
        if kind == "network":
            pixels = room.to_photo(s, pixels)
        _, truth = room.wall(s, pixels)
        # nearest may be off by a pixel of the network in each direction, not by more
        slopes = [np.abs(np.diff(true_depth(room, s), axis=axis)).max() for axis in (0, 1)]
        assert np.abs(depth[v, u] - truth).max() < sum(slopes) + step


def test_depth_is_zero_where_there_is_none(folder, transforms, kind):
    with Image.open(folder / transforms["frames"][0]["depth_file_path"]) as image:
        depth = np.asarray(image)
    assert not depth[3, 4:8].any() and (depth == 0).sum() == 4
    with Image.open(folder / transforms["frames"][1]["depth_file_path"]) as image:
        rows = np.asarray(image).any(1)
    # a photo of which the network saw the middle rows only
    expected = [False] * 20 + [True] * 70 + [False] * 20 if kind == "source" else [True] * 70
    assert rows.tolist() == expected


def test_points_are_in_the_world_of_the_frames(room, folder, transforms):
    cloud = trimesh.load(folder / transforms["ply_file_path"])
    xyz = np.asarray(cloud.vertices)
    assert len(xyz) > 1000
    assert np.abs(cloud.colors[:, :3] - room.texture(xyz)).max() < 2


def test_depth_beyond_the_steps_is_left_out(room, tmp_path):
    options = ExportOptions(images="network", depth_step=4 / 65535)
    folder = write(room.scene, tmp_path, ["nerfstudio"], options)["nerfstudio"]
    with Image.open(folder / "depth" / "room" / "left_one.png") as image:
        depth = np.asarray(image)
    far = room.scene.depth[1] > 4
    assert far.any() and not far.all()
    assert not depth[far].any() and depth[~far].all()


def test_step_that_holds_no_depth_is_refused(room, tmp_path):
    with pytest.raises(InputError, match=r"export\.depth_step: .* the largest is 1?\d\."):
        write(room.scene, tmp_path, ["nerfstudio"], ExportOptions(depth_step=1e-6))
    assert list(tmp_path.iterdir()) == []
