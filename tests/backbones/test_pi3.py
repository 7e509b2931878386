"""What pi^3 means, beyond equal numbers, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lite3r_jax import geometry
from lite3r_jax.attention.presets import plan
from lite3r_jax.attention.strategy import TokenLayout
from lite3r_jax.backbones.config_json import to_json
from lite3r_jax.backbones.pi3.cameras import intrinsics_of, nearest_rotation, poses_of, ray_sums
from lite3r_jax.backbones.pi3.config import Pi3Config, config_from_json
from lite3r_jax.backbones.pi3.model import TAPS, Pi3
from lite3r_jax.errors import InputError
from lite3r_jax.layers.rngs import traced_rngs
from lite3r_jax.weights.load import load


@pytest.fixture(scope="module")
def images(golden_pi3):
    return np.ascontiguousarray(np.moveaxis(golden_pi3("inputs")["images"], 2, -1))


@pytest.fixture(scope="module")
def predict(tiny_pi3):
    """The golden shape and choices, so that all questions share one compilation."""
    return lambda images: tiny_pi3(jnp.asarray(images), world="model", points=True, taps=TAPS)


@pytest.fixture(scope="module")
def before(predict, images):
    return predict(images)


def per_view(prediction):
    """[B, S, ...] arrays that the original has, flattened per view and put side by side."""
    arrays = (prediction.extrinsics, prediction.depth, prediction.depth_conf)
    return np.concatenate([np.reshape(a, (*a.shape[:2], -1)) for a in arrays], axis=-1)


def test_permuting_views_permutes_outputs(predict, before, images):
    order = [2, 0, 1]
    after, taps = predict(images[:, order])
    poses = before[1]["camera/camera_to_world"][:, order]
    np.testing.assert_allclose(taps["camera/camera_to_world"], poses, atol=1e-5)
    np.testing.assert_allclose(after.depth, before[0].depth[:, order], rtol=5e-6, atol=5e-6)
    np.testing.assert_allclose(after.depth_conf, before[0].depth_conf[:, order], atol=2e-6)


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
    frame, scene, head = (
        np.abs(np.asarray(after[k] - before[1][k])).max(axis=(-1, -2))
        for k in ("frame/blocks", "global/blocks", "head/blocks")
    )
    assert (frame[0, 1, [0, 2]] == 0).all(), "the first frame block comes before all others"
    assert (scene[:, 1] > 0).all() and (head[:, 1] > 0).all()
    assert (scene[:, 0] == 0).all() and (head[:, 0] == 0).all(), "scenes stay apart"


def test_the_world_is_the_first_view_and_intrinsics_are_shared_on_request(tiny_pi3, before, images):
    first, taps = tiny_pi3(
        images, points=True, intrinsics="shared", taps=("camera/camera_to_world",)
    )
    np.testing.assert_allclose(
        first.extrinsics[:, 0], np.broadcast_to(np.eye(3, 4), (2, 3, 4)), atol=2e-6
    )
    poses = taps["camera/camera_to_world"]
    want = geometry.compose_se3(geometry.invert_se3(poses), poses[:, :1])
    np.testing.assert_allclose(first.extrinsics, want, atol=2e-6)
    moved = geometry.transform_points(geometry.invert_se3(poses[:, 0]), before[0].world_points)
    np.testing.assert_allclose(first.world_points, moved, atol=2e-4)
    np.testing.assert_allclose(first.depth, before[0].depth, rtol=5e-6)
    np.testing.assert_array_equal(first.intrinsics[:, 0], first.intrinsics[:, 2])
    assert np.abs(before[0].intrinsics[:, 0] - before[0].intrinsics[:, 2]).max() > 0


def test_intrinsics_of_a_pinhole_camera_come_back():
    k = np.array([[50, 0, 20], [0, 45, 12], [0, 0, 1]], np.float32)
    u, v = np.meshgrid(np.arange(42), np.arange(28))
    rays = np.stack([(u - 20) / 50, (v - 12) / 45], -1).astype(np.float32)
    weight = np.ones(u.shape, np.float32)
    weight[:, :10] = 0
    bent = rays.copy()
    bent[:, :10] *= 2  # where nothing is sure
    fit = jax.jit(intrinsics_of, static_argnums=(1, 2))
    np.testing.assert_allclose(fit(ray_sums(bent, weight), (28, 42), "free"), k, rtol=1e-3)
    views = jax.vmap(ray_sums)(np.stack([rays, bent]), np.stack([weight + 1, weight]))
    np.testing.assert_allclose(fit(views.sum(0), (28, 42), "free"), k, rtol=1e-3)
    centered = fit(ray_sums(rays, weight), (28, 42), "center")
    np.testing.assert_allclose(centered[:2, 2], [20.5, 13.5])


def test_gradients_are_finite_where_rotations_are_exact():
    """Autodiff through singular vectors gives NaN there."""
    numbers = jnp.tile(jnp.eye(3).reshape(9), (2, 1))

    def loss(numbers):
        world_to_camera = geometry.invert_se3(poses_of(jnp.ones((2, 3)), numbers))
        k = jnp.array([[50.0, 0, 20], [0, 50, 20], [0, 0, 1]])
        encoding = geometry.cameras_to_pose_encoding(
            world_to_camera, jnp.broadcast_to(k, (2, 3, 3)), (40, 40)
        )
        return (encoding * jnp.arange(1.0, 10)).sum()

    gradient = jax.jit(jax.grad(loss))(numbers)
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0.1
    mirrored = jax.jit(jax.grad(lambda m: nearest_rotation(m).sum()))(-jnp.eye(3))
    assert np.isfinite(mirrored).all(), "also where the nearest rotation is not unique"


def test_a_scene_of_equal_views_has_no_reference_for_sparse_attention():
    apart = TokenLayout(3, 5, (4, 6), "global", has_reference=False)
    assert apart.reference is None and apart.keep([0, 2]).reference is None
    assert TokenLayout(3, 5, (4, 6), "global").reference == 0


def abstract(attention="dense", heads=("camera", "depth")):
    build = lambda: Pi3(Pi3Config(), heads=heads, plan=plan(attention), rngs=traced_rngs(0))  # noqa: E731
    return nnx.eval_shape(build)


def size(model):
    return sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param)))


def test_sites_and_parameters_have_the_published_numbers():
    dense = abstract()
    assert dense.sites == {"patch": 24, "frame": 18, "global": 18, "head": 15}
    assert size(dense) == 958_696_732
    assert size(abstract("sla_global")) - size(dense) == 18 * 64 * 64 == 73_728


@pytest.mark.slow
def test_the_paper_plan_replaces_every_site():
    assert size(abstract("sla_paper")) - size(abstract()) == 75 * 64 * 64 == 307_200
    assert abstract(heads=("depth",)).sites["head"] == 10


@pytest.mark.slow
def test_a_sparse_plan_runs_and_permutes(tiny_pi3_dir, images):
    model = load(tiny_pi3_dir, plan=plan("sla_global", block=4, keep=0.2))
    one, two = (model(images[:, order], world="model")[0] for order in ([0, 1, 2], [2, 0, 1]))
    np.testing.assert_allclose(two.depth, one.depth[:, [2, 0, 1]], rtol=1e-4)


@pytest.mark.slow
def test_bfloat16_is_close_and_what_comes_out_is_float32(tiny_pi3_dir, before, images):
    model = load(tiny_pi3_dir, dtype=jnp.bfloat16)
    prediction, taps = model(images, world="model", taps=("global/blocks", "head/attn"))
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(prediction))
    assert taps["global/blocks"].dtype == jnp.float32, "residual stream"
    assert taps["head/attn"].dtype == jnp.bfloat16
    want = np.log(before[0].depth)
    assert np.sqrt(np.mean((np.log(prediction.depth) - want) ** 2)) < 0.05 * want.std()


@pytest.mark.slow
def test_frame_chunks_and_remat_change_nothing(tiny_pi3, images):
    graph, params = nnx.split(tiny_pi3)

    def loss(params, remat, chunk):
        p, _ = nnx.merge(graph, params)(images, remat=remat, frame_chunk=chunk)
        return jnp.mean(p.depth) + jnp.mean(p.extrinsics**2)

    both = jax.jit(jax.value_and_grad(loss), static_argnums=(1, 2))
    (value, gradient), (same, again) = both(params, False, 1), both(params, True, 4)
    np.testing.assert_allclose(same, value, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(b, a, atol=1e-4 * max(1e-3, np.abs(a).max()))


def test_bad_calls_are_refused(tiny_pi3, tiny_pi3_dir):
    good = np.zeros((1, 2, 28, 42, 3), np.float32)
    for more, message in (
        ({"world": "last"}, "world: 'last' is not known; choose one of: first, model"),
        ({"intrinsics": "none"}, "intrinsics: 'none'"),
        ({"taps": ("head/atn",)}, "did you mean 'head/attn'"),
    ):
        with pytest.raises(InputError, match=message):
            tiny_pi3(good, **more)
    with pytest.raises(InputError, match="multiples of 14"):
        tiny_pi3(good[:, :, :27])
    with pytest.raises(InputError, match="camera has its focal lengths from depth; add depth"):
        load(tiny_pi3_dir, heads=("camera",))
    with pytest.raises(InputError, match="points=True: needs the head camera"):
        load(tiny_pi3_dir, heads=("depth",))(good, points=True)


def test_configs_round_trip(tiny_pi3_json):
    for config in (Pi3Config(), config_from_json(tiny_pi3_json)):
        assert config_from_json(to_json(config)) == config
    assert config_from_json({}) == Pi3Config()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "config: expected an object"),
        ({"depth": 3}, r"unknown keys \['depth'\]"),
        ({"decoder": {"depth": 35}}, "decoder.depth must be even"),
        ({"encoder": {"dim": 512}}, "encoder.dim and decoder.dim must be equal"),
        ({"heads": {"heads": 24}}, "a multiple of 4"),
        ({"rope_base": 10}, "config.rope_base: 10, but every pi.3 has 100.0"),
        ({"qk_norm": {"encoder": True}}, "config.qk_norm"),
    ],
)
def test_bad_configs_are_refused(data, message):
    with pytest.raises(InputError, match=message):
        config_from_json(data)


@pytest.mark.slow
def test_the_number_of_parameters_in_a_config_is_checked(tiny_pi3_json):
    assert config_from_json(tiny_pi3_json | {"parameters": 811_020})
    with pytest.raises(InputError, match="parameters says 5 but these sizes give 811,020"):
        config_from_json(tiny_pi3_json | {"parameters": 5})
