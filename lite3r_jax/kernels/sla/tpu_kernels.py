"""TPU kernels of `pallas_tpu`, as the code of one program each.

Keys and values of a block come as one array [k_block, 2 D] of [v | k], and queries with their
cotangents as [do | q]. With D = 64 these are rows of 128 lanes, the width of a vector register and
of a tile in memory, and nothing in memory is padding. A product over one of the two halves is one
over all 128 lanes with 0 in the other half of one operand; what a product yields in the lanes of
the other half is left out at the end. The matrix unit so does the work of head dim 128, which is
what it does for any head dim up to the 128 rows that it has. With D = 128 the halves are slices.

Logits are in base 2, as in `triton_kernels`: s = q k^T log2(e) / sqrt(D), `MASKED` where nothing is
seen. Products take operands in the dtype of the inputs and add up in float32; all else is float32.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from lite3r_jax.kernels.sla.tiles import Product

LANES = 128
K_BLOCK = 64
LOG2E = 1.4426950408889634
# Both finite, so that no difference is NaN. A running maximum starts, and stays where no key is
# seen, so far above a masked logit that exp2(MASKED - maximum) is 0.
LOWEST = -1e30
MASKED = -2e30


def sla_forward(ids, words, head, q_ref, *refs, head_dim: int, entries: int, product: Product):
    """Adds some key blocks to the softmax attention of one query block.

    The last program of a query block writes output [q_block, D] and log-sum-exp [1, q_block].

    Args:
        ids: [hs * rs * steps * entries] int32 in scalar memory, the table of these heads and rows.
        words: [(Mk + 1) * 2] int32 in scalar memory, a bit per valid key; none in the last block.
        head: [1] int32 in scalar memory, the first head; for block specs.
        q_ref: [q_block, D], or [0 | q] for D = 64.
        refs: `entries` key blocks; outputs; sums [q_block, 128], maximum and total [q_block, 1].
        head_dim: D.
        entries: key blocks of one program.
        product: keys and queries that are worked on at a time.
    """
    del head
    kv_refs, (o_ref, lse_ref, acc_ref, top_ref, total_ref) = refs[:entries], refs[entries:]
    step = pl.program_id(2)
    first = _first_entry(entries)

    @pl.when(step == 0)
    def _():
        acc_ref[...] = jnp.zeros(acc_ref.shape, jnp.float32)
        top_ref[...] = jnp.full(top_ref.shape, LOWEST, jnp.float32)
        total_ref[...] = jnp.zeros(total_ref.shape, jnp.float32)

    for some, at in _products(entries, q_ref.shape[0], product):

        @pl.when(_used(ids, words, first + some[0]))
        def _(some=some, at=at):
            q, kv = q_ref[at], _rows(kv_refs, some)
            s = _dot(q, _keys(kv, head_dim), trans_b=True) * _scale(head_dim)
            s = s + _bias(ids, words, first, some)
            top = top_ref[at]
            new = jnp.maximum(top, s.max(axis=1, keepdims=True))
            p = jnp.exp2(s - new)
            shrink = jnp.exp2(top - new)
            top_ref[at] = new
            total_ref[at] = total_ref[at] * shrink + p.sum(axis=1, keepdims=True)
            acc_ref[at] = acc_ref[at] * shrink + _dot(p.astype(q.dtype), _values(kv, head_dim))

    @pl.when(step == pl.num_programs(2) - 1)
    def _():
        total = total_ref[...]
        total = jnp.where(total > 0, total, 1)
        o_ref[...] = (acc_ref[...] / total)[:, :head_dim].astype(o_ref.dtype)
        lse = top_ref[...] + jnp.log2(total)
        lse_ref[...] = jnp.broadcast_to(lse, (lse.shape[0], LANES)).T[:1]


def sla_query_gradient(
    ids, words, head, qdo_ref, stats_ref, *refs, head_dim: int, entries: int, product: Product
):
    """Adds the contribution of some key blocks to the gradient of one query block.

    For D = 64 the gradient is in the upper 64 lanes.

    Args:
        ids: as in `sla_forward`.
        words: as in `sla_forward`.
        head: as in `sla_forward`.
        qdo_ref: [q_block, 2 D] of [do | q].
        stats_ref: [2, q_block] float32, log-sum-exp and the row sums of do * o.
        refs: `entries` key blocks; the gradient [q_block, 128]; its sums, float32; the two of
            `stats_ref` as columns [q_block, 1].
        head_dim: D.
        entries: key blocks of one program.
        product: as in `sla_forward`.
    """
    del head
    kv_refs, (dq_ref, acc_ref, lse_ref, delta_ref) = refs[:entries], refs[entries:]
    step = pl.program_id(2)
    first = _first_entry(entries)

    @pl.when(step == 0)
    def _():
        acc_ref[...] = jnp.zeros(acc_ref.shape, jnp.float32)
        columns = jnp.broadcast_to(stats_ref[...][:, None], (2, 8, qdo_ref.shape[0]))
        lse_ref[...], delta_ref[...] = (columns[i].T[:, :1] for i in range(2))

    for some, at in _products(entries, qdo_ref.shape[0], product):

        @pl.when(_used(ids, words, first + some[0]))
        def _(some=some, at=at):
            qdo, kv = qdo_ref[at], _rows(kv_refs, some)
            do, q = _halves(qdo, head_dim)
            keys, values = _keys(kv, head_dim), _values(kv, head_dim)
            s = _dot(q, keys, trans_b=True) * _scale(head_dim)
            p = jnp.exp2(s + _bias(ids, words, first, some) - lse_ref[at])
            ds = p * (_dot(do, values, trans_b=True) - delta_ref[at])
            acc_ref[at] += _dot(ds.astype(qdo.dtype), keys)

    @pl.when(step == pl.num_programs(2) - 1)
    def _():
        dq_ref[...] = (acc_ref[...] * head_dim**-0.5).astype(dq_ref.dtype)


def sla_key_gradient(
    rows,
    keys,
    starts,
    counts,
    head,
    kv_ref,
    *refs,
    head_dim: int,
    steps: int,
    entries: int,
    width: int,
):
    """Adds the contribution of some query blocks to the gradients of one block of keys and values.

    The gradients are one array [k_block, 2 D] of [dv | dk].

    The programs of a head go over a list of steps. Each has up to `entries` query blocks of one key
    block, and every key block has a step; behind the end of the list follow steps of the last key
    block that have no query block. The gradients of invalid keys, whose rows are 0 here, do not
    matter, also if they are not finite.

    Args:
        rows: query blocks in scalar memory, those of a key block behind one another; for specs.
        keys: [hs * steps] int32 in scalar memory, key block of each step.
        starts: [hs * steps] int32 in scalar memory, each step's place in `rows`; for specs.
        counts: [hs * steps] int32 in scalar memory, each step's number of query blocks.
        head: as in `sla_forward`.
        kv_ref: [k_block, 2 D] of [v | k].
        refs: `entries` times [q_block, 2 D] of [do | q]; as often [2, q_block], as in
            `sla_query_gradient`; the gradient; sums of dv and of dk [k_block, 128], float32.
        head_dim: D.
        steps: number of steps of a head.
        entries: query blocks of one program.
        width: queries that are worked on at a time.
    """
    del rows, starts, head
    qdo_refs, stats_refs = refs[:entries], refs[entries : 2 * entries]
    dkv_ref, dv_ref, dk_ref = refs[2 * entries :]
    step = pl.program_id(1)
    here = pl.program_id(0) * steps + step
    before = keys[jnp.maximum(here - 1, 0)]
    behind = keys[jnp.minimum(here + 1, pl.num_programs(0) * steps - 1)]

    @pl.when((step == 0) | (before != keys[here]))
    def _():
        dv_ref[...] = jnp.zeros(dv_ref.shape, jnp.float32)
        dk_ref[...] = jnp.zeros(dk_ref.shape, jnp.float32)

    q_block = qdo_refs[0].shape[0]
    for some in parts(entries, q_block, width):

        @pl.when(counts[here] > some[0])
        def _(some=some):
            v, k = _halves(kv_ref[...], head_dim)
            qdo = _rows(qdo_refs, some)
            stats = jnp.concatenate([stats_refs[i][...] for i in some], axis=1)
            do, q = _values(qdo, head_dim), _keys(qdo, head_dim)
            s = _dot(k, q, trans_b=True) * _scale(head_dim)
            listed = lax.broadcasted_iota(jnp.int32, (1, s.shape[1]), 1)
            listed = listed < (counts[here] - some[0]) * q_block
            p = jnp.exp2(s + jnp.where(listed, -stats[:1], MASKED))
            ds = p * (_dot(v, do, trans_b=True) - stats[1:])
            dv_ref[...] += _dot(p.astype(qdo.dtype), do)
            dk_ref[...] += _dot(ds.astype(qdo.dtype), q)

    @pl.when((step == steps - 1) | (behind != keys[here]))
    def _():
        dv, dk = dv_ref[...], dk_ref[...] * head_dim**-0.5
        if head_dim < LANES:
            dkv = jnp.where(_lane(dv.shape) < head_dim, dv, dk)
        else:
            dkv = jnp.concatenate([dv, dk], axis=1)
        dkv_ref[...] = dkv.astype(dkv_ref.dtype)


def _first_entry(entries: int) -> jax.Array:
    """Returns where in the table the entries of this program of (heads, rows, steps) begin."""
    row = pl.program_id(0) * pl.num_programs(1) + pl.program_id(1)
    return (row * pl.num_programs(2) + pl.program_id(2)) * entries


def _used(ids, words, first) -> jax.Array:
    """Returns whether the table lists anything from `first` on; unused entries stand last."""
    return ids[first] < words.shape[0] // 2 - 1


def _bias(ids, words, first, some: range) -> jax.Array:
    """Returns the bias of logits, [1, keys] float32: 0 for valid keys of entries, else `MASKED`."""
    lane = _lane((1, LANES))
    bits = []
    for i in some[::2]:
        near, far = ids[first + i], ids[first + i + 1]
        low = jnp.where(lane < 32, words[2 * near], words[2 * near + 1])
        high = jnp.where(lane < 96, words[2 * far], words[2 * far + 1])
        word = jnp.where(lane < K_BLOCK, low, high)
        bits.append(lax.shift_right_logical(word, lane & 31) & 1)
    return jnp.where(jnp.concatenate(bits, axis=1) == 1, 0.0, MASKED).astype(jnp.float32)


def parts(entries: int, block: int, width: int) -> list[range]:
    """Splits entries into groups whose blocks make up a product of `width` keys or queries.

    Groups have an even number of entries.
    """
    size = width // block
    return [range(i, min(i + size, entries)) for i in range(0, entries, size)]


def _products(entries: int, queries: int, product: Product) -> list[tuple[range, slice]]:
    """Returns the entries and queries of every product of a program.

    Each product has a branch of its own: the compiler does not work on two branches at a time, and
    so does not need the registers of two; and entries of which none is used are left out.
    """
    rows = [slice(i, i + product.queries) for i in range(0, queries, product.queries)]
    rows = rows if product.queries < queries else [slice(None)]
    return [(some, at) for some in parts(entries, K_BLOCK, product.keys) for at in rows]


def _rows(refs, some: range) -> jax.Array:
    return jnp.concatenate([refs[i][...] for i in some], axis=0)


def _lane(shape: tuple[int, ...]) -> jax.Array:
    return lax.broadcasted_iota(jnp.int32, shape, 1)


def _halves(x: jax.Array, head_dim: int) -> tuple[jax.Array, jax.Array]:
    """Splits [v | k] into v and k; with D = 64, each has 0 in the place of the other."""
    if head_dim == LANES:
        return x[:, :LANES], x[:, LANES:]
    lower = _lane(x.shape) < head_dim
    zero = jnp.zeros_like(x)
    return jnp.where(lower, x, zero), jnp.where(lower, zero, x)


def _values(x: jax.Array, head_dim: int) -> jax.Array:
    """Returns v of [v | k], the lower half; with D = 64, both halves.

    Then the other operand or the result leaves the upper half out.
    """
    return x[:, :LANES] if head_dim == LANES else x


def _keys(x: jax.Array, head_dim: int) -> jax.Array:
    """Returns k of [v | k], the upper half; with D = 64, both halves.

    Then the other operand or the result leaves the lower half out.
    """
    return x[:, LANES:] if head_dim == LANES else x


def _scale(head_dim: int) -> float:
    return LOG2E * head_dim**-0.5


def _dot(x: jax.Array, y: jax.Array, *, trans_b: bool = False) -> jax.Array:
    """Returns x y, or x y^T, in float32.

    Float32 is multiplied in full, half precision as it is, whatever jax's default is.
    """
    return lax.dot_general(
        x,
        y,
        (((1,), (1 if trans_b else 0,)), ((), ())),
        precision=lax.Precision.HIGHEST if x.dtype == jnp.float32 else lax.Precision.DEFAULT,
        preferred_element_type=jnp.float32,
    )
