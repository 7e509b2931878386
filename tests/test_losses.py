"""Losses: the original's values and gradients, closed forms, and what must have no influence."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lite3r_jax.errors import InputError
from lite3r_jax.losses import (
    CameraLoss,
    MapLoss,
    Masked,
    MultitaskLoss,
    Targets,
    camera_terms,
    difference_term,
    filter_by_quantile,
    kth_smallest,
    map_terms,
    multitask_loss,
    normal_term,
)
from lite3r_jax.losses.masked import quantile_rank

VALUE_GATE, GRADIENT_GATE = 1e-5, 1e-4
CASES = (
    "default",
    "lite3r",
    "with_points",
    "l2_conf_nofilter",
    "one_invalid_scene",
    "scale_clamped",
    "few_points",
)


def read_camera(config):
    names = {
        "weight": "weight",
        "loss_type": "norm",
        "gamma": "gamma",
        "weight_trans": "trans",
        "weight_rot": "rot",
        "weight_focal": "focal",
    }
    return CameraLoss(**{names[key]: value for key, value in config.items()})


def read_map(config):
    config = dict(config)
    kind, keep = config.pop("gradient_loss_fn"), config.pop("valid_range")
    gradient, _, conf = kind.partition("_")
    return MapLoss(
        gradient=gradient or "none",
        gradient_conf=conf == "conf",
        valid_range=keep if keep > 0 else None,
        **config,
    )


# The original's numbers


def test_the_cases_are_all_of_the_original(golden_dir):
    cases = json.loads((golden_dir / "modules" / "loss_cases.json").read_text())
    assert set(cases) == set(CASES)


@pytest.mark.parametrize("case", CASES)
def test_every_value_and_gradient_agrees_with_the_original(case, golden, golden_dir, parity):
    recipe = json.loads((golden_dir / "modules" / "loss_cases.json").read_text())[case]
    data, config = golden("modules/loss"), recipe["config"]
    with_points = "points" in recipe["heads"]
    loss = MultitaskLoss(
        camera=read_camera(config["camera"]),
        depth=read_map(config["depth"]),
        points=read_map(config["point"]) if with_points else None,
    )
    scale = {name: np.float32(x) for name, x in recipe["scale"].items()}
    pose = np.stack([data[f"pred_pose_enc_{i}"] for i in range(4)])
    pose[..., :3] *= scale.get("pose", np.float32(1))
    preds = {"pose_enc_list": pose}
    for name in ("depth", "world_points") if with_points else ("depth",):
        preds[name] = data[f"pred_{name}"] * scale.get(name, np.float32(1))
        preds[f"{name}_conf"] = data[f"pred_{name}_conf"]
    targets = Targets(
        extrinsics=data["batch_extrinsics"],
        intrinsics=data["batch_intrinsics"],
        depth=data["batch_depths"],
        mask=data[recipe["mask"]],
        world_points=data["batch_world_points"] if with_points else None,
    )

    @jax.jit
    def value_and_gradient(preds, targets):
        def objective(preds):
            return multitask_loss(loss, targets, **preds)

        return jax.value_and_grad(objective, has_aux=True)(preds)

    (objective, terms), grads = value_and_gradient(preds, targets)
    found = {name: x for name, x in terms.items() if not name.startswith("nonfinite")}
    assert all(terms[name] == 0 for name in terms.keys() - found.keys())
    found |= {"objective": objective}
    found |= {f"grad_pose_enc_{i}": x for i, x in enumerate(grads.pop("pose_enc_list"))}
    found |= {f"grad_{name}": x for name, x in grads.items()}
    assert found.keys() == {key.split("/")[1] for key in data if key.startswith(f"{case}/")}
    for name, got in found.items():
        want = data[f"{case}/{name}"]
        assert got.dtype == jnp.float32
        gate = GRADIENT_GATE if name.startswith("grad_") else VALUE_GATE
        parity("modules/loss", f"{case}/{name}", got, want, gate, relative=bool(np.any(want)))


# A batch that all other tests use

B, S, H, W = 2, 3, 20, 24


@pytest.fixture
def batch():
    """(targets, predictions): 60 % of the pixels valid, predictions near the truth."""
    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    rotation = np.linalg.qr(normal(B, S, 3, 3))[0]
    rotation *= np.linalg.det(rotation)[..., None, None]
    extrinsics = np.concatenate([rotation, normal(B, S, 3, 1)], -1)
    intrinsics = np.broadcast_to(
        np.float32([[20, 0, W / 2], [0, 22, H / 2], [0, 0, 1]]), (B, S, 3, 3)
    )
    depth = rng.uniform(0.5, 2, (B, S, H, W)).astype(np.float32)
    points = normal(B, S, H, W, 3)
    targets = Targets(extrinsics, intrinsics, depth, rng.random((B, S, H, W)) < 0.6, points)
    preds = {
        "pose_enc_list": normal(3, B, S, 9),
        "depth": (depth + 0.1 * normal(B, S, H, W))[..., None],
        "depth_conf": 1 + np.exp(normal(B, S, H, W)),
        "world_points": points + 0.1 * normal(B, S, H, W, 3),
        "world_points_conf": 1 + np.exp(normal(B, S, H, W)),
    }
    return targets, preds


def evaluate(loss, targets, preds):
    """Terms with the objective, and the gradients of the objective."""
    run = jax.jit(jax.value_and_grad(lambda p: multitask_loss(loss, targets, **p), has_aux=True))
    (objective, terms), grads = run(preds)
    return terms | {"objective": objective}, grads


# Camera


def cameras(stages=1, scenes=1, views=2):
    """Ground truth encodings, with all pixels valid."""
    rng = np.random.default_rng(1)
    truth = rng.uniform(0.5, 1.5, (scenes, views, 9)).astype(np.float32)
    return np.stack([truth] * stages), truth, np.ones((scenes, views, 11, 11), bool)


@pytest.mark.parametrize("factor", [1.0, 0.25, 8.0, -0.5, -3.0])
@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_camera_loss_does_not_see_the_scale_of_translations(batch, factor, norm):
    targets, preds = batch
    loss = MultitaskLoss(camera=CameraLoss(norm=norm), depth=None)
    want, _ = evaluate(loss, targets, preds)
    preds["pose_enc_list"] = preds["pose_enc_list"] * np.float32([factor] * 3 + [1] * 6)
    # The noise of these translations fits with about 0.1, at the limit: give it a clear direction.
    preds["pose_enc_list"][..., :3] += 3 * factor * targets.extrinsics[..., 3]
    base = {**preds, "pose_enc_list": preds["pose_enc_list"] / np.float32([factor] * 3 + [1] * 6)}
    want, _ = evaluate(loss, targets, base)
    got, _ = evaluate(loss, targets, preds)
    for name in ("loss_T", "loss_R", "loss_FL", "loss_camera"):
        np.testing.assert_allclose(got[name], want[name], rtol=1e-5)


def test_camera_scale_is_held_between_a_tenth_and_ten():
    pred, truth, mask = cameras()
    for factor, left in ((1 / 20, 0.5), (20.0, 1.0)):
        pred[..., :3] = factor * truth[..., :3]
        want = left * np.abs(truth[..., :3]).mean()  # |20/10 - 1| = 1, |10/20 - 1| = 1/2
        got = camera_terms(CameraLoss(), pred, truth, mask)["loss_T"]
        np.testing.assert_allclose(got, want, rtol=1e-5)


def test_camera_loss_by_hand():
    pred, truth, mask = cameras()
    pred[..., 3:7] += np.float32([3, 0, 0, -4])
    pred[..., 7:] += np.float32([0.6, 0.8])
    weights = {"trans": 7.0, "rot": 2.0, "focal": 0.5}
    found = camera_terms(CameraLoss(norm="l1", **weights), pred, truth, mask)
    np.testing.assert_allclose(found["loss_T"], 0, atol=1e-6)
    np.testing.assert_allclose(found["loss_R"], 7 / 4, rtol=1e-6)
    np.testing.assert_allclose(found["loss_FL"], 0.7, rtol=1e-6)
    np.testing.assert_allclose(found["loss_camera"], 2 * 7 / 4 + 0.5 * 0.7, rtol=1e-5)
    found = camera_terms(CameraLoss(norm="l2", **weights), pred, truth, mask)
    np.testing.assert_allclose(found["loss_R"], 5, rtol=1e-6)
    np.testing.assert_allclose(found["loss_FL"], 1, rtol=1e-6)


def test_later_stages_count_more():
    losses = []
    for stage in range(3):
        pred, truth, mask = cameras(stages=3)
        pred[stage, ..., 7:] += 1
        losses.append(camera_terms(CameraLoss(gamma=0.6), pred, truth, mask)["loss_FL"])
    np.testing.assert_allclose(losses, [0.36 / 3, 0.6 / 3, 1 / 3], rtol=1e-5)


def test_opposite_quaternions_differ():
    pred, truth, mask = cameras()
    pred[..., 3:7] *= -1
    found = camera_terms(CameraLoss(), pred, truth, mask)
    np.testing.assert_allclose(found["loss_R"], 2 * np.abs(truth[..., 3:7]).mean(), rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30, 5.0])
def test_view_zero_decides_which_scenes_count(bad):
    pred, truth, mask = cameras(scenes=3)
    pred = pred + 0.5
    mask[:] = False
    mask[0, 0].flat[:101] = True  # counts, though view 1 is empty
    mask[1, 0].flat[:100] = True  # does not, though view 1 is full
    mask[1, 1] = True
    alone = camera_terms(CameraLoss(), pred[:, :1], truth[:1], mask[:1])
    pred[:, 1:] = bad

    def total(pred):
        found = camera_terms(CameraLoss(), pred, truth, mask)
        return found["loss_camera"], found

    grad, found = jax.grad(total, has_aux=True)(pred)
    for name, want in alone.items():
        np.testing.assert_array_equal(found[name], want, err_msg=name)
    assert alone["loss_camera"] > 0
    np.testing.assert_array_equal(grad[:, 1:], 0)
    assert np.abs(grad[:, :1]).min() > 0 or np.isfinite(grad).all()


# Depth and points


def test_map_loss_by_hand():
    # s = <2, p> / <p, p> = 0.8; residuals 1.2 and 0.4.
    pred = np.where(np.arange(144) % 2, 3, 1).astype(np.float32).reshape(1, 1, 12, 12, 1)
    truth, mask = np.full_like(pred, 2), np.ones((1, 1, 12, 12), bool)
    conf = np.full(mask.shape, 5, np.float32)
    found = map_terms(MapLoss(gamma=0.5, alpha=0.3), pred, conf, truth, mask)
    np.testing.assert_allclose(found["reg"], 0.8, rtol=1e-6)
    np.testing.assert_allclose(found["conf"], 0.5 * 0.8 * 5 - 0.3 * np.log(5), rtol=1e-5)
    assert found["grad"] == 0
    conf[:] = -1  # held at 1e-3
    found = map_terms(MapLoss(gamma=0.5, alpha=0.3), pred, conf, truth, mask)
    np.testing.assert_allclose(found["conf"], 0.4e-3 - 0.3 * np.log(1e-3), rtol=1e-5)


def test_point_residual_is_a_distance():
    rng = np.random.default_rng(2)
    truth = rng.normal(size=(1, 1, 12, 12, 3)).astype(np.float32)
    truth -= truth.mean((2, 3), keepdims=True)  # so that an offset does not change the scale much
    pred = truth + np.float32([0.02, 0.03, 0.06])
    conf, mask = np.ones((1, 1, 12, 12), np.float32), np.ones((1, 1, 12, 12), bool)
    found = map_terms(MapLoss(), pred, conf, truth, mask)
    np.testing.assert_allclose(found["reg"], 0.07, rtol=1e-2)
    np.testing.assert_allclose(found["conf"], found["reg"], rtol=1e-6)  # log 1 = 0


@pytest.mark.parametrize("name", ["depth", "world_points"])
def test_map_loss_does_not_see_one_scale_for_the_batch(batch, name):
    targets, preds = batch
    loss = MultitaskLoss(camera=None, points=MapLoss(valid_range=0.9, gradient="grad"))
    want, grads = evaluate(loss, targets, preds)
    scaled, slopes = evaluate(loss, targets, {**preds, name: preds[name] * 4})
    one = {**preds, name: preds[name] * np.float32([1, 4]).reshape(2, 1, 1, 1, 1)}
    per_scene, _ = evaluate(loss, targets, one)
    what = {"depth": "depth", "world_points": "point"}[name]
    for term in (f"loss_conf_{what}", f"loss_reg_{what}"):
        np.testing.assert_allclose(scaled[term], want[term], rtol=1e-5)
        assert per_scene[term] > 2 * want[term]
    if name == "depth":  # without the gradient term, which takes the prediction unscaled
        # The scale is detached, so the slope is that of s p: a quarter of s, at four times p.
        np.testing.assert_allclose(slopes[name] * 4, grads[name], rtol=1e-3, atol=1e-8)
    else:
        assert scaled["loss_grad_point"] > 2 * want["loss_grad_point"]


def test_rules_about_few_points():
    truth = np.full((1, 2, 9, 20, 1), 2, np.float32)
    pred, conf = truth / 2, np.ones(truth.shape[:-1], np.float32)
    found = {}
    for points in (99, 100, 101):
        mask = np.zeros(truth.shape[:-1], bool)
        mask.flat[:points] = True
        found[points] = map_terms(MapLoss(gradient="grad"), pred, conf, truth, mask)
    assert found[99]["reg"] == found[99]["grad"] == found[99]["conf"] == 0
    np.testing.assert_allclose(found[100]["reg"], 1, rtol=1e-6)  # there is a loss, without a scale
    np.testing.assert_allclose(found[101]["reg"], 0, atol=1e-6)  # and now with one
    for term in found[99]:
        slope = jax.grad(
            lambda p, t=term: map_terms(MapLoss(), p, conf, truth, mask & (pred[..., 0] < 0))[t]
        )
        np.testing.assert_array_equal(slope(pred), 0)


def test_difference_term_by_hand():
    truth = np.zeros((1, 3, 4, 1), np.float32)
    pred = truth.copy()
    pred[0, 1, 1] = 5  # four neighbours, each pair differs by 5
    mask = np.ones((1, 3, 4), bool)
    found = difference_term(pred, truth, mask, None)
    assert (found.sum, found.count) == (20, 12)
    mask[0, 1, 2] = False
    found = difference_term(pred, truth, mask, None)
    assert (found.sum, found.count) == (15, 11)
    pred[0, 1, 1] = 500  # held at 100
    assert difference_term(pred, truth, mask, None).sum == 300
    # The confidence is that of the right or lower pixel; 17 pairs have a logarithm each.
    pred[0, 1, 1], conf = 5, np.full((1, 3, 4), 2, np.float32)
    conf[0, 1, 1] = 3
    pairs = 3 * 3 + 2 * 4
    want = 5 * (3 + 3 + 2) - 0.2 * ((pairs - 2) * np.log(2) + 2 * np.log(3))
    found = difference_term(pred, truth, mask, conf)
    np.testing.assert_allclose(found.sum, want, rtol=1e-6)


def test_a_constant_offset_has_no_difference_term(batch):
    targets, preds = batch
    preds["depth"] = targets.depth[..., None] + np.float32(0.25)
    loss = MultitaskLoss(camera=None, depth=MapLoss(gradient="grad"))
    terms, _ = evaluate(loss, targets, preds)
    np.testing.assert_allclose(terms["loss_grad_depth"], 0, atol=1e-6)


@pytest.mark.parametrize(("angle", "want"), [(0, 0), (60, 0.5), (90, 1), (180, 2)])
def test_normal_term_is_one_minus_the_cosine(angle, want):
    y, x = np.mgrid[:6, :7].astype(np.float32)
    plane = np.stack([x, y, np.zeros_like(x)], -1)[None]
    c, s = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    tilted = (plane @ np.float32([[1, 0, 0], [0, c, s], [0, -s, c]])).astype(np.float32)
    mask = np.ones((1, 6, 7), bool)
    found = normal_term(tilted, plane, mask, None)
    # Of the four normals at a pixel, one is left in a corner and two along an edge.
    assert found.count == 4 * 4 * 5 + 2 * (2 * 4 + 2 * 5) + 4
    np.testing.assert_allclose(found.mean, want, atol=1e-6)
    shifted = normal_term(3 * tilted + 5, plane, mask, None)  # direction only
    np.testing.assert_allclose(shifted.mean, want, atol=1e-6)
    conf = np.full((1, 6, 7), 4, np.float32)
    found = normal_term(tilted, plane, mask, conf)
    np.testing.assert_allclose(found.mean, 4 * want - 0.2 * np.log(4), atol=1e-5)


# What must have no influence


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30, -5.0])
@pytest.mark.parametrize("gradient", ["none", "grad", "normal", "normal_conf"])
def test_masked_pixels_influence_neither_value_nor_gradient(batch, gradient, bad):
    targets, preds = batch
    kind, _, conf = gradient.partition("_")
    points = MapLoss(gradient=kind, gradient_conf=bool(conf), valid_range=0.9)
    depth = MapLoss(gradient="grad" if kind == "normal" else kind, valid_range=0.9)
    loss = MultitaskLoss(depth=depth, points=points)
    want, want_grads = evaluate(loss, targets, preds)
    assert all(np.isfinite(x) for x in want.values())

    def spoil(x):
        mask = targets.mask.reshape(targets.mask.shape + (1,) * (x.ndim - 4))
        return np.where(mask, x, np.float32(bad))

    broken = {k: v if k == "pose_enc_list" else spoil(v) for k, v in preds.items()}
    truth = Targets(
        targets.extrinsics,
        targets.intrinsics,
        spoil(targets.depth),
        targets.mask,
        spoil(targets.world_points),
    )
    got, grads = evaluate(loss, truth, broken)
    for name in want:
        np.testing.assert_array_equal(got[name], want[name], err_msg=name)
    for name in want_grads:
        np.testing.assert_array_equal(grads[name], want_grads[name], err_msg=name)
        if name != "pose_enc_list":
            np.testing.assert_array_equal(np.asarray(grads[name])[~targets.mask], 0)
            assert np.abs(np.asarray(grads[name])[targets.mask]).max() > 0


def test_only_the_confident_difference_term_reads_masked_confidences(batch):
    targets, preds = batch
    loss = MultitaskLoss(camera=None, depth=MapLoss(gradient="grad", gradient_conf=True))
    want, _ = evaluate(loss, targets, preds)
    conf = np.where(targets.mask, preds["depth_conf"], preds["depth_conf"] * np.float32(np.e))
    got, grads = evaluate(loss, targets, {**preds, "depth_conf": conf})
    for name in ("loss_conf_depth", "loss_reg_depth"):
        np.testing.assert_array_equal(got[name], want[name])
    # Every pair whose right or lower pixel is masked loses 0.2, per scale over its valid pixels.
    change = 0.0
    for step in (1, 2, 4, 8):
        mask = targets.mask[:, :, ::step, ::step]
        pairs = (~mask[..., 1:]).sum() + (~mask[..., 1:, :]).sum()
        change -= 0.2 * pairs / mask.sum() / 4
    np.testing.assert_allclose(got["loss_grad_depth"] - want["loss_grad_depth"], change, rtol=1e-4)
    assert np.isfinite(grads["depth_conf"]).all()


def test_a_perfect_prediction_has_a_finite_gradient(batch):
    targets, preds = batch
    for norm in ("l1", "l2"):
        loss = MultitaskLoss(
            CameraLoss(norm=norm), MapLoss(gradient="grad"), MapLoss(gradient="normal")
        )
        preds["depth"], preds["world_points"] = targets.depth[..., None], targets.world_points
        pose = np.zeros((1, B, S, 9), np.float32)
        pose[..., 6] = 1
        eye = np.broadcast_to(np.eye(3, 4, dtype=np.float32), (B, S, 3, 4))
        still = Targets(eye, targets.intrinsics, targets.depth, targets.mask, targets.world_points)
        fov = 2 * np.arctan([H / 2 / 22, W / 2 / 20])
        pose[..., 7:] = fov
        terms, grads = evaluate(loss, still, {**preds, "pose_enc_list": pose})
        for name in ("loss_camera", "loss_reg_depth", "loss_grad_depth", "loss_reg_point"):
            np.testing.assert_allclose(terms[name], 0, atol=2e-6)
        for name, grad in grads.items():
            assert np.isfinite(grad).all(), name
        # torch has 0 here, jnp.abs and jnp.linalg.norm would not.
        np.testing.assert_array_equal(grads["pose_enc_list"][..., :6], 0)


def test_ties_have_gradient_zero():
    truth = np.zeros((1, 4, 5, 1), np.float32)
    mask = np.ones((1, 4, 5), bool)
    grad = jax.grad(lambda x: difference_term(x, truth, mask, None).sum)(truth)
    np.testing.assert_array_equal(grad, 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
def test_broken_predictions_are_counted_and_leave_finite_gradients(batch, bad):
    targets, preds = batch
    at = tuple(np.argwhere(targets.mask)[7])
    for name, what in (
        ("depth", "depth"),
        ("depth_conf", "depth"),
        ("world_points", "point"),
        ("world_points_conf", "point"),
        ("pose_enc_list", "camera"),
    ):
        broken = preds[name].copy()
        broken[(0, 0, 0, 1) if name == "pose_enc_list" else (*at, ...)] = bad
        for norm, gradient in (("l1", "grad"), ("l2", "normal")):
            loss = MultitaskLoss(
                CameraLoss(norm=norm),
                MapLoss(gradient="grad", gradient_conf=True),
                MapLoss(gradient=gradient, gradient_conf=True),
            )
            terms, grads = evaluate(loss, targets, {**preds, name: broken})
            assert all(np.isfinite(x) for x in terms.values()), name
            assert all(np.isfinite(g).all() for g in grads.values()), name
            if not np.isfinite(bad):
                assert terms[f"nonfinite_{what}"] > 0
                others = {"camera", "depth", "point"} - {what}
                assert all(terms[f"nonfinite_{x}"] == 0 for x in others)


def test_broken_ground_truth_counts_as_zero_and_large_one_is_held_at_100():
    truth = np.full((1, 1, 12, 12, 1), 2, np.float32)
    pred, conf = truth.copy(), np.ones((1, 1, 12, 12), np.float32)
    mask = np.ones((1, 1, 12, 12), bool)
    for value, meant in ((np.nan, 0), (np.inf, 0), (1e6, 100), (-1e6, -100)):
        broken, clean = truth.copy(), truth.copy()
        broken[0, 0, 3, 4], clean[0, 0, 3, 4] = value, meant
        got = map_terms(MapLoss(gradient="grad"), pred, conf, broken, mask)
        want = map_terms(MapLoss(gradient="grad"), pred, conf, clean, mask)
        for name in want:
            np.testing.assert_array_equal(got[name], want[name])
        assert got["reg"] > 0


# The quantile filter and masked means


@pytest.mark.parametrize("quantile", [0.95, 0.98, 0.9, 0.99, 0.5, 0.925, 0.1, 1.0, 0.9999])
def test_ranks_are_those_of_python_rounding(quantile):
    n = np.concatenate([np.arange(1, 200_000), 2**24 + np.arange(100_000), 10**8 - np.arange(100)])
    want = np.rint(quantile * (n.astype(np.float64) - 1)).astype(np.int64) + 1
    np.testing.assert_array_equal(quantile_rank(quantile, n), want)
    assert round(quantile * 10) + 1 == quantile_rank(quantile, 11)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["normal", "ties", "tiny", "infinite"]))
def test_kth_smallest_is_that_of_a_sort(seed, kind):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(20, 30)).astype(np.float32)
    if kind == "ties":
        values = np.round(values)  # with zeros of both signs
    elif kind == "tiny":
        values *= np.float32(1e-42)
    elif kind == "infinite":
        values[rng.random(values.shape) < 0.2] = rng.choice([-np.inf, np.inf])
    mask = rng.random(values.shape) < rng.choice([0.02, 0.5, 1])
    mask[0, 0] = True
    values[~mask] = np.nan
    k = int(rng.integers(1, mask.sum() + 1))
    got = jax.jit(kth_smallest)(values, mask, k)
    assert got == np.sort(values[mask])[k - 1]
    assert np.isnan(kth_smallest(values, mask, 0))
    assert np.isnan(kth_smallest(values, mask, mask.sum() + 1))


def filtered(values, quantile):
    """The rule of the original on a plain list."""
    if len(values) <= 1000:
        return values
    threshold = np.sort(values)[round(quantile * (len(values) - 1))]
    kept = values[values < threshold]
    return kept if len(kept) > 1000 else values


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([0, 1, 999, 1000, 1001, 1002, 1112, 1200, 2000]),
    st.sampled_from([0.5, 0.9, 0.95, 1.0]),
    st.booleans(),
)
def test_filter_keeps_what_the_original_keeps(seed, valid, quantile, ties):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=2000).astype(np.float32)
    values = np.round(values, 1) if ties else values
    mask = np.zeros(2000, bool)
    mask[rng.permutation(2000)[:valid]] = True
    found = jax.jit(filter_by_quantile, static_argnums=2)(values, mask, quantile)
    want = filtered(values[mask], quantile)
    assert found.count == len(want)
    np.testing.assert_allclose(found.sum, want.astype(np.float64).sum(), rtol=1e-4, atol=1e-3)
    slope = jax.jit(jax.grad(lambda x: filter_by_quantile(x, mask, quantile).sum))(values)
    assert set(np.unique(slope)) <= {0, 1}
    assert slope.sum() == len(want)
    np.testing.assert_array_equal(np.asarray(slope)[~mask], 0)


def test_outliers_are_dropped_from_both_averages(batch):
    targets, preds = batch
    loss = MultitaskLoss(camera=None, depth=MapLoss(valid_range=0.98))
    worse = preds["depth"].copy()
    valid = np.argwhere(targets.mask)
    for at in valid[:5]:
        worse[(*at, ...)] += 30
    _, grads = evaluate(loss, targets, {**preds, "depth": worse})
    for at in valid[:5]:
        np.testing.assert_array_equal(np.asarray(grads["depth"])[(*at, ...)], 0)
        assert grads["depth_conf"][tuple(at)] == 0
    assert (np.asarray(grads["depth"]) != 0).sum() > 0.9 * targets.mask.sum()


def test_masked_means_merge_exactly():
    rng = np.random.default_rng(3)
    values, mask = rng.normal(size=(6, 50)).astype(np.float32), rng.random((6, 50)) < 0.3
    mask[0] = False
    whole = Masked.of(values, mask)
    parts = [Masked.of(np.where(m, v, np.nan), m) for v, m in zip(values, mask, strict=True)]
    merged = parts[0] + parts[1] + parts[2] + parts[3] + parts[4] + parts[5]
    assert merged.count == whole.count == mask.sum()
    np.testing.assert_allclose(merged.mean, values[mask].mean(), rtol=1e-5)
    np.testing.assert_allclose(whole.mean, values[mask].mean(), rtol=1e-5)
    assert parts[0].mean == 0
    grad = jax.grad(lambda x: Masked.of(x, mask[0]).mean)(values[0])
    np.testing.assert_array_equal(grad, 0)
    assert Masked.of(values[..., None], mask[..., None]).count == mask.sum()
    assert Masked.of(np.ones((6, 50, 3), np.float32), mask[..., None]).count == 3 * mask.sum()


def test_sharding_the_batch_changes_nothing(tmp_path):
    program = textwrap.dedent("""
        import jax, numpy as np
        jax.config.update("jax_num_cpu_devices", 4)
        from jax.sharding import NamedSharding, PartitionSpec
        from lite3r_jax.losses import MapLoss, filter_by_quantile, map_terms

        rng = np.random.default_rng(0)
        shape = (4, 2, 16, 20)
        truth = rng.uniform(1, 2, (*shape, 1)).astype(np.float32)
        pred = truth + rng.normal(size=truth.shape).astype(np.float32) / 10
        conf = rng.uniform(1, 5, shape).astype(np.float32)
        mask = rng.random(shape) < np.float32([0.9, 0.1, 0.7, 1]).reshape(4, 1, 1, 1)
        loss = MapLoss(gradient="grad", valid_range=0.9)
        run = jax.jit(jax.value_and_grad(
            lambda p, *rest: (lambda t: (t["conf"] + t["reg"] + t["grad"], t))(
                map_terms(loss, p, *rest)), has_aux=True))
        one, slope = run(pred, conf, truth, mask)
        sharding = NamedSharding(jax.make_mesh((4,), ("data",)), PartitionSpec("data"))
        data = jax.device_put((pred, conf, truth, mask), sharding)
        four, slopes = run(*data)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, rtol=2e-6), one, four)
        np.testing.assert_allclose(slopes, slope, rtol=1e-4, atol=1e-8)
        assert slopes.sharding.is_equivalent_to(sharding, 5)
        program = jax.jit(lambda x, m: filter_by_quantile(x, m, 0.9).mean)
        text = program.lower(data[1], data[3]).compile().as_text()
        assert "all-reduce" in text and "all-gather" not in text and " sort(" not in text
    """)
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr


# Types and messages


def test_low_precision_predictions_give_a_float32_loss(batch):
    targets, preds = batch
    loss = MultitaskLoss(points=MapLoss(gradient="normal"))
    want, _ = evaluate(loss, targets, preds)
    half = {name: jnp.asarray(x, jnp.bfloat16) for name, x in preds.items()}
    got, grads = evaluate(loss, targets, half)
    assert all(x.dtype == jnp.float32 and x.shape == () for x in got.values())
    assert all(g.dtype == jnp.bfloat16 for g in grads.values())
    np.testing.assert_allclose(got["objective"], want["objective"], rtol=2e-2)


def test_parts_that_are_off_are_not_looked_at(batch):
    targets, preds = batch
    terms, grads = evaluate(MultitaskLoss(), targets, preds)
    assert not any("point" in name for name in terms)
    np.testing.assert_array_equal(grads["world_points"], 0)
    total = terms["loss_camera"] + terms["loss_conf_depth"] + terms["loss_reg_depth"]
    np.testing.assert_allclose(terms["objective"], total, rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: CameraLoss(norm="huber"), "CameraLoss.norm"),
        (lambda: MapLoss(gradient="grad_conf"), "MapLoss.gradient"),
        (lambda: MapLoss(gradient_conf=True), "MapLoss.gradient_conf"),
        (lambda: MapLoss(valid_range=-1), "MapLoss.valid_range.*None keeps all"),
        (lambda: MapLoss(valid_range=98), "MapLoss.valid_range"),
        (lambda: MapLoss(valid_range=1 / 3), "at most four decimals"),
        (lambda: MultitaskLoss(depth=MapLoss(gradient="normal")), "needs 3D points"),
        (lambda: MultitaskLoss(camera=None, depth=None), "at least one"),
    ],
)
def test_settings_without_a_meaning_are_refused(make, said):
    with pytest.raises(InputError, match=said) as error:
        make()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("loss", "change", "said"),
    [
        (MultitaskLoss(), {"pose_enc_list": None}, "camera needs pose_enc_list"),
        (MultitaskLoss(), {"depth_conf": None}, "depth needs depth_conf"),
        (MultitaskLoss(points=MapLoss()), {"world_points": None}, "points needs world_points"),
        (MultitaskLoss(), {"pose_enc_list": np.zeros((B, S, 9))}, "pose_enc_list: expected"),
        (MultitaskLoss(), {"depth": np.zeros((B, S, H, W))}, "maps: expected"),
        (MultitaskLoss(), {"depth_conf": np.zeros((B, S, H, W, 1))}, "maps: expected"),
    ],
)
def test_wrong_predictions_are_named(batch, loss, change, said):
    targets, preds = batch
    with pytest.raises(InputError, match=said) as error:
        multitask_loss(loss, targets, **(preds | change))
    assert "\n" not in str(error.value)


def test_missing_points_of_the_targets_are_named(batch):
    targets, preds = batch
    bare = Targets(targets.extrinsics, targets.intrinsics, targets.depth, targets.mask)
    with pytest.raises(InputError, match=r"points needs targets\.world_points"):
        multitask_loss(MultitaskLoss(points=MapLoss()), bare, **preds)
