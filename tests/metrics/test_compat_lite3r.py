"""The original's definitions, by numbers worked out from its source."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from lite3r_jax.errors import InputError
from lite3r_jax.metrics import NotAvailable, compat_lite3r
from tests.metrics.test_pose import camera, moved, some_cameras


def test_rotation_is_averaged_with_the_reference_view_and_translation_is_not_of_centers():
    truth = np.stack([camera(), camera((1, 0, 0))])
    metrics = compat_lite3r.pose_metrics(np.stack([camera(), camera((1, 0, 0), (0, 0, 30))]), truth)
    assert metrics["lite3r_rot_err_deg"] == pytest.approx(30 / 2)
    # t = -R c is (-1, 0, 0) and (-cos, -sin, 0) of 30 degrees; scale cos(30), rest sin(30), halved
    assert metrics["lite3r_trans_err"] == pytest.approx(0.5 / 2)
    absolute = compat_lite3r.pose_metrics(truth, truth @ np.diag([1, 1, 1, 2.0]))
    assert absolute["lite3r_trans_err"] == pytest.approx(0)


def test_depth_is_clipped_and_scaled_over_all_views():
    truth = np.full((2, 10, 10), 2.0)
    depth = np.where(np.arange(200).reshape(2, 10, 10) < 100, 1.0, 3.0)
    depth[1, 0, 0] = -5.0  # counts as 1e-3
    metrics = compat_lite3r.depth_metrics(depth, truth, np.ones_like(truth))
    p = np.maximum(depth, 1e-3)
    p = p * (2 * p.sum()) / (p * p).sum()
    assert metrics["lite3r_abs_rel"] == pytest.approx((np.abs(p - 2) / 2).mean())
    assert metrics["lite3r_delta1"] == pytest.approx((np.maximum(p / 2, 2 / p) < 1.25).mean())


def test_points_are_compared_squared_and_without_alignment():
    truth = np.stack([np.arange(10.0), np.zeros(10), np.zeros(10)], -1)
    metrics = compat_lite3r.point_metrics(truth + [0, 0.3, 0], truth)
    assert metrics == pytest.approx({"lite3r_chamfer": 0.09, "lite3r_fscore_5cm": 0.0})
    metrics = compat_lite3r.point_metrics(np.concatenate([truth, truth + [0, 9, 0]]), truth)
    # half of the predicted points are right, all true ones are found
    assert metrics["lite3r_fscore_5cm"] == pytest.approx(2 * 0.5 / 1.5)
    assert metrics["lite3r_chamfer"] == pytest.approx(81 / 2 / 2)


def test_too_little_truth_is_not_available_and_nonsense_is_refused():
    truth = np.ones((1, 5, 5))
    metrics = compat_lite3r.depth_metrics(truth, truth, truth)
    assert set(metrics.values()) == {NotAvailable("fewer than 100 pixels have true depth")}
    metrics = compat_lite3r.point_metrics(np.ones((4, 3)), np.ones((0, 3)))
    assert set(metrics.values()) == {NotAvailable("no pixel has true depth")}
    with pytest.raises(InputError, match=r"points: .* not finite"):
        compat_lite3r.point_metrics(np.full((4, 3), np.nan), np.ones((4, 3)))


@pytest.mark.slow
@settings(max_examples=500, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_numbers_equal_brute_force_and_do_not_depend_on_the_world(seed):
    pred, truth = some_cameras(seed, 3), some_cameras(seed + 1, 3)
    metrics = compat_lite3r.pose_metrics(pred, truth)
    turns = [Rotation.from_matrix(e[:, :, :3] @ e[0, :, :3].T) for e in (pred, truth)]
    angles = np.degrees((turns[0] * turns[1].inv()).magnitude())
    assert metrics["lite3r_rot_err_deg"] == pytest.approx(angles.mean(), abs=1e-5)
    assert compat_lite3r.pose_metrics(moved(pred, seed), truth) == pytest.approx(metrics, abs=1e-5)
    a, b = np.random.default_rng(seed).normal(0, 0.05, (2, 12, 3))
    distance = np.linalg.norm(a[:9, None] - b, axis=-1)
    there, back = distance.min(1), distance.min(0)
    metrics = compat_lite3r.point_metrics(a[:9], b)
    assert metrics["lite3r_chamfer"] == pytest.approx(((there**2).mean() + (back**2).mean()) / 2)
    p, r = (back < 0.05).mean(), (there < 0.05).mean()
    assert metrics["lite3r_fscore_5cm"] == pytest.approx(2 * p * r / (p + r) if p + r else 0)
