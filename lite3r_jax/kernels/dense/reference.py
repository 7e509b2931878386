"""The definition of dense attention, with all logits in memory."""

import math

import jax
import jax.numpy as jnp


def reference(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Computes softmax(q k^T / sqrt(D)) v for [B, T, N, D]; allocates [B, N, Tq, Tk].

    Logits and sums are float32, or float64 for inputs in float64.
    """
    scale, wide = 1 / math.sqrt(q.shape[-1]), jnp.promote_types(q.dtype, jnp.float32)
    logits = jnp.einsum("bqnd,bknd->bnqk", q, k, preferred_element_type=wide) * scale
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    o = jnp.einsum("bnqk,bknd->bqnd", weights, v, preferred_element_type=wide)
    return o.astype(v.dtype)
