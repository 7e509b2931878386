"""The definition of the block selection, in numpy on the full matrix of scores."""

from collections.abc import Sequence

import numpy as np


def block_scores(
    q: np.ndarray,
    k: np.ndarray,
    q_block: int,
    k_block: int,
    q_valid: np.ndarray,
    k_valid: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the scores of all pairs of blocks, pool(q) pool(k)^T, in float64.

    pool takes the mean over the valid tokens of a block.

    SLA (arXiv 2509.24006, Eq. 2-6) has softmax(pool(Q) pool(K)^T / sqrt(d)); scale and softmax do
    not change the order within a row, and neither does the mean of k, which upstream subtracts
    (thu-ml/SLA sparse_linear_attention/utils.py, get_block_map). All three are left out.

    Args:
        q: [B, Tq, N, D].
        k: [B, Tk, N, D].
        q_block: queries per block.
        k_block: keys per block.
        q_valid: [B, Tq] bool, False for padding.
        k_valid: [B, Tk] bool.

    Returns:
        Scores [B, N, Mq, Mk] in float64; whether a query block has a valid
        token [B, Mq]; whether a key block has one [B, Mk].
    """

    def pool(x, valid, block):
        x, valid = np.asarray(x, np.float64), np.asarray(valid)
        means, used = [], []
        for start in range(0, x.shape[1], block):
            ok = valid[:, start : start + block, None, None]
            part = np.where(ok, x[:, start : start + block], 0)
            means.append(part.sum(axis=1) / np.maximum(ok.sum(axis=1), 1))
            used.append(ok.any(axis=(1, 2, 3)))
        return np.stack(means, axis=2), np.stack(used, axis=1)

    pooled_q, q_used = pool(q, q_valid, q_block)
    pooled_k, k_used = pool(k, k_valid, k_block)
    return np.einsum("bnid,bnjd->bnij", pooled_q, pooled_k), q_used, k_used


def classes(
    scores: np.ndarray,
    q_used: np.ndarray,
    k_used: np.ndarray,
    top: int,
    bottom: int = 0,
    always: Sequence[int] = (),
) -> np.ndarray:
    """Returns each key block's class for each query block: M_c of SLA (Eq. 2-6, Alg. 1).

    Beyond SLA, there are blocks that are always kept and blocks that are padding.

    Every row has as critical its `always` blocks and the `top` highest scores of the others, and as
    negligible the `bottom` lowest scores of what is left. Of equal scores the lower block comes
    first, on both ends; infinite ones count as the largest and lowest that are finite, NaN as the
    lowest. Blocks of padding only are never in one of the two, and rows of padding
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
    scores = np.nan_to_num(scores, nan=np.finfo(scores.dtype).min)
    usable = np.broadcast_to(k_used[:, None, None], scores.shape)
    forced = usable & np.isin(np.arange(scores.shape[-1]), list(always))

    def best(score, among, count):
        order = np.argsort(np.where(among, -score, np.inf), axis=-1, kind="stable")
        return (np.argsort(order, axis=-1) < count) & among

    critical = best(scores, usable & ~forced, top) | forced
    negligible = best(-scores, usable & ~critical, bottom)
    chosen = critical.astype(np.int8) - negligible.astype(np.int8)
    return np.where(q_used[:, None, :, None], chosen, 0)
