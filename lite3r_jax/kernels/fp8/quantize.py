"""Quantization and its inverse on any device; `reference` has the formulas."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lite3r_jax.kernels.fp8.reference import (
    FORMATS,
    LEAST_SCALE,
    WEIGHT_FORMATS,
    Axis,
    WeightFormat,
)


def quantize(x: jax.Array, form: WeightFormat = "e4m3", axis: Axis = -1) -> tuple[jax.Array, Any]:
    """Quantizes x to codes and scales, computed in float32.

    Args:
        x: float32 or bfloat16.
        form: "e4m3" (float8_e4m3fn), "e5m2" (float8_e5m2) or "int8" (-127 to 127).
        axis: over which values share a scale; None for all of them.

    Returns:
        (codes of the shape of x, float32 scales of size 1 along `axis`).

    Raises:
        ValueError: an unknown format, or another dtype.
    """
    if form != "int8":
        check_format(form)
    check_dtype(x, "quantize")
    f = WEIGHT_FORMATS[form]
    scale = _scale(_largest_magnitude(x.astype(jnp.float32), axis), f.inverse_top)
    return encode(x, scale, form), scale


def encode(x: jax.Array, scale: jax.Array, form: WeightFormat = "e4m3") -> jax.Array:
    """Returns the codes of x for given scales; values beyond the largest one become the largest.

    A mere cast to float8_e4m3fn would make NaN of everything from 464 on. NaN stays NaN.
    """
    f = WEIGHT_FORMATS[form]
    codes = jnp.clip(x.astype(jnp.float32) / scale, -f.top, f.top)
    return (jnp.round(codes) if form == "int8" else codes).astype(f.dtype)


def dequantize(codes: jax.Array, scale: jax.Array, dtype: Any = jnp.float32) -> jax.Array:
    """Returns codes * scale, multiplied in float32 and rounded to `dtype` once."""
    return (codes.astype(jnp.float32) * scale).astype(dtype)


@partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def fake_quantize(x: jax.Array, form: WeightFormat = "e4m3", axis: Axis = -1) -> jax.Array:
    """Quantizes and dequantizes x, in its dtype; the gradient goes straight through.

    Straight through means d x' / d x = 1, the scale counting as a constant. Nothing is clipped from
    the gradient, because with a scale from the largest magnitude no value is out of range. Adding
    `stop_gradient(x' - x)` to x would have the same gradient, but would round x' once more.
    """
    return dequantize(*quantize(x, form, axis), x.dtype)


@fake_quantize.defjvp
def _fake_quantize_jvp(form, axis, primals, tangents):
    return fake_quantize(*primals, form, axis), tangents[0]


@partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def fake_quantize_int(x: jax.Array, bits: int, group: int | None) -> jax.Array:
    """Rounds x to scaled signed integers of `bits` bits, in its dtype; straight-through gradient.

    Args:
        x: float32 or bfloat16. [K, N] weights if there are groups, otherwise [..., C] tokens.
        bits: 2 to 8.
        group: inputs (along K) that share a scale for one output; all of K where it does not
            divide K. None for one scale per token.
    """
    check_dtype(x, "fake_quantize_int")
    top = 2 ** (bits - 1) - 1
    parts, axis = x.astype(jnp.float32), -1
    if group is not None:
        k, n = x.shape
        parts, axis = parts.reshape(-1, group if k % group == 0 else k, n), 1
    scale = _scale(_largest_magnitude(parts, axis), np.float32(1 / top))
    whole = jnp.clip(jnp.round(parts / scale), -top, top)
    return (whole * scale).reshape(x.shape).astype(x.dtype)


@fake_quantize_int.defjvp
def _fake_quantize_int_jvp(bits, group, primals, tangents):
    return fake_quantize_int(*primals, bits, group), tangents[0]


def check_format(form: Any) -> None:
    """Raises ValueError for an unknown float8 format."""
    if form not in FORMATS:
        raise ValueError(f"float8 format {form!r} is not known, there are: {', '.join(FORMATS)}")


def check_dtype(x: Any, where: str) -> None:
    """Raises ValueError unless the dtype of x is float32 or bfloat16."""
    if x.dtype not in (jnp.float32, jnp.bfloat16):
        raise ValueError(f"{where}: expected float32 or bfloat16, got {x.dtype}")


def _largest_magnitude(x: jax.Array, axis: Axis) -> jax.Array:
    # As integers magnitudes have the same order, and NaN is the largest. A maximum of floats loses
    # NaN on a CPU, which compiles it for speed.
    bits = jnp.max(lax.bitcast_convert_type(jnp.abs(x), jnp.int32), axis=axis, keepdims=True)
    return lax.bitcast_convert_type(bits, jnp.float32)


def _scale(amax: jax.Array, inverse_top: np.float32) -> jax.Array:
    # A product, not a quotient: XLA makes that a product where it compiles, with another rounding.
    return jnp.where(jnp.isfinite(amax), jnp.maximum(amax * inverse_top, LEAST_SCALE), jnp.nan)
