"""Descriptor vectors of the views of a scene, by which loops in a long video are found."""

import jax
import jax.numpy as jnp


def describe_views(tokens: jax.Array) -> jax.Array:
    """Returns each view's mean and standard deviation over its tokens, float32 [B, S, 2 C].

    Args:
        tokens: [B, S, ..., C].
    """
    flat = tokens.reshape(*tokens.shape[:2], -1, tokens.shape[-1]).astype(jnp.float32)
    return jnp.concatenate([flat.mean(2), flat.std(2)], -1)
