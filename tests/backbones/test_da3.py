"""What Depth Anything 3 means, beyond equal numbers, and what it refuses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lite3r_jax import geometry
from lite3r_jax.attention.dense import Dense
from lite3r_jax.attention.plan import Plan, Rule
from lite3r_jax.attention.presets import plan as preset
from lite3r_jax.attention.strategy import Layouts, TokenLayout
from lite3r_jax.backbones.config_json import to_json as config_to_json
from lite3r_jax.backbones.da3.cameras import check_cameras, encode_cameras
from lite3r_jax.backbones.da3.config import (
    PRESETS,
    DA3Config,
    config_from_json,
)
from lite3r_jax.backbones.da3.model import DA3, TAPS
from lite3r_jax.backbones.da3.rays import cameras_from_rays, draw_samples
from lite3r_jax.backbones.da3.reference_view import (
    reference_first,
    restore_views,
    select_reference,
    take_views,
)
from lite3r_jax.backbones.da3.weight_map import name_map
from lite3r_jax.errors import InputError
from lite3r_jax.layers.rngs import traced_rngs
from lite3r_jax.layers.rope import rope_table, view_positions
from lite3r_jax.weights.load import load

UNPOSED = tuple(tap for tap in TAPS if tap != "camera/encoded")


@pytest.fixture(scope="module")
def images(golden_da3):
    return golden_da3("model_nopose_b2s4_56x84")["in_images_u8"].astype(np.float32) / 255


@pytest.fixture(scope="module")
def predict(tiny_da3):
    """The golden shape and choices, so that all questions share one compilation."""
    return lambda images: tiny_da3(jnp.asarray(images), rays=True, taps=UNPOSED)


@pytest.fixture(scope="module")
def before(predict, images):
    return predict(images)


def per_view(prediction):
    """[B, S, ...] arrays, flattened per view and put side by side."""
    arrays = [np.asarray(x) for x in jax.tree.leaves(prediction)]
    return np.concatenate([a.reshape(*a.shape[:2], -1) for a in arrays], axis=-1)


def test_a_view_changes_its_scene_and_no_other(predict, before, images):
    changed = images.copy()
    changed[0, 2] = changed[0, 2, ::-1]
    change = np.abs(per_view(predict(changed)[0]) - per_view(before[0])).max(axis=-1)
    assert (change[0] > 1e-4).all(), "every view of the scene attends to the changed one"
    assert (change[1] == 0).all(), "scenes of a batch do not see each other"


def test_views_meet_in_global_blocks_only(predict, before, images):
    changed = images.copy()
    changed[1, 1, :14, :14] *= 0.98
    after = predict(changed)[1]
    # A change that is small enough to leave the reference views as they are.
    np.testing.assert_array_equal(after["trunk/reference"], before[1]["trunk/reference"])
    frame, scene = (
        np.abs(np.asarray(after[k] - before[1][k])).max(axis=(-1, -2))
        for k in ("frame/blocks", "global/blocks")
    )
    assert (frame[:5, 1, 1] > 0).all(), "blocks 0 to 4 spread within the view"
    assert (frame[:5, 1, [0, 2, 3]] == 0).all(), "and not to other views"
    assert (scene[:, 1] > 0).all(), "block 5 spreads over the scene"
    assert (scene[:, 0] == 0).all(), "and not to other scenes"


@pytest.mark.parametrize("order", [[1, 2, 3, 0], [3, 1, 0, 2]])
def test_the_reference_view_is_found_wherever_it_is(predict, before, images, order):
    """With a reference chosen by content, no position is special: everything permutes."""
    prediction, taps = predict(images[:, order])
    was = np.asarray(before[1]["trunk/reference"])
    np.testing.assert_array_equal(np.asarray(order)[taps["trunk/reference"]], was)
    scale = np.abs(per_view(before[0])).max()
    np.testing.assert_allclose(
        per_view(prediction), per_view(before[0])[:, order], atol=2e-5 * scale
    )


@pytest.mark.slow
def test_first_makes_the_first_view_special(tiny_da3, images):
    def run(images):
        prediction, taps = tiny_da3(images, reference="first", taps=("trunk/reference",))
        assert (np.asarray(taps["trunk/reference"]) == 0).all()
        return per_view(prediction)

    start, later = run(images), run(images[:, [0, 2, 3, 1]])
    scale = np.abs(start).max()
    np.testing.assert_allclose(later, start[:, [0, 2, 3, 1]], atol=2e-5 * scale)
    assert np.abs(run(images[:, [1, 0, 2, 3]]) - start[:, [1, 0, 2, 3]]).max() > 1e-2


def test_cameras_are_those_of_the_encoding(before):
    prediction = before[0]
    decode = jax.jit(geometry.pose_encoding_to_cameras, static_argnums=1)
    extrinsics, intrinsics = decode(prediction.pose_enc, (56, 84))
    np.testing.assert_allclose(prediction.extrinsics, extrinsics, atol=1e-5)
    np.testing.assert_allclose(prediction.intrinsics, intrinsics, rtol=1e-5)
    centers = jax.jit(geometry.invert_se3)(prediction.extrinsics)[..., 3]
    np.testing.assert_allclose(centers, before[1]["camera/camera_to_world"][..., :3], atol=1e-5)


def test_two_runs_are_bit_equal(predict, before, images):
    np.testing.assert_array_equal(per_view(predict(images)[0]), per_view(before[0]))


def flops(config, heads, **choices):
    model = nnx.eval_shape(lambda: DA3(config, heads=heads, rngs=traced_rngs(0)))
    graph, state = nnx.split(model)

    def run(state, images):
        return nnx.merge(graph, state)(images, **choices)[0]

    shape = jax.ShapeDtypeStruct((1, 2, 28, 42, 3), jnp.float32)
    return jax.jit(run).lower(state, shape).cost_analysis()["flops"]


@pytest.mark.slow
def test_rays_cost_nothing_when_not_asked_for(tiny_da3):
    lean = flops(tiny_da3.config, ("camera", "depth"))
    assert flops(tiny_da3.config, ("camera", "depth", "ray", "camera_encoder")) == lean
    assert flops(tiny_da3.config, ("camera", "depth", "ray"), rays=True) > 1.2 * lean


@pytest.mark.parametrize(
    ("name", "frame", "scene"),
    [
        ("da3-large", 16, 8),
        pytest.param("da3-small", 8, 4, marks=pytest.mark.slow),
        pytest.param("da3-base", 8, 4, marks=pytest.mark.slow),
        pytest.param("da3-giant", 26, 14, marks=pytest.mark.slow),
    ],
)
def test_sites_have_the_published_numbers(name, frame, scene):
    config = PRESETS[name]

    def build(*rules):
        return nnx.eval_shape(lambda: DA3(config, plan=Plan(rules), rngs=traced_rngs(0)))

    sites = {"frame": frame, "global": scene, "camera": 4}
    for role, count in sites.items():
        with pytest.raises(ValueError, match=f"layers .{count}., but those"):
            build(Rule(role, Dense(), (count,)))
    model = build(*(Rule(role, Dense("reference"), (n - 1,)) for role, n in sites.items()))
    assert set(model.attention()) == set(sites)


def test_odd_blocks_from_the_start_on_are_global():
    assert list(DA3Config().global_blocks) == [9, 11, 13, 15, 17, 19, 21, 23]
    giant = PRESETS["da3-giant"]
    assert [*giant.lead_blocks, *giant.global_blocks] == list(range(13, 40, 2))
    for config in PRESETS.values():
        stacks = (config.early_blocks, config.lead_blocks, config.frame_blocks)
        every = [i for stack in (*stacks, config.global_blocks) for i in stack]
        assert sorted(every) == list(range(config.depth))


ODD = DA3Config(
    embed_dim=32,
    depth=8,
    num_heads=2,
    swiglu=True,
    alt_start=3,
    out_layers=(4, 5, 6, 7),
    features=8,
    out_channels=(8, 8, 8, 8),
    camera_heads=2,
    img_size=28,
)


@pytest.mark.slow
def test_blocks_run_in_the_order_of_their_upstream_numbers():
    """An odd start, as DA3-Giant has it, against a loop over all blocks by number."""
    model = DA3(ODD, heads=("camera",), rngs=nnx.Rngs(1))
    images = np.random.default_rng(0).random((1, 2, 28, 42, 3), dtype=np.float32)
    taps = ("trunk/tokens", "camera/tokens")
    tapped = model(images, reference="first", taps=taps)[1]
    names, trunk = name_map(ODD), model.trunk
    frame, scene = TokenLayout(1, 1, (2, 3), "frame"), TokenLayout(2, 1, (2, 3), "global")
    ropes = [rope_table(view_positions(frame, spatial=spatial), 16) for spatial in (True, False)]
    core = Dense().build(heads=2, head_dim=16, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
    x = tapped["trunk/tokens"]
    local, want = x, []
    for i in range(ODD.depth):
        (pair,) = names.to_here(f"model.backbone.pretrained.blocks.{i}.norm1.bias")
        graph, params = nnx.split(getattr(trunk, pair.target.split("/")[1]))
        block = nnx.merge(graph, jax.tree.map(lambda p, j=pair.index: p[j], params))
        if i == 3:
            x = x.at[:, :, 0].set(trunk.camera_token[...][0])
        rope = None if i < 3 else ropes[i % 2]
        if i >= 3 and i % 2:
            x = block(x.reshape(1, 14, 32), core, Layouts.both(scene), rope)[0].reshape(1, 2, 7, 32)
        else:
            x = block(x.reshape(2, 7, 32), core, Layouts.both(frame), rope)[0].reshape(1, 2, 7, 32)
            local = x
        if i in ODD.out_layers:
            want.append(jnp.concatenate([local, x], -1)[:, :, 0])
    np.testing.assert_allclose(tapped["camera/tokens"], jnp.stack(want, 2), atol=2e-5)


@pytest.mark.slow
def test_heads_that_are_off_are_none_and_the_rest_is_unchanged(tiny_da3_dir, before, images):
    model = load(tiny_da3_dir, heads=("depth",))
    prediction, taps = model(images, frame_chunk=3)
    assert taps == {}
    np.testing.assert_allclose(prediction.depth, before[0].depth, rtol=2e-5)
    off = {f.name for f in dataclasses.fields(prediction)} - {"depth", "depth_conf", "unit"}
    assert all(getattr(prediction, name) is None for name in off)


@pytest.mark.slow
def test_bfloat16_is_close_and_its_heads_are_float32(tiny_da3_dir, before, images):
    model = load(tiny_da3_dir, heads=("camera", "depth"), dtype=jnp.bfloat16)
    prediction, taps = model(images, taps=("global/blocks", "global/attn"))
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(prediction))
    assert taps["global/blocks"].dtype == jnp.float32, "residual stream"
    assert taps["global/attn"].dtype == jnp.bfloat16
    # Measured upstream under autocast: 1e-2 of the deviation.
    want = np.asarray(before[0].depth)
    assert np.sqrt(np.mean((prediction.depth - want) ** 2)) < 0.03 * want.std()


@pytest.mark.slow
def test_plan_reaches_every_role(tiny_da3_dir, golden_da3, tiny_da3):
    g = golden_da3("model_pose_b1s1_42x70")
    call = g["in_images_u8"].astype(np.float32) / 255, g["in_extrinsics"], g["in_intrinsics"]
    rules = (
        Rule("frame", Dense("reference")),
        Rule("global", Dense("blocked", q_block=8, k_block=8), (1, 2)),
        Rule("camera", Dense("reference")),
    )
    got, _ = load(tiny_da3_dir, plan=Plan(rules))(*call)
    want, _ = tiny_da3(*call)
    np.testing.assert_allclose(got.depth, want.depth, rtol=2e-5)


@pytest.mark.slow
def test_the_paper_plan_has_28_sites_in_da3_large():
    """Lite3R converts the camera encoder as well: 28 * 64 * 64 parameters."""

    def count(plan):
        model = nnx.eval_shape(lambda: DA3(DA3Config(), plan=plan, rngs=traced_rngs(0)))
        return sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param)))

    assert count(preset("sla_paper")) - count(preset("dense")) == 28 * 64 * 64


def test_reference_first_puts_one_view_first_and_keeps_the_others_in_order():
    order = np.asarray(reference_first(jnp.array([0, 2, 3]), 4))
    np.testing.assert_array_equal(order, [[0, 1, 2, 3], [2, 0, 1, 3], [3, 0, 1, 2]])
    x = jnp.arange(24).reshape(3, 4, 2)
    np.testing.assert_array_equal(restore_views(take_views(x, order), order), x)


def test_the_balanced_view_is_the_middling_one():
    """Views along an arc, with growing length: ends stand out, the middle does not."""
    angle = np.linspace(0, 1, 5)
    tokens = np.stack([np.cos(angle), np.sin(angle)], -1) * np.linspace(1, 2, 5)[:, None]
    tokens = np.concatenate([tokens, np.zeros((5, 6))], -1)[None].astype(np.float32)
    select = jax.jit(select_reference, static_argnums=1)
    chosen = int(select(tokens, "saddle_balanced")[0])
    assert chosen not in (0, 4)


@pytest.mark.slow
def test_cameras_of_exact_rays_come_back():
    rng = np.random.default_rng(0)
    k = np.array([[60.0, 0, 42], [0, 55, 28], [0, 0, 1]], np.float32)
    quat = rng.standard_normal((2, 4)).astype(np.float32)
    poses = np.concatenate([geometry.quat_to_mat(quat), rng.standard_normal((2, 3, 1))], -1)
    h, w = 16, 24
    u, v = ((np.arange(n) + 0.5) * size / n for n, size in ((w, 84), (h, 56)))
    pixels = np.stack([*np.meshgrid(u, v), np.ones((h, w))], -1)
    direction = np.einsum("sij,hwj->shwi", poses[:, :, :3], pixels @ np.linalg.inv(k).T)
    origin = np.broadcast_to(poses[:, None, None, :, 3], direction.shape)
    rays = np.concatenate([direction, origin], -1)[None].astype(np.float32)
    conf = np.ones((1, 2, h, w), np.float32)
    extrinsics, intrinsics = jax.jit(lambda *x: cameras_from_rays(*x, (56, 84)))(rays, conf)
    np.testing.assert_allclose(extrinsics[0], geometry.invert_se3(poses), atol=1e-4)
    np.testing.assert_allclose(intrinsics[0], np.stack([k, k]), atol=1e-2)


def test_draws_are_distinct_among_the_best_and_always_the_same():
    draws = draw_samples(1000)
    assert draws.shape == (100, 8) and draws.max() < 300
    assert all(len(set(row)) == 8 for row in draws.tolist())
    np.testing.assert_array_equal(draws, draw_samples(1000))
    assert draw_samples(8).max() == 7


def test_encoded_cameras_are_camera_to_world():
    pose = np.eye(3, 4, dtype=np.float32)
    pose[:, 3] = 1, 2, 3
    k = np.array([[42, 0, 42], [0, 28, 28], [0, 0, 1]], np.float32)
    enc = jax.jit(encode_cameras, static_argnums=2)(pose, k, (56, 84))
    np.testing.assert_allclose(enc, [-1, -2, -3, 0, 0, 0, 1, np.pi / 2, np.pi / 2], atol=1e-6)


def cameras():
    extrinsics = np.tile(np.eye(4, dtype=np.float32), (1, 2, 1, 1))
    k = np.array([[50, 0, 21], [0, 50, 14], [0, 0, 1]], np.float32)
    return extrinsics, np.tile(k, (1, 2, 1, 1))


def changed(array, index, value):
    array = array.copy()
    array[(0, 1, *index)] = value
    return array


@pytest.mark.parametrize(
    ("which", "index", "value", "message"),
    [
        (0, (0, 3), np.nan, "NaN"),
        (1, (0, 2), np.inf, "NaN or infinite"),
        (0, (3, 0), 1, "last row of its extrinsics"),
        (0, (0, 0), 2, "no rotation"),
        (0, (0, 0), -1, "mirror image"),
        (1, (0, 0), 0, "focal length is not positive"),
        (1, (1, 1), -5, "focal length is not positive"),
        (1, (2, 2), 2, "last row of its intrinsics"),
    ],
)
def test_known_cameras_that_are_none_are_refused(which, index, value, message):
    given = list(cameras())
    given[which] = changed(given[which], index, value)
    with pytest.raises(InputError, match=f"known camera of scene 0, view 1: .*{message}") as caught:
        check_cameras(*given, 1, 2)
    assert "\n" not in str(caught.value)


def test_known_cameras_of_wrong_number_or_shape_are_refused():
    extrinsics, intrinsics = cameras()
    checked, _ = check_cameras(extrinsics, intrinsics, 1, 2)
    assert checked.shape == (1, 2, 3, 4)
    with pytest.raises(ValueError, match=r"extrinsics: expected \(1, 3, 3, 4\)"):
        check_cameras(extrinsics, intrinsics, 1, 3)
    with pytest.raises(ValueError, match=r"intrinsics: expected \(1, 2, 3, 3\)"):
        check_cameras(extrinsics, intrinsics[:, :1], 1, 2)
    with pytest.raises(ValueError, match="together"):
        check_cameras(extrinsics, None, 1, 2)


def test_bad_calls_are_refused(tiny_da3, tiny_da3_dir):
    good = np.zeros((1, 2, 28, 42, 3), np.float32)
    with pytest.raises(InputError, match=r"reference: 'last' .*saddle_balanced"):
        tiny_da3(good, reference="last")
    with pytest.raises(InputError, match="poses: 'rays'"):
        tiny_da3(good, poses="rays")
    with pytest.raises(InputError, match="tap 'nonsense' is not known"):
        tiny_da3(good, taps=("nonsense",))
    with pytest.raises(InputError, match="camera/encoded: needs known cameras"):
        tiny_da3(good, taps=("camera/encoded",))
    with pytest.raises(InputError, match="frame_chunk"):
        tiny_da3(good, frame_chunk=0)
    with pytest.raises(InputError, match="multiples of 14"):
        tiny_da3(good[:, :, :27])
    with pytest.raises(ValueError, match="together"):
        tiny_da3(good, cameras()[0])
    lean = load(tiny_da3_dir, heads=("depth",))
    for choice in ({"rays": True}, {"poses": "ray"}, {"taps": ("camera/pose_enc",)}):
        with pytest.raises(InputError, match=r"needs the head \w+, which this model is without"):
            lean(good, **choice)
    with pytest.raises(InputError, match="needs the head camera_encoder"):
        lean(good, *cameras())
    with pytest.raises(InputError, match="ray reads the levels of the depth head"):
        DA3(DA3Config(), heads=("ray",), rngs=nnx.Rngs(0))


def test_configs_round_trip():
    for config in PRESETS.values():
        assert config_from_json(config_to_json(config)) == config
    assert config_from_json({}) == PRESETS["da3-large"]


def hub(**changes):
    """A config.json as the hub has it for DA3-Small."""
    tree = {
        "__object__": {"path": "x", "name": "y", "args": "as_params"},
        "net": {
            "name": "vits",
            "out_layers": [5, 7, 9, 11],
            "alt_start": 4,
            "qknorm_start": 4,
            "rope_start": 4,
            "cat_token": True,
        },
        "head": {
            "dim_in": 768,
            "output_dim": 2,
            "features": 64,
            "out_channels": [48, 96, 192, 384],
        },
        "cam_enc": {"dim_out": 384},
        "cam_dec": {"dim_in": 768},
    }
    for key, value in changes.items():
        part, _, name = key.partition("__")
        tree[part][name] = value
    return {"model_name": "da3-small", "config": tree}


def test_the_config_of_the_hub_is_read():
    assert config_from_json(hub()) == PRESETS["da3-small"]
    assert config_from_json({"model_name": "da3-giant"}) == PRESETS["da3-giant"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "config: expected an object"),
        ({"embed": 3}, r"unknown keys \['embed'\]"),
        ({"swiglu": 1}, "config.swiglu: expected true or false"),
        ({"depth": 23}, "depth must be even"),
        ({"alt_start": 1}, "alt_start must be at least 2"),
        ({"out_layers": [4, 15, 19, 23]}, "4 blocks from 8 on"),
        ({"out_layers": [9, 11, 13, 15]}, "the last one last"),
        ({"num_heads": 15}, "multiple of 4"),
        ({"out_channels": [8, 8, 8]}, "must have 4 entries"),
        ({"features": 100}, "multiples of 4"),
        ({"model_name": "da3metric-large"}, "'da3metric-large' is not known here; choose one"),
        ({"model_name": "da3-small", "x": 1}, r"unknown keys \['x'\]"),
        (hub(net__alt_start=8), r"config.config.net.alt_start: 8, but da3-small has 4"),
        (hub(net__rope_start=-1), "rope_start"),
        (hub(net__name="vitl"), "net.name"),
        (hub(head__features=256), "head.features"),
        (hub() | {"config": []}, "config.config.net: expected an object"),
    ],
)
def test_bad_configs_are_refused(data, message):
    with pytest.raises(InputError, match=message):
        config_from_json(data)
