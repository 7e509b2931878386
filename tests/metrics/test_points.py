"""Point clouds: against brute force, what alignment forgives, units."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from lite3r_jax.errors import InputError
from lite3r_jax.geometry import apply_sim3, fit_sim3
from lite3r_jax.metrics import NotAvailable, point_metrics

seeds = st.integers(0, 2**32 - 1)


def cloud(seed, count=40):
    return np.random.default_rng(seed).normal(size=(2, count // 2, 3))


def everywhere(points):
    return np.ones(points.shape[:-1], bool)


@pytest.mark.slow
@settings(max_examples=500, deadline=None)
@given(seeds)
def test_metrics_equal_brute_force(seed):
    truth = cloud(seed)
    points = truth + np.random.default_rng([seed, 1]).normal(0, 0.05, truth.shape)
    metrics = point_metrics(points, truth, everywhere(truth))
    a, b = points.reshape(-1, 3), truth.reshape(-1, 3)
    a = apply_sim3(fit_sim3(a, b, xp=np), a, xp=np)
    distance = np.linalg.norm(a[:, None] - b, axis=-1)
    there, back = distance.min(1), distance.min(0)
    assert metrics["accuracy"] == pytest.approx(there.mean())
    assert metrics["completeness"] == pytest.approx(back.mean())
    assert metrics["accuracy_median"] == pytest.approx(np.median(there))
    assert metrics["completeness_median"] == pytest.approx(np.median(back))
    assert metrics["chamfer"] == pytest.approx((there.mean() + back.mean()) / 2)
    p, r = (there < 0.05).mean(), (back < 0.05).mean()
    assert (metrics["precision_0.05"], metrics["recall_0.05"]) == pytest.approx((p, r))
    assert metrics["fscore_0.05"] == pytest.approx(2 * p * r / (p + r) if p + r else 0)


@pytest.mark.slow
@settings(max_examples=500, deadline=None)
@given(seeds)
def test_a_similarity_of_the_truth_is_perfect_and_lengths_are_in_its_unit(seed):
    truth = cloud(seed)
    rng = np.random.default_rng([seed, 2])
    turned = truth @ Rotation.random(rng=rng).as_matrix() * np.exp(rng.normal()) + rng.normal(
        size=3
    )
    metrics = point_metrics(turned, truth, everywhere(truth))
    assert metrics["chamfer"] < 1e-9 and metrics["fscore_0.01"] == 1
    noisy = turned + 0.1 * np.ptp(turned) * rng.normal(size=truth.shape)
    one, ten = (point_metrics(noisy, unit * truth, everywhere(truth)) for unit in (1, 10))
    assert ten["chamfer"] == pytest.approx(10 * one["chamfer"])


def test_a_mirror_image_is_not_forgiven():
    truth = cloud(0)
    mirrored = point_metrics(truth * [1, 1, -1], truth, everywhere(truth))
    assert mirrored["chamfer"] > 0.1


def test_pixels_without_truth_do_not_count():
    truth = cloud(1)
    mask = everywhere(truth)
    mask[0, :5] = False
    wild = np.where(mask[..., None], truth, np.nan)
    assert point_metrics(wild, np.where(mask[..., None], truth, 1e6), mask)["chamfer"] < 1e-9


def test_closest_points_forgive_a_slide_along_a_surface():
    u, v = np.meshgrid(np.arange(20.0), np.arange(20.0))
    truth = np.stack([u, v, 0.3 * np.sin(u) + 0.2 * np.cos(v)], -1)
    moved = u + 0.015 * (v - 10) ** 2
    slid = np.stack([moved, v, 0.3 * np.sin(moved) + 0.2 * np.cos(v)], -1)
    plain = point_metrics(slid, truth, everywhere(truth))["accuracy"]
    closer = point_metrics(slid, truth, everywhere(truth), icp=20)["accuracy"]
    assert closer < 0.75 * plain


def test_large_clouds_are_thinned_alike():
    truth = cloud(2, 4000)
    metrics = point_metrics(truth, truth, everywhere(truth), limit=100)
    assert metrics["chamfer"] < 1e-9


def test_what_is_no_cloud_is_not_available_or_refused():
    truth = cloud(0)
    mask = np.zeros(truth.shape[:-1], bool)
    mask[0, :2] = True
    reasons = set(point_metrics(truth, truth, mask).values())
    assert reasons == {NotAvailable("fewer than three pixels have true depth")}
    with pytest.raises(InputError, match="points: 3 of 120 predicted values are not finite"):
        broken = truth.copy()
        broken[0, 0] = np.inf
        point_metrics(broken, truth, everywhere(truth))
