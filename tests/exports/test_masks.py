"""Masks: which pixels they are, and that these leave points in every format, never depth maps."""

from dataclasses import replace

import numpy as np
import pycolmap
import pytest
import trimesh
from PIL import Image

from lite3r_jax.data.photos import SourcePhoto
from lite3r_jax.data.posed import PosedPhoto
from lite3r_jax.errors import InputError
from lite3r_jax.exports import FORMATS, ExportOptions, PointOptions, select_points, write
from lite3r_jax.exports.masks import background, check_masks, parse_masks, read_mask, read_masks
from tests.exports.conftest import DISTANCE, NORMAL, VIEWS
from tests.exports.test_page import read, read_points

EVERYTHING = PointOptions(conf_percentile=0, max_points=0)


def save(folder, name, mask, **more):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(mask, np.uint8) * 255).save(folder / name, **more)


def whole(size, value=True):
    return np.full(size[::-1], value)


@pytest.fixture
def without_first(room, tmp_path):
    """Masks that leave out the first view: one has the photo's name, others COLMAP's or .png."""
    folder = tmp_path / "masks"
    save(folder, "a.jpg", whole(VIEWS[0][1], False), quality=100)
    save(folder, "room/left one.jpg.png", whole(VIEWS[1][1]))
    save(folder, "a.png", whole(VIEWS[2][1]))
    save(folder, "room/plain.png", whole(VIEWS[3][1]))
    return str(folder)


def off_wall(xyz) -> float:
    return float(np.abs(np.asarray(xyz) @ NORMAL - DISTANCE).max())


def test_masked_pixels_leave_points_in_every_format_and_never_depth(room, without_first, tmp_path):
    depth = room.scene.depth.copy()
    depth[0] *= 0.5  # the points of the first view alone hang before the wall
    scene = replace(room.scene, depth=depth)
    plain = ExportOptions(points=EVERYTHING, images="network")
    masked = replace(plain, points=replace(EVERYTHING, mask_folder=without_first))
    before, after = tmp_path / "before", tmp_path / "after"
    first = write(scene, before, ["ply", "npz", "depth_pfm", "depth_png16", "depth_png"], plain)
    paths = write(scene, after, tuple(FORMATS), masked)

    to_world = np.linalg.inv(np.vstack([scene.extrinsics[0], [0, 0, 0, 1]]).astype(np.float64))
    in_first = trimesh.load(paths["glb"]).geometry["points"].vertices * [1, -1, -1]
    reader, data = read(paths["html"])
    models = [pycolmap.Reconstruction(paths["colmap"] / "sparse" / "0")]
    models += [pycolmap.Reconstruction(paths["colmap_txt"] / "sparse" / "0")]
    clouds = {
        "ply": trimesh.load(paths["ply"]).vertices,
        "glb": in_first @ to_world[:3, :3].T + to_world[:3, 3],
        "html": read_points(reader, data)[0],
        "colmap": [point.xyz for point in models[0].points3D.values()],
        "colmap_txt": [point.xyz for point in models[1].points3D.values()],
    }
    assert off_wall(trimesh.load(first["ply"]).vertices) > 0.5
    for name, xyz in clouds.items():
        assert len(xyz) > 5000 and off_wall(xyz) < 1e-3, name
    nerfstudio = trimesh.load(paths["nerfstudio"] / "points.ply")
    assert len(nerfstudio.vertices) == len(clouds["colmap"])
    for name in ("npz", "depth_pfm", "depth_png16", "depth_png"):
        old, new = first[name], paths[name]
        files = sorted(p for p in old.rglob("*") if p.is_file()) if old.is_dir() else [old]
        for file in files:
            other = new / file.relative_to(old) if old.is_dir() else new
            assert file.read_bytes() == other.read_bytes(), file


def test_a_mask_leaves_out_the_same_place_of_the_photo_in_every_view(room, tmp_path):
    for name, (width, height), _ in VIEWS:  # cropped, with borders, stretched
        mask = np.zeros((height, width), bool)
        mask[:, width // 2 :] = True
        save(tmp_path, f"{name}.png", mask)
    every = select_points(room.scene, EVERYTHING)
    kept = select_points(room.scene, replace(EVERYTHING, mask_folder=str(tmp_path)))
    for s, (_, (width, _), _) in enumerate(VIEWS):
        x = room.to_photo(s, kept.pixel[kept.view == s].astype(float))[:, 0] + 0.5
        before = room.to_photo(s, every.pixel[every.view == s].astype(float))[:, 0] + 0.5
        assert x.min() > width // 2 - 1e-6
        assert len(x) == (before > width // 2 - 1e-6).sum() > 1000


def test_masks_follow_photos_whose_lens_distortion_was_taken_out(room, tmp_path):
    size = (120, 90)
    camera = PosedPhoto(
        "a.png", size, np.eye(3, 4), (80.0, 80.0, 59.5, 44.5), (0.3, 0, 0, 0, 0, 0, 0, 0)
    )
    v, u = np.mgrid[0:90, 0:120]
    ring = np.abs(np.hypot(u - 59.5, v - 44.5) - 38) < 5
    pixels = np.where(ring, 0, 200).astype(np.uint8)[..., None].repeat(3, -1)
    photo = SourcePhoto("a.png", pixels, "a.png", camera=camera)
    seen = np.asarray(photo.read())
    scene = replace(
        room.scene, names=("a.png",), images=seen[None], photos=(photo,),
        depth=np.ones((1, 90, 120), np.float32), depth_conf=np.ones((1, 90, 120), np.float32),
        extrinsics=room.scene.extrinsics[:1], intrinsics=room.scene.intrinsics[:1],
        boxes=np.array([[0, 0, 120, 90]], np.float32), source_sizes=np.array([size]),
        world_points=None, world_points_conf=None,
    )  # fmt: skip
    save(tmp_path, "a.png", ~ring)
    masked, black = read_masks(tmp_path, scene)[0], seen.max(-1) < 100
    assert (masked != black).mean() < 0.01 < 0.05 < (ring != black).mean()


def test_values_mean_what_colmap_and_nerfstudio_mean(tmp_path):
    values = np.tile(np.array([0, 1, 127, 128, 255], np.uint8), (8, 8))
    Image.fromarray(values).save(tmp_path / "exact.png")
    got = read_mask(tmp_path / "exact.png", (40, 8), "a.jpg")
    np.testing.assert_array_equal(got, values == 0)
    blocks = np.repeat([0, 255], 16).astype(np.uint8)[None].repeat(16, 0)
    noisy = blocks + np.where(blocks == 0, 9, 0).astype(np.uint8)  # as JPEG changes a 0
    Image.fromarray(noisy).save(tmp_path / "lossy.jpg", quality=60)
    got = read_mask(tmp_path / "lossy.jpg", (32, 16), "a.jpg")
    np.testing.assert_array_equal(got, blocks == 0)


def test_masks_that_do_not_fit_are_named(room, without_first, tmp_path):
    def refused(match, folder=without_first):
        with pytest.raises(InputError, match=match) as caught:
            select_points(room.scene, PointOptions(mask_folder=str(folder)))
        assert "\n" not in str(caught.value)

    refused("nowhere: is not a folder", tmp_path / "nowhere")
    masks = tmp_path / "masks"
    (masks / "a.png").unlink()
    refused(r"masks: has no mask for a\.png; expected a\.png or a\.png\.png,")
    save(masks, "a.png", whole((112, 139)))
    refused(r"a\.png: is 112x139, expected 112x140, the size of a\.png")
    Image.new("RGBA", VIEWS[2][1]).save(masks / "a.png")
    refused(r"a\.png: has transparency")
    (masks / "a.png").write_bytes(b"no picture")
    refused(r"a\.png: is not an image")


def test_masks_are_checked_by_their_heads_before_anything_runs(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    photos = tmp_path / "photos"
    save(photos, "a.jpg", whole((40, 30)), exif=turned)  # upright it is 30x40
    sources = [SourcePhoto("a.jpg", photos / "a.jpg", "a.jpg")]
    save(tmp_path / "masks", "a.png", whole((30, 40)))
    check_masks(tmp_path / "masks", sources)
    save(tmp_path / "masks", "a.png", whole((40, 30)))
    with pytest.raises(InputError, match=r"a\.png: is 40x30, expected 30x40"):
        check_masks(tmp_path / "masks", sources)
    with pytest.raises(InputError, match=r"a\.jpg: is the photo"):
        check_masks(photos, sources)


def test_black_and_white_are_those_of_the_demo_of_vggt(room):
    images = np.full_like(room.scene.images, 128)
    images[0, 0, :4] = [[5, 5, 5], [5, 5, 6], [241, 241, 241], [255, 255, 240]]
    scene = replace(room.scene, images=images)
    assert np.argwhere(background(scene, "black")).tolist() == [[0, 0, 0]]
    assert np.argwhere(background(scene, "white")).tolist() == [[0, 0, 2]]


def test_the_percentile_is_of_what_masks_leave(room):
    images = np.full_like(room.scene.images, 128)
    images[:, :35] = 0
    conf = room.scene.depth_conf.copy()
    conf[:, :35] = 0.5  # the background is the least sure
    scene = replace(room.scene, images=images, depth_conf=conf)
    masked = select_points(scene, replace(EVERYTHING, mask="black"))
    assert masked.pixel[:, 1].min() == 35
    half = select_points(scene, replace(EVERYTHING, mask="black", conf_percentile=50))
    assert abs(len(half) / len(masked) - 0.5) < 0.01


def test_a_scene_that_is_all_background_says_so(room):
    scene = replace(room.scene, images=np.zeros_like(room.scene.images))
    with pytest.raises(InputError, match=r"points\.mask=black,sky mask every pixel"):
        select_points(scene, PointOptions(mask="black,sky"))


def test_names_of_masks_are_checked():
    assert parse_masks(" sky, edges,sky,") == ("sky", "edges")
    assert parse_masks("") == ()
    with pytest.raises(InputError, match=r"points\.mask: unknown: ski; .*did you mean 'sky'"):
        PointOptions(mask="black,ski")
