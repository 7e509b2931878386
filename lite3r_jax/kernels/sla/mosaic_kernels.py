"""Forward kernel of SLA's softmax part for Hopper GPUs: Pallas Mosaic GPU, TMA and wgmma."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from lite3r_jax.kernels.block_map.table import BlockTable
from lite3r_jax.kernels.order import LongFirst
from lite3r_jax.kernels.sla.limits import K_BLOCK
from lite3r_jax.kernels.sla.limits import MOSAIC_Q_BLOCK as Q_BLOCK
from lite3r_jax.kernels.softmax import LOG2E, LOWEST

# Rows of a warpgroup's wgmma, and warpgroups that have some; one more fetches keys and values.
ROWS, WORKERS = 64, Q_BLOCK // 64
# Per thread. Three warpgroups have 168 each at first; workers take from the one that fetches.
WORK_REGISTERS, FETCH_REGISTERS = 232, 40
LAYOUT = plgpu.Layout.WGMMA


def forward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    bias: jax.Array,
    table: BlockTable,
    dtype: Any,
    *,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Computes softmax attention of every query block to its listed key blocks.

    A program has one query block: two warpgroups with 64 rows each share the key and value blocks
    that a third one fetches ahead of them. As FlashAttention-3 (arXiv 2407.08608) but for the table
    and without its ping-pong; probabilities go through shared memory, which the interpreter that
    proves the numbers needs.

    Args:
        q: [B, Mq * 128, N, D], 0 where it is padding.
        k: [B, Mk * 64, N, D].
        v: [B, Mk * 64, N, D].
        bias: [B, Mk * 64] float32, 0 for valid keys and `MASKED` for others.
        table: the key blocks of each query block.
        dtype: of the output: that of v, or float32 for the gradient.
        interpret: run the code on any device, slowly.

    Returns:
        Output [B, Mq * 128, N, D] and log-sum-exp in base 2 [B, N, Mq * 128] float32.
    """
    b, tokens, n, _ = q.shape
    outputs = (
        jax.ShapeDtypeStruct(q.shape, dtype),
        jax.ShapeDtypeStruct((b, n, tokens), jnp.float32),
    )
    order = LongFirst(n, 0, tokens // Q_BLOCK)
    run = launched(sla_mosaic_forward, outputs, order, b, interpret)
    o, lse = run(q, k, v, bias, table.ids, table.counts)
    return o, lse


def launched(
    kernel: Callable[..., None], outputs: Any, order: LongFirst, sequences: int, interpret: bool
) -> Callable[..., Any]:
    """Returns a kernel as a function of arrays, with `WORKERS` + 1 warpgroups per program.

    `WORKERS` warpgroups multiply and one more fetches.

    Args:
        kernel: takes references to whole arrays, those of the outputs last, and `order` and
            `interpret`; a program finds its block by `place`.
        outputs: shapes and dtypes of the outputs.
        order: of programs over blocks and heads N.
        sequences: B.
        interpret: run the code on any device, slowly.
    """
    body = functools.partial(kernel, order=order, interpret=interpret)
    functools.update_wrapper(body, kernel)  # profiles show its name
    return plgpu.kernel(
        body,
        out_type=outputs,
        # Programs start in the order of the last number.
        grid=(sequences, order.heads * (order.long + order.rest)),
        grid_names=("sequence", "program"),
        num_threads=WORKERS + 1,
        thread_name="group",
        compiler_params=plgpu.CompilerParams(approx_math=True),
        # Not there before jax 0.11.
        **({"interpret": plgpu.InterpretGPUParams()} if interpret else {}),  # pyright: ignore[reportAttributeAccessIssue]
    )


def place(order: LongFirst) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the sequence, head and block of this program."""
    block, head = order.split(lax.axis_index("program"))
    return lax.axis_index("sequence"), head, block


def divide(work: Callable[[Any], None], fetch: Callable[[], None]) -> None:
    """Runs `work` in `WORKERS` warpgroups, each with its number, and `fetch` in one more.

    The warpgroups that work wait for registers that the one that fetches gives away.
    """
    group = lax.axis_index("group")

    @pl.when(group < WORKERS)
    def works():
        plgpu.set_max_registers(WORK_REGISTERS, action="increase")
        work(group)

    @pl.when(group == WORKERS)
    def fetches():
        plgpu.set_max_registers(FETCH_REGISTERS, action="decrease")
        fetch()


def tile(dtype: Any, *shape: int) -> Any:
    """Returns a buffer of rows in shared memory, tiled and swizzled as TMA and wgmma take them."""
    line = 128 // jnp.dtype(dtype).itemsize
    transforms = plgpu.TilingTransform((8, line)), plgpu.SwizzleTransform(128)
    return plgpu.SMEM(shape, dtype, transforms=transforms)


def sla_mosaic_forward(
    q_ref, k_ref, v_ref, bias_ref, ids_ref, counts_ref, o_ref, lse_ref, *, order, interpret
):
    """Computes output and log-sum-exp of one query block; refs are whole arrays."""
    d, dtype = q_ref.shape[-1], q_ref.dtype
    # An output in the dtype of queries goes where they were. One in float32 has a place of its own,
    # for which there is room beside three pairs of key and value blocks of D = 128, not four.
    wide = o_ref.dtype != dtype
    stages = 3 if wide and d > 64 else 4

    def body(q, k, v, bias, p, lse, o, q_in, k_in, v_in, k_out, v_out):
        sequence, head, block = at = place(order)
        count = counts_ref[at]

        def work(group):
            rows = pl.ds(block * Q_BLOCK + group * ROWS, ROWS)
            plgpu.copy_gmem_to_smem(q_ref.at[sequence, rows, head], q.at[group], q_in.at[group])
            plgpu.barrier_wait(q_in.at[group])

            def fold(step, carry):
                top, total, acc = carry
                slot = lax.rem(step, jnp.int32(stages))
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
            out = o if wide else q
            out.at[group][...] = acc.astype(o_ref.dtype)
            lse.at[group][...] = top + jnp.log(total) * LOG2E
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(out.at[group], o_ref.at[sequence, rows, head])
            plgpu.copy_smem_to_gmem(lse.at[group], lse_ref.at[sequence, head, rows])
            plgpu.wait_smem_to_gmem(0)

        def fetch():
            def one(step, slot):
                rows = pl.ds(ids_ref[(*at, step)] * K_BLOCK, K_BLOCK)
                plgpu.copy_gmem_to_smem(k_ref.at[sequence, rows, head], k.at[slot], k_in.at[slot])
                plgpu.copy_gmem_to_smem(bias_ref.at[sequence, rows], bias.at[slot], k_in.at[slot])
                plgpu.copy_gmem_to_smem(v_ref.at[sequence, rows, head], v.at[slot], v_in.at[slot])

            fetch_all(one, count, stages, k_out, v_out)

        divide(work, fetch)

    pl.run_scoped(
        body,
        tile(dtype, WORKERS, ROWS, d),
        tile(dtype, stages, K_BLOCK, d),
        tile(dtype, stages, K_BLOCK, d),
        plgpu.SMEM((stages, K_BLOCK), jnp.float32),
        tile(dtype, WORKERS, ROWS, K_BLOCK),
        plgpu.SMEM((WORKERS, ROWS), jnp.float32),
        tile(o_ref.dtype, WORKERS, ROWS, d) if wide else None,
        plgpu.Barrier(num_barriers=WORKERS),
        plgpu.Barrier(num_arrivals=2, num_barriers=stages),
        plgpu.Barrier(num_barriers=stages),
        plgpu.Barrier(num_arrivals=WORKERS, num_barriers=stages),
        plgpu.Barrier(num_arrivals=WORKERS, num_barriers=stages),
        collective_axes="group",
    )


def fetch_all(one: Callable[[Any, Any], None], count: Any, stages: int, *empty: Any) -> None:
    """Calls `one(step, slot)` for `count` steps, each when its slot is free again.

    `empty` are the barriers of the slots at which the warpgroups that multiply arrive.
    """

    def free(step, _=None):
        for barrier in empty:
            plgpu.barrier_wait(barrier.at[lax.rem(step, jnp.int32(stages))])

    def fetch(step, _):
        pl.when(step >= stages)(lambda: free(step))
        one(step, lax.rem(step, jnp.int32(stages)))

    lax.fori_loop(0, count, fetch, None)
    # No barrier may be left that nobody has waited for.
    lax.fori_loop(jnp.maximum(count - stages, 0), count, free, None)


def product(x, y, shape):
    """Returns x @ y of two refs, in float32."""

    def multiply(acc):
        plgpu.wgmma(acc, x, y)
        return acc[...]

    return pl.run_scoped(multiply, plgpu.ACC(shape, jnp.float32))  # pyright: ignore[reportPrivateImportUsage]


def row(ref, interpret: bool) -> jax.Array:
    """Loads a vector with an element per column of a product. The interpreter knows no layouts."""
    return ref[...] if interpret else loaded(ref, LAYOUT.reduce(0))


def column(ref, interpret: bool) -> jax.Array:
    """Loads a vector with an element per row of a product."""
    return ref[...] if interpret else loaded(ref, LAYOUT.reduce(1))


def loaded(ref, layout: Any) -> jax.Array:
    """Loads shared memory, spread over a warpgroup's registers as `layout` says."""
    index = ((),) if jax.__version_info__ < (0, 11) else ()  # deprecated in 0.11
    return plgpu.load(ref, *index, layout=layout)


def full(shape: tuple[int, ...], value: float, interpret: bool) -> jax.Array:
    """Returns an array of a constant in the layout of products, or for a vector, of their rows."""
    x = jnp.full(shape, value, jnp.float32)
    layout = LAYOUT if len(shape) == 2 else LAYOUT.reduce(1)
    return x if interpret else plgpu.layout_cast(x, layout)
