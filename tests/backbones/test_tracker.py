"""The tracker against upstream (values, gradients) and against what tracking means."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from lite3r_jax.backbones.vggt.tracker import (
    MultiheadAttention,
    SelfBlock,
    TrackConfig,
    Tracker,
    flow_embedding,
    position_embedding,
)
from lite3r_jax.errors import InputError
from lite3r_jax.layers.rngs import traced_rngs

pytestmark = pytest.mark.slow  # compiling the tracker takes most of a minute

FOLDER = Path(__file__).parents[1] / "golden" / "vggt"
GOLDEN = np.load(FOLDER / "modules" / "track.npz")
SIZES = json.loads((FOLDER / "config.json").read_text())["track"]
CONFIG = TrackConfig(**{**SIZES, "dpt_out_channels": tuple(SIZES["dpt_out_channels"])})


def upstream_names(path: tuple[str, ...]) -> list[str]:
    """Names of the upstream tensors that fill a parameter, one for every stacked layer."""
    path = tuple({"virtual_tracks": "virual_tracks"}.get(part, part) for part in path)
    *modules, leaf = path
    leaf = {"kernel": "weight", "scale": "weight"}.get(leaf, leaf)
    if modules[-1:] == ["in_proj"]:
        modules, leaf = modules[:-1], f"in_proj_{leaf}"
    if modules and modules[0] in ("ffeat_updater", "vis_predictor", "conf_predictor"):
        modules = [modules[0], "0"]
    prefix = "track_head.tracker"
    if len(modules) > 1 and modules[1].endswith("_blocks"):
        stack, inside = ".".join(modules[:2]), ".".join([*modules[2:], leaf])
        return [f"{prefix}.{stack}.{layer}.{inside}" for layer in range(CONFIG.depth)]
    return [".".join([prefix, *modules, leaf])]


def load_tracker(dtype=jnp.float32) -> Tracker:
    weights = load_file(FOLDER / "model.safetensors")
    tracker = Tracker(CONFIG, dtype=dtype, rngs=nnx.Rngs(0))
    used = set()
    state = nnx.state(tracker)
    for path, variable in nnx.to_flat_state(state):
        names = upstream_names(path)
        tensors = [weights[name] for name in names]
        if path[-1] == "kernel":
            tensors = [t.T for t in tensors]
        value = np.stack(tensors) if len(names) > 1 else tensors[0]
        assert value.shape == variable.shape, path
        variable.set_value(jnp.asarray(value))
        used.update(names)
    nnx.update(tracker, state)
    assert used == {name for name in weights if name.startswith("track_head.tracker.")}
    return tracker


@pytest.fixture(scope="module")
def tracker() -> Tracker:
    return load_tracker()


@nnx.jit(static_argnames="iters")
def run(tracker, query_points, fmaps, iters=None):
    return tracker(query_points, fmaps, iters)


@pytest.fixture(scope="module")
def module_case() -> tuple[jax.Array, jax.Array]:
    return jnp.asarray(GOLDEN["query_points"]), jnp.moveaxis(jnp.asarray(GOLDEN["fmaps"]), 2, -1)


@pytest.fixture(scope="module")
def model_case() -> tuple[jax.Array, jax.Array]:
    query_points = np.load(FOLDER / "inputs.npz")["query_points"]
    fmaps = np.load(FOLDER / "outputs.npz")["track_fmaps"]
    return jnp.asarray(query_points), jnp.moveaxis(jnp.asarray(fmaps), 2, -1)


@pytest.fixture(scope="module")
def model_result(tracker, model_case):
    return run(tracker, *model_case)


@pytest.fixture(scope="module")
def result(tracker, module_case):
    return run(tracker, *module_case, iters=2)


def close(got, expected, atol):
    np.testing.assert_allclose(got, expected, atol=atol, rtol=0)


# Against upstream. The gates stand a factor of 3 to 20 above float noise, which is measured in
# the README of the golden data.


@pytest.mark.parametrize("iteration", [0, 1])
def test_iterations_agree_with_upstream(result, parity, iteration):
    tracks, out = result
    i = iteration

    def check(name, got, gate):
        parity("modules/track", f"{name}_iter{i}", got, GOLDEN[f"{name}_iter{i}"], gate)

    check("corr", out["correlation"][i], 3e-5)
    check("former_in", out["update_input"][i], (1e-5, 1e-4)[i])
    check("former_out", out["update"][i], (5e-7, 2e-6)[i])
    want = GOLDEN["coords"][i]
    parity("modules/track", f"coords[{i}]", tracks.coords[i], want, (1e-5, 1e-4)[i])


def test_features_and_logits_agree_with_upstream(result, parity):
    tracks, out = result
    for name, key, gate in (
        ("query_track_feat", "query_features", 1e-5),
        ("track_feats", "features", 1e-4),
        ("vis_logits", "visibility_logits", 1e-4),
        ("conf_logits", "confidence_logits", 1e-4),
    ):
        parity("modules/track", name, out[key], GOLDEN[name], gate)
    close(tracks.visibility, 1 / (1 + np.exp(-GOLDEN["vis_logits"])), 3e-5)
    close(tracks.confidence, 1 / (1 + np.exp(-GOLDEN["conf_logits"])), 3e-5)


def test_four_iterations_agree_with_upstream(model_result):
    """On upstream's own feature maps; tests/backbones/test_vggt_parity.py runs from images."""
    tracks, _ = model_result
    expected = np.load(FOLDER / "outputs.npz")
    gates = (1e-5, 1e-4, 1e-3, 3e-3)
    for got, want, gate in zip(tracks.coords, expected["track_list"], gates, strict=True):
        close(got, want, gate)
    close(tracks.visibility, expected["vis"], 1e-3)
    close(tracks.confidence, expected["conf"], 1e-3)


def test_flow_embedding_agrees_with_upstream(parity):
    flow = jnp.asarray(GOLDEN["emb2d_xy"])
    waves = flow_embedding(flow, 8)
    parity("modules/track", "emb2d_C8", waves, GOLDEN["emb2d_C8"], 1e-6)
    with_flow = jnp.concatenate([flow, waves], axis=-1)
    parity("modules/track", "emb2d_C8_cat", with_flow, GOLDEN["emb2d_C8_cat"], 1e-6)


def test_flow_embedding_is_exact_for_large_displacements():
    flow = np.random.default_rng(0).uniform(-300, 300, (500, 2)).astype(np.float32)
    frequency = np.arange(0, 64, 2, dtype=np.float32) * np.float32(1000 / 64)
    angle = (flow[:, :, None] * frequency).astype(np.float64)  # products rounded to float32
    assert np.abs(angle).max() > 1e5
    got = jax.jit(flow_embedding, static_argnums=1)(jnp.asarray(flow), 64).reshape(500, 2, 32, 2)
    close(got[..., 0], np.sin(angle), 2e-7)
    close(got[..., 1], np.cos(angle), 2e-7)


def test_position_embedding_agrees_with_upstream_on_pixels_and_between_them(parity):
    table = GOLDEN["sincos2d_52_5x7"][0]  # [52, 5, 7]
    y, x = np.mgrid[:5, :7]
    pixels = jnp.asarray(np.stack([x, y], axis=-1).reshape(1, -1, 2), jnp.float32)
    got = position_embedding(pixels, (5, 7), 52)
    got = got[0].T.reshape(1, 52, 5, 7)
    parity("modules/track", "sincos2d_52_5x7", got, table[None], 1e-6)
    between = position_embedding(jnp.asarray([[[2.25, 3.5], [99, -99]]], jnp.float32), (5, 7), 52)
    cell = table[:, 3:5, 2:4].mean(axis=1)
    close(between[0, 0], 0.75 * cell[:, 0] + 0.25 * cell[:, 1], 1e-6)
    close(between[0, 1], table[:, 0, 6], 1e-6)  # outside: the corner


def test_attention_is_a_softmax_average_of_the_context():
    rng = np.random.default_rng(0)
    layer = MultiheadAttention(
        8, 2, dtype=jnp.float32, param_dtype=jnp.float32, rngs=nnx.Rngs(params=3)
    )
    layer.in_proj.bias.set_value(jnp.asarray(rng.normal(size=24), jnp.float32))
    x, context = (jnp.asarray(rng.normal(size=(3, t, 8)), jnp.float32) for t in (4, 6))
    kernel = np.asarray(layer.in_proj.kernel[...], np.float64)
    bias = np.asarray(layer.in_proj.bias[...], np.float64)
    q = (np.asarray(x) @ kernel[:, :8] + bias[:8]).reshape(3, 4, 2, 4)
    k = (np.asarray(context) @ kernel[:, 8:16] + bias[8:16]).reshape(3, 6, 2, 4)
    v = (np.asarray(context) @ kernel[:, 16:] + bias[16:]).reshape(3, 6, 2, 4)
    weights = np.exp(np.einsum("bqnd,bknd->bnqk", q, k) / 2)
    weights /= weights.sum(axis=-1, keepdims=True)
    o = np.einsum("bnqk,bknd->bqnd", weights, v).reshape(3, 4, 8)
    expected = o @ np.asarray(layer.out_proj.kernel[...]) + np.asarray(layer.out_proj.bias[...])
    close(layer(x, context), expected, 2e-6)
    close(layer(x, x), layer(x), 2e-6)  # both ways of projecting


def test_the_residual_restarts_from_the_normalized_input():
    block = SelfBlock(8, 2, dtype=jnp.float32, param_dtype=jnp.float32, rngs=nnx.Rngs(params=0))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 8)), jnp.float32)
    close(block(100 * x + 7), block(x), 1e-4)  # a textbook block would let 100 x + 7 through


# What tracking means.


def test_view_0_stays_at_the_query(result, module_case):
    query_points, _ = module_case
    for coords in result[0].coords:
        np.testing.assert_array_equal(coords[:, 0], query_points)


def test_a_query_on_a_pixel_takes_the_feature_of_that_pixel(tracker, module_case):
    query_points, fmaps = module_case
    x, y = 13, 21
    fmaps = jnp.zeros_like(fmaps).at[0, 0, y, x, 5].set(1.0)
    stride = 2.0
    query_points = query_points.at[0, :2].set([[stride * x, stride * y], [stride * y, stride * x]])
    _, out = run(tracker, query_points, fmaps, iters=2)
    lit, dark = tracker.fmap_norm(fmaps[0, 0, y, x]), tracker.fmap_norm(jnp.zeros(16))
    close(out["query_features"][0, 0], lit, 1e-6)
    close(out["query_features"][0, 1], dark, 1e-6)
    assert np.abs(lit - dark).max() > 1


def test_permuting_the_points_permutes_the_tracks(tracker, module_case, result):
    query_points, fmaps = module_case
    order = np.array([3, 0, 4, 1, 2])
    tracks, _ = run(tracker, query_points[:, order], fmaps, iters=2)
    close(tracks.coords, result[0].coords[:, :, :, order], 1e-4)
    close(tracks.visibility, result[0].visibility[:, :, order], 3e-5)
    close(tracks.confidence, result[0].confidence[:, :, order], 3e-5)


def test_permuting_the_other_views_permutes_the_tracks(tracker, model_case, model_result):
    query_points, fmaps = model_case
    straight = model_result[0].coords[:2]
    permuted = run(tracker, query_points, fmaps[:, [0, 2, 1]])[0].coords[:2]
    close(permuted, straight[:, :, [0, 2, 1]], 1e-4)
    # View 0 is not one of them.
    exchanged = run(tracker, query_points, fmaps[:, [1, 0, 2]])[0].coords[:2]
    assert np.abs(exchanged - straight[:, :, [1, 0, 2]])[:, :, 2].max() > 1e-2


def test_points_of_a_scene_see_each_other_and_scenes_do_not(tracker, module_case, result):
    query_points, fmaps = module_case
    moved, _ = run(tracker, query_points.at[0, 0].add(20.0), fmaps, iters=2)
    change = np.abs(moved.coords[-1] - result[0].coords[-1])
    assert (change[0, 1, 1:].max(axis=-1) > 1e-5).all()  # other points of scene 0, view 1
    close(moved.coords[:, 1], result[0].coords[:, 1], 1e-6)
    seen, _ = run(tracker, query_points, fmaps.at[0].multiply(-1.0), iters=2)
    assert np.abs(seen.coords[-1, 0] - result[0].coords[-1, 0]).max() > 1e-3
    close(seen.coords[:, 1], result[0].coords[:, 1], 1e-6)
    close(seen.visibility[1], result[0].visibility[1], 1e-6)


def test_views_of_a_scene_see_each_other(tracker, model_case, model_result):
    query_points, fmaps = model_case
    changed, _ = run(tracker, query_points, fmaps.at[:, 2].multiply(-1.0))
    change = np.abs(changed.coords[0] - model_result[0].coords[0])
    assert (change[:, 1].max(axis=-1) > 1e-6).all()


@pytest.fixture(scope="module")
def gradients(tracker, module_case):
    """Gradients along query points, feature maps and bias of the flow head, for slopes of outputs.

    Called with functions of zeros: (tracks, out) -> the slopes of (tracks, out).
    """
    graph, state = nnx.split(tracker)
    primals = (*module_case, tracker.updateformer.flow_head.bias[...])

    def forward(query_points, fmaps, bias):
        model = nnx.merge(graph, state, copy=True)
        model.updateformer.flow_head.bias.set_value(bias)
        return model(query_points, fmaps, 2)

    pull = jax.jit(lambda slopes: jax.vjp(forward, *primals)[1](slopes))
    zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(forward, *primals))
    return lambda slopes_of: pull(slopes_of(*zeros))


def noise(like, seed):
    return jnp.asarray(np.random.default_rng(seed).normal(size=like.shape), like.dtype)


@pytest.mark.parametrize("name", ["correlation", "update"])
@pytest.mark.parametrize("view", [0, 1])
def test_gradient_of_the_feature_maps_is_a_difference_quotient(
    tracker, module_case, gradients, view, name
):
    """In the first iteration; later ones depend on the maps through detached positions too."""
    query_points, fmaps = module_case
    direction = np.zeros(fmaps.shape, np.float32)
    direction[:, view] = np.random.default_rng(view).normal(size=fmaps[:, view].shape)
    step = 1e-4  # the maps are 0.04 at most
    (_, ahead), (_, behind) = (
        run(tracker, query_points, fmaps + sign * step * direction, iters=2) for sign in (1, -1)
    )
    quotient = (ahead[name][0] - behind[name][0]) / (2 * step)
    assert np.abs(quotient).max() > 0.1
    # along the quotient itself: any other direction is mostly rounding
    _, gradient, _ = gradients(
        lambda tracks, out: (tracks, out | {name: out[name].at[0].set(quotient)})
    )
    got, want = (gradient * direction).sum(), (quotient**2).sum()
    close(got, want, 2e-3 * want)


def test_positions_are_detached(module_case, gradients):
    """A query changes features, correlations and position code, but none of it by a gradient."""

    def but_for_the_query(tracks, out):
        tracks, out = jax.tree.map(lambda a: noise(a, a.size), (tracks, out))
        return replace(tracks, coords=tracks.coords.at[:, :, 0].set(0)), out

    assert not gradients(but_for_the_query)[0].any()
    slope = noise(np.zeros((2, 2, 5, 2), np.float32), 0)  # both iterations hold the query itself
    to_query, _, _ = gradients(
        lambda tracks, out: (replace(tracks, coords=tracks.coords.at[:, :, 0].set(slope)), out)
    )
    np.testing.assert_allclose(to_query, slope.sum(0), rtol=1e-6)


@pytest.mark.parametrize("iteration", [0, 1])
def test_each_position_is_trained_by_its_own_increment(gradients, iteration):
    """A displacement is no addend of the next position, which starts from a detached one."""
    slope = noise(np.zeros((2, 1, 5), np.float32), iteration)

    def at_x(tracks, out):
        return replace(tracks, coords=tracks.coords.at[iteration, :, 1:, :, 0].set(slope)), out

    _, _, bias = gradients(at_x)
    close(bias[0], CONFIG.stride * slope.sum(), 1e-5)


# Precision and sizes.


def test_bfloat16_products_leave_float32_positions(module_case, result):
    half = load_tracker(jnp.bfloat16)
    tracks, out = run(half, *module_case, iters=2)
    assert {a.dtype for a in jax.tree.leaves((tracks, out))} == {jnp.dtype(jnp.float32)}
    close(tracks.coords, result[0].coords, 1.5e-2)
    close(tracks.visibility, result[0].visibility, 1e-2)
    np.testing.assert_array_equal(tracks.coords[-1][:, 0], module_case[0])


def test_defaults_are_the_published_model():
    config = TrackConfig()
    assert (config.token_size, config.corr_size) == (388, 567)
    state = nnx.state(nnx.eval_shape(lambda: Tracker(config, rngs=traced_rngs(0))))
    assert sum(v.size for v in jax.tree.leaves(state)) == 43_107_348


def test_one_view_one_point(tracker):
    fmaps = jnp.asarray(np.random.default_rng(0).normal(size=(1, 1, 16, 17, 16)), jnp.float32)
    query_points = jnp.asarray([[[3.5, 30.0]]])
    tracks, _ = run(tracker, query_points, fmaps)
    assert np.isfinite(tracks.visibility).all()
    np.testing.assert_array_equal(tracks.coords, np.broadcast_to(query_points, (4, 1, 1, 1, 2)))


# Bad input.

POINTS = jnp.zeros((2, 5, 2))
MAPS = jnp.zeros((2, 3, 16, 16, 16))


@pytest.mark.parametrize(
    ("query_points", "fmaps", "iters", "message"),
    [
        (POINTS[0], MAPS, None, r"query_points of shape \(5, 2\): expected \[B, N, 2\]"),
        (jnp.zeros((2, 5, 3)), MAPS, None, r"query_points of shape \(2, 5, 3\)"),
        (POINTS[:, :0], MAPS, None, "at least one point"),
        (POINTS.astype(jnp.int32), MAPS, None, "query_points of dtype int32: expected float32"),
        (POINTS.astype(jnp.bfloat16), MAPS, None, "query_points of dtype bfloat16"),
        (POINTS, MAPS[0], None, r"fmaps of shape .*expected \[B, S, h, w, 16\], channels last"),
        (POINTS, MAPS[..., :8], None, r"fmaps of shape \(2, 3, 16, 16, 8\)"),
        (POINTS, MAPS.astype(jnp.int32), None, "fmaps of dtype int32: expected a floating"),
        (POINTS[:1], MAPS, None, "query_points of 1 scenes, fmaps of 2"),
        (POINTS, MAPS[:, :, :15], None, "feature map of 15x16: 5 pyramid levels need at least 16"),
        (POINTS, MAPS, 0, "iters=0: expected a positive integer"),
    ],
)
def test_bad_input_is_named(tracker, query_points, fmaps, iters, message):
    with pytest.raises(InputError, match=message) as error:
        tracker(query_points, fmaps, iters)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": 130}, "TrackConfig.features=130: expected a multiple of 4"),
        ({"num_heads": 7}, "TrackConfig.hidden_size=384: expected a multiple of num_heads=7"),
        ({"num_heads": 0}, "TrackConfig.num_heads=0: expected a positive integer"),
        ({"corr_levels": 2.0}, "TrackConfig.corr_levels=2.0: expected a positive integer"),
        ({"dpt_out_channels": [1, 2]}, r"dpt_out_channels=\[1, 2\]: expected a tuple"),
    ],
)
def test_bad_sizes_are_named(change, message):
    with pytest.raises(InputError, match=message):
        replace(TrackConfig(), **change)
