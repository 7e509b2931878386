"""GPU kernels of `pallas_triton`, as the code of one program; refs are as in `flash_kernels`.

Programs of `window_...` have a window of queries or of keys, and the windows that go with it; those
of `window_all_...` have a block of queries that see all keys, or of keys that all queries see. The
two softmaxes are merged afterwards, so the log-sum-exp in base 2 has a gradient, dlse: delta is
less by dlse log2(e).
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from lite3r_jax.kernels.flash_kernels import (
    LOG2E,
    At,
    attend,
    key_gradient,
    query_gradient,
    row_sums,
)

GATHERED = 64
"""Number of tokens of one step of a loop: a window of 8 x 8, or four windows of 4 x 4."""


def window_forward(q_ref, k_ref, v_ref, bias_ref, ids_ref, o_ref, lse_ref):
    """Writes the output and the log-sum-exp of a window of queries."""
    attend(q_ref, k_ref, v_ref, bias_ref, o_ref, lse_ref, *_windows(q_ref, ids_ref))


def window_query_gradient(
    q_ref, k_ref, v_ref, bias_ref, ids_ref, do_ref, o_ref, lse_ref, dlse_ref, dq_ref, delta_ref
):
    """Writes the gradient of a window of queries, and its delta."""
    do = do_ref[...]
    delta_ref[...] = delta = _delta(do, o_ref, dlse_ref)
    loop = _windows(q_ref, ids_ref)
    query_gradient(q_ref, k_ref, v_ref, bias_ref, do, lse_ref[...], delta, dq_ref, *loop)


def window_key_gradient(
    q_ref,
    k_ref,
    v_ref,
    bias_ref,
    rows_ref,
    offsets_ref,
    do_ref,
    lse_ref,
    delta_ref,
    dk_ref,
    dv_ref,
):
    """Writes the gradients of a window of keys, from the windows of queries that chose it."""
    size = k_ref.shape[0]
    some = GATHERED // size
    j = pl.program_id(0)
    first, end = offsets_ref[j], offsets_ref[j + 1]

    def at(step):
        if some == 1:
            return pl.ds(rows_ref[first + step] * size, size), None
        entry, place = _places(first + step * some, size)
        used = entry < end
        row = rows_ref[jnp.where(used, entry, first)]
        return row * size + place, used

    steps = 0, lax.div(end - first + (some - 1), some)
    key_gradient(
        q_ref, k_ref, v_ref, bias_ref, do_ref, lse_ref, delta_ref, dk_ref, dv_ref, at, steps
    )


def window_all_forward(q_ref, k_ref, v_ref, bias_ref, o_ref, lse_ref):
    """Writes the output and the log-sum-exp of a block of queries that see all keys."""
    attend(q_ref, k_ref, v_ref, bias_ref, o_ref, lse_ref, *_all(k_ref))


def window_all_query_gradient(
    q_ref, k_ref, v_ref, bias_ref, do_ref, o_ref, lse_ref, dlse_ref, dq_ref, delta_ref
):
    """Writes the gradient of a block of queries that see all keys, and its delta."""
    do = do_ref[...]
    delta_ref[...] = delta = _delta(do, o_ref, dlse_ref)
    loop = _all(k_ref)
    query_gradient(q_ref, k_ref, v_ref, bias_ref, do, lse_ref[...], delta, dq_ref, *loop)


def window_all_key_gradient(
    q_ref, k_ref, v_ref, bias_ref, do_ref, lse_ref, delta_ref, dk_ref, dv_ref
):
    """Writes the gradients of a block of keys, from all queries."""
    at, steps = _all(q_ref)
    key_gradient(
        q_ref, k_ref, v_ref, bias_ref, do_ref, lse_ref, delta_ref, dk_ref, dv_ref,
        lambda step: (at(step), None), (0, steps),
    )  # fmt: skip


def _all(ref) -> tuple[At, int]:
    """Returns the loop over all rows of a ref: the rows of a step, and the number of steps."""
    return lambda step: pl.ds(step * GATHERED, GATHERED), ref.shape[0] // GATHERED


def _windows(q_ref, ids_ref) -> tuple[At, int]:
    """Returns the loop over the windows of a list: the rows of a step, and the number of steps.

    The length of the list is a multiple of the number of windows of one step.
    """
    size = q_ref.shape[0]
    some = GATHERED // size

    def at(step):
        if some == 1:
            return pl.ds(ids_ref[step] * size, size)
        entry, place = _places(step * some, size)
        return ids_ref[entry] * size + place

    return at, ids_ref.shape[0] // some


def _places(first, size: int) -> tuple[jax.Array, jax.Array]:
    """Returns, for each row of a step, its entry of the list of windows and its place there."""
    row = lax.iota(jnp.int32, GATHERED)
    return first + lax.div(row, size), lax.rem(row, size)


def _delta(do: jax.Array, o_ref, dlse_ref) -> jax.Array:
    return row_sums(do, o_ref[...]) - dlse_ref[...] * LOG2E
