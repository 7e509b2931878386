"""The forward kernel for Hopper GPUs: Pallas' Mosaic GPU lowering, TMA and wgmma."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from lite3r_jax.kernels.block_map.table import BlockTable
from lite3r_jax.kernels.sla.limits import K_BLOCK
from lite3r_jax.kernels.sla.limits import MOSAIC_Q_BLOCK as Q_BLOCK
from lite3r_jax.kernels.softmax import LOG2E, LOWEST

# Rows of a warpgroup's wgmma, and warpgroups that have some; one more fetches keys and values.
ROWS, WORKERS = 64, Q_BLOCK // 64
# Pairs of key and value blocks in shared memory: 97 KiB for D = 64, 177 KiB for D = 128.
_STAGES = 4
# Per thread. Three warpgroups have 168 each at first; workers take from the one that fetches.
WORK_REGISTERS, FETCH_REGISTERS = 232, 40
LAYOUT = plgpu.Layout.WGMMA


def forward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    bias: jax.Array,
    table: BlockTable,
    interpret: Any = None,
) -> tuple[jax.Array, jax.Array]:
    """Softmax attention of every query block to its listed key blocks.

    A program has one query block: two warpgroups with 64 rows each share the key and value blocks
    that a third one fetches ahead of them. As FlashAttention-3 (arXiv 2407.08608) but for the table
    and without its ping-pong; probabilities go through shared memory, which the interpreter of the
    proof needs.

    Args:
        q: [B, Mq * 128, N, D], 0 where it is padding.
        k: [B, Mk * 64, N, D].
        v: [B, Mk * 64, N, D].
        bias: [B, Mk * 64] float32, as in `triton_kernels`.
        table: the key blocks of each query block.
        interpret: parameters of the interpreter.

    Returns:
        Output [B, Mq * 128, N, D] in the dtype of v and log-sum-exp in base 2 [B, N, Mq * 128], as
        of `triton_kernels.sla_forward`.
    """
    b, tokens, n, _ = q.shape
    run = plgpu.kernel(
        functools.partial(sla_mosaic_forward, dtype=q.dtype, interpret=interpret is not None),
        out_type=(
            jax.ShapeDtypeStruct(q.shape, v.dtype),
            jax.ShapeDtypeStruct((b, n, tokens), jnp.float32),
        ),
        grid=(tokens // Q_BLOCK, n, b),
        grid_names=("block", "head", "sequence"),
        num_threads=WORKERS + 1,
        thread_name="group",
        compiler_params=plgpu.CompilerParams(approx_math=True),
        **({} if interpret is None else {"interpret": interpret}),
    )
    o, lse = run(q, k, v, bias, table.ids, table.counts)
    return o, lse


def interpreted(*args) -> tuple[jax.Array, jax.Array]:
    """`forward` on any device, slowly."""
    # Not there before jax 0.11.
    params = plgpu.InterpretGPUParams()  # pyright: ignore[reportAttributeAccessIssue]
    return forward(*args, interpret=params)


def sla_mosaic_forward(
    q_ref, k_ref, v_ref, bias_ref, ids_ref, counts_ref, o_ref, lse_ref, *, dtype, interpret
):
    """One query block; refs are whole arrays."""
    d = q_ref.shape[-1]

    def tile(*shape):
        transforms = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))
        return plgpu.SMEM(shape, dtype, transforms=transforms)

    def body(q, k, v, bias, p, lse, q_in, k_in, v_in, k_out, v_out):
        at = tuple(lax.axis_index(name) for name in ("sequence", "head", "block"))
        group = lax.axis_index("group")
        count = counts_ref[at]
        sequence, head, block = at

        @pl.when(group < WORKERS)
        def work():
            plgpu.set_max_registers(WORK_REGISTERS, action="increase")
            rows = pl.ds(block * Q_BLOCK + group * ROWS, ROWS)
            plgpu.copy_gmem_to_smem(q_ref.at[sequence, rows, head], q.at[group], q_in.at[group])
            plgpu.barrier_wait(q_in.at[group])

            def fold(step, carry):
                top, total, acc = carry
                slot = lax.rem(step, jnp.int32(_STAGES))
                plgpu.barrier_wait(k_in.at[slot])
                keys = k.at[slot].transpose((1, 0))
                s = product(q.at[group], keys, (ROWS, K_BLOCK)) * (LOG2E * d**-0.5)
                s += lax.broadcast_in_dim(row(bias.at[slot], interpret), s.shape, [1])
                plgpu.barrier_arrive(k_out.at[slot])
                new = jnp.maximum(top, s.max(axis=1))
                probability = jnp.exp2(s - lax.broadcast_in_dim(new, s.shape, [0]))
                shrink = jnp.exp2(top - new)
                p.at[group][...] = probability.astype(dtype)
                plgpu.commit_smem()
                plgpu.barrier_wait(v_in.at[slot])
                acc *= lax.broadcast_in_dim(shrink, acc.shape, [0])
                acc += product(p.at[group], v.at[slot], acc.shape)
                plgpu.barrier_arrive(v_out.at[slot])
                return new, total * shrink + probability.sum(axis=1), acc

            start = (
                full((ROWS,), LOWEST, interpret),
                full((ROWS,), 0.0, interpret),
                full((ROWS, d), 0.0, interpret),
            )
            top, total, acc = lax.fori_loop(0, count, fold, start)
            total = jnp.where(total > 0, total, 1.0)
            acc /= lax.broadcast_in_dim(total, acc.shape, [0])
            q.at[group][...] = acc.astype(dtype)
            lse.at[group][...] = top + jnp.log(total) * LOG2E
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(q.at[group], o_ref.at[sequence, rows, head])
            plgpu.copy_smem_to_gmem(lse.at[group], lse_ref.at[sequence, head, rows])
            plgpu.wait_smem_to_gmem(0)

        @pl.when(group == WORKERS)
        def fetch():
            plgpu.set_max_registers(FETCH_REGISTERS, action="decrease")

            def free(step, _=None):
                slot = lax.rem(step, jnp.int32(_STAGES))
                plgpu.barrier_wait(k_out.at[slot])
                plgpu.barrier_wait(v_out.at[slot])

            def one(step, _):
                pl.when(step >= _STAGES)(lambda: free(step))
                slot = lax.rem(step, jnp.int32(_STAGES))
                rows = pl.ds(ids_ref[(*at, step)] * K_BLOCK, K_BLOCK)
                plgpu.copy_gmem_to_smem(k_ref.at[sequence, rows, head], k.at[slot], k_in.at[slot])
                plgpu.copy_gmem_to_smem(bias_ref.at[sequence, rows], bias.at[slot], k_in.at[slot])
                plgpu.copy_gmem_to_smem(v_ref.at[sequence, rows, head], v.at[slot], v_in.at[slot])

            lax.fori_loop(0, count, one, None)
            # No barrier may be left that nobody has waited for.
            lax.fori_loop(jnp.maximum(count - _STAGES, 0), count, free, None)

    pl.run_scoped(
        body,
        tile(WORKERS, ROWS, d),
        tile(_STAGES, K_BLOCK, d),
        tile(_STAGES, K_BLOCK, d),
        plgpu.SMEM((_STAGES, K_BLOCK), jnp.float32),
        tile(WORKERS, ROWS, K_BLOCK),
        plgpu.SMEM((WORKERS, ROWS), jnp.float32),
        plgpu.Barrier(num_barriers=WORKERS),
        plgpu.Barrier(num_arrivals=2, num_barriers=_STAGES),
        plgpu.Barrier(num_barriers=_STAGES),
        plgpu.Barrier(num_arrivals=WORKERS, num_barriers=_STAGES),
        plgpu.Barrier(num_arrivals=WORKERS, num_barriers=_STAGES),
        collective_axes="group",
    )


def product(x, y, shape):
    """x @ y of two refs, in float32."""

    def multiply(acc):
        plgpu.wgmma(acc, x, y)
        return acc[...]

    return pl.run_scoped(multiply, plgpu.ACC(shape, jnp.float32))  # pyright: ignore[reportPrivateImportUsage]


def row(ref, interpret: bool) -> jax.Array:
    """A vector that runs along the columns of a product. The interpreter knows no layouts."""
    if interpret:
        return ref[...]
    index = ((),) if jax.__version_info__ < (0, 11) else ()  # deprecated in 0.11
    return plgpu.load(ref, *index, layout=LAYOUT.reduce(0))


def full(shape: tuple[int, ...], value: float, interpret: bool) -> jax.Array:
    """A constant in the layout of products, or of their rows."""
    x = jnp.full(shape, value, jnp.float32)
    layout = LAYOUT if len(shape) == 2 else LAYOUT.reduce(1)
    return x if interpret else plgpu.layout_cast(x, layout)
