"""Tokens as float8 codes and scales, and the operations that may come before quantization."""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax

# Rows of `Quantized.codes` come in groups of this size, those in which TMA moves them.
ROWS = 8


@dataclass(frozen=True)
class Norm:
    """LayerNorm over the last axis, as `layers.norm.layer_norm`: float32, in two passes.

    Attributes:
        scale: [K], or None.
        bias: [K], or None.
        eps: added to the variance.
        dtype: compute dtype of the layer, float32 or bfloat16.
    """

    scale: jax.Array | None
    bias: jax.Array | None
    eps: float
    dtype: Any


@dataclass(frozen=True)
class Gelu:
    """The exact GELU, x Phi(x) with Phi the normal distribution (arXiv 1606.08415, eq. 1).

    Attributes:
        dtype: compute dtype, float32 or bfloat16.
    """

    dtype: Any


Before = Norm | Gelu | None


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["codes", "scale"],
    meta_fields=["shape", "dtype"],
)
@dataclass(frozen=True)
class Quantized:
    """Quantized tokens [..., K]: codes and one scale per token, for the values codes * scale.

    Attributes:
        codes: [P, K] float8_e4m3fn, the tokens one after the other; P is at least their number, and
            what is in the rows behind them does not matter.
        scale: [P] float32.
        shape: of the tokens.
        dtype: compute dtype, that of the product.
    """

    codes: jax.Array
    scale: jax.Array
    shape: tuple[int, ...]
    dtype: Any

    @property
    def rows(self) -> int:
        """Number of tokens."""
        return math.prod(self.shape[:-1])


def padded_rows(rows: int) -> int:
    """Returns `rows` rounded up to the next multiple of `ROWS`."""
    return -(-rows // ROWS) * ROWS
