"""Cutting tokens into blocks, and blocks into parts that are worked on one after the other."""

import jax
import jax.numpy as jnp

from lite3r_jax.kernels.block_map.table import block_count


def to_blocks(x: jax.Array, valid: jax.Array, block: int) -> jax.Array:
    """Cuts [B, T, N, D] into [B * N, M, block, D], with 0 for tokens that are not valid [B, T]."""
    b, tokens, n, d = x.shape
    blocks = block_count(tokens, block)
    x = jnp.where(valid[..., None, None], x, 0).transpose(0, 2, 1, 3)
    x = jnp.pad(x, ((0, 0), (0, 0), (0, blocks * block - tokens), (0, 0)))
    return x.reshape(b * n, blocks, block, d)


def all_to_blocks(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    q_valid: jax.Array,
    k_valid: jax.Array,
    q_block: int,
    k_block: int,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Cuts q, k and v by `to_blocks`; also returns which keys are valid, [B * N, Mk, k_block]."""
    qb = to_blocks(q, q_valid, q_block)
    kb, vb = (to_blocks(x, k_valid, k_block) for x in (k, v))
    pad = kb.shape[1] * k_block - k.shape[1]
    ok = jnp.pad(k_valid, ((0, 0), (0, pad))).reshape(k.shape[0], *kb.shape[1:3])
    return qb, kb, vb, jnp.repeat(ok, k.shape[2], axis=0)


def from_blocks(x: jax.Array, valid: jax.Array) -> jax.Array:
    """Inverts `to_blocks`: [B * N, M, block, D] -> [B, T, N, D], with 0 where not valid [B, T]."""
    b, tokens = valid.shape
    x = x.reshape(b, x.shape[0] // b, -1, x.shape[-1])[:, :, :tokens].transpose(0, 2, 1, 3)
    return jnp.where(valid[..., None, None], x, 0)


def in_parts(x: jax.Array, rows: int, fill: int = 0) -> jax.Array:
    """Splits [M, ...] into [parts, rows, ...]; the last part is filled up with `fill`."""
    parts = block_count(x.shape[0], rows)
    pad = [(0, parts * rows - x.shape[0])] + [(0, 0)] * (x.ndim - 1)
    return jnp.pad(x, pad, constant_values=fill).reshape(parts, rows, *x.shape[1:])


def whole(x: jax.Array, count: int) -> jax.Array:
    """Inverts `in_parts`: [parts, rows, ...] -> [count, ...]."""
    return x.reshape(-1, *x.shape[2:])[:count]
