"""Block selection on NVIDIA GPUs by Pallas Triton kernels, without a sort or stored scores."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from lite3r_jax.kernels import triton_call as at
from lite3r_jax.kernels.block_map.limits import unsupported
from lite3r_jax.kernels.block_map.table import block_count
from lite3r_jax.kernels.launch import Launch

# Query blocks of one program, key blocks whose scores it holds at a time, and the part of the head
# dim that a product takes. Compiled for an H200: 128 registers, 172 with `bottom`, whatever the
# head dim and the number of blocks; twice the depth or the tile spills.
_ROWS, _TILE, _DEPTH = 32, 64, 32
_LAUNCH = Launch(warps=8, stages=1)

# What a key block is to the kernel.
_UNUSED, _FREE, _KEPT = 0, 1, 2
# Below the order of every score.
_NOTHING = -(2**31)
_MOST = float(np.finfo(np.float32).max)
# Bits of the order that one pass over the scores finds: 15 comparisons beside a product over D.
_BITS = 4


def select_triton(
    q: jax.Array,
    q_used: jax.Array,
    k: jax.Array,
    k_used: jax.Array,
    *,
    kept: np.ndarray,
    top: int,
    bottom: int,
    first: int = 0,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Chooses key blocks as `select.select_sorted`, by kernels without sort or stored scores.

    The arguments are those of `select_sorted`.

    The first `first` query blocks choose nothing and have no rows in the result.

    Nothing of note but arguments and result is in memory. A program has some query blocks and
    goes over all key blocks several times, computing the same scores again: first to find the score
    of rank `top`, four bits at a time, and where `bottom` is asked for also that of rank `bottom`
    from below; then to write the ids. Few of many key blocks are chosen in fewer steps, see
    `_few`. `interpret` runs the kernels' code as plain JAX on any device, slowly.

    Raises:
        ValueError: a head dim or dtype that the kernel is not made for.
    """
    if reason := unsupported(q.shape[-1], q.dtype):
        raise ValueError(f"the Triton kernel cannot run this: {reason}")
    b, n = q.shape[:2]
    columns, rows = k.shape[2], q.shape[2] - first
    if not (len(kept) or bottom) and block_count(columns, _TILE) > top:
        ids = _few(q[:, :, first:], q_used[:, first:], k, k_used, top, interpret)
        return ids, jnp.zeros((b, n, rows, 0), jnp.int32)
    programs, tiles = block_count(rows, _ROWS), block_count(columns, _TILE)
    row_pad, column_pad = (0, programs * _ROWS - rows), (0, tiles * _TILE - columns)
    kind = jnp.where(np.isin(np.arange(columns), kept), _KEPT, _FREE)
    kind = jnp.pad(jnp.where(k_used, kind, _UNUSED).astype(jnp.int32), ((0, 0), column_pad))
    used = jnp.pad(q_used[:, first:], ((0, 0), row_pad)).astype(jnp.int32)
    selected = at.call(
        functools.partial(block_map_select, first=first, top=top, bottom=bottom),
        _LAUNCH,
        (programs, n, b),
        [
            (q, at.head(*q.shape[2:])),
            (used, at.mask(_ROWS)),
            (k, at.head(*k.shape[2:])),
            (kind, at.all_mask(kind)),
        ],
        [
            ((b, n, rows, width), jnp.int32, at.head(rows, width))
            for width in (len(kept) + top, bottom)
            if width
        ],
        interpret=interpret,
    )
    return selected[0], selected[1] if bottom else jnp.zeros((b, n, rows, 0), jnp.int32)


def _few(q, q_used, k, k_used, top, interpret):
    """Chooses few of many key blocks: one pass over all scores, and a second over few of them.

    The first kernel keeps the largest score of every 64 key blocks, a tile. The `top` tiles with
    the largest ones, of equal ones the first, hold all key blocks that are to be chosen: one in
    another tile is behind a key block of each of those. The second kernel finds these tiles, and
    the third computes their scores again, row by row, and chooses. In memory are the maxima, a 64th
    of the scores.

    Returns:
        [B, N, rows, top] int32.
    """
    b, n, rows, d = q.shape
    columns = k.shape[2]
    tiles, size = block_count(columns, _TILE), _rows_of_maxima(q.dtype)
    q = jnp.pad(q, ((0, 0), (0, 0), (0, -rows % size), (0, 0)))
    k = jnp.pad(k, ((0, 0), (0, 0), (0, -columns % _TILE), (0, 0)))
    k_used = jnp.pad(k_used, ((0, 0), (0, -columns % _TILE))).astype(jnp.int32)
    filled, chunks = q.shape[2], block_count(tiles, _TILE)
    shape = (b, n, chunks * _TILE, filled)
    [maxima] = at.call(
        functools.partial(block_map_maxima),
        Launch(warps=4, stages=3 if q.dtype.itemsize == 2 else 1),
        (filled // size, n, b),
        [
            (q, pl.BlockSpec((None, None, size, d), lambda i, n, b: (b, n, i, 0))),
            (k, at.head(*k.shape[2:])),
            (k_used, at.all_mask(k_used)),
        ],
        [
            (
                shape,
                jnp.int32,
                pl.BlockSpec((None, None, shape[2], size), lambda i, n, b: (b, n, 0, i)),
            )
        ],
        interpret=interpret,
    )
    [best] = at.call(
        functools.partial(block_map_tiles, tiles=tiles, top=top),
        _LAUNCH,
        (filled // _ROWS, n, b),
        [(maxima, pl.BlockSpec((None, None, shape[2], _ROWS), lambda i, n, b: (b, n, 0, i)))],
        [((b, n, filled, top), jnp.int32, at.head(filled, top))],
        interpret=interpret,
    )
    height = pl.next_power_of_2(top)
    [ids] = at.call(
        functools.partial(block_map_among, tiles=tiles, columns=columns, top=top, height=height),
        Launch(warps=max(1, height // 16), stages=2),
        (rows, n, b),
        [
            (q, pl.BlockSpec((None, None, None, d), lambda i, n, b: (b, n, i, 0))),
            (q_used.astype(jnp.int32), at.all_mask(q_used)),
            (k, at.head(*k.shape[2:])),
            (k_used, at.all_mask(k_used)),
            (best, at.part(top)),
        ],
        [((b, n, rows, top), jnp.int32, at.part(top))],
        interpret=interpret,
    )
    return ids


def _rows_of_maxima(dtype: Any) -> int:
    """Returns the query blocks per program of `block_map_maxima`; in float32 more would spill."""
    return 128 if jnp.dtype(dtype).itemsize == 2 else _ROWS


def block_map_maxima(q_ref, k_ref, used_ref, maxima_ref):
    """Writes each tile's largest score, as an ordered integer, per query block: [tiles, R]."""

    def one(tile, _):
        where = pl.ds(tile * _TILE, _TILE)
        s = _products(q_ref, k_ref, where)
        s = jnp.where(s >= -_MOST, s, -_MOST)  # also where it is NaN
        used = jnp.broadcast_to(used_ref[where][None, :] > 0, s.shape)
        largest = jnp.where(used, s, -jnp.inf).max(axis=1)
        maxima_ref[tile, :] = jnp.where(largest >= -_MOST, _ordered(largest), _NOTHING)

    lax.fori_loop(0, k_ref.shape[0] // _TILE, one, None)


def block_map_tiles(maxima_ref, best_ref, *, tiles, top):
    """Writes the tiles with the largest maxima for some query blocks, ascending."""
    rows = pl.program_id(0) * _ROWS + lax.broadcasted_iota(jnp.int32, (_ROWS, _TILE), 0)
    chunks = maxima_ref.shape[0] // _TILE

    def order(chunk):
        some = maxima_ref[pl.ds(chunk * _TILE, _TILE), :].T
        tile = chunk * _TILE + lax.broadcasted_iota(jnp.int32, some.shape, 1)
        return jnp.where(tile < tiles, some, _NOTHING)

    border, above = _border(order, chunks, _ROWS, top)

    def write(chunk, carry):
        equal, written = carry
        chosen, equal = _take(order(chunk), border, top - above, equal)
        return equal, _append(best_ref, rows, chosen, chunk, written)

    none = jnp.zeros((_ROWS,), jnp.int32)
    _, written = lax.fori_loop(0, chunks, write, (none, none))
    _fill(best_ref, rows, written, tiles)


def block_map_among(
    q_ref, q_used_ref, k_ref, used_ref, best_ref, ids_ref, *, tiles, columns, top, height
):
    """Writes the best key blocks of one query block, chosen from those of some tiles.

    The program holds the scores of these tiles, of `height` tiles.
    """
    q = q_ref[...].astype(jnp.float32)
    row = lax.broadcasted_iota(jnp.int32, (height, _TILE), 0)

    def look(step, carry):
        order, firsts = carry
        tile = best_ref[step]
        first = jnp.minimum(tile, tiles - 1) * _TILE
        where = pl.ds(first, _TILE)
        s = (k_ref[where, :].astype(jnp.float32) * q[None, :]).sum(axis=1)
        scores = jnp.where((used_ref[where] > 0) & (tile < tiles), _ordered(s), _NOTHING)
        order = jnp.where(row == step, scores[None, :], order)
        return order, jnp.where(entry == step, first, firsts)

    entry = lax.iota(jnp.int32, height)
    nothing = jnp.full((height, _TILE), _NOTHING, jnp.int32)
    order, firsts = lax.fori_loop(0, top, look, (nothing, jnp.zeros_like(entry)))

    def narrow(bit, border):
        next_border = border + lax.shift_left(jnp.int32(1), 31 - bit)
        return jnp.where(_count(order >= next_border) >= top, next_border, border)

    border = lax.fori_loop(0, 32, narrow, jnp.int32(_NOTHING))
    need = top - _count(order > border)
    on = (order == border) & (order > _NOTHING)
    chosen = (order > border) | (on & (_rank(on) <= need))
    chosen &= q_used_ref[pl.program_id(0)] > 0
    place = jnp.where(chosen, _rank(chosen) - 1, height * _TILE)
    fill = (entry >= _count(chosen)) & (entry < top)
    plt.store(ids_ref.at[jnp.where(fill, entry, top)], jnp.full_like(entry, columns), mask=fill)
    ids = firsts[:, None] + lax.broadcasted_iota(jnp.int32, (height, _TILE), 1)
    plt.store(ids_ref.at[place], ids, mask=chosen)


def _count(mask: jax.Array) -> jax.Array:
    """Returns the number of True values of [A, B]."""
    return mask.astype(jnp.int32).sum(axis=1).sum(axis=0)


def _rank(mask: jax.Array) -> jax.Array:
    """Counts the True values up to and including each place of [A, B], row by row."""
    number = mask.astype(jnp.int32)
    of_row = number.sum(axis=1)
    return (jnp.cumsum(of_row, axis=0) - of_row)[:, None] + jnp.cumsum(number, axis=1)


def block_map_select(
    q_ref, used_ref, k_ref, kind_ref, critical_ref, *negligible_ref, first, top, bottom
):
    """Writes the table rows of some query blocks: the ids of the key blocks chosen for them.

    Refs are those of one sequence and one head: q [Mq, D], used [R], k [Mk, D], kind [Mk] filled up
    to whole tiles, and the whole tables.
    """
    used = used_ref[...] > 0
    rows = pl.program_id(0) * _ROWS + lax.broadcasted_iota(jnp.int32, (_ROWS, _TILE), 0)
    columns, tiles = k_ref.shape[0], kind_ref.shape[0] // _TILE
    own = first + pl.program_id(0) * _ROWS

    def scores(tile):
        """Returns the scores of a tile [R, tile] as ordered integers, and its key blocks' kinds.

        The integer is `_NOTHING` for blocks that are not free. Every pass computes the scores by
        this code, and so to the same bits.
        """
        where = pl.ds(tile * _TILE, _TILE)
        s = _scores(q_ref, own, k_ref, tile * _TILE)
        kind = jnp.broadcast_to(kind_ref[where][None, :], s.shape)
        return jnp.where(kind == _FREE, _ordered(s), _NOTHING), kind

    def high(tile):
        return scores(tile)[0]

    lowest_high, above = _border(high, tiles, _ROWS, top)

    def mirrored(order):
        """Reverses the order of the scores of free key blocks that are not above the border.

        The lowest becomes the highest; all others become `_NOTHING`.
        """
        rest = (order > _NOTHING) & (order <= lowest_high[:, None])
        return jnp.where(rest, ~order, _NOTHING)

    if bottom:
        highest_low, below = _border(lambda t: mirrored(high(t)), tiles, _ROWS, bottom)

    def write_tile(tile, carry):
        (equal, written), low = carry
        order, kind = scores(tile)
        chosen, equal = _take(order, lowest_high, top - above, equal)
        critical = used[:, None] & (chosen | (kind == _KEPT))
        written = _append(critical_ref, rows, critical, tile, written)
        if bottom:
            order = jnp.where(chosen, _NOTHING, mirrored(order))
            chosen, equal_low = _take(order, highest_low, bottom - below, low[0])
            chosen &= used[:, None]
            low = equal_low, _append(negligible_ref[0], rows, chosen, tile, low[1])
        return (equal, written), low

    none = jnp.zeros((_ROWS,), jnp.int32)
    (_, written), (_, written_low) = lax.fori_loop(
        0, tiles, write_tile, ((none, none), (none, none))
    )
    _fill(critical_ref, rows, written, columns)
    if bottom:
        _fill(negligible_ref[0], rows, written_low, columns)


def _scores(q_ref, first_q, k_ref, first_k) -> jax.Array:
    """Returns float32 scores of _ROWS queries and _TILE keys; reads nothing past their ends."""

    def some(ref, first, count, depth):
        at = first + lax.iota(jnp.int32, count)
        inside = jnp.broadcast_to((at < ref.shape[0])[:, None], (count, _DEPTH))
        part = ref.at[pl.ds(first, count), pl.ds(depth * _DEPTH, _DEPTH)]
        return plt.load(part, mask=inside, other=0).astype(jnp.float32)

    def add(depth, s):
        x, y = some(q_ref, first_q, _ROWS, depth), some(k_ref, first_k, _TILE, depth)
        return s + plt.dot(x, y, trans_b=True, precision=lax.Precision.HIGHEST)

    s = jnp.zeros((_ROWS, _TILE), jnp.float32)
    return lax.fori_loop(0, q_ref.shape[1] // _DEPTH, add, s)


def _products(q_ref, k_ref, where) -> jax.Array:
    """Returns scores of all queries and some keys, added up in float32.

    Products of half-precision numbers are exact.
    """
    if q_ref.dtype != jnp.float32:
        return plt.dot(q_ref[...], k_ref[where, :], trans_b=True)

    def add(part, s):
        some = pl.ds(part * _DEPTH, _DEPTH)
        x, y = q_ref[:, some], k_ref[where, some]
        return s + plt.dot(x, y, trans_b=True, precision=lax.Precision.HIGHEST)

    s = jnp.zeros((q_ref.shape[0], _TILE), jnp.float32)
    return lax.fori_loop(0, q_ref.shape[1] // _DEPTH, add, s)


def _ordered(s: jax.Array) -> jax.Array:
    """Maps float32 scores to int32 numbers of the same order.

    The numbers are above `_NOTHING`, and so are their bitwise complements.
    """
    s = jnp.where(s == s, jnp.clip(s, -_MOST, _MOST), -_MOST)
    s = jnp.where(s == 0, 0.0, s)  # -0 and 0 are equal
    bits = lax.bitcast_convert_type(s, jnp.int32)
    return jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def _border(order, tiles: int, rows: int, count: int) -> tuple[jax.Array, jax.Array]:
    """Finds the value of rank `count` among all order(tile) [R, tile], and how many exceed it.

    Returns:
        [R] int32 twice; `_NOTHING` where there are fewer, above everything for count 0.
    """
    if count == 0:
        return jnp.full((rows,), 2**31 - 1, jnp.int32), jnp.zeros((rows,), jnp.int32)

    def narrow(digit, carry):
        border, above = carry
        step = lax.shift_left(jnp.int32(1), jnp.int32(32 - _BITS) - _BITS * digit)

        def add(tile, counts):
            values = order(tile)
            return tuple(
                c + (values >= (border + j * step)[:, None]).astype(jnp.int32).sum(axis=1)
                for j, c in enumerate(counts, 1)
            )

        start = tuple(jnp.zeros((rows,), jnp.int32) for _ in range(2**_BITS - 1))
        for c in lax.fori_loop(0, tiles, add, start):  # from below, so that counts descend
            border = border + jnp.where(c >= count, step, 0)
            above = jnp.maximum(above, jnp.where(c >= count, 0, c))
        return border, above

    start = jnp.full((rows,), _NOTHING, jnp.int32), jnp.zeros((rows,), jnp.int32)
    return lax.fori_loop(0, 32 // _BITS, narrow, start)


def _take(
    order: jax.Array, border: jax.Array, need: jax.Array, equal: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Marks the key blocks that are chosen of a tile: all above the border, the first `need` on it.

    `equal` [R] counts the key blocks on the border in the tiles before; it is returned with this
    tile's added. `need` is that of all tiles.
    """
    on = (order == border[:, None]) & (order > _NOTHING)
    rank = equal[:, None] + jnp.cumsum(on.astype(jnp.int32), axis=1)
    chosen = (order > border[:, None]) | (on & (rank <= need[:, None]))
    return chosen, equal + on.astype(jnp.int32).sum(axis=1)


def _append(table_ref, rows, chosen: jax.Array, tile: jax.Array, written: jax.Array) -> jax.Array:
    """Appends the ids chosen of a tile to rows of a table; returns their new number of entries."""
    number = chosen.astype(jnp.int32)
    place = written[:, None] + jnp.cumsum(number, axis=1) - 1
    ids = tile * _TILE + lax.broadcasted_iota(jnp.int32, chosen.shape, 1)
    _store(table_ref, rows, place, ids, chosen)
    return written + number.sum(axis=1)


def _fill(table_ref, rows, written: jax.Array, value: int) -> None:
    """Writes `value` behind the entries that rows of a table have."""

    def some(part, _):
        place = part * _TILE + lax.broadcasted_iota(jnp.int32, (_ROWS, _TILE), 1)
        empty = place >= written[:, None]
        _store(table_ref, rows, place, jnp.full_like(place, value), empty)

    lax.fori_loop(0, block_count(table_ref.shape[1], _TILE), some, None)


def _store(table_ref, rows, place, values, mask) -> None:
    """Stores values in a table where `mask` is True, never outside of it, whatever the places."""
    height, width = table_ref.shape
    mask &= (rows < height) & (place < width)
    # The interpreter writes old values back where the mask is False; past the end it does not.
    place = jnp.where(mask, place, width)
    plt.store(table_ref.at[rows, place], values, mask=mask)
