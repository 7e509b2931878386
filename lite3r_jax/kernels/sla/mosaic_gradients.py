"""Gradient kernels of SLA's softmax part for Hopper GPUs: Pallas Mosaic GPU, TMA and wgmma.

As in `mosaic_kernels`, two warpgroups multiply what a third one fetches by TMA. P and dS go through
shared memory, since the interpreter that proves the numbers takes both operands of a product from
there; the gradients add up in the registers of wgmma from the first step to the last.
Formulas: SLA, arXiv 2509.24006, Algorithm 2; FlashAttention, arXiv 2205.14135.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from lite3r_jax.kernels.block_map.table import BlockTable, Transposed
from lite3r_jax.kernels.order import LongFirst
from lite3r_jax.kernels.sla.limits import K_BLOCK
from lite3r_jax.kernels.sla.limits import MOSAIC_Q_BLOCK as Q_BLOCK
from lite3r_jax.kernels.sla.mosaic_kernels import (
    LAYOUT,
    ROWS,
    WORKERS,
    column,
    divide,
    fetch_all,
    launched,
    loaded,
    place,
    product,
    row,
    tile,
)
from lite3r_jax.kernels.softmax import LOG2E

# Pairs of key and value blocks in shared memory: 115 KiB in all for D = 64, 211 KiB for D = 128.
_KEY_STAGES = 4
_ACC = plgpu.ACC  # pyright: ignore[reportPrivateImportUsage]


def query_gradient(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    bias: jax.Array,
    table: BlockTable,
    do: jax.Array,
    o: jax.Array,
    lse: jax.Array,
    *,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Computes the gradient of the queries, one query block per program.

    A program adds up the gradient from the listed key blocks of its query block.

    Args:
        q: [B, Mq * 128, N, D] bfloat16 or float16, 0 where it is padding, as do.
        k: [B, Mk * 64, N, D], as v.
        v: [B, Mk * 64, N, D].
        bias: [B, Mk * 64] float32, 0 for valid keys and `MASKED` for others.
        table: the key blocks of each query block.
        do: gradient of the output.
        o: the output [B, Mq * 128, N, D], float32 for exact gradients.
        lse: [B, N, Mq * 128] float32, log-sum-exp in base 2.
        interpret: run the code on any device, slowly.

    Returns:
        dq [B, Mq * 128, N, D] in the dtype of q, and delta [B, N, Mq * 128] float32, the sums of
        do * o over channels. XLA computes delta: beside key blocks there is no room for o.
    """
    b, tokens, n, _ = q.shape
    delta = (do.astype(jnp.float32) * o.astype(jnp.float32)).sum(axis=-1).transpose(0, 2, 1)
    order = LongFirst(n, 0, tokens // Q_BLOCK)
    output = jax.ShapeDtypeStruct(q.shape, q.dtype)
    run = launched(sla_mosaic_query_gradient, output, order, b, interpret)
    return run(q, k, v, bias, table.ids, table.counts, do, lse, delta), delta


def key_gradient(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    bias: jax.Array,
    transposed: Transposed,
    do: jax.Array,
    lse: jax.Array,
    delta: jax.Array,
    *,
    full_columns: int = 0,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Computes the gradients of keys and values, one key block per program.

    A program adds up the gradients from the query blocks that list its key block. One warpgroup
    has the first half of every query block and the other the second; at the end one adds up the
    gradient of the keys and the other that of the values.

    Args:
        q: [B, Mq * 128, N, D] bfloat16 or float16, 0 where it is padding, as do.
        k: [B, Mk * 64, N, D], as v.
        v: [B, Mk * 64, N, D].
        bias: [B, Mk * 64] float32, 0 for valid keys and `MASKED` for others.
        transposed: the query blocks of each key block.
        do: gradient of the output.
        lse: [B, N, Mq * 128] float32, log-sum-exp in base 2.
        delta: [B, N, Mq * 128] float32, of `query_gradient`.
        full_columns: so many key blocks at the start are listed by every query block; their
            programs start first.
        interpret: run the code on any device, slowly.

    Returns:
        dk and dv [B, Mk * 64, N, D] in the dtypes of k and v.
    """
    b, tokens, n, _ = k.shape
    outputs = jax.ShapeDtypeStruct(k.shape, k.dtype), jax.ShapeDtypeStruct(v.shape, v.dtype)
    order = LongFirst(n, full_columns, tokens // K_BLOCK - full_columns)
    run = launched(sla_mosaic_key_gradient, outputs, order, b, interpret)
    dk, dv = run(q, k, v, bias, transposed.rows, transposed.offsets, do, lse, delta)
    return dk, dv


def sla_mosaic_query_gradient(
    q_ref, k_ref, v_ref, bias_ref, ids_ref, counts_ref, do_ref, lse_ref, delta_ref, dq_ref,
    *, order, interpret,
):  # fmt: skip
    """Computes the gradient of one query block; refs are whole arrays."""
    d, dtype = q_ref.shape[-1], q_ref.dtype
    scale = d**-0.5

    def body(q, do, k, v, bias, ds, lse, delta, own, full, empty):
        sequence, head, block = at = place(order)
        count = counts_ref[at]

        def work(group):
            rows = pl.ds(block * Q_BLOCK + group * ROWS, ROWS)
            for source, target in ((q_ref, q), (do_ref, do)):
                plgpu.copy_gmem_to_smem(
                    source.at[sequence, rows, head], target.at[group], own.at[group]
                )
            for source, target in ((lse_ref, lse), (delta_ref, delta)):
                plgpu.copy_gmem_to_smem(
                    source.at[sequence, head, rows], target.at[group], own.at[group]
                )
            plgpu.barrier_wait(own.at[group])
            top, less = column(lse.at[group], interpret), column(delta.at[group], interpret)

            def over_keys(dq):
                def add(step, _):
                    slot = lax.rem(step, jnp.int32(_KEY_STAGES))
                    plgpu.barrier_wait(full.at[slot])
                    keys, values = (x.at[slot].transpose((1, 0)) for x in (k, v))
                    s = product(q.at[group], keys, (ROWS, K_BLOCK)) * (LOG2E * scale)
                    s += lax.broadcast_in_dim(row(bias.at[slot], interpret), s.shape, [1])
                    p = jnp.exp2(s - lax.broadcast_in_dim(top, s.shape, [0]))
                    dp = product(do.at[group], values, s.shape)
                    dp = p * (dp - lax.broadcast_in_dim(less, s.shape, [0]))
                    ds.at[group][...] = dp.astype(dtype)
                    plgpu.commit_smem()
                    plgpu.wgmma(dq, ds.at[group], k.at[slot])
                    plgpu.wgmma_wait(0)
                    plgpu.barrier_arrive(empty.at[slot])

                lax.fori_loop(0, count, add, None)
                return dq[...]

            dq = pl.run_scoped(over_keys, _ACC((ROWS, d), jnp.float32))
            q.at[group][...] = (dq * scale).astype(dtype)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(q.at[group], dq_ref.at[sequence, rows, head])
            plgpu.wait_smem_to_gmem(0)

        def fetch():
            def one(step, slot):
                rows = pl.ds(ids_ref[(*at, step)] * K_BLOCK, K_BLOCK)
                for source, target in (
                    (k_ref.at[sequence, rows, head], k),
                    (v_ref.at[sequence, rows, head], v),
                    (bias_ref.at[sequence, rows], bias),
                ):
                    plgpu.copy_gmem_to_smem(source, target.at[slot], full.at[slot])

            fetch_all(one, count, _KEY_STAGES, empty)

        divide(work, fetch)

    pl.run_scoped(
        body,
        tile(dtype, WORKERS, ROWS, d),
        tile(dtype, WORKERS, ROWS, d),
        tile(dtype, _KEY_STAGES, K_BLOCK, d),
        tile(dtype, _KEY_STAGES, K_BLOCK, d),
        plgpu.SMEM((_KEY_STAGES, K_BLOCK), jnp.float32),
        tile(dtype, WORKERS, ROWS, K_BLOCK),
        plgpu.SMEM((WORKERS, ROWS), jnp.float32),
        plgpu.SMEM((WORKERS, ROWS), jnp.float32),
        plgpu.Barrier(num_arrivals=4, num_barriers=WORKERS),
        plgpu.Barrier(num_arrivals=3, num_barriers=_KEY_STAGES),
        plgpu.Barrier(num_arrivals=WORKERS, num_barriers=_KEY_STAGES),
        collective_axes="group",
    )


def sla_mosaic_key_gradient(
    q_ref, k_ref, v_ref, bias_ref, rows_ref, offsets_ref, do_ref, lse_ref, delta_ref,
    dk_ref, dv_ref, *, order, interpret,
):  # fmt: skip
    """Computes the gradients of one block of keys and values; refs are whole arrays."""
    d, dtype = q_ref.shape[-1], q_ref.dtype
    scale = d**-0.5
    # Query blocks with what belongs to them: 181 KiB in all for D = 64, 211 KiB for D = 128.
    stages = 2 if d > 64 else 4

    def body(k, v, bias, q, do, lse, delta, p, half, own, full, empty, passed):
        sequence, head, block = place(order)
        first = offsets_ref[sequence, head, block]
        count = offsets_ref[sequence, head, block + 1] - first
        rows = pl.ds(block * K_BLOCK, K_BLOCK)

        def work(group):
            plgpu.barrier_wait(own)
            mask = column(bias, interpret)
            mine = pl.ds(group * ROWS, ROWS)

            def over_queries(dk, dv):
                def add(step, _):
                    slot = lax.rem(step, jnp.int32(stages))
                    plgpu.barrier_wait(full.at[slot])
                    some, up = q.at[slot, mine], do.at[slot, mine]
                    s = product(k, some.transpose((1, 0)), (K_BLOCK, ROWS)) * (LOG2E * scale)
                    s += lax.broadcast_in_dim(mask, s.shape, [0])
                    top = row(lse.at[slot, mine], interpret)
                    weight = jnp.exp2(s - lax.broadcast_in_dim(top, s.shape, [1]))
                    p.at[group][...] = weight.astype(dtype)
                    plgpu.commit_smem()
                    plgpu.wgmma(dv, p.at[group], up)
                    # Reading this product waits for that one too, and so frees p for dS.
                    ds = product(v, up.transpose((1, 0)), s.shape)
                    less = row(delta.at[slot, mine], interpret)
                    ds = weight * (ds - lax.broadcast_in_dim(less, s.shape, [1]))
                    p.at[group][...] = ds.astype(dtype)
                    plgpu.commit_smem()
                    plgpu.wgmma(dk, p.at[group], some)
                    plgpu.wgmma_wait(0)
                    plgpu.barrier_arrive(empty.at[slot])

                lax.fori_loop(0, count, add, None)
                return dk[...], dv[...]

            accumulator = _ACC((K_BLOCK, d), jnp.float32)
            dk, dv = pl.run_scoped(over_queries, accumulator, accumulator)

            def give(x, number):
                half[...] = x
                plgpu.commit_smem()
                plgpu.barrier_arrive(passed.at[number])

            def finish(x, number, target, out_ref, factor):
                plgpu.barrier_wait(passed.at[number])
                x += half[...] if interpret else loaded(half, LAYOUT)
                target[...] = (x * factor).astype(dtype)
                plgpu.commit_smem()
                plgpu.copy_smem_to_gmem(target, out_ref.at[sequence, rows, head])

            # The other has read keys and values for the last time when it gives its half.
            @pl.when(group == 0)
            def keys():
                finish(dk, 0, k, dk_ref, scale)
                give(dv, 1)

            @pl.when(group == 1)
            def values():
                give(dk, 0)
                finish(dv, 1, v, dv_ref, 1.0)

            plgpu.wait_smem_to_gmem(0)

        def fetch():
            for source, target in (
                (k_ref.at[sequence, rows, head], k),
                (v_ref.at[sequence, rows, head], v),
                (bias_ref.at[sequence, rows], bias),
            ):
                plgpu.copy_gmem_to_smem(source, target, own)

            def one(step, slot):
                number = rows_ref[sequence, head, first + step]
                queries = pl.ds(number * Q_BLOCK, Q_BLOCK)
                for source, target in (
                    (q_ref.at[sequence, queries, head], q),
                    (do_ref.at[sequence, queries, head], do),
                    (lse_ref.at[sequence, head, queries], lse),
                    (delta_ref.at[sequence, head, queries], delta),
                ):
                    plgpu.copy_gmem_to_smem(source, target.at[slot], full.at[slot])

            fetch_all(one, count, stages, empty)

        divide(work, fetch)

    pl.run_scoped(
        body,
        tile(dtype, K_BLOCK, d),
        tile(dtype, K_BLOCK, d),
        plgpu.SMEM((K_BLOCK,), jnp.float32),
        tile(dtype, stages, Q_BLOCK, d),
        tile(dtype, stages, Q_BLOCK, d),
        plgpu.SMEM((stages, Q_BLOCK), jnp.float32),
        plgpu.SMEM((stages, Q_BLOCK), jnp.float32),
        tile(dtype, WORKERS, K_BLOCK, ROWS),
        tile(jnp.float32, K_BLOCK, d),
        plgpu.Barrier(num_arrivals=3),
        plgpu.Barrier(num_arrivals=4, num_barriers=stages),
        plgpu.Barrier(num_arrivals=WORKERS, num_barriers=stages),
        plgpu.Barrier(num_barriers=2),
        collective_axes="group",
    )
