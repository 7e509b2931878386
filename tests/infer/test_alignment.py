"""Predictions beside known cameras, against upstream and against known movements."""

import numpy as np
import pytest

from lite3r_jax import geometry
from lite3r_jax.backbones.base import Prediction
from lite3r_jax.infer.alignment import Similarity, align, fit_cameras, misfit

GATE = 5e-6


def four_rows(extrinsics):
    last = np.broadcast_to([0, 0, 0, 1.0], (*extrinsics.shape[:-2], 1, 4))
    return np.concatenate([extrinsics, last], -2)


@pytest.mark.parametrize("kind", ["plain", "ransac"])
def test_alignment_agrees_with_upstream(golden_da3, parity, kind):
    g = golden_da3("mod_align")
    predicted, known = g[f"in_umeyama_{kind}_ref"], g[f"in_umeyama_{kind}_est"]
    fit = fit_cameras(known, predicted)

    def compare(key, got):
        parity("da3/mod_align", key, got, g[key], GATE, relative=True)

    compare(f"umeyama_{kind}_rot", fit.rotation)
    compare(f"umeyama_{kind}_trans", fit.translation)
    compare(f"umeyama_{kind}_scale", np.array(fit.scale))
    moved = four_rows(fit.cameras(known))
    compare(f"umeyama_{kind}_aligned", moved)
    compare(f"umeyama_{kind}_applied", moved)

    depth, k = g[f"in_align_{kind}_depth"], g[f"in_align_{kind}_K"]
    prediction = Prediction(extrinsics=predicted[None], depth=depth[None, ..., None])
    for flag, world in ((1, "known"), (0, "predicted")):
        got, _ = align(prediction, known[None], k[None], world)
        extrinsics = four_rows(got.extrinsics[0])
        compare(f"align_{kind}_{flag}_depth", got.depth[0, ..., 0])
        compare(f"align_{kind}_{flag}_intrinsics", got.intrinsics[0])
        compare(f"align_{kind}_{flag}_extrinsics", extrinsics[:, :3] if flag else extrinsics)


def cameras(count, seed=0):
    rng = np.random.default_rng(seed)
    rotation = np.asarray(geometry.quat_to_mat(rng.standard_normal((count, 4))))
    return np.concatenate([rotation, rng.standard_normal((count, 3, 1))], -1)


def movement(scale=2.5):
    rotation = np.asarray(geometry.quat_to_mat(np.array([0.3, -0.2, 0.5, 0.8])), np.float64)
    return Similarity(rotation, np.array([1.0, -2, 3]), scale)


@pytest.mark.parametrize("views", [1, 2, 3, 5, 12])
def test_a_movement_of_all_cameras_is_found_again(views):
    """With one or two views as well, where centers alone would leave the rotation open."""
    known, true = cameras(views), movement(2.5 if views > 1 else 1.0)
    similarity = fit_cameras(known, true.cameras(known))
    np.testing.assert_allclose(similarity.rotation, true.rotation, atol=1e-5)
    np.testing.assert_allclose(similarity.translation, true.translation, atol=1e-4)
    assert similarity.scale == pytest.approx(true.scale, rel=1e-5)


def test_cameras_on_a_line_are_aligned_by_their_axes():
    known = cameras(4)
    centers = np.arange(4)[:, None] * np.array([1.0, 2, -1])
    known[..., 3:] = -known[..., :3] @ centers[..., None]
    true = movement()
    similarity = fit_cameras(known, true.cameras(known))
    np.testing.assert_allclose(similarity.rotation, true.rotation, atol=1e-5)
    assert similarity.scale == pytest.approx(true.scale, rel=1e-5)


@pytest.mark.parametrize("place", [(0.0, 0.0, 0.0), (400.0, -30.0, 7e5)])
@pytest.mark.parametrize("views", [2, 4, 12])
@pytest.mark.parametrize("kind", [np.float64, np.float32])
def test_cameras_that_only_turn_leave_the_scale_alone(views, place, kind):
    """Their centers differ by the rounding of -R^T t only, which says nothing about a scale."""
    predicted = cameras(views, 1)
    rotation, _ = np.linalg.qr(np.random.default_rng(2).standard_normal((views, 3, 3)))
    rotation *= np.linalg.det(rotation)[:, None, None]
    turning = np.concatenate([rotation, -rotation @ np.array(place)[:, None]], -1).astype(kind)
    fit = fit_cameras(turning, predicted)
    assert fit.scale == 1
    np.testing.assert_allclose(
        fit.points(np.array([place])), -(predicted[..., :3].swapaxes(1, 2) @ predicted[..., 3:])
        .mean(0).T, atol=1e-6 * (1 + np.abs(place).max())
    )  # fmt: skip
    back = fit_cameras(predicted, turning)
    assert back.scale == 1, "predicted in one place as well"


def test_a_small_spread_far_from_the_origin_is_still_a_scale():
    known, true = cameras(4), movement(1e3)
    known[..., :3], _ = np.linalg.qr(known[..., :3])
    known[..., :3] *= np.linalg.det(known[..., :3])[:, None, None]
    centers = np.linalg.norm(known[..., 3], axis=-1).max()
    far = Similarity(np.eye(3), np.array([1e5, 0, 0]) * centers, 1.0).cameras(known)
    np.testing.assert_allclose(fit_cameras(far, true.cameras(far)).scale, 1e3, rtol=1e-6)


def test_an_outlier_among_many_views_does_not_count():
    known, true = cameras(14), movement()
    predicted = true.cameras(known)
    predicted[3, :, 3] += 100
    assert fit_cameras(known, predicted).scale == pytest.approx(true.scale, rel=1e-3)


def test_after_alignment_the_scene_is_the_same_up_to_its_unit():
    """Points from aligned depth and known cameras are the predicted points, moved back."""
    rng = np.random.default_rng(1)
    known, true = cameras(4), movement()
    k = np.tile(np.array([[5.0, 0, 3], [0, 5, 2], [0, 0, 1]], np.float32), (1, 4, 1, 1))
    depth = rng.uniform(1, 2, (1, 4, 4, 6, 1)).astype(np.float32)
    prediction = Prediction(
        extrinsics=true.cameras(known)[None], intrinsics=k, depth=depth, pose_enc=np.zeros(9)
    )
    was, _, _ = geometry.unproject_to_world(depth[..., 0], prediction.extrinsics, k)
    aligned, _ = align(prediction, known[None], k)
    now, _, _ = geometry.unproject_to_world(aligned.depth[..., 0], aligned.extrinsics, k)
    np.testing.assert_allclose(true.points(np.asarray(now)), was, atol=1e-4)
    assert aligned.pose_enc is None, "it would not fit the known cameras"


def test_bad_alignments_are_refused():
    k = np.tile(np.eye(3), (1, 2, 1, 1))
    prediction = Prediction(extrinsics=cameras(2)[None], depth=np.ones((1, 2, 2, 2, 1)))
    with pytest.raises(ValueError, match="world: expected"):
        align(prediction, cameras(2)[None], k, "metric")
    with pytest.raises(ValueError, match="extrinsics: expected"):
        align(prediction, cameras(3)[None], k)


def test_what_alignment_cannot_explain_is_measured():
    known, true = cameras(5), movement()
    predicted = true.cameras(known)
    degrees, distances = misfit(known, predicted, true)
    np.testing.assert_allclose(degrees, 0, atol=1e-4)
    np.testing.assert_allclose(distances, 0, atol=1e-5)
    turn = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1.0]])
    predicted[2] = turn @ predicted[2]  # about its own axis
    predicted[4, :, 3] += predicted[4, :, :3] @ [0, 5.0, 0]
    degrees, distances = misfit(known, predicted, true)
    np.testing.assert_allclose(degrees, [0, 0, 90, 0, 0], atol=1e-4)
    np.testing.assert_allclose(distances, [0, 0, 0, 0, 2], atol=1e-5)
