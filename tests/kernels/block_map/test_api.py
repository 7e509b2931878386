"""The block selection against its definition."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lite3r_jax.kernels.block_map import reference
from lite3r_jax.kernels.block_map.api import block_map, budgets


def whole_numbers(seed, tokens, batch=2, heads=3, dim=4):
    """Small whole numbers, so that means over 4 or 8 tokens and their products are exact."""
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.integers(-2, 3, (batch, tokens, heads, dim)), jnp.float32)


def masks(seed, q_tokens, k_tokens):
    """Masks that leave whole blocks of 4 or 8 valid, or not."""
    rng = np.random.default_rng(seed)
    return tuple(
        jnp.asarray(np.repeat(rng.random((2, -(-t // 8))) < 0.7, 8, 1)[:, :t])
        for t in (q_tokens, k_tokens)
    )


@pytest.mark.parametrize(
    "top,bottom,always",
    [
        (3, 0, ()),
        (2, 3, (0, 5)),
        pytest.param(1, 9, (), marks=pytest.mark.slow),
        pytest.param(0, 0, range(10), marks=pytest.mark.slow),
    ],
)
def test_equals_the_definition_with_many_ties(top, bottom, always):
    q, k = whole_numbers(0, 72), whole_numbers(1, 40)
    q_valid, k_valid = masks(2, 72, 40)

    select = functools.partial(
        block_map, q_block=8, k_block=4, top=top, bottom=bottom, always=always
    )
    selected = jax.jit(lambda *x: select(*x[:2], q_valid=x[2], k_valid=x[3]))(
        q, k, q_valid, k_valid
    )
    scores = reference.block_scores(q, k, 8, 4, q_valid, k_valid)
    classes = reference.classes(*scores, top, bottom, always)
    assert not k_valid.all() and not q_valid.all()
    np.testing.assert_array_equal(selected.critical.mask(), classes == 1)
    np.testing.assert_array_equal(selected.negligible.mask(), classes == -1)
    for table in (selected.critical, selected.negligible):
        np.testing.assert_array_equal(table.ids, np.sort(table.ids, -1))
        np.testing.assert_array_equal(table.counts, table.mask().sum(-1))


def test_pools_the_mean_of_valid_tokens_only():
    """Block 1 has the best mean, block 2 the best sum, block 0 the best token, an invalid one."""
    k = jnp.asarray([9.0, 0, 0, 0, 3, 3, 0, 0, 2, 2, 2, 2, 1]).reshape(1, 13, 1, 1)
    valid = jnp.asarray([[False, *[True] * 5, False, False, *[True] * 5]])
    q = jnp.ones((1, 1, 1, 1))
    select = jax.jit(
        lambda k: block_map(q, k, q_block=4, k_block=4, top=1, bottom=1, always=(3,), k_valid=valid)
    )
    for keys in (k, jnp.where(valid[..., None, None], k, jnp.nan)):
        assert select(keys).critical.ids.ravel().tolist() == [1, 3]
        assert select(keys).negligible.ids.ravel().tolist() == [0]


def test_an_added_constant_key_changes_nothing():
    """Which is why upstream's subtraction of the mean key is left out."""
    q, k = whole_numbers(3, 24), whole_numbers(4, 24)
    select = jax.jit(functools.partial(block_map, q_block=4, k_block=4, top=2, bottom=2))
    a, b = select(q, k), select(q, k + jnp.asarray([4.0, -8.0, 2.0, 16.0]))
    np.testing.assert_array_equal(a.critical.ids, b.critical.ids)
    np.testing.assert_array_equal(a.negligible.ids, b.negligible.ids)


def test_budgets_round_down_but_keep_one():
    assert budgets(100, 0.1) == (10, 0)
    assert budgets(19, 0.1, 0.1) == (1, 1)
    assert budgets(5, 0.1, 0.1) == (1, 0)
    assert budgets(7, 1.0, 0.5) == (7, 0)
    assert budgets(10, 0.6, 0.6) == (6, 4)
    assert budgets(0, 0.5) == (0, 0)
    for keep in (0, -0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="keep must be in"):
            budgets(10, keep)
    with pytest.raises(ValueError, match="low must be in"):
        budgets(10, 0.5, 1.0)


def test_bad_arguments_are_named():
    q, k = jnp.zeros((2, 8, 3, 4)), jnp.zeros((2, 12, 3, 4))
    fine = {"q_block": 4, "k_block": 4, "top": 1}
    for args, changes, message in [
        ((q, k[:1]), {}, r"expected q and k as \[B, T, N, D\]"),
        ((q[0], k), {}, "expected q and k"),
        ((q, k[..., :2]), {}, "expected q and k"),
        ((q, k[:, :0]), {}, "need tokens and blocks"),
        ((q, k), {"k_block": 0}, "need tokens and blocks"),
        ((q, k), {"top": 0}, "cannot choose 0 critical"),
        ((q, k), {"top": 4}, "of 3 key blocks 0 are always kept, which leaves 3"),
        ((q, k), {"top": 2, "bottom": 1, "always": (1,)}, "which leaves 2"),
        ((q, k), {"always": (3,)}, r"different blocks in \[0, 3\)"),
        ((q, k), {"always": (1, 1)}, "different blocks"),
        ((q, k), {"implementation": "radix"}, "there are: auto, sorted, jax_triton, triton"),
        ((q, k), {"implementation": "triton"}, "'triton' cannot run this: .*; sorted can"),
        ((q, k), {"k_valid": jnp.ones((2, 3), bool)}, r"k_valid must be bool of shape \(2, 12\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            block_map(*args, **{**fine, **changes})
