"""Reorders tokens by static tables of indices, and inverts such tables."""

import jax
import numpy as np


def take(x: jax.Array, tokens: np.ndarray) -> jax.Array:
    """Gathers x[:, tokens], with 0 where an index in `tokens` is past the end.

    No token is taken twice, so the gradient is computed by gathering as well, where JAX would add
    row by row.

    Args:
        x: [B, T, ...].
        tokens: indices below T, each at most once, and T any number of times.
    """
    back = inverse(tokens, x.shape[1])

    def get(x: jax.Array, at: np.ndarray) -> jax.Array:
        return x.at[:, at.reshape(-1)].get(mode="fill", fill_value=0)

    @jax.custom_vjp
    def taken(x: jax.Array) -> jax.Array:
        return get(x, tokens)

    taken.defvjp(lambda x: (get(x, tokens), None), lambda _, up: (get(up, back),))
    return taken(x)


def inverse(tokens: np.ndarray, count: int) -> np.ndarray:
    """Returns the place in `tokens` of each token from 0 to `count` - 1.

    Args:
        tokens: tokens below `count`, each at most once, and any others.
        count: number of tokens.

    Returns:
        [count] int32, places in the flattened `tokens`; its length, one past the end, for tokens
        that are not there.
    """
    flat = tokens.reshape(-1)
    places = np.flatnonzero(flat < count)
    lookup = np.full(count, len(flat), np.int32)
    lookup[flat[places]] = places
    return lookup
