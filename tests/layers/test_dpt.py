"""The dense head against upstream, stage by stage."""

import jax
import numpy as np
import pytest
import torch
from flax import nnx

from lite3r_jax.backbones.heads import activate, run_frames
from lite3r_jax.layers.dpt import DPT, ResidualUnit, Upsample, add_uv_embedding, uv_axes

activated = jax.jit(activate, static_argnums=(1, 2))

GRID = (4, 6)
# Gate of the final maps in the golden README; earlier stages have magnitudes of the same order.
GATE = 2e-5


def channels_last(x):
    return np.moveaxis(x, -3, -1)


@pytest.fixture(scope="module")
def levels(golden):
    g = golden("modules/dpt")
    return [g[f"tokens_{i}"][0, :, 5:] for i in range(4)]


@pytest.fixture(scope="module")
def depth_head(tiny_vggt):
    return jax.jit(lambda levels: tiny_vggt.depth_head(levels, GRID))


@pytest.fixture(scope="module")
def stages(depth_head, levels):
    return depth_head(levels)


@pytest.mark.parametrize(
    ("ours", "upstream"),
    [(f"project/{i}", f"project_{i}") for i in range(4)]
    + [(f"resize/{i}", f"resize_{i}") for i in range(4)]
    + [(f"reassemble/{i}", f"layer{i + 1}_rn") for i in range(4)]
    + [(f"refine/{i}", f"refinenet{i + 1}") for i in range(4)]
    + [(name, name) for name in ("out_conv2_in", "logits")]
    + [("out_conv1", "output_conv1")],
)
def test_stages_agree_with_upstream(golden, parity, stages, ours, upstream):
    upstream = "output_conv2_in" if upstream == "out_conv2_in" else upstream
    want = channels_last(golden("modules/dpt")[upstream])
    parity("modules/dpt", upstream, stages[1][ours], want, GATE)


@pytest.mark.parametrize("prefix", ["", "small_"])
def test_depth_agrees_with_upstream(golden, parity, depth_head, levels, prefix):
    g = golden("modules/dpt")
    scale = 3e-3 if prefix else 1.0  # small tokens show a wrong epsilon
    logits = depth_head([np.float32(scale) * x for x in levels])[1]["logits"]
    depth, conf = activated(logits, "exp", "expp1")
    parity("modules/dpt", f"{prefix}depth", depth[None], g[f"{prefix}depth"], GATE)
    parity("modules/dpt", f"{prefix}depth_conf", conf[None], g[f"{prefix}depth_conf"], GATE)


@pytest.mark.slow
def test_points_agree_with_upstream(golden, parity, tiny_vggt, levels):
    g = golden("modules/dpt")
    points, conf = activated(tiny_vggt.point_head(levels, GRID)[0], "inv_log", "expp1")
    parity("modules/dpt", "world_points", points[None], g["world_points"], 2e-4)
    parity("modules/dpt", "world_points_conf", conf[None], g["world_points_conf"], 2e-4)


@pytest.mark.slow
def test_track_features_agree_with_upstream(golden, parity, tiny_vggt, levels):
    maps, _ = tiny_vggt.track_head.feature_extractor(levels, GRID)
    want = channels_last(golden("modules/dpt")["track_features"])
    parity("modules/dpt", "track_features", maps[None], want, 2e-6)


def test_uv_grid_agrees_with_upstream(golden, parity):
    want = golden("modules/dpt")["uv_grid"]
    x, y = uv_axes(6, 4, 84 / 56)
    got = np.stack(np.meshgrid(x, y), axis=-1)
    parity("modules/dpt", "uv_grid", got, want, 1e-6)


@pytest.mark.parametrize("name", ["uv_embed_16", "uv_embed_40_hi"])
def test_uv_embedding_agrees_with_upstream(golden, parity, name):
    want = golden("modules/dpt")[name]
    got = add_uv_embedding(np.zeros((1, *want.shape), np.float32), 84 / 56, factor=1.0)[0]
    parity("modules/dpt", name, got, want, 1e-6)


@pytest.mark.parametrize(
    "name", ["exp", "inv_log", "norm_exp", "xy_inv_log", "relu", "linear", "sigmoid", "norm"]
)
def test_activations_agree_with_upstream(golden, parity, name):
    g = golden("modules/dpt")
    x = channels_last(g["act_in"])
    x = x[..., :4] if name == "xy_inv_log" else x
    got, _ = activated(x, name, "expp1")
    parity("modules/dpt", f"act_{name}", got, g[f"act_{name}"], 1e-5)


@pytest.mark.parametrize("name", ["expp1", "expp0", "sigmoid"])
def test_confidence_activations_agree_with_upstream(golden, parity, name):
    g = golden("modules/dpt")
    _, got = activated(channels_last(g["act_in"]), "linear", name)
    parity("modules/dpt", f"confact_{name}", got, g[f"confact_{name}"], 1e-5)


@pytest.mark.parametrize("name", ["norm", "norm_exp", "inv_log", "xy_inv_log"])
def test_activations_have_finite_gradients_at_zero(name):
    gradient = jax.grad(lambda x: activated(x, name, "expp1")[0].sum())(
        np.zeros((2, 4), np.float32)
    )
    assert np.isfinite(gradient).all()


def test_upsample_is_a_transposed_convolution():
    layer = Upsample(3, 2, dtype=np.float32, param_dtype=np.float32, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).standard_normal((1, 4, 5, 3), dtype=np.float32)
    want = torch.nn.functional.conv_transpose2d(
        torch.tensor(x.transpose(0, 3, 1, 2).copy()),
        torch.tensor(np.asarray(layer.kernel[...]).transpose(0, 3, 1, 2).copy()),
        stride=2,
    )
    np.testing.assert_allclose(layer(x), want.numpy().transpose(0, 2, 3, 1), atol=1e-6)


def test_the_skip_of_a_residual_unit_is_rectified():
    unit = ResidualUnit(4, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(unit(-np.ones((1, 3, 3, 4), np.float32)), 0)


def test_the_skip_of_a_residual_unit_can_stay_as_it_is():
    unit = ResidualUnit(4, rectified_skip=False, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(unit(-np.ones((1, 3, 3, 4), np.float32)), -1)


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [1, 2, 100])
def test_chunks_of_frames_change_nothing(chunk):
    head = DPT(8, features=8, out_channels=(4, 4, 8, 8), outputs=2, patch=14, rngs=nnx.Rngs(0))
    tokens = np.random.default_rng(0).standard_normal((1, 5, 4, 7, 8), dtype=np.float32)
    got = jax.jit(lambda t: run_frames(head, t, range(4), 1, chunk, (2, 3)))(tokens)
    whole = jax.jit(lambda t: head([t[0, :, i, 1:] for i in range(4)], (2, 3))[0])(tokens)
    np.testing.assert_allclose(got[0], whole, atol=2e-6)


@pytest.mark.slow
def test_chunks_bound_the_memory():
    head = DPT(32, features=32, out_channels=(32,) * 4, outputs=2, patch=14, rngs=nnx.Rngs(0))

    def temporary(chunk):
        def run(tokens):
            return run_frames(head, tokens, range(4), 0, chunk, (8, 8))

        lowered = jax.jit(run).lower(jax.ShapeDtypeStruct((1, 16, 4, 64, 32), np.float32))
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert temporary(1) < temporary(16) / 4
