"""Means, medians, ratios and their intervals."""

import numpy as np
import pytest

from lite3r_jax.evaluation.record import Record
from lite3r_jax.evaluation.summary import paired_difference, summarize
from lite3r_jax.metrics import NotAvailable


def records(values, **pairs):
    return [
        Record(f"s{n}", (0, 1), {"error": value}, {k: v[n] for k, v in pairs.items()})
        for n, value in enumerate(values)
    ]


def test_the_mean_is_of_scenes_that_have_the_metric_and_the_rest_is_counted_by_reason():
    known = [1.0, 2.0, NotAvailable("dark"), 6.0, NotAvailable("dark"), NotAvailable("far")]
    estimate = summarize([*records(known), Record("bad", (0,), failure="broken")])["error"]
    assert (estimate.value, estimate.scenes, estimate.missing) == (3.0, 3, {"dark": 2, "far": 1})
    assert estimate.low is not None and 1 <= estimate.low < 3 < estimate.high <= 6


def test_a_metric_that_no_scene_has_is_no_number():
    estimate = summarize(records([NotAvailable("dark")] * 2))["error"]
    assert (estimate.value, estimate.low, estimate.high, estimate.scenes) == (None, None, None, 0)
    one = summarize(records([4.0]))["error"]
    assert (one.value, one.low, one.high) == (4.0, None, None)


def test_medians_are_over_the_pairs_of_all_scenes():
    made = records([0.0, 0.0], rotation_deg=[(1.0, 2.0, 90.0), (3.0, None)])
    assert summarize(made)["rotation_median_deg"].value == 2.5


def test_the_ratio_is_of_means_over_the_same_scenes():
    made = [
        Record("a", (0,), {"wrong_partner_abs_rel": 3.0, "first_view_abs_rel": 1.0}),
        Record("b", (0,), {"wrong_partner_abs_rel": 3.0, "first_view_abs_rel": 3.0}),
        Record("c", (0,), {"wrong_partner_abs_rel": NotAvailable("x"), "first_view_abs_rel": 9.0}),
    ]
    estimate = summarize(made)["wrong_partner_ratio"]
    assert (estimate.value, estimate.scenes, estimate.missing) == (1.5, 2, {"x": 1})


def test_intervals_depend_on_the_seed_alone_and_shrink_with_more_scenes():
    rng = np.random.default_rng(0)
    few, many = rng.normal(size=20), rng.normal(size=2000)
    first = summarize(records(few))["error"]
    assert summarize(records(few))["error"] == first
    assert summarize(records(few), seed=1)["error"].low != first.low
    wide = summarize(records(many), resamples=200)["error"]
    assert (wide.high - wide.low) < 0.3 * (first.high - first.low)
    assert wide.high - wide.low == pytest.approx(2 * 1.96 / np.sqrt(2000), rel=0.2)


def test_intervals_hold_the_true_mean_about_as_often_as_they_say():
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        estimate = summarize(records(rng.normal(5, 1, 40)), resamples=200)["error"]
        hits += estimate.low <= 5 <= estimate.high
    assert 175 <= hits <= 199  # 190 expected


def test_a_paired_difference_does_not_care_how_hard_scenes_are():
    rng = np.random.default_rng(0)
    hard = rng.random(32) * 100
    better = hard - 1 + 0.1 * rng.standard_normal(32)
    estimate = paired_difference(better, hard)
    assert estimate.value == pytest.approx((better - hard).mean())
    assert -1.1 < estimate.low < estimate.value < estimate.high < -0.9
    means = summarize(records(list(map(float, hard))))["error"]
    assert means.high - means.low > 10  # apart, the two cannot be told from each other
    with pytest.raises(ValueError, match="same scenes"):
        paired_difference([1.0], [1.0, 2.0])
