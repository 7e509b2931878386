"""Sparse Linear Attention by kernels for its softmax part, with a linear part in plain JAX.

GPU implementations that do not need Pallas' Triton lowering share this module: they give three
kernels, and the functions here pad, differentiate and add the linear part (`linear`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from lite3r_jax.kernels.block_map.table import BlockMap, BlockTable, Transposed
from lite3r_jax.kernels.sla.blocks import all_to_blocks, from_blocks
from lite3r_jax.kernels.sla.linear import linear_all, linear_marginal
from lite3r_jax.kernels.sla.reference import Phi, Routing
from lite3r_jax.kernels.softmax import MASKED

Pair = tuple[jax.Array, jax.Array]


@dataclass(frozen=True)
class SoftmaxKernels:
    """Forward and gradient kernels of attention from query blocks to listed key blocks.

    q, do and o are [B, Mq * q_block, N, D] and k and v [B, Mk * k_block, N, D], 0 where they are
    padding. `bias` is [B, Mk * k_block] float32, 0 for valid keys and `MASKED` for others. lse and
    delta are [B, N, Mq * q_block] float32, in base 2.

    Attributes:
        forward: (q, k, v, bias, table, dtype) -> o in that dtype, and lse.
        query_gradient: (q, k, v, bias, table, do, o, lse) -> dq, and delta, the sums of do * o.
        key_gradient: (q, k, v, bias, transposed table, do, lse, delta) -> dk, dv.
        keeps_float32: whether o goes to the gradient in float32: `forward` writes that. The
            gradient subtracts do * o from do * v, which are equal where one key has all the weight.
    """

    forward: Callable[[jax.Array, jax.Array, jax.Array, jax.Array, BlockTable, Any], Pair]
    query_gradient: Callable[..., Pair]
    key_gradient: Callable[
        [jax.Array, jax.Array, jax.Array, jax.Array, Transposed, jax.Array, jax.Array, jax.Array],
        Pair,
    ]
    keeps_float32: bool = True


def sla_by_kernels(
    kernels: SoftmaxKernels,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    proj_lin: jax.Array,
    block_map: BlockMap,
    *,
    routing: Routing,
    phi: Phi,
    eps: float,
    q_valid: jax.Array,
    k_valid: jax.Array,
) -> jax.Array:
    """Computes `api.sla` by kernels for its softmax part; not for routing "token".

    The arguments but for the kernels are those of `api.sla`.
    """
    table, sizes = block_map.critical, (block_map.q_block, block_map.k_block)
    blocks = all_to_blocks(q, k, v, q_valid, k_valid, *sizes)
    if routing == "block":
        linear = linear_all(*blocks, proj_lin, phi, eps)
    else:
        rows = blocks[0].shape[:2]
        listed = table.ids.reshape(*rows, -1)
        negligible = block_map.negligible.ids.reshape(*rows, -1)
        linear = linear_marginal(*blocks, listed, negligible, proj_lin, phi, eps)
    o = from_blocks(linear, q_valid)
    if table.ids.shape[-1]:
        q_pad = pad(q, q_valid, table.ids.shape[2] * block_map.q_block)
        k_pad, v_pad = (pad(x, k_valid, table.columns * block_map.k_block) for x in (k, v))
        missing = k_pad.shape[1] - k.shape[1]
        bias = jnp.where(jnp.pad(k_valid, ((0, 0), (0, missing))), 0, MASKED).astype(jnp.float32)
        sparse = softmax_part(q_pad, k_pad, v_pad, bias, table, kernels)[:, : q.shape[1]]
        o += jnp.where(q_valid[..., None, None], sparse, 0).astype(o.dtype)
    return o.astype(v.dtype)


def pad(x: jax.Array, valid: jax.Array, length: int) -> jax.Array:
    """Pads [B, T, N, D] to [B, length, N, D], with 0 for what is not valid."""
    x = jnp.where(valid[..., None, None], x, 0)
    return jnp.pad(x, ((0, 0), (0, length - x.shape[1]), (0, 0), (0, 0)))


def softmax_part(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    bias: jax.Array,
    table: BlockTable,
    kernels: SoftmaxKernels,
) -> jax.Array:
    """Computes softmax attention of every query block to its listed key blocks, by `kernels`.

    Shapes are those of `SoftmaxKernels`.

    Returns:
        [B, Mq * q_block, N, D] in the dtype of v; 0 where no valid key is listed.
    """
    return _softmax_part(q, k, v, bias, table, kernels)


def _value(q, k, v, bias, table, kernels):
    return kernels.forward(q, k, v, bias, table, v.dtype)[0]


def _forward(q, k, v, bias, table, kernels):
    dtype = jnp.float32 if kernels.keeps_float32 else v.dtype
    o, lse = kernels.forward(q, k, v, bias, table, dtype)
    return o.astype(v.dtype), (q, k, v, bias, table, o, lse)


def _backward(kernels, residuals, do):
    q, k, v, bias, table, o, lse = residuals
    dq, delta = kernels.query_gradient(q, k, v, bias, table, do, o, lse)
    dk, dv = kernels.key_gradient(q, k, v, bias, table.transpose(), do, lse, delta)
    return dq, dk, dv, None, None


_softmax_part = jax.custom_vjp(_value, nondiff_argnums=(5,))
_softmax_part.defvjp(_forward, _backward)
