"""Window attention in plain JAX, on any device, in time and memory of what is attended to."""

import jax
import jax.numpy as jnp
import numpy as np

from lite3r_jax.kernels.sla.blocked import BlockedTiles, sparse
from lite3r_jax.kernels.sla.blocks import from_blocks, to_blocks
from lite3r_jax.kernels.tokens import inverse, take
from lite3r_jax.kernels.window_attention.reference import window_of

_LOGITS = 2**16
"""Number of pairs of a query and a key that are worked on at a time."""


def window_attention_blocked(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    ids: jax.Array,
    *,
    q_windows: np.ndarray,
    k_windows: np.ndarray,
    always: np.ndarray,
) -> jax.Array:
    """Computes `api.window_attention`, which has the same arguments, in plain JAX.

    The keys that all queries see are listed for every window of queries: windows as they are, and
    keys in no window in blocks of the size of a window.
    """
    b, t, n, _ = q.shape
    size, columns = q_windows.shape[1], len(k_windows)
    others = np.flatnonzero(window_of(k_windows, k.shape[1]) < 0)
    others = np.pad(others, (0, -len(others) % size), constant_values=k.shape[1])
    blocks = np.concatenate([k_windows, others.reshape(-1, size).astype(np.int32)])

    everywhere = np.concatenate([always, np.arange(columns, len(blocks))]).astype(np.int32)
    everywhere = jnp.broadcast_to(everywhere, (b * n, len(q_windows), len(everywhere)))
    ids = jnp.concatenate([ids.reshape(b * n, len(q_windows), -1), everywhere], axis=-1)
    ids = jnp.sort(ids, axis=-1)

    here = jnp.asarray(blocks.reshape(-1) < k.shape[1])
    valid = jnp.broadcast_to(here, (b, blocks.size))
    kb, vb = (to_blocks(take(x, blocks), valid, size) for x in (k, v))
    q_valid = jnp.broadcast_to(jnp.asarray(q_windows.reshape(-1) < t), (b, q_windows.size))
    qb = to_blocks(take(q, q_windows), q_valid, size)
    ok = jnp.broadcast_to(here.reshape(-1, size), kb.shape[:3])
    entries = min(ids.shape[-1], max(1, _LOGITS // size**2))
    tiles = BlockedTiles(max(1, _LOGITS // (size**2 * entries)), entries)
    o = from_blocks(sparse(qb, kb, vb, ok, ids, tiles), q_valid).astype(v.dtype)
    return take(o, inverse(q_windows, t))
