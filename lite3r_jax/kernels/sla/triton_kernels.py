"""What one program of each GPU kernel of `pallas_triton` does.

Refs are those of one sequence and one head. q, k, v and do hold 0 where they are padding; `bias` is
0 for valid keys and `MASKED` for others. Products take operands in the dtype of the inputs and add
up in float32; everything else is float32.

Softmax part (SLA, arXiv 2509.24006, Algorithms 1-2, Eq. 7, with the 1 / sqrt(D) of dQ and dK that
it leaves out): logits are in base 2, s = q k^T log2(e) / sqrt(D) + bias, and so is the log-sum-exp.

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
from jax.experimental.pallas import triton as plt

from lite3r_jax.kernels.sla.reference import PHI, Phi

LOG2E = 1.4426950408889634
# Both finite, so that no difference is NaN. A running maximum starts, and stays where no key is
# seen, so far above a masked logit that exp2(MASKED - maximum) is 0.
LOWEST = -1e30
MASKED = -2e30


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
    q = q_ref[...]

    def fold(step, carry):
        top, total, acc = carry
        at = pl.ds(ids_ref[step] * k_block, k_block)
        s = _logits(q, k_ref[at, :]) + bias_ref[at][None, :]
        new = jnp.maximum(top, s.max(axis=1))
        p = jnp.exp2(s - new[:, None])
        shrink = jnp.exp2(top - new)
        acc = acc * shrink[:, None] + _dot(p.astype(q.dtype), v_ref[at, :])
        return new, total * shrink + p.sum(axis=1), acc

    rows = q.shape[0]
    start = (
        jnp.full((rows,), LOWEST, jnp.float32),
        jnp.zeros((rows,), jnp.float32),
        jnp.zeros(q.shape, jnp.float32),
    )
    top, total, acc = lax.fori_loop(0, counts_ref[pl.program_id(0) // programs], fold, start)
    total = jnp.where(total > 0, total, 1)
    o_ref[...] = (acc / total[:, None]).astype(o_ref.dtype)
    lse_ref[...] = top + jnp.log2(total)


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
    q, do, lse = q_ref[...], do_ref[...], lse_ref[...]
    delta = (do.astype(jnp.float32) * o_ref[...].astype(jnp.float32)).sum(axis=1)
    delta_ref[...] = delta

    def fold(step, dq):
        at = pl.ds(ids_ref[step] * k_block, k_block)
        k = k_ref[at, :]
        p = jnp.exp2(_logits(q, k) + bias_ref[at][None, :] - lse[:, None])
        ds = p * (_dot(do, v_ref[at, :], trans_b=True) - delta[:, None])
        return dq + _dot(ds.astype(q.dtype), k)

    zero = jnp.zeros(q.shape, jnp.float32)
    dq = lax.fori_loop(0, counts_ref[pl.program_id(0) // programs], fold, zero)
    dq_ref[...] = (dq * q.shape[1] ** -0.5).astype(dq_ref.dtype)


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
    k, v, bias = k_ref[...], v_ref[...], bias_ref[...]
    slices = q_block // size

    def fold(step, carry):
        dk, dv = carry
        first = rows_ref[lax.div(step, slices)] * q_block + lax.rem(step, slices) * size
        at = pl.ds(first, size)
        q, do = q_ref[at, :], do_ref[at, :]
        p = jnp.exp2(_logits(k, q) + bias[:, None] - lse_ref[at][None, :])
        dv += _dot(p.astype(do.dtype), do)
        ds = p * (_dot(v, do, trans_b=True) - delta_ref[at][None, :])
        return dk + _dot(ds.astype(q.dtype), q), dv

    zero = jnp.zeros(k.shape, jnp.float32)
    j = pl.program_id(0)
    bounds = offsets_ref[j] * slices, offsets_ref[j + 1] * slices
    dk, dv = lax.fori_loop(*bounds, fold, (zero, zero))
    dk_ref[...] = (dk * k.shape[1] ** -0.5).astype(dk_ref.dtype)
    dv_ref[...] = dv.astype(dv_ref.dtype)


def sla_linear_state(
    k_ref, v_ref, bias_ref, state_ref, total_ref, *, size: int, chunk: int, phi: Phi
):
    """Some keys: the sums of phi(k)^T v [D, D] and phi(k) [D]."""
    dtype = linear_dtype(v_ref.dtype)

    def fold(step, carry):
        state, total = carry
        at = pl.ds(step * size, size)
        f = jnp.where(bias_ref[at][:, None] == 0, _features(k_ref[at, :], phi)[0], 0)
        state += _dot(f.astype(dtype), v_ref[at, :].astype(dtype), trans_a=True)
        return state, total + f.sum(axis=0)

    _over_chunk(fold, k_ref.shape[0] // size, chunk, state_ref, total_ref)


def sla_linear_forward(q_ref, state_ref, total_ref, o_ref, *, phi: Phi, eps: float):
    """Some queries: o."""
    f, _ = _features(q_ref[...], phi)
    state = state_ref[...]
    o = _dot(f.astype(state.dtype), state) / _denominator(f, total_ref, eps)[:, None]
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
        dstate += _dot(f.astype(dtype), dnum.astype(dtype), trans_a=True)
        return dstate, dtotal + (f * dden[:, None]).sum(axis=0)

    _over_chunk(fold, q_ref.shape[0] // size, chunk, dstate_ref, dtotal_ref)


def sla_linear_key_gradient(k_ref, v_ref, dstate_ref, dtotal_ref, dk_ref, dv_ref, *, phi: Phi):
    """Some keys: the gradients of keys and values from those of H and z, over Tk."""
    dstate = dstate_ref[...]
    f, pull = _features(k_ref[...], phi)
    dv_ref[...] = _dot(f.astype(dstate.dtype), dstate).astype(dv_ref.dtype)
    df = _dot(v_ref[...].astype(dstate.dtype), dstate, trans_b=True) + dtotal_ref[...][None, :]
    dk_ref[...] = pull(df)[0].astype(dk_ref.dtype)


def linear_dtype(dtype: Any) -> Any:
    """Of the operands of the linear part's products."""
    return jnp.float32 if dtype == jnp.float32 else jnp.bfloat16


def _dot(x: jax.Array, y: jax.Array, *, trans_a: bool = False, trans_b: bool = False):
    """In full float32 for float32, where the default would be TF32."""
    full = x.dtype == jnp.float32
    precision = lax.Precision.HIGHEST if full else lax.Precision.DEFAULT
    return plt.dot(x, y, trans_a=trans_a, trans_b=trans_b, precision=precision)


def _logits(x: jax.Array, y: jax.Array) -> jax.Array:
    return _dot(x, y, trans_b=True) * (LOG2E * x.shape[1] ** -0.5)


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
    g = _dot(do.astype(state.dtype), state, trans_b=True)
    return g, -(f * g).sum(axis=1) / (den * den)


def _over_chunk(fold, count, chunk, state_ref, total_ref):
    """Fold `chunk` steps, fewer where they end, into two sums."""
    first = pl.program_id(0) * chunk
    zero = jnp.zeros(state_ref.shape, jnp.float32), jnp.zeros(total_ref.shape, jnp.float32)
    state, total = lax.fori_loop(first, jnp.minimum(first + chunk, count), fold, zero)
    state_ref[...] = state
    total_ref[...] = total
