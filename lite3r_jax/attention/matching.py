"""Finds the most similar tokens, and averages tokens that are merged."""

import jax
import jax.numpy as jnp
from jax import lax

from lite3r_jax.mesh import VIEWS, ViewParts

CHUNK = 2048
"""Number of tokens that are compared with all others at a time."""


def padded(sources: int) -> int:
    """Returns how many tokens are compared for `sources` tokens, padding of the chunks included."""
    chunks = max(1, -(-sources // CHUNK))
    return chunks * -(-sources // chunks)


def best_match(sources: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Finds for every source the target with the largest cosine; of equal ones the first.

    Not differentiable. Products are made in the dtype of the arguments and summed in float32.

    Args:
        sources: [B, n, C].
        targets: [B, m, C], at least one.

    Returns:
        ([B, n] int32, [B, n] float32 cosines).
    """
    b, n, c = sources.shape
    total, chunks = padded(n), max(1, -(-n // CHUNK))
    targets = _unit(targets)
    filled = jnp.pad(_unit(sources), ((0, 0), (0, total - n), (0, 0)))
    parts = jnp.moveaxis(filled.reshape(b, chunks, total // chunks, c), 1, 0)

    def compare(part: jax.Array) -> tuple[jax.Array, jax.Array]:
        cosine = jnp.einsum("bnc,bmc->bnm", part, targets, preferred_element_type=jnp.float32)
        return jnp.argmax(cosine, axis=-1).astype(jnp.int32), cosine.max(axis=-1)

    match, cosine = (
        jnp.moveaxis(a, 0, 1).reshape(b, total)[:, :n] for a in lax.map(compare, parts)
    )
    return match, cosine


def best_match_shared(
    sources: jax.Array, targets: jax.Array, parts: ViewParts
) -> tuple[jax.Array, jax.Array]:
    """Computes `best_match` on several devices, each of which compares a share of the sources.

    Args:
        sources: [B, n, C], equal on all devices.
        targets: [B, m, C], likewise.
        parts: the devices; inside of `ViewParts.on_each` only.

    Returns:
        As `best_match`, on all devices.
    """
    count = sources.shape[1]
    each = -(-count // parts.devices)
    filled = jnp.pad(sources, ((0, 0), (0, each * parts.devices - count), (0, 0)))
    mine = lax.dynamic_slice_in_dim(filled, lax.axis_index(VIEWS[0]) * each, each, axis=1)
    match, cosine = (
        lax.all_gather(x, VIEWS[0], axis=1, tiled=True)[:, :count]
        for x in best_match(mine, targets)
    )
    return match, cosine


def merge(
    targets: jax.Array, sources: jax.Array, match: jax.Array, merged: jax.Array | None = None
) -> jax.Array:
    """Averages every target with the sources that are matched to it, in float32.

    Args:
        targets: [B, m, C].
        sources: [B, n, C].
        match: [B, n] int32, below m.
        merged: [B or 1, n] bool, sources that count; None for all of them.

    Returns:
        [B, m, C] in the dtype of `targets`.
    """
    scenes = jnp.arange(targets.shape[0])[:, None]
    weight = jnp.ones(match.shape, jnp.float32)
    more = sources.astype(jnp.float32)
    if merged is not None:
        weight = weight * merged
        more = more * weight[..., None]
    total = targets.astype(jnp.float32).at[scenes, match].add(more)
    count = jnp.ones(targets.shape[:2], jnp.float32).at[scenes, match].add(weight)
    return (total / count[..., None]).astype(targets.dtype)


def unmerge(merged: jax.Array, rows: jax.Array) -> jax.Array:
    """Returns for every token the output of the row that the token was merged into.

    Args:
        merged: [B, m, N, D].
        rows: [B, T] int32, below m.

    Returns:
        [B, T, N, D].
    """
    return jnp.take_along_axis(merged, rows[:, :, None, None], axis=1)


def _unit(x: jax.Array) -> jax.Array:
    f = lax.stop_gradient(x).astype(jnp.float32)
    length = jnp.linalg.norm(f, axis=-1, keepdims=True)
    return (f / jnp.maximum(length, 1e-12)).astype(x.dtype)
