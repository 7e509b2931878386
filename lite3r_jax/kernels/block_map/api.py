"""Entry point of the block selection: checks the arguments and chooses the implementation."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lite3r_jax.kernels.block_map.limits import unsupported, unsupported_tpu
from lite3r_jax.kernels.block_map.select import select_sorted
from lite3r_jax.kernels.block_map.table import BlockMap, BlockTable, block_count
from lite3r_jax.kernels.block_map.two_level import select_within_views
from lite3r_jax.kernels.jax_triton_call import unavailable
from lite3r_jax.kernels.registry import Implementation, Operator
from lite3r_jax.kernels.target import (
    Device,
    mesh_unfit_for_tpu_kernels,
    unfit_for_tpu_kernels,
    unfit_for_triton,
    without_triton,
)


@dataclass(frozen=True)
class SelectionCall:
    """Properties of a block selection that decide which implementations can run it.

    Attributes:
        head_dim: D.
        dtype: of the pooled tokens.
    """

    head_dim: int
    dtype: Any


@dataclass(frozen=True)
class ViewChoice:
    """Limits the choice of key blocks to few views: each view of queries chooses views of keys.

    Attributes:
        queries: number of views that the query blocks behind the full rows belong to, equally many
            blocks to each.
        keys: number of views that the key blocks belong to, but for those that are always kept.
        chosen: number of views of keys whose blocks a view of queries chooses from.
    """

    queries: int
    keys: int
    chosen: int


def _refuses_triton(device: Device, call: SelectionCall) -> str | None:
    return unfit_for_triton(device) or unsupported(call.head_dim, call.dtype)


def _refuses_tpu(device: Device, call: SelectionCall) -> str | None:
    return unfit_for_tpu_kernels(device) or unsupported_tpu(call.dtype)


def _triton(*args: Any, **settings: Any) -> tuple[jax.Array, jax.Array]:
    # Imported when it is used: the package must not need the kernel's lowering.
    from lite3r_jax.kernels.block_map.pallas_triton import select_triton

    return select_triton(*args, **settings)


def _jax_triton(*args: Any, **settings: Any) -> tuple[jax.Array, jax.Array]:
    from lite3r_jax.kernels.block_map.jax_triton import select_jax_triton

    return select_jax_triton(*args, **settings)


def _tpu(*args: Any, **settings: Any) -> tuple[jax.Array, jax.Array]:
    from lite3r_jax.kernels.block_map.pallas_tpu import select_tpu

    return select_tpu(*args, **settings)


# `run` is called as `select.select_sorted`, but for `chunk` and `choose`.
OPERATOR = Operator(
    "block_map",
    (
        Implementation("sorted", select_sorted),
        Implementation("jax_triton", _jax_triton, _refuses_triton, True, unavailable),
        Implementation("triton", _triton, _refuses_triton, True, without_triton),
        Implementation("tpu", _tpu, _refuses_tpu, True, mesh_unfit_for_tpu_kernels),
    ),
    Path(__file__).parent,
    lambda call: f"{jnp.dtype(call.dtype)}, head dim {call.head_dim}",
)


def budgets(free: int, keep: float, low: float = 0.0) -> tuple[int, int]:
    """Returns how many of the free key blocks are critical and how many are negligible.

    Counts are rounded down as upstream does (thu-ml/SLA utils.py, Lite3R lite3r_kit/sla.py), but
    at least one block is critical, and critical ones come first.

    Args:
        free: key blocks to choose from, without those that are always kept.
        keep: fraction of them that is critical, in (0, 1]; k_h of SLA.
        low: fraction of them that is negligible, in [0, 1); k_l of SLA.

    Returns:
        (top, bottom) for `block_map`.

    Raises:
        ValueError: a fraction is out of range.
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep must be in (0, 1], got {keep}")
    if not 0 <= low < 1:
        raise ValueError(f"low must be in [0, 1), got {low}")
    top = min(free, max(1, int(keep * free)))
    return top, min(free - top, int(low * free))


def block_map(
    q: jax.Array,
    k: jax.Array,
    *,
    q_block: int,
    k_block: int,
    top: int,
    bottom: int = 0,
    always: Sequence[int] = (),
    q_valid: jax.Array | None = None,
    k_valid: jax.Array | None = None,
    full_rows: int = 0,
    among: ViewChoice | None = None,
    implementation: str = "sorted",
) -> BlockMap:
    """Choose the critical and the negligible key blocks of every query block.

    Gives `reference.classes` of `reference.block_scores` without ever holding all scores. No
    gradient flows through the choice, as upstream (SLA Alg. 2; torch.topk's indices in thu-ml/SLA
    utils.py).

    Args:
        q: [B, Tq, N, D] queries as they will be attended with (normed and rotated).
        k: [B, Tk, N, D] keys.
        q_block: queries per block.
        k_block: keys per block.
        top: critical blocks chosen per row, besides `always`; see `budgets`.
        bottom: negligible blocks chosen per row.
        always: key blocks that are critical in every row (special tokens, reference view).
        q_valid: [B, Tq] bool, False for padding; None if there is none.
        k_valid: [B, Tk] bool.
        full_rows: so many query blocks at the start attend to all key blocks and choose none.
        among: for two levels of choice, first views and then blocks of these
            (`two_level.select_within_views`); what is always kept then comes first, and `bottom` is
            0. None for a choice among all.
        implementation: name in `OPERATOR`, or "auto" (see `registry`). All choose the same blocks
            but where the order in which a score is summed up decides.

    Returns:
        The map; its critical table has len(always) + top entries per row, its negligible one
        `bottom`, and neither has the first `full_rows` rows. Blocks of padding only are in no
        table, rows of padding have no entries.

    Raises:
        ValueError: shapes, blocks or counts that do not fit together, an unknown name, or an
            implementation that cannot run this here.
    """
    if q.ndim != 4 or k.ndim != 4 or q.shape[0] != k.shape[0] or q.shape[2:] != k.shape[2:]:
        raise ValueError(f"expected q and k as [B, T, N, D], got {q.shape} and {k.shape}")
    if min(q.shape[1], k.shape[1], q_block, k_block) < 1:
        raise ValueError(
            f"need tokens and blocks of at least 1, got T {q.shape[1]} and {k.shape[1]}, blocks "
            f"{q_block} and {k_block}"
        )
    q_valid = valid_mask(q_valid, q, "q_valid")
    k_valid = valid_mask(k_valid, k, "k_valid")
    columns = block_count(k.shape[1], k_block)
    kept = np.unique(np.asarray(always, np.int32))
    if len(kept) != len(always) or any(not 0 <= j < columns for j in kept):
        raise ValueError(f"always must name different blocks in [0, {columns}), got {always}")
    free = columns - len(kept)
    if top < min(1, free) or bottom < 0 or top + bottom > free:
        raise ValueError(
            f"cannot choose {top} critical and {bottom} negligible blocks: of {columns} key blocks "
            f"{len(kept)} are always kept, which leaves {free}"
        )
    if not 0 <= full_rows <= block_count(q.shape[1], q_block):
        raise ValueError(
            f"full_rows must be in [0, {block_count(q.shape[1], q_block)}], got {full_rows}"
        )
    dtype = q.dtype if q_block == k_block == 1 else pooled_dtype(q.dtype)
    chosen = OPERATOR.choose(implementation, SelectionCall(q.shape[-1], dtype))
    mean_q, q_used = pool(lax.stop_gradient(q), q_valid, q_block, dtype)
    mean_k, k_used = pool(lax.stop_gradient(k), k_valid, k_block, dtype)
    full_columns = int((kept == np.arange(len(kept))).sum())
    settings: dict[str, Any] = {"kept": kept, "top": top, "bottom": bottom}
    if chosen == "triton" and among is None:  # which skips them without a copy of the others
        settings["first"] = full_rows
    else:
        mean_q, q_used = mean_q[:, :, full_rows:], q_used[:, full_rows:]
    means = mean_q, q_used, mean_k, k_used
    if full_rows == block_count(q.shape[1], q_block):  # nothing is chosen
        critical, negligible = (
            jnp.zeros((q.shape[0], q.shape[2], 0, width), jnp.int32)
            for width in (len(kept) + top, bottom)
        )
    elif among is None:
        critical, negligible = OPERATOR[chosen].run(*means, **settings)
    else:
        _check_choice(among, mean_q.shape[2], columns, full_columns, len(kept), top, bottom)
        critical = select_within_views(
            *means,
            kept=len(kept),
            top=top,
            query_views=among.queries,
            key_views=among.keys,
            views=among.chosen,
            select=OPERATOR[chosen].run,
        )
        negligible = jnp.zeros((*critical.shape[:3], 0), jnp.int32)
    tables = BlockTable(critical, columns), BlockTable(negligible, columns)
    return BlockMap(*tables, q_block, k_block, full_rows, full_columns)


def _check_choice(among, rows, columns, first, kept, top, bottom) -> None:
    free = columns - kept
    if first != kept or bottom:
        raise ValueError(
            "a choice among views takes the key blocks that are always kept first, and no"
            f" negligible ones, got {first} of {kept} first and {bottom} negligible"
        )
    if rows % among.queries or free % among.keys or not 1 <= among.chosen <= among.keys:
        raise ValueError(f"{rows} query and {free} key blocks are not those of {among}")
    if top > among.chosen * (free // among.keys):
        raise ValueError(
            f"cannot choose {top} blocks of {among.chosen} views with {free // among.keys} each"
        )


def valid_mask(valid: jax.Array | None, x: jax.Array, name: str) -> jax.Array:
    """Checks the mask `valid` against x [B, T, ...] and returns it; all True for None."""
    if valid is None:
        return jnp.ones(x.shape[:2], bool)
    if valid.shape != x.shape[:2] or valid.dtype != bool:
        raise ValueError(
            f"{name} must be bool of shape {x.shape[:2]}, got {valid.dtype} of {valid.shape}"
        )
    return valid


def pooled_dtype(dtype: Any) -> Any:
    """Returns the dtype of the means of tokens, which is at least float32."""
    return jnp.promote_types(dtype, jnp.float32)


def pool(
    x: jax.Array, valid: jax.Array, block: int, dtype: Any = None
) -> tuple[jax.Array, jax.Array]:
    """Averages the valid tokens of each block and says which blocks have any.

    Takes tokens [B, T, N, D]; returns means [B, N, M, D] and a mask [B, M].

    The means are in `dtype`, or that of `pooled_dtype`.
    """
    b, tokens, n, d = x.shape
    blocks = block_count(tokens, block)
    pad = blocks * block - tokens
    valid = jnp.pad(valid, ((0, 0), (0, pad)))
    x = jnp.pad(x, ((0, 0), (0, pad), (0, 0), (0, 0)))
    x = jnp.where(valid[..., None, None], x, 0).reshape(b, blocks, block, n, d)
    count = valid.reshape(b, blocks, block).sum(axis=-1)
    # Weights and not a division of the sums: it would be a kernel behind the sum on a GPU.
    weight = (1 / jnp.maximum(count, 1)).astype(pooled_dtype(x.dtype))[:, :, None, None, None]
    mean = (x.astype(weight.dtype) * weight).sum(axis=2)
    return mean.transpose(0, 2, 1, 3).astype(dtype or mean.dtype), count > 0
