"""The definition of quantization and of products of quantized operands, in numpy.

Float8 (arXiv 2209.05433; e4m3fn has no infinity, its largest value is 448). A group of values,
which is a row of weights, a token, or a whole array, has one float32 scale s, and every value
becomes the code that is nearest to it:

    s = max(amax * (1 / top), 2^-126),     code = nearest(x / s),     x' = code * s

with amax the largest magnitude of the group and top that of the format; all of it in float32, and
1 / top rounded to float32 first. Halfway between two codes the one with an even last bit is taken.
x / s is held within +-top, which it leaves by rounding only. A group of zeros stays zero. A group
that has a NaN or an infinity becomes NaN as a whole: a step with such values must not look good.

Lite3R (lite3r_kit/fp8_fake_quant.py) has the same formulas but for the lower limit: there amax is
at least 1e-8, which takes small gradients to zero.

Integers of b bits, as in the first stage of Lite3R's recipe (lite3r_kit/fake_quant.py), in groups
of neighboring inputs of one output, likewise with round(x / s) as code and q for top:

    x' = round(x / s) * s,     q = 2^(b-1) - 1
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import ml_dtypes
import numpy as np

FormatName = Literal["e4m3", "e5m2"]
WeightFormat = Literal["e4m3", "e5m2", "int8"]
ScaleName = Literal["row", "tensor"]
Axis = int | tuple[int, ...] | None

LEAST_SCALE = np.float32(2.0**-126)


@dataclass(frozen=True)
class Format:
    """A format of codes: one of float8, or of integers.

    Attributes:
        dtype: of the codes.
        top: the format's largest value.
    """

    dtype: Any
    top: float

    @property
    def inverse_top(self) -> np.float32:
        """1 / top, rounded to float32, by which scales are computed."""
        return np.float32(1 / self.top)


FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        "e4m3": Format(ml_dtypes.float8_e4m3fn, 448.0),
        "e5m2": Format(ml_dtypes.float8_e5m2, 57344.0),
    }
)
# Of weights that are stored, and are multiplied in the dtype of what comes in.
WEIGHT_FORMATS: Mapping[str, Format] = MappingProxyType({**FORMATS, "int8": Format(np.int8, 127.0)})


def quantize_reference(x: np.ndarray, form: FormatName, axis: Axis) -> tuple[np.ndarray, Any]:
    """Returns codes (float8, of the shape of x) and scales (float32, size 1 along `axis`)."""
    f = FORMATS[form]
    codes = np.arange(256, dtype=np.uint8).view(f.dtype)
    values = codes.astype(np.float64)
    # Ascending, and of the two zeros the positive one.
    usable = np.isfinite(values) & ~((values == 0) & np.signbit(values))
    codes, values = codes[usable], values[usable]
    codes, values = codes[np.argsort(values)], np.sort(values)

    x = np.asarray(x, np.float32)
    amax = np.abs(x).max(axis=axis, keepdims=True)
    scale = np.maximum(amax * f.inverse_top, LEAST_SCALE)
    scale = np.where(np.isfinite(amax), scale, np.float32(np.nan))
    ratio = np.clip((np.nan_to_num(x) / np.nan_to_num(scale, nan=1)), -f.top, f.top)
    ratio = ratio.astype(np.float64)
    above = np.clip(np.searchsorted(values, ratio), 1, len(values) - 1)
    below = above - 1
    to_above, to_below = values[above] - ratio, ratio - values[below]
    even = codes.view(np.uint8) % 2 == 0
    up = (to_above < to_below) | ((to_above == to_below) & even[above])
    return codes[np.where(up, above, below)], scale


def fake_quantize_reference(x: np.ndarray, form: FormatName, axis: Axis) -> np.ndarray:
    """Returns x', x quantized and dequantized, in float32."""
    codes, scale = quantize_reference(x, form, axis)
    return codes.astype(np.float32) * scale


def int_reference(x: np.ndarray, bits: int, group: int) -> np.ndarray:
    """Returns x' for integers, in groups along the first axis of x [K, N], in float32.

    One group per column where `group` does not divide K, as upstream.
    """
    x = np.asarray(x, np.float32)
    k, n = x.shape
    top = 2 ** (bits - 1) - 1
    parts = x.reshape(-1, group if k % group == 0 else k, n)
    amax = np.abs(parts).max(axis=1, keepdims=True)
    scale = np.maximum(amax * np.float32(1 / top), LEAST_SCALE)
    return (np.clip(np.round(parts / scale), -top, top) * scale).reshape(k, n)


def norm_reference(x: np.ndarray, scale: Any, bias: Any, eps: float) -> np.ndarray:
    """Computes LayerNorm over the last axis in float64; None is scale 1 or bias 0."""
    x = np.asarray(x, np.float64)
    x = x - x.mean(-1, keepdims=True)
    y = x / np.sqrt((x * x).mean(-1, keepdims=True) + eps)
    y = y if scale is None else y * np.asarray(scale, np.float64)
    return y if bias is None else y + np.asarray(bias, np.float64)


def gelu_reference(x: np.ndarray) -> np.ndarray:
    """Computes the exact GELU x Phi(x) in float64, Phi being the normal distribution."""
    x = np.asarray(x, np.float64)
    upper = [math.erfc(-z) for z in (x * math.sqrt(0.5)).ravel()]
    return 0.5 * x * np.reshape(upper, x.shape)


def linear_reference(
    x: np.ndarray,
    w: np.ndarray,
    *,
    weights: FormatName | None,
    activations: FormatName | None,
    scale: ScaleName,
) -> np.ndarray:
    """Returns x' w' in float64, the product of the quantized and dequantized x and w.

    x is [..., K] with one scale per token, w is [K, N] with one scale per output.

    With scale "tensor" x and w have one scale each. None leaves an operand as it is.
    """
    if activations is not None:
        x = fake_quantize_reference(x, activations, -1 if scale == "row" else None)
    if weights is not None:
        w = fake_quantize_reference(w, weights, 0 if scale == "row" else None)
    return np.asarray(x, np.float64) @ np.asarray(w, np.float64)
