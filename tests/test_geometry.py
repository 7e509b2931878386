"""Cameras and points: the original's numbers, the axioms, and gradients that stay finite."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from lite3r_jax import geometry
from lite3r_jax.errors import InputError

GATE = 1e-5
SIZE = (56, 84)

# Compiled whole: operation by operation they would take most of the time of these tests.
mat_to_quat = jax.jit(geometry.mat_to_quat)
quat_to_mat = jax.jit(geometry.quat_to_mat)
unproject_to_world = jax.jit(geometry.unproject_to_world)
invert_se3 = jax.jit(geometry.invert_se3)
project = jax.jit(geometry.project)
transform_points = jax.jit(geometry.transform_points)
pixels_to_rays = jax.jit(geometry.pixels_to_rays)
unproject = jax.jit(geometry.unproject)
normalize_scene = jax.jit(geometry.normalize_scene)
cameras_to_pose_encoding = jax.jit(geometry.cameras_to_pose_encoding, static_argnums=2)
pose_encoding_to_cameras = jax.jit(geometry.pose_encoding_to_cameras, static_argnums=1)


@pytest.fixture
def compare(parity, golden):
    """Check and record: float32, and within the gate relative to the largest value."""

    def check(name, got, want, group="modules/pose_geometry"):
        assert got.dtype == jnp.float32
        parity(group, name, got, want, GATE, relative=True)

    return check


@pytest.fixture
def pose_data(golden):
    return golden("modules/pose_geometry")


# The original's numbers


def test_pose_encoding_agrees_with_the_original_both_ways(pose_data, compare):
    assert tuple(pose_data["image_size_hw"]) == SIZE
    encoding = cameras_to_pose_encoding(pose_data["extrinsics"], pose_data["intrinsics"], SIZE)
    compare("pose_enc", encoding, pose_data["pose_enc"])
    for source, result in (("pose_enc", "roundtrip"), ("raw_pose_enc", "raw")):
        extrinsics, intrinsics = pose_encoding_to_cameras(pose_data[source], SIZE)
        compare(f"{result}_extrinsics", extrinsics, pose_data[f"{result}_extrinsics"])
        compare(f"{result}_intrinsics", intrinsics, pose_data[f"{result}_intrinsics"])


def test_quaternions_agree_with_the_original_in_sign_too(pose_data, compare):
    compare("rot_quat_xyzw", mat_to_quat(pose_data["rot"]), pose_data["rot_quat_xyzw"])
    matrices = quat_to_mat(pose_data["quat_xyzw_unnormalised"])
    compare("quat_mat", matrices, pose_data["quat_mat"])


def test_unprojection_agrees_with_the_original(pose_data, compare, parity):
    world, cam, mask = unproject_to_world(
        pose_data["unproj_depth"][..., 0],
        pose_data["unproj_extrinsics"],
        pose_data["unproj_intrinsics"],
    )
    compare("unproj_world_points", world, pose_data["unproj_world_points"])
    compare("unproj_cam_points_frame0", cam[0], pose_data["unproj_cam_points_frame0"])
    want = pose_data["unproj_mask_frame0"]
    parity("modules/pose_geometry", "unproj_mask_frame0", mask[0], want, 0)
    assert 0 < mask[0].sum() < mask[0].size


def test_inverse_agrees_with_the_original(pose_data, compare):
    poses = pose_data["unproj_extrinsics"]
    square = np.concatenate([poses, np.broadcast_to(np.float32([0, 0, 0, 1]), (8, 1, 4))], 1)
    compare("se3_inverse_np", invert_se3(square), pose_data["se3_inverse_np"])
    compare("se3_inverse_torch", invert_se3(square), pose_data["se3_inverse_torch"])
    narrow = invert_se3(poses)
    compare("se3_inverse_np, 3 x 4", narrow, pose_data["se3_inverse_np"][:, :3])


def test_projection_agrees_with_the_original(pose_data, compare):
    cameras = pose_data["unproj_extrinsics"], pose_data["unproj_intrinsics"]
    pixels, cam = project(pose_data["proj_points"][None], *cameras)
    compare("proj_image_points", pixels, pose_data["proj_image_points"])
    compare("proj_cam_points", jnp.swapaxes(cam, 1, 2), pose_data["proj_cam_points"])
    maps = transform_points(cameras[0][None], pose_data["world_points_batch"])
    compare("camera_points_batch", maps, pose_data["camera_points_batch"])


def test_rays_agree_with_the_original(pose_data, compare):
    rays = pixels_to_rays(pose_data["tracks"], pose_data["unproj_intrinsics"])
    compare("tracks_normalised", rays, pose_data["tracks_normalised"])


def test_scene_normalization_agrees_with_the_original(golden, compare):
    data = golden("modules/loss")
    names = ("extrinsics", "world_points", "depths", "point_masks")
    batch = [data[f"batch_{name}"] for name in names]
    extrinsics, points, depth, scale = normalize_scene(*batch)
    compare("norm_extrinsics", extrinsics, data["norm_extrinsics"], "modules/loss")
    compare("norm_world_points", points, data["norm_world_points"], "modules/loss")
    compare("norm_depths", depth, data["norm_depths"], "modules/loss")
    cam = data["norm_cam_points_in"] / scale[:, None, None, None, None]
    compare("norm_cam_points", cam, data["norm_cam_points"], "modules/loss")


# Meaning


def test_a_quarter_turn_about_z_takes_x_to_y():
    half = np.sqrt(0.5)
    rotation = quat_to_mat([0, 0, half, half])
    np.testing.assert_allclose(rotation @ np.float32([1, 0, 0]), [0, 1, 0], atol=1e-6)
    np.testing.assert_allclose(mat_to_quat(rotation), [0, 0, half, half], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mat", "quat"),
    [
        (np.diag([1, 1, 1]), [0, 0, 0, 1]),
        (np.diag([1, -1, -1]), [1, 0, 0, 0]),
        (np.diag([-1, 1, -1]), [0, 1, 0, 0]),
        (np.diag([-1, -1, 1]), [0, 0, 1, 0]),
        # Half turns about diagonals: components tie, the first stays positive.
        ([[0, 1, 0], [1, 0, 0], [0, 0, -1]], [0.5**0.5, 0.5**0.5, 0, 0]),
        ([[0, -1, 0], [-1, 0, 0], [0, 0, -1]], [0.5**0.5, -(0.5**0.5), 0, 0]),
        # A third of a turn about (1, 1, 1): all four tie.
        ([[0, 0, 1], [1, 0, 0], [0, 1, 0]], [0.5, 0.5, 0.5, 0.5]),
        ([[0, 1, 0], [0, 0, 1], [1, 0, 0]], [-0.5, -0.5, -0.5, 0.5]),
    ],
)
def test_quaternions_of_ties_and_their_gradients(mat, quat):
    mat = np.float32(mat)
    np.testing.assert_allclose(mat_to_quat(mat), quat, atol=1e-6)
    jacobian = jax.jacobian(geometry.mat_to_quat)(mat)
    assert np.isfinite(jacobian).all()
    # Along a true rotation about axis a by t, dq/dt at q is (a, 0) q / 2.
    for axis in np.eye(3):
        tangent = np.cross(np.eye(3), axis).astype(np.float32) @ mat
        x, y, z, w = quat
        moved = np.append(w * axis + np.cross(axis, [x, y, z]), -axis @ [x, y, z]) / 2
        got = np.einsum("kij,ij->k", jacobian, tangent)
        np.testing.assert_allclose(got, moved, atol=1e-5)


def test_the_pixel_center_lies_at_integers():
    intrinsics = np.float32([[10, 0, 2], [0, 20, 1], [0, 0, 1]])
    points, _ = unproject(np.full((3, 5), 4.0, np.float32), intrinsics)
    np.testing.assert_allclose(points[1, 2], [0, 0, 4], atol=1e-6)  # row 1, column 2
    np.testing.assert_allclose(points[1, 3], [0.4, 0, 4], atol=1e-6)  # one to the right
    np.testing.assert_allclose(points[2, 2], [0, 0.2, 4], atol=1e-6)  # one down


def test_a_camera_that_moves_right_sees_points_to_the_left():
    extrinsics = np.float32([[1, 0, 0, -1], [0, 1, 0, 0], [0, 0, 1, 0]])  # center at x = 1
    intrinsics = np.float32([[10, 0, 5], [0, 10, 5], [0, 0, 1]])
    pixels, cam = project(np.float32([[0, 0, 2]]), extrinsics, intrinsics)
    np.testing.assert_allclose(pixels, [[0, 5]], atol=1e-6)
    np.testing.assert_allclose(cam, [[-1, 0, 2]], atol=1e-6)


def test_a_wider_view_has_a_shorter_focal_length():
    enc = np.float32([[0, 0, 0, 0, 0, 0, 1, np.pi / 2, 1], [0, 0, 0, 0, 0, 0, 1, np.pi / 3, 1]])
    _, intrinsics = pose_encoding_to_cameras(enc, (100, 200))
    np.testing.assert_allclose(intrinsics[:, 1, 1], [50, 50 * 3**0.5], rtol=1e-6)
    np.testing.assert_array_equal(intrinsics[:, :2, 2], [[100, 50], [100, 50]])


# Axioms

seeds = st.integers(0, 2**32 - 1)
many = settings(max_examples=50, deadline=None)


def random_rotations(rng, lead):
    """By axis and angle in float64, some within 1e-2 of half turns."""
    axis = rng.normal(size=(*lead, 3, 1))
    axis /= np.linalg.norm(axis, axis=-2, keepdims=True)
    angle = rng.uniform(-np.pi, np.pi, (*lead, 1, 1))
    angle = np.where(rng.random(angle.shape) < 0.3, np.pi - 1e-3 * (1 + abs(angle)), angle)
    cross = np.cross(np.eye(3), np.swapaxes(axis, -1, -2))
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def random_cameras(seed, lead=()):
    rng = np.random.default_rng(seed)
    shift = rng.uniform(-3, 3, (*lead, 3, 1))
    extrinsics = np.concatenate([random_rotations(rng, lead), shift], -1)
    intrinsics = np.zeros((*lead, 3, 3))
    intrinsics[..., [0, 1], [0, 1]] = rng.uniform(20, 200, (*lead, 2))
    intrinsics[..., [0, 1], 2] = rng.uniform(0, 60, (*lead, 2))
    intrinsics[..., 2, 2] = 1
    return extrinsics.astype(np.float32), intrinsics.astype(np.float32)


@many
@given(seeds)
def test_matrix_and_quaternion_are_inverse(seed):
    rng = np.random.default_rng(seed)
    rotation = random_rotations(rng, (5,)).astype(np.float32)
    quat = mat_to_quat(rotation)
    assert (np.asarray(quat[..., 3]) >= 0).all()
    np.testing.assert_allclose(np.linalg.norm(quat, axis=-1), 1, atol=2e-6)
    # Neither length nor sign of a quaternion matters.
    for factor in (1, -1, *rng.uniform(0.1, 9, 2)):
        back = quat_to_mat(np.float32(factor) * np.asarray(quat))
        np.testing.assert_allclose(back, rotation, atol=5e-6)


@many
@given(seeds, st.sampled_from([(1, 1), (392, 518), (640, 20)]))
def test_cameras_and_encodings_are_inverse(seed, size):
    extrinsics, intrinsics = random_cameras(seed, (2, 3))
    intrinsics[..., :2, 2] = size[1] / 2, size[0] / 2
    enc = np.asarray(cameras_to_pose_encoding(extrinsics, intrinsics, size))
    back = pose_encoding_to_cameras(enc, size)
    np.testing.assert_allclose(back[0], extrinsics, atol=1e-5)
    np.testing.assert_allclose(back[1], intrinsics, rtol=2e-5)
    np.testing.assert_allclose(cameras_to_pose_encoding(*back, size), enc, atol=1e-5)


@jax.jit
def group_axioms(a, b, c, points):
    compose, invert, move = geometry.compose_se3, geometry.invert_se3, geometry.transform_points
    one = jnp.broadcast_to(jnp.eye(3, 4), a.shape)
    return {
        "right unit": (compose(a, one), a),
        "left unit": (compose(one, a), a),
        "right inverse": (compose(a, invert(a)), one),
        "left inverse": (compose(invert(a), a), one),
        "inverse of inverse": (invert(invert(a)), a),
        "inverse of product": (invert(compose(a, b)), compose(invert(b), invert(a))),
        "associative": (compose(compose(a, b), c), compose(a, compose(b, c))),
        "acts on points": (move(compose(a, b), points), move(a, move(b, points))),
    }


@many
@given(seeds, st.sampled_from([(), (2, 3)]))
def test_rigid_transforms_form_a_group(seed, lead):
    cameras = [random_cameras((seed, i), lead)[0] for i in range(3)]
    points = np.random.default_rng(seed).normal(size=(*lead, 6, 3)).astype(np.float32)
    for axiom, (got, want) in group_axioms(*cameras, points).items():
        np.testing.assert_allclose(got, want, atol=2e-5, rtol=0, err_msg=axiom)


@many
@given(seeds, st.sampled_from([(1, 1), (5, 9)]), st.floats(-5, 5, width=32))
def test_projection_undoes_unprojection(seed, size, skew):
    extrinsics, intrinsics = random_cameras(seed, (2, 3))
    intrinsics[..., 0, 1] = skew
    depth = np.random.default_rng(seed).uniform(1, 5, (2, 3, *size)).astype(np.float32)
    world, cam, mask = unproject_to_world(depth, extrinsics, intrinsics)
    assert mask.all()
    pixels, seen = project(world, extrinsics, intrinsics)
    grid = np.stack(np.meshgrid(np.arange(size[1]), np.arange(size[0])), -1)
    # Pixels: focal length 200 times float32 noise of coordinates up to 10.
    np.testing.assert_allclose(pixels, np.broadcast_to(grid, pixels.shape), atol=2e-3)
    np.testing.assert_allclose(seen, cam, atol=2e-5)
    np.testing.assert_array_equal(cam[..., 2], depth)


@jax.jit
def in_two_frames(extrinsics, intrinsics, move, depth, mask, unit):
    world, cam, _ = unproject_to_world(depth, extrinsics, intrinsics)
    first = normalize_scene(extrinsics, world, depth, mask)
    other = geometry.compose_se3(extrinsics, invert_se3(move))
    other = other.at[..., 3].multiply(unit)
    moved = transform_points(move, world) * unit
    second = normalize_scene(other, moved, depth * unit, mask)
    return first, second, cam, transform_points(first[0], first[1])


@settings(max_examples=20, deadline=None)
@given(seeds, st.floats(0.125, 8, width=32))
def test_normalized_scenes_do_not_depend_on_world_frame_and_unit(seed, unit):
    rng = np.random.default_rng(seed)
    extrinsics, intrinsics = random_cameras(seed, (2, 3))
    move, _ = random_cameras((seed, 1), (2, 1))
    depth = rng.uniform(1, 5, (2, 3, 4, 5)).astype(np.float32)
    mask = rng.random((2, 3, 4, 5)) < 0.7

    first, second, cam, seen = in_two_frames(
        extrinsics, intrinsics, move, depth, mask, np.float32(unit)
    )
    for a, b in zip(first[:3], second[:3], strict=True):
        np.testing.assert_allclose(a, b, atol=5e-5)
    np.testing.assert_allclose(second[3], first[3] * unit, rtol=5e-5)
    # View 0 is the world, and the mean distance of valid points is 1 (but for the 1e-3).
    np.testing.assert_allclose(first[0][:, 0], np.broadcast_to(np.eye(3, 4), (2, 3, 4)), atol=2e-6)
    dist = np.where(mask, np.linalg.norm(first[1], axis=-1), 0).sum((1, 2, 3))
    np.testing.assert_allclose(dist / mask.sum((1, 2, 3)), 1, rtol=1e-3)
    # Cameras, points and depths still belong together.
    np.testing.assert_allclose(seen, cam / first[3][:, None, None, None, None], atol=5e-5)
    np.testing.assert_allclose(seen[..., 2], first[2], atol=5e-5)


# Bad values


def test_points_without_a_pixel_get_the_default():
    extrinsics, intrinsics = random_cameras(0)
    extrinsics = np.eye(3, 4, dtype=np.float32)
    bad = [[0, 0, 0], [1, 2, 0], [np.nan, 0, 1], [np.inf, 0, 1], [1, 1, -np.inf]]
    points = np.float32([*bad, [1, 1, 2], [1, 1, -2]])
    pixels, cam = project(points, extrinsics, intrinsics, default=-7.0)
    np.testing.assert_array_equal(pixels[:5], -7)
    focal, center = intrinsics[[0, 1], [0, 1]], intrinsics[:2, 2]
    np.testing.assert_allclose(pixels[5:], [focal / 2 + center, -focal / 2 + center], rtol=1e-5)
    assert np.isnan(cam[2:5]).all()
    assert np.isfinite(cam[5:]).all()


@pytest.mark.parametrize("bad", [0.0, -3.0, 1e-9, np.nan, np.inf, -np.inf])
def test_bad_depths_are_masked_and_leave_finite_gradients(bad):
    extrinsics, intrinsics = random_cameras(3, (2,))
    depth = np.full((2, 3, 4), 2.0, np.float32)
    depth[:, 1, 2] = bad

    def total(depth, extrinsics, intrinsics):
        world, cam, mask = unproject_to_world(depth, extrinsics, intrinsics)
        return jnp.where(mask[..., None], world + cam, 0).sum(), (world, mask)

    wanted = np.ones((2, 3, 4), bool)
    wanted[:, 1, 2] = False
    slope = jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))
    grads, (world, mask) = slope(depth, extrinsics, intrinsics)
    np.testing.assert_array_equal(mask, wanted)
    assert np.isfinite(world).all()
    assert all(np.isfinite(g).all() for g in grads)
    np.testing.assert_array_equal(grads[0][:, 1, 2], 0)


def test_bad_points_leave_finite_gradients_of_projection():
    extrinsics, intrinsics = random_cameras(4)
    good = np.asarray(transform_points(invert_se3(extrinsics), [0.3, 0.2, 2.0]))
    center = -extrinsics[:, :3].T @ extrinsics[:, 3]
    points = np.stack([good, center, np.full(3, np.nan), np.full(3, np.inf)]).astype(np.float32)

    def total(points, extrinsics, intrinsics):
        pixels, cam = project(points, extrinsics, intrinsics)
        return pixels.sum() + jnp.where(jnp.isfinite(cam), cam, 0).sum()

    # Exactly in the center, so that z is 0 and not only small.
    extrinsics[:, 3] = 0
    points[1] = 0
    slope = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))
    value, grads = slope(points, extrinsics, intrinsics)
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in grads)
    np.testing.assert_array_equal(grads[0][2:], 0)
    assert np.abs(grads[0][0]).max() > 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_points_outside_of_the_mask_do_not_change_the_scene_scale(bad):
    rng = np.random.default_rng(5)
    extrinsics, _ = random_cameras(5, (2, 3))
    points = rng.normal(size=(2, 3, 4, 5, 3)).astype(np.float32)
    depth = rng.uniform(1, 2, (2, 3, 4, 5)).astype(np.float32)
    mask = rng.random((2, 3, 4, 5)) < 0.5
    broken = np.where(mask[..., None], points, np.float32(bad))
    normalize = normalize_scene
    clean = normalize(extrinsics, points, depth, mask)
    scene = normalize(extrinsics, broken, depth, mask)
    np.testing.assert_array_equal(scene[3], clean[3])
    np.testing.assert_array_equal(scene[1][mask], clean[1][mask])
    assert np.isfinite(scene[1]).all()
    grad = jax.jit(jax.grad(lambda x: normalize(extrinsics, x, depth, mask)[3].sum()))(broken)
    assert np.isfinite(grad).all()
    np.testing.assert_array_equal(np.asarray(grad)[~mask], 0)


def test_a_scene_without_points_stays_finite():
    extrinsics, _ = random_cameras(6, (1, 2))
    shape = (1, 2, 3, 4)
    data = np.ones((*shape, 3), np.float32), np.ones(shape, np.float32), np.zeros(shape, bool)
    scene = normalize_scene(extrinsics, *data)
    assert scene[3] == np.float32(1e-6)
    assert all(np.isfinite(x).all() for x in scene)


# Derivatives, transformations, types


@pytest.mark.slow
def test_gradients_agree_with_differences():
    extrinsics, intrinsics = random_cameras(7, (2,))
    world = transform_points(
        invert_se3(extrinsics), np.float32([[[0.3, 0.2, 2]], [[-0.5, 0.1, 3]]])
    )

    def through(extrinsics, scale, world):
        enc = cameras_to_pose_encoding(extrinsics, intrinsics * scale, SIZE)
        extrinsics, k = pose_encoding_to_cameras(enc, SIZE)
        return project(world, extrinsics, k)[0] / 100

    point = (extrinsics, np.float32(1.1), np.asarray(world))
    check_grads(jax.jit(through), point, order=1, atol=1e-2, rtol=1e-2)


def test_vmap_is_the_leading_axis():
    extrinsics, intrinsics = random_cameras(8, (4,))
    depth = np.random.default_rng(8).uniform(1, 2, (4, 5, 6)).astype(np.float32)
    whole = unproject_to_world(depth, extrinsics, intrinsics)
    parts = jax.jit(jax.vmap(geometry.unproject_to_world))(depth, extrinsics, intrinsics)
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_float16_is_raised_and_float64_is_kept():
    half = mat_to_quat(jnp.eye(3, dtype=jnp.bfloat16))
    assert half.dtype == jnp.float32
    with jax.enable_x64(True):
        extrinsics, _ = random_cameras(9)
        rotation = np.linalg.qr(extrinsics[:, :3].astype(np.float64))[0]
        rotation *= np.linalg.det(rotation)
        quat = mat_to_quat(rotation)
        assert quat.dtype == jnp.float64
        np.testing.assert_allclose(quat_to_mat(quat), rotation, atol=1e-14)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: quat_to_mat(np.zeros((2, 3))), r"quat: expected shape \[\.\.\., 4\]"),
        (lambda: mat_to_quat(np.zeros((3, 4))), "mat: expected shape"),
        (lambda: invert_se3(np.zeros((4, 3))), "se3: expected shape"),
        (lambda: pose_encoding_to_cameras(np.zeros(8), SIZE), "pose_enc: expected"),
        (
            lambda: unproject(np.zeros((2, 5, 6, 1)), np.zeros((2, 3, 3))),
            r"drop a channel axis with depth\[\.\.\., 0\]",
        ),
        (
            lambda: transform_points(np.zeros((2, 3, 4)), np.zeros((3, 7, 3))),
            "points: expected the leading axes",
        ),
        (
            lambda: normalize_scene(
                np.zeros((1, 2, 3, 4)), np.zeros((1, 2, 5, 3)), np.zeros((1, 2, 5)), True
            ),
            "world_points, depth, mask: expected",
        ),
    ],
)
def test_wrong_shapes_are_named(call, said):
    with pytest.raises(InputError, match=said) as error:
        call()
    assert "\n" not in str(error.value)
