"""Ground truth: against closed forms, and against points along rays that are tested one by one."""

import numpy as np
import pytest

from lite3r_jax.data.synthetic import oracle
from lite3r_jax.data.synthetic.drawing import cut
from lite3r_jax.data.synthetic.world import BOXES, CYLINDERS, ELLIPSOIDS
from tests.data.synthetic.rooms import depth_inside, empty, filled, scene, turn, with_one

CENTER, HALF = np.array([0.3, 0.2, 0.5]), np.array([0.5, 0.8, 0.7])


def some_rays(world, cameras, count=300):
    """(origin [3, 1], directions [3, count] of depth 1) of view 0."""
    height, width = cameras.size
    pixels = np.random.default_rng(0).uniform(0, [[width - 1], [height - 1]], (2, count))
    return cameras.center[0][:, None], oracle.rays(cameras, 0, pixels)


def towards(point, count=300):
    """(origin, directions) of rays around the way to a point; many of them meet a thing there."""
    origin = np.array([-1.1, -0.7, -1.6])
    spread = np.random.default_rng(1).uniform(-0.7, 0.7, (3, count))
    return origin[:, None], (point - origin)[:, None] + spread


def test_walls_are_where_their_planes_are():
    made = scene()
    world = empty(made.world)
    origin, direction = some_rays(world, made.cameras)
    t, primitive = oracle.cast(world, origin, direction)
    wanted = np.full(t.shape, np.inf)
    for axis in range(3):
        for side in (-1, 1):
            plane = (side * world.half[0, axis] - origin[axis]) / direction[axis]
            wanted = np.where(plane > 0, np.minimum(wanted, plane), wanted)
    np.testing.assert_allclose(t, wanted, rtol=1e-12)
    assert (primitive == 0).all()


def test_depth_of_a_room_is_z_and_its_normals_are_those_of_its_walls():
    made = scene()
    world, cameras = empty(made.world), cut(made.cameras, (1,), (12, 16))
    view = oracle.render(world, cameras, 0)
    v, u = np.mgrid[0:12, 0:16]
    ray = np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(cameras.intrinsics[0]).T
    points = ray * view.depth[..., None] / world.scale
    points = points @ cameras.rotation[0] + cameras.center[0]
    on_wall = np.abs(np.abs(points) / world.half[0] - 1) < 1e-6
    assert (on_wall.sum(-1) == 1).all()
    inwards = view.normals @ cameras.rotation[0]
    np.testing.assert_allclose(inwards, -np.sign(points) * on_wall, atol=1e-6)


def test_ball_is_cut_where_the_quadratic_formula_says():
    world = with_one(scene().world, ELLIPSOIDS, CENTER, [0.6] * 3, turn(2))
    o, d = towards(CENTER)
    t, primitive = oracle.cast(world, o, d)
    at = o - CENTER[:, None]
    a, b, c = (d * d).sum(0), 2 * (d * at).sum(0), (at * at).sum() - 0.36
    root = b * b - 4 * a * c
    hit = root > 0
    assert 50 < hit.sum() < 290
    np.testing.assert_array_equal(primitive == ELLIPSOIDS.start, hit)
    np.testing.assert_allclose(t[hit], ((-b - np.sqrt(root.clip(0))) / (2 * a))[hit], rtol=1e-9)


def test_ball_has_the_normals_of_a_ball():
    made = scene()
    cameras = cut(made.cameras, (0,), (24, 32))
    center = cameras.center[0] + 1.6 * cameras.rotation[0, 2]
    world = with_one(made.world, ELLIPSOIDS, center, [0.5] * 3, turn(2))
    view = oracle.render(world, cameras, 0)
    seen = view.primitive == ELLIPSOIDS.start
    v, u = np.nonzero(seen)
    ray = np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(cameras.intrinsics[0]).T
    points = ray * view.depth[seen][:, None] / world.scale
    assert len(points) > 50
    np.testing.assert_allclose(view.normals[seen], (points - [0, 0, 1.6]) / 0.5, atol=1e-6)


def test_box_is_cut_by_its_six_planes():
    rotation = turn(3)
    world = with_one(scene().world, BOXES, CENTER, HALF, rotation)
    o, d = towards(CENTER)
    t, primitive = oracle.cast(world, o, d)
    near, far = np.zeros(300), np.full(300, np.inf)
    for axis in range(3):
        for side in (-1, 1):  # outwards normal n, points inside have n x < offset
            n = side * rotation[:, axis]
            offset = n @ CENTER + HALF[axis]
            plane = (offset - n @ o) / (n @ d)
            near = np.where(n @ d < 0, np.maximum(near, plane), near)
            far = np.where(n @ d > 0, np.minimum(far, plane), far)
    hit = near < far
    assert 50 < hit.sum() < 290
    np.testing.assert_array_equal(primitive == BOXES.start, hit)
    np.testing.assert_allclose(t[hit], near[hit], rtol=1e-9)


def test_cylinder_ends_rays_on_its_side_or_on_its_ends():
    rotation = turn(4)
    world = with_one(scene().world, CYLINDERS, CENTER, [0.5, 0.8, 0.5], rotation)
    o, d = towards(CENTER)
    t, primitive = oracle.cast(world, o, d)
    hit = primitive == CYLINDERS.start
    assert 50 < hit.sum() < 290
    local = rotation.T @ (o + t * d - CENTER[:, None])[:, hit]
    radius, high = np.hypot(local[0], local[2]), np.abs(local[1])
    on_side = (np.abs(radius - 0.5) < 1e-9) & (high <= 0.8 + 1e-9)
    on_end = (np.abs(high - 0.8) < 1e-9) & (radius <= 0.5 + 1e-9)
    assert (on_side | on_end).all() and on_side.any() and on_end.any()
    # and it is the first such point: just before it the ray is outside
    before = (o + (t - 1e-6) * d).T
    assert (depth_inside(world, CYLINDERS.start, before[hit]) < 0).all()


@pytest.mark.parametrize("split,number", [("train", 2), ("train", 5), ("sky", 0)])
def test_nothing_is_in_front_of_what_is_seen(split, number):
    made = scene(split, number)
    world = made.world
    origin, direction = some_rays(world, made.cameras)
    t, primitive = oracle.cast(world, origin, direction)
    end = np.where(np.isfinite(t), t, 20.0)
    for share in np.linspace(0, 1 - 1e-7, 400):
        at = (origin + share * end * direction).T
        taken = filled(world, at)
        if split == "sky":  # above the walls there is nothing
            taken &= at[:, 1] > -world.half[0, 1]
        assert not taken.any()
    # what is seen is there
    for number in np.unique(primitive[primitive > 0]):
        beyond = (origin + (t + 1e-6) * direction).T[primitive == number]
        assert (depth_inside(world, number, beyond) > 0).all()
    assert len(np.unique(primitive)) > 3


@pytest.mark.parametrize("number", [0, 5])
def test_points_are_hidden_where_something_stands_between(number):
    made = scene("train", number)
    world, cameras = made.world, made.cameras
    origin, direction = some_rays(world, cameras, 150)
    t, _ = oracle.cast(world, origin, direction)
    points = origin + t * direction
    assert oracle.visible(world, cameras, 0, points).all()  # from where they were found
    height, width = cameras.size
    hidden = 0
    for view in range(1, 4):
        seen = oracle.visible(world, cameras, view, points)
        k, r, c = (x[view] for x in (cameras.intrinsics, cameras.rotation, cameras.center))
        pixel = k @ r @ (points - c[:, None])
        u, v = pixel[:2] / pixel[2]
        inside = (pixel[2] > 0) & (u >= -0.5) & (u <= width - 0.5) & (v >= -0.5)
        inside &= v <= height - 0.5
        assert not seen[~inside].any()
        blocked = np.zeros(len(seen), bool)
        for share in np.linspace(0, 1 - 1e-6, 600):
            blocked |= filled(world, c + share * (points.T - c))
        assert not (seen & blocked).any()
        # a ray that only touches something may pass between two of the points tested
        assert (inside & ~seen & ~blocked).sum() <= 3
        hidden += (inside & ~seen).sum()
    assert hidden > 10


def test_tracks_are_the_same_point_in_all_views():
    made = scene("train", 3)
    world, cameras = made.world, made.cameras
    pixels = np.random.default_rng(0).uniform(0, np.array(cameras.size[::-1]) - 1, (200, 2))
    tracks = oracle.tracks(world, cameras, 0, pixels)
    np.testing.assert_allclose(tracks.pixels[0], pixels, atol=1e-6)
    assert tracks.visible[0].all() and 0.2 < tracks.visible[1:].mean() < 1
    extrinsics = cameras.extrinsics(float(world.scale))
    for view in range(4):
        moved = tracks.points @ extrinsics[view, :, :3].T + extrinsics[view, :, 3]
        seen = tracks.visible[view]
        projected = moved[seen] @ cameras.intrinsics[view].T
        np.testing.assert_allclose(
            projected[:, :2] / projected[:, 2:], tracks.pixels[view, seen], atol=1e-6
        )
        # the ray through the pixel where a point is seen ends at that point
        direction = oracle.rays(cameras, view, tracks.pixels[view, seen].T)
        t, _ = oracle.cast(world, cameras.center[view][:, None], direction)
        np.testing.assert_allclose(t * world.scale, moved[seen, 2], rtol=1e-6)


def test_tracks_cannot_start_in_the_sky():
    made = scene("sky")
    height, width = made.cameras.size
    view = oracle.render(made.world, cut(made.cameras, (0,), (12, 16)), 0)
    v, u = np.argwhere(view.depth == 0)[0]
    pixel = [[(u + 0.5) * width / 16 - 0.5, (v + 0.5) * height / 12 - 0.5]]
    with pytest.raises(ValueError, match="one shows the sky"):
        oracle.tracks(made.world, made.cameras, 0, np.array(pixel))
