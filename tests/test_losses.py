"""The objective: the original's values and gradients, and what must have no influence."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lite3r_jax.errors import InputError
from lite3r_jax.losses import (
    CameraLoss,
    MapLoss,
    MultitaskLoss,
    Targets,
    multitask_loss,
)

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

# They take long to compile.
DEAR = ("l2_conf_nofilter", "with_points")


def test_the_cases_are_all_of_the_original(golden_dir):
    cases = json.loads((golden_dir / "modules" / "loss_cases.json").read_text())
    assert set(cases) == set(CASES)


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=[pytest.mark.slow] if case in DEAR else []) for case in CASES],
)
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

    terms, grads = evaluate(loss, targets, preds)
    values = {name: x for name, x in terms.items() if not name.startswith("nonfinite")}
    assert all(terms[name] == 0 for name in terms.keys() - values.keys())
    values |= {f"grad_pose_enc_{i}": x for i, x in enumerate(grads.pop("pose_enc_list"))}
    values |= {f"grad_{name}": x for name, x in grads.items()}
    assert values.keys() == {key.split("/")[1] for key in data if key.startswith(f"{case}/")}
    for name, got in values.items():
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


@functools.cache
def compiled(loss):
    def run(preds, targets):
        return multitask_loss(loss, targets, **preds)

    return jax.jit(jax.value_and_grad(run, has_aux=True))


def evaluate(loss, targets, preds):
    """Terms with the objective, and the gradients of the objective."""
    (objective, terms), grads = compiled(loss)(preds, targets)
    return terms | {"objective": objective}, grads


# Scales and outliers


@pytest.mark.parametrize("factor", [1.0, 0.25, 8.0, -0.5, -3.0])
@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_camera_loss_does_not_see_the_scale_of_translations(batch, factor, norm):
    targets, preds = batch
    loss = MultitaskLoss(camera=CameraLoss(norm=norm), depth=None)
    pose = 0.1 * preds["pose_enc_list"]
    pose[..., :3] += targets.extrinsics[..., 3]
    want, _ = evaluate(loss, targets, preds | {"pose_enc_list": pose})
    pose = pose * np.float32([factor] * 3 + [1] * 6)
    got, _ = evaluate(loss, targets, preds | {"pose_enc_list": pose})
    for name in ("loss_T", "loss_R", "loss_FL", "loss_camera"):
        np.testing.assert_allclose(got[name], want[name], rtol=1e-5)
    # The factor is one for all views: turning one of them around does cost.
    pose[:, 0, 0, :3] *= -1
    other, _ = evaluate(loss, targets, preds | {"pose_enc_list": pose})
    assert other["loss_T"] > 1.5 * want["loss_T"]


@pytest.mark.slow
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


def test_a_constant_offset_has_no_difference_term(batch):
    targets, preds = batch
    preds["depth"] = targets.depth[..., None] + np.float32(0.25)
    loss = MultitaskLoss(camera=None, depth=MapLoss(gradient="grad"))
    terms, _ = evaluate(loss, targets, preds)
    np.testing.assert_allclose(terms["loss_grad_depth"], 0, atol=1e-6)


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


# What must have no influence


@pytest.mark.slow
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30, -5.0])
@pytest.mark.parametrize(
    "gradient",
    ["grad", *(pytest.param(n, marks=pytest.mark.slow) for n in ("none", "normal", "normal_conf"))],
)
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
    truth = dataclasses.replace(
        targets, depth=spoil(targets.depth), world_points=spoil(targets.world_points)
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


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_a_perfect_camera_has_gradient_zero(batch, norm):
    targets, preds = batch
    eye = np.broadcast_to(np.eye(3, 4, dtype=np.float32), (B, S, 3, 4))
    pose = np.zeros((3, B, S, 9), np.float32)
    pose[..., 6] = 1
    pose[..., 7:] = 2 * np.arctan(np.float32([H / 2 / 22, W / 2 / 20]))
    loss = MultitaskLoss(camera=CameraLoss(norm=norm), depth=None)
    still = dataclasses.replace(targets, extrinsics=eye)
    terms, grads = evaluate(loss, still, preds | {"pose_enc_list": pose})
    np.testing.assert_allclose(terms["objective"], 0, atol=1e-6)
    # So it is in torch; jnp.abs has the slope 1 at 0, and jnp.linalg.norm NaN.
    np.testing.assert_array_equal(grads["pose_enc_list"][..., :7], 0)
    assert np.isfinite(grads["pose_enc_list"]).all()


@pytest.mark.slow
def test_perfect_maps_have_finite_gradients(batch):
    targets, preds = batch
    loss = MultitaskLoss(None, MapLoss(gradient="grad"), MapLoss(gradient="normal"))
    exact = {"depth": targets.depth[..., None], "world_points": targets.world_points}
    terms, grads = evaluate(loss, targets, preds | exact)
    for name in ("reg_depth", "grad_depth", "reg_point", "grad_point"):
        np.testing.assert_allclose(terms[f"loss_{name}"], 0, atol=2e-6)
    assert all(np.isfinite(grad).all() for grad in grads.values())


@pytest.mark.slow
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


# Types and messages


@pytest.mark.slow
def test_low_precision_predictions_give_a_float32_loss(batch):
    targets, preds = batch
    loss = MultitaskLoss()
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
        compiled(loss).trace(preds | change, targets)
    assert "\n" not in str(error.value)


def test_missing_points_of_the_targets_are_named(batch):
    targets, preds = batch
    bare = dataclasses.replace(targets, world_points=None)
    with pytest.raises(InputError, match=r"points needs targets\.world_points"):
        compiled(MultitaskLoss(points=MapLoss())).trace(preds, bare)
