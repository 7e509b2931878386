"""Parts of refinement: triangulation, pairs of views, depth that follows, photos to cameras."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.spatial.transform import Rotation

from lite3r_jax.data.photos import find_scenes
from lite3r_jax.refine import RefineOptions
from lite3r_jax.refine.depth import fit_depth, weighted_median
from lite3r_jax.refine.geometry_of_views import (
    Cameras,
    depth_lookup,
    to_network,
    to_photo,
)
from lite3r_jax.refine.lenses import lenses_of
from lite3r_jax.refine.observations import Observations, angles, errors, triangulate
from lite3r_jax.refine.pairs import choose_pairs
from lite3r_jax.refine.solve import enough, limits
from tests.data.world import scene_of, views
from tests.exports.conftest import room as room  # a fixture


def ring(count: int, rng: np.random.Generator) -> Cameras:
    """Cameras around the origin that look at it."""
    poses = []
    for view in range(count):
        turn = Rotation.from_euler("y", 0.3 * view + rng.uniform(-0.05, 0.05)).as_matrix()
        poses.append(np.concatenate([turn, [[rng.uniform(-0.1, 0.1)], [0], [4]]], -1))
    lens = np.array([[500.0, 0, 320], [0, 520, 240], [0, 0, 1]])
    return Cameras(np.array(poses), np.tile(lens, (count, 1, 1)))


def seen(cameras: Cameras, points: np.ndarray) -> Observations:
    """Every point in every view."""
    views = len(cameras.extrinsics)
    track = np.repeat(np.arange(len(points)), views)
    view = np.tile(np.arange(views), len(points))
    return Observations(track, view, cameras.project(view, points[track])[0])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(2, 5))
def test_points_come_back_from_their_observations(seed, count):
    rng = np.random.default_rng(seed)
    cameras, points = ring(count, rng), rng.uniform(-1, 1, (20, 3))
    obs = seen(cameras, points)
    triangulated = triangulate(obs, cameras, 1.0)
    np.testing.assert_allclose(triangulated, points, atol=1e-6)
    assert errors(obs, cameras, triangulated).max() < 1e-4
    rays = cameras.rays(obs.view, obs.pixel)
    _, z = cameras.project(obs.view, points[obs.track])
    np.testing.assert_allclose(
        cameras.centers[obs.view] + rays * z[:, None], points[obs.track], atol=1e-9
    )


def test_a_wrong_match_hardly_moves_a_point_and_its_error_shows():
    rng = np.random.default_rng(0)
    cameras, points = ring(5, rng), rng.uniform(-1, 1, (20, 3))
    obs = seen(cameras, points)
    obs.pixel[::5] += 60.0  # in the first view
    triangulated = triangulate(obs, cameras, 1.0)
    np.testing.assert_allclose(triangulated, points, atol=0.01)
    off = errors(obs, cameras, triangulated)
    assert (off[::5] > 50).all() and np.delete(off, np.s_[::5]).max() < 2


def test_angles_are_those_between_rays_and_points_behind_have_no_error():
    pose = np.concatenate([np.eye(3), np.zeros((3, 1))], -1)
    moved = np.concatenate([np.eye(3), [[-1.0], [0], [0]]], -1)  # its center is at x = 1
    cameras = Cameras(np.stack([pose, moved]), np.tile(np.eye(3), (2, 1, 1)))
    points = np.array([[0.0, 0, 1], [0, 0, -1]])
    obs = seen(cameras, points)
    np.testing.assert_allclose(angles(obs, cameras, points), [45, 45])
    assert np.isinf(errors(obs, cameras, points)[2:]).all()


def test_pixels_of_photos_and_network_images_are_each_others(room):
    rng = np.random.default_rng(0)
    for view, size in enumerate(room.scene.source_sizes):
        pixels = rng.uniform(0, size, (30, 2))
        of = np.full(30, view)
        there = to_network(room.scene, of, pixels)
        np.testing.assert_allclose(there, room.to_network(view, pixels), atol=1e-6)
        np.testing.assert_allclose(to_photo(room.scene, of, there), pixels, atol=1e-9)


def test_cameras_and_depth_are_those_of_the_photos(room):
    cameras, depth = Cameras.of(room.scene), depth_lookup(room.scene, None)
    for view, size in enumerate(room.scene.source_sizes):
        pixels = np.random.default_rng(view).uniform(0.2, 0.8, (30, 2)) * size
        world, true = room.wall(view, pixels)
        of = np.full(30, view)
        np.testing.assert_allclose(cameras.project(of, world)[0], pixels, atol=0.01)
        depths = depth.at(of, pixels)
        np.testing.assert_allclose(depths[depths > 0], true[depths > 0], rtol=0.02)
        assert (depths > 0).sum() > 15


def test_pairs_are_views_that_overlap_a_bounded_number_each():
    scene = scene_of(views(6))
    cameras, depth = Cameras.of(scene), depth_lookup(scene, None)
    every = choose_pairs(cameras, depth, 10)
    assert all(len(partners) == 5 for partners in every)
    few = choose_pairs(cameras, depth, 2)
    assert all(a in few[b] for a, partners in enumerate(few) for b in partners)
    assert sum(map(len, few)) < sum(map(len, every))
    # all hang together
    reached, new = set(), {0}
    while new:
        reached |= new
        new = {b for a in new for b in few[a]} - reached
    assert reached == set(range(6))
    # a view that looks away has no partner
    away = scene.extrinsics.copy()
    away[2] = np.diag([1, -1, -1]) @ away[2]
    turned = replace(scene, extrinsics=away.astype(np.float32))
    alone = choose_pairs(Cameras.of(turned), depth_lookup(turned, None), 10)
    assert alone[2] == [] and 2 not in alone[0]


def observed(count: int, view: int = 0) -> Observations:
    return Observations(np.arange(count), np.full(count, view), np.zeros((count, 2)))


@pytest.mark.parametrize("shift", [0.0, 1.5])
def test_a_shift_is_taken_where_it_helps_and_only_there(shift):
    rng = np.random.default_rng(0)
    d = rng.uniform(1, 5, 200)
    z = (1.3 * d + shift) * (1 + 0.01 * rng.normal(size=200))
    z[::7] *= 3  # wrong points
    fit = fit_depth(observed(200), d, z, np.ones(200), np.array([1.0]))
    assert (fit.shift[0] != 0) == (shift != 0)
    assert fit.scale[0] == pytest.approx(1.3, rel=0.02)
    assert fit.shift[0] == pytest.approx(shift, abs=0.06)
    depth = np.array([[[2.0, 0.0, np.nan]]], np.float32)
    moved = fit(depth)
    assert moved[0, 0, 0] == pytest.approx(1.3 * 2 + shift, rel=0.03) and moved[0, 0, 1] == 0


def test_views_with_few_points_take_the_scale_of_the_others():
    obs = Observations(np.arange(43), np.repeat([0, 1], [40, 3]), np.zeros((43, 2)))
    d = np.full(43, 2.0)
    fit = fit_depth(obs, d, np.where(obs.view == 0, 3.0, 9.0), np.ones(43), np.ones(2))
    np.testing.assert_allclose(fit.scale, 1.5)
    empty = fit_depth(observed(0), np.zeros(0), np.zeros(0), np.zeros(0), np.ones(2))
    np.testing.assert_array_equal(empty.scale, 1)


def test_sure_points_count_more():
    values = np.array([1.0, 2.0, 3.0])
    assert weighted_median(values, np.ones(3)) == 2
    assert weighted_median(values, np.array([0.1, 0.1, 5])) == 3


def test_exif_tells_photos_of_one_size_apart(tmp_path):
    rng = np.random.default_rng(0)
    for i, focal in enumerate((4.2, 4.2, 6.0, None)):
        exif = Image.Exif()
        if focal is not None:
            exif[0x0110] = "Phone"
            exif.get_ifd(0x8769)[0x920A] = focal
        image = Image.fromarray(rng.integers(0, 255, (56, 56, 3), np.uint8))
        image.save(tmp_path / f"{i}.jpg", exif=exif)
    (photos,) = find_scenes(str(tmp_path))
    scene = replace(
        scene_of(views(4, size=(56, 56))), photos=photos.photos,
        names=tuple(photo.name for photo in photos.photos),
    )  # fmt: skip

    def groups(known=False, **options):
        return lenses_of(scene, RefineOptions(**options), known).group.tolist()

    assert groups() == [0, 0, 1, 2]
    assert groups(intrinsics="shared") == [0, 0, 0, 0]
    assert groups(intrinsics="per_view") == [0, 1, 2, 3]
    fixed = lenses_of(scene, RefineOptions(intrinsics="fixed", principal_point=True), False)
    assert not fixed.focal and not fixed.center
    same = fixed.joined(Cameras(scene.extrinsics, scene.intrinsics))
    np.testing.assert_array_equal(same.intrinsics, scene.intrinsics)
    assert not lenses_of(scene, RefineOptions(), True).focal


def test_larger_photos_have_softer_limits():
    np.testing.assert_allclose(limits(np.array([[640, 480], [3000, 4000]])), [2, 8])


def test_of_very_many_tracks_the_longest_are_enough():
    rng = np.random.default_rng(0)
    rows = [(t, v) for t in range(300) for v in np.sort(rng.choice(4, rng.integers(2, 5), False))]
    track, view = np.array(rows).T
    obs = Observations(track, view, rng.normal(size=(len(track), 2)))
    everything = np.ones(len(obs), bool)
    assert enough(obs, everything, 300) is everything
    used = rng.random(len(obs)) < 0.9
    some = enough(obs, used, 50)
    assert (some <= used).all() and np.bincount(view[some]).min() >= 50
    taken = np.unique(track[some])
    length = np.bincount(track[used], minlength=300)
    assert length[taken].mean() > length.mean() and len(taken) < 120
    np.testing.assert_array_equal(some, used & np.isin(track, taken))  # whole tracks
