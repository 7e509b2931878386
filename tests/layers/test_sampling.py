"""Sampling of maps, and correlation windows against their definition."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lite3r_jax.errors import InputError
from lite3r_jax.layers import sampling
from lite3r_jax.layers.sampling import (
    bilinear_sample,
    correlation_windows,
    dense_correlation_windows,
    halve,
    pyramid,
)

# Compiled whole: operation by operation they would take most of the time of these tests.
sample = jax.jit(bilinear_sample, static_argnames="outside")
windows = jax.jit(correlation_windows, static_argnums=3)

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "vggt" / "modules" / "track.npz")


def one_hot(h: int, w: int, x: int, y: int) -> jax.Array:
    return jnp.zeros((1, h, w, 1)).at[0, y, x, 0].set(1.0)


def points(*xy: tuple[float, float]) -> jax.Array:
    return jnp.asarray([xy], jnp.float32)


# Sampling


@pytest.mark.parametrize(
    ("expected", "rows", "outside"),
    [("zeros", 5, "zeros"), ("border", 5, "border"), ("h1_zeros", 1, "zeros")],
)
def test_sampling_agrees_with_torch(parity, expected, rows, outside):
    maps = np.moveaxis(GOLDEN["sampler_in"], 1, -1)[:, :rows]
    at = GOLDEN["sampler_coords"]  # reaches beyond the map on every side
    got = sample(jnp.asarray(maps), jnp.asarray(at.reshape(2, -1, 2)), outside=outside)
    got = np.moveaxis(np.asarray(got).reshape(*at.shape[:3], -1), -1, 1)
    name = f"sampler_{expected}"
    parity("modules/track", name, got, GOLDEN[name], 1e-6)


def test_sampling_of_features_agrees_with_torch(parity):
    maps = jnp.moveaxis(jnp.asarray(GOLDEN["sampler_in"]), 1, -1)
    got = sample(maps, jnp.asarray(GOLDEN["sampler_coords"][:, 0]), outside="border")
    parity("modules/track", "sample_features4d", got, GOLDEN["sample_features4d"], 1e-6)


@pytest.mark.parametrize("outside", ["border", "zeros"])
def test_a_whole_point_reads_its_pixel_x_to_the_right_y_down(outside):
    maps = one_hot(5, 9, x=7, y=2)
    near = points((7, 2), (2, 7), (6, 2), (7, 1), (6.75, 2), (7, 2.5), (6.75, 2.5))
    got = sample(maps, near, outside=outside)[0, :, 0]
    np.testing.assert_array_equal(got, [1, 0, 0, 0, 0.75, 0.5, 0.375])


def test_a_plane_is_reproduced_between_pixels():
    y, x = np.mgrid[:6, :11].astype(np.float32)
    maps = jnp.asarray(np.stack([x, y, 2 * x - 3 * y + 1], axis=-1))[None]
    at = np.random.default_rng(0).uniform([0, 0], [10, 5], (1, 200, 2)).astype(np.float32)
    expected = np.stack([at[..., 0], at[..., 1], 2 * at[..., 0] - 3 * at[..., 1] + 1], axis=-1)
    got = sample(maps, jnp.asarray(at), outside="zeros")
    np.testing.assert_allclose(got, expected, atol=1e-5, rtol=0)


def test_outside_the_map():
    maps = jnp.arange(1.0, 13).reshape(1, 3, 4, 1)
    at = points((-0.5, 0), (-1, 0), (3.25, 2), (1e12, 1), (0, -1e12))
    zeros = sample(maps, at, outside="zeros")[0, :, 0]
    np.testing.assert_array_equal(zeros, [0.5, 0, 9, 0, 0])
    border = sample(maps, at, outside="border")[0, :, 0]
    np.testing.assert_array_equal(border, [1, 1, 12, 8, 1])


@pytest.mark.parametrize("outside", ["border", "zeros"])
def test_an_axis_of_one_pixel_has_no_outside(outside):
    row = jnp.arange(1.0, 5).reshape(1, 1, 4, 1)
    got = sample(row, points((2, 0), (2, 0.5), (2, -1e12), (2, 7)), outside=outside)
    np.testing.assert_array_equal(got[0, :, 0], [3, 3, 3, 3])


@pytest.mark.slow
def test_maps_keep_their_dtype_and_weights_are_float32():
    maps = one_hot(1, 257, x=256, y=0).astype(jnp.bfloat16)
    got = sample(maps, points((255.5, 0)), outside="zeros")  # 255.5 is no bfloat16
    assert got.dtype == jnp.bfloat16
    assert got[0, 0, 0] == 0.5


def test_gradient_is_the_weight_of_each_pixel_and_none_for_the_position():
    maps = jnp.asarray(GOLDEN["sampler_in"][:1, :1, :3, :4].transpose(0, 2, 3, 1))

    def value(maps, at):
        return sample(maps, at, outside="zeros").sum()

    to_maps, to_points = jax.grad(value, (0, 1))(maps, points((1.25, 0.5)))
    expected = np.zeros((3, 4))
    expected[:2, 1:3] = [[0.375, 0.125], [0.375, 0.125]]
    np.testing.assert_allclose(to_maps[0, :, :, 0], expected, atol=1e-7)
    np.testing.assert_array_equal(to_points, np.zeros((1, 1, 2)))


def test_an_unknown_outside_is_refused():
    with pytest.raises(InputError, match="outside='reflection': expected 'border' or 'zeros'"):
        bilinear_sample(one_hot(2, 2, 0, 0), points((0, 0)), outside="reflection")


# Pyramid


def test_halving_averages_cells_and_drops_the_odd_rest():
    maps = jnp.arange(15.0).reshape(1, 3, 5, 1)
    np.testing.assert_array_equal(halve(maps)[0, :, :, 0], [[3, 5]])


def test_pyramid_ends_at_one_pixel():
    levels = pyramid(jnp.ones((2, 9, 19, 3)), 4)
    assert [m.shape for m in levels] == [(2, 9, 19, 3), (2, 4, 9, 3), (2, 2, 4, 3), (2, 1, 2, 3)]


def test_pyramid_refuses_a_small_map():
    with pytest.raises(InputError, match="feature map of 63x90: 7 pyramid levels need at least 64"):
        pyramid(jnp.ones((1, 63, 90, 2)), 7)


# Correlation windows


def random_case(h: int, w: int, levels: int, n: int = 7, m: int = 3, c: int = 5, seed: int = 0):
    rng = np.random.default_rng(seed)
    maps = jnp.asarray(rng.normal(size=(m, h, w, c)), jnp.float32)
    features = jnp.asarray(rng.normal(size=(m, n, c)), jnp.float32)
    at = rng.uniform([-5, -5], [w + 5, h + 5], (m, n, 2))
    at[:, 0] = [2, 1]  # a whole position
    at[:, 1] = [w - 1, h - 1]  # the last pixel
    at[:, 2] = [-1e9, 3]  # nowhere near
    at[0, 3] = [w + 1e12, 0.5]
    return features, pyramid(maps, levels), jnp.asarray(at, jnp.float32)


@pytest.mark.slow
# Odd sizes; the last levels of the first two are one pixel high, one pixel wide.
@pytest.mark.parametrize(
    ("h", "w", "levels", "radius"),
    [
        pytest.param(7, 21, 3, 2, marks=pytest.mark.slow),
        (13, 4, 3, 1),
        pytest.param(1, 6, 1, 3, marks=pytest.mark.slow),
        (1, 1, 1, 1),
    ],
)
def test_windows_equal_their_definition_in_value_and_gradient(h, w, levels, radius):
    features, maps, at = random_case(h, w, levels)
    entries = levels * (2 * radius + 1) ** 2
    weights = np.random.default_rng(1).normal(size=(3, 7, entries)).astype(np.float32)

    def weighted(windows):
        def value(features, maps):
            result = windows(features, maps, at, radius)
            return (result * weights).sum(), result

        return jax.jit(jax.value_and_grad(value, (0, 1), has_aux=True))(features, maps)

    (_, got), got_gradient = weighted(correlation_windows)
    (_, expected), expected_gradient = weighted(dense_correlation_windows)
    assert got.shape == (3, 7, entries)
    np.testing.assert_allclose(got, expected, atol=5e-6, rtol=0)
    for a, b in zip(jax.tree.leaves(got_gradient), jax.tree.leaves(expected_gradient), strict=True):
        np.testing.assert_allclose(a, b, atol=3e-5, rtol=0)


def test_the_first_index_of_a_window_moves_along_x():
    radius, center = 2, (6, 4)
    maps = one_hot(9, 13, x=center[0] + 2, y=center[1] - 1)
    window = windows(jnp.ones((1, 1, 1)), (maps,), points(center), radius)
    expected = np.zeros((5, 5))
    expected[radius + 2, radius - 1] = 1
    np.testing.assert_array_equal(window.reshape(5, 5), expected)


def test_correlation_is_divided_by_the_root_of_the_channels():
    maps, feature = jnp.full((1, 5, 5, 16), 2.0), jnp.full((1, 1, 16), 3.0)
    window = windows(feature, (maps,), points((2, 2)), 1)
    np.testing.assert_array_equal(window, np.full((1, 1, 9), 2 * 3 * 16 / 4))


def test_points_are_those_of_level_0():
    level1 = one_hot(4, 4, x=2, y=1)
    window = windows(jnp.ones((1, 1, 1)), (jnp.zeros((1, 8, 8, 1)), level1), points((4, 2)), 1)
    expected = np.zeros((2, 3, 3))
    expected[1, 1, 1] = 1
    np.testing.assert_array_equal(window.reshape(2, 3, 3), expected)


@pytest.mark.slow
@pytest.mark.parametrize("together", [1, 3])  # of 7 points
def test_chunks_of_points_change_nothing(monkeypatch, together):
    features, maps, at = random_case(16, 24, 3)
    whole = dense_correlation_windows(features, maps, at, 2)
    values_per_point = 3 * 3 * 6 * 6 * 5
    monkeypatch.setattr(sampling, "_WINDOW_VALUES", together * values_per_point)
    np.testing.assert_allclose(correlation_windows(features, maps, at, 2), whole, atol=5e-6)


def test_windows_have_no_gradient_to_points():
    features, maps, at = random_case(16, 24, 2)
    gradient = jax.grad(lambda at: windows(features, maps, at, 2).sum())(at)
    np.testing.assert_array_equal(gradient, np.zeros_like(at))


def test_windows_of_bfloat16_maps_are_summed_in_float32():
    maps = jnp.ones((1, 3, 3, 1024), jnp.bfloat16)
    feature = jnp.full((1, 1, 1024), 1 + 2**-7)  # a bfloat16; 1024 of them are not
    window = windows(feature, (maps,), points((1, 1)), 1)
    assert window.dtype == jnp.float32
    np.testing.assert_allclose(window, np.full((1, 1, 9), (1 + 2**-7) * 1024 / 32), rtol=1e-6)
