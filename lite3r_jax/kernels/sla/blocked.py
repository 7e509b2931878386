"""Sparse Linear Attention in plain JAX, on any device, in time and memory of the kept blocks."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lite3r_jax.kernels.block_map.table import BlockMap, block_count
from lite3r_jax.kernels.sla.blocks import all_to_blocks, from_blocks, in_parts, whole
from lite3r_jax.kernels.sla.linear import linear_all, linear_marginal
from lite3r_jax.kernels.sla.reference import Phi, Routing

# Both finite, so that no difference is NaN. A running maximum starts, and stays where no key is
# seen, so far above a masked logit that exp(_MASKED - maximum) is 0.
_LOWEST = -1e30
_MASKED = -2e30


@dataclass(frozen=True)
class BlockedTiles:
    """Size of one tile of work: rows * q_block queries times entries * k_block keys.

    The default is the fastest of what was tried on a CPU for VGGT's blocks: few query blocks with
    long rows, since a fold of partial sums costs as much as a small product.

    Attributes:
        rows: query blocks.
        entries: key blocks of each of them, at most; lists are cut into equal parts.
    """

    rows: int = 2
    entries: int = 48


def sla_blocked(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    proj_lin: jax.Array,
    block_map: BlockMap,
    *,
    routing: Routing,
    phi: Phi,
    keep: float | None,
    eps: float,
    q_valid: jax.Array,
    k_valid: jax.Array,
    tiles: BlockedTiles = BlockedTiles(),
) -> jax.Array:
    """Computes `api.sla` in plain JAX, block by block; not for routing "token".

    The arguments are those of `api.sla`. The softmax part has its own backward pass; the linear
    part is differentiated by JAX.
    """
    del keep  # which is in the map
    sizes = block_map.q_block, block_map.k_block
    qb, kb, vb, ok = all_to_blocks(q, k, v, q_valid, k_valid, *sizes)
    critical = block_map.critical.ids.reshape(*qb.shape[:2], -1)
    o = sparse(qb, kb, vb, ok, critical, tiles)
    if routing == "block":
        o += linear_all(qb, kb, vb, ok, proj_lin, phi, eps)
    else:
        negligible = block_map.negligible.ids.reshape(*qb.shape[:2], -1)
        o += linear_marginal(qb, kb, vb, ok, critical, negligible, proj_lin, phi, eps)
    return from_blocks(o, q_valid).astype(v.dtype)


def sparse(
    q: jax.Array, k: jax.Array, v: jax.Array, ok: jax.Array, ids: jax.Array, tiles: BlockedTiles
) -> jax.Array:
    """Computes softmax attention of every query block to its listed key blocks.

    Forward with the running maximum and sum of FlashAttention over the table (SLA Alg. 1). Backward
    from the log-sum-exp, with tiles computed again (SLA Eq. 7-8, Alg. 2; they omit the 1 / sqrt(D)
    of dQ and dK, which thu-ml/SLA kernel.py has). dK and dV are added where the table points, in
    the same pass as dQ: five products per tile, where a second pass over the transposed table needs
    seven.

    Args:
        q: [H, Mq, q_block, D].
        k: [H, Mk, k_block, D].
        v: [H, Mk, k_block, D].
        ok: [H, Mk, k_block] bool, which keys are valid.
        ids: [H, Mq, K] int32, as in `BlockTable`.
        tiles: how much is worked on at a time.

    Returns:
        [H, Mq, q_block, D] float32 (float64 for float64); 0 where no valid key is listed.
    """
    return _sparse(q, k, v, ok, ids, tiles)


def _forward(q, k, v, ok, ids, tiles):
    """Returns the output and the log-sum-exp [H, Mq, q_block, 1] of every query block."""
    dtype = jnp.promote_types(v.dtype, jnp.float32)
    count, columns = q.shape[1], k.shape[1]
    rows, entries, ids = _fit(tiles, ids, columns)

    def head(args):
        qh, kh, vh, okh, idh = args

        def some_rows(part):
            qr, idr = part

            def fold(step, carry):
                top, total, acc = carry
                s, _, _, vj = _tile(step, qr, kh, vh, okh, idr, entries)
                new = jnp.maximum(top, s.max(axis=-1, keepdims=True))
                p = jnp.exp(s - new)
                shrink = jnp.exp(top - new)
                total = total * shrink + p.sum(axis=-1, keepdims=True)
                return new, total, acc * shrink + _dot("rqk,rkd->rqd", p.astype(v.dtype), vj)

            column = (*qr.shape[:2], 1)
            start = (
                jnp.full(column, _LOWEST, dtype),
                jnp.zeros(column, dtype),
                jnp.zeros(qr.shape, dtype),
            )
            top, total, acc = lax.fori_loop(0, _steps(idr, columns, entries), fold, start)
            total = jnp.where(total > 0, total, 1)
            return acc / total, top + jnp.log(total)

        o, lse = lax.map(some_rows, (in_parts(qh, rows), in_parts(idh, rows, columns)))
        return whole(o, count), whole(lse, count)

    return lax.map(head, (q, k, v, ok, ids))


def _backward(tiles, residuals, do):
    q, k, v, ok, ids, o, lse = residuals
    do = do.astype(v.dtype)
    delta = (do.astype(lse.dtype) * o.astype(lse.dtype)).sum(axis=-1, keepdims=True)
    scale = q.shape[-1] ** -0.5
    count, columns = q.shape[1], k.shape[1]
    rows, entries, table = _fit(tiles, ids, columns)

    def head(args):
        qh, kh, vh, okh, idh, doh, lseh, deltah = args

        def some_rows(carry, part):
            qr, idr, dor, lser, deltar = part

            def fold(step, carry):
                dq, dk, dv = carry
                s, at, kj, vj = _tile(step, qr, kh, vh, okh, idr, entries)
                p = jnp.exp(s - lser)
                ds = (p * (_dot("rqd,rkd->rqk", dor, vj) - deltar) * scale).astype(q.dtype)
                dkj = _dot("rqk,rqd->rkd", ds, qr).reshape(*at.shape, *kh.shape[1:])
                dvj = _dot("rqk,rqd->rkd", p.astype(v.dtype), dor).reshape(dkj.shape)
                return (
                    dq + _dot("rqk,rkd->rqd", ds, kj),
                    dk.at[at].add(dkj, mode="drop"),
                    dv.at[at].add(dvj, mode="drop"),
                )

            start = (jnp.zeros(qr.shape, lse.dtype), *carry)
            dq, dk, dv = lax.fori_loop(0, _steps(idr, columns, entries), fold, start)
            return (dk, dv), dq.astype(q.dtype)

        start = (jnp.zeros(kh.shape, lse.dtype), jnp.zeros(vh.shape, lse.dtype))
        parts = (
            in_parts(qh, rows),
            in_parts(idh, rows, columns),
            *(in_parts(x, rows) for x in (doh, lseh, deltah)),
        )
        (dk, dv), dq = lax.scan(some_rows, start, parts)
        return whole(dq, count), dk.astype(k.dtype), dv.astype(v.dtype)

    dq, dk, dv = lax.map(head, (q, k, v, ok, table, do, lse, delta))
    return dq, dk, dv, *(np.zeros(x.shape, jax.dtypes.float0) for x in (ok, ids))


def _save(q, k, v, ok, ids, tiles):
    o, lse = _forward(q, k, v, ok, ids, tiles)
    return o, (q, k, v, ok, ids, o.astype(v.dtype), lse)


def _value(q, k, v, ok, ids, tiles) -> jax.Array:
    return _forward(q, k, v, ok, ids, tiles)[0]


_sparse = jax.custom_vjp(_value, nondiff_argnums=(5,))
_sparse.defvjp(_save, _backward)


def _fit(tiles: BlockedTiles, ids: jax.Array, columns: int) -> tuple[int, int, jax.Array]:
    """Returns rows and entries of a tile, and ids [H, Mq, K] with K a multiple of the entries."""
    rows = min(tiles.rows, ids.shape[1])
    steps = block_count(ids.shape[2], tiles.entries)
    entries = block_count(ids.shape[2], steps)
    pad = [(0, 0), (0, 0), (0, -ids.shape[2] % entries)]
    return rows, entries, jnp.pad(ids, pad, constant_values=columns)


def _dot(formula: str, x: jax.Array, y: jax.Array) -> jax.Array:
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    return jnp.einsum(formula, x, y, preferred_element_type=dtype)


def _tile(step, q, k, v, ok, ids, entries):
    """Returns a tile of logits [rows, q_block, entries * k_block], its blocks, keys and values."""
    at = lax.dynamic_slice_in_dim(ids, step * entries, entries, axis=1)
    rows, flat = at.shape[0], entries * k.shape[1]
    # An entry that holds no block reads zeros, none of them valid.
    kj, vj, seen = (x.at[at].get(mode="fill", fill_value=0) for x in (k, v, ok))
    kj, vj = (x.reshape(rows, flat, -1) for x in (kj, vj))
    s = _dot("rqd,rkd->rqk", q, kj) * q.shape[-1] ** -0.5
    return jnp.where(seen.reshape(rows, 1, flat), s, _MASKED), at, kj, vj


def _steps(ids: jax.Array, columns: int, entries: int) -> jax.Array:
    """Returns how many tiles the fullest of some rows of the table needs."""
    counts = (ids < columns).sum(axis=-1, dtype=jnp.int32)
    return -(-counts.max() // entries)
