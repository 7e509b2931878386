"""The definition of the block selection, on the full matrix of scores."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def block_scores(
    q: jax.Array,
    k: jax.Array,
    q_block: int,
    k_block: int,
    q_valid: jax.Array,
    k_valid: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Scores of all pairs of blocks: pool(q) pool(k)^T, means over the valid tokens of a block.

    SLA (arXiv 2509.24006) Eq. 2 has softmax(pool(Q) pool(K)^T / sqrt(d)); scale and softmax do not
    change the order within a row, and neither does the mean of k, which upstream subtracts
    (thu-ml/SLA sparse_linear_attention/utils.py, get_block_map). All three are left out.

    Args:
        q: [B, Tq, N, D].
        k: [B, Tk, N, D].
        q_block: queries per block.
        k_block: keys per block.
        q_valid: [B, Tq] bool, False for padding.
        k_valid: [B, Tk] bool.

    Returns:
        Scores [B, N, Mq, Mk] in float32 (float64 for float64); whether a query block has a valid
        token [B, Mq]; whether a key block has one [B, Mk].
    """

    def pool(x, valid, block):
        tokens = x.shape[1]
        means, used = [], []
        for start in range(0, tokens, block):
            ok = valid[:, start : start + block, None, None]
            part = jnp.where(ok, x[:, start : start + block], 0)
            means.append(part.sum(axis=1) / jnp.maximum(ok.sum(axis=1), 1))
            used.append(ok.any(axis=(1, 2, 3)))
        return jnp.stack(means, axis=2), jnp.stack(used, axis=1)

    dtype = jnp.promote_types(q.dtype, jnp.float32)
    pooled_q, q_used = pool(q.astype(dtype), q_valid, q_block)
    pooled_k, k_used = pool(k.astype(dtype), k_valid, k_block)
    scores = jnp.einsum("bnid,bnjd->bnij", pooled_q, pooled_k, precision="highest")
    return scores, q_used, k_used


def classes(
    scores: jax.Array,
    q_used: jax.Array,
    k_used: jax.Array,
    top: int,
    bottom: int = 0,
    always: Sequence[int] = (),
) -> jax.Array:
    """M_c of SLA Eq. 3, with blocks that are always kept and blocks that are padding.

    Every row has as critical its `always` blocks and the `top` highest scores of the others, and as
    negligible the `bottom` lowest scores of what is left. Of equal scores the lower block comes
    first, on both ends. Blocks of padding only are never in one of the two, and rows of padding
    have nothing in them.

    Args:
        scores: [B, N, Mq, Mk].
        q_used: [B, Mq] bool, whether a query block has a valid token.
        k_used: [B, Mk] bool.
        top: blocks chosen per row by highest score.
        bottom: blocks chosen per row by lowest score.
        always: key blocks that are always critical.

    Returns:
        [B, N, Mq, Mk] int8: 1 critical, 0 marginal, -1 negligible.
    """
    forced = jnp.isin(jnp.arange(scores.shape[-1]), jnp.asarray(always, jnp.int32))
    forced = forced & k_used[:, None, None]
    free = jnp.broadcast_to(k_used[:, None, None] & ~forced, scores.shape)

    def best(score, among, count):
        order = jnp.argsort(jnp.where(among, -score, jnp.inf), axis=-1, stable=True)
        return (jnp.argsort(order, axis=-1) < count) & among

    critical = best(scores, free, top) | forced
    negligible = best(-scores, free & ~critical, bottom)
    chosen = critical.astype(jnp.int8) - negligible.astype(jnp.int8)
    return jnp.where(q_used[:, None, :, None], chosen, 0).astype(jnp.int8)
