"""The block selection in two levels: first views, then blocks of their patches."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# Numbers in the means of the candidates that are gathered at a time: 64 MiB of float32.
_GATHERED = 2**24


def select_within_views(
    q: jax.Array,
    q_used: jax.Array,
    k: jax.Array,
    k_used: jax.Array,
    *,
    kept: int,
    top: int,
    query_views: int,
    key_views: int,
    views: int,
    select: Callable[..., tuple[jax.Array, jax.Array]],
) -> jax.Array:
    """Choose key blocks in two levels: first the best views of keys, then blocks of these views.

    First every view of queries chooses, head by head, `views` views of keys: those with the largest
    score of any of its query blocks, mean query by mean key of the view. Then every query block
    chooses `top` blocks of these. The first level takes Mq * key_views scores and the second one
    Mq * views * (key blocks of a view), where one level takes Mq * Mk.

    Args:
        q: [B, N, Mq, D] mean query of every block; view by view, equally many of each.
        q_used: [B, Mq] bool, whether a block has a valid token.
        k: [B, N, Mk, D] mean key of every block; those behind the first `kept` view by view.
        k_used: [B, Mk] bool.
        kept: so many key blocks come first, which are critical in every row.
        top: blocks chosen per row besides; at most views * (key blocks of a view).
        query_views: number of views that the query blocks belong to.
        key_views: number of views that the key blocks behind `kept` belong to.
        views: number of views of keys that a view of queries chooses.
        select: an implementation of `block_map.api.OPERATOR`, for the second level.

    Returns:
        [B, N, Mq, kept + top] int32, as the critical ids of `select.select_sorted`.
    """
    b, n, rows, d = q.shape
    columns = k.shape[2]
    rows_of, columns_of = rows // query_views, (columns - kept) // key_views
    q, k = (x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in (q, k))
    of_view = k[:, :, kept:].reshape(b, n, key_views, columns_of, d)
    ok = k_used[:, kept:].reshape(b, key_views, columns_of)
    count = jnp.maximum(ok.sum(axis=-1), 1).astype(k.dtype)[:, None, :, None]
    mean = jnp.where(ok[:, None, :, :, None], of_view, 0).sum(axis=3) / count

    fit = max(1, _GATHERED // (b * n * views * columns_of * d))
    size = max(x for x in range(1, query_views + 1) if query_views % x == 0 and x <= fit)

    def some_views(part: tuple[jax.Array, jax.Array]) -> jax.Array:
        some, used = part  # [B, N, size, rows of a view, D], [B, size, rows of a view]
        scores = jnp.einsum("bnsrd,bnvd->bnsrv", some, mean, precision="highest")
        possible = used[:, None, :, :, None] & ok.any(axis=-1)[:, None, None, None]
        scores = jnp.where(possible, scores, -jnp.inf).max(axis=3)
        _, chosen = lax.top_k(scores, views)
        chosen = jnp.sort(chosen, axis=-1)  # [B, N, size, views], so that ids ascend
        at = jnp.arange(b)[:, None, None, None], jnp.arange(n)[:, None, None]
        keys, valid = of_view[(*at, chosen)], ok[(at[0], chosen)]

        def merged(x: jax.Array, *rest: int) -> jax.Array:
            """Reshapes heads and views of queries into sequences of one head."""
            return x.reshape(b * n * size, *rest)

        ids, _ = select(
            merged(some, 1, rows_of, d),
            merged(jnp.broadcast_to(used[:, None], (b, n, size, rows_of)), rows_of),
            merged(keys, 1, views * columns_of, d),
            merged(valid, views * columns_of),
            kept=np.zeros(0, np.int32),
            top=top,
            bottom=0,
        )
        ids = ids.reshape(b, n, size, rows_of * top)
        view = jnp.minimum(ids // columns_of, views - 1)
        block_ids = (
            kept + jnp.take_along_axis(chosen, view, axis=-1) * columns_of + ids % columns_of
        )
        return jnp.where(ids < views * columns_of, block_ids, columns)

    def in_chunks(x: jax.Array, axis: int) -> jax.Array:
        shape = (*x.shape[:axis], query_views // size, size, rows_of, *x.shape[axis + 1 :])
        return jnp.moveaxis(x.reshape(shape), axis, 0)

    ids = lax.map(some_views, (in_chunks(q, 2), in_chunks(q_used, 1)))
    ids = jnp.moveaxis(ids, 0, 2).reshape(b, n, rows, top)
    always = jnp.where(k_used[:, None, None, :kept], jnp.arange(kept), columns)
    always = jnp.where(q_used[:, None, :, None], always, columns)
    always = jnp.broadcast_to(jnp.sort(always, axis=-1), (b, n, rows, kept))
    return jnp.sort(jnp.concatenate([always, ids], axis=-1), axis=-1).astype(jnp.int32)
