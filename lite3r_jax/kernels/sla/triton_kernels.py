"""What one program of each GPU kernel of `pallas_triton` does.

Refs and masks are as in `flash_kernels`. Products take operands in the dtype of the inputs and add
up in float32; everything else is float32.

Softmax part: SLA, arXiv 2509.24006, Algorithms 1-2, Eq. 7, with the 1 / sqrt(D) of dQ and dK that
it leaves out.

Linear part over all keys (Eq. 5-6 and 8 with one set for all queries): states are means over keys,
H = phi(K)^T V / Tk and z = phi(K)^T 1 / Tk, and eps / Tk goes with them, so that

    o = phi(q) S / den,    S = H W,    den = phi(q) z + eps / Tk

stays in the range of half precision. Gradients of S need not, so that in half precision the
operands of its products are bfloat16. phi and its derivative come from `reference.PHI`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from lite3r_jax.kernels.flash_kernels import (
    attend,
    dot,
    key_gradient,
    listed,
    query_gradient,
    row_sums,
)
from lite3r_jax.kernels.sla.reference import PHI, Phi


def sla_forward(
    q_ref,
    k_ref,
    v_ref,
    bias_ref,
    ids_ref,
    counts_ref,
    o_ref,
    lse_ref,
    *,
    k_block: int,
    programs: int,
):
    """One query block, or its part among so many programs: output and log-sum-exp."""
    at, count = listed(ids_ref, k_block), counts_ref[pl.program_id(0) // programs]
    attend(q_ref, k_ref, v_ref, bias_ref, o_ref, lse_ref, at, count)


def sla_query_gradient(
    q_ref,
    k_ref,
    v_ref,
    bias_ref,
    ids_ref,
    counts_ref,
    do_ref,
    o_ref,
    lse_ref,
    dq_ref,
    delta_ref,
    *,
    k_block: int,
    programs: int,
):
    """One query block, or its part: its gradient, and delta, the row sums of do * o."""
    do = do_ref[...]
    delta = row_sums(do, o_ref[...])
    delta_ref[...] = delta
    at, count = listed(ids_ref, k_block), counts_ref[pl.program_id(0) // programs]
    query_gradient(q_ref, k_ref, v_ref, bias_ref, do, lse_ref[...], delta, dq_ref, at, count)


def sla_key_gradient(
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
    *,
    q_block: int,
    size: int,
):
    """One key block: the gradients of keys and values, over `size` queries at a time."""
    slices = q_block // size

    def at(step):
        first = rows_ref[lax.div(step, slices)] * q_block + lax.rem(step, slices) * size
        return pl.ds(first, size), None

    j = pl.program_id(0)
    key_gradient(
        q_ref,
        k_ref,
        v_ref,
        bias_ref,
        do_ref,
        lse_ref,
        delta_ref,
        dk_ref,
        dv_ref,
        at,
        (offsets_ref[j] * slices, offsets_ref[j + 1] * slices),
    )


def sla_linear_state(
    k_ref, v_ref, bias_ref, state_ref, total_ref, *, size: int, chunk: int, phi: Phi
):
    """Some keys: the sums of phi(k)^T v [D, D] and phi(k) [D]."""
    dtype = linear_dtype(v_ref.dtype)

    def fold(step, carry):
        state, total = carry
        at = pl.ds(step * size, size)
        f = jnp.where(bias_ref[at][:, None] == 0, _features(k_ref[at, :], phi)[0], 0)
        state += dot(f.astype(dtype), v_ref[at, :].astype(dtype), trans_a=True)
        return state, total + f.sum(axis=0)

    _over_chunk(fold, k_ref.shape[0] // size, chunk, state_ref, total_ref)


def sla_linear_forward(q_ref, state_ref, total_ref, o_ref, *, phi: Phi, eps: float):
    """Some queries: o."""
    f, _ = _features(q_ref[...], phi)
    state = state_ref[...]
    o = dot(f.astype(state.dtype), state) / _denominator(f, total_ref, eps)[:, None]
    o_ref[...] = o.astype(o_ref.dtype)


def sla_linear_query_gradient(q_ref, state_ref, total_ref, do_ref, dq_ref, *, phi: Phi, eps: float):
    """Some queries: their gradient."""
    f, pull = _features(q_ref[...], phi)
    den = _denominator(f, total_ref, eps)
    df, dden = _through_states(f, den, do_ref[...], state_ref)
    df = df / den[:, None] + dden[:, None] * total_ref[...][None, :]
    dq_ref[...] = pull(df)[0].astype(dq_ref.dtype)


def sla_linear_state_gradient(
    q_ref,
    state_ref,
    total_ref,
    do_ref,
    dstate_ref,
    dtotal_ref,
    *,
    size: int,
    chunk: int,
    phi: Phi,
    eps: float,
):
    """Some queries: what they add to the gradients of S [D, D] and z [D]."""
    dtype = state_ref.dtype

    def fold(step, carry):
        dstate, dtotal = carry
        at = pl.ds(step * size, size)
        do = do_ref[at, :]
        f, _ = _features(q_ref[at, :], phi)
        den = _denominator(f, total_ref, eps)
        _, dden = _through_states(f, den, do, state_ref)
        dnum = do.astype(jnp.float32) / den[:, None]
        dstate += dot(f.astype(dtype), dnum.astype(dtype), trans_a=True)
        return dstate, dtotal + (f * dden[:, None]).sum(axis=0)

    _over_chunk(fold, q_ref.shape[0] // size, chunk, dstate_ref, dtotal_ref)


def sla_linear_key_gradient(k_ref, v_ref, dstate_ref, dtotal_ref, dk_ref, dv_ref, *, phi: Phi):
    """Some keys: the gradients of keys and values from those of H and z, over Tk."""
    dstate = dstate_ref[...]
    f, pull = _features(k_ref[...], phi)
    dv_ref[...] = dot(f.astype(dstate.dtype), dstate).astype(dv_ref.dtype)
    df = dot(v_ref[...].astype(dstate.dtype), dstate, trans_b=True) + dtotal_ref[...][None, :]
    dk_ref[...] = pull(df)[0].astype(dk_ref.dtype)


def linear_dtype(dtype: Any) -> Any:
    """Of the operands of the linear part's products."""
    return jnp.float32 if dtype == jnp.float32 else jnp.bfloat16


def _features(x: jax.Array, phi: Phi):
    """phi(x) in float32, and how its gradient becomes that of x."""
    return jax.vjp(PHI[phi], x.astype(jnp.float32))


def _denominator(f, total_ref, eps):
    """den; 1 where no key has a weight, and so phi(q) S is 0."""
    total = (f * total_ref[...][None, :]).sum(axis=1)
    return jnp.where(total > 0, total + eps, 1)


def _through_states(f, den, do, state_ref):
    """do S^T, and the gradient of den: -do o / den, where do o = phi(q) (do S^T) / den."""
    state = state_ref[...]
    g = dot(do.astype(state.dtype), state, trans_b=True)
    return g, -(f * g).sum(axis=1) / (den * den)


def _over_chunk(fold, count, chunk, state_ref, total_ref):
    """Fold `chunk` steps, fewer where they end, into two sums."""
    first = pl.program_id(0) * chunk
    zero = jnp.zeros(state_ref.shape, jnp.float32), jnp.zeros(total_ref.shape, jnp.float32)
    state, total = lax.fori_loop(first, jnp.minimum(first + chunk, count), fold, zero)
    state_ref[...] = state
    total_ref[...] = total
