"""The golden VGGT, stage by stage, in value and gradient."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lite3r_jax.attention.dense import dense_attention
from lite3r_jax.attention.strategy import TokenLayout
from lite3r_jax.backbones.vggt.model import TAPS
from lite3r_jax.backbones.vggt.weight_map import NAME_MAP
from lite3r_jax.layers.rope import rope_table, view_positions
from lite3r_jax.name_map import inverse


@pytest.fixture(scope="module")
def run(tiny_vggt, tiny_images, golden):
    return tiny_vggt(tiny_images, golden("inputs")["query_points"], taps=TAPS)


def images_first(x):
    return x.reshape(-1, *x.shape[2:])


# golden key -> (how to get it from (prediction, taps), gate)
STAGES = {
    "dino_patch_embed": (lambda p, t: t["patch/embed"], 5e-7),
    "dino_tokens_in": (lambda p, t: t["patch/tokens"], 5e-7),
    "dino_blocks": (lambda p, t: t["patch/blocks"], 3e-5),
    "dino_x_norm_patchtokens": (lambda p, t: t["patch/norm"], 3e-5),
    "tokens_in": (lambda p, t: images_first(t["trunk/tokens"]), 3e-5),
    "frame_tokens": (lambda p, t: t["frame/blocks"], 5e-5),
    "global_tokens": (lambda p, t: t["global/blocks"], 5e-5),
    "pose_enc_list": (lambda p, t: t["camera/pose_enc"], 2e-5),
    "depth": (lambda p, t: p.depth, 2e-5),
    "depth_conf": (lambda p, t: p.depth_conf, 2e-5),
    "world_points": (lambda p, t: p.world_points, 2e-4),
    "world_points_conf": (lambda p, t: p.world_points_conf, 2e-4),
    "track_fmaps": (lambda p, t: np.moveaxis(t["track/features"], -1, 2), 2e-6),
    "vis": (lambda p, t: p.tracks.visibility, 3e-3),
    "conf": (lambda p, t: p.tracks.confidence, 3e-3),
}


@pytest.mark.parametrize("key", STAGES)
def test_stage_agrees_with_upstream(golden, parity, run, key):
    get, gate = STAGES[key]
    parity("outputs", key, get(*run), golden("outputs")[key], gate)


@pytest.mark.parametrize(("iteration", "gate"), [(0, 1e-4), (1, 3e-4), (2, 2e-3), (3, 1e-2)])
def test_tracks_agree_with_upstream(golden, parity, run, iteration, gate):
    want = golden("outputs")["track_list"][iteration]
    name = f"track_list[{iteration}]"
    parity("outputs", name, run[1]["track/coords"][iteration], want, gate)


def test_the_prediction_is_the_last_iteration(run):
    prediction, taps = run
    np.testing.assert_array_equal(prediction.pose_enc, taps["camera/pose_enc"][-1])
    np.testing.assert_array_equal(prediction.tracks.coords, taps["track/coords"][-1])


# Attention inputs and outputs of single layers: (golden prefix, stack, cores, layer).
SITES = [
    ("dino0", "patch", 0),
    ("frame0", "frame", 0),
    ("frame1", "frame", 1),
    ("global0", "global", 0),
    ("global1", "global", 1),
]


@pytest.mark.parametrize(
    ("prefix", "role", "layer"),
    [*(pytest.param(*site, marks=pytest.mark.slow) for site in SITES[:-2]), *SITES[-2:]],
)
def test_attention_agrees_with_upstream(golden, parity, tiny_vggt, prefix, role, layer):
    out, g = golden("outputs"), golden("modules/attention_taps")
    aggregator = tiny_vggt.aggregator
    stream = {
        "patch": lambda: out["dino_tokens_in"][:2],
        "frame": lambda: (
            images_first(out["global_tokens"][layer - 1])[:2] if layer else out["tokens_in"][:2]
        ),
        "global": lambda: out["frame_tokens"][layer].reshape(2, 87, 64),
    }[role]()
    stack = {
        "patch": aggregator.patch_embed.blocks,
        "frame": aggregator.frame_blocks,
        "global": aggregator.global_blocks,
    }[role]
    graph, params = nnx.split(stack)
    block = nnx.merge(graph, jax.tree.map(lambda x: x[layer], params))
    rope = None
    if role != "patch":
        rope = rope_table(view_positions(TokenLayout(1, 5, (4, 6), "frame")), 16)

    @jax.jit
    def attended(x):
        q, k, v = block.attn.project(block.norm1(x), rope)
        return q, k, v, dense_attention(q, k, v)

    q, k, v, o = attended(stream)
    for name, got in zip("qkv", (q, k, v), strict=True):
        key = f"{prefix}_{name}"
        parity("modules/attention_taps", key, got.swapaxes(1, 2), g[key], 5e-5)
    parity("modules/attention_taps", f"{prefix}_o", o.swapaxes(1, 2), g[f"{prefix}_o"], 5e-5)


@pytest.fixture(scope="module")
def gradients(tiny_vggt, tiny_images, golden):
    """Objective and gradients by upstream name, as golden/vggt/README.md defines them."""
    graph, params = nnx.split(tiny_vggt)
    queries = golden("inputs")["query_points"]

    def objective(params, images):
        model = nnx.merge(graph, params)
        p, taps = model(images, queries, taps=("camera/pose_enc",))
        square = [taps["camera/pose_enc"], p.depth, p.world_points]
        plain = [p.depth_conf, p.world_points_conf, p.tracks.visibility, p.tracks.confidence]
        total = sum(jnp.mean(x**2) for x in square) + sum(jnp.mean(x) for x in plain)
        return total + 1e-3 * jnp.mean(p.tracks.coords**2)

    both = jax.jit(jax.value_and_grad(objective, argnums=(0, 1)))
    value, (by_params, by_images) = both(params, jnp.asarray(tiny_images))
    upstream = {}
    for key, leaf in nnx.to_flat_state(by_params):
        path, leaf = "/".join(map(str, key)), np.asarray(leaf[...])
        for pair, shape in NAME_MAP.to_upstream(path, leaf.shape):
            one = leaf if pair.index is None else leaf[pair.index]
            upstream[pair.source] = inverse(pair.transform, one).reshape(shape)
    return float(value), by_images, upstream


@pytest.mark.slow
def test_input_gradient_agrees_with_upstream(golden, parity, gradients):
    g = golden("grads")
    value, by_images, _ = gradients
    parity("grads", "objective", value, g["objective"], 1e-5, relative=True)
    got = np.moveaxis(by_images, -1, 2)
    parity("grads", "grad_images", got, g["grad_images"], 1e-5)


@pytest.mark.slow
def test_every_parameter_gradient_agrees_with_upstream(golden_dir, parity, gradients):
    wanted = json.loads((golden_dir / "param_grads.json").read_text())
    _, _, upstream = gradients
    mask_token = wanted.pop("aggregator.patch_embed.mask_token")
    assert mask_token["absmax"] == 0, "nothing depends on the mask token"
    assert set(upstream) == set(wanted)
    errors = {"first": [], "last": [], "absmax": [], "l2": [], "sum": []}
    for name, want in wanted.items():
        got = upstream[name].astype(np.float64)
        assert list(got.shape) == want["shape"], name
        statistics = {
            "first": got.flat[0],
            "last": got.flat[-1],
            "absmax": np.abs(got).max(),
            "l2": np.sqrt((got**2).sum()),
            "sum": got.sum(),
        }
        # Key biases without qk-norm have no influence: their gradients are rounding noise.
        scale = max(want["absmax"], 1e3 * want["noise_max_abs"])
        for key, value in statistics.items():
            size = {"l2": max(want["l2"], scale), "sum": scale * np.sqrt(got.size)}.get(key, scale)
            errors[key].append(abs(value - want[key]) / size)
    for key, relative in errors.items():
        name = f"{key} of {len(relative)} parameters"
        parity("param_grads", name, np.array(relative), np.zeros(len(relative)), 5e-3)
