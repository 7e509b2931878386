"""Keys under a trace."""

import jax
import numpy as np
from flax import nnx

from lite3r_jax.layers.block import stack
from lite3r_jax.layers.rngs import traced_rngs


def test_a_model_gets_the_numbers_of_flax():
    def numbers(rngs):
        layers = [nnx.Linear(2, 3, rngs=rngs) for _ in range(2)]
        layers.append(stack(lambda r: nnx.Linear(3, 3, rngs=r), 2, rngs))
        layers.append(nnx.Linear(3, 2, rngs=rngs))
        return [nnx.state(layer) for layer in layers]

    want, got = jax.jit(lambda: (numbers(nnx.Rngs(7)), numbers(traced_rngs(7))))()
    jax.tree.map(np.testing.assert_array_equal, got, want)
