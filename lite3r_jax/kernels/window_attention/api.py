"""Entry point of window attention: checks the arguments and chooses the implementation."""

from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lite3r_jax.kernels.registry import Implementation, Operator
from lite3r_jax.kernels.target import Device, unfit_for_triton, without_triton
from lite3r_jax.kernels.window_attention.blocked import window_attention_blocked
from lite3r_jax.kernels.window_attention.limits import (
    WindowCall,
    scope,
    too_little_shared_memory,
    unsupported,
)
from lite3r_jax.kernels.window_attention.reference import window_attention_reference


def _refuses_triton(device: Device, call: WindowCall) -> str | None:
    return unfit_for_triton(device) or unsupported(call) or too_little_shared_memory(device, call)


def _triton(*args: Any, **settings: Any) -> jax.Array:
    # Imported when it is used: the package must not need the kernels' lowering.
    from lite3r_jax.kernels.window_attention.pallas_triton import window_attention_triton

    return window_attention_triton(*args, **settings)


# `run` is called with all arguments of `window_attention` but `implementation`, checked. It is
# differentiable in q, k and v.
OPERATOR = Operator(
    "window_attention",
    (
        Implementation("reference", window_attention_reference),
        Implementation("blocked", window_attention_blocked),
        Implementation("triton", _triton, _refuses_triton, True, without_triton),
    ),
    Path(__file__).parent,
    scope,
)

# The choice of windows (`block_map`) that goes with an implementation that is asked for by name.
CHOICE = MappingProxyType({"auto": "auto", "blocked": "sorted", "triton": "triton"})


def window_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    ids: jax.Array,
    *,
    q_windows: np.ndarray,
    k_windows: np.ndarray,
    always: np.ndarray,
    implementation: str = "blocked",
) -> jax.Array:
    """Computes softmax attention of windows of queries to the windows of keys chosen for each.

    The selection branch of Speed3R (arXiv 2603.08055). One softmax over the tokens of the chosen
    windows, those of the windows in `always`, and the keys that are in no window.

    Args:
        q: [B, Tq, N, D] queries, normed and rotated.
        k: [B, Tk, N, D] keys.
        v: [B, Tk, N, D] values.
        ids: [B, N, Nq, K] int32, different windows of keys for every window of queries, ascending,
            none of them in `always`; K may be 0 where that leaves a key for every query.
        q_windows: [Nq, places] int32, the tokens of every window, each in one at most; Tq for
            places without one.
        k_windows: [Nk, places] int32, likewise; no window is without a token.
        always: [A] int32 windows of keys, ascending.
        implementation: name in `OPERATOR`, or "auto"; see `registry`.

    Returns:
        [B, Tq, N, D] in the dtype of v; 0 for queries that are in no window.

    Raises:
        ValueError: arguments that do not fit together, an unknown name, or an implementation that
            cannot run this here.
    """
    if (
        q.ndim != 4
        or k.shape != v.shape
        or q.shape[::2] != k.shape[::2]
        or q.shape[3] != k.shape[3]
    ):
        raise ValueError(f"expected q, k, v as [B, T, N, D], got {q.shape}, {k.shape}, {v.shape}")
    if not q.dtype == k.dtype == v.dtype or not jnp.issubdtype(v.dtype, jnp.floating):
        raise ValueError(f"q, k, v need one float dtype, got {q.dtype}, {k.dtype}, {v.dtype}")
    places = q_windows.shape[1]
    if k_windows.shape[1] != places:
        raise ValueError(
            f"windows of queries have {places} places and those of keys {k_windows.shape[1]}"
        )
    if ids.shape[:3] != (q.shape[0], q.shape[2], len(q_windows)):
        raise ValueError(
            f"expected ids as [B, N, Nq, K] for q of {q.shape} and {len(q_windows)} windows, got"
            f" {ids.shape}"
        )
    chosen = OPERATOR.choose(implementation, WindowCall(places, q.shape[-1], q.dtype))
    return OPERATOR[chosen].run(
        q, k, v, ids, q_windows=q_windows, k_windows=k_windows, always=always
    )
