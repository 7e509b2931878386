"""The block selection in plain JAX: `lax.top_k` of the scores of some query blocks at a time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lite3r_jax.kernels.block_map.table import block_count

# Scores held at a time where no chunk is given: 64 MiB of float32.
_SCORES = 2**24


def select_sorted(
    q: jax.Array,
    q_used: jax.Array,
    k: jax.Array,
    k_used: jax.Array,
    *,
    kept: np.ndarray,
    top: int,
    bottom: int,
    chunk: int | None = None,
    choose: Callable[..., Any] | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Choose key blocks by the scores q k^T of pooled queries and keys.

    Args:
        q: [B, N, Mq, D] mean query of every block.
        q_used: [B, Mq] bool, whether a block has a valid token.
        k: [B, N, Mk, D] mean key of every block.
        k_used: [B, Mk] bool.
        kept: [A] ids of the blocks that are always critical, ascending.
        top: blocks chosen per row by highest score.
        bottom: blocks then chosen per row by lowest score.
        chunk: query blocks whose scores are held at a time; by default as many as 64 MiB hold.
        choose: by scores [B, N, rows, Mk], in place of `pick`.

    Returns:
        As `pick`, [B, N, Mq, A + top] and [B, N, Mq, bottom]; nothing in rows that are not used.
    """
    b, n, rows, _ = q.shape
    columns = k.shape[2]
    q, k = (x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in (q, k))
    if chunk is None:
        chunk = max(1, _SCORES // (b * n * columns))
    chunk = min(chunk, rows)
    chunks = block_count(rows, chunk)
    choose = choose or pick

    def some_rows(part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, ...]:
        some_q, used = part
        # Block scores decide: full float32 products, also where a GPU would take TF32.
        scores = jnp.einsum("bnid,bnjd->bnij", some_q, k, precision="highest")
        picked = choose(scores, k_used[:, None, None], kept, top, bottom)
        return tuple(jnp.where(used[:, None, :, None], ids, columns) for ids in picked)

    def in_chunks(x: jax.Array, axis: int) -> jax.Array:
        pad = [(0, 0)] * x.ndim
        pad[axis] = (0, chunks * chunk - rows)
        shape = (*x.shape[:axis], chunks, chunk, *x.shape[axis + 1 :])
        return jnp.moveaxis(jnp.pad(x, pad).reshape(shape), axis, 0)

    critical, negligible = (
        jnp.moveaxis(ids, 0, 2).reshape(b, n, chunks * chunk, -1)[:, :, :rows]
        for ids in lax.map(some_rows, (in_chunks(q, 2), in_chunks(q_used, 1)))
    )
    return critical, negligible


def pick(
    scores: jax.Array, usable: jax.Array, always: np.ndarray, top: int, bottom: int
) -> tuple[jax.Array, jax.Array]:
    """Returns the ids of the highest and of the lowest scores of every row.

    Args:
        scores: [..., Mk]; infinite ones count as the largest and lowest that are finite, NaN as
            the lowest.
        usable: bool, broadcastable to `scores`; the others are never picked.
        always: [A] ids that are in the first result whatever their scores.
        top: how many of the others are picked by highest score; 0 only if there are no others.
        bottom: how many are then picked by lowest score.

    Returns:
        [..., A + top] and [..., bottom] int32, ascending; unused entries hold Mk and stand last. Of
        equal scores the lower id is picked first.
    """
    columns = scores.shape[-1]
    usable = jnp.broadcast_to(usable, scores.shape)
    free = usable & ~np.isin(np.arange(columns), always)
    scores = jnp.nan_to_num(scores, nan=float(jnp.finfo(scores.dtype).min))
    # lax.top_k orders -0 below 0, which are equal here.
    scores = jnp.where(scores == 0, 0, scores)

    def best(score: jax.Array, count: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        values, ids = lax.top_k(score, count)
        return values, ids, jnp.where(values > -jnp.inf, ids, columns)

    high = jnp.where(free, scores, -jnp.inf)
    values, ids, chosen = best(high, top)
    kept = jnp.where(usable[..., always], always, columns).astype(jnp.int32)
    critical = jnp.sort(jnp.concatenate([kept, chosen], axis=-1), axis=-1)
    if bottom == 0:
        return critical, jnp.zeros((*scores.shape[:-1], 0), jnp.int32)
    # top_k lists equal values by ascending id: its last entry is the border of what was taken.
    value, last = values[..., -1:], ids[..., -1:]
    taken = (high > value) | ((high == value) & (jnp.arange(columns) <= last))
    *_, chosen = best(jnp.where(free & ~taken, -scores, -jnp.inf), bottom)
    return critical, jnp.sort(chosen, axis=-1)
