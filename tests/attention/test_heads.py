"""Heads one after the other are the heads side by side."""

import jax
import jax.numpy as jnp
import numpy as np

from lite3r_jax.attention.dense import reference
from lite3r_jax.attention.heads import one_at_a_time


def test_value_and_gradients_are_those_of_all_heads_together():
    rng = np.random.default_rng(0)
    q, up = (rng.standard_normal((2, 7, 3, 4)).astype(np.float32) for _ in range(2))
    k, v = (rng.standard_normal((2, 9, 3, 4)).astype(np.float32) for _ in range(2))
    weight = rng.standard_normal((4, 4)).astype(np.float32)

    def attend(q, k, v, weight):
        return reference(q, k, v @ weight)

    @jax.jit
    def both(*args):
        results = []
        for f in (attend, lambda *x: one_at_a_time(attend, *x)):
            o, pull = jax.vjp(f, *args)
            results.append((o, *pull(up)))
        return results

    together, apart = both(q, k, v, weight)
    for x, y in zip(together, apart, strict=True):
        np.testing.assert_allclose(y, x, rtol=0, atol=2e-6)


def test_only_one_head_is_held_at_a_time():
    shapes = [jax.ShapeDtypeStruct((1, 256, heads, 16), jnp.float32) for heads in (1, 16)]
    held = []
    for x in shapes:
        weight = jax.ShapeDtypeStruct((16, 16), jnp.float32)
        f = jax.jit(lambda *x: one_at_a_time(lambda q, k, v, _: reference(q, k, v), *x))
        held.append(f.lower(x, x, x, weight).compile().memory_analysis().temp_size_in_bytes)
    assert held[1] < 1.5 * held[0]
