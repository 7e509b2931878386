"""The block selection in memory that does not grow with Mq x Mk."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lite3r_jax.kernels.block_map.table import BlockMap, BlockTable, block_count

# Scores held at a time where no chunk is given: 64 MiB of float32.
_SCORES = 2**24


def budgets(free: int, keep: float, low: float = 0.0) -> tuple[int, int]:
    """How many blocks are critical and negligible.

    Counts are rounded down as upstream does (thu-ml/SLA utils.py, Lite3R lite3r_kit/sla.py), but
    at least one block is critical, and critical ones come first.

    Args:
        free: key blocks to choose from, without those that are always kept.
        keep: fraction of them that is critical, in (0, 1]; k_h of SLA.
        low: fraction of them that is negligible, in [0, 1); k_l of SLA.

    Returns:
        (top, bottom) for `block_map`.

    Raises:
        ValueError: a fraction is out of range.
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep must be in (0, 1], got {keep}")
    if not 0 <= low < 1:
        raise ValueError(f"low must be in [0, 1), got {low}")
    top = min(free, max(1, int(keep * free)))
    return top, min(free - top, int(low * free))


def block_map(
    q: jax.Array,
    k: jax.Array,
    *,
    q_block: int,
    k_block: int,
    top: int,
    bottom: int = 0,
    always: Sequence[int] = (),
    q_valid: jax.Array | None = None,
    k_valid: jax.Array | None = None,
    chunk: int | None = None,
) -> BlockMap:
    """Choose the critical and the negligible key blocks of every query block.

    `reference.classes` of `reference.block_scores`, exactly, with the scores of `chunk` query
    blocks at a time. No gradient flows through the choice, as upstream (SLA Alg. 2; torch.topk's
    indices in thu-ml/SLA utils.py).

    Args:
        q: [B, Tq, N, D] queries as they will be attended with (normed and rotated).
        k: [B, Tk, N, D] keys.
        q_block: queries per block.
        k_block: keys per block.
        top: critical blocks chosen per row, besides `always`; see `budgets`.
        bottom: negligible blocks chosen per row.
        always: key blocks that are critical in every row (special tokens, reference view).
        q_valid: [B, Tq] bool, False for padding; None if there is none.
        k_valid: [B, Tk] bool.
        chunk: query blocks whose scores are held at a time; by default as many as 64 MiB hold.

    Returns:
        The map; its critical table has len(always) + top entries per row, its negligible one
        `bottom`. Blocks of padding only are in no table, rows of padding have no entries.

    Raises:
        ValueError: shapes, blocks or counts that do not fit together.
    """
    if q.ndim != 4 or k.ndim != 4 or q.shape[0] != k.shape[0] or q.shape[2:] != k.shape[2:]:
        raise ValueError(f"expected q and k as [B, T, N, D], got {q.shape} and {k.shape}")
    if min(q.shape[1], k.shape[1], q_block, k_block) < 1:
        raise ValueError(
            f"need tokens and blocks of at least 1, got T {q.shape[1]} and {k.shape[1]}, blocks "
            f"{q_block} and {k_block}"
        )
    q_valid = valid_mask(q_valid, q, "q_valid")
    k_valid = valid_mask(k_valid, k, "k_valid")
    b, _, n, _ = q.shape
    rows, columns = block_count(q.shape[1], q_block), block_count(k.shape[1], k_block)
    kept = np.unique(np.asarray(always, np.int32))
    if len(kept) != len(always) or any(not 0 <= j < columns for j in kept):
        raise ValueError(f"always must name different blocks in [0, {columns}), got {always}")
    free = columns - len(kept)
    if top < min(1, free) or bottom < 0 or top + bottom > free:
        raise ValueError(
            f"cannot choose {top} critical and {bottom} negligible blocks: of {columns} key blocks "
            f"{len(kept)} are always kept, which leaves {free}"
        )

    pooled_q, q_used = _pool(lax.stop_gradient(q), q_valid, q_block)
    pooled_k, k_used = _pool(lax.stop_gradient(k), k_valid, k_block)
    if chunk is None:
        chunk = max(1, _SCORES // (b * n * columns))
    chunk = min(chunk, rows)
    chunks = block_count(rows, chunk)

    def some_rows(part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        some_q, used = part
        # Block scores decide: full float32 products, also where a GPU would take TF32.
        scores = jnp.einsum("bnid,bnjd->bnij", some_q, pooled_k, precision="highest")
        found = pick(scores, k_used[:, None, None], kept, top, bottom)
        critical, negligible = (jnp.where(used[:, None, :, None], ids, columns) for ids in found)
        return critical, negligible

    def in_chunks(x: jax.Array, axis: int) -> jax.Array:
        pad = [(0, 0)] * x.ndim
        pad[axis] = (0, chunks * chunk - rows)
        shape = (*x.shape[:axis], chunks, chunk, *x.shape[axis + 1 :])
        return jnp.moveaxis(jnp.pad(x, pad).reshape(shape), axis, 0)

    tables = lax.map(some_rows, (in_chunks(pooled_q, 2), in_chunks(q_used, 1)))
    critical, negligible = (
        BlockTable(jnp.moveaxis(ids, 0, 2).reshape(b, n, chunks * chunk, -1)[:, :, :rows], columns)
        for ids in tables
    )
    return BlockMap(critical, negligible, q_block, k_block)


def pick(
    scores: jax.Array, usable: jax.Array, always: np.ndarray, top: int, bottom: int
) -> tuple[jax.Array, jax.Array]:
    """Ids of the highest and of the lowest scores of every row.

    Args:
        scores: [..., Mk].
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


def valid_mask(valid: jax.Array | None, x: jax.Array, name: str) -> jax.Array:
    """`valid`, checked against x [B, T, ...]; all True for None."""
    if valid is None:
        return jnp.ones(x.shape[:2], bool)
    if valid.shape != x.shape[:2] or valid.dtype != bool:
        raise ValueError(
            f"{name} must be bool of shape {x.shape[:2]}, got {valid.dtype} of {valid.shape}"
        )
    return valid


def _pool(x: jax.Array, valid: jax.Array, block: int) -> tuple[jax.Array, jax.Array]:
    """Means over valid tokens [B, N, M, D], and which blocks have one [B, M]."""
    b, tokens, n, d = x.shape
    blocks = block_count(tokens, block)
    pad = blocks * block - tokens
    valid = jnp.pad(valid, ((0, 0), (0, pad)))
    x = jnp.pad(x, ((0, 0), (0, pad), (0, 0), (0, 0)))
    x = jnp.where(valid[..., None, None], x, 0).reshape(b, blocks, block, n, d)
    count = valid.reshape(b, blocks, block).sum(axis=-1)
    total = x.sum(axis=2, dtype=jnp.promote_types(x.dtype, jnp.float32))
    mean = total / jnp.maximum(count, 1)[:, :, None, None]
    return mean.transpose(0, 2, 1, 3), count > 0
