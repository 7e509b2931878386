"""GPU kernels of `pallas_triton`, as the code of one program each.

Refs and masks are as in `flash_kernels`. Products take operands in the dtype of the inputs and add
up in float32; everything else is float32.

Softmax part: SLA, arXiv 2509.24006, Algorithms 1-2, Eq. 7, with the 1 / sqrt(D) of dQ and dK that
the paper leaves out.

Linear part over all keys (Eq. 5-6 and 8 with one set for all queries): states are means over keys,
H = phi(K)^T V / Tk and z = phi(K)^T 1 / Tk, and eps / Tk goes with them, so that

    o = phi(q) S / den,    S = H W,    den = phi(q) z + eps / Tk

stays in the range of half precision. Gradients of S need not, so that in half precision the
operands of its products are bfloat16, in three parts where they are summed up over tokens. phi and
its derivative come from `reference.PHI`.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from lite3r_jax.kernels.block_map.table import block_count
from lite3r_jax.kernels.flash_kernels import (
    At,
    attended,
    dot,
    key_gradient,
    query_gradient,
    row_sums,
)
from lite3r_jax.kernels.order import LongFirst
from lite3r_jax.kernels.sla.reference import PHI, Phi

# Of the linear part that are multiplied at a time.
_CHANNELS = 16


@dataclass(frozen=True)
class OverTable:
    """How a program finds its query block and that block's keys.

    Ids of key blocks are one list of a head: where there are full rows, first all ids, then those
    of one row of the table after the other. README.md has what other ways cost.

    Attributes:
        order: of programs over query blocks, or parts of them, and heads.
        full: so many query blocks of a head come first that attend to all key blocks.
        programs: parts of a query block.
        width: ids of a row of the table.
        columns: Mk.
    """

    order: LongFirst
    full: int
    programs: int
    width: int
    columns: int

    def keys(self, ids_ref, k_block: int) -> tuple[At, jax.Array]:
        """Returns the positions of the keys of each step, and the number of steps."""
        block = lax.div(self.order.split(pl.program_id(0))[0], jnp.int32(self.programs))
        first = block * self.width
        if self.full:
            later = self.columns + (block - self.full) * self.width
            first = jnp.where(block < self.full, 0, later)
        count = self._used(ids_ref, first)
        if self.full:
            count = jnp.where(block < self.full, self.columns, count)
        return lambda step: pl.ds(ids_ref[first + step] * k_block, k_block), count

    def _used(self, ids_ref, first) -> jax.Array:
        """Returns the number of used ids of a row of the table."""
        size = min(pl.next_power_of_2(self.width), 256)

        def add(part, count):
            entry = part * size + lax.iota(jnp.int32, size)
            at = jnp.minimum(first + entry, ids_ref.shape[0] - 1)
            ids = plt.load(ids_ref.at[at], mask=entry < self.width, other=self.columns)
            return count + (ids < self.columns).astype(jnp.int32).sum(axis=0)

        return lax.fori_loop(0, block_count(self.width, size), add, jnp.int32(0))


def sla_forward(
    q_ref,
    k_ref,
    v_ref,
    bias_ref,
    ids_ref,
    valid_ref,
    *refs,
    k_block: int,
    place: OverTable,
    linear: tuple[Phi, float] | None,
    scatter: bool,
    residuals: bool,
):
    """Writes the softmax part plus linear part of one query block, or of a part of it.

    The output goes to its places if there are any. The softmax part's output and log-sum-exp are
    written where the backward pass needs them.
    """
    refs = list(refs)
    state_ref, total_ref = (refs.pop(0), refs.pop(0)) if linear else (None, None)
    places_ref = refs.pop(0) if scatter else None
    o_ref, *rest = refs
    o, lse = attended(q_ref, k_ref, v_ref, bias_ref, *place.keys(ids_ref, k_block))
    if residuals:
        soft_ref, lse_ref = rest
        soft_ref[...] = o.astype(soft_ref.dtype)
        lse_ref[...] = lse
    if linear is not None:
        o += _linear_output(q_ref, state_ref, total_ref, *linear)
    o = jnp.where((valid_ref[...] > 0)[:, None], o, 0).astype(o_ref.dtype)
    if places_ref is None:
        o_ref[...] = o
        return
    places = jnp.broadcast_to(places_ref[...][:, None], o.shape)
    channels = lax.broadcasted_iota(jnp.int32, o.shape, 1)
    plt.store(o_ref.at[places, channels], o, mask=places < o_ref.shape[0])


def sla_query_gradient(
    q_ref,
    k_ref,
    v_ref,
    bias_ref,
    ids_ref,
    do_ref,
    o_ref,
    lse_ref,
    dq_ref,
    delta_ref,
    *,
    k_block: int,
    place: OverTable,
):
    """Writes the gradient of a query block, or its part, and delta, the row sums of do * o."""
    do = do_ref[...]
    delta = row_sums(do, o_ref[...])
    delta_ref[...] = delta
    at, count = place.keys(ids_ref, k_block)
    query_gradient(q_ref, k_ref, v_ref, bias_ref, do, lse_ref[...], delta, dq_ref, at, count)


def sla_key_gradient(
    q_ref,
    k_ref,
    v_ref,
    bias_ref,
    rows_ref,
    offsets_ref,
    do_ref,
    lse_ref,
    delta_ref,
    dk_ref,
    dv_ref,
    *,
    q_block: int,
    size: int,
    order: LongFirst,
    full: int,
):
    """Writes the gradients of one block of keys and values, over `size` queries at a time.

    `full` query blocks come first, that list all key blocks and are not in the table.
    """
    slices = q_block // size
    j, _ = order.split(pl.program_id(0))
    before = offsets_ref[j] - full

    def at(step):
        number = lax.div(step, slices)
        if full == 0:
            row = rows_ref[before + number]
        else:  # an entry is read in any case, and so of the table
            entry = jnp.minimum(before + jnp.maximum(number, full), rows_ref.shape[0] - 1)
            row = jnp.where(number < full, number, full + rows_ref[entry])
        return pl.ds(row * q_block + lax.rem(step, slices) * size, size), None

    key_gradient(
        q_ref,
        k_ref,
        v_ref,
        bias_ref,
        do_ref,
        lse_ref,
        delta_ref,
        dk_ref,
        dv_ref,
        at,
        (0, (offsets_ref[j + 1] - before) * slices),
    )


def sla_linear_state(
    k_ref, v_ref, bias_ref, state_ref, total_ref, *, size: int, chunk: int, phi: Phi
):
    """Writes the sums over some keys of phi(k)^T v [D, D] and phi(k) [D]."""
    dtype = linear_dtype(v_ref.dtype)

    def fold(step, carry):
        state, total = carry
        at = pl.ds(step * size, size)
        f = jnp.where(bias_ref[at][:, None] == 0, _features(k_ref[at, :], phi)[0], 0)
        return state + _sum_of_products(f, v_ref[at, :], dtype), total + f.sum(axis=0)

    _over_chunk(fold, k_ref.shape[0] // size, chunk, state_ref, total_ref)


def sla_linear_project(
    parts_ref, totals_ref, weight_ref, state_ref, total_ref, mean_ref, *, keys: int
):
    """Writes S, z and H for some rows of a head's states, from sums over parts of the keys."""

    def add(part, sums):
        return sums[0] + parts_ref[part, :, :], sums[1] + totals_ref[part, :]

    zero = jnp.zeros(mean_ref.shape, jnp.float32), jnp.zeros(total_ref.shape, jnp.float32)
    mean, total = (x / keys for x in lax.fori_loop(0, parts_ref.shape[0], add, zero))
    state_ref[...] = dot(mean, weight_ref[...]).astype(state_ref.dtype)
    total_ref[...] = total
    mean_ref[...] = mean


def sla_linear_forward(q_ref, state_ref, total_ref, o_ref, *, phi: Phi, eps: float):
    """Writes the linear part's output for some queries."""
    o_ref[...] = _linear_output(q_ref, state_ref, total_ref, phi, eps).astype(o_ref.dtype)


def _linear_output(q_ref, state_ref, total_ref, phi: Phi, eps: float) -> jax.Array:
    """Computes phi(q) S / den in float32, by some channels at a time to take fewer registers."""
    d, dtype = q_ref.shape[1], state_ref.dtype
    size = d if phi == "softmax" else _CHANNELS  # the softmax is one over all channels

    def add(part, carry):
        some = pl.ds(part * size, size)
        f, _ = _features(q_ref[:, some], phi)
        o = carry[0] + dot(f.astype(dtype), state_ref[some, :])
        return o, carry[1] + (f * total_ref[some][None, :]).sum(axis=1)

    rows = q_ref.shape[0]
    zero = jnp.zeros((rows, d), jnp.float32), jnp.zeros((rows,), jnp.float32)
    o, total = lax.fori_loop(0, d // size, add, zero)
    return o / jnp.where(total > 0, total + eps, 1)[:, None]


def sla_linear_query_gradient(q_ref, state_ref, total_ref, do_ref, dq_ref, *, phi: Phi, eps: float):
    """Writes the gradient of some queries through the linear part."""
    f, pull = _features(q_ref[...], phi)
    den = _denominator(f, total_ref, eps)
    df, dden = _through_states(f, den, do_ref[...], state_ref)
    df = df / den[:, None] + dden[:, None] * total_ref[...][None, :]
    dq_ref[...] = pull(df)[0].astype(dq_ref.dtype)


def sla_linear_state_gradient(
    q_ref,
    state_ref,
    total_ref,
    do_ref,
    dstate_ref,
    dtotal_ref,
    *,
    size: int,
    chunk: int,
    phi: Phi,
    eps: float,
):
    """Writes what some queries add to the gradients of S [D, D] and z [D]."""
    dtype = state_ref.dtype

    def fold(step, carry):
        dstate, dtotal = carry
        at = pl.ds(step * size, size)
        do = do_ref[at, :]
        f, _ = _features(q_ref[at, :], phi)
        den = _denominator(f, total_ref, eps)
        _, dden = _through_states(f, den, do, state_ref)
        dnum = do.astype(jnp.float32) / den[:, None]
        dstate += _sum_of_products(f, dnum, dtype)
        return dstate, dtotal + (f * dden[:, None]).sum(axis=0)

    _over_chunk(fold, q_ref.shape[0] // size, chunk, dstate_ref, dtotal_ref)


def sla_linear_key_gradient(k_ref, v_ref, dstate_ref, dtotal_ref, dk_ref, dv_ref, *, phi: Phi):
    """Writes the gradients of some keys and values from those of H and z, divided by Tk."""
    dstate = dstate_ref[...]
    f, pull = _features(k_ref[...], phi)
    dv_ref[...] = dot(f.astype(dstate.dtype), dstate).astype(dv_ref.dtype)
    df = dot(v_ref[...].astype(dstate.dtype), dstate, trans_b=True) + dtotal_ref[...][None, :]
    dk_ref[...] = pull(df)[0].astype(dk_ref.dtype)


def linear_dtype(dtype: Any) -> Any:
    """Returns the dtype of the operands of the linear part's products."""
    return jnp.float32 if dtype == jnp.float32 else jnp.bfloat16


def _features(x: jax.Array, phi: Phi):
    """Returns phi(x) in float32, and its VJP, which turns its gradient into that of x."""
    return jax.vjp(PHI[phi], x.astype(jnp.float32))


def _sum_of_products(x: jax.Array, y: jax.Array, dtype: Any) -> jax.Array:
    """Computes x^T y in float32 precision, also where `dtype`, the operands', is bfloat16.

    Not for 128 channels, where operands are rounded. The gradient of proj_lin is made of such sums
    and is float32: operands that are rounded to bfloat16 leave an error of 1e-3 in it, sums of two
    of them one of 1e-5.
    """
    if dtype == jnp.float32:
        return dot(x, y, trans_a=True)
    count = 3 if x.shape[1] == 64 else 1  # with 128 channels registers would spill
    x_parts = _parts(x, dtype, count)
    y_parts = [y] if y.dtype == dtype else _parts(y, dtype, count)
    pairs = [(i, j) for i in range(count) for j in range(len(y_parts)) if i + j < count]
    total = jnp.zeros((x.shape[1], y.shape[1]), jnp.float32)
    for i, j in reversed(pairs):  # the largest last
        total += dot(x_parts[i], y_parts[j], trans_a=True)
    return total


def _parts(x: jax.Array, dtype: Any, count: int) -> list[jax.Array]:
    """Splits float32 into `count` numbers of bfloat16.

    Each has eight bits, cut off, so that no compiler joins the parts.
    """
    rest, parts = x.astype(jnp.float32), []
    if count == 1:
        return [rest.astype(dtype)]
    for _ in range(count):
        bits = lax.bitcast_convert_type(rest, jnp.int32) & jnp.int32(-65536)
        part = lax.bitcast_convert_type(bits, jnp.float32)
        parts.append(part.astype(dtype))
        rest -= part
    return parts


def _denominator(f, total_ref, eps):
    """Returns den, or 1 where no key has a weight, and so phi(q) S is 0."""
    total = (f * total_ref[...][None, :]).sum(axis=1)
    return jnp.where(total > 0, total + eps, 1)


def _through_states(f, den, do, state_ref):
    """Returns do S^T, and the gradient of the denominator den.

    The gradient is -do o / den, where do o = phi(q) (do S^T) / den.
    """
    state = state_ref[...]
    g = dot(do.astype(state.dtype), state, trans_b=True)
    return g, -(f * g).sum(axis=1) / (den * den)


def _over_chunk(fold, count, chunk, state_ref, total_ref):
    """Folds `chunk` steps, fewer at the end, into two sums and writes these."""
    first = pl.program_id(0) * chunk
    zero = jnp.zeros(state_ref.shape, jnp.float32), jnp.zeros(total_ref.shape, jnp.float32)
    state, total = lax.fori_loop(first, jnp.minimum(first + chunk, count), fold, zero)
    state_ref[...] = state
    total_ref[...] = total
