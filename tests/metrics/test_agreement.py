"""A student against its teacher."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lite3r_jax.metrics import NotAvailable, agreement, depth_metrics, pose_metrics
from lite3r_jax.metrics.agreement import AGREEMENT_METRICS
from tests.metrics.test_pose import moved, some_cameras


def test_agreement_takes_the_teacher_for_the_truth_at_every_pixel():
    rng = np.random.default_rng(0)
    teacher, student = np.exp(rng.normal(size=(2, 3, 4, 5)))
    cameras, others = some_cameras(0, 3), some_cameras(1, 3)
    metrics = agreement(student, others, teacher, cameras)
    assert tuple(metrics) == AGREEMENT_METRICS
    depth = depth_metrics(student, teacher, np.ones((3, 4, 5)))
    assert metrics["teacher_abs_rel"] == depth["abs_rel"]
    assert metrics["teacher_rotation_deg"] == pose_metrics(others, cameras)["rotation_deg"]
    same = agreement(2 * teacher, cameras, teacher, cameras)
    assert same["teacher_abs_rel"] == pytest.approx(0) and same["teacher_auc_3"] == 1


def test_what_one_of_them_lacks_is_not_available():
    depth, cameras = np.ones((2, 3, 4)), some_cameras(0, 2)
    metrics = agreement(depth, None, depth, cameras)
    assert metrics["teacher_abs_rel"] == 0
    assert metrics["teacher_auc_5"] == NotAvailable("one of the models predicts no cameras")
    metrics = agreement(depth, cameras, None, cameras)
    assert metrics["teacher_delta1"] == NotAvailable("one of the models predicts no depth")


@pytest.mark.slow
@settings(max_examples=500, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_unit_and_world_of_the_student_do_not_matter(seed):
    teacher, student = np.exp(np.random.default_rng(seed).normal(size=(2, 3, 2, 2)))
    cameras, others = some_cameras(seed, 3), some_cameras(seed + 1, 3)
    metrics = agreement(student, others, teacher, cameras)
    again = agreement(7 * student, moved(others, seed), teacher, cameras)
    assert again == pytest.approx(metrics, abs=1e-6)
    perfect = agreement(0.1 * teacher, moved(cameras, seed), teacher, cameras)
    assert perfect["teacher_abs_rel"] < 1e-9 and perfect["teacher_auc_3"] == 1
