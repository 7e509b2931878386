"""The objective of pi^3: what it does not depend on, and its closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lite3r_jax import geometry
from lite3r_jax.errors import InputError
from lite3r_jax.losses.multitask import Targets
from lite3r_jax.losses.scale_aligned import ScaleAligned, fit_scale, scale_aligned_loss

H, W = 12, 16
loss = jax.jit(scale_aligned_loss, static_argnums=0)
fit = jax.jit(fit_scale, static_argnums=3)


@pytest.fixture(scope="module")
def scene():
    """(targets of 3 views with smooth depth, true points in the camera frame)."""
    rng = np.random.default_rng(0)
    v, u = np.mgrid[:H, :W]
    depth = 2 + 0.02 * u + 0.01 * v + 0.3 * rng.random((1, 3, 1, 1))
    quat = np.array([0, 0, 0, 1]) + 0.2 * rng.standard_normal((1, 3, 4))
    rotation = np.asarray(geometry.quat_to_mat(quat))
    extrinsics = np.concatenate([rotation, rng.standard_normal((1, 3, 3, 1))], -1)
    k = np.broadcast_to(np.array([[20.0, 0, 7.5], [0, 20, 5.5], [0, 0, 1]]), (1, 3, 3, 3))
    mask = np.ones((1, 3, H, W), bool)
    mask[0, 0, :3] = False
    arrays = (np.asarray(a, np.float32) for a in (extrinsics, k, depth))
    targets = Targets(*arrays, mask)
    return targets, np.asarray(geometry.unproject(targets.depth, targets.intrinsics)[0])


def moved(extrinsics, scale):
    """The same cameras in another world: turned, shifted, in another unit."""
    turn = np.asarray(geometry.quat_to_mat(np.array([0.3, -0.2, 0.5, 1], np.float32)))
    world = np.concatenate([turn, np.array([[1.0], [2], [3]], np.float32)], -1)
    changed = np.array(geometry.compose_se3(extrinsics, np.broadcast_to(world, extrinsics.shape)))
    changed[..., 3] *= scale
    return changed


# Angles below one degree count as one: half its square over three degrees.
FLOOR = np.radians(1) ** 2 / (2 * np.radians(3)) / W


@pytest.mark.parametrize("scale", [1.0, 0.05, 30.0])
def test_neither_unit_nor_world_of_a_prediction_count(scene, scale):
    targets, points = scene
    value, terms = loss(
        ScaleAligned(), targets, points=scale * points, extrinsics=moved(targets.extrinsics, scale)
    )
    assert terms["loss_points"] < 1e-5
    np.testing.assert_allclose(terms["loss_normals"], FLOOR, rtol=1e-3)
    assert terms["loss_cameras"] < 5e-3, "the arc cosine begins at its clip"
    np.testing.assert_allclose(value, FLOOR, atol=1e-3)


def test_points_and_poses_that_are_off_cost_what_the_formula_says(scene):
    targets, points = scene
    off = points.copy()
    off[0, 1, 5, 5] *= 1.1
    _, terms = loss(ScaleAligned(), targets, points=off, extrinsics=targets.extrinsics)
    mask = targets.mask
    unit = np.linalg.norm(points[mask], axis=-1).mean()
    q = points[0, 1, 5, 5] / unit
    np.testing.assert_allclose(
        terms["loss_points"], 0.1 * np.abs(q).sum() / q[2] / (3 * mask.sum()), rtol=0.02
    )
    turned = np.array(targets.extrinsics)
    turn = np.asarray(geometry.quat_to_mat(np.array([0, 0, np.sin(0.1), np.cos(0.1)], "f4")))
    turned[0, 2] = turn @ turned[0, 2]  # about its own axis, in place, by 0.2 radians
    _, terms = loss(ScaleAligned(), targets, points=points, extrinsics=turned)
    pairs = np.asarray(terms["loss_cameras"]) * 6
    assert pairs > 4 * 0.2, "four of six ordered pairs turn, and two of them also shift"


def test_the_scale_is_the_least_weighted_absolute_error():
    rng = np.random.default_rng(1)
    truth = rng.uniform(0.5, 2, (1, 5, 6, 3)).astype(np.float32)
    points = truth / 3 * rng.lognormal(0, 0.3, truth.shape).astype(np.float32)
    weight = rng.random((1, 5, 6)).astype(np.float32)
    weight[0, 0] = 0
    scale = float(fit(points, truth, weight, 4096))
    candidates = np.linspace(1, 6, 5001)
    cost = [(weight[..., None] * np.abs(s * points - truth)).sum() for s in candidates]
    assert abs(scale - candidates[np.argmin(cost)]) < 2e-3
    assert fit(points, truth, 0 * weight, 4096) == 1


@pytest.mark.slow
def test_of_many_points_an_even_sample_tells_the_scale():
    truth = np.random.default_rng(2).uniform(0.5, 2, (2, 20, 30, 3)).astype(np.float32)
    weight = np.ones((2, 20, 30), np.float32)
    weight[0] = 0
    points = truth / 3
    points[0] = truth[0]  # what is not valid has no say
    np.testing.assert_allclose(fit(points, truth, weight, 64), 3, rtol=1e-5)


def test_gradients_are_finite_at_the_truth_and_without_any(scene):
    targets, points = scene
    empty = Targets(
        targets.extrinsics, targets.intrinsics, 0 * targets.depth, np.zeros_like(targets.mask)
    )
    gradient = jax.jit(jax.grad(lambda p, e, t: loss(ScaleAligned(), t, points=p, extrinsics=e)[0],
                                argnums=(0, 1)))  # fmt: skip
    for truth in (targets, empty):
        gradients = gradient(jnp.asarray(points), jnp.asarray(targets.extrinsics), truth)
        assert all(np.isfinite(g).all() for g in gradients)
    assert loss(ScaleAligned(), empty, points=points, extrinsics=targets.extrinsics)[0] == 0
    off = np.asarray(points) * np.array([1.1, 1, 1], np.float32)
    by_points, _ = gradient(jnp.asarray(off), jnp.asarray(targets.extrinsics), targets)
    assert np.abs(by_points).max() > 1e-5 and not np.abs(by_points[~targets.mask]).any()


def test_other_shapes_are_refused(scene):
    targets, points = scene
    with pytest.raises(InputError, match=r"points, extrinsics: expected \(1, 3, 12, 16, 3\)"):
        scale_aligned_loss(
            ScaleAligned(), targets, points=points[:, :2], extrinsics=targets.extrinsics
        )
