"""Points and cameras drawn from where they can be computed by hand."""

import numpy as np

from lite3r_jax import geometry
from lite3r_jax.evaluation import render
from tests.metrics.test_pose import some_cameras

K = np.array([[20.0, 0, 7.5], [0, 20.0, 5.5], [0, 0, 1]])
RED = (255, 0, 0)


def plane(depth=2.0, color=(10, 200, 30), extrinsics=None, intrinsics=K):
    """Facing its camera, 12 x 16 pixels."""
    e = np.eye(3, 4)[None] if extrinsics is None else extrinsics
    count = len(e)
    images = np.full((count, 12, 16, 3), color, np.uint8)
    maps = np.full((count, 12, 16), depth)
    return render.cloud(maps, images, np.arange(count), e, np.tile(intrinsics, (count, 1, 1)))


def test_points_of_a_depth_map_project_to_their_pixels_and_face_their_camera():
    e = some_cameras(0, 3).astype(np.float64)
    depth = np.random.default_rng(0).uniform(1, 2, (3, 12, 16))
    depth[1, 3, 4] = np.nan
    depth[2, 0, 0] = 0
    xyz, known = render.unproject(depth, e, np.tile(K, (3, 1, 1)))
    assert known.sum() == depth.size - 2
    camera = np.einsum("sij,shwj->shwi", e[..., :3], xyz) + e[:, None, None, :, 3]
    at = np.einsum("ij,shwj->shwi", K, camera)
    _, u = np.mgrid[0:12, 0:16]
    across = (at[..., 0] / at[..., 2])[known]
    np.testing.assert_allclose(across, np.tile(u, (3, 1, 1))[known], atol=1e-9)
    np.testing.assert_allclose(camera[..., 2][known], depth[known], rtol=1e-12)
    cloud = plane()
    np.testing.assert_allclose(cloud.normal, np.tile([0, 0, -1.0], (192, 1)), atol=1e-12)
    np.testing.assert_allclose(cloud.spacing, 0.1)


def test_a_similarity_moves_points_and_cameras_together():
    e = some_cameras(1, 2).astype(np.float64)
    before = plane(extrinsics=e)
    turn = np.asarray(geometry.quat_to_mat(np.array([0.3, -0.2, 0.5, 0.8])), np.float64)
    turn /= np.cbrt(np.linalg.det(turn))
    after = render.moved(before, geometry.Sim3(np.float64(3), turn, np.array([1.0, 2, 3])))
    there = after.xyz @ after.extrinsics[0, :, :3].T + after.extrinsics[0, :, 3]
    here = before.xyz @ e[0, :, :3].T + e[0, :, 3]
    np.testing.assert_allclose(there, 3 * here, atol=1e-5)
    moved = 3 * render.centers(e) @ turn.T + [1, 2, 3]
    np.testing.assert_allclose(render.centers(after.extrinsics), moved, atol=1e-5)
    np.testing.assert_allclose(after.spacing, 3 * before.spacing)


def test_a_surface_is_drawn_without_holes_from_in_front_and_not_from_behind():
    cloud = plane()
    front = np.concatenate([np.eye(3), [[0], [0], [2.0]]], 1)  # two lengths behind its camera
    picture = render.draw(cloud, front, [])
    assert picture.shape == (render.HEIGHT, render.WIDTH, 3)
    # the plane is 1.6 x 1.2 large, about (0, 0.05), and 4 away
    focal = 1.35 * render.WIDTH
    v, u = (
        np.mgrid[0 : render.HEIGHT, 0 : render.WIDTH]
        - np.array([render.HEIGHT, render.WIDTH])[:, None, None] / 2
    )
    inside = (np.abs(u) < focal * 0.7 / 4) & (np.abs(v) < focal * 0.5 / 4)
    outside = (np.abs(u) > focal * 1.0 / 4) | (np.abs(v) > focal * 0.8 / 4)
    assert (picture[inside] == (10, 200, 30)).all() and (picture[outside] == render.GROUND).all()
    back = np.array([[-1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, 6]])
    assert (render.draw(cloud, back, []) == render.GROUND).all()


def test_what_is_nearer_hides_what_is_behind_it():
    view = np.concatenate([np.eye(3), [[0], [0], [1.0]]], 1)
    near, far = plane(1.0, (255, 0, 0)), plane(3.0, (0, 0, 255))
    middle = render.HEIGHT // 2, render.WIDTH // 2
    for parts in ((near, far), (far, near)):
        both = {k: np.concatenate([getattr(p, k) for p in parts])
                for k in ("xyz", "rgb", "normal", "spacing")}  # fmt: skip
        scene = render.Cloud(**both, extrinsics=near.extrinsics, intrinsics=near.intrinsics,
                             size=(12, 16))  # fmt: skip
        assert tuple(render.draw(scene, view, [])[middle]) == (255, 0, 0)


def test_the_viewpoint_sees_every_camera_and_nearly_every_point_from_above():
    e = some_cameras(2, 4).astype(np.float64) * [1, 1, 1, 0.3]
    cloud = plane(extrinsics=e)
    close, lost = cloud.xyz[0] + 0.1, np.array([0, 0, 1e4])
    view = render.viewpoint(cloud, np.stack([close, lost]))
    np.testing.assert_allclose(view[:, :3] @ view[:, :3].T, np.eye(3), atol=1e-12)
    assert np.linalg.det(view[:, :3]) > 0
    large = render.OVERSAMPLED * np.array([render.WIDTH, render.HEIGHT])
    for points, share in ((cloud.xyz, 0.96), (render.centers(e), 1.0), (close[None], 1.0)):
        at, z = render._place(points, view)
        assert ((at >= 0) & (at <= large) & (z > 0)[:, None]).all(-1).mean() >= share
    one = render.viewpoint(plane(), np.zeros((0, 3)))
    assert render.centers(one[None])[0, 1] < -0.3  # y points down
    outlined = render.draw(plane(), one, [(plane().extrinsics, plane().intrinsics, RED)])
    assert (outlined == RED).all(-1).sum() > 100
