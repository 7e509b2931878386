"""What the model means, beyond equal numbers: who sees whom, what is kept, what is refused."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lite3r_jax.attention.dense import Dense
from lite3r_jax.attention.plan import Plan, Rule
from lite3r_jax.backbones.base import get_backbone
from lite3r_jax.backbones.config_json import to_json as config_to_json
from lite3r_jax.backbones.model import count_parameters
from lite3r_jax.backbones.vggt import VGGT
from lite3r_jax.backbones.vggt.config import VGGTConfig, config_from_json
from lite3r_jax.errors import InputError
from lite3r_jax.layers.rngs import traced_rngs
from lite3r_jax.weights.load import load

MAPS = ("depth", "depth_conf", "world_points", "world_points_conf")


STREAM = ("frame/blocks", "global/blocks")


@pytest.fixture(scope="module")
def predict(tiny_vggt):
    """The golden shape and always the same taps, so that all questions share one compilation."""
    return lambda images: tiny_vggt(jnp.asarray(images), taps=STREAM)


@pytest.fixture(scope="module")
def before(predict, tiny_images):
    return predict(tiny_images)[0]


def per_view(prediction):
    """[B, S, ...] arrays, flattened per view and put side by side."""
    arrays = [prediction.pose_enc] + [getattr(prediction, name) for name in MAPS]
    return np.concatenate([np.asarray(a).reshape(2, 3, -1) for a in arrays], axis=-1)


def test_a_view_changes_its_scene_and_no_other(predict, before, tiny_images):
    images = tiny_images.copy()
    images[0, 2] = images[0, 2, ::-1]
    change = np.abs(per_view(predict(images)[0]) - per_view(before)).max(axis=-1)
    assert (change[0] > 1e-4).all(), "every view of the scene attends to the changed one"
    assert (change[1] == 0).all(), "scenes of a batch do not see each other"


def test_one_patch_reaches_every_token_of_the_scene_through_global_attention(predict, tiny_images):
    images = tiny_images.copy()
    images[1, 1, :14, :14] = 1 - images[1, 1, :14, :14]
    after, start = predict(images)[1], predict(tiny_images)[1]
    frame, scene = (
        np.abs(np.asarray(after[k][0]) - np.asarray(start[k][0])).max(axis=-1) for k in STREAM
    )
    assert (frame[1, 1] > 0).all(), "frame attention spreads within the view"
    assert (frame[1, [0, 2]] == 0).all(), "and not to other views"
    assert (scene[1] > 0).all(), "global attention spreads over the scene"
    assert (scene[0] == 0).all(), "and not to other scenes"


def test_permuting_views_after_the_first_permutes_the_result(predict, before, tiny_images):
    after = per_view(predict(tiny_images[:, [0, 2, 1]])[0])
    np.testing.assert_allclose(after, per_view(before)[:, [0, 2, 1]], atol=2e-4)


def test_the_first_view_is_special(predict, before, tiny_images):
    after = per_view(predict(tiny_images[:, [1, 0, 2]])[0])
    assert np.abs(after - per_view(before)[:, [1, 0, 2]]).max() > 1e-2


def test_cameras_are_those_of_the_encoding(before):
    height, width = 56, 84
    fov = np.asarray(before.pose_enc)[..., 7:]
    k = np.asarray(before.intrinsics)
    assert (k[..., 0, 2] == width / 2).all()
    assert (k[..., 1, 2] == height / 2).all()
    seen = fov[..., 0] > 0
    assert seen.any(), "otherwise the next line compares nothing"
    np.testing.assert_allclose(
        k[..., 1, 1][seen], height / 2 / np.tan(fov[..., 0][seen] / 2), rtol=1e-5
    )
    rotation = np.asarray(before.extrinsics)[..., :3]
    np.testing.assert_allclose(
        rotation @ rotation.swapaxes(-1, -2), np.broadcast_to(np.eye(3), rotation.shape), atol=1e-5
    )
    np.testing.assert_array_equal(before.extrinsics[..., 3], before.pose_enc[..., :3])


def test_two_runs_are_bit_equal(predict, before, tiny_images):
    np.testing.assert_array_equal(per_view(predict(tiny_images)[0]), per_view(before))


@pytest.mark.slow
def test_taps_and_chunks_are_as_asked_for_and_change_nothing(tiny_vggt, before, tiny_images):
    prediction, taps = tiny_vggt(tiny_images, taps=["global/attn"], frame_chunk=4)
    assert {name: x.shape for name, x in taps.items()} == {"global/attn": (4, 2, 3, 29, 64)}
    assert prediction.tracks is None
    np.testing.assert_allclose(per_view(prediction), per_view(before), atol=2e-5)


@pytest.mark.slow
def test_heads_that_are_off_are_none_and_the_rest_is_unchanged(tiny_dir, before, tiny_images):
    model = load(tiny_dir, heads=("depth",))
    prediction, _ = model(tiny_images)
    np.testing.assert_allclose(prediction.depth, before.depth, atol=5e-6)
    off = {f.name for f in dataclasses.fields(prediction)} - {"depth", "depth_conf", "unit"}
    assert all(getattr(prediction, name) is None for name in off)


@pytest.mark.slow
def test_no_layer_is_kept_but_those_that_heads_read():
    """Kept tokens do not grow with depth."""
    config = VGGTConfig(
        img_size=28, embed_dim=32, vit=dataclasses.replace(VGGTConfig().vit, depth=1, num_heads=2)
    )

    def aggregator(depth):
        trunk = dataclasses.replace(config.aggregator, depth=depth, num_heads=2)
        dpt = dataclasses.replace(
            config.dpt, out_channels=(8,) * 4, features=8, intermediate_layer_idx=(0, 1, 2, 3)
        )
        sized = dataclasses.replace(config, aggregator=trunk, dpt=dpt)
        model = nnx.eval_shape(lambda: VGGT(sized, heads=("depth",), rngs=traced_rngs(0)))
        graph, state = nnx.split(model.aggregator)
        images = jax.ShapeDtypeStruct((1, 8, 56, 56, 3), jnp.float32)
        lowered = jax.jit(lambda s, x: nnx.merge(graph, s)(x)[0]).lower(state, images)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert aggregator(12) < 1.1 * aggregator(4)


@pytest.mark.parametrize("heads,layers", [(("camera",), 1), (("camera", "depth"), 4)])
def test_without_a_dense_head_only_the_last_layer_is_kept(heads, layers):
    small = dataclasses.replace(VGGTConfig().vit, depth=1, num_heads=2)
    config = VGGTConfig(img_size=28, embed_dim=64, vit=small)
    model = nnx.eval_shape(lambda: VGGT(config, heads=heads, rngs=traced_rngs(0)))
    graph, state = nnx.split(model.aggregator)
    images = jax.ShapeDtypeStruct((1, 2, 28, 28, 3), jnp.float32)
    kept = jax.eval_shape(lambda s, x: nnx.merge(graph, s)(x)[0], state, images)
    assert kept.shape == (1, 2, layers, 5 + 4, 2 * 64)


@pytest.mark.slow
def test_bfloat16_is_close_and_its_heads_are_float32(tiny_dir, before, tiny_images, golden):
    model = load(tiny_dir, heads=("camera", "depth"), dtype=jnp.bfloat16)
    prediction, taps = model(tiny_images, taps=("global/blocks", "global/attn"))
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(prediction))
    assert taps["global/blocks"].dtype == jnp.float32, "residual stream"
    assert taps["global/attn"].dtype == jnp.bfloat16
    got, want = np.asarray(taps["global/blocks"]), golden("outputs")["global_tokens"]
    # 2^-9 per rounding, over 7 blocks of a random network.
    assert np.sqrt(np.mean((got - want) ** 2)) < 0.03 * want.std()
    assert np.abs(np.asarray(prediction.depth - before.depth)).max() < 0.1


def test_bfloat16_parameters_halve_the_model(tiny_dir):
    model = load(tiny_dir, heads=("camera",), param_dtype=jnp.bfloat16)
    kinds = {x.dtype for x in jax.tree.leaves(nnx.state(model, nnx.Param))}
    assert kinds == {jnp.dtype("bfloat16")}


@pytest.mark.slow
def test_plan_reaches_every_role(tiny_dir, before, tiny_images):
    """Another form of the same attention at every site gives the same result."""
    rules = [Rule(r, Dense("reference")) for r in ("patch", "frame", "camera")]
    rules.append(Rule("global", Dense("blocked", q_block=16, k_block=32), (1, 2)))
    prediction, _ = load(tiny_dir, heads=("camera", "depth"), plan=Plan(tuple(rules)))(tiny_images)
    np.testing.assert_allclose(prediction.depth, before.depth, atol=2e-5)
    np.testing.assert_allclose(prediction.pose_enc, before.pose_enc, atol=2e-5)


@pytest.mark.slow
def test_full_size_has_the_published_number_of_parameters():
    def count(heads):
        return count_parameters(
            nnx.eval_shape(lambda: VGGT(VGGTConfig(), heads=heads, rngs=traced_rngs(0)))
        )

    mask_token = 1024
    assert count(("camera", "depth", "point", "track")) + mask_token == 1_256_537_516
    assert count(("camera", "depth")) + mask_token == 1_157_941_492


def good():
    return np.zeros((1, 2, 28, 42, 3), np.float32)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (good()[0], r"rank 4 .* images\[None\]"),
        (good()[..., :2], r"got shape \(1, 2, 28, 42, 2\)"),
        (good().transpose(0, 1, 4, 2, 3), "move channels last"),
        (good().astype(np.float64), "float64"),
        ((255 * good()).astype(np.uint8), "255"),
        (good()[:, :, :27], r"multiples of 14.*28 x 42"),
        (good()[:, :0], "multiples of 14"),
        (good() + 2, "from 2 to 2; divide by 255"),
        (good() - 1, "from -1 to -1"),
        (good() * np.nan, "from nan to nan"),
        ([[1.0]], "got list"),
    ],
)
def test_bad_images_are_refused_in_one_line(tiny_vggt, images, message):
    with pytest.raises(InputError, match=message) as caught:
        tiny_vggt(images)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("images: expected [B, S, H, W, 3] float32 in [0, 1]")


def test_other_bad_calls_are_refused(tiny_vggt, tiny_dir):
    with pytest.raises(InputError, match="tap 'nonsense' is not known"):
        tiny_vggt(good(), taps=("nonsense",))
    with pytest.raises(InputError, match="tap track/coords: needs query points"):
        tiny_vggt(good(), taps=("track/coords",))
    with pytest.raises(InputError, match="frame_chunk"):
        tiny_vggt(good(), frame_chunk=0)
    with pytest.raises(InputError, match="query points: needs the head track"):
        load(tiny_dir, heads=("depth",))(good(), np.zeros((1, 1, 2), np.float32))
    with pytest.raises(InputError, match=r"heads .*normal"):
        VGGT(VGGTConfig(), heads=("normal",), rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match="backbone 'vgg' is not known"):
        get_backbone("vgg")


@pytest.mark.slow
def test_the_parameter_count_of_a_config_is_checked(golden_dir):
    config = json.loads((golden_dir / "config.json").read_text())
    assert config_from_json(config).embed_dim == 64
    with pytest.raises(InputError, match="param_count says 1 but these sizes give 1,505,984"):
        config_from_json(config | {"param_count": 1})


def test_config_round_trip():
    config = VGGTConfig(embed_dim=64, aggregator=dataclasses.replace(VGGTConfig().aggregator))
    assert config_from_json(config_to_json(config)) == config
    assert config_from_json({}) == VGGTConfig()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "config: expected an object"),
        ({"embed": 3}, r"unknown keys \['embed'\]"),
        ({"vit": {"depth": 2.5}}, "config.vit.depth: expected a positive int"),
        ({"vit": {"depth": 0}}, "config.vit.depth"),
        ({"vit": {"depth": True}}, "config.vit.depth"),
        ({"vit": {"mlp_ratio": math.inf}}, "config.vit.mlp_ratio"),
        ({"vit": 3}, "config.vit: expected an object"),
        ({"dpt": {"out_channels": [8, 8, 8]}}, "must have 4 entries"),
        ({"dpt": {"intermediate_layer_idx": [4, 11, 17, 24]}}, "4 of the 24 trunk layers"),
        ({"dpt": {"out_channels": "8888"}}, "expected a list of integers"),
        ({"embed_dim": 1000}, "multiple of 4"),
        ({"img_size": 500}, "multiple of patch_size"),
    ],
)
def test_bad_configs_are_refused(data, message):
    with pytest.raises(InputError, match=message):
        config_from_json(data)
