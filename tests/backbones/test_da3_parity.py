"""The golden Depth Anything 3, stage by stage."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lite3r_jax import geometry
from lite3r_jax.attention.strategy import TokenLayout
from lite3r_jax.backbones.da3.cameras import decode_cameras, encode_cameras
from lite3r_jax.backbones.da3.model import TAPS
from lite3r_jax.backbones.da3.rays import cameras_from_rays, ql, robust_homography
from lite3r_jax.backbones.da3.reference_view import (
    balance_scores,
    reference_first,
    restore_views,
    select_reference,
    similarity_range,
    take_views,
)
from lite3r_jax.backbones.heads import activate
from lite3r_jax.layers.dpt import add_uv_embedding, uv_axes
from lite3r_jax.layers.mlp import SwiGlu
from lite3r_jax.layers.patch_embed import resize_pos_embed
from lite3r_jax.layers.resize import resize_aligned
from lite3r_jax.layers.rope import rope_table, rotate, view_positions

# Compiled whole: operation by operation they would take most of the time of these tests.
scores_of, range_of = jax.jit(balance_scores), jax.jit(similarity_range)
take, restore = jax.jit(take_views), jax.jit(restore_views)
turn = jax.jit(rotate)
resized = jax.jit(resize_pos_embed, static_argnums=(1, 2), static_argnames="resampling")

GATE = 2e-5


def _slow(value):
    return pytest.param(value, marks=pytest.mark.slow)


CASES = [
    "nopose_b2s4_56x84",
    _slow("nopose_b1s1_56x84"),
    _slow("nopose_b1s2_84x56"),
    _slow("nopose_b1s3_42x70"),
    _slow("pose_b1s1_42x70"),
    _slow("pose_b2s4_56x84"),
]
# From this block on the golden streams have the reference view first.
REORDERED = 3
OUT_LAYERS = (5, 7, 8, 9)


def unit_images(golden, name):
    """The images of a case in [0, 1]; cases of equal names beyond pose_ share them."""
    arrays = golden(f"model_{name}")
    if "in_images_u8" not in arrays:
        arrays = golden(f"model_no{name}")
    return arrays["in_images_u8"].astype(np.float32) / 255


def block_of(taps, index):
    """The stream after a block, by the rule that odd blocks from block 4 on are global."""
    if index < 4:
        return taps["frame/blocks"][index]
    pair, second = divmod(index - 4, 2)
    return taps["global/blocks"][pair] if second else taps["frame/blocks"][4 + pair]


@pytest.fixture(scope="module")
def run(tiny_da3, golden_da3):
    """Prediction and taps of a case, with rays."""
    results = {}

    def get(name):
        if name not in results:
            g = golden_da3(f"model_{name}")
            known = "in_extrinsics" in g
            cameras = (g["in_extrinsics"], g["in_intrinsics"]) if known else ()
            taps = [t for t in TAPS if known or t != "camera/encoded"]
            images = unit_images(golden_da3, name)
            results[name] = tiny_da3(images, *cameras, rays=True, taps=taps)
        return results[name]

    return get


@pytest.mark.parametrize("name", CASES)
def test_model_agrees_with_upstream(golden_da3, parity, run, tiny_da3, name):
    g = golden_da3(f"model_{name}")
    p, taps = run(name)
    group = f"da3/model_{name}"

    def compare(key, got):
        parity(group, key, got, g[key], GATE, relative=True)

    def reordered(x):
        return take(x, reference_first(taps["trunk/reference"], x.shape[1]))

    if "ref_b_idx" in g:
        parity(group, "ref_b_idx", taps["trunk/reference"], g["ref_b_idx"], 0)
    for key in ("extrinsics", "intrinsics", "depth_conf"):
        compare(key, getattr(p, key))
    compare("depth", p.depth[..., 0])
    compare("ray", p.rays)
    compare("ray_conf", p.rays_conf)
    compare("pose_enc", taps["camera/camera_to_world"])
    for k, layer in enumerate(OUT_LAYERS):
        if f"feat_{layer:02}" in g:
            compare(f"feat_{layer:02}", taps["features"][:, :, k])
        compare(f"camtok_{layer:02}", taps["camera/tokens"][:, :, k])
    if "tokens_in" in g:
        compare("tokens_in", taps["trunk/tokens"])
    if "cam_enc_token" in g:
        compare("cam_enc_token", taps["camera/encoded"])
    for index in range(10):
        x = block_of(taps, index)
        if index >= REORDERED:
            x = reordered(x)
        if f"block_{index:02}" in g:
            compare(f"block_{index:02}", x)
        if (key := f"aux_feat_{index:02}") in g:
            compare(key, tiny_da3.trunk.norm(x)[:, :, 1:].reshape(g[key].shape))


SCORES = {
    "sim_score": "similarity",
    "feat_norm": "length",
    "feat_var": "variance",
    "sim_score_norm": "similarity_scaled",
    "norm_norm": "length_scaled",
    "var_norm": "variance_scaled",
    "balance_score": "balance",
}
# Stretched to [0, 1], the variance of unit vectors is mostly rounding: 1e-4 by the specification.
SCORE_GATES = {"var_norm": 5e-4, "balance_score": 5e-4}


@pytest.mark.parametrize("name", ["nopose_b2s4_56x84", _slow("nopose_b1s3_42x70")])
def test_scores_in_the_model_agree_with_upstream(golden_da3, parity, run, name):
    g = golden_da3(f"model_{name}")
    scores = scores_of(run(name)[1]["frame/blocks"][2][:, :, 0])
    for key, ours in SCORES.items():
        gate = SCORE_GATES.get(key, GATE)
        parity(f"da3/model_{name}", f"ref_{key}", scores[ours], g[f"ref_{key}"], gate)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["first", "middle"])
def test_other_references_agree_with_upstream(golden_da3, parity, tiny_da3, strategy):
    g = golden_da3(f"model_strategy_{strategy}")
    images = unit_images(golden_da3, "nopose_b2s4_56x84")[:1]
    p, taps = tiny_da3(images, reference=strategy, rays=True, taps=("trunk/reference",))
    group = f"da3/model_strategy_{strategy}"
    parity(group, "ref_b_idx", taps["trunk/reference"], g["ref_b_idx"], 0)
    outputs = {
        "depth_sub": p.depth[..., ::4, ::4, 0],
        "ray_sub": p.rays[:, :, ::4, ::4],
        "extrinsics": p.extrinsics,
        "intrinsics": p.intrinsics,
    }
    for key, got in outputs.items():
        parity(group, key, got, g[key], GATE, relative=True)


@pytest.mark.parametrize("views", [3, *(_slow(views) for views in (1, 2, 4, 7))])
def test_reference_selection_agrees_with_upstream(golden_da3, parity, views):
    g = golden_da3("mod_refview")
    x = g[f"in_x_s{views}"]
    classes = jnp.asarray(x[:, :, 0])
    here = f"s{views}"
    for strategy in ("first", "middle", "saddle_balanced", "saddle_sim_range"):
        key = f"{here}_{strategy}_b_idx"
        if key in g:
            chosen = jax.jit(select_reference, static_argnums=1)(classes, strategy)
            parity("da3/mod_refview", key, chosen, g[key], 0)
    if f"{here}_saddle_balanced_sim_score" in g:
        scores = scores_of(classes)
        for key, ours in SCORES.items():
            gate = SCORE_GATES.get(key, GATE)
            key = f"{here}_saddle_balanced_{key}"
            parity("da3/mod_refview", key, scores[ours], g[key], gate)
        unit = x[:, :, 0] / np.linalg.norm(x[:, :, 0], axis=-1, keepdims=True)
        cosine = unit @ unit.swapaxes(1, 2) - np.eye(views)
        similarity = {
            "range": range_of(classes),
            "min": cosine.min(-1),
            "max": cosine.max(-1),
        }
        for key, got in similarity.items():
            key = f"{here}_saddle_sim_range_sim_{key}"
            parity("da3/mod_refview", key, got, g[key], 2e-6)
    order = reference_first(jnp.asarray(g[f"{here}_order_b_idx"]), views)
    parity("da3/mod_refview", f"{here}_order_b_idx", order[:, 0], g[f"{here}_order_b_idx"], 0)
    moved = take(jnp.asarray(x), order)
    parity("da3/mod_refview", f"{here}_reordered", moved, g[f"{here}_reordered"], 0)
    back = restore(moved, order)
    parity("da3/mod_refview", f"{here}_restored", back, g[f"{here}_restored"], 0)


@pytest.mark.parametrize(
    "size",
    [
        (56, 84),
        (378, 504),
        (518, 518),
        *(_slow(size) for size in ((42, 70), (14, 14), (504, 280), (518, 504), (532, 560))),
    ],
)
def test_position_embedding_agrees_with_upstream(golden_da3, parity, size):
    g = golden_da3("mod_posembed")
    h, w = size
    got = resized(jnp.asarray(g["in_pos_embed"]), (h // 14, w // 14), h == w, resampling="offset")
    parity("da3/mod_posembed", f"out_{h}x{w}", got, g[f"out_{h}x{w}"], 1e-5, relative=True)


@pytest.mark.parametrize("head_dim", [16, 64])
@pytest.mark.parametrize("scope", ["local", "global"])
def test_rope_agrees_with_upstream(golden_da3, parity, scope, head_dim):
    g = golden_da3("mod_rope")
    positions = view_positions(TokenLayout(1, 1, (3, 5), "frame"), spatial=scope == "local")
    np.testing.assert_array_equal(positions, g[f"pos_{scope}"])
    q = jnp.asarray(g[f"in_q{head_dim}"]).swapaxes(1, 2)
    got = turn(q, rope_table(positions, head_dim)).swapaxes(1, 2)
    key = f"{scope}{head_dim}"
    parity("da3/mod_rope", key, got, g[key], 2e-6, relative=True)


def test_gated_layer_agrees_with_upstream(golden_da3, parity):
    g = golden_da3("mod_swiglu")
    layer = SwiGlu(24, 96, rngs=nnx.Rngs(0))
    for linear, name in ((layer.w12, "w12"), (layer.w3, "w3")):
        assert linear.kernel.shape == g[f"in_{name}_weight"].T.shape
        linear.kernel[...] = jnp.asarray(g[f"in_{name}_weight"].T)
        linear.bias[...] = jnp.asarray(g[f"in_{name}_bias"])
    parity("da3/mod_swiglu", "out", jax.jit(layer)(g["in_x"]), g["out"], 2e-6, relative=True)


@pytest.mark.slow
def test_grids_embeddings_and_resizing_agree_with_upstream(golden_da3, parity):
    g = golden_da3("mod_uvgrid_interp")
    x = np.moveaxis(g["in_x"], 1, -1)
    for key, want in g.items():
        kind, _, rest = key.partition("_")
        if kind == "grid":
            w, h = (int(n) for n in rest[1:].split("h"))
            got = np.stack(np.meshgrid(*uv_axes(w, h, w / h)), -1)
        elif kind == "embed":
            zero = jnp.zeros((1, *want.shape))
            h, w = want.shape[:2]
            got = add_uv_embedding(zero, w / h, factor=1.0)[0]
        elif kind == "bilinear":
            size = (6, 10) if rest == "scale2" else tuple(int(n) for n in rest.split("x"))
            got = np.moveaxis(resize_aligned(jnp.asarray(x), size), -1, 1)
        else:
            continue
        parity("da3/mod_uvgrid_interp", key, got, want, 2e-6)


@pytest.mark.slow
def test_dense_head_agrees_with_upstream(golden_da3, parity, tiny_da3):
    g = golden_da3("mod_dualdpt")
    grid = (3, 5)

    @jax.jit
    def both(levels):
        maps, first = tiny_da3.depth_head.levels(levels, grid)
        depth, second = tiny_da3.depth_head.decode(maps, grid)
        ray, aux = tiny_da3.ray_head(maps, grid)
        return depth, ray, first | second, aux

    depth, ray, main, aux = both([g[f"in_feat{i}"][0] for i in range(4)])
    outputs = {"view0_logits_main": depth[:1], "view0_logits_aux": ray[:1]}
    outputs["view0_output_conv1"] = main["out_conv1"][:1]
    outputs["view0_output_conv1_aux3"] = aux["convs"][:1]
    for i in range(4):
        outputs[f"view0_project{i}"] = main[f"project/{i}"][:1]
        outputs[f"view0_resize{i}"] = main[f"resize/{i}"][:1]
        outputs[f"view0_layer{i + 1}_rn"] = main[f"reassemble/{i}"][:1]
        outputs[f"view0_refinenet{i + 1}"] = main[f"refine/{i}"][:1]
        outputs[f"view0_refinenet{i + 1}_aux"] = aux[f"refine/{i}"][:1]
    for key, got in outputs.items():
        parity("da3/mod_dualdpt", key, np.moveaxis(got, -1, 1), g[key], GATE, relative=True)
    values, conf = activate(depth[None], "exp", "expp1")
    parity("da3/mod_dualdpt", "depth", values[..., 0], g["depth"], GATE, relative=True)
    parity("da3/mod_dualdpt", "depth_conf", conf, g["depth_conf"], GATE, relative=True)
    values, conf = activate(ray[None], "linear", "expp1")
    parity("da3/mod_dualdpt", "ray", values, g["ray"], GATE, relative=True)
    parity("da3/mod_dualdpt", "ray_conf", conf, g["ray_conf"], GATE, relative=True)


@pytest.mark.slow
def test_camera_decoder_and_encoder_agree_with_upstream(golden_da3, parity, tiny_da3):
    g = golden_da3("mod_cam_encdec")
    size = tuple(g["in_image_hw"].tolist())
    pose_enc = tiny_da3.camera_head(jnp.asarray(g["in_tok"]))
    parity("da3/mod_cam_encdec", "pose_enc", pose_enc, g["pose_enc"], 5e-6, relative=True)
    cameras = jnp.asarray(g["in_w2c"])[..., :3, :], jnp.asarray(g["in_K"])
    token = jax.jit(lambda *c: tiny_da3.camera_encoder(*c, size))(*cameras)
    parity("da3/mod_cam_encdec", "cam_token", token, g["cam_token"], 5e-6, relative=True)


@pytest.mark.slow
def test_pose_encodings_agree_with_upstream(golden_da3, parity):
    g = golden_da3("mod_campose")
    size = tuple(g["in_image_hw"].tolist())
    w2c, k = jax.jit(decode_cameras, static_argnums=1)(g["in_pose_enc"], size)

    def compare(key, got):
        parity("da3/mod_campose", key, got, g[key], 5e-6, relative=True)

    compare("dec_w2c", w2c)
    compare("dec_c2w", geometry.invert_se3(w2c))
    # Focal lengths reach 4e7, so every entry is compared with itself.
    want = g["dec_K"]
    ratio = np.where(want == 0, k + 1, k / np.where(want == 0, 1, want))
    parity("da3/mod_campose", "dec_K, got over want", ratio, np.ones_like(want), 5e-6)
    c2w = jnp.asarray(g["in_c2w"])
    compare("enc_pose", encode_cameras(geometry.invert_se3(c2w)[..., :3, :], g["in_K"], size))
    compare("quat_to_mat", geometry.quat_to_mat(g["in_quat"]))
    compare("mat_to_quat", geometry.mat_to_quat(c2w[..., :3, :3]))
    compare("affine_inverse", geometry.invert_se3(c2w))


@pytest.mark.slow
def test_layer_norms_agree_with_upstream(golden_da3, parity, tiny_da3):
    """Small inputs, on which a wrong epsilon shows."""
    g = golden_da3("mod_lneps")

    def at(stack, index):
        graph, params = nnx.split(stack)
        return nnx.merge(graph, jax.tree.map(lambda x: x[index], params))

    trunk, encoder = tiny_da3.trunk, tiny_da3.camera_encoder
    norms = {
        "backbone.pretrained.blocks.0.norm1": at(trunk.early_blocks, 0).norm1,
        "backbone.pretrained.blocks.0.norm2": at(trunk.early_blocks, 0).norm2,
        "backbone.pretrained.blocks.9.attn.q_norm": at(trunk.global_blocks, 2).attn.q_norm,
        "backbone.pretrained.blocks.9.attn.k_norm": at(trunk.global_blocks, 2).attn.k_norm,
        "backbone.pretrained.norm": trunk.norm,
        "head.norm": tiny_da3.depth_head.norm,
        "head.scratch.output_conv2_aux.3.2": tiny_da3.ray_head.norm,
        "cam_enc.trunk.0.norm1": at(encoder.trunk, 0).norm1,
        "cam_enc.trunk.3.norm2": at(encoder.trunk, 3).norm2,
        "cam_enc.token_norm": encoder.token_norm,
        "cam_enc.trunk_norm": encoder.trunk_norm,
    }
    for (name, norm), eps in zip(norms.items(), g["eps"], strict=True):
        assert norm.epsilon == pytest.approx(float(eps)), name
        got = norm(jnp.asarray(g[f"in_{name}"]))
        parity("da3/mod_lneps", f"out_{name}", got, g[f"out_{name}"], 5e-6, relative=True)


@pytest.mark.slow
def test_cameras_from_rays_agree_with_upstream(golden_da3, parity):
    g = golden_da3("mod_raypose")
    size = tuple(g["in_image_hw"].tolist())
    samples = g["in_rand_sample_iters_idx"]
    w2c, k = jax.jit(lambda *x: cameras_from_rays(*x, size, samples))(g["in_ray"], g["in_ray_conf"])
    poses = geometry.invert_se3(w2c)
    half = np.array([size[1] / 2, size[0] / 2])
    cameras = {
        "extrinsics": w2c,
        "intrinsics": k,
        "R_c2w": poses[..., :3],
        "T_c2w": poses[..., 3],
        "focal": np.stack([k[..., 0, 0], k[..., 1, 1]], -1) / half,
        "pp": np.asarray(k)[..., :2, 2] / half,
    }
    for key, got in cameras.items():
        parity("da3/mod_raypose", key, got, g[key], 1e-4, relative=True)
    pairs = [ql(jnp.asarray(a)) for a in g["in_ql_A"]]
    for key, index in (("ql_Q", 0), ("ql_L", 1)):
        got = np.stack([pair[index] for pair in pairs])
        parity("da3/mod_raypose", key, got, g[key], 1e-5, relative=True)


@pytest.mark.slow
def test_homographies_of_rays_agree_with_upstream(golden_da3, parity):
    g = golden_da3("mod_raypose")
    h, w = g["in_ray"].shape[2:4]
    u, v = (np.linspace(-1 + 1 / n, 1 - 1 / n, n, dtype=np.float32) for n in (w, h))
    plane = np.stack(np.meshgrid(u, v), -1).reshape(-1, 2)
    ray = g["in_ray"].reshape(4, h * w, 6)
    valid = np.abs(ray[..., 2]) > 1e-4
    weight = np.where(valid, g["in_ray_conf"].reshape(4, -1), 0)
    conf = weight.reshape(g["conf_after"].shape)
    parity("da3/mod_raypose", "conf_after", conf, g["conf_after"], 0)
    target = ray[..., :2] / np.where(valid, ray[..., 2], 1)[..., None]
    samples = jnp.asarray(g["in_rand_sample_iters_idx"])
    fit = jax.jit(lambda t, w: robust_homography(jnp.asarray(plane), t, w, samples))
    got = np.stack([fit(t, w) for t, w in zip(target, weight, strict=True)])
    got *= np.where(np.linalg.det(got) < 0, -1, 1)[:, None, None]
    parity("da3/mod_raypose", "homography", got, g["homography"], 1e-4, relative=True)


@pytest.mark.slow
def test_unprojection_agrees_with_upstream(golden_da3, parity):
    g = golden_da3("mod_unproject")
    points, _, mask = geometry.unproject_to_world(g["in_depth"], g["in_w2c"], g["in_K"])
    keep = np.asarray(mask) & (g["in_conf"] >= np.percentile(g["in_conf"], 40))
    got = np.asarray(points)[keep]
    parity("da3/mod_unproject", "points", got, g["points"], 5e-6, relative=True)
