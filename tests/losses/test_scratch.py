"""The loss for training from scratch: against NumPy, and what it must not depend on."""

import functools

import jax
import numpy as np
import pytest

from lite3r_jax.errors import InputError
from lite3r_jax.geometry import cameras_to_pose_encoding
from lite3r_jax.losses import HuberCamera, LogDepth, ScratchLoss, Targets, scratch_loss

B, S, H, W = 2, 3, 6, 5
FULL = ScratchLoss(depth=LogDepth(conf=0.7))
encode = jax.jit(cameras_to_pose_encoding, static_argnums=2)


def case(seed=0):
    """(targets, predictions), all NumPy."""
    rng = np.random.default_rng(seed)
    pose = np.tile(np.eye(3, 4, dtype=np.float32), (B, S, 1, 1))
    pose[..., 3] = rng.standard_normal((B, S, 3))
    focal = np.tile(np.float32([[W, 0, W / 2], [0, W, H / 2], [0, 0, 1]]), (B, S, 1, 1))
    depth = rng.uniform(0.5, 3, (B, S, H, W)).astype(np.float32)
    mask = rng.uniform(size=depth.shape) > 0.3
    truth = np.array(encode(pose, focal, (H, W)))
    stages = truth + 0.1 * rng.standard_normal((2, B, S, 9))
    predictions = {
        "pose_enc_list": stages.astype(np.float32),
        "depth": np.float32(depth * rng.uniform(0.5, 2, depth.shape))[..., None],
        "depth_conf": rng.uniform(1, 4, depth.shape).astype(np.float32),
    }
    return Targets(pose, focal, np.where(mask, depth, 0), mask), truth, predictions


@functools.partial(jax.jit, static_argnums=0)
def loss(settings, targets, predictions):
    return scratch_loss(settings, targets, **predictions)


@functools.partial(jax.jit, static_argnums=0)
def slope(settings, targets, predictions):
    return jax.grad(lambda predictions: scratch_loss(settings, targets, **predictions)[0])(
        predictions
    )


def huber(x, delta):
    return np.where(abs(x) < delta, x * x / (2 * delta), abs(x) - delta / 2)


@pytest.mark.parametrize("align", [False, True])
def test_values_are_those_of_the_formula(align):
    targets, truth, predictions = case()
    m = targets.mask
    e = np.log(predictions["depth"][..., 0].astype(float)) - np.log(np.where(m, targets.depth, 1.0))
    shift = np.array([e[b][m[b]].mean() for b in range(B)]) * align
    e = e - shift[:, None, None, None]
    want = {"loss_depth": abs(e[m]).mean()}
    down, right = m[:, :, 1:] & m[:, :, :-1], m[..., 1:] & m[..., :-1]
    want["loss_grad"] = abs(np.diff(e, axis=2))[down].mean() + abs(np.diff(e, axis=3))[right].mean()
    c = predictions["depth_conf"][m].astype(float)
    want["loss_conf"] = (abs(e[m]) * c - 0.2 * np.log(c)).mean()
    stages = predictions["pose_enc_list"].astype(float)
    stages[..., :3] *= np.exp(-shift)[:, None, None]
    error, weights = stages - truth, np.array([0.6, 1.0]) / 2
    for name, part, f in (
        ("loss_T", slice(0, 3), lambda x: huber(x, 0.05)),
        ("loss_R", slice(3, 7), lambda x: huber(x, 0.02)),
        ("loss_FL", slice(7, 9), abs),
    ):
        want[name] = (weights * f(error[..., part]).sum(-1).mean((1, 2))).sum()
    settings = ScratchLoss(depth=LogDepth(conf=0.7), align=align)
    value, terms = loss(settings, targets, predictions)
    for name, x in want.items():
        np.testing.assert_allclose(terms[name], x, rtol=2e-5, err_msg=name)
    total = want["loss_depth"] + 0.5 * want["loss_grad"] + 0.7 * want["loss_conf"]
    total += 2 * (want["loss_T"] + 2 * want["loss_R"] + 0.3 * want["loss_FL"])
    np.testing.assert_allclose(value, total, rtol=2e-5)
    assert terms["nonfinite_depth"] == terms["nonfinite_camera"] == 0


def test_an_exact_prediction_costs_nothing():
    targets, truth, predictions = case()
    predictions["depth"] = np.where(targets.mask, targets.depth, 7)[..., None]
    predictions["pose_enc_list"] = truth[None]
    np.testing.assert_allclose(loss(ScratchLoss(), targets, predictions)[0], 0, atol=1e-6)


@pytest.mark.slow
def test_aligned_the_unit_of_a_scene_does_not_matter_and_has_no_slope():
    targets, _, predictions = case()
    settings = ScratchLoss(align=True)
    unit = np.float32([3.0, 0.2])
    scaled = dict(predictions, depth=predictions["depth"] * unit[:, None, None, None, None],
                  pose_enc_list=predictions["pose_enc_list"].copy())  # fmt: skip
    scaled["pose_enc_list"][..., :3] *= unit[:, None, None]
    np.testing.assert_allclose(
        loss(settings, targets, scaled)[0], loss(settings, targets, predictions)[0], rtol=1e-5
    )
    grads = slope(settings, targets, predictions)
    along = (grads["depth"] * predictions["depth"]).sum((1, 2, 3, 4))
    along += (grads["pose_enc_list"] * predictions["pose_enc_list"])[..., :3].sum((0, 2, 3))
    np.testing.assert_allclose(along, 0, atol=1e-5)
    plain = ScratchLoss()
    assert abs(loss(plain, targets, scaled)[0] - loss(plain, targets, predictions)[0]) > 0.1


def test_confidence_learns_the_error_and_does_not_change_what_depth_learns():
    targets, _, predictions = case()
    grads, plain = slope(FULL, targets, predictions), slope(ScratchLoss(), targets, predictions)
    np.testing.assert_array_equal(grads["depth"], plain["depth"])
    e = np.log(predictions["depth"][..., 0]) - np.log(np.where(targets.mask, targets.depth, 1))
    best = dict(predictions, depth_conf=np.where(targets.mask, 0.2 / abs(e), 1))
    np.testing.assert_allclose(slope(FULL, targets, best)["depth_conf"], 0, atol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0, 0.0])
def test_what_is_masked_or_broken_reaches_no_value_and_no_gradient(bad):
    targets, _, predictions = case()
    hidden = {k: x.copy() for k, x in predictions.items()}
    hidden["depth"][~targets.mask] = bad
    hidden["depth_conf"][~targets.mask] = bad
    np.testing.assert_array_equal(
        loss(FULL, targets, hidden)[0], loss(FULL, targets, predictions)[0]
    )
    seen = {k: x.copy() for k, x in predictions.items()}
    seen["depth"][targets.mask.nonzero()[0][0], 0, :2] = bad
    seen["depth_conf"][0, 0, :2] = bad
    seen["pose_enc_list"][0, 0, 1, :4] = bad
    value, terms = loss(FULL, targets, seen)
    assert np.isfinite(value)
    for name, x in slope(FULL, targets, seen).items():
        assert np.isfinite(x).all(), name
    count = targets.mask[0, 0, :2].sum() if not np.isfinite(bad) else 0
    assert terms["nonfinite_depth"] == count
    assert terms["nonfinite_camera"] == (4 if not np.isfinite(bad) else 0)


def test_a_batch_without_depth_has_a_loss_of_zero():
    targets, _, predictions = case()
    empty = Targets(targets.extrinsics, targets.intrinsics, targets.depth, targets.mask & False)
    aligned = ScratchLoss(align=True)
    assert loss(aligned, empty, predictions)[0] == 0
    assert all((x == 0).all() for x in slope(aligned, empty, predictions).values())


@pytest.mark.parametrize(
    "settings,drop,message",
    [
        (ScratchLoss(), "depth", r"depth: expected \(2, 3, 6, 5, 1\) as the targets are, got None"),
        (ScratchLoss(), "pose_enc_list", "pose_enc_list: expected .* got None"),
        (FULL, "depth_conf", r"depth_conf: expected .* got None; or LogDepth\(conf=0\)"),
    ],
)
def test_parts_without_their_prediction_are_refused(settings, drop, message):
    targets, _, predictions = case()
    with pytest.raises(InputError, match=message):
        jax.eval_shape(
            functools.partial(scratch_loss, settings),
            targets,
            **{k: x for k, x in predictions.items() if k != drop},
        )


def test_a_loss_of_nothing_is_refused():
    with pytest.raises(InputError, match="both are None"):
        ScratchLoss(camera=None, depth=None)
    ScratchLoss(camera=HuberCamera(), depth=None)
