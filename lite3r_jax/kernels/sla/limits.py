"""Sizes and dtypes that the kernels of Sparse Linear Attention support; imports no kernel."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from lite3r_jax.kernels.block_map.table import BlockMap
from lite3r_jax.kernels.sla.reference import Routing

HEAD_DIMS = (64, 128)
Q_BLOCKS = (64, 128)
K_BLOCK = 64
DTYPES = ("bfloat16", "float16", "float32")
MOSAIC_Q_BLOCK = 128
MOSAIC_DTYPES = ("bfloat16", "float16")
TPU_DTYPES = ("bfloat16", "float32")


@dataclass(frozen=True)
class SlaCall:
    """Properties of an `api.sla` call that decide which implementations can run it.

    Attributes:
        routing: of the call.
        head_dim: D.
        dtype: of q, k and v.
        q_block: queries per block; None for "token", which has no blocks.
        k_block: keys per block, or None.
    """

    routing: Routing
    head_dim: int
    dtype: Any
    q_block: int | None = None
    k_block: int | None = None

    @classmethod
    def of(cls, routing: Routing, q: Any, block_map: BlockMap | None) -> "SlaCall":
        """Returns the properties of a call for queries [B, T, N, D], or their description."""
        if block_map is None:
            return cls(routing, q.shape[-1], q.dtype)
        return cls(routing, q.shape[-1], q.dtype, block_map.q_block, block_map.k_block)


def scope(call: SlaCall) -> str:
    """Returns the kind of a call: the properties for which the kernels are compiled anew."""
    queries = "" if call.q_block is None else f", query blocks of {call.q_block}"
    return f"{jnp.dtype(call.dtype)}, head dim {call.head_dim}{queries}"


def unsupported_triton(call: SlaCall) -> str | None:
    """Returns why the Triton kernels do not support this call, or None; on any device."""
    return _unsupported(call, DTYPES)


def unsupported_mosaic(call: SlaCall) -> str | None:
    """Returns why the Mosaic kernels do not support this call, or None; on any device."""
    if reason := unsupported_triton(call):
        return reason
    if call.q_block != MOSAIC_Q_BLOCK:
        return f"query blocks of {call.q_block} are not {MOSAIC_Q_BLOCK}"
    if jnp.dtype(call.dtype) not in MOSAIC_DTYPES:
        return f"{jnp.dtype(call.dtype)} is not one of {', '.join(MOSAIC_DTYPES)}"
    return None


def unsupported_tpu(call: SlaCall) -> str | None:
    """Returns why the TPU kernels do not support this call, or None; on any device."""
    return _unsupported(call, TPU_DTYPES)


def _unsupported(call: SlaCall, dtypes: tuple[str, ...]) -> str | None:
    if call.q_block is None or call.routing == "token":
        return "routing 'token' is not made of blocks"
    if call.head_dim not in HEAD_DIMS:
        return f"head dim {call.head_dim} is not one of {HEAD_DIMS}"
    if call.q_block not in Q_BLOCKS or call.k_block != K_BLOCK:
        return (
            f"query blocks of {call.q_block} and key blocks of {call.k_block} are not "
            f"{Q_BLOCKS} and {K_BLOCK}"
        )
    if jnp.dtype(call.dtype) not in dtypes:
        return f"{jnp.dtype(call.dtype)} is not one of {', '.join(dtypes)}"
    return None
