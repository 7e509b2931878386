"""The float8 product for Hopper GPUs: Pallas' Mosaic GPU lowering, TMA and wgmma on float8."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from lite3r_jax.kernels.fp8.tiles import COLUMNS, INPUTS, ROWS, ProductTiles

# Warpgroups that multiply, 64 rows of a tile each; one more fetches operands.
_WORKERS, _HEIGHT = 2, ROWS // 2
# Per thread. Three warpgroups have 168 each at first; workers take from the one that fetches.
_WORK_REGISTERS, _FETCH_REGISTERS = 232, 40
# Scales and biases of this tile and of the next.
_EDGES = 2
_LAYOUT = plgpu.Layout.WGMMA


def product(
    x: jax.Array,
    x_scale: jax.Array,
    w: jax.Array,
    w_scale: jax.Array,
    bias: jax.Array,
    *,
    rows: int,
    dtype: Any,
    tiles: ProductTiles,
    interpret: bool = False,
) -> jax.Array:
    """Computes (x w^T) * x_scale * w_scale + bias for float8 codes x and w.

    A program computes one tile after the other; while it writes one, its third warpgroup already
    fetches for the next. Tiles beside each other in a row of the result are computed at the same
    time, so that they find the same rows of x in the L2 cache, where w is in any case. What of the
    last tiles is outside of an array, TMA reads as 0 and does not write.

    Args:
        x: [>= rows, K] codes.
        x_scale: [rows] float32.
        w: [N, K] codes.
        w_scale: [N] float32.
        bias: [N], float32 or bfloat16.
        rows: M, a multiple of 8 and at least `tiles.ROWS`.
        dtype: of the result.
        tiles: how the result is cut.
        interpret: run the code on any device, slowly.

    Returns:
        [rows, N].
    """
    outputs, _ = w.shape
    run = plgpu.kernel(
        functools.partial(fp8_product, tiles=tiles, interpret=interpret),
        out_type=jax.ShapeDtypeStruct((rows, outputs), dtype),
        grid=(tiles.programs,),
        grid_names=("program",),
        num_threads=_WORKERS + 1,
        thread_name="group",
        compiler_params=plgpu.CompilerParams(approx_math=True),
        # Not there before jax 0.11.
        **({"interpret": plgpu.InterpretGPUParams()} if interpret else {}),  # pyright: ignore[reportAttributeAccessIssue]
    )
    return run(x, x_scale, w, w_scale, bias)


def fp8_product(x_ref, x_scale_ref, w_ref, w_scale_ref, bias_ref, y_ref, *, tiles, interpret):
    """Computes every `programs`-th tile of the result; refs are whole arrays."""
    height, width = y_ref.shape[0], tiles.columns
    across = y_ref.shape[1] // width
    number = -(-height // ROWS) * across
    steps = w_ref.shape[1] // INPUTS
    parts = width // COLUMNS
    lanes = 128 // jnp.dtype(y_ref.dtype).itemsize

    def tile(*shape, dtype, line):
        transforms = (plgpu.TilingTransform((8, line)), plgpu.SwizzleTransform(128))
        return plgpu.SMEM(shape, dtype, transforms=transforms)

    def body(x, w, y, x_scale, w_scale, bias, full, empty, edge_full, edge_empty):
        program, group = lax.axis_index("program"), lax.axis_index("group")
        mine = lax.div(number - 1 - program, jnp.int32(tiles.programs)) + 1

        def corner(i):
            """Returns the first row and column of this program's tile i."""
            at = program + i * tiles.programs
            return lax.div(at, jnp.int32(across)) * ROWS, lax.rem(at, jnp.int32(across)) * width

        @pl.when(group < _WORKERS)
        def work():
            plgpu.set_max_registers(_WORK_REGISTERS, action="increase")
            own = pl.ds(group * _HEIGHT, _HEIGHT)

            def one(i, _):
                def add(step, sums):
                    slot = lax.rem(i * steps + step, jnp.int32(tiles.stages))
                    plgpu.barrier_wait(full.at[slot])
                    sums = tuple(
                        total
                        + _product(x.at[slot, own], w.at[slot, pl.ds(part * COLUMNS, COLUMNS)])
                        for part, total in enumerate(sums)
                    )
                    plgpu.barrier_arrive(empty.at[slot])
                    return sums

                sums = lax.fori_loop(0, steps, add, (_zeros(interpret),) * parts)
                edge = lax.rem(i, jnp.int32(_EDGES))
                plgpu.barrier_wait(edge_full.at[edge])
                of_rows = _vector(x_scale.at[edge, own], 1, interpret)
                # The tile before may still be on its way out.
                plgpu.wait_smem_to_gmem(0, wait_read_only=True)
                row, column = corner(i)
                for part, total in enumerate(sums):
                    columns = pl.ds(part * COLUMNS, COLUMNS)
                    of_columns = _vector(w_scale.at[edge, columns], 0, interpret)
                    offset = _vector(bias.at[edge, columns], 0, interpret).astype(jnp.float32)
                    total *= lax.broadcast_in_dim(of_rows, total.shape, [0])
                    total *= lax.broadcast_in_dim(of_columns, total.shape, [1])
                    total += lax.broadcast_in_dim(offset, total.shape, [1])
                    y.at[group, part][...] = total.astype(y_ref.dtype)
                    plgpu.commit_smem()
                    plgpu.copy_smem_to_gmem(
                        y.at[group, part],
                        y_ref.at[
                            pl.ds(row + group * _HEIGHT, _HEIGHT),
                            pl.ds(column + part * COLUMNS, COLUMNS),
                        ],
                    )
                plgpu.barrier_arrive(edge_empty.at[edge])

            lax.fori_loop(0, mine, one, None)
            plgpu.wait_smem_to_gmem(0)

        @pl.when(group == _WORKERS)
        def fetch():
            plgpu.set_max_registers(_FETCH_REGISTERS, action="decrease")

            def free(step, _=None):
                plgpu.barrier_wait(empty.at[lax.rem(step, jnp.int32(tiles.stages))])

            def free_edge(i, _=None):
                plgpu.barrier_wait(edge_empty.at[lax.rem(i, jnp.int32(_EDGES))])

            # One loop over the parts of all tiles: two loops are unrolled, and spill.
            def one(at, _):
                i, step = lax.div(at, jnp.int32(steps)), lax.rem(at, jnp.int32(steps))
                row, column = corner(i)
                down, along = pl.ds(row, ROWS), pl.ds(column, width)

                @pl.when(step == 0)
                def edges():
                    pl.when(i >= _EDGES)(lambda: free_edge(i))
                    edge = lax.rem(i, jnp.int32(_EDGES))
                    for source, where, target in (
                        (x_scale_ref, down, x_scale),
                        (w_scale_ref, along, w_scale),
                        (bias_ref, along, bias),
                    ):
                        plgpu.copy_gmem_to_smem(
                            source.at[where], target.at[edge], edge_full.at[edge]
                        )

                pl.when(at >= tiles.stages)(lambda: free(at))
                slot = lax.rem(at, jnp.int32(tiles.stages))
                some = pl.ds(step * INPUTS, INPUTS)
                plgpu.copy_gmem_to_smem(x_ref.at[down, some], x.at[slot], full.at[slot])
                plgpu.copy_gmem_to_smem(w_ref.at[along, some], w.at[slot], full.at[slot])

            total = mine * steps
            lax.fori_loop(0, total, one, None)
            # No barrier may be left that nobody has waited for.
            lax.fori_loop(jnp.maximum(total - tiles.stages, 0), total, free, None)
            lax.fori_loop(jnp.maximum(mine - _EDGES, 0), mine, free_edge, None)

    pl.run_scoped(
        body,
        tile(tiles.stages, ROWS, INPUTS, dtype=x_ref.dtype, line=INPUTS),
        tile(tiles.stages, width, INPUTS, dtype=w_ref.dtype, line=INPUTS),
        tile(_WORKERS, parts, _HEIGHT, COLUMNS, dtype=y_ref.dtype, line=lanes),
        plgpu.SMEM((_EDGES, ROWS), jnp.float32),
        plgpu.SMEM((_EDGES, width), jnp.float32),
        plgpu.SMEM((_EDGES, width), bias_ref.dtype),
        plgpu.Barrier(num_arrivals=2, num_barriers=tiles.stages),
        plgpu.Barrier(num_arrivals=_WORKERS, num_barriers=tiles.stages),
        plgpu.Barrier(num_arrivals=3, num_barriers=_EDGES),
        plgpu.Barrier(num_arrivals=_WORKERS, num_barriers=_EDGES),
        collective_axes="group",
    )


def _product(x, w):
    """Returns x w^T of two refs, in float32."""

    def multiply(acc):
        plgpu.wgmma(acc, x, w.transpose((1, 0)))
        return acc[...]

    return pl.run_scoped(multiply, plgpu.ACC((_HEIGHT, COLUMNS), jnp.float32))  # pyright: ignore[reportPrivateImportUsage]


def _zeros(interpret: bool) -> jax.Array:
    """Returns sums of zero in wgmma's layout; the interpreter knows no layouts."""
    x = jnp.zeros((_HEIGHT, COLUMNS), jnp.float32)
    return x if interpret else plgpu.layout_cast(x, _LAYOUT)


def _vector(ref, reduced: int, interpret: bool) -> jax.Array:
    """Loads a vector with an element per row of a product (`reduced` 1) or per column (0)."""
    if interpret:
        return ref[...]
    index = ((),) if jax.__version_info__ < (0, 11) else ()  # deprecated in 0.11
    return plgpu.load(ref, *index, layout=_LAYOUT.reduce(reduced))
