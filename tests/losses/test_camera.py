"""Camera loss: closed forms, and which scenes count."""

import functools

import jax
import numpy as np
import pytest

from lite3r_jax.losses import CameraLoss, camera_terms

camera = jax.jit(camera_terms, static_argnums=0)


def cameras(stages=1, scenes=1, views=2):
    """Ground truth encodings, with all pixels valid."""
    rng = np.random.default_rng(1)
    truth = rng.uniform(0.5, 1.5, (scenes, views, 9)).astype(np.float32)
    return np.stack([truth] * stages), truth, np.ones((scenes, views, 11, 11), bool)


def test_camera_scale_is_held_between_a_tenth_and_ten():
    pred, truth, mask = cameras()
    for factor, left in ((1 / 20, 0.5), (20.0, 1.0)):
        pred[..., :3] = factor * truth[..., :3]
        want = left * np.abs(truth[..., :3]).mean()  # |20/10 - 1| = 1, |10/20 - 1| = 1/2
        got = camera(CameraLoss(), pred, truth, mask)["loss_T"]
        np.testing.assert_allclose(got, want, rtol=1e-5)


def test_camera_loss_by_hand():
    pred, truth, mask = cameras()
    pred[..., 3:7] += np.float32([3, 0, 0, -4])
    pred[..., 7:] += np.float32([0.6, 0.8])
    weights = {"trans": 7.0, "rot": 2.0, "focal": 0.5}
    terms = camera(CameraLoss(norm="l1", **weights), pred, truth, mask)
    np.testing.assert_allclose(terms["loss_T"], 0, atol=1e-6)
    np.testing.assert_allclose(terms["loss_R"], 7 / 4, rtol=1e-6)
    np.testing.assert_allclose(terms["loss_FL"], 0.7, rtol=1e-6)
    np.testing.assert_allclose(terms["loss_camera"], 2 * 7 / 4 + 0.5 * 0.7, rtol=1e-5)
    terms = camera(CameraLoss(norm="l2", **weights), pred, truth, mask)
    np.testing.assert_allclose(terms["loss_R"], 5, rtol=1e-6)
    np.testing.assert_allclose(terms["loss_FL"], 1, rtol=1e-6)


def test_later_stages_count_more():
    losses = []
    for stage in range(3):
        pred, truth, mask = cameras(stages=3)
        pred[stage, ..., 7:] += 1
        losses.append(camera(CameraLoss(gamma=0.6), pred, truth, mask)["loss_FL"])
    np.testing.assert_allclose(losses, [0.36 / 3, 0.6 / 3, 1 / 3], rtol=1e-5)


def test_opposite_quaternions_differ():
    pred, truth, mask = cameras()
    pred[..., 3:7] *= -1
    terms = camera(CameraLoss(), pred, truth, mask)
    np.testing.assert_allclose(terms["loss_R"], 2 * np.abs(truth[..., 3:7]).mean(), rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30, 5.0])
def test_view_zero_decides_which_scenes_count(bad):
    pred, truth, mask = cameras(scenes=3)
    pred = pred + 0.5
    mask[:] = False
    mask[0, 0].flat[:101] = True  # counts, though view 1 is empty
    mask[1, 0].flat[:100] = True  # does not, though view 1 is full
    mask[1, 1] = True
    alone = camera(CameraLoss(), pred[:, :1], truth[:1], mask[:1])
    pred[:, 1:] = bad

    @functools.partial(jax.grad, has_aux=True)
    def slope(pred):
        terms = camera(CameraLoss(), pred, truth, mask)
        return terms["loss_camera"], terms

    grad, terms = slope(pred)
    for name, want in alone.items():
        np.testing.assert_array_equal(terms[name], want, err_msg=name)
    assert alone["loss_camera"] > 0
    np.testing.assert_array_equal(grad[:, 1:], 0)
    assert np.abs(grad[:, 0, :, 3:]).min() > 0
