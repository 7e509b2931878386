"""Block selection on TPUs: XLA computes some scores at a time, a kernel chooses without a sort."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from lite3r_jax.kernels.block_map.limits import unsupported_tpu
from lite3r_jax.kernels.block_map.select import select_sorted
from lite3r_jax.kernels.block_map.table import block_count

# Rows of one program: those of a vector register, whose lanes are the key blocks.
_ROWS, _LANES = 8, 128
# What a key block is to the kernel.
_UNUSED, _FREE, _KEPT = 0, 1, 2
# Below the order of every score.
_NOTHING = -(2**31)


def select_tpu(
    q: jax.Array,
    q_used: jax.Array,
    k: jax.Array,
    k_used: jax.Array,
    *,
    kept: np.ndarray,
    top: int,
    bottom: int,
    chunk: int | None = None,
    interpret: Any = False,
) -> tuple[jax.Array, jax.Array]:
    """Chooses key blocks as `select.select_sorted`, with a TPU kernel in place of its sorts.

    The arguments are those of `select_sorted`.

    `interpret`, a `pallas.tpu.InterpretParams`, runs the kernel's code on any device, slowly.

    Raises:
        ValueError: a dtype that the kernel is not made for.
    """
    if reason := unsupported_tpu(q.dtype):
        raise ValueError(f"the TPU kernel cannot run this: {reason}")
    choose = functools.partial(_pick, interpret=interpret)
    return select_sorted(
        q, q_used, k, k_used, kept=kept, top=top, bottom=bottom, chunk=chunk, choose=choose
    )


def _pick(
    scores: jax.Array, usable: jax.Array, always: np.ndarray, top: int, bottom: int, *, interpret
) -> tuple[jax.Array, jax.Array]:
    """Picks ids by score as `select.pick`; scores are [B, N, rows, Mk], usable [B, 1, 1, Mk]."""
    b, n, rows, columns = scores.shape
    width = _LANES * block_count(columns, _LANES)
    programs = block_count(n * rows, _ROWS)
    scores = scores.reshape(b, n * rows, columns)
    scores = jnp.pad(scores, ((0, 0), (0, programs * _ROWS - n * rows), (0, width - columns)))
    kind = jnp.where(np.isin(np.arange(columns), always), _KEPT, _FREE)
    kind = jnp.where(usable[:, 0], kind, _UNUSED).astype(jnp.int32)
    kind = jnp.pad(kind, ((0, 0), (0, 0), (0, width - columns)))

    def some(size):
        return pl.BlockSpec((None, _ROWS, size), lambda i, j: (i, j, 0))

    widths = [size for size in (len(always) + top, bottom) if size]
    tables = pl.pallas_call(
        functools.partial(block_map_select, columns=columns, top=top, bottom=bottom),
        grid=(b, programs),
        in_specs=[some(width), pl.BlockSpec((None, 1, width), lambda i, j: (i, 0, 0))],
        out_specs=[some(size) for size in widths],
        out_shape=[jax.ShapeDtypeStruct((b, programs * _ROWS, w), jnp.int32) for w in widths],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
        interpret=interpret,
        name="block_map_select",
    )(scores, kind)
    ids = [x[:, : n * rows].reshape(b, n, rows, -1) for x in tables]
    return ids[0], ids[1] if bottom else jnp.zeros((b, n, rows, 0), jnp.int32)


def block_map_select(
    scores_ref, kind_ref, critical_ref, *negligible_ref, columns: int, top: int, bottom: int
):
    """Writes the table rows of some query blocks, from their scores [8, W] and kinds [1, W].

    The score of rank `top` is found bit by bit in the order of scores as integers. What is chosen
    then moves to the front, each id by the number of blocks before it that are not chosen: all at
    once, one bit of that number after the other. With the lowest bit first, no two ids meet.
    """
    kind = jnp.broadcast_to(kind_ref[...], scores_ref.shape)
    order = jnp.where(kind == _FREE, _ordered(scores_ref[...]), _NOTHING)
    chosen = _highest(order, top)
    critical_ref[...] = _ids(chosen | (kind == _KEPT), columns)[:, : critical_ref.shape[1]]
    if bottom:
        left = (order > _NOTHING) & ~chosen
        lowest = _highest(jnp.where(left, ~order, _NOTHING), bottom)
        negligible_ref[0][...] = _ids(lowest, columns)[:, :bottom]


def _ordered(s: jax.Array) -> jax.Array:
    """Maps float32 scores to int32 numbers of the same order.

    The numbers are above `_NOTHING`, and so are their bitwise complements.
    """
    most = float(np.finfo(np.float32).max)
    s = jnp.where(s == s, jnp.clip(s, -most, most), -most)
    s = jnp.where(s == 0, 0.0, s)  # -0 and 0 are equal
    bits = lax.bitcast_convert_type(s, jnp.int32)
    return jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def _highest(order: jax.Array, count: int) -> jax.Array:
    """Marks the `count` highest values of every row, of equal ones the first: [R, W] bool.

    `_NOTHING` is never marked.
    """
    if count == 0:
        return order != order

    def number(where):
        # In float32, whose sums along lanes every TPU has; it counts to 2^24.
        return where.astype(jnp.float32).sum(axis=1, keepdims=True)

    def narrow(bit, border):
        step = border + lax.shift_left(jnp.int32(1), jnp.int32(31) - bit)
        return jnp.where(number(order >= step) >= count, step, border)

    start = jnp.full((order.shape[0], 1), _NOTHING, jnp.int32)
    border = lax.fori_loop(0, 32, narrow, start)
    above = order > border
    on = (order == border) & (order > _NOTHING)
    need = count - number(above).astype(jnp.int32)
    return above | (on & (_running_sum(on) <= need))


def _running_sum(where: jax.Array) -> jax.Array:
    """Counts the True values of every row up to and including each place: [R, W] int32."""
    total, lane = where.astype(jnp.int32), lax.broadcasted_iota(jnp.int32, where.shape, 1)
    for shift in _powers(where.shape[1]):
        total = total + jnp.where(lane >= shift, pltpu.roll(total, shift, 1), 0)
    return total


def _ids(chosen: jax.Array, columns: int) -> jax.Array:
    """Returns the ids of the chosen blocks, ascending, and `columns` behind them: [R, W] int32."""
    width = chosen.shape[1]
    lane = lax.broadcasted_iota(jnp.int32, chosen.shape, 1)
    ids = jnp.where(chosen, lane, columns)
    left = jnp.where(chosen, lane + 1 - _running_sum(chosen), 0)  # by how much it has to move
    for shift in _powers(width):
        come_left, come_ids = (pltpu.roll(x, width - shift, 1) for x in (left, ids))
        comes, goes = come_left & shift != 0, left & shift != 0
        ids = jnp.where(comes, come_ids, jnp.where(goes, columns, ids))
        left = jnp.where(comes, come_left, jnp.where(goes, 0, left))
    return ids


def _powers(below: int) -> list[int]:
    return [1 << i for i in range((below - 1).bit_length())]
