"""The definition of dense attention."""

import math

import jax
import jax.numpy as jnp


def reference(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """softmax(q k^T / sqrt(D)) v for [B, T, N, D]; allocates [B, N, Tq, Tk]."""
    scale = 1 / math.sqrt(q.shape[-1])
    logits = jnp.einsum("bqnd,bknd->bnqk", q, k, preferred_element_type=jnp.float32) * scale
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    o = jnp.einsum("bnqk,bknd->bqnd", weights, v, preferred_element_type=jnp.float32)
    return o.astype(v.dtype)
