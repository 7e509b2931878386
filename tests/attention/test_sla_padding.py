"""What stands in the places of a window that hold no token changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lite3r_jax.attention import sla
from lite3r_jax.attention.sla import SLA
from lite3r_jax.attention.strategy import AttentionInputs, Layouts, TokenLayout
from lite3r_jax.attention.windows import blocks
from lite3r_jax.kernels.tokens import inverse

# 37 x 37 patches leave 39 places of the 22nd window of every view without one.
LAYOUT = TokenLayout(2, 5, (37, 37), "global")


def taken_with_nan(x, tokens):
    """`sla.take`, with NaN where there is no token; backward with 0, as a token must get it."""
    back = inverse(tokens, x.shape[1])

    def get(x, at, fill):
        return x.at[:, at.reshape(-1)].get(mode="fill", fill_value=fill)

    @jax.custom_vjp
    def taken(x):
        return get(x, tokens, jnp.nan)

    taken.defvjp(lambda x: (taken(x), None), lambda _, up: (get(up, back, 0),))
    return taken(x)


def value_and_gradients(spec, args):
    graph, state = nnx.split(
        spec.build(heads=1, head_dim=16, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
    )

    def both(state, q, k, v, up):
        o, pull = jax.vjp(
            lambda s, *x: nnx.merge(graph, s)(AttentionInputs(*x, Layouts.both(LAYOUT))),
            state,
            q,
            k,
            v,
        )
        return o, pull(up)

    return jax.tree.leaves(jax.jit(both)(state, *args))


@pytest.mark.slow
@pytest.mark.parametrize(
    "spec",
    [
        SLA(init=1.0),
        pytest.param(
            SLA("block3", negligible_fraction=0.1, phi="softmax", init=1.0), marks=pytest.mark.slow
        ),
        pytest.param(SLA(keep_special=False, phi="relu", init=1.0), marks=pytest.mark.slow),
    ],
    ids=lambda spec: f"{spec.routing}-{spec.phi}",
)
def test_nan_in_the_padding_of_windows_changes_nothing(spec, monkeypatch):
    for block in (spec.block, spec.rows):
        assert (blocks(LAYOUT, block).tokens == LAYOUT.tokens).sum() > 2 * 39
    rng = np.random.default_rng(0)
    args = [rng.standard_normal((1, LAYOUT.tokens, 1, 16), np.float32) for _ in range(4)]
    wanted = value_and_gradients(spec, args)
    monkeypatch.setattr(sla, "take", taken_with_nan)
    got = value_and_gradients(spec, args)
    assert len(got) == 5
    for x, want in zip(got, wanted, strict=True):
        assert np.isfinite(want).all()
        # another program, which may sum in another order
        np.testing.assert_allclose(x, want, rtol=0, atol=1e-6 * np.abs(want).max())
