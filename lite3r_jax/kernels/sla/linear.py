"""The linear part of Sparse Linear Attention, from states that are computed once per head.

States and sums are float32 (float64 for float64), also for half precision inputs; products of
float32 inputs are in full, not in TF32. Both functions keep no more than their inputs for the
backward pass. Shapes are those of `blocked.sparse`.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from lite3r_jax.kernels.sla.blocks import in_parts, whole
from lite3r_jax.kernels.sla.reference import PHI, Phi

# Numbers in the states [D, D] of key blocks, and in those of query blocks, that `linear_marginal`
# holds at a time: 64 MiB of float32 each. A GPU wants large products more than many; a CPU does not
# care.
_STATES = 2**24


def linear_all(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    ok: jax.Array,
    proj_lin: jax.Array,
    phi: Phi,
    eps: float,
) -> jax.Array:
    """Linear attention to all valid keys, projected.

    phi(q) (H W) / (phi(q) Z + eps) with H = phi(K)^T V and Z the sum of phi(K) over all keys
    (Lite3R Algorithm 1; thu-ml/SLA core.py). W goes into H, D^3 per head, and not into the output.

    Args:
        q: [H, Mq, q_block, D].
        k: [H, Mk, k_block, D].
        v: [H, Mk, k_block, D].
        ok: [H, Mk, k_block] bool, which keys are valid.
        proj_lin: [D, D], W.
        phi: name of the feature map.
        eps: added to the denominator.

    Returns:
        [H, Mq, q_block, D] float32 (float64 for float64).
    """
    weight = proj_lin.astype(jnp.promote_types(v.dtype, jnp.float32))
    dot = _dot(v.dtype)

    @jax.checkpoint
    def head(args):
        features, fk, vh = _features(args, phi)
        state = dot("cd,de->ce", dot("mkc,mkd->cd", fk, vh), weight)
        total = dot("mqd,d->mq", features, fk.sum(axis=(0, 1)))
        return _divide(dot("mqd,de->mqe", features, state), total, eps)

    return lax.map(head, (q, k, v, ok))


def linear_marginal(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    ok: jax.Array,
    critical: jax.Array,
    negligible: jax.Array,
    proj_lin: jax.Array,
    phi: Phi,
    eps: float,
) -> jax.Array:
    """Linear attention to the valid keys of the marginal blocks, projected.

    phi(Q_i) H_i / (phi(Q_i) Z_i + eps) with H_i and Z_i the sums of h_j = phi(K_j)^T V_j and
    z_j = sum phi(K_j) over the blocks j that are marginal for i (SLA Eq. 2-6, Alg. 1). The sums are
    a product of the 0/1 matrix of marginal blocks with the states: D / (2 q_block k_block) of dense
    attention's work, 1/128 where all are 64. Taking the other blocks from the sum over all (SLA
    A.3) would be less, but what is left of float32 after that subtraction depends on the data.

    Args:
        q: [H, Mq, q_block, D].
        k: [H, Mk, k_block, D].
        v: [H, Mk, k_block, D].
        ok: [H, Mk, k_block] bool, which keys are valid.
        critical: [H, Mq, K] int32, as in `BlockTable`.
        negligible: [H, Mq, L] int32.
        proj_lin: [D, D].
        phi: name of the feature map.
        eps: added to the denominator.

    Returns:
        [H, Mq, q_block, D] float32 (float64 for float64); 0 where no block is marginal.
    """
    weight = proj_lin.astype(jnp.promote_types(v.dtype, jnp.float32))
    dot = _dot(v.dtype)
    heads, count, columns, d = *q.shape[:2], k.shape[1], q.shape[-1]
    fit = max(1, _STATES // (columns * d * d))
    group = max(size for size in range(1, heads + 1) if heads % size == 0 and size <= fit)
    rows = min(max(1, _STATES // (group * d * d)), count)
    tables = jnp.concatenate([critical, negligible], axis=-1)

    @jax.checkpoint
    def some_heads(args):
        *qkv, table = args
        features, fk, vh = _features(qkv, phi)
        states = dot("hmkd,hmke->hmde", fk, vh).reshape(group, columns, d * d)
        sums = fk.sum(axis=2)

        @jax.checkpoint
        def some_rows(part):
            fq, listed = part
            at = jnp.arange(rows)[:, None, None], jnp.arange(group)[:, None], listed
            marginal = jnp.ones((rows, group, columns), fq.dtype).at[at].set(0, mode="drop")
            state = dot("rhm,hmx->rhx", marginal, states).reshape(rows, group, d, d)
            total = dot("rhqd,rhd->rhq", fq, dot("rhm,hmd->rhd", marginal, sums))
            o = _divide(dot("rhqd,rhde->rhqe", fq, state), total, eps)
            return dot("rhqd,de->rhqe", o, weight)

        parts = (in_parts(x.swapaxes(0, 1), rows) for x in (features, table))
        return whole(lax.map(some_rows, tuple(parts)), count).swapaxes(0, 1)

    o = lax.map(some_heads, tuple(in_parts(x, group) for x in (q, k, v, ok, tables)))
    return whole(o, heads)


def _features(args, phi: Phi) -> tuple[jax.Array, jax.Array, jax.Array]:
    """phi(q), phi(k) with 0 for what is not valid, v; in the dtype of the states."""
    q, k, v, ok = args
    dtype = jnp.promote_types(v.dtype, jnp.float32)
    fk = jnp.where(ok[..., None], PHI[phi](k.astype(dtype)), 0)
    return PHI[phi](q.astype(dtype)), fk, v.astype(dtype)


def _divide(weighted: jax.Array, total: jax.Array, eps: float) -> jax.Array:
    return weighted / jnp.where(total > 0, total + eps, 1)[..., None]


def _dot(dtype) -> Callable[[str, jax.Array, jax.Array], jax.Array]:
    """Products for inputs of that dtype; TF32, a GPU's default, only for half precision."""
    half = jnp.dtype(dtype).itemsize < 4
    return functools.partial(jnp.einsum, precision=None if half else "highest")
