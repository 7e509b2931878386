"""Quantization of tokens on NVIDIA GPUs, in one kernel with the LayerNorm or GELU before it."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from lite3r_jax.kernels import triton_call as at
from lite3r_jax.kernels.fp8.limits import unsupported_rows
from lite3r_jax.kernels.fp8.quantized import Before, Gelu, Norm, Quantized, padded_rows
from lite3r_jax.kernels.fp8.reference import FORMATS, LEAST_SCALE
from lite3r_jax.kernels.launch import Launch

# Values that one program holds, 32 of each thread: four tokens of width 1024, one of width 4096.
_VALUES, _LAUNCH = 4096, Launch(warps=4, stages=1)

# erfc(z) = t exp(p(t) - z^2) for z >= 0, with t = 2.5 / (2.5 + z) and this p, from t^0 to t^7: the
# interpolation of log(erfc(z) / t) + z^2 at the Chebyshev nodes of 0 <= z <= 10. Its error is at
# most 1.3e-6 of erfc(z).
_ERFC = (
    -1.48752157,
    0.980437663,
    0.557841548,
    -0.339116125,
    1.10065375,
    -1.28707871,
    0.54839662,
    -0.0736122938,
)


def quantize_rows(x: jax.Array, before: Before = None, *, interpret: bool = False) -> Quantized:
    """Quantizes each token of before(x) to e4m3 codes and a scale; before(x) is never in memory.

    Codes and scales are those of `quantize.quantize` for the layer's result in float32. In between
    nothing is rounded to the compute dtype: XLA does not for LayerNorm either where it compiles it
    together with quantization, but does for GELU, which is therefore more exact here, by up to
    2^-8 of a value in bfloat16. Sums over a token are added up in another order and quotients may
    be rounded otherwise, so that now and then a code is the one next to it. A token that has a NaN
    or an infinity gets the scale NaN; its codes do not matter.

    Args:
        x: [..., K], float32 or bfloat16.
        before: what is done to x first.
        interpret: run the kernel's code as plain JAX on any device, slowly.

    Raises:
        ValueError: a K or a dtype that the kernel is not made for.
    """
    inputs = x.shape[-1]
    if reason := unsupported_rows(inputs, x.dtype):
        raise ValueError(f"the Triton kernel cannot run this: {reason}")
    tokens = x.reshape(-1, inputs)
    step, parameters, dtype = _as_it_is, [], x.dtype
    if isinstance(before, Gelu):
        step, dtype = _gelu, before.dtype
    elif isinstance(before, Norm):
        dtype = before.dtype
        step = functools.partial(_norm, inputs=inputs, eps=before.eps)
        parameters = [
            jnp.full((inputs,), default, jnp.float32) if p is None else p
            for p, default in ((before.scale, 1.0), (before.bias, 0.0))
        ]
    width = pl.next_power_of_2(inputs)
    block = max(1, _VALUES // width)
    codes, scale = at.call(
        functools.partial(fp8_rows, step=step, block=block, width=width),
        _LAUNCH,
        (-(-padded_rows(tokens.shape[0]) // block), 1, 1),
        [(array, _whole(array.shape)) for array in (tokens, *parameters)],
        [
            (shape, kind, _whole(shape))
            for shape, kind in (
                ((_code_rows(*tokens.shape), inputs), FORMATS["e4m3"].dtype),
                ((padded_rows(tokens.shape[0]),), jnp.float32),
            )
        ],
        interpret=interpret,
    )
    return Quantized(codes, scale, x.shape, jnp.dtype(dtype))


def _whole(shape: tuple[int, ...]) -> pl.BlockSpec:
    return pl.BlockSpec(shape, lambda *_: (0,) * len(shape))


def _code_rows(rows: int, inputs: int) -> int:
    """Returns the number of rows of the array of codes.

    Pallas' Triton lowering counts the elements of an array of at most 4 GiB in 32 bits with a sign,
    for which an array of bytes needs to have fewer than 2^31. An array that would have between 2^31
    and 2^32 bytes is made larger.
    """
    rows = padded_rows(rows)
    return padded_rows(2**32 // inputs + 1) if 2**31 < rows * inputs <= 2**32 else rows


def fp8_rows(x_ref, *refs, step, block, width):
    """Quantizes some tokens of step(x), the operation before quantization.

    Refs are x [M, K], the parameters of `step` [K], codes [>= P, K] and scales [P].
    """
    *parameters, codes_ref, scale_ref = refs
    rows, inputs = x_ref.shape
    row = pl.program_id(0) * block + lax.broadcasted_iota(jnp.int32, (block, width), 0)
    column = lax.broadcasted_iota(jnp.int32, (block, width), 1)
    there = column < inputs
    x = plt.load(x_ref.at[row, column], mask=there & (row < rows), other=0).astype(jnp.float32)
    x = jnp.where(there, step(x, column, *parameters), 0)
    # Magnitudes as integers: the order is the same, and the largest is NaN if one is.
    bits = lax.bitcast_convert_type(x, jnp.int32) & 0x7FFFFFFF
    amax = lax.bitcast_convert_type(jnp.max(bits, axis=1), jnp.float32)
    form = FORMATS["e4m3"]
    scale = jnp.maximum(amax * form.inverse_top, LEAST_SCALE)
    scale = jnp.where(amax < jnp.inf, scale, jnp.nan)
    codes = jnp.clip(x / scale[:, None], -form.top, form.top).astype(form.dtype)
    first = pl.program_id(0) * block + lax.broadcasted_iota(jnp.int32, (block,), 0)
    plt.store(scale_ref.at[first], scale, mask=first < scale_ref.shape[0])
    there &= row < scale_ref.shape[0]
    plt.store(codes_ref.at[row, column], codes, mask=there)


def _as_it_is(x, column):
    del column
    return x


def _norm(x, column, scale_ref, bias_ref, *, inputs, eps):
    there = column < inputs
    mean = jnp.sum(x, axis=1) / inputs
    x = jnp.where(there, x - mean[:, None], 0)
    deviation = lax.rsqrt(jnp.sum(x * x, axis=1) / inputs + eps)
    scale, bias = (
        plt.load(ref.at[column], mask=there, other=0).astype(jnp.float32)
        for ref in (scale_ref, bias_ref)
    )
    return x * (deviation[:, None] * scale) + bias


def _gelu(x, column):
    del column
    return gelu(x)


def gelu(x: jax.Array) -> jax.Array:
    """Computes the exact GELU of float32 without erf, which Pallas' Triton lowering lacks."""
    z = jnp.abs(x) * 0.5**0.5
    t = 2.5 / (2.5 + z)
    p = jnp.full_like(t, _ERFC[-1])
    for factor in _ERFC[-2::-1]:
        p = p * t + factor
    upper = 0.5 * t * jnp.exp(p - z * z)
    return x * jnp.where(x < 0, upper, 1 - upper)
