"""Heads one after the other, or some at a time, are the heads side by side."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType

from lite3r_jax.attention.head_groups import heads_at_a_time, map_head_groups
from lite3r_jax.kernels.dense.reference import reference


@pytest.mark.parametrize("size", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_value_and_gradients_are_those_of_all_heads_together(size):
    rng = np.random.default_rng(0)
    q, up = (rng.standard_normal((2, 7, 4, 4)).astype(np.float32) for _ in range(2))
    k, v = (rng.standard_normal((2, 9, 4, 4)).astype(np.float32) for _ in range(2))
    weight = rng.standard_normal((4, 4)).astype(np.float32)

    def attend(q, k, v, weight):
        return reference(q, k, v @ weight)

    @jax.jit
    def both(*args):
        results = []
        for f in (attend, lambda *x: map_head_groups(attend, *x, size=size)):
            o, pull = jax.vjp(f, *args)
            results.append((o, *pull(up)))
        return results

    together, apart = both(q, k, v, weight)
    for x, y in zip(together, apart, strict=True):
        np.testing.assert_allclose(y, x, rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_several_sequences_go_through_their_heads_together(dtype):
    rng = np.random.default_rng(0)
    sides = [
        tuple(rng.standard_normal((2, t, 4, 4)).astype(np.float32) for t in lengths)
        for lengths in ((7, 3), (9, 5), (9, 5))
    ]
    sides[2] = tuple(x.astype(dtype) for x in sides[2])

    def attend(q, k, v):
        return reference(q[0], k[1], v[1]), reference(q[1], k[0], v[0])

    results = []
    for f in (attend, lambda *x: map_head_groups(attend, *x, size=2)):
        o, pull = jax.vjp(f, *sides)
        assert [x.dtype for x in o] == [dtype, dtype]
        results.append((o, pull(o)))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(y, x, rtol=0, atol=2e-6), *results)


def test_only_one_head_is_held_at_a_time():
    shapes = [jax.ShapeDtypeStruct((1, 256, heads, 16), jnp.float32) for heads in (1, 16)]
    held = []
    for x in shapes:
        weight = jax.ShapeDtypeStruct((16, 16), jnp.float32)
        f = jax.jit(lambda *x: map_head_groups(lambda q, k, v, _: reference(q, k, v), *x))
        held.append(f.lower(x, x, x, weight).compile().memory_analysis().temp_size_in_bytes)
    assert held[1] < 1.5 * held[0]


def test_outputs_have_the_dtype_of_values_where_queries_have_another():
    q, k, v = (jnp.ones((1, 5, 2, 4), dtype) for dtype in ("float32", "float32", "bfloat16"))
    o = map_head_groups(reference, q, k, v)
    assert o.dtype == jnp.bfloat16
    np.testing.assert_array_equal(o, jnp.ones_like(o))


@pytest.mark.parametrize("tokens,heads", [(2_748, 16), (65_536, 16), (137_400, 4), (2_748_000, 1)])
def test_heads_are_fewer_at_a_time_where_queries_are_many(tokens, heads):
    q = jax.ShapeDtypeStruct((1, tokens, 16, 64), jnp.bfloat16)
    assert heads_at_a_time(q) == heads
    with jax.sharding.use_abstract_mesh(AbstractMesh((2,), ("data",), (AxisType.Auto,))):
        assert heads_at_a_time(q) == 16, "devices have parts of them"
