"""The definition of Sparse Linear Attention. Allocates [B, N, Tq, Tk].

For query i with softmax set C_i and linear set L_i, both of valid keys only,

    o_i = sum_{j in C_i} softmax_j(q_i k_j / sqrt(D)) v_j
        + (sum_{j in L_i} a_ij v_j / (sum_{j in L_i} a_ij + eps)) W,    a_ij = phi(q_i) phi(k_j)

(SLA, arXiv 2509.24006, Eq. 2-6; Lite3R, arXiv 2605.11354, Algorithm 1). The routings differ in the
two sets:

    token   C_i: the max(1, int(keep Tk)) keys of highest q_i k_j; L_i: all keys.
            Lite3R Algorithm 1 as coded in lite3r_kit/sla.py: what is not kept gets -inf, not 0.
    block   C_i: the critical blocks of i's block; L_i: all keys.
            Lite3R Eq. 1 at block granularity; thu-ml/SLA, main branch, core.py.
    block3  C_i: the critical blocks; L_i: the marginal blocks.
            SLA Algorithm 1; with no negligible blocks thu-ml/SLA's first release.

A sum over no keys is 0 here, also where eps is 0: a query without keys has o_i = 0, and one whose
linear set is empty has no linear part.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from lite3r_jax.kernels.block_map.table import BlockMap

Routing = Literal["token", "block", "block3"]
Phi = Literal["elu1", "softmax", "relu"]

# Feature maps over the head dimension: elu + 1 of Lite3R, softmax of SLA (its best), relu.
PHI: Mapping[str, Callable[[jax.Array], jax.Array]] = MappingProxyType(
    {
        "elu1": lambda x: jnp.where(x > 0, x + 1, jnp.exp(jnp.minimum(x, 0))),
        "softmax": lambda x: jax.nn.softmax(x, axis=-1),
        "relu": jax.nn.relu,
    }
)


def sla_reference(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    proj_lin: jax.Array,
    block_map: BlockMap | None,
    *,
    routing: Routing,
    phi: Phi,
    keep: float | None,
    eps: float,
    q_valid: jax.Array,
    k_valid: jax.Array,
) -> jax.Array:
    """Computes `api.sla`, whose arguments these are, in float32, or in float64 for float64."""
    dtype = jnp.promote_types(v.dtype, jnp.float32)
    out_dtype = v.dtype
    q = jnp.where(q_valid[..., None, None], q, 0).astype(dtype)
    k, v = (jnp.where(k_valid[..., None, None], x, 0).astype(dtype) for x in (k, v))
    valid = q_valid[:, None, :, None] & k_valid[:, None, None, :]

    logits = _dot("bqnd,bknd->bnqk", q, k) / q.shape[-1] ** 0.5
    if block_map is None:
        assert keep is not None
        softmax_set = valid & _highest(jnp.where(valid, logits, -jnp.inf), keep)
        linear_set = valid
    else:
        critical = valid & _per_token(block_map.critical.mask(), block_map, valid.shape)
        negligible = _per_token(block_map.negligible.mask(), block_map, valid.shape)
        softmax_set = critical
        linear_set = valid & ~critical & ~negligible if routing == "block3" else valid

    top = jnp.where(softmax_set, logits, -jnp.inf).max(axis=-1, keepdims=True)
    top = lax.stop_gradient(jnp.where(jnp.isfinite(top), top, 0))
    p = jnp.where(softmax_set, jnp.exp(jnp.where(softmax_set, logits - top, 0)), 0)
    o_sparse = _mean(p, v, 0)

    a = _dot("bqnd,bknd->bnqk", PHI[phi](q), PHI[phi](k))
    o_linear = _mean(jnp.where(linear_set, a, 0), v, eps)
    return (o_sparse + _dot("bqnd,de->bqne", o_linear, proj_lin.astype(dtype))).astype(out_dtype)


def _dot(formula: str, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.einsum(formula, x, y, precision="highest")


def _mean(weights: jax.Array, v: jax.Array, eps: float) -> jax.Array:
    """Averages v [B, Tk, N, D] by weights [B, N, Tq, Tk] that are not below 0: [B, Tq, N, D]."""
    total = weights.sum(axis=-1).transpose(0, 2, 1)[..., None]
    return _dot("bnqk,bknd->bqnd", weights, v) / jnp.where(total > 0, total + eps, 1)


def _highest(scores: jax.Array, keep: float) -> jax.Array:
    """Marks the kept keys of every row, which have the highest scores; of equal ones the first."""
    count = max(1, int(keep * scores.shape[-1]))
    order = jnp.argsort(-lax.stop_gradient(scores), axis=-1, stable=True)
    return jnp.argsort(order, axis=-1) < count


def _per_token(blocks: jax.Array, block_map: BlockMap, shape: tuple[int, ...]) -> jax.Array:
    """Expands a mask of blocks [B, N, Mq, Mk] to one of tokens [B, N, Tq, Tk]."""
    rows = jnp.repeat(blocks, block_map.q_block, axis=2)[:, :, : shape[2]]
    return jnp.repeat(rows, block_map.k_block, axis=3)[..., : shape[3]]
