"""Depth maps as images, read back by Pillow."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from lite3r_jax.exports import write
from lite3r_jax.exports.depth_maps import masked_depth


def read(path):
    with Image.open(path) as image:
        return image.mode, np.asarray(image)


def names(folder, suffix):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob(f"*{suffix}"))


def test_depth_is_masked_where_there_is_none(room):
    depth = masked_depth(room.scene)
    assert not depth[0, 3, 4:8].any()
    assert not depth[2][:, :14].any() and not depth[2][:, 70:].any()
    kept = depth > 0
    np.testing.assert_array_equal(depth[kept], room.scene.depth[kept])
    assert kept.sum() == room.scene.inside().sum() - 4


def test_pfm_holds_the_depth_upright(room, tmp_path):
    folder = write(room.scene, tmp_path, ["depth_pfm"])["depth_pfm"]
    files = ["a.jpg.pfm", "room/left one.pfm", "a.png.pfm", "room/plain.pfm"]
    assert names(folder, ".pfm") == sorted(files)
    for depth, name in zip(masked_depth(room.scene), files, strict=True):
        mode, values = read(folder / name)
        assert mode == "F"
        np.testing.assert_array_equal(values, depth)


def test_png16_holds_the_depth_to_half_a_step_of_one_scale(room, tmp_path):
    folder = write(room.scene, tmp_path, ["depth_png16"])["depth_png16"]
    description = json.loads((folder / "depth.json").read_text())
    assert [view["name"] for view in description["views"]] == list(room.scene.names)
    depths = masked_depth(room.scene)
    scale = description["scale"]
    assert scale == pytest.approx(depths.max() / 65535)
    highest = 0
    for view, depth, box in zip(
        description["views"], depths, room.scene.boxes.tolist(), strict=True
    ):
        mode, values = read(folder / view["file"])
        assert mode == "I;16" and view["photo_box"] == box
        assert np.abs(values * scale - depth).max() <= scale * 0.5001
        np.testing.assert_array_equal(values == 0, depth == 0)
        highest = max(highest, values.max())
    assert highest == 65535


def test_smallest_depth_is_not_taken_for_none(room, tmp_path):
    depth = room.scene.depth.copy()
    depth[1, 5, 5] = 1e-6
    scene = replace(room.scene, depth=depth)
    folder = write(scene, tmp_path, ["depth_png16"])["depth_png16"]
    assert read(folder / "room/left one.png")[1][5, 5] == 1


def test_color_runs_from_dark_far_to_bright_near_on_one_scale(room, tmp_path):
    folder = write(room.scene, tmp_path, ["depth_png"])["depth_png"]
    assert folder.name == "depth_color"
    files = ["a.jpg.png", "room/left one.png", "a.png", "room/plain.png"]
    assert names(folder, ".png") == sorted(files)
    depths = masked_depth(room.scene)
    luma, depth = [], []
    for s, name in enumerate(files):
        mode, rgb = read(folder / name)
        assert mode == "RGB" and rgb.shape[:2] == room.scene.size
        valid = depths[s] > 0
        assert (rgb[~valid] == 128).all()
        luma.append(rgb[valid] @ [0.2126, 0.7152, 0.0722])
        depth.append(depths[s][valid])
    luma, depth = np.concatenate(luma), np.concatenate(depth)
    order = np.argsort(-depth)  # of all views together, far to near
    assert (np.diff(luma[order]) > -1).all()
    assert luma[order][0] < 2 and luma[order][-1] > 230


def test_scene_without_depth_has_empty_maps(room, tmp_path):
    scene = replace(room.scene, depth=np.full_like(room.scene.depth, np.nan))
    paths = write(scene, tmp_path, ["depth_png", "depth_png16", "depth_pfm"])
    assert (read(paths["depth_png"] / "room/plain.png")[1] == 128).all()
    assert not read(paths["depth_png16"] / "room/plain.png")[1].any()
    assert not read(paths["depth_pfm"] / "room/plain.pfm")[1].any()


def test_flat_depth_has_one_color(room, tmp_path):
    scene = replace(room.scene, depth=np.full_like(room.scene.depth, 2))
    folder = write(scene, tmp_path, ["depth_png"])["depth_png"]
    assert len(np.unique(read(folder / "room/left one.png")[1].reshape(-1, 3), axis=0)) == 1
