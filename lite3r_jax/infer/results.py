"""Results of a forward pass on their way from the devices to the host."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec


def on_host(prediction: Any, views: int) -> Any:
    """A prediction [1, S or more, ...] in NumPy, of the views that count.

    What several devices have comes from each of them, and is together on the host only. With
    several processes every one of them has to call this and gets all views.
    """
    if all(x.is_fully_addressable for x in jax.tree.leaves(prediction)):
        return jax.tree.map(lambda x: x[:, :views], jax.device_get(prediction))
    return jax.tree.map(lambda x: _fetched(x)[:, :views], prediction)


def _fetched(x: jax.Array) -> np.ndarray:
    if x.is_fully_replicated:
        return np.asarray(x)
    mesh = x.sharding.mesh  # pyright: ignore[reportAttributeAccessIssue]
    each = x.shape[1] // mesh.size
    whole = np.empty((len(x), mesh.size, each, *x.shape[2:]), x.dtype)
    with jax.set_mesh(mesh):
        for i in range(each):
            turn = _one_of_each(x, i, mesh.size, NamedSharding(mesh, PartitionSpec()))
            whole[:, :, i] = np.asarray(turn)
    return whole.reshape(x.shape)


@partial(jax.jit, static_argnums=(2, 3))
def _one_of_each(x: jax.Array, i: jax.Array, devices: int, where: NamedSharding) -> jax.Array:
    """The i-th view of every device, [B, devices, ...], on all devices: no more at a time."""
    by_device = x.reshape(len(x), devices, -1, *x.shape[2:])
    one = lax.dynamic_index_in_dim(by_device, i, 2, keepdims=False)
    return lax.with_sharding_constraint(one, where)


def describe_views(tokens: jax.Array) -> jax.Array:
    """A vector for each view: mean and standard deviation over its tokens, float32 [B, S, 2 C].

    Args:
        tokens: [B, S, ..., C].
    """
    flat = tokens.reshape(*tokens.shape[:2], -1, tokens.shape[-1]).astype(jnp.float32)
    return jnp.concatenate([flat.mean(2), flat.std(2)], -1)
