"""The block selection on NVIDIA GPUs by a kernel in Triton's language, through jax-triton."""

import jax
import jax.numpy as jnp
import numpy as np

from lite3r_jax.kernels.block_map.limits import unsupported
from lite3r_jax.kernels.block_map.table import block_count
from lite3r_jax.kernels.jax_triton_call import call
from lite3r_jax.kernels.launch import Launch

# As `pallas_triton` has them: query blocks of one program, key blocks whose scores it holds at a
# time, and the part of the head dim that a product takes.
ROWS, TILE, DEPTH = 32, 64, 32
LAUNCH = Launch(warps=8, stages=1)


def select_jax_triton(
    q: jax.Array,
    q_used: jax.Array,
    k: jax.Array,
    k_used: jax.Array,
    *,
    kept: np.ndarray,
    top: int,
    bottom: int,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Chooses key blocks as `select.select_sorted`, by a kernel without sort or stored scores.

    The arguments are those of `select_sorted`.

    The method is that of `pallas_triton.select_triton`, but for its shorter way where few of many
    are chosen.
    `interpret` runs the kernel by Triton's interpreter, see `jax_triton_call.call`.

    Raises:
        ValueError: the kernel does not support the head dim or dtype, or jax-triton cannot be used.
    """
    if reason := unsupported(q.shape[-1], q.dtype):
        raise ValueError(f"the Triton kernel cannot run this: {reason}")
    from lite3r_jax.kernels.block_map import jax_triton_kernels as kernels

    b, n, rows, d = q.shape
    columns = k.shape[2]
    programs, tiles = block_count(rows, ROWS), block_count(columns, TILE)
    row_pad, column_pad = (0, programs * ROWS - rows), (0, tiles * TILE - columns)
    kind = jnp.where(np.isin(np.arange(columns), kept), kernels.KEPT, kernels.FREE)
    kind = jnp.pad(jnp.where(k_used, kind, kernels.UNUSED).astype(jnp.int32), ((0, 0), column_pad))
    q, k = (jnp.pad(x, ((0, 0), (0, 0), pad, (0, 0))) for x, pad in ((q, row_pad), (k, column_pad)))
    used = jnp.pad(q_used, ((0, 0), row_pad)).astype(jnp.int32)
    width = len(kept) + top
    critical, negligible = call(
        kernels.block_map_select,
        LAUNCH,
        (programs, n, b),
        [q, used, k, kind, rows, columns, programs, tiles, top, bottom, width],
        # An output that is not written where no block is negligible: kernels have no optional ones.
        [((b, n, rows, width), jnp.int32), ((b, n, rows, bottom) if bottom else (1,), jnp.int32)],
        interpret=interpret,
        HEADS=n,
        D=d,
        ROWS=ROWS,
        TILE=TILE,
        DEPTH=DEPTH,
        LOW=bottom > 0,
    )
    return critical, negligible if bottom else jnp.zeros((b, n, rows, 0), jnp.int32)
