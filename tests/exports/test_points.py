"""Which points are kept: confidence, voxels, number."""

from dataclasses import replace

import numpy as np
import pytest

from lite3r_jax.errors import InputError
from lite3r_jax.exports.points import (
    PointCloud,
    PointOptions,
    confidence_mask,
    diagonal,
    select_points,
    thinned,
)

EVERYTHING = PointOptions(conf_percentile=0, max_points=0)


def test_points_lie_where_their_pixel_sees_the_wall(room):
    cloud = select_points(room.scene, EVERYTHING)
    assert cloud.xyz.dtype == cloud.conf.dtype == np.float32
    assert cloud.view.dtype == cloud.pixel.dtype == np.int32
    for s in range(room.scene.views):
        mine = cloud.view == s
        pixels = room.to_network(s, room.project(s, cloud.xyz[mine].astype(np.float64)))
        assert np.abs(pixels - cloud.pixel[mine]).max() < 1e-3
        u, v = cloud.pixel[mine].T
        np.testing.assert_array_equal(cloud.rgb[mine], room.scene.images[s, v, u])
        np.testing.assert_array_equal(cloud.conf[mine], room.scene.depth_conf[s, v, u])


def test_points_are_ordered_by_view_row_and_column(room):
    cloud = select_points(room.scene, replace(EVERYTHING, max_points=500, voxel=0.01))
    keys = list(zip(cloud.view, cloud.pixel[:, 1], cloud.pixel[:, 0], strict=True))
    assert keys == sorted(keys)


def test_no_point_lies_on_borders_or_without_depth(room):
    mask = confidence_mask(room.scene, EVERYTHING)
    assert not mask[0, 3, 4:8].any()
    assert mask[0].sum() == mask[0].size - 4
    assert not mask[2, :, :14].any() and not mask[2, :, 70:].any() and mask[2, :, 14:70].all()
    assert mask[1].all()  # cropped, so that the photo fills the image


def test_points_of_the_head_are_its_own(room):
    cloud = select_points(room.scene, replace(EVERYTHING, source="head"))
    assert len(cloud) == room.scene.inside().sum()
    np.testing.assert_array_equal(cloud.xyz, room.scene.world_points[room.scene.inside()])
    np.testing.assert_array_equal(cloud.conf, room.scene.world_points_conf[room.scene.inside()])


@pytest.mark.parametrize("percentile", [0, 10, 50, 99.9, 100])
def test_percentile_is_of_all_valid_pixels_of_the_scene(room, percentile):
    conf = np.sort(select_points(room.scene, EVERYTHING).conf)
    kept = select_points(room.scene, replace(EVERYTHING, conf_percentile=percentile)).conf
    rank = int((len(conf) - 1) * percentile / 100)
    np.testing.assert_array_equal(np.sort(kept), conf[rank:])


@pytest.mark.parametrize("percentile", [0, 50, 100])
def test_constant_confidence_keeps_all(room, percentile):
    scene = replace(room.scene, depth_conf=np.ones_like(room.scene.depth_conf))
    cloud = select_points(scene, replace(EVERYTHING, conf_percentile=percentile))
    assert len(cloud) == len(select_points(room.scene, EVERYTHING))


def test_pixels_that_tie_with_the_limit_stay(room):
    conf = np.where(room.scene.depth_conf > 2.8, room.scene.depth_conf, np.float32(1))
    scene = replace(room.scene, depth_conf=conf)
    assert len(select_points(scene, PointOptions(conf_percentile=50, max_points=0))) == len(
        select_points(scene, EVERYTHING)
    )


@pytest.mark.parametrize("limit", [1, 7, 1000, 15_000])
def test_thinning_gives_the_number_and_spreads_it_evenly(room, limit):
    whole = select_points(room.scene, EVERYTHING)
    assert len(whole) > 15_000
    cloud = select_points(room.scene, replace(EVERYTHING, max_points=limit))
    assert len(cloud) == limit
    assert len({(s, u, v) for s, (u, v) in zip(cloud.view, cloud.pixel, strict=True)}) == limit
    share = np.bincount(whole.view) * limit / len(whole)
    assert (
        np.abs(np.bincount(cloud.view, minlength=4) - share).max() < 2
    )  # of the runs, two straddle


def test_thinning_draws_no_stripes(room):
    whole = select_points(room.scene, EVERYTHING)
    full = PointCloud(
        *(x[whole.view == 1] for x in (whole.xyz, whole.rgb, whole.conf, whole.view, whole.pixel))
    )
    assert len(full) == 84 * 70  # every 42nd would be in two columns
    columns = thinned(full, len(full) // 42).pixel[:, 0]
    assert len(set(columns.tolist())) > 40


def test_thinned_points_are_points_of_the_cloud(room):
    whole = select_points(room.scene, EVERYTHING)
    few = thinned(whole, 100)
    assert len(few) == 100
    rows = {tuple(row) for row in whole.xyz.tolist()}
    assert all(tuple(row) in rows for row in few.xyz.tolist())
    assert len(thinned(whole, 0)) == len(whole)


@pytest.mark.parametrize("voxel", [0.005, 0.05, 0.5])
def test_the_surest_point_of_a_voxel_stays(room, voxel):
    whole = select_points(room.scene, EVERYTHING)
    edge = diagonal(whole.xyz) * voxel
    best = {}
    for i, cell in enumerate(np.floor(whole.xyz.astype(np.float64) / edge).astype(int)):
        j = best.setdefault(tuple(cell), i)
        if whole.conf[i] > whole.conf[j]:
            best[tuple(cell)] = i
    cloud = select_points(room.scene, replace(EVERYTHING, voxel=voxel))
    assert 1 < len(cloud) < len(whole)
    np.testing.assert_array_equal(cloud.xyz, whole.xyz[sorted(best.values())])


def test_voxels_stand_points_far_outside(room):
    points = room.scene.world_points.copy()
    points[0, 0, 0] = 1e38, -1e38, 0
    scene = replace(room.scene, world_points=points)
    cloud = select_points(scene, replace(EVERYTHING, source="head", voxel=0.1))
    assert (np.abs(cloud.xyz[:, 0]) > 1e37).sum() == 1


def test_one_place_is_one_voxel(room):
    scene = replace(room.scene, world_points=np.ones_like(room.scene.world_points))
    options = replace(EVERYTHING, source="head", voxel=0.1)
    assert len(select_points(scene, options)) == 1


def test_diagonal_does_not_follow_outliers():
    xyz = np.random.default_rng(0).uniform(0, 1, (10_000, 3)).astype(np.float32)
    assert diagonal(xyz) == pytest.approx(0.9 * np.sqrt(3), rel=0.02)
    xyz[:100] = 1e6
    assert diagonal(xyz) == pytest.approx(0.9 * np.sqrt(3), rel=0.05)


def test_same_options_give_the_same_points(room):
    options = PointOptions(max_points=777, voxel=0.003)
    one, two = select_points(room.scene, options), select_points(room.scene, options)
    for field in ("xyz", "rgb", "conf", "view", "pixel"):
        np.testing.assert_array_equal(getattr(one, field), getattr(two, field))


def test_without_a_valid_point_the_error_names_the_setting(room):
    scene = replace(room.scene, depth=np.zeros_like(room.scene.depth))
    with pytest.raises(InputError, match=r"points\.source=depth.*points\.source=head"):
        select_points(scene, PointOptions())


@pytest.mark.parametrize(
    "key,value",
    [
        ("source", "lidar"),
        ("conf_percentile", -2),
        ("conf_percentile", -0.5),
        ("conf_percentile", 101),
        ("conf_percentile", float("nan")),
        ("max_points", -1),
        ("max_points", 1.5),
        ("voxel", -0.1),
        ("voxel", 1e-9),
        ("voxel", 2),
        ("voxel", float("nan")),
    ],
)
def test_bad_options_are_refused_by_name(key, value):
    with pytest.raises(InputError, match=rf"points\.{key}: expected"):
        PointOptions(**{key: value})


def test_by_default_confidence_is_taken_for_what_it_means(room):
    def kept(conf) -> np.ndarray:
        scene = replace(room.scene, depth_conf=conf.astype(np.float32))
        return np.sort(select_points(scene, PointOptions(max_points=0)).conf)

    shape = room.scene.depth.shape
    rng = np.random.default_rng(0)
    # 1 + exp(.): the expected error goes with 1 / confidence; that of the median pixel is 1 / 6
    errors = 1 + 4 * np.exp(rng.normal(size=shape))
    conf = kept(errors)
    median = np.median(np.sort(errors[room.scene.points()[2]]))
    assert median / 3 <= conf[0] < 1.01 * median / 3 and len(conf) < 0.99 * errors.size
    # probabilities, of which the authors of pi^3 leave out those below 0.1
    probable = kept(rng.uniform(0, 1, shape))
    assert 0.1 <= probable[0] < 0.101
    # at least half of the pixels stay, and those that are all alike
    doubtful = rng.uniform(0, 0.05, shape)
    assert abs(len(kept(doubtful)) / len(kept(np.ones(shape))) - 0.5) < 0.01
