"""Sparse Linear Attention on TPUs: Pallas kernels for its softmax part."""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from lite3r_jax.kernels.block_map.table import BlockMap, BlockTable, block_count
from lite3r_jax.kernels.sla import tpu_kernels as kernels
from lite3r_jax.kernels.sla.blocks import all_to_blocks, from_blocks, in_parts, whole
from lite3r_jax.kernels.sla.limits import K_BLOCK, SlaCall, unsupported_tpu
from lite3r_jax.kernels.sla.linear import linear_all, linear_marginal
from lite3r_jax.kernels.sla.reference import Phi, Routing
from lite3r_jax.kernels.sla.tiles import TpuTiles


def sla_tpu(
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
    tiles: TpuTiles | None = None,
    interpret: Any = False,
) -> jax.Array:
    """Computes `api.sla` with TPU kernels for its softmax part; not for routing "token".

    The arguments are those of `api.sla`. The linear part is `linear`'s, plain JAX. Every sum has a
    fixed order, so that two runs give the same bits. `interpret`, a `pallas.tpu.InterpretParams`,
    runs the kernels' code on any device, slowly.

    Raises:
        ValueError: a head dim, block or dtype that the kernels are not made for.
    """
    del keep  # which is in the map
    if reason := unsupported_tpu(SlaCall.of(routing, q, block_map)):
        raise ValueError(f"the TPU kernels cannot run this: {reason}")
    sizes = block_map.q_block, block_map.k_block
    qb, kb, vb, ok = all_to_blocks(q, k, v, q_valid, k_valid, *sizes)
    critical = block_map.critical.ids.reshape(*qb.shape[:2], -1)
    _, rows, width = critical.shape
    plan = Plan(tiles or TpuTiles(), q.shape[2], rows, width, kb.shape[1], interpret)
    kv = jnp.concatenate([vb, kb], axis=-1)
    if critical.shape[2]:
        o = _sparse(qb, kv, _words(k_valid, kb.shape[1]), critical, plan).astype(jnp.float32)
    else:
        o = jnp.zeros(qb.shape, jnp.float32)
    if routing == "block":
        o += linear_all(qb, kb, vb, ok, proj_lin, phi, eps)
    else:
        negligible = block_map.negligible.ids.reshape(*qb.shape[:2], -1)
        o += linear_marginal(qb, kb, vb, ok, critical, negligible, proj_lin, phi, eps)
    return from_blocks(o, q_valid).astype(v.dtype)


def _words(k_valid: jax.Array, columns: int) -> jax.Array:
    """Packs a mask of valid keys, [B, Tk] bool, into bits: [B, (columns + 1) * 2] int32.

    The block behind the last one, which unused entries of a table name, has no valid key.
    """
    bits = jnp.pad(k_valid, ((0, 0), (0, (columns + 1) * K_BLOCK - k_valid.shape[1])))
    bits = bits.reshape(k_valid.shape[0], -1, 32).astype(jnp.uint32)
    words = (bits << jnp.arange(32, dtype=jnp.uint32)).sum(axis=-1, dtype=jnp.uint32)
    return lax.bitcast_convert_type(words, jnp.int32)


@dataclass(frozen=True)
class Plan:
    """Settings that are fixed when a call is traced, and how it is split into kernel calls.

    Tables go into scalar memory, which holds the table of some heads and query blocks at a time.

    Attributes:
        tiles: how much is worked on at a time.
        sequence_heads: N; the heads of one kernel call are of one sequence.
        rows: Mq.
        width: K, entries of a row of the table.
        columns: Mk.
        interpret: see `sla_tpu`.
    """

    tiles: TpuTiles
    sequence_heads: int
    rows: int
    width: int
    columns: int
    interpret: Any

    @property
    def entries(self) -> int:
        """Number of key blocks of one program."""
        return min(self.tiles.key_blocks, self.width + self.width % 2)

    @property
    def query_entries(self) -> int:
        """Number of query blocks of one program of the key gradient."""
        return min(self.tiles.query_blocks, self.some_rows + self.some_rows % 2)

    @property
    def steps(self) -> int:
        """Number of programs of one query block."""
        return block_count(self.width, self.entries)

    @property
    def steps_of_keys(self) -> int:
        """Number of programs of a head in the key gradient, enough for any table."""
        return block_count(self.some_rows * self.width, self.query_entries) + self.columns

    @property
    def some_rows(self) -> int:
        """Number of query blocks of one kernel call."""
        # An entry also takes up to three numbers of a step; so does every key block.
        left = self.tiles.scalars - 5 * self.columns
        return max(1, min(self.rows, left // (2 * self.steps * self.entries)))

    @property
    def some_heads(self) -> int:
        """Number of heads of one kernel call; several only where it has all their query blocks."""
        if self.some_rows < self.rows:
            return 1
        one = 2 * self.rows * self.steps * self.entries + 3 * self.columns
        fit = max(1, (self.tiles.scalars - 2 * self.columns) // one)
        divisors = (n for n in range(1, self.sequence_heads + 1) if self.sequence_heads % n == 0)
        return max(n for n in divisors if n <= fit)

    @property
    def parts(self) -> int:
        """Number of kernel calls over the query blocks of a head."""
        return block_count(self.rows, self.some_rows)

    def of_queries(self, x: jax.Array, fill: int = 0) -> jax.Array:
        """Splits [H, Mq, ...] by kernel calls into [groups, parts, heads, rows, ...].

        Each call has some heads and query blocks.
        """
        split = jax.vmap(lambda y: in_parts(y, self.some_rows, fill))(x)
        groups = x.shape[0] // self.some_heads
        return split.reshape(groups, self.some_heads, *split.shape[1:]).swapaxes(1, 2)

    def all_queries(self, x: jax.Array) -> jax.Array:
        """Inverts `of_queries`: [groups, parts, heads, rows, ...] -> [H, Mq, ...]."""
        x = x.swapaxes(1, 2)
        x = x.reshape(-1, *x.shape[2:])
        return jax.vmap(lambda y: whole(y, self.rows))(x)

    def table(self, ids: jax.Array) -> jax.Array:
        """Splits a table [H, Mq, K] by kernel calls, with rows filled up with Mk.

        Returns [groups, parts, heads, rows, steps * entries].
        """
        pad = self.steps * self.entries - self.width
        ids = jnp.pad(ids, ((0, 0), (0, 0), (0, pad)), constant_values=self.columns)
        return self.of_queries(ids, self.columns)

    def map(self, call: Any, *x: jax.Array) -> Any:
        """Calls `call` for every group of heads and part of the query blocks.

        `call` gets the number of the group's first head, and for every x [groups, parts, ...] the
        entry of the group and part.
        """

        def group(args):
            head, *some = args
            return lax.map(lambda part: call(head, *part), tuple(some))

        heads = self.some_heads * jnp.arange(x[0].shape[0], dtype=jnp.int32)
        return lax.map(group, (heads, *x))


def _sparse(q: jax.Array, kv: jax.Array, words: jax.Array, ids: jax.Array, plan: Plan) -> jax.Array:
    """Computes softmax attention of every query block to its listed key blocks.

    Args:
        q: [H, Mq, q_block, D], 0 where it is padding.
        kv: [H, Mk, K_BLOCK, 2 D] of [v | k], 0 where they are padding.
        words: [B, (Mk + 1) * 2] int32 of `_words`.
        ids: [H, Mq, K] int32, as in `BlockTable`.
        plan: settings that are fixed.

    Returns:
        [H, Mq, q_block, D] in the dtype of q; 0 where no valid key is listed.
    """
    return _sparse_vjp(q, kv, words, ids, plan)


def _forward(q, kv, words, ids, plan):
    head_dim, size = q.shape[-1], q.shape[2]
    lanes = kernels.LANES
    q_pad = jnp.pad(q, ((0, 0), (0, 0), (0, 0), (lanes - head_dim, 0)))

    def call(head, q, ids):
        heads, rows = q.shape[:2]
        return _call(
            functools.partial(
                kernels.sla_forward,
                head_dim=head_dim,
                entries=plan.entries,
                product=plan.tiles.forward,
            ),
            (heads, rows, plan.steps),
            (ids.reshape(-1), words[head // plan.sequence_heads], head[None]),
            [(q, _row_spec(size, lanes)), *_key_blocks(kv, plan)],
            [
                (_like(q, head_dim), _row_spec(size, head_dim)),
                (jax.ShapeDtypeStruct((heads, rows, 1, size), jnp.float32), _row_spec(1, size)),
            ],
            [(size, lanes), (size, 1), (size, 1)],
            plan.interpret,
        )

    outputs = plan.map(call, plan.of_queries(q_pad), plan.table(ids))
    o, lse = (plan.all_queries(x) for x in outputs)
    return o, (q, kv, words, ids, o, lse)


def _backward(plan, residuals, do):
    q, kv, words, ids, o, lse = residuals
    delta = (do.astype(jnp.float32) * o.astype(jnp.float32)).sum(axis=-1)[:, :, None]
    stats = plan.of_queries(jnp.concatenate([lse, delta], axis=2))
    qdo = plan.of_queries(jnp.concatenate([do, q], axis=-1))
    dq = _query_gradient(qdo, stats, kv, words, plan.table(ids), plan)
    dkv = _key_gradient(qdo, stats, kv, plan.of_queries(ids, plan.columns), plan)
    return dq, dkv, None, None


_sparse_vjp = jax.custom_vjp(lambda *x: _forward(*x)[0], nondiff_argnums=(4,))
_sparse_vjp.defvjp(_forward, _backward)


def _query_gradient(qdo, stats, kv, words, table, plan):
    size, lanes = qdo.shape[-2:]
    head_dim = lanes // 2

    def call(head, qdo, stats, ids):
        heads, rows = qdo.shape[:2]
        [dq] = _call(
            functools.partial(
                kernels.sla_query_gradient,
                head_dim=head_dim,
                entries=plan.entries,
                product=plan.tiles.query_gradient,
            ),
            (heads, rows, plan.steps),
            (ids.reshape(-1), words[head // plan.sequence_heads], head[None]),
            [(qdo, _row_spec(size, lanes)), (stats, _row_spec(2, size)), *_key_blocks(kv, plan)],
            [(_like(qdo, kernels.LANES), _row_spec(size, kernels.LANES))],
            [(size, kernels.LANES), (size, 1), (size, 1)],
            plan.interpret,
        )
        return dq[..., kernels.LANES - head_dim :]

    return plan.all_queries(plan.map(call, qdo, stats, table))


def _key_gradient(qdo, stats, kv, ids, plan):
    """Computes the gradients of keys and values, as one array of [dv | dk].

    Sums over the parts of the queries are added up in float32, one after the other.
    """
    groups, parts, heads, _, size, lanes = qdo.shape
    dtype = qdo.dtype if parts == 1 else jnp.float32
    entries, columns, steps = plan.query_entries, plan.columns, plan.steps_of_keys
    shape = (heads, *kv.shape[1:])

    def key_block(h, t, rows, keys, starts, counts, head):
        return h, keys[h * steps + t], 0, 0

    def key_values(h, t, rows, keys, starts, counts, head):
        return head[0] + h, keys[h * steps + t], 0, 0

    def query_block(g, h, t, rows, keys, starts, counts, head):
        return h, rows[starts[h * steps + t] + g], 0, 0

    def call(head, qdo, stats, ids):
        queries = [functools.partial(query_block, g) for g in range(entries)]
        [dkv] = _call(
            functools.partial(
                kernels.sla_key_gradient,
                head_dim=lanes // 2,
                steps=steps,
                entries=entries,
                width=plan.tiles.key_gradient,
            ),
            (heads, steps),
            (*key_steps(BlockTable(ids[None], columns), steps, entries), head[None]),
            [
                (kv, pl.BlockSpec((None, None, *kv.shape[2:]), key_values)),
                *((qdo, pl.BlockSpec((None, None, size, lanes), at)) for at in queries),
                *((stats, pl.BlockSpec((None, None, 2, size), at)) for at in queries),
            ],
            [
                (
                    jax.ShapeDtypeStruct(shape, dtype),
                    pl.BlockSpec((None, None, *kv.shape[2:]), key_block),
                )
            ],
            [(K_BLOCK, kernels.LANES)] * 2,
            plan.interpret,
        )
        return dkv

    def group(args):
        head, *some = args
        if parts == 1:
            return call(head, *(x[0] for x in some))
        start = jnp.zeros(shape, jnp.float32)
        add = lambda total, part: (total + call(head, *part), None)  # noqa: E731
        return lax.scan(add, start, tuple(some))[0].astype(kv.dtype)

    first = heads * jnp.arange(groups, dtype=jnp.int32)
    return lax.map(group, (first, qdo, stats, ids)).reshape(kv.shape)


def key_steps(table: BlockTable, steps: int, entries: int) -> tuple[jax.Array, ...]:
    """Returns the steps of `kernels.sla_key_gradient` for a table [1, heads, rows, K].

    They are its arguments `rows`, `keys`, `starts` and `counts`. Every key block has at least one
    step, so that its gradient is written.
    """
    transposed = table.transpose()
    rows, offsets = transposed.rows[0], transposed.offsets[0]
    heads, length = rows.shape

    def one_head(rows, offsets, head):
        listed = offsets[1:] - offsets[:-1]
        first = jnp.cumsum(jnp.maximum(1, -(-listed // entries)))
        step = jnp.arange(steps, dtype=jnp.int32)
        key = jnp.minimum(jnp.searchsorted(first, step, side="right"), table.columns - 1)
        key = key.astype(jnp.int32)
        into = (step - jnp.where(key > 0, first[key - 1], 0)) * entries
        start = jnp.minimum(offsets[key] + into, length)
        count = jnp.clip(offsets[key + 1] - start, 0, entries)
        start = head * (length + entries) + start
        return jnp.pad(rows, (0, entries)), key, start, count

    made = jax.vmap(one_head)(rows, offsets, jnp.arange(heads, dtype=jnp.int32))
    return tuple(x.reshape(-1).astype(jnp.int32) for x in made)


def _key_blocks(kv: jax.Array, plan: Plan) -> list[tuple[jax.Array, pl.BlockSpec]]:
    """Returns inputs for the key blocks that a program's entries of the table name, one each."""

    def at(g, h, i, s, ids, words, head):
        place = ((h * plan.some_rows + i) * plan.steps + s) * plan.entries + g
        return head[0] + h, jnp.minimum(ids[place], plan.columns - 1), 0, 0

    block = (None, None, *kv.shape[2:])
    return [(kv, pl.BlockSpec(block, functools.partial(at, g))) for g in range(plan.entries)]


def _row_spec(size: int, lanes: int) -> pl.BlockSpec:
    """Returns the block spec of [heads, rows, size, lanes] for programs (heads, rows, steps)."""
    return pl.BlockSpec((None, None, size, lanes), lambda h, i, *_: (h, i, 0, 0))


def _like(x: jax.Array, lanes: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((*x.shape[:-1], lanes), x.dtype)


def _call(
    kernel: functools.partial,
    grid: tuple[int, ...],
    scalars: tuple[jax.Array, ...],
    inputs: list[tuple[jax.Array, pl.BlockSpec]],
    outputs: list[tuple[jax.ShapeDtypeStruct, pl.BlockSpec]],
    sums: list[tuple[int, int]],
    interpret: Any,
) -> list[jax.Array]:
    """Runs a kernel; programs of the grid's last axis run in order, others on any core.

    Args:
        kernel: called with refs of scalars, inputs, outputs and sums.
        grid: (heads, rows, steps) or (heads, steps).
        scalars: int32 arrays that are in scalar memory before the first program.
        inputs: (array, what a program gets of it).
        outputs: (array, what a program writes of it).
        sums: shapes of float32 arrays that stay from program to program.
        interpret: see `sla_tpu`.
    """
    return pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars),
            grid=grid,
            in_specs=[spec for _, spec in inputs],
            out_specs=[spec for _, spec in outputs],
            scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in sums],
        ),
        out_shape=[shape for shape, _ in outputs],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=(*[pltpu.PARALLEL] * (len(grid) - 1), pltpu.ARBITRARY)
        ),
        interpret=interpret,
        name=kernel.func.__name__,
    )(*scalars, *(x for x, _ in inputs))
