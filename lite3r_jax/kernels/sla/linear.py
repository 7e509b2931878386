"""The linear part of Sparse Linear Attention, from states that are computed once per head.

States and sums are float32 (float64 for float64), also for half precision inputs; products of
float32 inputs are in full, not in TF32. No function keeps more than its inputs for the backward
pass. Shapes are those of `blocked.sparse` but for `linear`.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from lite3r_jax.kernels.block_map.table import BlockMap
from lite3r_jax.kernels.sla.blocks import all_to_blocks, from_blocks, in_parts, whole
from lite3r_jax.kernels.sla.reference import PHI, Phi, Routing

# Numbers in the states [D, D] of key blocks, and in those of query blocks, that `linear_marginal`
# holds at a time: 64 MiB of float32 each. A GPU wants large products more than many; a CPU does not
# care.
_STATES = 2**24


def linear(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    block_map: BlockMap | None,
    *,
    routing: Routing,
    phi: Phi,
    eps: float,
    q_valid: jax.Array,
    k_valid: jax.Array,
) -> jax.Array:
    """Computes the linear part of `api.sla`, whose arguments these are, before its projection.

    Returns:
        [B, Tq, N, D] float32 (float64 for float64).
    """
    sizes = q.shape[1], k.shape[1]
    if block_map is not None:
        sizes = block_map.q_block, block_map.k_block
    blocks = all_to_blocks(q, k, v, q_valid, k_valid, *sizes)
    if routing == "block3":
        assert block_map is not None
        critical, negligible = (
            table.ids.reshape(*blocks[0].shape[:2], -1)
            for table in (block_map.critical, block_map.negligible)
        )
        o = linear_marginal(*blocks, critical, negligible, None, phi, eps)
    else:
        o = linear_all(*blocks, None, phi, eps)
    return from_blocks(o, q_valid)


def linear_all(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    ok: jax.Array,
    proj_lin: jax.Array | None,
    phi: Phi,
    eps: float,
) -> jax.Array:
    """Computes linear attention to all valid keys, projected by W.

    phi(q) (H W) / (phi(q) Z + eps) with H = phi(K)^T V and Z the sum of phi(K) over all keys
    (Lite3R Algorithm 1; thu-ml/SLA core.py). W goes into H, D^3 per head, and not into the output.

    Args:
        q: [H, Mq, q_block, D].
        k: [H, Mk, k_block, D].
        v: [H, Mk, k_block, D].
        ok: [H, Mk, k_block] bool, which keys are valid.
        proj_lin: [D, D], W; None for the output without it.
        phi: name of the feature map.
        eps: added to the denominator.

    Returns:
        [H, Mq, q_block, D] float32 (float64 for float64).
    """
    weight = None if proj_lin is None else proj_lin.astype(_state_dtype(v.dtype))
    dot = _dot(v.dtype)

    @jax.checkpoint
    def head(args):
        features, fk, vh = _features(args, phi)
        state = dot("mkc,mkd->cd", fk, vh)
        if weight is not None:
            state = dot("cd,de->ce", state, weight)
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
    proj_lin: jax.Array | None,
    phi: Phi,
    eps: float,
) -> jax.Array:
    """Computes linear attention to the valid keys of the marginal blocks, projected by W.

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
        proj_lin: [D, D], W; None for the output without it.
        phi: name of the feature map.
        eps: added to the denominator.

    Returns:
        [H, Mq, q_block, D] float32 (float64 for float64); 0 where no block is marginal.
    """
    weight = None if proj_lin is None else proj_lin.astype(_state_dtype(v.dtype))
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
            return o if weight is None else dot("rhqd,de->rhqe", o, weight)

        parts = (in_parts(x.swapaxes(0, 1), rows) for x in (features, table))
        return whole(lax.map(some_rows, tuple(parts)), count).swapaxes(0, 1)

    o = lax.map(some_heads, tuple(in_parts(x, group) for x in (q, k, v, ok, tables)))
    return whole(o, heads)


def _features(args, phi: Phi) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns phi(q), phi(k) with 0 for invalid keys, and v, in the dtype of the states."""
    q, k, v, ok = args
    dtype = _state_dtype(v.dtype)
    fk = jnp.where(ok[..., None], PHI[phi](k.astype(dtype)), 0)
    return PHI[phi](q.astype(dtype)), fk, v.astype(dtype)


def _state_dtype(dtype) -> jnp.dtype:
    return jnp.promote_types(dtype, jnp.float32)


def _divide(weighted: jax.Array, total: jax.Array, eps: float) -> jax.Array:
    return weighted / jnp.where(total > 0, total + eps, 1)[..., None]


def _dot(dtype) -> Callable[[str, jax.Array, jax.Array], jax.Array]:
    """Returns einsum for inputs of a dtype, with TF32, a GPU's default, only for half precision."""
    half = jnp.dtype(dtype).itemsize < 4
    return functools.partial(jnp.einsum, precision=None if half else "highest")
