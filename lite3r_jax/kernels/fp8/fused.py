"""Products of stored float8 weights with as little as possible in memory between two kernels.

`api.fp8_linear` leaves everything to XLA, which on a GPU makes a float8 product with a result in
float32, and other kernels that find the largest value of a token, quantise, scale and add the bias.
Here quantisation goes into what comes before the product (LayerNorm, GELU), and scales and bias go
into the product itself.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import jax

from lite3r_jax.kernels.fp8 import pallas_mosaic, pallas_triton
from lite3r_jax.kernels.fp8.api import multiply
from lite3r_jax.kernels.fp8.pallas_mosaic import scaled_product
from lite3r_jax.kernels.fp8.quantised import Before, Quantised
from lite3r_jax.kernels.fp8.reference import FormatName, ScaleName
from lite3r_jax.kernels.target import (
    compute_capability,
    device_kind,
    platform,
    split_over_devices,
)


@dataclass(frozen=True)
class Product:
    """All that an implementation looks at.

    Attributes:
        rows: number of tokens.
        inputs: K.
        outputs: N.
        dtype: of the tokens before they are quantised, and of the result.
        weights: format of the weights.
        activations: format of the tokens, or None: they are not quantised.
        scale: of both.
    """

    rows: int
    inputs: int
    outputs: int
    dtype: Any
    weights: FormatName = "e4m3"
    activations: FormatName | None = "e4m3"
    scale: ScaleName = "row"


def _never(product: Product) -> None:
    del product


def _refuses_triton(product: Product) -> str | None:
    if platform() != "gpu":
        return f"its kernels are for NVIDIA GPUs and this is {platform()}"
    if (compute_capability() or 0) < 8.9:
        return f"its kernels are for GPUs with float8 products, which {device_kind()} has not"
    if split_over_devices():
        return "tokens may be split over several devices here, which kernels cannot be"
    return _unsupported_triton(product)


def _unsupported_triton(product: Product) -> str | None:
    if (product.weights, product.activations, product.scale) != ("e4m3", "e4m3", "row"):
        return (
            "it multiplies e4m3 by e4m3 with scales per row, and this is "
            f"{product.weights} by {product.activations} with scales per {product.scale}"
        )
    return pallas_triton.unsupported(product.inputs, product.dtype)


def _refuses_mosaic(product: Product) -> str | None:
    if reason := _refuses_triton(product):
        return reason
    if compute_capability() != 9.0:
        return f"its product is for Hopper GPUs (H100, H200, ...) and this is {device_kind()}"
    return pallas_mosaic.unsupported(product.rows, product.inputs, product.outputs, product.dtype)


# Why it cannot run a product on the device that is computed on, or None. The last one that can is
# what "auto" stands for.
IMPLEMENTATIONS: Mapping[str, Callable[[Product], str | None]] = MappingProxyType(
    {"xla": _never, "triton": _refuses_triton, "mosaic": _refuses_mosaic}
)


def check_name(name: str) -> None:
    """Refuse what is neither "auto" nor one of `IMPLEMENTATIONS`."""
    if name not in ("auto", *IMPLEMENTATIONS):
        known = ", ".join(("auto", *IMPLEMENTATIONS))
        raise ValueError(f"unknown implementation {name!r}, there are: {known}")


def choose(name: str, product: Product) -> str:
    """The name itself where it can run such a product; for "auto" the last listed one that can.

    "xla": all by XLA. "triton": quantisation by a kernel of ours together with what comes before
    it, the product by XLA. "mosaic": the product too, with scales and bias in its epilogue.

    Raises:
        ValueError: an unknown name, or one that cannot run this here.
    """
    check_name(name)
    refusals = {n: refuses(product) for n, refuses in IMPLEMENTATIONS.items()}
    able = [n for n, reason in refusals.items() if reason is None]
    if name == "auto":
        return able[-1]
    if refusals[name] is not None:
        raise ValueError(
            f"implementation {name!r} cannot run this: {refusals[name]}; {', '.join(able)} can"
        )
    return name


def quantise_before(x: jax.Array, before: Before, *, interpret: bool = False) -> Quantised:
    """Codes and scales of before(x), for `linear`; see `pallas_triton.quantise_rows`.

    It has no gradient: what is differentiated goes through `api.fp8_linear`.
    """
    return pallas_triton.quantise_rows(_constant(x), before, interpret=interpret)


def linear(
    x: Quantised,
    codes: jax.Array,
    weight_scale: jax.Array,
    bias: jax.Array | None,
    *,
    implementation: str,
    interpret: bool = False,
) -> jax.Array:
    """x w + bias for weights that are stored as codes and scales.

    With "triton" the result has the rounding of `api.fp8_linear` with a bias added to it; with
    "mosaic" it is rounded once, after the bias.

    Args:
        x: tokens of K inputs.
        codes: [N, K] float8_e4m3fn.
        weight_scale: [N] float32.
        bias: [N] or None.
        implementation: "triton" or "mosaic", as `choose` gave it.
        interpret: run the code of the kernel on any device, slowly.

    Returns:
        [P, N] in `x.dtype`, P being at least the number of tokens, which come one after the other;
        what is in the rows behind them does not matter.
    """
    if implementation == "mosaic":
        return scaled_product(x, codes, weight_scale, bias, x.dtype, interpret=interpret)
    y = multiply(x.codes, codes, (-1, 1), x.dtype, None)[: x.scale.shape[0]]
    y = (y * x.scale[:, None] * weight_scale).astype(x.dtype)
    return y if bias is None else y + bias.astype(y.dtype)


@jax.custom_jvp
def _constant(x: jax.Array) -> jax.Array:
    return x


@_constant.defjvp
def _no_gradient(primals, tangents):
    del primals, tangents
    raise ValueError(
        "the fused float8 kernels have no gradient; deploy the model with implementation='xla'"
    )
