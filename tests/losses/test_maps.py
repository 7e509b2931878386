"""Depth and point map loss: closed forms and the rules about few points."""

import jax
import numpy as np
import pytest

from lite3r_jax.losses import MapLoss, difference_term, map_terms, normal_term

maps = jax.jit(map_terms, static_argnums=0)
difference, normal = jax.jit(difference_term), jax.jit(normal_term)


def test_map_loss_by_hand():
    # s = <2, p> / <p, p> = 0.8; residuals 1.2 and 0.4.
    pred = np.where(np.arange(144) % 2, 3, 1).astype(np.float32).reshape(1, 1, 12, 12, 1)
    truth, mask = np.full_like(pred, 2), np.ones((1, 1, 12, 12), bool)
    conf = np.full(mask.shape, 5, np.float32)
    terms = maps(MapLoss(gamma=0.5, alpha=0.3), pred, conf, truth, mask)
    np.testing.assert_allclose(terms["reg"], 0.8, rtol=1e-6)
    np.testing.assert_allclose(terms["conf"], 0.5 * 0.8 * 5 - 0.3 * np.log(5), rtol=1e-5)
    assert terms["grad"] == 0
    conf[:] = -1  # held at 1e-3
    terms = maps(MapLoss(gamma=0.5, alpha=0.3), pred, conf, truth, mask)
    np.testing.assert_allclose(terms["conf"], 0.4e-3 - 0.3 * np.log(1e-3), rtol=1e-5)


def test_point_residual_is_a_distance():
    rng = np.random.default_rng(2)
    truth = rng.normal(size=(1, 1, 12, 12, 3)).astype(np.float32)
    truth -= truth.mean((2, 3), keepdims=True)  # so that an offset does not change the scale much
    pred = truth + np.float32([0.02, 0.03, 0.06])
    conf, mask = np.ones((1, 1, 12, 12), np.float32), np.ones((1, 1, 12, 12), bool)
    terms = maps(MapLoss(), pred, conf, truth, mask)
    np.testing.assert_allclose(terms["reg"], 0.07, rtol=1e-2)
    np.testing.assert_allclose(terms["conf"], terms["reg"], rtol=1e-6)  # log 1 = 0


def test_rules_about_few_points():
    truth = np.full((1, 2, 9, 20, 1), 2, np.float32)
    pred, conf = truth / 2, np.ones(truth.shape[:-1], np.float32)
    losses = {}
    for points in (99, 100, 101):
        mask = np.zeros(truth.shape[:-1], bool)
        mask.flat[:points] = True
        losses[points] = maps(MapLoss(gradient="grad"), pred, conf, truth, mask)
    assert losses[99]["reg"] == losses[99]["grad"] == losses[99]["conf"] == 0
    np.testing.assert_allclose(losses[100]["reg"], 1, rtol=1e-6)  # there is a loss, without a scale
    np.testing.assert_allclose(losses[101]["reg"], 0, atol=1e-6)  # and now with one

    def total(pred, mask):
        terms = maps(MapLoss(gradient="grad"), pred, conf, truth, mask)
        return terms["conf"] + terms["reg"] + terms["grad"]

    slope = jax.jit(jax.grad(total))
    for points, moves in ((0, False), (99, False), (100, True)):
        mask = np.arange(truth.size).reshape(truth.shape[:-1]) < points
        assert np.any(slope(pred, mask) != 0) == moves


def test_difference_term_by_hand():
    truth = np.zeros((1, 3, 4, 1), np.float32)
    pred = truth.copy()
    pred[0, 1, 1] = 5  # four neighbors, each pair differs by 5
    mask = np.ones((1, 3, 4), bool)
    term = difference(pred, truth, mask, None)
    assert (term.sum, term.count) == (20, 12)
    mask[0, 1, 2] = False
    term = difference(pred, truth, mask, None)
    assert (term.sum, term.count) == (15, 11)
    pred[0, 1, 1] = 500  # held at 100
    assert difference(pred, truth, mask, None).sum == 300
    # The confidence is that of the right or lower pixel; 17 pairs have a logarithm each.
    pred[0, 1, 1], conf = 5, np.full((1, 3, 4), 2, np.float32)
    conf[0, 1, 1] = 3
    pairs = 3 * 3 + 2 * 4
    want = 5 * (3 + 3 + 2) - 0.2 * ((pairs - 2) * np.log(2) + 2 * np.log(3))
    term = difference(pred, truth, mask, conf)
    np.testing.assert_allclose(term.sum, want, rtol=1e-6)


@pytest.mark.parametrize(("angle", "want"), [(0, 0), (60, 0.5), (90, 1), (180, 2)])
def test_normal_term_is_one_minus_the_cosine(angle, want):
    y, x = np.mgrid[:6, :7].astype(np.float32)
    plane = np.stack([x, y, np.zeros_like(x)], -1)[None]
    c, s = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    tilted = (plane @ np.float32([[1, 0, 0], [0, c, s], [0, -s, c]])).astype(np.float32)
    mask = np.ones((1, 6, 7), bool)
    term = normal(tilted, plane, mask, None)
    # Of the four normals at a pixel, one is left in a corner and two along an edge.
    assert term.count == 4 * 4 * 5 + 2 * (2 * 4 + 2 * 5) + 4
    np.testing.assert_allclose(term.mean, want, atol=1e-6)
    shifted = normal(3 * tilted + 5, plane, mask, None)  # direction only
    np.testing.assert_allclose(shifted.mean, want, atol=1e-6)
    conf = np.full((1, 6, 7), 4, np.float32)
    term = normal(tilted, plane, mask, conf)
    np.testing.assert_allclose(term.mean, 4 * want - 0.2 * np.log(4), atol=1e-5)


def test_ties_have_gradient_zero():
    truth = np.zeros((1, 4, 5, 1), np.float32)
    mask = np.ones((1, 4, 5), bool)
    grad = jax.grad(lambda x: difference(x, truth, mask, None).sum)(truth)
    np.testing.assert_array_equal(grad, 0)


def test_broken_ground_truth_counts_as_zero_and_large_one_is_held_at_100():
    truth = np.full((1, 1, 12, 12, 1), 2, np.float32)
    pred, conf = truth.copy(), np.ones((1, 1, 12, 12), np.float32)
    mask = np.ones((1, 1, 12, 12), bool)
    for value, meant in ((np.nan, 0), (np.inf, 0), (1e6, 100), (-1e6, -100)):
        broken, clean = truth.copy(), truth.copy()
        broken[0, 0, 3, 4], clean[0, 0, 3, 4] = value, meant
        got = maps(MapLoss(gradient="grad"), pred, conf, broken, mask)
        want = maps(MapLoss(gradient="grad"), pred, conf, clean, mask)
        for name in want:
            np.testing.assert_array_equal(got[name], want[name])
        assert got["reg"] > 0
