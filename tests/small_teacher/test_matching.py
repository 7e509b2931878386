"""Which patches show the same place: against a plane, a generated room, and NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lite3r_jax.data.synthetic.source import SyntheticScenes
from lite3r_jax.data.transforms import normalize
from lite3r_jax.errors import InputError
from lite3r_jax.losses import Targets
from lite3r_jax.small_teacher.matching import flow_loss, match_loss, matches, point_loss

PATCH, SIDE = 8, 32
N = (SIDE // PATCH) ** 2
matches_of = jax.jit(matches, static_argnums=1)


def plane(shift, depth=2.0, wall=None):
    """Two cameras before a wall, the second moved to the right by `shift` pixels of the wall."""
    intrinsics = np.tile(np.float32([[40, 0, 15.5], [0, 40, 15.5], [0, 0, 1]]), (1, 2, 1, 1))
    extrinsics = np.tile(np.eye(3, 4, dtype=np.float32), (1, 2, 1, 1))
    extrinsics[0, 1, 0, 3] = -shift * depth / 40
    maps = np.full((1, 2, SIDE, SIDE), depth, np.float32)
    if wall is not None:
        maps[:, 1, :, : SIDE // 2] = wall
    return Targets(extrinsics, intrinsics, maps, maps > 0)


def test_without_motion_every_patch_is_itself():
    truth = matches_of(plane(0), PATCH)
    np.testing.assert_array_equal(truth.patch[0, 0], np.arange(N))
    middle = (np.arange(4) * PATCH + PATCH // 2 + 0.5) / SIDE * 2 - 1
    want = np.stack(np.meshgrid(middle, middle), -1).reshape(-1, 2)
    np.testing.assert_allclose(truth.flow[0, 0], want, atol=1e-5)
    assert truth.in_view.all()


def test_a_camera_that_moves_right_sees_everything_further_left():
    truth = matches_of(plane(PATCH), PATCH)
    want = np.arange(N).reshape(4, 4) - 1
    want[:, 0] = -1  # has left the image
    np.testing.assert_array_equal(truth.patch[0, 0].reshape(4, 4), want)
    still = matches_of(plane(0), PATCH)
    moved = truth.flow[0, 0].reshape(4, 4, 2) - still.flow[0, 0].reshape(4, 4, 2)
    np.testing.assert_allclose(moved[:, :3, 0], 2 * PATCH / SIDE, atol=1e-5)
    far = matches_of(plane(2 * PATCH), PATCH).in_view[0, 0].reshape(4, 4)
    np.testing.assert_array_equal(far, np.tile([True, True, True, False], (4, 1)))  # at 1.78


def test_what_is_hidden_has_no_match():
    truth = matches_of(plane(0, wall=1.0), PATCH)
    seen = np.asarray(truth.patch[0, 0].reshape(4, 4))
    np.testing.assert_array_equal(seen[:, :2], -1)
    np.testing.assert_array_equal(seen[:, 2:], np.arange(N).reshape(4, 4)[:, 2:])


def test_pixels_without_depth_count_nowhere():
    targets = plane(0)
    mask = targets.mask.copy()
    mask[0, 0, :PATCH] = False
    mask[0, 1, -PATCH:] = False
    depth = np.where(mask, targets.depth, np.nan)
    truth = matches_of(Targets(targets.extrinsics, targets.intrinsics, depth, mask), PATCH)
    seen = np.asarray(truth.patch[0, 0].reshape(4, 4))
    np.testing.assert_array_equal(seen[[0, 3]], -1)
    assert (seen[1:3] >= 0).all()
    assert not truth.in_view[0, 0, -4:].any() and not truth.valid[0, 0, :4].any()
    assert all(np.isfinite(x).all() for x in (truth.points, truth.flow))


def test_matches_in_a_generated_room_are_the_same_place():
    source = SyntheticScenes("validation", 1, 8)
    sample = normalize(source.read(source.scenes[0], (3, 4, 5), (112, 112)), "vggt")
    targets = Targets(*(x[None] for x in (sample.extrinsics, sample.intrinsics, sample.depth,
                                          sample.mask)))  # fmt: skip
    truth = matches_of(targets, PATCH)
    pick = np.asarray(truth.patch[0])
    assert 0.2 < (pick >= 0).mean() < 1
    here = np.asarray(truth.points[0, 0])
    for view, chosen in enumerate(pick, 1):
        seen = chosen >= 0
        there = np.asarray(truth.points[0, view])[chosen[seen]]
        apart = np.linalg.norm(here[seen] - there, axis=-1)
        size = sample.depth[view].mean() * PATCH / sample.intrinsics[view, 0, 0]
        assert np.median(apart) < 1.0 * size  # half a patch's diagonal, slanted
    # and the view that was seen from has its own patches where their points project
    x = (np.asarray(truth.flow[0]) + 1) / 2 * 112
    assert (np.abs(x[np.asarray(truth.in_view[0])] - 56) < 1.3 * 56).all()


def test_losses_vanish_at_the_truth_and_are_means_of_what_counts():
    truth = matches_of(plane(PATCH), PATCH)
    sharp = 100.0 * jax.nn.one_hot(truth.patch, N)
    assert match_loss(sharp, truth.patch) < 1e-6
    np.testing.assert_allclose(match_loss(jnp.zeros((1, 1, N, N)), truth.patch), np.log(N), 1e-6)
    assert flow_loss(truth.flow, truth) == 0 and point_loss(truth.points, truth) == 0
    np.testing.assert_allclose(flow_loss(truth.flow + 0.25, truth), 0.5, rtol=1e-6)
    np.testing.assert_allclose(point_loss(truth.points - 0.5, truth), 1.5, rtol=1e-6)
    worse = jnp.where(truth.in_view[..., None], truth.flow, 1e6)
    assert flow_loss(worse, truth) == 0


def test_nothing_to_match_has_no_loss_and_no_gradient():
    truth = matches_of(plane(4 * SIDE), PATCH)
    assert (np.asarray(truth.patch) == -1).all()
    value, slope = jax.value_and_grad(match_loss)(jnp.ones((1, 1, N, N)), truth.patch)
    assert value == 0 and not slope.any()


@pytest.mark.parametrize(("views", "patch"), [(1, 8), (2, 7)])
def test_bad_input_is_named(views, patch):
    targets = plane(0)
    cut = Targets(*(x[:, :views] for x in (targets.extrinsics, targets.intrinsics, targets.depth,
                                           targets.mask)))  # fmt: skip
    with pytest.raises(InputError, match="expected 2 or more views of multiples"):
        matches(cut, patch)
