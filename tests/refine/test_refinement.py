"""Refinement of disturbed cameras on generated views with exact truth, and what it refuses."""

import re
import sys
from dataclasses import replace

import numpy as np
import pycolmap
import pytest

from lite3r_jax.data.synthetic.source import SyntheticScenes
from lite3r_jax.errors import InputError
from lite3r_jax.exports import ExportOptions, read_npz, write
from lite3r_jax.refine import RefineOptions, refine, refinement
from lite3r_jax.refine.geometry_of_views import Cameras
from lite3r_jax.scene import StillPhoto
from tools.benchmark.refine import camera_errors, disturbed, scene_of

SIZE = (160, 160)
OPTIONS = RefineOptions(corners=300)


@pytest.fixture(scope="module")
def truth():
    """Four generated views with exact cameras and depth."""
    source = SyntheticScenes("test", 1, 4)
    return scene_of(source.read(source.scenes[0], range(4), SIZE))


@pytest.fixture(scope="module")
def start(truth):
    """What a model might have predicted; depth of each view has a scale of its own as well."""
    scales = np.array([1, 1.1, 0.9, 1.05], np.float32)
    scene = disturbed(truth, 2, seed=0)
    return replace(scene, depth=scene.depth * scales[:, None, None])


@pytest.fixture(scope="module")
def refined(start):
    return refine(start, OPTIONS)


def subset(scene, views):
    """Some views of a scene."""
    arrays = {
        name: getattr(scene, name)[views]
        for name in (
            "images", "depth", "depth_conf", "extrinsics", "intrinsics", "boxes", "source_sizes",
        )
    }  # fmt: skip
    names, photos = ([values[v] for v in views] for values in (scene.names, scene.photos))
    return replace(scene, names=tuple(names), photos=tuple(photos), **arrays)


def test_cameras_come_back_and_the_report_says_by_how_much(truth, start, refined):
    before, after = camera_errors(start, truth), camera_errors(refined.scene, truth)
    assert before["rotation"] > 1 and after["rotation"] < 0.6
    assert after["direction"] < before["direction"]
    assert before["focal"] == pytest.approx(0.05, abs=1e-3) and after["focal"] < 0.03
    report = refined.report
    assert report["refined"] and report["reason"] == "" and report["not_tied"] == []
    error, within = report["error_pixels"], report["within_limit"]
    assert error["before"] > 2 * error["after"] and error["after"] < 0.3
    assert within["after"] > 0.9 and within["after"] > within["before"] + 0.05
    assert report["depth_error"]["after"] < 0.75 * report["depth_error"]["before"]
    assert after["depth"] < 0.75 * before["depth"]
    assert report["cameras"] == 1  # photos of one size without EXIF data
    k = refined.scene.intrinsics
    assert (k == k[0]).all() and k[0, 0, 0] == k[0, 1, 1]
    np.testing.assert_array_equal(k[:, :2, 2], start.intrinsics[:, :2, 2])


def test_the_prediction_stays_beside_and_the_world_stays_where_it_was(start, refined):
    predicted = refined.scene.predicted
    for name in ("extrinsics", "intrinsics", "depth"):
        np.testing.assert_array_equal(getattr(predicted, name), getattr(start, name))
    moved = refined.scene.camera_to_world[..., 3] - start.camera_to_world[..., 3]
    np.testing.assert_allclose(moved.mean(0), 0, atol=1e-4)
    assert np.median(refined.scene.depth / start.depth) == pytest.approx(1, abs=0.05)


def test_tracks_are_what_the_views_see(refined, truth):
    tracks = refined.scene.tracks
    assert len(tracks) == refined.report["tracks"] > 50
    assert tracks.mean_length == pytest.approx(refined.report["mean_track_length"], abs=0.01)
    pairs = tracks.track.astype(np.int64) * 4 + tracks.view
    assert (np.diff(pairs) > 0).all()  # no point twice in a view
    place, z = Cameras.of(refined.scene).project(tracks.view, tracks.points[tracks.track])
    off = np.linalg.norm(place - tracks.pixel, axis=-1)  # photos are not resized here
    assert (z > 0).all() and np.median(off) < 0.5
    means = np.bincount(tracks.track, off) / np.bincount(tracks.track)
    np.testing.assert_allclose(tracks.errors, means, atol=1e-3)
    # the true depth at two observations of a track is that of one point of the world
    u, v = np.rint(tracks.pixel).astype(int).T
    there = Cameras.of(truth)
    true = truth.depth[tracks.view, v, u]
    rays = there.rays(tracks.view, tracks.pixel.astype(float))
    world = there.centers[tracks.view] + rays * true[:, None]
    first = np.flatnonzero(np.diff(tracks.track, prepend=-1))
    apart = np.linalg.norm(world - world[first][tracks.track], axis=-1) / true
    assert np.quantile(apart, 0.9) < 0.05


def test_two_runs_give_the_same(start, refined):
    again = refine(start, OPTIONS)
    assert again.report == refined.report
    for name in ("extrinsics", "intrinsics", "depth"):
        np.testing.assert_array_equal(getattr(again.scene, name), getattr(refined.scene, name))
    np.testing.assert_array_equal(again.scene.tracks.pixel, refined.scene.tracks.pixel)


@pytest.mark.parametrize("kind", ["source", "network"])
def test_colmap_models_have_the_tracks(refined, tmp_path, kind):
    paths = write(refined.scene, tmp_path, ("colmap", "colmap_txt"), ExportOptions(images=kind))
    models = [pycolmap.Reconstruction(path / "sparse" / "0") for path in paths.values()]
    for model in models:
        assert model.num_points3D() == len(refined.scene.tracks)
        assert model.compute_mean_track_length() == pytest.approx(refined.scene.tracks.mean_length)
        errors = [
            np.linalg.norm(image.project_point(model.points3D[point.point3D_id].xyz) - point.xy)
            for image in model.images.values()
            for point in image.points2D
        ]
        assert len(errors) == len(refined.scene.tracks.track) and np.median(errors) < 0.5
        for number, point in list(model.points3D.items())[::50]:
            assert point.error == pytest.approx(refined.scene.tracks.errors[number - 1])
            for element in point.track.elements:
                seen = model.images[element.image_id].points2D[element.point2D_idx]
                assert seen.point3D_id == number


def test_colmap_models_can_have_dense_points_too(refined, tmp_path):
    counts = {}
    for points in ("tracks", "dense", "both"):
        options = ExportOptions(images="network", sparse_points=500, colmap_points=points)
        paths = write(refined.scene, tmp_path / points, ("colmap", "colmap_txt"), options)
        one, two = (pycolmap.Reconstruction(path / "sparse" / "0") for path in paths.values())
        counts[points] = one.num_points3D()
        assert two.num_points3D() == counts[points]
        assert one.compute_num_observations() == two.compute_num_observations()
    assert counts["dense"] == 500
    assert counts["both"] == 500 + counts["tracks"] == 500 + len(refined.scene.tracks)


def test_an_npz_gives_the_refined_scene_back(refined, tmp_path):
    write(refined.scene, tmp_path, ("npz",))
    scene = read_npz(tmp_path / "predictions.npz")
    for part in ("tracks", "predicted"):
        one, two = getattr(scene, part), getattr(refined.scene, part)
        for name in vars(two):
            np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    with pytest.raises(InputError, match="is refined already"):
        refine(scene)


def test_masked_pixels_give_no_matches(truth):
    masked = np.zeros(truth.depth.shape, bool)
    masked[:, :, :60] = True
    tracks = refine(truth, replace(OPTIONS, rounds=1), masked=masked, known=True).scene.tracks
    assert tracks is not None and (np.rint(tracks.pixel[:, 0]) >= 60).all()
    assert (tracks.pixel[:, 0] < 70).any()


def test_known_cameras_stay_and_depth_comes_to_them(truth):
    start = replace(truth, depth=truth.depth * np.float32(1.1))
    result = refine(start, replace(OPTIONS, rounds=1), known=True)
    assert result.report["refined"]
    for name in ("extrinsics", "intrinsics"):
        np.testing.assert_allclose(
            getattr(result.scene, name), getattr(truth, name), rtol=1e-6, atol=1e-6
        )
    assert np.median(result.scene.depth / truth.depth) == pytest.approx(1, abs=0.01)


def test_two_views_are_refined(truth, start):
    two = [1, 3]
    before = subset(replace(start, intrinsics=truth.intrinsics), two)
    after = refine(before, replace(OPTIONS, intrinsics="fixed"))
    assert after.report["refined"] and after.report["mean_track_length"] == 2
    np.testing.assert_allclose(after.scene.intrinsics, before.intrinsics, rtol=1e-6)
    one, other = (camera_errors(scene, subset(truth, two)) for scene in (before, after.scene))
    assert other["rotation"] < one["rotation"] and other["direction"] < one["direction"]


def test_photos_of_other_sizes_are_other_cameras(start):
    larger = [
        StillPhoto(np.asarray(photo.read().resize((240, 240)))) if i == 1 else photo
        for i, photo in enumerate(start.photos)
    ]
    sizes = start.source_sizes.copy()
    sizes[1] = 240
    result = refine(replace(start, photos=tuple(larger), source_sizes=sizes), OPTIONS)
    assert result.report["refined"] and result.report["cameras"] == 2
    k = result.scene.source_intrinsics[:, 0, 0]
    assert k[0] == k[2] == k[3] and k[1] == pytest.approx(1.5 * k[0], rel=0.1)


def flat(scene):
    """The scene with photos that show nothing."""
    plain = StillPhoto(np.full((160, 160, 3), 128, np.uint8))
    return replace(scene, photos=(plain,) * scene.views)


def turning(scene):
    """Views that a camera in one place would take: a wall far away, cut out at four places."""
    rng = np.random.default_rng(0)
    wall = np.kron(rng.integers(0, 255, (60, 90, 3), np.uint8), np.ones((6, 6, 1), np.uint8))
    focal = 160.0
    photos, poses = [], []
    for view in range(4):
        angle = 0.08 * view
        c, s = np.cos(angle), np.sin(angle)
        rotation = np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]])
        u, v = np.meshgrid(np.arange(160), np.arange(160))
        rays = np.stack([(u - 79.5) / focal, (v - 79.5) / focal, np.ones_like(u)], -1) @ rotation
        x, y = focal * rays[..., 0] / rays[..., 2], focal * rays[..., 1] / rays[..., 2]
        column, row = (np.rint(a).astype(int) for a in (x + 150, y + 150))
        photos.append(StillPhoto(wall[row.clip(0, 359), column.clip(0, 539)]))
        # predicted with a small baseline that is not there
        poses.append(np.concatenate([rotation, [[0.02 * view], [0], [0]]], -1))
    lens = np.array([[focal, 0, 79.5], [0, focal, 79.5], [0, 0, 1]])
    return replace(
        scene,
        photos=tuple(photos),
        extrinsics=np.array(poses, np.float32),
        intrinsics=np.tile(lens, (4, 1, 1)).astype(np.float32),
        depth=np.full_like(scene.depth, 5.0),
    )


@pytest.mark.parametrize(
    "made,reason",
    [
        (flat, "photos need texture and have to overlap"),
        (turning, "the camera only turned"),
        (lambda scene: subset(scene, [0]), "one view has no other"),
    ],
)
def test_what_tells_nothing_leaves_the_prediction_as_it_was(start, made, reason):
    scene = made(start)
    result = refine(scene, OPTIONS)
    assert not result.report["refined"] and reason in result.report["reason"]
    assert result.scene is scene


def test_an_adjustment_that_fits_worse_is_not_taken(truth, start, monkeypatch):
    worse = Cameras.of(disturbed(start, 3, seed=5))

    def spoiled(*given, **more):
        solution = solve(*given, **more)
        cameras = replace(worse, intrinsics=solution.cameras.intrinsics)
        return replace(solution, cameras=cameras)

    solve = refinement.solve
    monkeypatch.setattr(refinement, "solve", spoiled)
    result = refine(truth, replace(OPTIONS, rounds=1))
    assert result.scene is truth and not result.report["refined"]
    assert "it fits the matches better: median error 0." in result.report["reason"]


@pytest.mark.parametrize("factor", [0.3, 3.5])
def test_a_focal_length_that_no_prediction_is_off_by_is_not_taken(truth, monkeypatch, factor):
    def spoiled(*given, **more):
        solution = solve(*given, **more)
        intrinsics = solution.cameras.intrinsics * np.float64(
            [[factor, 1, 1], [1, factor, 1], [1] * 3]
        )
        return replace(solution, cameras=replace(solution.cameras, intrinsics=intrinsics))

    solve = refinement.solve
    monkeypatch.setattr(refinement, "solve", spoiled)
    result = refine(truth, replace(OPTIONS, rounds=1))
    assert result.scene is truth and not result.report["refined"]
    (said,) = re.findall("focal length would be (.*) times the pred", result.report["reason"])
    assert float(said) == pytest.approx(factor, rel=0.1)


def test_a_view_that_sees_something_else_is_named_and_stays(truth, start):
    rng = np.random.default_rng(0)
    other = StillPhoto(rng.integers(0, 255, (160, 160, 3), np.uint8))
    start = replace(start, photos=(*start.photos[:3], other), intrinsics=truth.intrinsics)
    result = refine(start, replace(OPTIONS, intrinsics="fixed"))
    assert result.report["refined"] and result.report["not_tied"] == [start.names[3]]
    np.testing.assert_array_equal(result.scene.extrinsics[3], start.extrinsics[3])
    np.testing.assert_array_equal(result.scene.intrinsics[3], start.intrinsics[3])
    assert 3 not in result.scene.tracks.view


def test_missing_photos_and_packages_are_named(start, monkeypatch):
    with pytest.raises(InputError, match="comes without its photos"):
        refine(replace(start, photos=()))
    small = StillPhoto(np.zeros((80, 80, 3), np.uint8))
    with pytest.raises(InputError, match="is 80x80 pixels now, it was 160x160"):
        refine(replace(start, photos=(small, *start.photos[1:])))
    monkeypatch.setitem(sys.modules, "pycolmap", None)
    with pytest.raises(InputError, match=r"pip install 'lite3r_jax\[refine\]'"):
        refine(start)


def test_cameras_that_half_of_the_matches_give_otherwise_are_not_taken(start):
    # two small photos do not tell the focal length, and with it how far the views are turned
    two = subset(start, [0, 2])
    result = refine(two, OPTIONS)
    assert result.scene is two and "more than one set of cameras" in result.report["reason"]
    assert result.report["halves_degrees"] > 0.5


@pytest.mark.slow
def test_accuracy_on_views_of_448_pixels():
    source = SyntheticScenes("test", 1, 8)
    for name in source.scenes:
        truth = scene_of(source.read(name, range(8), (448, 448)))
        for degrees, limit in ((2, 0.2), (5, 0.3)):
            result = refine(disturbed(truth, degrees, seed=1))
            errors = camera_errors(result.scene, truth)
            assert result.report["refined"] and result.report["not_tied"] == []
            assert errors["rotation"] < limit and errors["focal"] < 0.01
            assert result.report["error_pixels"]["after"] < 0.5
