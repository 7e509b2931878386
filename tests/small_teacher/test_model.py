"""Where training from random weights starts, and the helpers that go with it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lite3r_jax.attention.strategy import TokenLayout
from lite3r_jax.backbones.dinov2 import EncoderConfig
from lite3r_jax.backbones.heads import DPTConfig
from lite3r_jax.backbones.vggt import VGGT
from lite3r_jax.backbones.vggt.camera_head import CameraConfig
from lite3r_jax.backbones.vggt.config import TrunkConfig, VGGTConfig
from lite3r_jax.errors import InputError
from lite3r_jax.layers.rope import rope_table, view_positions
from lite3r_jax.small_teacher.model import WithAuxiliaryLosses, sine_table
from lite3r_jax.small_teacher.options import AuxiliaryOptions, SmallTeacherOptions
from lite3r_jax.small_teacher.task import SmallTeacherLoss
from lite3r_jax.training.parameters import split
from lite3r_jax.training.task import LossOptions, task_loss

CONFIG = VGGTConfig(
    img_size=28,
    patch_size=7,
    embed_dim=16,
    num_register_tokens=1,
    vit=EncoderConfig(1, 2),
    aggregator=TrunkConfig(3, 2),
    camera_head=CameraConfig(trunk_depth=1, num_heads=2, num_iterations=2),
    dpt=DPTConfig(8, (8, 8, 8, 8), (0, 1, 1, 2)),
)


def build(config=CONFIG):
    return VGGT(config, heads=("camera", "depth"), rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def helped():
    return WithAuxiliaryLosses(build(), SmallTeacherOptions(), 0)


def batch(seed=0):
    rng = np.random.default_rng(seed)
    extrinsics = np.tile(np.eye(3, 4, dtype=np.float32), (2, 2, 1, 1))
    extrinsics[:, 1, 0, 3] = -0.1
    intrinsics = np.tile(np.float32([[30, 0, 13.5], [0, 30, 13.5], [0, 0, 1]]), (2, 2, 1, 1))
    depth = np.ones((2, 2, 28, 28), np.float32)
    return {
        "images": rng.uniform(size=(2, 2, 28, 28, 3)).astype(np.float32),
        "extrinsics": extrinsics,
        "intrinsics": intrinsics,
        "depth": depth,
        "mask": depth > 0,
    }


@pytest.mark.slow
def test_patches_carry_their_content_and_their_place_in_equal_measure(helped):
    images = jnp.asarray(np.random.default_rng(0).normal(size=(1, 2, 28, 28, 3)), jnp.float32)
    noise = images * jnp.array([0.229, 0.224, 0.225]) + jnp.array([0.485, 0.456, 0.406])
    embed = helped.model.aggregator.patch_embed
    patches, tokens = embed.embed((noise[0] - jnp.array([0.485, 0.456, 0.406])) / 0.226)
    assert 0.7 < float((patches**2).mean() ** 0.5) < 0.9
    place = tokens[:, 2:] - patches
    np.testing.assert_allclose(float((place**2).mean() ** 0.5), 0.8, rtol=1e-4)


def test_every_place_has_another_code():
    table = sine_table(8, 32)
    np.testing.assert_allclose((table**2).mean(), 1, rtol=1e-5)
    apart = np.linalg.norm(table[:, None] - table[None], axis=-1)
    assert apart[~np.eye(64, dtype=bool)].min() > 1


@pytest.mark.slow
def test_cameras_start_near_the_first_one(helped):
    prediction, _ = helped.model(jnp.asarray(batch()["images"]))
    want = np.tile(np.float32([0, 0, 0, 0, 0, 0, 1, 1, 1]), (2, 2, 1))
    assert np.abs(np.asarray(prediction.pose_enc) - want).max() < 0.5


@pytest.mark.slow
def test_the_model_inside_has_the_parameters_of_any_other(helped):
    _, inside, _ = split(helped)
    _, plain, _ = split(build())
    assert {path.removeprefix("model/") for path in inside if path.startswith("model/")} == {*plain}
    assert {path for path in inside if not path.startswith("model/")} == {
        "descriptor/kernel",
        "flow/kernel",
        "points/kernel",
    }


@pytest.mark.slow
def test_helpers_are_part_of_the_loss_and_reach_what_they_are_meant_for(helped):
    layout, params, frozen = split(helped)
    loss = SmallTeacherLoss(LossOptions())

    @jax.jit
    def slope(params, arrays):
        def value(params):
            return loss(layout.merge(params, frozen), arrays, jax.random.key(0))

        return jax.value_and_grad(value, has_aux=True)(params)

    (total, terms), grads = slope(params, batch())
    helpers = {"loss_flow", "loss_points", "loss_contrast", "loss_attention"}
    assert helpers <= {*terms}
    plain, _ = task_loss(LossOptions())(helped.model, batch(), jax.random.key(0))
    extra = sum(w * terms[name] for name, w in zip(
        ("loss_flow", "loss_points", "loss_contrast", "loss_attention"), (1, 1, 0.1, 0.1),
        strict=True))  # fmt: skip
    np.testing.assert_allclose(total, plain + extra, rtol=1e-4)
    assert all(np.isfinite(x).all() for x in grads.values())
    for path in ("descriptor/kernel", "flow/kernel", "points/kernel"):
        assert jnp.abs(grads[path]).max() > 0


@pytest.mark.slow
def test_the_attention_helper_reads_the_queries_and_keys_that_the_block_uses():
    """Attention of one head over the patches of view 1, from the block's own output."""
    model = build()
    helper = WithAuxiliaryLosses(model, SmallTeacherOptions(), 1)
    images = jnp.asarray(batch()["images"])
    _, taps = model(images, taps=("frame/blocks", "global/attn"))
    block = nnx.merge(*_layer(model.aggregator.global_blocks, 1))
    x = taps["frame/blocks"][1].reshape(2, -1, 16)
    view = view_positions(TokenLayout(1, 2, (4, 4), "frame"))
    table = rope_table(np.tile(view, (2, 1)), 8)
    q, k, v = block.attn.project(block.norm1(x), table)
    weights = jax.nn.softmax(jnp.einsum("bnhd,bmhd->bhnm", q, k) * 8**-0.5, -1)
    out = block.attn.proj(jnp.einsum("bhnm,bmhd->bnhd", weights, v).reshape(2, -1, 16))
    np.testing.assert_allclose(out, taps["global/attn"][1].reshape(2, -1, 16), atol=1e-5)
    logits = jnp.einsum("bnd,bmd->bnm", q[:, 2:18, 0], k[:, 20:, 0]) * 8**-0.5
    want = -jax.nn.log_softmax(logits, -1)[:, np.arange(16), np.arange(16)].mean()

    patch = jnp.tile(jnp.arange(16), (2, 1, 1))
    got = helper.attention_loss(taps["frame/blocks"][:2], (4, 4), patch)
    np.testing.assert_allclose(got, want, rtol=1e-5)


def _layer(stack, index):
    graph, state = nnx.split(stack)
    return graph, jax.tree.map(lambda x: x[index], state)


def test_other_models_are_refused():
    with pytest.raises(InputError, match="expected a VGGT, got a Linear"):
        WithAuxiliaryLosses(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), SmallTeacherOptions(), 0)


@pytest.mark.slow
def test_helpers_fade_over_their_steps():
    """Weights 1, 1/2 and 0 of the same sum, 0 without a step; single losses stay as they are."""
    auxiliary = AuxiliaryOptions(fade_from=10, fade_steps=20)
    model = WithAuxiliaryLosses(build(), SmallTeacherOptions(auxiliary=auxiliary), 0)
    graph, state = nnx.split(model)

    @jax.jit
    def terms(state, step):
        loss = SmallTeacherLoss(LossOptions())
        now = loss if step is None else loss.at(step)
        return now(nnx.merge(graph, state), batch(), jax.random.key(0))

    losses = [terms(state, jnp.int32(step)) for step in (0, 10, 20, 30, 99)]
    losses.append(terms(state, None))  # held-out evaluation: the objective of the run's end
    totals = np.array([total for total, _ in losses])
    names = ("loss_flow", "loss_points", "loss_contrast", "loss_attention")
    extra = np.dot([1, 1, 0.1, 0.1], [losses[0][1][name] for name in names])
    np.testing.assert_allclose(
        totals[0] - totals, extra * np.array([0, 0, 0.5, 1, 1, 1]), rtol=1e-3
    )
    assert {name: float(losses[0][1][name]) for name in names} == {
        name: float(losses[-1][1][name]) for name in names
    }


@pytest.mark.slow
def test_the_depth_of_a_part_of_the_views_is_that_of_the_model_at_these_views():
    options = SmallTeacherOptions(dense_fraction=0.5)
    model = WithAuxiliaryLosses(build(), options, 0)
    images = jnp.asarray(batch()["images"])
    graph, state = nnx.split(model)

    @jax.jit
    def predict(state, key):
        outputs, taps, views = nnx.merge(graph, state).predict(images, 4, key)
        return outputs["depth"], taps["camera/pose_enc"], views

    whole, taps = model.model(images, taps=("camera/pose_enc",))
    seen = set()
    for seed in range(6):
        depth, poses, views = predict(state, jax.random.key(seed))
        assert depth.shape == (2, 1, 28, 28, 1)
        np.testing.assert_allclose(depth, whole.depth[:, views], rtol=1e-5)
        np.testing.assert_allclose(poses, taps["camera/pose_enc"], atol=1e-5)
        seen |= set(np.asarray(views).tolist())
    assert seen == {0, 1}
