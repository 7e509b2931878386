"""The definition of window attention, with all pairs of tokens in memory."""

import jax
import jax.numpy as jnp
import numpy as np

from lite3r_jax.kernels.block_map.table import BlockTable
from lite3r_jax.kernels.tokens import inverse


def window_attention_reference(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    ids: jax.Array,
    *,
    q_windows: np.ndarray,
    k_windows: np.ndarray,
    always: np.ndarray,
) -> jax.Array:
    """Computes `api.window_attention`, which has the same arguments, with all logits in memory."""
    of_query, of_key = window_of(q_windows, q.shape[1]), window_of(k_windows, k.shape[1])
    chosen = BlockTable(ids, len(k_windows)).mask()  # [B, N, Nq, Nk]
    seen = chosen[:, :, np.maximum(of_query, 0)][..., np.maximum(of_key, 0)]
    seen = seen | (of_key < 0) | np.isin(of_key, always)
    dtype = jnp.promote_types(q.dtype, jnp.float32)
    logits = jnp.einsum("bqnd,bknd->bnqk", q, k, preferred_element_type=dtype)
    logits = jnp.where(seen, logits * q.shape[-1] ** -0.5, -jnp.inf)
    weights = jax.nn.softmax(logits, axis=-1)
    o = jnp.einsum("bnqk,bknd->bqnd", weights.astype(v.dtype), v)
    return jnp.where((of_query >= 0)[:, None, None], o, 0)


def window_of(windows: np.ndarray, tokens: int) -> np.ndarray:
    """Returns the window of `windows` [n, places] that each token is in, [tokens]; -1 for none."""
    places = inverse(windows, tokens)
    return np.where(places < windows.size, places // windows.shape[1], -1)
