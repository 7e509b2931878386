"""Entry point of Sparse Linear Attention: checks arguments and chooses the implementation."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lite3r_jax.kernels.block_map.api import valid_mask
from lite3r_jax.kernels.block_map.table import BlockMap, block_count
from lite3r_jax.kernels.jax_triton_call import unavailable
from lite3r_jax.kernels.registry import Implementation, Operator
from lite3r_jax.kernels.sla import launches
from lite3r_jax.kernels.sla.blocked import sla_blocked
from lite3r_jax.kernels.sla.limits import (
    SlaCall,
    scope,
    unsupported_mosaic,
    unsupported_tpu,
    unsupported_triton,
)
from lite3r_jax.kernels.sla.linear import linear
from lite3r_jax.kernels.sla.reference import PHI, Phi, Routing, sla_reference
from lite3r_jax.kernels.sla.tiles import too_little_shared_memory
from lite3r_jax.kernels.target import (
    Device,
    mesh_unfit_for_tpu_kernels,
    unfit_for_tpu_kernels,
    unfit_for_triton,
    without_mosaic,
    without_triton,
)
from lite3r_jax.kernels.tokens import take


def _not_token(device: Device, call: SlaCall) -> str | None:
    del device
    return "routing 'token' is not made of blocks" if call.routing == "token" else None


def _refuses_triton(device: Device, call: SlaCall) -> str | None:
    return (
        unfit_for_triton(device)
        or unsupported_triton(call)
        or too_little_shared_memory(device, call)
    )


def _refuses_jax_triton(device: Device, call: SlaCall) -> str | None:
    return (
        unfit_for_triton(device)
        or unsupported_triton(call)
        or launches.too_little_shared_memory(device, call)
    )


def _refuses_mosaic(device: Device, call: SlaCall) -> str | None:
    if device.platform != "gpu" or not device.is_hopper:
        return f"its kernels are for Hopper GPUs (H100, H200, ...) and this is {device.kind}"
    return unsupported_mosaic(call)


def _refuses_tpu(device: Device, call: SlaCall) -> str | None:
    return unfit_for_tpu_kernels(device) or unsupported_tpu(call)


def _triton(*args: Any, **settings: Any) -> jax.Array:
    from lite3r_jax.kernels.sla.pallas_triton import sla_triton

    return sla_triton(*args, **settings)


def _jax_triton(*args: Any, **settings: Any) -> jax.Array:
    from lite3r_jax.kernels.sla.jax_triton import sla_jax_triton

    return sla_jax_triton(*args, **settings)


def _mosaic(*args: Any, **settings: Any) -> jax.Array:
    from lite3r_jax.kernels.sla.pallas_mosaic import sla_mosaic

    return sla_mosaic(*args, **settings)


def _tpu(*args: Any, **settings: Any) -> jax.Array:
    from lite3r_jax.kernels.sla.pallas_tpu import sla_tpu

    return sla_tpu(*args, **settings)


# `run` is called with all arguments of `sla` but `implementation`, checked, and with masks that are
# arrays. It is differentiable in q, k, v and proj_lin. What invalid rows of q, k and v hold, NaN
# included, must not matter.
OPERATOR = Operator(
    "sla",
    (
        Implementation("reference", sla_reference),
        Implementation("blocked", sla_blocked, _not_token),
        Implementation("jax_triton", _jax_triton, _refuses_jax_triton, True, unavailable),
        Implementation("mosaic", _mosaic, _refuses_mosaic, True, without_mosaic),
        Implementation("triton", _triton, _refuses_triton, True, without_triton),
        Implementation("tpu", _tpu, _refuses_tpu, True, mesh_unfit_for_tpu_kernels),
    ),
    Path(__file__).parent,
    scope,
)


# Those that know `BlockMap.full_rows` and put outputs in their places; others are called by
# `_in_two`.
_TAKE_ALL = frozenset({"triton"})

_SELECTION = MappingProxyType(
    {
        "auto": "auto",
        "reference": "sorted",
        "blocked": "sorted",
        "jax_triton": "jax_triton",
        "mosaic": "triton",
        "triton": "triton",
        "tpu": "tpu",
    }
)


def selection(name: str) -> str:
    """Returns the block selection's implementation that goes with an SLA implementation, by name.

    With "mosaic" goes the one through Pallas' Triton lowering where jax has that, else "auto".
    """
    return "auto" if name == "mosaic" and without_triton() else _SELECTION[name]


def sla(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    proj_lin: jax.Array,
    block_map: BlockMap | None,
    *,
    routing: Routing = "block",
    phi: Phi = "elu1",
    keep: float | None = None,
    eps: float = 1e-6,
    q_valid: jax.Array | None = None,
    k_valid: jax.Array | None = None,
    implementation: str = "blocked",
    project: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
    places: np.ndarray | None = None,
) -> jax.Array:
    """Computes Sparse Linear Attention: softmax over few keys, plus projected linear attention.

    `reference` has the formulas. Tokens come in the order in which `block_map` cuts them into
    blocks. No gradient flows through the choice of keys.

    Args:
        q: [B, Tq, N, D] queries, normed and rotated.
        k: [B, Tk, N, D] keys.
        v: [B, Tk, N, D] values.
        proj_lin: [D, D], applied to the linear part of every head from the right (the transpose of
            a torch Linear's weight).
        block_map: classes of key blocks, from `block_map.api.block_map`; None for "token".
        routing: "token" (softmax over the best keys of each query, linear over all; quadratic),
            "block" (softmax over critical blocks, linear over all keys) or "block3" (softmax over
            critical blocks, linear over marginal ones).
        phi: feature map of the linear part: "elu1", "softmax" (over D) or "relu".
        keep: fraction of keys in (0, 1] for "token"; None otherwise, where the map says it.
        eps: added to the denominator of the linear part: 1e-6 in Lite3R, 1e-5 in thu-ml/SLA, none
            in the papers.
        q_valid: [B, Tq] bool, False for padding, whose output is 0; None if there is none.
        k_valid: [B, Tk] bool, False for padding, which no query sees.
        implementation: name in `OPERATOR`, or "auto"; see `registry`.
        project: product of the linear part [B, Tq, N, D], float32 or float64, with proj_lin, for
            products that are quantized. With it the linear part is computed by itself and in
            memory. None: a plain product, which the implementations fold into the state.
        places: [T] int, static, which of the queries have an output and in which order: T
            different numbers below Tq. None for all queries in their order.

    Returns:
        [B, Tq, N, D] in the dtype of v; [B, T, N, D] with `places`.

    Raises:
        ValueError: arguments that do not fit together, an unknown name, or an implementation that
            cannot run this here.
    """
    _check(q, k, v, proj_lin, block_map, routing, phi, keep, eps)
    chosen = OPERATOR.choose(implementation, SlaCall.of(routing, q, block_map))
    run = runner(chosen)
    settings: dict[str, Any] = {
        "routing": routing,
        "phi": phi,
        "eps": eps,
        "q_valid": valid_mask(q_valid, q, "q_valid"),
        "k_valid": valid_mask(k_valid, k, "k_valid"),
    }
    if project is None:
        return run(q, k, v, proj_lin, block_map, keep=keep, places=places, **settings)
    sparse = run(q, k, v, jnp.zeros_like(proj_lin), block_map, keep=keep, places=places, **settings)

    def unprojected(q, k, v, _, block_map, *, keep, **settings):
        return linear(q, k, v, block_map, **settings)

    o = _in_two(unprojected, q, k, v, None, block_map, keep=keep, places=places, **settings)
    return sparse + project(o, proj_lin).astype(v.dtype)


def runner(name: str) -> Callable[..., jax.Array]:
    """Returns the function of an implementation, for calls with full rows and places as well."""
    run = OPERATOR[name].run
    return run if name in _TAKE_ALL else in_two(run)


def in_two(run: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Wraps `run`, which knows neither full rows nor places, for calls that have them."""
    return partial(_in_two, run)


def _in_two(run, q, k, v, proj_lin, block_map, *, q_valid, places=None, **settings) -> jax.Array:
    """Calls `run` for the query blocks that attend to all keys, and again for the others."""
    if block_map is None or not block_map.full_rows:
        o = run(q, k, v, proj_lin, block_map, q_valid=q_valid, **settings)
        return o if places is None else take(o, places)
    edge = block_map.full_rows * block_map.q_block
    parts = []
    for rows, some in zip((slice(0, edge), slice(edge, None)), block_map.split(), strict=True):
        if q[:, rows].shape[1]:
            valid = q_valid[:, rows]
            parts.append(run(q[:, rows], k, v, proj_lin, some, q_valid=valid, **settings))
    o = jnp.concatenate(parts, axis=1)
    return o if places is None else take(o, places)


def _check(q, k, v, proj_lin, block_map, routing, phi, keep, eps) -> None:
    if (
        q.ndim != 4
        or k.shape != v.shape
        or q.shape[::2] != k.shape[::2]
        or q.shape[3] != k.shape[3]
    ):
        raise ValueError(f"expected q, k, v as [B, T, N, D], got {q.shape}, {k.shape}, {v.shape}")
    if min(q.shape[1], k.shape[1]) < 1:
        raise ValueError(f"need at least one query and one key, got {q.shape} and {k.shape}")
    if not q.dtype == k.dtype == v.dtype or not jnp.issubdtype(v.dtype, jnp.floating):
        raise ValueError(f"q, k, v need one float dtype, got {q.dtype}, {k.dtype}, {v.dtype}")
    d = q.shape[3]
    if proj_lin.shape != (d, d):
        raise ValueError(f"proj_lin must be [{d}, {d}] for head dim {d}, got {proj_lin.shape}")
    if phi not in PHI:
        raise ValueError(f"unknown phi {phi!r}, there are: {', '.join(PHI)}")
    if not eps >= 0:
        raise ValueError(f"eps must not be below 0, got {eps}")
    if routing == "token":
        if block_map is not None or keep is None or not 0 < keep <= 1:
            raise ValueError(f"routing 'token' takes keep in (0, 1] and no block map, got {keep}")
        return
    if routing not in ("block", "block3"):
        raise ValueError(f"unknown routing {routing!r}, there are: token, block, block3")
    if block_map is None or keep is not None:
        raise ValueError(f"routing {routing!r} takes a block map, made with its keep, and no keep")
    rows = block_count(q.shape[1], block_map.q_block) - block_map.full_rows
    columns = block_count(k.shape[1], block_map.k_block)
    for table in (block_map.critical, block_map.negligible):
        if table.ids.shape[:3] != (q.shape[0], q.shape[2], rows) or table.columns != columns:
            raise ValueError(
                f"the block map is for [B, N, Mq] {table.ids.shape[:3]} and {table.columns} key "
                f"blocks, q and k have {(q.shape[0], q.shape[2], rows)} and {columns}"
            )
