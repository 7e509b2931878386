"""Similarities: known ones come back, nothing fits better, mirrors never."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from lite3r_jax.errors import InputError
from lite3r_jax.geometry import Sim3, apply_sim3, fit_sim3

seeds = st.integers(0, 2**32 - 1)
many = settings(max_examples=500, deadline=None)


def problem(seed, count=12, noise=0.0):
    rng = np.random.default_rng(seed)
    known = Sim3(np.exp(rng.normal()), Rotation.random(rng=rng).as_matrix(), rng.normal(size=3))
    source = rng.normal(size=(count, 3))
    target = known.scale * source @ known.rotation.T + known.translation
    return known, source, target + noise * rng.normal(size=target.shape)


def error(sim3, source, target):
    return ((apply_sim3(sim3, source, xp=np) - target) ** 2).sum()


@many
@given(seeds)
def test_a_known_similarity_comes_back(seed):
    known, source, target = problem(seed)
    similarity = fit_sim3(source, target, xp=np)
    for got, want in zip(similarity, known, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-9)
    np.testing.assert_allclose(apply_sim3(similarity, source, xp=np), target, atol=1e-9)


@pytest.mark.slow
@many
@given(seeds)
def test_nothing_near_fits_better(seed):
    _, source, target = problem(seed, noise=0.5)
    similarity = fit_sim3(source, target, xp=np)
    best = error(similarity, source, target)
    rng = np.random.default_rng([seed, 1])
    turn = Rotation.from_rotvec(rng.normal(0, 1e-3, 3)).as_matrix()
    for other in (
        similarity._replace(scale=similarity.scale * (1 + 1e-3 * rng.normal())),
        similarity._replace(rotation=turn @ similarity.rotation),
        similarity._replace(translation=similarity.translation + 1e-3 * rng.normal(size=3)),
    ):
        assert error(other, source, target) >= best - 1e-9


@pytest.mark.slow
@many
@given(seeds)
def test_a_mirror_image_gets_the_best_rotation(seed):
    known, source, target = problem(seed)
    similarity = fit_sim3(source * [1, 1, -1], target, xp=np)
    np.testing.assert_allclose(similarity.rotation @ similarity.rotation.T, np.eye(3), atol=1e-9)
    assert np.linalg.det(similarity.rotation) == pytest.approx(1)
    assert 0 <= similarity.scale < known.scale


def test_jax_gives_what_numpy_gives_for_a_batch_with_weights():
    parts = [problem(seed, noise=0.1)[1:] for seed in range(3)]
    source, target = (np.stack(arrays) for arrays in zip(*parts, strict=True))
    weights = np.random.default_rng(0).uniform(0, 1, source.shape[:-1])
    weights[:, 3] = 0
    source[:, 3] = np.nan  # has no weight
    want = fit_sim3(source, target, weights, xp=np)
    similarity = jax.jit(fit_sim3)(
        *(jnp.asarray(x, jnp.float32) for x in (source, target, weights))
    )
    for got, goal in zip(similarity, want, strict=True):
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, goal, atol=1e-5)
    moved = apply_sim3(similarity, jnp.asarray(target, jnp.float32))
    np.testing.assert_allclose(moved, apply_sim3(want, target, xp=np), atol=1e-4)
    one = fit_sim3(source[1], target[1], weights[1], xp=np)
    np.testing.assert_allclose(one.rotation, want.rotation[1], atol=1e-12)


def test_gradients_are_finite_and_those_of_differences():
    _, source, target = problem(0, noise=0.1)

    def loss(points, xp):
        sim3 = fit_sim3(points, xp.asarray(target, points.dtype), xp=xp)
        return ((apply_sim3(sim3, points, xp=xp) - xp.asarray(target, points.dtype)) ** 2).sum()

    slope = jax.jit(jax.grad(lambda x: loss(x, jnp)))(jnp.asarray(source, jnp.float32))
    step = np.zeros_like(source)
    step[2, 1] = 1e-6
    numeric = (loss(source + step, np) - loss(source - step, np)) / 2e-6
    assert slope[2, 1] == pytest.approx(numeric, abs=1e-3)


def test_degenerate_points_give_a_rotation_and_a_scale_that_is_finite():
    line = np.outer(np.arange(4.0), [1, 0, 0])
    similarity = fit_sim3(line, 2 * line[:, [1, 0, 2]], xp=np)
    assert error(similarity, line, 2 * line[:, [1, 0, 2]]) < 1e-20
    assert np.linalg.det(similarity.rotation) == pytest.approx(1)
    same = fit_sim3(np.ones((4, 3)), line, xp=np)
    assert same.scale == 0
    np.testing.assert_allclose(same.translation, line.mean(0))


def test_shapes_that_do_not_fit_are_refused():
    for arguments, message in (
        ((np.ones((4, 3)), np.ones((5, 3))), "source, target: expected"),
        ((np.ones((4, 2)), np.ones((4, 2))), "source: expected shape"),
        ((np.ones((4, 3)), np.ones((4, 3)), np.ones(3)), "weights: expected"),
    ):
        for xp in (np, jnp):
            with pytest.raises(InputError, match=message):
                fit_sim3(*arguments, xp=xp)
