"""Products of stored float8 weights, fused with quantization, scales and bias on NVIDIA GPUs.

`api.fp8_linear` leaves everything to XLA, which on a GPU makes a float8 product with a result in
float32, and other kernels that find the largest value of a token, quantize, scale and add the bias.
Here quantization goes into what comes before the product (LayerNorm, GELU), and scales and bias go
into the product itself, so that as little as possible is in memory between two kernels.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from lite3r_jax.kernels.fp8.api import multiply
from lite3r_jax.kernels.fp8.limits import unsupported_product, unsupported_rows
from lite3r_jax.kernels.fp8.quantized import Before, Quantized
from lite3r_jax.kernels.fp8.reference import FormatName, ScaleName, WeightFormat
from lite3r_jax.kernels.registry import Implementation, Operator
from lite3r_jax.kernels.target import (
    Device,
    device,
    split_over_devices,
    unfit_for_triton,
    without_triton,
)


@dataclass(frozen=True)
class Product:
    """Properties of a product that decide which implementations can run it.

    Attributes:
        rows: number of tokens.
        inputs: K.
        outputs: N.
        dtype: of the tokens before they are quantized, and of the result.
        weights: format of the weights.
        activations: format of the tokens, or None: they are not quantized.
        scale: of both.
    """

    rows: int
    inputs: int
    outputs: int
    dtype: Any
    weights: WeightFormat = "e4m3"
    activations: FormatName | None = "e4m3"
    scale: ScaleName = "row"


def _refuses_triton(device: Device, product: Product) -> str | None:
    if reason := unfit_for_triton(device):
        return reason
    if (device.compute_capability or 0) < 8.9:
        return f"its kernels are for GPUs with float8 products, which {device.kind} has not"
    if split_over_devices():
        return "tokens may be split over several devices here, which kernels cannot be"
    if (product.weights, product.activations, product.scale) != ("e4m3", "e4m3", "row"):
        return (
            "it multiplies e4m3 by e4m3 with scales per row, and this is "
            f"{product.weights} by {product.activations} with scales per {product.scale}"
        )
    return unsupported_rows(product.inputs, product.dtype)


def _refuses_mosaic(device: Device, product: Product) -> str | None:
    if reason := _refuses_triton(device, product):
        return reason
    if not device.is_hopper:
        return f"its product is for Hopper GPUs (H100, H200, ...) and this is {device.kind}"
    return unsupported_product(product.rows, product.inputs, product.outputs, product.dtype)


def _by_xla(
    x: Quantized,
    codes: jax.Array,
    weight_scale: jax.Array,
    bias: jax.Array | None,
    dtype: Any,
    **_: Any,
) -> jax.Array:
    y = multiply(x.codes, codes, (-1, 1), dtype, None)[: x.scale.shape[0]]
    y = (y * x.scale[:, None] * weight_scale).astype(dtype)
    return y if bias is None else y + bias.astype(y.dtype)


def _mosaic(*args: Any, **settings: Any) -> jax.Array:
    # Kernels are imported when they are used: the package must not need their lowerings.
    from lite3r_jax.kernels.fp8.pallas_mosaic import scaled_product

    return scaled_product(*args, **settings)


# "xla": all by XLA. "triton": quantization by a kernel of ours together with what comes before it,
# the product by XLA. "mosaic": the product too, with scales and bias in its epilogue. `run` is the
# product, called as `linear`.
OPERATOR = Operator(
    "fp8",
    (
        Implementation("xla", _by_xla),
        Implementation("triton", _by_xla, _refuses_triton, True, without_triton),
        Implementation("mosaic", _mosaic, _refuses_mosaic, True, without_triton),
    ),
    Path(__file__).parent,
    lambda product: str(jnp.dtype(product.dtype)),
)


def without_products() -> str | None:
    """Returns why the TPU in use multiplies no float8, or None; elsewhere XLA converts."""
    here = device()
    if here.multiplies_no_float8:
        return f"{here.kind} has no float8 products, which fp8_dynamic is made of"
    return None


def quantize_before(x: jax.Array, before: Before, *, interpret: bool = False) -> Quantized:
    """Returns codes and scales of before(x) for `linear`; see `pallas_triton.quantize_rows`.

    The function has no gradient: what is differentiated goes through `api.fp8_linear`.
    """
    from lite3r_jax.kernels.fp8 import pallas_triton

    return pallas_triton.quantize_rows(_constant(x), before, interpret=interpret)


def linear(
    x: Quantized,
    codes: jax.Array,
    weight_scale: jax.Array,
    bias: jax.Array | None,
    *,
    implementation: str,
    interpret: bool = False,
) -> jax.Array:
    """Computes x w + bias for weights that are stored as codes and scales.

    By XLA ("xla", "triton") the result has the rounding of `api.fp8_linear` with a bias added to
    it; with "mosaic" it is rounded once, after the bias.

    Args:
        x: tokens of K inputs.
        codes: [N, K] float8_e4m3fn.
        weight_scale: [N] float32.
        bias: [N] or None.
        implementation: name in `OPERATOR`.
        interpret: run the code of the kernel on any device, slowly.

    Returns:
        [P, N] in `x.dtype`, P being at least the number of tokens, which come one after the other;
        what is in the rows behind them does not matter.
    """
    run = OPERATOR[implementation].run
    return run(x, codes, weight_scale, bias, x.dtype, interpret=interpret)


@jax.custom_jvp
def _constant(x: jax.Array) -> jax.Array:
    return x


@_constant.defjvp
def _no_gradient(primals, tangents):
    del primals, tangents
    raise ValueError(
        "the fused float8 kernels have no gradient; deploy the model with implementation='xla'"
    )
