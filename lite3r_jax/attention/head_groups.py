"""Runs attention over groups of heads one after the other; peak memory is that of one group."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lite3r_jax.mesh import split_ways

_QUERIES = 2**20


def heads_at_a_time(q: jax.Array) -> int:
    """Returns how many heads of q [B, T, N, D] to compute at a time, enough to keep a GPU busy.

    All of them where a mesh splits scenes or views. A million queries are 8192 blocks of 128, and
    a copy of them takes 128 MiB with 64 channels of two bytes.
    """
    b, t, n, _ = q.shape
    most = n if split_ways() > 1 else max(1, min(n, _QUERIES // (b * t)))
    return max(size for size in range(1, most + 1) if n % size == 0)


def map_head_groups(
    attend: Callable[..., Any], q: Any, k: Any, v: Any, *shared: Any, size: int = 1
) -> Any:
    """Computes `attend(q, k, v, *shared)` for groups of `size` heads, one after the other.

    Heads are cut out of q, k and v when their turn comes, and their outputs and gradients are
    written to their places; outputs to those of the queries where dtypes allow, which are not
    needed any more. Of all heads together there is only what `attend` keeps for its backward pass;
    `lax.map` would also hold q, k, v and the output with their heads in front.

    Args:
        attend: of [B, Tq, size, D], twice [B, Tk, size, D] and what is shared, to
            [B, Tq, size, D] in the dtype of v.
        q: [B, Tq, N, D], or a tuple of such with other Tq, for each of which there is an output.
        k: [B, Tk, N, D], or a tuple.
        v: [B, Tk, N, D], or a tuple, all in one dtype.
        *shared: arrays that the heads share.
        size: heads at a time; divides N.

    Returns:
        [B, Tq, N, D] in the dtype of v; a tuple where q is one.
    """
    heads, dtype = jax.tree.leaves(q)[0].shape[2], jax.tree.leaves(v)[0].dtype
    if size == heads:
        return attend(q, k, v, *shared)
    firsts = np.arange(0, heads, size)

    def cut(tree: Any, first: jax.Array) -> Any:
        return jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, first, size, axis=2), tree)

    def put(tree: Any, part: Any, first: jax.Array) -> Any:
        def one(x, y):
            return lax.dynamic_update_slice_in_dim(x, y, first, axis=2)

        return jax.tree.map(one, tree, part)

    def over_queries(turn: Callable[..., tuple[Any, Any]], q: Any) -> tuple[Any, Any]:
        """Calls turn(queries, first head) for every group; returns outputs and the stacked rest."""
        in_place = all(x.dtype == dtype for x in jax.tree.leaves(q))

        def step(o, first):
            part, kept = turn(cut(o if in_place else q, first), first)
            return put(o, part, first), kept

        start = q if in_place else jax.tree.map(lambda x: jnp.zeros(x.shape, dtype), q)
        return lax.scan(step, start, firsts)

    @jax.custom_vjp
    def run(q, k, v, *shared):
        def turn(some, first):
            return attend(some, cut(k, first), cut(v, first), *shared), None

        return over_queries(turn, q)[0]

    def forward(q, k, v, *shared):
        def turn(some, first):
            return jax.vjp(attend, some, cut(k, first), cut(v, first), *shared)

        return over_queries(turn, q)

    def backward(pulls, up):
        def step(carry, xs):
            first, pull = xs
            gradients = pull(cut(up, first))
            whole, totals = carry
            totals = jax.tree.map(jnp.add, totals, gradients[3:])
            return (put(whole, gradients[:3], first), totals), None

        start = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (q, k, v))
        totals = jax.tree.map(jnp.zeros_like, shared)
        (whole, totals), _ = lax.scan(step, (start, totals), (firsts, pulls))
        return *whole, *totals

    run.defvjp(forward, backward)
    return run(q, k, v, *shared)
