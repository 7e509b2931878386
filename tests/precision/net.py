"""A small network with every kind of site, and what its layers compute by the definition."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lite3r_jax.attention.sla import SLA
from lite3r_jax.kernels.fp8.reference import (
    linear_reference,
)
from lite3r_jax.layers.block import stack
from lite3r_jax.precision import (
    Fp8Rule,
)

LAYERS, WIDTH = 3, 24


class Net(nnx.Module):
    """Three stacked Linears that all read the input, a list of Linears, and an attention core."""

    def __init__(self, dtype=jnp.float32, param_dtype=jnp.float32):
        rngs = nnx.Rngs(0)
        kinds = {"dtype": dtype, "param_dtype": param_dtype}

        def make(rngs):
            return nnx.Linear(WIDTH, 10, rngs=rngs, **kinds)

        self.layers = stack(make, LAYERS, rngs)
        self.heads = nnx.List([nnx.Linear(10, 4, use_bias=False, rngs=rngs, **kinds)])
        self.cores = nnx.List(
            [SLA().build(heads=1, head_dim=8, param_dtype=param_dtype, rngs=rngs)]
        )

    def __call__(self, x):
        """[..., WIDTH] -> [LAYERS, ..., 10], [..., 4], [8, 8]."""
        graph, state = nnx.split(self.layers)
        _, ys = jax.lax.scan(lambda x, layer: (x, nnx.merge(graph, layer)(x)), x, state)
        return ys, self.heads[0](ys[0]), self.cores[0].proj_lin[...]


ALL = (Fp8Rule("proj_lin", activations=None), Fp8Rule("."))


def build(**kinds):
    """With numbers from the host: nothing is compiled."""
    rng = np.random.default_rng(0)
    graph, state = nnx.split(nnx.eval_shape(lambda: Net(**kinds)))
    state = jax.tree.map(lambda a: jnp.asarray(rng.normal(0, 0.3, a.shape), a.dtype), state)
    return nnx.merge(graph, state)


def run(x, *models):
    """The outputs of every model, from one compilation."""
    graphs, states = zip(*map(nnx.split, models), strict=True)

    @jax.jit
    def every(states, x):
        return [nnx.merge(graph, state)(x) for graph, state in zip(graphs, states, strict=True)]

    return every(states, x)


def flat(model):
    return {"/".join(map(str, key)): v for key, v in nnx.to_flat_state(nnx.state(model))}


def near(got, wanted, tolerance=1e-6):
    wanted = np.asarray(wanted, np.float64)
    np.testing.assert_allclose(
        np.asarray(got, np.float64), wanted, rtol=tolerance, atol=tolerance * np.abs(wanted).max()
    )


def by_hand(model, x, **options):
    """The stacked layers of `Net`, from the definition."""
    kernels, biases = model.layers.kernel[...], model.layers.bias[...]
    return np.stack(
        [
            linear_reference(x, np.asarray(w), **options) + np.asarray(b, np.float64)
            for w, b in zip(kernels, biases, strict=True)
        ]
    )
