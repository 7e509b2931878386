"""The Triton kernel of the block selection, for `block_map.jax_triton`; needs the package triton.

What it does is what `pallas_triton.block_map_select` does: the score of the wanted rank is found
four bits at a time, in eight passes over the key blocks, each of which computes the scores again
by the same code and so to the same bits; a last pass writes the ids, ascending.
"""

import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]

from lite3r_jax.kernels.jax_triton_language import dot

# What a key block is to the kernel.
UNUSED, FREE, KEPT = 0, 1, 2
_FREE, _KEPT = tl.constexpr(FREE), tl.constexpr(KEPT)
# Below the order of every score.
NOTHING = tl.constexpr(-(2**31))
HIGHEST = tl.constexpr(2**31 - 1)
MOST = tl.constexpr(3.4028234663852886e38)


@triton.jit
def block_map_select(
    q,
    used,
    k,
    kind,
    rows,
    columns,
    programs,
    tiles,
    top,
    bottom,
    width,
    critical,
    negligible,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    DEPTH: tl.constexpr,
    LOW: tl.constexpr,
):
    """Writes the table rows of ROWS query blocks: the ids of the key blocks chosen for them.

    q is [B, N, programs * ROWS, D], used [B, programs * ROWS] int32, k [B, N, tiles * TILE, D] and
    kind [B, tiles * TILE] int32; critical is [B, N, rows, width] and negligible, written where LOW,
    [B, N, rows, bottom] int32.
    """
    i = tl.program_id(0)
    head = tl.program_id(1)
    sequence = tl.program_id(2)
    line = (sequence * HEADS + head).to(tl.int64)
    row = i * ROWS + tl.arange(0, ROWS)
    q += (line * programs * ROWS + i * ROWS) * D
    k += line * tiles * TILE * D
    kind += sequence * tiles * TILE
    is_used = tl.load(used + sequence * programs * ROWS + row) > 0
    here = row < rows
    critical += (line * rows + row) * width
    negligible += (line * rows + row) * bottom
    none = tl.zeros((ROWS,), tl.int32)
    highest = tl.full((ROWS,), HIGHEST, tl.int32)

    border, above = _border(q, k, kind, highest, tiles, top, False, D, ROWS, TILE, DEPTH)
    low = none
    below = none
    if LOW:
        low, below = _border(q, k, kind, border, tiles, bottom, True, D, ROWS, TILE, DEPTH)
    equal = none
    written = none
    equal_low = none
    written_low = none
    for tile in range(0, tiles):
        order, what = _scores(q, k, kind, tile, D, ROWS, TILE, DEPTH)
        chosen, equal = _take(order, border, top - above, equal)
        taken = is_used[:, None] & (chosen | (what == _KEPT))
        written = _append(critical, here, width, taken, tile, written, TILE)
        if LOW:
            order = tl.where(chosen, NOTHING, _mirrored(order, border))
            chosen, equal_low = _take(order, low, bottom - below, equal_low)
            chosen = is_used[:, None] & chosen
            written_low = _append(negligible, here, bottom, chosen, tile, written_low, TILE)
    _fill(critical, here, width, written, columns, TILE)
    if LOW:
        _fill(negligible, here, bottom, written_low, columns, TILE)


@triton.jit
def _scores(
    q, k, kind, tile, D: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, DEPTH: tl.constexpr
):
    """Returns the scores of a tile as ordered integers, and the kind of each of its key blocks.

    The integer is `NOTHING` where a key block is not free.
    """
    row = tl.arange(0, ROWS)
    column = tile * TILE + tl.arange(0, TILE)
    s = tl.zeros((ROWS, TILE), tl.float32)
    # All of D at once would spill registers in float32.
    for part in range(0, D // DEPTH):
        channel = part * DEPTH + tl.arange(0, DEPTH)
        x = tl.load(q + row[:, None] * D + channel[None, :])
        y = tl.load(k + column[:, None] * D + channel[None, :])
        s += dot(x, tl.trans(y))
    what = tl.broadcast_to(tl.load(kind + column)[None, :], (ROWS, TILE))
    return tl.where(what == _FREE, _ordered(s), NOTHING), what


@triton.jit
def _ordered(s):
    """Maps float32 scores to int32 numbers of the same order.

    The numbers are above `NOTHING`, and so are their bitwise complements.
    """
    s = tl.where(s == s, tl.minimum(tl.maximum(s, -MOST), MOST), -MOST)
    s = tl.where(s == 0, 0.0, s)  # -0 and 0 are equal
    bits = s.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def _mirrored(order, border):
    """Reverses the order of the scores of free key blocks that are not above the border.

    The lowest becomes the highest; all others become `NOTHING`.
    """
    rest = (order > NOTHING) & (order <= border[:, None])
    return tl.where(rest, ~order, NOTHING)


@triton.jit
def _border(
    q,
    k,
    kind,
    highest,
    tiles,
    count,
    MIRROR: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Finds the score of rank `count` in each row, and how many scores are above it.

    Finds four bits of the score at a time, which are one of 15 numbers or 0. The score is
    `NOTHING` where there are fewer scores, and above everything for count 0. MIRROR: whether the
    scores are those of `_mirrored`.
    """
    border = tl.full((ROWS,), NOTHING, tl.int32)
    above = tl.zeros((ROWS,), tl.int32)
    for digit in range(0, 8):
        step = tl.full((), 1, tl.int32) << (28 - 4 * digit)
        counts = (tl.zeros((ROWS,), tl.int32),)
        for _ in tl.static_range(14):
            counts = counts + (tl.zeros((ROWS,), tl.int32),)
        for tile in range(0, tiles):
            order, _what = _scores(q, k, kind, tile, D, ROWS, TILE, DEPTH)
            if MIRROR:
                order = _mirrored(order, highest)
            new = ()
            for j in tl.static_range(15):
                reached = order >= (border + (j + 1) * step)[:, None]
                new = new + (counts[j] + tl.sum(reached.to(tl.int32), 1),)
            counts = new
        next_border = border
        for j in tl.static_range(15):  # from below, so that counts descend
            enough = counts[j] >= count
            next_border += tl.where(enough, step, 0)
            above = tl.maximum(above, tl.where(enough, 0, counts[j]))
        border = next_border
    return tl.where(count > 0, border, HIGHEST), tl.where(count > 0, above, 0)


@triton.jit
def _take(order, border, need, equal):
    """Marks the key blocks that are chosen of a tile: all above the border, the first `need` on it.

    `equal` counts the key blocks on the border in the tiles before; it is returned with this
    tile's added. `need` is that of all tiles.
    """
    on = (order == border[:, None]) & (order > NOTHING)
    rank = equal[:, None] + tl.cumsum(on.to(tl.int32), 1)
    chosen = (order > border[:, None]) | (on & (rank <= need[:, None]))
    return chosen, equal + tl.sum(on.to(tl.int32), 1)


@triton.jit
def _append(table, here, width, chosen, tile, written, TILE: tl.constexpr):
    """Appends the ids chosen of a tile to rows of a table; returns their new number of entries."""
    number = chosen.to(tl.int32)
    place = written[:, None] + tl.cumsum(number, 1) - 1
    ids = tl.broadcast_to((tile * TILE + tl.arange(0, TILE))[None, :], place.shape)
    inside = here[:, None] & (place < width)  # never outside of the table, whatever the places
    tl.store(table[:, None] + place, ids, mask=chosen & inside)
    return written + tl.sum(number, 1)


@triton.jit
def _fill(table, here, width, written, value, TILE: tl.constexpr):
    """Writes `value` behind the entries that rows of a table have."""
    for part in range(0, tl.cdiv(width, TILE)):
        place = (part * TILE + tl.arange(0, TILE))[None, :]
        empty = here[:, None] & (place >= written[:, None]) & (place < width)
        tl.store(table[:, None] + place, tl.zeros_like(place) + value, mask=empty)
