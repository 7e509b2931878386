"""Attention to one head after the other, in the memory of one head."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Attend = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]


def one_at_a_time(
    attend: Attend, q: jax.Array, k: jax.Array, v: jax.Array, weight: jax.Array
) -> jax.Array:
    """`attend(q, k, v, weight)` for every head by itself.

    A head is cut out of q, k and v when its turn comes, and its output and gradients are written to
    their places. Of all heads together there is only what `attend` keeps for its backward pass;
    `lax.map` would also hold q, k, v and the output with their heads in front.

    Args:
        attend: of [B, Tq, 1, D], twice [B, Tk, 1, D] and the weight, to [B, Tq, 1, D] in the dtype
            of v.
        q: [B, Tq, N, D].
        k: [B, Tk, N, D].
        v: [B, Tk, N, D].
        weight: an array that the heads share.

    Returns:
        [B, Tq, N, D] in the dtype of v.
    """
    heads = np.arange(q.shape[2])

    @jax.custom_vjp
    def run(q, k, v, weight):
        def step(o, i):
            return _put(o, attend(_cut(q, i), _cut(k, i), _cut(v, i), weight), i), None

        return lax.scan(step, jnp.zeros(q.shape, v.dtype), heads)[0]

    def forward(q, k, v, weight):
        def step(o, i):
            part, pull = jax.vjp(attend, _cut(q, i), _cut(k, i), _cut(v, i), weight)
            return _put(o, part, i), pull

        return lax.scan(step, jnp.zeros(q.shape, v.dtype), heads)

    def backward(pulls, up):
        def step(carry, xs):
            i, pull = xs
            *parts, dweight = pull(_cut(up, i))
            *whole, total = carry
            return (
                *(_put(x, y, i) for x, y in zip(whole, parts, strict=True)),
                total + dweight,
            ), None

        start = *(jnp.zeros(x.shape, x.dtype) for x in (q, k, v)), jnp.zeros_like(weight)
        return lax.scan(step, start, (heads, pulls))[0]

    run.defvjp(forward, backward)
    return run(q, k, v, weight)


def _cut(x: jax.Array, head: jax.Array) -> jax.Array:
    return lax.dynamic_slice_in_dim(x, head, 1, axis=2)


def _put(x: jax.Array, part: jax.Array, head: jax.Array) -> jax.Array:
    return lax.dynamic_update_slice_in_dim(x, part, head, axis=2)
