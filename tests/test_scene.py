"""The contract of a scene: geometry, names, refusals."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lite3r_jax.data.images import fit_image
from lite3r_jax.errors import InputError
from lite3r_jax.scene import Scene, check_names

S, H, W = 2, 28, 42


@pytest.fixture
def scene() -> Scene:
    rng = np.random.default_rng(0)
    extrinsics = np.tile(np.eye(4, dtype=np.float32)[:3], (S, 1, 1))
    extrinsics[1] = [[0, 0, 1, 0.5], [0, 1, 0, 0], [-1, 0, 0, 2]]
    return Scene(
        names=("a.jpg", "b/c.png"),
        images=rng.integers(0, 256, (S, H, W, 3), np.uint8),
        depth=rng.uniform(1, 2, (S, H, W)).astype(np.float32),
        depth_conf=rng.uniform(1, 9, (S, H, W)).astype(np.float32),
        extrinsics=extrinsics,
        intrinsics=np.array([[[40, 0, 21], [0, 35, 14], [0, 0, 1]]] * S, np.float32),
        boxes=np.array([[0, 0, W, H], [0, 7, W, 21]], np.float32),
        source_sizes=np.array([[84, 56], [420, 140]]),
    )


def test_points_of_the_depth_lie_where_the_camera_sees_them(scene):
    points, conf, valid = scene.points("depth")
    np.testing.assert_array_equal(conf, scene.depth_conf)
    assert valid[0].all()
    for s in range(S):
        rotation, shift = scene.extrinsics[s, :, :3], scene.extrinsics[s, :, 3]
        camera = points[s].reshape(-1, 3) @ rotation.T + shift
        pixels = camera @ scene.intrinsics[s].T
        u, v = (pixels[:, :2] / pixels[:, 2:]).reshape(H, W, 2).transpose(2, 0, 1)
        np.testing.assert_allclose(camera[:, 2].reshape(H, W), scene.depth[s], rtol=1e-5)
        np.testing.assert_allclose(u, np.broadcast_to(np.arange(W), (H, W)), atol=1e-4)
        np.testing.assert_allclose(v, np.broadcast_to(np.arange(H)[:, None], (H, W)), atol=1e-4)


def test_it_is_shown_in_five_lines(scene):
    scene.depth[:] = 2
    scene.depth[0, :2, 0] = 1.5, np.nan
    lines = repr(scene).splitlines()
    assert len(lines) == 5 and max(map(len, lines)) <= 100
    assert lines[0] == "Scene of 2 views, 42 x 28 pixels: a.jpg, b/c.png"
    assert lines[1] == "  depth       1.5 to 2, median 2"
    width = np.degrees(2 * np.arctan(21 / 40))
    assert f"{width:.4g} to {width:.4g}" in lines[3]
    center = -np.array([[0, 0, 1], [0, 1, 0], [-1, 0, 0]]).T @ [0.5, 0, 2]
    assert lines[3].endswith(f"; {np.linalg.norm(center):.4g} end to end")
    assert lines[4] == f"  points      {28 * 42 + 14 * 42:,} of the depth maps"
    scene.depth[:] = np.nan
    assert "depth       nothing finite" in repr(scene)


def test_borders_and_broken_depths_are_not_valid(scene):
    scene.depth[0, 3, 4] = np.nan
    scene.depth[0, 3, 5] = 0
    scene.depth_conf[0, 3, 6] = np.inf
    valid = scene.points("depth")[2]
    assert not valid[0, 3, 4:7].any()
    assert valid[0].sum() == H * W - 3
    assert valid[1, 7:21].all() and valid[1].sum() == 14 * W


def test_points_of_the_head_need_a_head(scene):
    with pytest.raises(InputError, match=r"points.source=depth"):
        scene.points("head")
    head = np.full((S, H, W, 3), 7, np.float32)
    full = dataclasses.replace(scene, world_points=head, world_points_conf=scene.depth_conf + 1)
    points, conf, _ = full.points("head")
    assert points is head
    np.testing.assert_array_equal(conf, scene.depth_conf + 1)


def test_camera_to_world_is_the_inverse(scene):
    for extrinsics, back in zip(scene.extrinsics, scene.camera_to_world, strict=True):
        square = [np.vstack([m, [0, 0, 0, 1]]) for m in (extrinsics, back)]
        np.testing.assert_allclose(square[0] @ square[1], np.eye(4), atol=1e-7)


@given(
    width=st.integers(60, 400),
    height=st.integers(60, 400),
    mode=st.sampled_from(["crop", "pad", "square"]),
    point=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_a_ray_meets_the_same_spot_in_network_image_and_photo(width, height, mode, point):
    fitted = fit_image(Image.new("RGB", (width, height)), mode, 56)
    h, w = fitted.pixels.shape[:2]
    k = np.array([[[50, 0.5, w / 2], [0, 45, h / 2], [0, 0, 1]]], np.float32)
    maps = np.ones((1, h, w), np.float32)
    scene = Scene(
        names=("a",),
        images=fitted.pixels[None],
        depth=maps,
        depth_conf=maps,
        extrinsics=np.eye(4, dtype=np.float32)[None, :3],
        intrinsics=k,
        boxes=np.array([fitted.box], np.float32),
        source_sizes=np.array([fitted.source_size]),
    )
    # corners and centers of the photo are where they are whatever the size: edges, not centers
    x1, y1, x2, y2 = fitted.box
    edge = np.array([x1 + point[0] * (x2 - x1), y1 + point[1] * (y2 - y1)])
    ray = np.linalg.solve(k[0].astype(float), [*(edge - 0.5), 1])
    u, v, one = scene.source_intrinsics[0] @ ray
    assert one == pytest.approx(1)
    assert (u + 0.5, v + 0.5) == pytest.approx((point[0] * width, point[1] * height), abs=1e-4)


@pytest.mark.parametrize(
    "name",
    ["", "/etc/passwd", "../a.jpg", "a/../../b.jpg", "a//b", "./a", "C:\\a.jpg", "a\x00b", "a\nb",
     "a|b", "a\udc80.jpg", "dir/", ".", ".."],
)  # fmt: skip
def test_names_that_leave_the_folder_are_refused(name):
    with pytest.raises(InputError, match="not a usable name"):
        check_names((name,))


def test_names_that_are_equal_are_refused():
    with pytest.raises(InputError, match=r"'a/B.jpg' and 'A/b.jpg'"):
        check_names(("a/B.jpg", "c.jpg", "A/b.jpg"))
    with pytest.raises(InputError, match="same name"):
        check_names(("a", "a"))
    check_names(("ä b & c.jpg", "d/e.png", "f'g.jpeg"))


@pytest.mark.parametrize(
    "field,value,message",
    [
        ("depth", np.ones((S, H, W - 1), np.float32), r"depth is float32 \[2, 28, 41\], expected"),
        ("images", np.ones((S, H, W, 3), np.float32), "images is float32"),
        ("source_sizes", np.ones((S, 2)), "source_sizes is float64"),
        ("photos", (None,), "1 photos for 2 views"),
    ],
)
def test_arrays_that_do_not_belong_together_are_refused(scene, field, value, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(scene, **{field: value})
