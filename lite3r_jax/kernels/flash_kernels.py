"""Softmax attention of a block of queries to blocks of keys, as programs of Triton kernels.

Kernels of several operators call these functions with the keys, or the queries, of each step.
Refs are those of one sequence and one head. q, k, v and do hold 0 where they are padding; `bias` is
0 for valid keys and `MASKED` for others. Logits are in base 2, s = q k^T log2(e) / sqrt(D) + bias,
and so is the log-sum-exp (FlashAttention, arXiv 2205.14135; SLA, arXiv 2509.24006, Algorithms 1-2).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from lite3r_jax.kernels.softmax import LOG2E, LOWEST

At = Callable[[Any], Any]
"""Maps a step of a loop to the positions of the keys, or of the queries, that it works on."""


def listed(ids_ref, block: int) -> At:
    """Returns an `At` for the blocks that a row of a table lists, one block per step."""
    return lambda step: pl.ds(ids_ref[step] * block, block)


def attend(q_ref, k_ref, v_ref, bias_ref, o_ref, lse_ref, at: At, steps) -> None:
    """Writes softmax attention of a block of queries to all steps' keys, and its log-sum-exp."""
    o, lse_ref[...] = attended(q_ref, k_ref, v_ref, bias_ref, at, steps)
    o_ref[...] = o.astype(o_ref.dtype)


def attended(q_ref, k_ref, v_ref, bias_ref, at: At, steps) -> tuple[jax.Array, jax.Array]:
    """Returns the output of a block of queries, as in `attend`, in float32 and its log-sum-exp."""
    q = q_ref[...]

    def fold(step, carry):
        top, total, acc = carry
        keys = at(step)
        s = logits(q, k_ref[keys, :]) + bias_ref[keys][None, :]
        new = jnp.maximum(top, s.max(axis=1))
        p = jnp.exp2(s - new[:, None])
        shrink = jnp.exp2(top - new)
        acc = acc * shrink[:, None] + dot(p.astype(q.dtype), v_ref[keys, :])
        return new, total * shrink + p.sum(axis=1), acc

    rows = q.shape[0]
    start = (
        jnp.full((rows,), LOWEST, jnp.float32),
        jnp.zeros((rows,), jnp.float32),
        jnp.zeros(q.shape, jnp.float32),
    )
    top, total, acc = lax.fori_loop(0, steps, fold, start)
    total = jnp.where(total > 0, total, 1)
    return acc / total[:, None], top + jnp.log2(total)


def row_sums(do: jax.Array, o: jax.Array) -> jax.Array:
    """Returns the sums of do * o over channels, which the softmax's gradient subtracts per row."""
    return (do.astype(jnp.float32) * o.astype(jnp.float32)).sum(axis=1)


def query_gradient(q_ref, k_ref, v_ref, bias_ref, do, lse, delta, dq_ref, at: At, steps) -> None:
    """Writes the gradient of a block of queries, summed over the keys of all steps."""
    q = q_ref[...]

    def fold(step, dq):
        keys = at(step)
        k = k_ref[keys, :]
        p = jnp.exp2(logits(q, k) + bias_ref[keys][None, :] - lse[:, None])
        ds = p * (dot(do, v_ref[keys, :], trans_b=True) - delta[:, None])
        return dq + dot(ds.astype(q.dtype), k)

    zero = jnp.zeros(q.shape, jnp.float32)
    dq = lax.fori_loop(0, steps, fold, zero)
    dq_ref[...] = (dq * q.shape[1] ** -0.5).astype(dq_ref.dtype)


def key_gradient(
    q_ref, k_ref, v_ref, bias_ref, do_ref, lse_ref, delta_ref, dk_ref, dv_ref, at: At, steps
) -> None:
    """Writes the gradients of a block of keys and values, summed over the queries of all steps.

    `at` gives the queries of a step and which of them count, or None where all do; `steps` is
    where steps begin and end.
    """
    k, v, bias = k_ref[...], v_ref[...], bias_ref[...]

    def fold(step, carry):
        dk, dv = carry
        rows, used = at(step)
        q, do = q_ref[rows, :], do_ref[rows, :]
        p = jnp.exp2(logits(k, q) + bias[:, None] - lse_ref[rows][None, :])
        p = p if used is None else jnp.where(used[None, :], p, 0)
        dv += dot(p.astype(do.dtype), do)
        ds = p * (dot(v, do, trans_b=True) - delta_ref[rows][None, :])
        return dk + dot(ds.astype(q.dtype), q), dv

    zero = jnp.zeros(k.shape, jnp.float32)
    dk, dv = lax.fori_loop(steps[0], steps[1], fold, (zero, zero))
    dk_ref[...] = (dk * k.shape[1] ** -0.5).astype(dk_ref.dtype)
    dv_ref[...] = dv.astype(dv_ref.dtype)


def dot(x: jax.Array, y: jax.Array, *, trans_a: bool = False, trans_b: bool = False):
    """Returns a matrix product, in full float32 for float32, where the default would be TF32."""
    full = x.dtype == jnp.float32
    precision = lax.Precision.HIGHEST if full else lax.Precision.DEFAULT
    return plt.dot(x, y, trans_a=trans_a, trans_b=trans_b, precision=precision)


def logits(x: jax.Array, y: jax.Array) -> jax.Array:
    """Returns x y^T log2(e) / sqrt(D), the logits of a softmax in base 2, without a bias."""
    return dot(x, y, trans_b=True) * (LOG2E * x.shape[1] ** -0.5)
