"""The golden pi^3, stage by stage, in value and gradient."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lite3r_jax import geometry
from lite3r_jax.attention.dense import dense_attention
from lite3r_jax.attention.strategy import TokenLayout
from lite3r_jax.backbones.pi3.cameras import intrinsics_of, nearest_rotation, poses_of, ray_sums
from lite3r_jax.backbones.pi3.heads import pixel_shuffle
from lite3r_jax.backbones.pi3.model import TAPS
from lite3r_jax.backbones.pi3.weight_map import name_map
from lite3r_jax.layers.rope import rope_table, rotate, view_positions
from lite3r_jax.name_map import inverse

GOLDEN = Path(__file__).parents[1] / "golden" / "pi3"
LAYOUT = TokenLayout(1, 5, (4, 6), "frame")


@pytest.fixture(scope="module")
def images(golden_pi3):
    """[2, 3, 56, 84, 3] of the golden run."""
    return np.ascontiguousarray(np.moveaxis(golden_pi3("inputs")["images"], 2, -1))


@pytest.fixture(scope="module")
def run(tiny_pi3, images):
    return tiny_pi3(images, world="model", points=True, taps=TAPS)


def images_first(x):
    return x.reshape(-1, *x.shape[2:])


def homogeneous(poses):
    last = np.broadcast_to(np.array([0, 0, 0, 1], np.float32), (*poses.shape[:-2], 1, 4))
    return np.concatenate([poses, last], -2)


def in_order(taps):
    """Blocks as upstream numbers them: frame and global in turn."""
    pairs = np.stack([taps["frame/blocks"], taps["global/blocks"]], 1)
    return pairs.reshape(-1, *pairs.shape[2:])


# golden key -> (how to get it from (prediction, taps), gate)
STAGES = {
    "dino_patch_embed": (lambda p, t: t["patch/embed"], 5e-7),
    "dino_tokens_in": (lambda p, t: t["patch/tokens"], 5e-7),
    "dino_blocks": (lambda p, t: t["patch/blocks"], 3e-5),
    "tokens_in": (lambda p, t: images_first(t["trunk/tokens"]), 3e-5),
    "decoder_blocks": (lambda p, t: in_order(t), 5e-5),
    "decoder_out": (lambda p, t: trunk_output(t), 5e-5),
    "point_blocks": (lambda p, t: t["head/blocks"][:3].reshape(3, 6, 29, 48), 4e-5),
    "camera_blocks": (lambda p, t: t["head/blocks"][6:].reshape(3, 6, 29, 48), 4e-5),
    "local_points": (lambda p, t: t["depth/points"], 3e-4),
    "conf": (lambda p, t: t["depth/conf_logits"][..., None], 5e-5),
    "camera_poses": (lambda p, t: homogeneous(t["camera/camera_to_world"]), 1e-4),
    "points": (lambda p, t: p.world_points, 2e-3),
}


def trunk_output(taps):
    both = [images_first(taps[f"{role}/blocks"][-1]) for role in ("frame", "global")]
    return jnp.concatenate(both, -1)


@pytest.mark.parametrize("key", STAGES)
def test_stage_agrees_with_upstream(golden_pi3, parity, run, key):
    get, gate = STAGES[key]
    parity("pi3/outputs", key, get(*run), golden_pi3("outputs")[key], gate)


def test_depth_and_confidence_are_those_of_points_and_logits(golden_pi3, run):
    g, p = golden_pi3("outputs"), run[0]
    np.testing.assert_allclose(p.depth, g["local_points"][..., 2:], rtol=1e-4)
    np.testing.assert_allclose(p.depth_conf, 1 / (1 + np.exp(-g["conf"][..., 0])), atol=2e-5)
    w2c = np.linalg.inv(g["camera_poses"])[:, :, :3]
    np.testing.assert_allclose(p.extrinsics, w2c, atol=1e-4)


@pytest.mark.slow
def test_one_view_agrees_with_upstream(golden_pi3, parity, tiny_pi3, images):
    g = golden_pi3("outputs")
    p, taps = tiny_pi3(images[:, :1], world="model", points=True, taps=("camera/camera_to_world",))
    poses = homogeneous(taps["camera/camera_to_world"])
    parity("pi3/outputs", "single_view_camera_poses", poses, g["single_view_camera_poses"], 1e-4)
    parity("pi3/outputs", "single_view_points", p.world_points, g["single_view_points"], 2e-3)


def test_heads_agree_with_upstream(golden_pi3, parity, tiny_pi3):
    g = golden_pi3("outputs")

    @jax.jit
    def parts(tokens):
        outputs = {}
        heads = {
            "point": tiny_pi3.depth_head.point.decoder,
            "conf": tiny_pi3.depth_head.conf.decoder,
            "camera": tiny_pi3.camera_head.decoder,
        }
        for name, decoder in heads.items():
            outputs[f"{name}_projects"] = decoder.projects(tokens)
            outputs[f"{name}_hidden"] = decoder.out(decoder.stream(tokens, LAYOUT, 3)[0])
        point = tiny_pi3.depth_head.point
        raw, _ = point(tokens, LAYOUT, 3)
        outputs["point_raw"] = raw.reshape(g["point_raw"].shape)
        head = tiny_pi3.camera_head
        x, _ = head.decoder(tokens, LAYOUT, 3)
        outputs["camera_res0"] = head.units[0](x)
        outputs["camera_res1"] = head.units[1](outputs["camera_res0"])
        outputs["camera_pool"] = outputs["camera_res1"].mean(1)
        mlp = nnx.relu(head.fc2(nnx.relu(head.fc1(outputs["camera_pool"]))))
        outputs["camera_mlp"] = mlp
        outputs["camera_t"], outputs["camera_rot9"] = jnp.split(head.pose(x), [3], -1)
        return outputs

    gates = {"projects": 5e-7, "raw": 3e-5, "mlp": 5e-5, "t": 5e-5, "rot9": 5e-5}
    for key, got in parts(g["decoder_out"]).items():
        gate = gates.get(key.partition("_")[2], 4e-5)
        parity("pi3/outputs", key, got, g[key], gate)


# Attention inputs and outputs of single layers: golden prefix -> (stack, layer, its input).
SITES = {
    "dino0": (lambda m: m.encoder.blocks, 0, lambda o: o["dino_tokens_in"][:2]),
    "decoder0_frame": (lambda m: m.trunk.frame_blocks, 0, lambda o: o["tokens_in"][:2]),
    "decoder1_global": (lambda m: m.trunk.global_blocks, 0, lambda o: _scenes(o, 0)),
    "decoder2_frame": (lambda m: m.trunk.frame_blocks, 1, lambda o: _scenes(o, 1, 29)[:2]),
    "decoder3_global": (lambda m: m.trunk.global_blocks, 1, lambda o: _scenes(o, 2)),
    "point0": (
        lambda m: m.depth_head.point.decoder.blocks, 0, lambda o: o["point_projects"][:2]
    ),
}  # fmt: skip


def _scenes(outputs, block, tokens=87):
    return outputs["decoder_blocks"][block].reshape(-1, tokens, 64)


@pytest.mark.parametrize(
    "prefix",
    [pytest.param(p, marks=[] if p.startswith(("decoder3", "point")) else pytest.mark.slow)
     for p in SITES],
)  # fmt: skip
def test_attention_agrees_with_upstream(golden_pi3, parity, tiny_pi3, prefix):
    g = golden_pi3("attention_taps")
    stack_of, layer, stream_of = SITES[prefix]
    graph, params = nnx.split(stack_of(tiny_pi3))
    block = nnx.merge(graph, jax.tree.map(lambda x: x[layer], params))
    rope = None
    if prefix != "dino0":
        rope = rope_table(view_positions(LAYOUT), g[f"{prefix}_q"].shape[-1])

    @jax.jit
    def attended(x):
        q, k, v = block.attn.project(block.norm1(x), rope)
        return q, k, v, dense_attention(q, k, v)

    tensors = attended(stream_of(golden_pi3("outputs")))
    for name, got in zip("qkvo", tensors, strict=True):
        key = f"{prefix}_{name}"
        parity("pi3/attention_taps", key, got.swapaxes(1, 2), g[key], 5e-5)


@pytest.fixture(scope="module")
def gradients(tiny_pi3, images):
    """Objective and gradients by upstream name, as golden/pi3/README.md defines them."""
    graph, params = nnx.split(tiny_pi3)
    weight = jnp.arange(9.0).reshape(3, 3)
    taps = ("depth/points", "depth/conf_logits", "camera/camera_to_world")

    def objective(params, images):
        p, tapped = nnx.merge(graph, params)(images, world="model", points=True, taps=taps)
        poses = tapped["camera/camera_to_world"]
        squares = (tapped["depth/points"], p.world_points, tapped["depth/conf_logits"])
        total = sum(jnp.mean(x**2) for x in (*squares, poses[..., 3]))
        return total + jnp.mean(p.depth_conf) + jnp.mean(poses[..., :3] * weight)

    both = jax.jit(jax.value_and_grad(objective, argnums=(0, 1)))
    value, (by_params, by_images) = both(params, jnp.asarray(images))
    upstream, names = {}, name_map(tiny_pi3.config)
    for key, leaf in nnx.to_flat_state(by_params):
        path, leaf = "/".join(map(str, key)), np.asarray(leaf[...])
        for pair, shape in names.to_upstream(path, leaf.shape):
            one = leaf if pair.index is None else leaf[pair.index]
            upstream[pair.source] = inverse(pair.transform, one).reshape(shape)
    return float(value), by_images, upstream


@pytest.mark.slow
def test_input_gradient_agrees_with_upstream(golden_pi3, parity, gradients):
    g = golden_pi3("grads")
    value, by_images, _ = gradients
    parity("pi3/grads", "objective", value, g["objective"], 1e-5, relative=True)
    parity("pi3/grads", "grad_images", np.moveaxis(by_images, -1, 2), g["grad_images"], 1e-5)


@pytest.mark.slow
def test_every_parameter_gradient_agrees_with_upstream(parity, gradients):
    wanted = json.loads((GOLDEN / "param_grads.json").read_text())
    _, _, upstream = gradients
    assert set(upstream) == set(wanted)
    errors = {"first": [], "last": [], "absmax": [], "l2": [], "sum": []}
    for name, want in wanted.items():
        got = upstream[name].astype(np.float64)
        statistics = {
            "first": got.flat[0],
            "last": got.flat[-1],
            "absmax": np.abs(got).max(),
            "l2": np.sqrt((got**2).sum()),
            "sum": got.sum(),
        }
        scale = want["absmax"]
        for key, value in statistics.items():
            size = {"l2": want["l2"], "sum": scale * np.sqrt(got.size)}.get(key, scale)
            errors[key].append(abs(value - want[key]) / size)
    for key, relative in errors.items():
        name = f"{key} of {len(relative)} parameters"
        parity("pi3/param_grads", name, np.array(relative), np.zeros(len(relative)), 2e-4)


def test_the_nearest_rotation_agrees_with_upstream(golden_pi3, parity):
    g = golden_pi3("geometry")
    zero = np.zeros((14, 3), np.float32)
    rotations = jax.jit(poses_of)(zero, g["orth_in"].reshape(14, 9))[..., :3]
    unique = g["orth_unique"]
    parity("pi3/geometry", "orth_out", rotations[unique], g["orth_out"][unique], 5e-6)

    def weighted(matrices):
        numbers = matrices.reshape(6, 9)
        return jnp.sum(poses_of(jnp.zeros((6, 3)), numbers)[..., :3] * g["orth_grad_weight"])

    got = jax.jit(jax.grad(weighted))(g["orth_in"][:6])
    parity("pi3/geometry", "orth_grad_in", got, g["orth_grad_in"], 5e-5)


def test_the_derivative_at_exact_rotations_is_that_of_the_tangent_space():
    rng = np.random.default_rng(0)
    rotations = geometry.quat_to_mat(rng.standard_normal((3, 4)).astype(np.float32))
    rotations = np.concatenate([np.eye(3, dtype=np.float32)[None], rotations])
    change = rng.standard_normal((4, 3, 3)).astype(np.float32)
    _, moved = jax.jit(lambda m, d: jax.jvp(nearest_rotation, (m,), (d,)))(rotations, change)
    turn = rotations.swapaxes(1, 2) @ change
    want = rotations @ ((turn - turn.swapaxes(1, 2)) / 2)  # what is not a turn changes nothing
    np.testing.assert_allclose(moved, want, atol=1e-5)


def test_pixels_rope_and_transforms_agree_with_upstream(golden_pi3, parity):
    g = golden_pi3("geometry")
    features = g["shuffle_tokens"] @ g["shuffle_weight"].T + g["shuffle_bias"]
    got = pixel_shuffle(jnp.asarray(features), (2, 3), 14)
    parity("pi3/geometry", "shuffle_out", got, g["shuffle_out"], 5e-6)
    table = rope_table(g["rope_pos"][0], 16)
    tokens = jnp.asarray(g["rope_tokens"]).swapaxes(1, 2)
    got = rotate(tokens, table).swapaxes(1, 2)
    parity("pi3/geometry", "rope_out", got, g["rope_out"], 5e-6)
    # Upstream rounds angles to 8 bits there, which is not followed.
    got = rotate(tokens.astype(jnp.bfloat16), table).swapaxes(1, 2)
    parity("pi3/geometry", "rope_out_bf16_as_f32", got, g["rope_out_bf16_as_f32"], 0.05)
    parity("pi3/geometry", "se3_inverse", geometry.invert_se3(g["se3"]), g["se3_inverse"], 5e-6)


@pytest.mark.parametrize("principal_point", ["free", "center"])
def test_intrinsics_of_rays_agree_with_upstream(golden_pi3, parity, principal_point):
    g = golden_pi3("geometry")
    key = {"free": "intrinsics_free", "center": "intrinsics_centred"}[principal_point]
    points = g["edge_points"][:1]
    if principal_point == "center":
        points = points * np.array([1.1, 0.9, 1], np.float32)
    rays = points[..., :2] / points[..., 2:]
    sums = ray_sums(jnp.asarray(rays), jnp.ones(rays.shape[:-1]))
    got = intrinsics_of(sums, rays.shape[1:3], principal_point)
    parity("pi3/geometry", key, got, g[key], 1e-5, relative=True)
