"""Matrix products with float8 operands: quantized when they are used, or stored as codes."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lite3r_jax.kernels.fp8.quantize import (
    check_dtype,
    check_format,
    fake_quantize,
    quantize,
)
from lite3r_jax.kernels.fp8.reference import FormatName, ScaleName, WeightFormat
from lite3r_jax.kernels.target import device


@dataclass(frozen=True)
class _How:
    """Static settings of a product: formats, scales, precision, and dtypes of x, w and result."""

    weights: WeightFormat | None
    activations: FormatName | None
    gradients: FormatName | None
    scale: ScaleName
    x_dtype: Any
    w_dtype: Any
    out_dtype: Any
    precision: Any

    @property
    def token(self) -> int | None:
        """Axis of activations whose values share a scale."""
        return -1 if self.scale == "row" else None

    @property
    def column(self) -> int | None:
        """Axis of weights [K, N] whose values share a scale."""
        return 0 if self.scale == "row" else None


def fp8_dot_general(
    lhs: jax.Array,
    rhs: jax.Array,
    dimension_numbers: Any,
    precision: Any = None,
    preferred_element_type: Any = None,
    out_sharding: Any = None,
    *,
    weights: WeightFormat | None = "e4m3",
    activations: FormatName | None = "e4m3",
    gradients: FormatName | None = None,
    scale: ScaleName = "row",
) -> jax.Array:
    """Computes x w with quantized operands, in the place of `lax.dot_general` in a Linear.

    Forward: codes are multiplied in the dtype of x, in which they are exact, and summed in float32;
    the scales come after, in float32. That is what a float8 product computes, but for the order of
    summation, without the rounding that dequantized operands would have.

    Backward: the gradient of y = x' w' with x' and w' the dequantized operands,

        dx = dy w'^T,     dw = x'^T dy,

    handed to x and w straight through (d x' / d x = 1, scales are constants, nothing is clipped;
    see `quantize.fake_quantize`). With `gradients`, dy is itself quantized first, with one scale
    per token, and the result serves both. What is not differentiated costs nothing: where w is
    frozen there is no dw, and no x' kept for it.

    Args:
        lhs: x [..., K], float32 or bfloat16.
        rhs: w [K, N], float32 or bfloat16 and not necessarily the dtype of x.
        dimension_numbers: as for `lax.dot_general`; the last axis of x with the first of w.
        precision: of the products.
        preferred_element_type: dtype of the result; that of x when None.
        out_sharding: must be None.
        weights: format of w, or None to leave it as it is; "int8" only without `activations`.
        activations: format of x, or None.
        gradients: format of dy, or None; "e5m2" has the range for it.
        scale: "row" (one per token of x and dy, one per output of w) or "tensor" (one each).

    Returns:
        [..., N].

    Raises:
        ValueError: another contraction, dtype, format or scale, or an out_sharding.
    """
    over, batch = (tuple(map(tuple, axes)) for axes in dimension_numbers)
    if over != ((lhs.ndim - 1,), (0,)) or batch != ((), ()) or rhs.ndim != 2:
        raise ValueError(
            f"fp8_dot_general: expected x [..., K] and w [K, N], got {lhs.shape}, {rhs.shape} and"
            f" {dimension_numbers}"
        )
    if out_sharding is not None:
        raise ValueError("fp8_dot_general: out_sharding is not supported; leave it None")
    for form in (None if weights == "int8" else weights, activations, gradients):
        if form is not None:
            check_format(form)
    if weights == "int8" and activations is not None:
        raise ValueError(f"fp8_dot_general: weights in int8 and activations in {activations}")
    _check_scale(scale)
    check_dtype(lhs, "fp8_dot_general, x")
    check_dtype(rhs, "fp8_dot_general, w")
    out = lhs.dtype if preferred_element_type is None else jnp.dtype(preferred_element_type)
    how = _How(
        weights, activations, gradients, scale, lhs.dtype, rhs.dtype, out, _canonical(precision)
    )
    return _dot(how, *_same_axes(lhs, rhs))


def fp8_linear(
    x: jax.Array,
    codes: jax.Array,
    weight_scale: jax.Array,
    *,
    activations: FormatName | None = "e4m3",
    gradients: FormatName | None = None,
    scale: ScaleName = "row",
    precision: Any = None,
) -> jax.Array:
    """Computes x w for weights that are stored as codes and scales.

    The result is that of `fp8_dot_general` but for the order of summation, and so is the gradient
    of x. Weights are constants here. On a GPU quantized activations are multiplied by them as
    float8, which GPUs of compute capability 8.9 and more have in hardware, and summed in full
    float32: the fast mode of Hopper's tensor cores keeps about 14 bits.

    Args:
        x: [..., K], float32 or bfloat16.
        codes: [N, K] float8 or int8, one row per output: the layout that cuBLASLt's float8 product
            takes without a copy.
        weight_scale: [N] or [1] float32.
        activations: format of x, or None to leave it as it is (weights only).
        gradients: format of dy, or None.
        scale: of x and dy, as for `fp8_dot_general`.
        precision: of products that are not float8 by float8.

    Returns:
        [..., N] in the dtype of x.

    Raises:
        ValueError: shapes, dtypes, formats or scales that do not fit, or a gradient of the weights
            is asked for.
    """
    if codes.ndim != 2 or codes.shape[1] != x.shape[-1]:
        raise ValueError(f"fp8_linear: expected x [..., K], codes [N, K]: {x.shape}, {codes.shape}")
    if weight_scale.shape not in ((codes.shape[0],), (1,)):
        raise ValueError(f"fp8_linear: expected scales [N] or [1], got {weight_scale.shape}")
    for form in (activations, gradients):
        if form is not None:
            check_format(form)
    _check_scale(scale)
    check_dtype(x, "fp8_linear, x")
    how = _How(
        None, activations, gradients, scale, x.dtype, codes.dtype, x.dtype, _canonical(precision)
    )
    return _stored(how, *_same_axes(x, codes, weight_scale))


def _same_axes(*arrays: jax.Array) -> list[jax.Array]:
    """Makes the arrays vary over the same axes of a surrounding `shard_map`.

    Inside of a `shard_map`, JAX does this for its own operations, and sums gradients over the axes
    that are new; for a custom gradient it has to be asked for.
    """
    varying = [jax.typeof(x).manual_axis_type.varying for x in arrays]
    every = frozenset().union(*varying)
    return [
        lax.pcast(x, tuple(sorted(every - own)), to="varying") if every - own else x
        for x, own in zip(arrays, varying, strict=True)
    ]


def _check_scale(scale: Any) -> None:
    if scale not in ("row", "tensor"):
        raise ValueError(f"scale {scale!r} is not known, there are: row, tensor")


def _canonical(precision: Any) -> Any:
    return lax.Precision(precision) if isinstance(precision, str) else precision


def multiply(x: jax.Array, y: jax.Array, axes: tuple[int, int], dtype: Any, precision: Any) -> Any:
    """Contracts one axis of x with one axis of y, with sums in float32.

    Two float8 operands are multiplied as such on a GPU, and everything else in `dtype`.
    """
    if x.dtype.itemsize == y.dtype.itemsize == 1 and device().platform == "gpu":
        precision = lax.Precision.HIGHEST
    else:
        x, y = x.astype(dtype), y.astype(dtype)
    return lax.dot_general(
        x,
        y,
        (((axes[0] % x.ndim,), (axes[1],)), ((), ())),
        precision=precision,
        preferred_element_type=jnp.float32,
    )


def _product(how: _How, x: jax.Array, y: jax.Array, axes: tuple[int, int]) -> jax.Array:
    return multiply(x, y, axes, how.x_dtype, how.precision)


def _tokens(how: _How, x: jax.Array) -> tuple[jax.Array, Any]:
    """Returns codes of x [..., K] and their scales [..., 1].

    Returns x itself and 1 where it is not quantized.
    """
    return (x, 1.0) if how.activations is None else quantize(x, how.activations, how.token)


def _columns(how: _How, w: jax.Array) -> tuple[jax.Array, Any]:
    """Returns codes of w [K, N] and their scales, [N] or [1].

    Returns w itself and 1 where it is not quantized.
    """
    if how.weights is None:
        return w, 1.0
    codes, scale = quantize(w, how.weights, how.column)
    # Without the barrier XLA sees two float8 operands on a GPU and multiplies them as such, which
    # needs the weight transposed: of stacked layers it would copy all of them at once.
    return lax.optimization_barrier(codes.astype(how.x_dtype)), scale[0]


def _forward(how: _How, x: jax.Array, w: jax.Array) -> tuple[jax.Array, jax.Array, Any]:
    x, x_scale = _tokens(how, x)
    w, w_scale = _columns(how, w)
    y = _product(how, x, w, (-1, 0)) * x_scale * w_scale
    return y.astype(how.out_dtype), x, x_scale


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _dot(how: _How, x: jax.Array, w: jax.Array) -> jax.Array:
    return _forward(how, x, w)[0]


def _dot_forward(how, x, w):
    y, x_codes, x_scale = _forward(how, x.value, w.value)
    # w is an argument and is kept as it is; its codes would be one more array.
    return y, (w.value if x.perturbed else None, (x_codes, x_scale) if w.perturbed else None)


def _dot_backward(how, kept, dy):
    w, x = kept
    if isinstance(dy, jax.custom_derivatives.SymbolicZero):
        return None, None
    dy = _arriving(how, dy)
    dx = dw = None
    if w is not None:
        codes, scale = _columns(how, w)
        dx = _product(how, dy * scale, codes, (-1, 1)).astype(how.x_dtype)
    if x is not None:
        codes, scale = x
        tokens = codes.reshape(-1, codes.shape[-1]), (dy * scale).reshape(-1, dy.shape[-1])
        dw = _product(how, *tokens, (0, 0)).astype(how.w_dtype)
    return dx, dw


_dot.defvjp(_dot_forward, _dot_backward, symbolic_zeros=True)


def _arriving(how: _How, dy: jax.Array) -> jax.Array:
    """Returns the gradient dy of the output in float32, quantized if `gradients` names a format."""
    dy = dy.astype(jnp.float32)
    return dy if how.gradients is None else fake_quantize(dy, how.gradients, how.token)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _stored(how: _How, x: jax.Array, codes: jax.Array, weight_scale: jax.Array) -> jax.Array:
    x, x_scale = _tokens(how, x)
    y = _product(how, x, codes, (-1, 1)) * x_scale * weight_scale
    return y.astype(how.out_dtype)


def _stored_forward(how, x, codes, weight_scale):
    if codes.perturbed or weight_scale.perturbed:
        raise ValueError("fp8_linear: stored weights are constants, they have no gradient")
    y = _stored(how, x.value, codes.value, weight_scale.value)
    return y, (codes.value, weight_scale.value)


def _stored_backward(how, kept, dy):
    if isinstance(dy, jax.custom_derivatives.SymbolicZero):
        return None, None, None
    codes, weight_scale = kept
    dx = _product(how, _arriving(how, dy) * weight_scale, codes, (-1, 0))
    return dx.astype(how.x_dtype), None, None


_stored.defvjp(_stored_forward, _stored_backward, symbolic_zeros=True)
