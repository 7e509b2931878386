"""Window attention on NVIDIA GPUs: Pallas kernels through the Triton lowering."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lite3r_jax.kernels import softmax
from lite3r_jax.kernels import triton_call as at
from lite3r_jax.kernels.block_map.table import BlockTable, block_count
from lite3r_jax.kernels.launch import Launch
from lite3r_jax.kernels.tokens import inverse, take
from lite3r_jax.kernels.window_attention import triton_kernels as kernels
from lite3r_jax.kernels.window_attention.limits import WindowCall, unsupported
from lite3r_jax.kernels.window_attention.reference import window_of
from lite3r_jax.kernels.window_attention.triton_kernels import GATHERED

_Q_BLOCK = 128
"""Number of queries of a program over the keys that all queries see."""


def window_attention_triton(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    ids: jax.Array,
    *,
    q_windows: np.ndarray,
    k_windows: np.ndarray,
    always: np.ndarray,
    interpret: bool = False,
) -> jax.Array:
    """Computes `api.window_attention`, which has the same arguments, by Triton kernels.

    Two softmaxes are merged by their log-sum-exps: one over the chosen windows, by programs of one
    window of queries each; and one over the keys that all queries see, by programs of 128 queries,
    which load those keys an eighth as often, and with tokens in their own order, without the places
    that are empty where windows do not divide the grid. At 1,000 views these keys are 40 times as
    many.

    Windows of 8 x 8 are the blocks of 64 tokens of Sparse Linear Attention's kernels, whose loop
    this is, and multiply with wgmma. Windows of 4 x 4 are 16 queries, for which there is no wgmma.
    Tiles of 16 x 16 would go through the loop once for each chosen window, each time with a
    maximum, a rescaling and products 16 wide; here a step gathers the rows of four chosen windows
    into a tile of 16 x 64. Either way 16 queries share what is loaded, 16 operations a byte,
    so the caches decide and not the products.

    Every sum has a fixed order, so that two runs give the same bits. `interpret` runs the kernels'
    code as plain JAX on any device, slowly.

    Raises:
        ValueError: a window, head dim or dtype that the kernels are not made for.
    """
    places = q_windows.shape[1]
    if reason := unsupported(WindowCall(places, q.shape[-1], q.dtype)):
        raise ValueError(f"the Triton kernels cannot run this: {reason}")
    tokens, plan = q.shape[1], _Plan(_launches(places, q.shape[-1], q.dtype), interpret)
    in_window = window_of(q_windows, tokens) >= 0
    of_key = window_of(k_windows, k.shape[1])
    seen_by_all = np.flatnonzero((of_key < 0) | np.isin(of_key, always)).astype(np.int32)
    parts = []
    if ids.shape[-1]:
        kw, vw = (take(x, k_windows) for x in (k, v))
        bias = _bias(k_windows.reshape(-1) < k.shape[1], k.shape[0])
        o, lse = _chosen(take(q, q_windows), kw, vw, bias, ids, plan)
        back = inverse(q_windows, tokens)
        lse = take(lse.swapaxes(1, 2), back)
        parts.append((take(o, back), jnp.where(in_window[:, None], lse, softmax.LOWEST)))
    if seen_by_all.size:
        length = GATHERED * block_count(len(seen_by_all), GATHERED)
        some = np.pad(seen_by_all, (0, length - len(seen_by_all)), constant_values=k.shape[1])
        bias = _bias(some < k.shape[1], k.shape[0])
        padded = jnp.pad(q, ((0, 0), (0, -tokens % _Q_BLOCK), (0, 0), (0, 0)))
        o, lse = _tokens(padded, take(k, some), take(v, some), bias, plan)
        parts.append((o[:, :tokens], lse.swapaxes(1, 2)[:, :tokens]))
    return jnp.where(in_window[:, None, None], _joined(parts), 0).astype(v.dtype)


def _joined(parts: Sequence[tuple[jax.Array, jax.Array]]) -> jax.Array:
    """Merges outputs [B, T, N, D] over parts of the keys by their log-sum-exps [B, T, N]."""
    if len(parts) == 1:
        return parts[0][0]
    (o, lse), (other, other_lse) = parts
    weight = jax.nn.sigmoid((lse - other_lse) / softmax.LOG2E)[..., None]
    return weight * o.astype(jnp.float32) + (1 - weight) * other.astype(jnp.float32)


def _bias(valid: np.ndarray, batch: int) -> jax.Array:
    """Returns the bias of logits, [B, T] float32: 0 for valid keys and `MASKED` for others."""
    bias = np.where(valid, 0, softmax.MASKED).astype(np.float32)
    return jnp.broadcast_to(bias, (batch, len(bias)))


@dataclass(frozen=True)
class _Launches:
    """Launch parameters of the kernels over chosen windows and over the keys that all see."""

    chosen: Launch
    chosen_gradient: Launch
    tokens: Launch
    tokens_gradient: Launch


def _launches(places: int, head_dim: int, dtype: Any) -> _Launches:
    """Returns the launch parameters, chosen by compiling for an H200 (tests/gpu_compile).

    Nothing was timed. A window of 4 x 4 is the work of one warp, which then needs no other warp for
    its row sums; with head dim 128 it is that of two, since the registers of one would spill.
    """
    if jnp.dtype(dtype).itemsize > 2:
        chosen = gradient = Launch(warps=4 if places == 16 else 8, stages=2)
        return _Launches(chosen, gradient, Launch(8, 2), Launch(8, 2))
    wide = head_dim > 64  # with less of a pipeline, and gradients by more warps
    stages, warps = (2, 2) if wide else (3, 1)
    chosen = gradient = Launch(warps, stages) if places == 16 else Launch(8 if wide else 4, 5)
    return _Launches(chosen, gradient, Launch(8, stages), Launch(8 if wide else 4, stages))


@dataclass(frozen=True)
class _Plan:
    """Settings that are fixed when a call is traced."""

    launches: _Launches
    interpret: bool


def _chosen(
    q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array, ids: jax.Array, plan: _Plan
) -> tuple[jax.Array, jax.Array]:
    """Computes softmax attention of each window of queries to the windows of keys in its list.

    Args:
        q: [B, Nq * places, N, D], window by window.
        k: [B, Nk * places, N, D].
        v: [B, Nk * places, N, D].
        bias: [B, Nk * places] float32, 0 for valid keys and `MASKED` for others.
        ids: [B, N, Nq, K], K at least 1.
        plan: settings that are fixed.

    Returns:
        Output [B, Nq * places, N, D] in the dtype of v, log-sum-exp in base 2 [B, N, Nq * places].
    """
    return _chosen_vjp(q, k, v, bias, ids, plan)


def _chosen_forward(q, k, v, bias, ids, plan):
    b, tokens, n, d = q.shape
    size = tokens // ids.shape[2]
    o, lse = at.call(
        functools.partial(kernels.window_forward),
        plan.launches.chosen,
        (ids.shape[2], n, b),
        _listed(q, k, v, bias, ids, size),
        [(q.shape, v.dtype, at.rows(size, d)), ((b, n, tokens), jnp.float32, at.row(size))],
        interpret=plan.interpret,
    )
    return (o, lse), (q, k, v, bias, ids, o, lse)


def _chosen_backward(plan, residuals, up):
    q, k, v, bias, ids, o, lse = residuals
    do, dlse = up
    b, tokens, n, d = q.shape
    size = tokens // ids.shape[2]
    some, column = at.rows(size, d), at.row(size)
    launch = plan.launches.chosen_gradient
    dq, delta = at.call(
        functools.partial(kernels.window_query_gradient),
        launch,
        (ids.shape[2], n, b),
        [
            *_listed(q, k, v, bias, ids, size),
            (do, some),
            (o, some),
            (lse, column),
            (dlse, column),
        ],
        [(q.shape, q.dtype, some), (lse.shape, jnp.float32, column)],
        interpret=plan.interpret,
    )
    table = BlockTable(ids, k.shape[1] // size).transpose()
    dk, dv = at.call(
        functools.partial(kernels.window_key_gradient),
        launch,
        (k.shape[1] // size, n, b),
        [
            (q, at.all_rows(q)),
            (k, some),
            (v, some),
            (bias, at.mask(size)),
            (table.rows, at.head(table.rows.shape[-1])),
            (table.offsets, at.head(table.offsets.shape[-1])),
            (do, at.all_rows(do)),
            (lse, at.head(tokens)),
            (delta, at.head(tokens)),
        ],
        [(k.shape, k.dtype, some), (v.shape, v.dtype, some)],
        interpret=plan.interpret,
    )
    return dq, dk, dv, None, None


_chosen_vjp = jax.custom_vjp(lambda *x: _chosen_forward(*x)[0], nondiff_argnums=(5,))
_chosen_vjp.defvjp(_chosen_forward, _chosen_backward)


def _listed(q, k, v, bias, ids, size):
    """Returns a kernel's inputs with block specs; each program has one window of queries.

    Lists are filled up to whole steps with a window past the last one, whose keys are masked.
    """
    fill = -ids.shape[-1] % (GATHERED // size)
    if fill:
        more = [(0, 0), (0, size), (0, 0), (0, 0)]
        ids = jnp.pad(ids, [(0, 0)] * 3 + [(0, fill)], constant_values=k.shape[1] // size)
        k, v = jnp.pad(k, more), jnp.pad(v, more)
        bias = jnp.pad(bias, more[:2], constant_values=softmax.MASKED)
    return [
        (q, at.rows(size, q.shape[-1])),
        (k, at.all_rows(k)),
        (v, at.all_rows(v)),
        (bias, at.all_mask(bias)),
        (ids, at.part(ids.shape[-1])),
    ]


def _tokens(
    q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array, plan: _Plan
) -> tuple[jax.Array, jax.Array]:
    """Computes softmax attention of all queries to all keys.

    Args:
        q: [B, Tq, N, D], Tq a multiple of 128.
        k: [B, Tk, N, D], Tk a multiple of 64.
        v: [B, Tk, N, D].
        bias: [B, Tk] float32, 0 for valid keys and `MASKED` for others.
        plan: settings that are fixed.

    Returns:
        Output [B, Tq, N, D] in the dtype of v, log-sum-exp in base 2 [B, N, Tq].
    """
    return _tokens_vjp(q, k, v, bias, plan)


def _tokens_forward(q, k, v, bias, plan):
    b, tokens, n, d = q.shape
    rows, column = at.rows(_Q_BLOCK, d), at.row(_Q_BLOCK)
    o, lse = at.call(
        functools.partial(kernels.window_all_forward),
        plan.launches.tokens,
        (tokens // _Q_BLOCK, n, b),
        _whole(q, k, v, bias, rows),
        [(q.shape, v.dtype, rows), ((b, n, tokens), jnp.float32, column)],
        interpret=plan.interpret,
    )
    return (o, lse), (q, k, v, bias, o, lse)


def _tokens_backward(plan, residuals, up):
    q, k, v, bias, o, lse = residuals
    do, dlse = up
    b, tokens, n, d = q.shape
    rows, column = at.rows(GATHERED, d), at.row(GATHERED)
    launch = plan.launches.tokens_gradient
    dq, delta = at.call(
        functools.partial(kernels.window_all_query_gradient),
        launch,
        (tokens // GATHERED, n, b),
        [*_whole(q, k, v, bias, rows), (do, rows), (o, rows), (lse, column), (dlse, column)],
        [(q.shape, q.dtype, rows), (lse.shape, jnp.float32, column)],
        interpret=plan.interpret,
    )
    dk, dv = at.call(
        functools.partial(kernels.window_all_key_gradient),
        launch,
        (k.shape[1] // GATHERED, n, b),
        [
            (q, at.all_rows(q)),
            (k, rows),
            (v, rows),
            (bias, at.mask(GATHERED)),
            (do, at.all_rows(do)),
            (lse, at.head(tokens)),
            (delta, at.head(tokens)),
        ],
        [(k.shape, k.dtype, rows), (v.shape, v.dtype, rows)],
        interpret=plan.interpret,
    )
    return dq, dk, dv, None


_tokens_vjp = jax.custom_vjp(lambda *x: _tokens_forward(*x)[0], nondiff_argnums=(4,))
_tokens_vjp.defvjp(_tokens_forward, _tokens_backward)


def _whole(q, k, v, bias, rows):
    """Returns a kernel's inputs with block specs; each program has some queries and all keys."""
    return [
        (q, rows),
        (k, at.all_rows(k)),
        (v, at.all_rows(v)),
        (bias, at.all_mask(bias)),
    ]
