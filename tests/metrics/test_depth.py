"""Depth errors: closed forms, what each alignment forgives, and properties over random depth."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lite3r_jax.errors import InputError
from lite3r_jax.metrics import NotAvailable, align_depth, depth_metrics

seeds = st.integers(0, 2**32 - 1)
many = settings(max_examples=500, deadline=None)
EVERYWHERE = np.ones((2, 3, 4), bool)


def scene(seed):
    """Prediction, truth and mask of 1 to 4 views, at least one pixel valid."""
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 5, 3))
    truth, depth = np.exp(rng.normal(0, 1, (2, *shape)))
    mask = rng.random(shape) < 0.7
    mask.flat[rng.integers(mask.size)] = True
    return depth, truth, mask


def test_errors_are_those_of_the_definition():
    truth = np.full((2, 3, 4), 2.0)
    depth = truth.copy()
    depth[0] = 3.0  # half of all pixels, 1.5 times too far: beyond 1.25, within 1.25^2 = 1.5625
    metrics = depth_metrics(depth, truth, EVERYWHERE, alignment="none")
    assert metrics == pytest.approx(
        {"abs_rel": 0.25, "rmse": np.sqrt(0.5), "delta1": 0.5, "delta2": 1.0, "delta3": 1.0}
    )


def test_deltas_count_too_near_as_too_far():
    truth = np.full((1, 1, 4), 1.0)
    depth = np.array([[[1.24, 1 / 1.24, 1.26, 1 / 1.26]]])
    metrics = depth_metrics(depth, truth, truth > 0, alignment="none")
    assert metrics["delta1"] == 0.5 and metrics["delta2"] == 1.0


@pytest.mark.parametrize(
    "alignment,forgives_scale,forgives_shift",
    [
        ("none", False, False), ("median", True, False), ("scale", True, False),
        ("scale_shift", True, True),
    ],
)  # fmt: skip
def test_an_alignment_forgives_what_its_name_says(alignment, forgives_scale, forgives_shift):
    _, truth, _ = scene(3)
    truth = np.random.default_rng(0).uniform(1, 5, (2, 3, 4))
    for depth, forgiven in ((truth / 7, forgives_scale), (truth + 2, forgives_shift)):
        metrics = depth_metrics(depth, truth, EVERYWHERE, alignment=alignment)
        assert (metrics["abs_rel"] < 1e-12) == forgiven


@pytest.mark.parametrize("alignment", ["median", "scale", "scale_shift"])
def test_a_scale_for_each_view_forgives_more_than_one_for_the_scene(alignment):
    truth = np.random.default_rng(0).uniform(1, 5, (2, 3, 4))
    depth = truth * np.array([2.0, 0.3])[:, None, None]
    errors = {
        scope: depth_metrics(depth, truth, EVERYWHERE, alignment=alignment, scope=scope)["abs_rel"]
        for scope in ("scene", "view")
    }
    assert errors["view"] < 1e-12 < 0.1 < errors["scene"]


def test_a_view_without_truth_stays_as_it_is():
    truth = np.full((2, 3, 4), 4.0)
    mask = EVERYWHERE.copy()
    mask[1] = False
    aligned = align_depth(np.ones((2, 3, 4)), truth, mask, scope="view")
    assert (aligned[0] == 4).all() and (aligned[1] == 1).all()


def test_what_alignment_makes_negative_is_outside_of_every_delta():
    truth = np.array([[[1.0, 1.0, 10.0, 10.0]]])
    depth = np.array([[[1.0, 1.2, 1.0, 3.0]]])
    aligned = align_depth(depth, truth, truth > 0, alignment="scale_shift")
    depth[0, 0, 0] = -50.0  # not positive from the start
    metrics = depth_metrics(depth, truth, truth > 0, alignment="none")
    assert metrics["delta3"] == 0.25 and np.isfinite(aligned).all()


def test_a_scene_without_true_depth_is_not_available():
    for truth, mask in ((np.ones((1, 2, 2)), False), (np.zeros((1, 2, 2)), True)):
        metrics = depth_metrics(np.ones((1, 2, 2)), truth, np.full((1, 2, 2), mask))
        assert (
            set(metrics.values()) == {NotAvailable("no pixel has true depth")} and len(metrics) == 5
        )


@pytest.mark.parametrize(
    "depth,alignment,message",
    [
        (np.nan, "none", "depth: 1 of 4 predicted values are not finite"),
        (np.inf, "scale", "not finite"),
        (0.0, "median", "no scale that alignment median could fit"),
        (0.0, "scale", "no scale that alignment scale could fit"),
    ],
)
def test_a_prediction_that_is_no_depth_is_refused(depth, alignment, message):
    predicted = np.zeros((1, 2, 2)) if depth == 0 else np.ones((1, 2, 2))
    predicted[0, 0, 0] = depth
    with pytest.raises(InputError, match=message):
        depth_metrics(predicted, np.ones((1, 2, 2)), np.ones((1, 2, 2)), alignment=alignment)


def test_wrong_arguments_are_refused_by_name():
    one = np.ones((1, 2, 2))
    for message, arguments, more in (
        ("truth: expected shape", (one, one[0], one), {}),
        ("depth: expected shape", (one[:, :1], one, one), {}),
        ("mask: expected shape", (one, one, one[:, :1]), {}),
        ("alignment: expected one of", (one, one, one), {"alignment": "affine"}),
        ("scope: expected one of", (one, one, one), {"scope": "pixel"}),
    ):
        with pytest.raises(ValueError, match=message):
            depth_metrics(*arguments, **more)


@pytest.mark.slow
@many
@given(seeds)
def test_metrics_equal_a_loop_over_pixels(seed):
    depth, truth, mask = scene(seed)
    metrics = depth_metrics(depth, truth, mask, alignment="none")
    pairs = [(p, g) for p, g, m in zip(depth.flat, truth.flat, mask.flat, strict=True) if m]
    ratios = [max(p / g, g / p) for p, g in pairs]
    assert metrics["abs_rel"] == pytest.approx(np.mean([abs(p - g) / g for p, g in pairs]))
    assert metrics["rmse"] == pytest.approx(np.sqrt(np.mean([(p - g) ** 2 for p, g in pairs])))
    for k in (1, 2, 3):
        assert metrics[f"delta{k}"] == pytest.approx(np.mean([r < 1.25**k for r in ratios]))


@pytest.mark.slow
@many
@given(seeds)
def test_least_squares_alignments_equal_a_solver(seed):
    depth, truth, mask = scene(seed)
    p, g = depth[mask], truth[mask]
    for alignment, columns in (("scale", [p]), ("scale_shift", [p, np.ones_like(p)])):
        matrix = np.stack(columns, -1)
        fitted = matrix @ np.linalg.lstsq(matrix, g, rcond=None)[0]
        aligned = align_depth(depth, truth, mask, alignment=alignment)
        np.testing.assert_allclose(aligned[mask], fitted, atol=1e-8 * g.max())


@pytest.mark.slow
@many
@given(seeds, st.sampled_from(["median", "scale", "scale_shift"]), st.floats(1e-3, 1e3))
def test_the_unit_of_a_prediction_does_not_matter_after_alignment(seed, alignment, unit):
    depth, truth, mask = scene(seed)
    errors = [
        depth_metrics(d, truth, mask, alignment=alignment)["abs_rel"] for d in (depth, unit * depth)
    ]
    assert errors[0] == pytest.approx(errors[1], rel=1e-6, abs=1e-9)


@pytest.mark.slow
@many
@given(seeds)
def test_pixels_outside_of_the_mask_and_the_order_of_views_do_not_matter(seed):
    depth, truth, mask = scene(seed)
    metrics = depth_metrics(depth, truth, mask)
    garbage = np.where(mask, depth, np.nan)
    turned = [array[::-1] for array in (garbage, np.where(mask, truth, -1), mask)]
    assert depth_metrics(*turned) == pytest.approx(metrics)
