"""The float8 product on Hopper GPUs by one kernel, with scales and bias in its epilogue."""

from typing import Any

import jax
import jax.numpy as jnp

from lite3r_jax.kernels.fp8 import mosaic_kernels
from lite3r_jax.kernels.fp8.limits import unsupported_product
from lite3r_jax.kernels.fp8.quantized import Quantized, padded_rows
from lite3r_jax.kernels.fp8.tiles import tiles


def scaled_product(
    x: Quantized,
    codes: jax.Array,
    weight_scale: jax.Array,
    bias: jax.Array | None,
    dtype: Any,
    *,
    interpret: bool = False,
) -> jax.Array:
    """Computes x w + bias with one kernel and no intermediate result in memory.

    Sums are in float32: of 128 products at a time in the tensor core, whose sums keep about 14 bits
    (DeepSeek-V3, arXiv 2412.19437, section 3.3.2), and from there on in float32 registers: not the
    fast mode, which leaves the whole sum to the tensor core. The result is rounded once, after
    scales and bias.

    Args:
        x: tokens of K inputs.
        codes: [N, K] float8_e4m3fn, one row per output.
        weight_scale: [N] float32.
        bias: [N], float32 or bfloat16, or None.
        dtype: of the result.
        interpret: run the kernel's code on any device, slowly.

    Returns:
        [P, N], the tokens one after the other; what is in the rows behind them does not matter.

    Raises:
        ValueError: sizes that the kernel is not made for, or `interpret` with a jax before 0.11,
            whose interpreter lacks a transposed operand.
    """
    outputs, inputs = codes.shape
    if reason := unsupported_product(x.rows, inputs, outputs, dtype):
        raise ValueError(f"the Mosaic kernel cannot run this: {reason}")
    if interpret and jax.__version_info__ < (0, 11):
        raise ValueError(f"jax {jax.__version__} cannot interpret the Mosaic kernel, 0.11 can")
    rows = padded_rows(x.rows)
    bias = jnp.zeros((outputs,), jnp.float32) if bias is None else bias
    return mosaic_kernels.product(
        x.codes,
        x.scale,
        codes,
        weight_scale,
        bias,
        rows=rows,
        dtype=dtype,
        tiles=tiles(rows, outputs, dtype),
        interpret=interpret,
    )
