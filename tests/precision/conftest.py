"""The small network, its input, and the published models without numbers."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lite3r_jax.attention.presets import plan
from lite3r_jax.backbones.base import get_backbone
from lite3r_jax.layers.rngs import traced_rngs
from tests.precision.net import WIDTH, build


@pytest.fixture(scope="module")
def net():
    return build()


@pytest.fixture(scope="module")
def x():
    rng = np.random.default_rng(1)
    return (rng.standard_normal((2, 5, WIDTH)) * np.exp2(rng.uniform(-4, 4, (2, 5, 1)))).astype(
        "f4"
    )


@pytest.fixture(scope="module")
def published():
    """The published models without numbers, every attention site replaced, as Lite3R has them."""
    heads = {"vggt": ("camera", "depth"), "da3": ("camera", "depth", "ray", "camera_encoder")}
    heads["pi3"] = ("camera", "depth")

    @functools.cache
    def build(name, attention="sla_paper"):
        backbone = get_backbone(name)
        return nnx.eval_shape(
            lambda: backbone.build(
                backbone.default_config, heads=heads[name], plan=plan(attention),
                dtype=jnp.bfloat16, param_dtype=jnp.bfloat16, rngs=traced_rngs(0),
            )
        )  # fmt: skip

    return build
