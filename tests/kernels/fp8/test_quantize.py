"""Float8 and integer quantization, against ml_dtypes, a table of codes and properties."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lite3r_jax.kernels.fp8.quantize import (
    dequantize,
    encode,
    fake_quantize,
    fake_quantize_int,
    quantize,
)
from lite3r_jax.kernels.fp8.reference import FORMATS, int_reference, quantize_reference

quick = jax.jit(quantize, static_argnums=(1, 2))
fake = jax.jit(fake_quantize, static_argnums=(1, 2))
FORMS = list(FORMATS)


def every_code(form):
    return np.arange(256, dtype=np.uint8).view(FORMATS[form].dtype)


def same_bits(a, b):
    return np.array_equal(np.asarray(a).view(np.uint8), np.asarray(b).view(np.uint8))


@pytest.mark.parametrize("form", FORMS)
def test_every_finite_code_comes_back_as_itself(form):
    codes = every_code(form)
    values = codes.astype(np.float32)
    finite = np.isfinite(values)
    assert FORMATS[form].top == values[finite].max() == ml_dtypes.finfo(FORMATS[form].dtype).max
    for scale in (1.0, 2.0**-100, 2.0**60):
        got, s = quick(values[finite] * np.float32(scale), form, -1)
        assert same_bits(got, codes[finite])
        np.testing.assert_allclose(dequantize(got, s), values[finite] * scale, rtol=3e-7)
    assert np.isnan(np.asarray(encode(values, jnp.float32(1), form), np.float32))[
        np.isnan(values)
    ].all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_takes_the_nearest_code_and_of_two_the_even_one(form, dtype):
    values = np.sort(np.unique(every_code(form).astype(np.float32)))
    values = values[np.isfinite(values)]
    middles = (values[1:] + values[:-1]) / 2
    around = [np.nextafter(middles, sign * np.float32(np.inf)) for sign in (-1, 1)]
    rng = np.random.default_rng(0)
    spread = rng.standard_normal(3000) * np.exp2(rng.uniform(-20, 0, 3000))
    row = np.concatenate([values, middles, *around, spread * FORMATS[form].top]).astype(dtype)
    row = np.clip(row.astype(np.float32), values[0], values[-1]).astype(dtype)
    got, scale = quick(row, form, -1)
    wanted, wanted_scale = quantize_reference(row, form, -1)
    np.testing.assert_array_equal(scale, wanted_scale)
    np.testing.assert_array_equal(got.astype(np.float32), wanted.astype(np.float32))
    # The same by the cast of ml_dtypes, which is not how the reference finds it.
    assert same_bits(got, (row.astype(np.float32) / wanted_scale).astype(FORMATS[form].dtype))


@pytest.mark.parametrize("form", FORMS)
def test_saturates_where_a_cast_does_not(form):
    top = FORMATS[form].top
    x = jnp.array([1.01, 1.04, 2, 1e6, np.inf]) * top
    assert not np.isfinite(np.asarray(x.astype(FORMATS[form].dtype), np.float32)[2:]).any()
    for sign in (1, -1):
        got = np.asarray(encode(sign * x, jnp.float32(1), form), np.float32)
        np.testing.assert_array_equal(got, sign * top)


def test_rows_columns_and_whole_arrays_have_their_own_scales():
    x = np.random.default_rng(0).standard_normal((2, 5, 7), np.float32)
    for axis, shape in ((-2, (2, 1, 7)), ((-2, -1), (2, 1, 1)), (None, (1, 1, 1))):
        codes, scale = quick(x, "e4m3", axis)
        wanted, wanted_scale = quantize_reference(x, "e4m3", axis)
        assert scale.shape == shape and scale.dtype == jnp.float32
        np.testing.assert_array_equal(codes.astype(np.float32), wanted.astype(np.float32))
        np.testing.assert_array_equal(scale, wanted_scale)
    one = x.copy()
    one[0, 0] *= 1000
    rest = np.ones((2, 5), bool)
    rest[0, 0] = False
    a, b = (np.asarray(fake(y))[rest] for y in (x, one))
    np.testing.assert_array_equal(a, b)


def test_zeros_stay_zero_and_what_is_not_finite_spoils_its_own_row_only():
    x = np.ones((5, 4), np.float32)
    x[1] = 0
    x[2, 1] = np.nan
    x[3, 2] = -np.inf
    x[4] = [2.0**-149, -(2.0**-130), 0, 2.0**-127]  # subnormal, which devices take for zero
    got = np.asarray(fake(x))
    np.testing.assert_array_equal(got[:2], x[:2])
    assert np.isnan(got[2:4]).all()
    assert np.abs(got[4]).max() <= 2.0**-126
    largest = np.float32(3.4e38)
    huge = np.asarray(fake(np.array([largest, -largest / 2, 0, 1], np.float32)))
    np.testing.assert_allclose(huge, [largest, -largest / 2, 0, 0], rtol=1e-6)


@pytest.mark.parametrize("shape", [(64, 64), (5, 1024), (64, 200), (3, 16, 256)])
def test_one_nan_spoils_its_row_at_sizes_that_a_cpu_vectorizes(shape):
    x = np.random.default_rng(0).standard_normal(shape, np.float32)
    x[..., 1, 7] = np.nan
    wanted = np.zeros(shape[:-1], bool)
    wanted[..., 1] = True
    for got in (fake(x), jax.jit(fake_quantize_int, static_argnums=(1, 2))(x, 8, None)):
        np.testing.assert_array_equal(np.isnan(got).all(-1), wanted)
        np.testing.assert_array_equal(np.isnan(got).any(-1), wanted)


rows = hnp.arrays(np.float32, (16,), elements=st.floats(-(2.0**40), 2.0**40, width=32)).filter(
    lambda x: np.abs(x).max() > 2.0**-60
)


@pytest.mark.parametrize("form,bits", [("e4m3", 3), ("e5m2", 2)])
def test_properties_of_quantization(form, bits):
    least = {"e4m3": 2.0**-6, "e5m2": 2.0**-14}[form]  # smallest normal code

    @settings(max_examples=120, deadline=None)
    @given(rows, st.integers(-20, 20))
    def check(x, power):
        codes, scale = (np.asarray(a) for a in quick(x, form, -1))
        back = codes.astype(np.float32) * scale
        # bounded: half a unit in the last place, relative for normal codes, absolute below
        limit = np.maximum(np.abs(x) * 2.0 ** -(bits + 1), least * 2.0 ** -(bits + 1) * scale)
        assert (np.abs(back - x) <= limit * (1 + 1e-6)).all()
        # idempotent: the codes of the result are the codes
        again, scale_again = (np.asarray(a) for a in quick(back, form, -1))
        assert np.array_equal(again.astype(np.float32), codes.astype(np.float32))
        np.testing.assert_allclose(scale_again, scale, rtol=2.0**-22)
        # monotone
        order = np.argsort(x)
        assert (np.diff(back[order]) >= 0).all()
        # odd
        assert np.array_equal(np.asarray(quick(-x, form, -1)[0], np.float32), -codes.astype("f4"))
        # powers of two change the scale only
        shifted, scale_shifted = quick(np.ldexp(x, power), form, -1)
        assert same_bits(shifted, codes)
        assert np.asarray(scale_shifted) == np.ldexp(scale, power)

    check()


def test_gradient_goes_straight_through():
    x = np.random.default_rng(0).standard_normal((3, 8), np.float32)
    up = np.random.default_rng(1).standard_normal((3, 8), np.float32) * 1000
    for f in (fake_quantize, lambda x: fake_quantize_int(x, 8, None)):
        value, forward = jax.jit(lambda x, up, f=f: jax.jvp(f, (x,), (up,)))(x, up)
        assert not np.array_equal(value, x)
        np.testing.assert_array_equal(forward, up)
        np.testing.assert_array_equal(
            jax.jit(lambda x, up, f=f: jax.vjp(f, x)[1](up)[0])(x, up), up
        )


@pytest.mark.parametrize("inputs,group", [(256, 128), (96, 128), (8, 4), (4, 1)])
def test_integers_in_groups(inputs, group):
    w = np.random.default_rng(0).standard_normal((inputs, 5), np.float32)
    w[:, 1] = 0
    got = np.asarray(jax.jit(fake_quantize_int, static_argnums=(1, 2))(w, 4, group))
    np.testing.assert_allclose(got, int_reference(w, 4, group), rtol=1e-6)
    if inputs % group == 0:
        parts = got.reshape(-1, group, 5)
        # 15 levels at most, and the largest of a group is kept
        assert max(len(np.unique(p)) for g in parts for p in g.T) <= min(15, group)
        largest = np.abs(w).reshape(-1, group, 5).max(1)
        np.testing.assert_allclose(np.abs(parts).max(1), largest, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_as_int8_have_a_scale_for_each_output(dtype):
    w = np.random.default_rng(0).standard_normal((5, 96), np.float32)
    w[1] = 0
    w = jnp.asarray(w, dtype)
    codes, scale = quick(w, "int8", -1)
    assert codes.dtype == jnp.int8 and scale.shape == (5, 1)
    wide = np.asarray(w, np.float32)
    assert (np.abs(np.asarray(codes, np.int32)).max(-1) == [127, 0, 127, 127, 127]).all()
    error = np.abs(np.asarray(dequantize(codes, scale)) - wide)
    assert (error <= 0.5001 * np.asarray(scale)).all(), "the nearest code"
    np.testing.assert_allclose(
        dequantize(codes, scale), int_reference(wide.T, 8, 96).T, rtol=1e-6, atol=1e-30
    )
    assert np.isnan(np.asarray(fake(w.at[2, 3].set(jnp.nan), "int8", -1), np.float32)[2]).all()


def test_tokens_as_integers_have_a_scale_each():
    x = np.random.default_rng(0).standard_normal((2, 3, 32), np.float32)
    got = np.asarray(jax.jit(lambda x: fake_quantize_int(x, 8, None))(x))
    scale = np.abs(x).max(-1, keepdims=True) / 127
    np.testing.assert_allclose(got, np.round(x / scale) * scale, rtol=1e-5)


def test_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match="'e3m4' is not known, there are: e4m3, e5m2"):
        quantize(jnp.ones(3), "e3m4")  # pyright: ignore
    with pytest.raises(ValueError, match="expected float32 or bfloat16, got int32"):
        quantize(jnp.ones(3, jnp.int32))
