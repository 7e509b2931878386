"""Sizes and dtypes that the GPU kernels for float8 support; imports no kernel."""

from typing import Any

import jax.numpy as jnp

from lite3r_jax.kernels.fp8.tiles import COLUMNS, INPUTS, ROWS

# A token has to stay in registers.
MOST_INPUTS = 8192


def unsupported_rows(inputs: int, dtype: Any) -> str | None:
    """Returns why the Triton kernel cannot quantize such tokens, or None; on any device."""
    if jnp.dtype(dtype) not in (jnp.float32, jnp.bfloat16):
        return f"{jnp.dtype(dtype)} is neither float32 nor bfloat16"
    if inputs % 16 or inputs > MOST_INPUTS:
        return f"{inputs} inputs are no multiple of 16 up to {MOST_INPUTS}"
    return None


def unsupported_product(rows: int, inputs: int, outputs: int, dtype: Any) -> str | None:
    """Returns why the Mosaic kernel does not support such a product, or None; on any device."""
    if jnp.dtype(dtype) not in (jnp.float32, jnp.bfloat16):
        return f"{jnp.dtype(dtype)} is neither float32 nor bfloat16"
    if inputs % INPUTS or outputs % COLUMNS:
        return f"{inputs} inputs and {outputs} outputs are no multiples of {INPUTS} and {COLUMNS}"
    if rows < ROWS:
        return f"{rows} tokens are fewer than the {ROWS} of a tile"
    return None
