"""Gradients that compute layers again: which layers, at which memory, with which values."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lite3r_jax.attention.dense import Dense
from lite3r_jax.attention.plan import Plan
from lite3r_jax.backbones.base import get_backbone
from lite3r_jax.layers.rngs import traced_rngs
from lite3r_jax.training.parameters import split
from lite3r_jax.weights import strict_json
from lite3r_jax.weights.load import load


@pytest.mark.slow
@pytest.mark.parametrize(
    "name,heads,places",
    [
        ("vggt", ("camera", "depth", "point"), 4),  # encoder, trunk, two dense heads
        ("da3", ("camera", "depth"), 4),  # early, leading and paired blocks, the dense head
    ],
)
def test_every_deep_stack_and_dense_head_can_be_computed_again(
    name, heads, places, golden_dir, tiny_da3_json
):
    backbone = get_backbone(name)
    sizes = tiny_da3_json | {"alt_start": 5, "out_layers": [6, 7, 8, 9]}  # so that one block leads
    if name == "vggt":
        sizes = strict_json.read_object(golden_dir / "config.json")
        del sizes["param_count"]
    config = backbone.config_from_json(sizes)
    plan = Plan(default=Dense("reference"))  # the blocked form is computed again in any case
    model = nnx.eval_shape(
        lambda: backbone.build(config, heads=heads, plan=plan, rngs=traced_rngs(0))
    )
    graph, state = nnx.split(model)
    images = jax.ShapeDtypeStruct((1, 2, 56, 84, 3), jnp.float32)

    def again(remat):
        run = jax.make_jaxpr(lambda s, x: nnx.merge(graph, s)(x, remat=remat)[0])
        return len(re.findall(r"\b(?:checkpoint|remat2?)\[", str(run(state, images))))

    assert again(False) == 0
    assert again(True) == places


@pytest.mark.slow
def test_the_whole_model_keeps_less_and_gives_the_same(tiny_dir, tiny_images):
    layout, params, frozen = split(load(tiny_dir, heads=("camera", "depth")))
    images = jnp.asarray(tiny_images)

    def loss(params, images, remat):
        model = layout.merge(params, frozen)
        prediction, taps = model(images, taps=("camera/pose_enc",), remat=remat)
        poses = (taps["camera/pose_enc"] ** 2).mean()
        return poses + (prediction.depth**2).mean() + jnp.log(prediction.depth_conf).mean()

    outcomes, memory = [], []
    for remat in (False, True):
        call = jax.jit(jax.value_and_grad(loss), static_argnums=2)
        compiled = call.lower(params, images, remat).compile()
        memory.append(compiled.memory_analysis().temp_size_in_bytes)
        outcomes.append(compiled(params, images))
    assert memory[1] < memory[0] / 2
    # GELU has its forms with and without a gradient, which differ by rounding
    np.testing.assert_allclose(outcomes[1][0], outcomes[0][0], rtol=1e-6)
    for path, want in outcomes[0][1].items():
        scale = np.abs(want).max()
        np.testing.assert_allclose(
            outcomes[1][1][path], want, rtol=0, atol=1e-5 * scale + 1e-7, err_msg=path
        )
