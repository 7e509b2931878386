"""The linear part of Sparse Linear Attention, from states that are computed once per head.

States and sums are float32 (float64 for float64), also for half precision inputs. Both functions
keep no more than their inputs for the backward pass and work on one head at a time. Shapes are
those of `blocked.sparse`.
"""

import jax
import jax.numpy as jnp
from jax import lax

from lite3r_jax.kernels.sla.blocks import in_parts, whole
from lite3r_jax.kernels.sla.reference import PHI, Phi

# Query blocks whose states [D, D] are held at a time by `linear_marginal`.
_ROWS = 64


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

    @jax.checkpoint
    def head(args):
        features, fk, vh = _features(args, phi)
        state = jnp.einsum("mkd,mke->de", fk, vh) @ weight
        return _divide(features @ state, features @ fk.sum(axis=(0, 1)), eps)

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
    count, columns, d = q.shape[1], k.shape[1], q.shape[-1]
    rows = min(_ROWS, count)
    tables = jnp.concatenate([critical, negligible], axis=-1)

    @jax.checkpoint
    def head(args):
        *qkv, table = args
        features, fk, vh = _features(qkv, phi)
        states = jnp.einsum("mkd,mke->mde", fk, vh).reshape(columns, d * d)
        sums = fk.sum(axis=1)

        @jax.checkpoint
        def some_rows(part):
            fq, listed = part
            row = jnp.arange(rows)[:, None]
            marginal = jnp.ones((rows, columns), fq.dtype).at[row, listed].set(0, mode="drop")
            state = (marginal @ states).reshape(rows, d, d)
            total = jnp.einsum("rqd,rd->rq", fq, marginal @ sums)
            return _divide(jnp.einsum("rqd,rde->rqe", fq, state), total, eps) @ weight

        return whole(lax.map(some_rows, (in_parts(features, rows), in_parts(table, rows))), count)

    return lax.map(head, (q, k, v, ok, tables))


def _features(args, phi: Phi) -> tuple[jax.Array, jax.Array, jax.Array]:
    """phi(q), phi(k) with 0 for what is not valid, v; in the dtype of the states."""
    q, k, v, ok = args
    dtype = jnp.promote_types(v.dtype, jnp.float32)
    fk = jnp.where(ok[..., None], PHI[phi](k.astype(dtype)), 0)
    return PHI[phi](q.astype(dtype)), fk, v.astype(dtype)


def _divide(weighted: jax.Array, total: jax.Array, eps: float) -> jax.Array:
    return weighted / jnp.where(total > 0, total + eps, 1)[..., None]
