"""Pose errors: closed forms, gauges that must not matter, and other people's rotations."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from lite3r_jax.errors import InputError
from lite3r_jax.metrics import (
    NotAvailable,
    auc,
    pair_errors,
    pose_metrics,
    trajectory_metrics,
)

seeds = st.integers(0, 2**32 - 1)
many = settings(max_examples=500, deadline=None)


def camera(center=(0, 0, 0), turn=(0, 0, 0)):
    """World-to-camera of a camera at a place, turned by degrees around x, y, z."""
    rotation = Rotation.from_euler("xyz", turn, degrees=True).as_matrix()
    return np.concatenate([rotation, -rotation @ np.reshape(center, (3, 1))], -1)


def some_cameras(seed, views=None):
    rng = np.random.default_rng(seed)
    views = views or int(rng.integers(3, 7))
    turns = Rotation.random(views, rng=rng).as_matrix()
    return np.concatenate([turns, rng.normal(size=(views, 3, 1))], -1)


def moved(extrinsics, seed):
    """The same cameras seen from another world, in another unit of length."""
    rng = np.random.default_rng([seed, 1])
    turn, shift = Rotation.random(rng=rng).as_matrix(), rng.normal(size=(3, 1))
    rotation = extrinsics[..., :3] @ turn
    unit = np.exp(rng.normal())
    return np.concatenate([rotation, extrinsics[..., 3:] * unit + rotation @ shift], -1)


def test_rotation_and_direction_are_angles_of_the_second_camera():
    truth = np.stack([camera(), camera((1, 0, 0))])
    metrics = pose_metrics(np.stack([camera(), camera((1, 0, 0), (0, 0, 20))]), truth)
    assert metrics["rotation_deg"] == pytest.approx(20)
    # the direction is seen from the second camera, which is turned around z
    assert metrics["direction_deg"] == pytest.approx(20)
    assert metrics["auc_30"] == pytest.approx(10 / 30, abs=1 / 30)
    metrics = pose_metrics(np.stack([camera(), camera((0, 1, 0))]), truth)
    assert metrics["rotation_deg"] == 0 and metrics["direction_deg"] == pytest.approx(90)


def test_a_direction_and_its_opposite_are_180_degrees_apart_but_not_in_published_tables():
    truth = np.stack([camera(), camera((1, 0, 0))])
    metrics = pose_metrics(np.stack([camera(), camera((-2, 0, 0))]), truth)
    assert metrics["direction_deg"] == pytest.approx(180)
    assert metrics["auc_30"] == 0 and metrics["published_auc_30"] == 1


def test_the_reference_view_does_not_count():
    truth = np.stack([camera(), camera((1, 0, 0)), camera((2, 0, 0))])
    pred = truth.copy()
    pred[2] = camera((2, 0, 0), (30, 0, 0))
    assert pose_metrics(pred, truth)["rotation_deg"] == pytest.approx(30 / 2)  # of two, not three


def test_translation_is_the_distance_of_centers_after_one_scale():
    truth = np.stack([camera(), camera((1, 0, 0)), camera((0, 1, 0))])
    pred = np.stack([camera(), camera((5, 0, 0)), camera((0, 5, 0))])
    assert pose_metrics(pred, truth)["translation"] == pytest.approx(0, abs=1e-12)
    pred[2] = camera((5, 0, 0))
    # both at s (1, 0, 0): s = 1/2, off by 1/2 and by sqrt(1/4 + 1)
    assert pose_metrics(pred, truth)["translation"] == pytest.approx((0.5 + np.sqrt(1.25)) / 2)


def test_auc_of_one_error_is_the_share_of_whole_degrees_above_it():
    assert auc(np.array([2.5]), 3) == pytest.approx(1 / 3)
    assert auc(np.array([2.5]), 5) == pytest.approx(3 / 5)
    assert auc(np.array([2.5, 100.0]), 30) == pytest.approx(28 / 30 / 2)
    assert auc(np.zeros(4), 3) == 1 and auc(np.array([180.0]), 30) == 0


def test_shares_and_area_are_over_all_pairs_of_views():
    truth = np.stack([camera((x, 0, 0)) for x in range(4)])
    pred = truth.copy()
    pred[3, :, :3] = Rotation.from_euler("x", 10, degrees=True).as_matrix()
    # x stays x, so directions are right; 3 of the 6 pairs have the turned camera in them
    metrics = pose_metrics(pred, truth)
    assert (metrics["rra_5"], metrics["rra_15"], metrics["rta_3"]) == (0.5, 1.0, 1.0)
    assert metrics["auc_5"] == pytest.approx(0.5)
    assert metrics["auc_30"] == pytest.approx((6 * 20 + 3 * 10) / 6 / 30, abs=1 / 30)


def test_cameras_at_one_place_have_no_direction_and_the_rest_still_counts():
    truth = np.stack([camera(), camera(turn=(0, 10, 0)), camera((1, 0, 0))])
    errors = pair_errors(truth, truth)
    assert np.isnan(errors.direction).tolist() == [True, False, False]
    assert len(errors.largest) == 2
    metrics = pose_metrics(truth, truth)
    assert metrics["auc_3"] == metrics["rra_3"] == 1
    still = np.stack([camera(), camera(turn=(0, 10, 0))])
    metrics = pose_metrics(truth[[0, 2]], still)
    assert metrics["auc_30"] == metrics["rta_5"] == NotAvailable("all cameras are at one place")
    assert metrics["rotation_deg"] == pytest.approx(10)


def test_a_prediction_without_a_direction_is_wrong_by_any_definition():
    truth = np.stack([camera(), camera((1, 0, 0))])
    metrics = pose_metrics(np.stack([camera()] * 2), truth)
    assert metrics["direction_deg"] == 180 and metrics["rotation_deg"] == 0
    assert metrics["auc_30"] == metrics["published_auc_30"] == 0


def test_one_view_and_two_views_have_no_pose_and_no_path():
    reasons = {v.reason for v in pose_metrics(camera()[None], camera()[None]).values()}
    assert reasons == {"one view has no relative pose"}
    two = some_cameras(0, 2)
    assert all(isinstance(v, NotAvailable) for v in trajectory_metrics(two, two).values())


def test_ate_of_a_square_that_is_bent_is_known():
    r, d = 1.0, 0.5
    corners = np.array([[r, 0, 0], [0, r, 0], [-r, 0, 0], [0, -r, 0]])
    bent = corners + np.array([0, 0, d]) * np.array([1, -1, 1, -1])[:, None]
    metrics = trajectory_metrics(*(np.stack([camera(c) for c in path]) for path in (bent, corners)))
    s = r**2 / (r**2 + d**2)
    assert metrics["ate"] == pytest.approx(np.sqrt((s - 1) ** 2 * r**2 + s**2 * d**2))


def test_rpe_is_of_one_step():
    truth = np.stack([camera((k, 0, 0)) for k in range(5)])
    turned = np.stack([camera((k, 0, 0), (3 * k, 0, 0)) for k in range(5)])
    metrics = trajectory_metrics(turned, truth)
    assert metrics["rpe_rotation_deg"] == pytest.approx(3)
    assert metrics["rpe_translation"] == pytest.approx(0, abs=1e-12)
    assert metrics["ate"] == pytest.approx(0, abs=1e-12)


def test_a_prediction_that_is_not_finite_is_refused():
    truth = some_cameras(0)
    for metric in (pose_metrics, trajectory_metrics, pair_errors):
        with pytest.raises(InputError, match=r"extrinsics: 1 of .* not finite"):
            metric(np.where(np.arange(truth.size).reshape(truth.shape) == 5, np.nan, truth), truth)
        with pytest.raises(ValueError, match="extrinsics: expected shape"):
            metric(truth[1:], truth)


@pytest.mark.slow
@many
@given(seeds)
def test_world_and_unit_of_a_prediction_do_not_matter(seed):
    pred, truth = some_cameras(seed, 4), some_cameras(seed + 1, 4)
    for metric in (pose_metrics, trajectory_metrics):
        assert metric(moved(pred, seed), truth) == pytest.approx(metric(pred, truth), abs=1e-6)
    assert max(trajectory_metrics(moved(truth, seed), truth).values()) < 1e-5


@pytest.mark.slow
@many
@given(seeds)
def test_pair_errors_are_angles_of_other_peoples_rotations_and_symmetric(seed):
    pred, truth = some_cameras(seed, 3), some_cameras(seed + 1, 3)
    errors = pair_errors(pred, truth)
    want = []
    for i, j in ((0, 1), (0, 2), (1, 2)):
        turns = [Rotation.from_matrix(e[j, :, :3] @ e[i, :, :3].T) for e in (pred, truth)]
        want.append(np.degrees((turns[0] * turns[1].inv()).magnitude()))
    np.testing.assert_allclose(errors.rotation, want, atol=1e-6)
    back = pair_errors(truth, pred)
    np.testing.assert_allclose(errors.rotation, back.rotation, atol=1e-9)
    np.testing.assert_allclose(errors.direction, back.direction, atol=1e-9)


@pytest.mark.slow
@many
@given(seeds)
def test_area_shares_and_errors_are_ordered(seed):
    truth = some_cameras(seed)
    pred = truth + np.random.default_rng(seed).normal(0, 0.05, truth.shape)
    pred[..., :3] = Rotation.from_matrix(pred[..., :3]).as_matrix()
    metrics = pose_metrics(pred, truth)
    for t in (3, 5, 15, 30):
        assert 0 <= metrics[f"auc_{t}"] <= min(metrics[f"rra_{t}"], metrics[f"rta_{t}"]) + 1e-12
    assert metrics["auc_3"] <= metrics["auc_5"] <= metrics["auc_15"] <= metrics["auc_30"]


@pytest.mark.slow
@many
@given(seeds)
def test_the_order_of_views_does_not_change_what_is_over_pairs_of_rotations(seed):
    pred, truth = some_cameras(seed, 4), some_cameras(seed + 1, 4)
    order = np.random.default_rng(seed).permutation(4)
    a, b = pair_errors(pred, truth), pair_errors(pred[order], truth[order])
    np.testing.assert_allclose(np.sort(a.rotation), np.sort(b.rotation), atol=1e-6)
