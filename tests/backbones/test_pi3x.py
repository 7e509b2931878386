"""Pi3X without conditions: its convolutions and metric branch as upstream, and what meters mean."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from safetensors.numpy import load_file, save_file

from lite3r_jax.backbones.base import get_backbone
from lite3r_jax.backbones.config_json import to_json
from lite3r_jax.backbones.pi3.config import (
    ConvHeadSizes,
    MetricSizes,
    Pi3Config,
    config_from_json,
    license_of,
)
from lite3r_jax.backbones.pi3.conv_head import ConvHead, with_places
from lite3r_jax.backbones.pi3.metric import MetricHead
from lite3r_jax.backbones.pi3.model import Pi3
from lite3r_jax.backbones.pi3.weight_map import name_map
from lite3r_jax.cli.lite3r import main
from lite3r_jax.distillation.surgery import variables
from lite3r_jax.errors import InputError
from lite3r_jax.exports.npz import read_npz
from lite3r_jax.layers.patch_embed import IMAGE_MEAN, IMAGE_STD
from lite3r_jax.layers.rope import rope_table
from lite3r_jax.name_map import forward, inverse
from lite3r_jax.weights.abstract import abstract_model
from lite3r_jax.weights.convert import convert
from lite3r_jax.weights.export import export
from lite3r_jax.weights.load import load
from lite3r_jax.weights.manifest import read_manifest
from lite3r_jax.weights.safetensors_file import open_safetensors
from tests.attention import quick
from tests.benchmarking.jaxpr_products import products

PUBLISHED = Pi3Config(metric=True)
KINDS = {"param_dtype": jnp.float32, "rngs": nnx.Rngs(0)}


@pytest.fixture(scope="module")
def arrays(golden_pi3):
    return golden_pi3("pi3x_modules")


def filled(module, arrays, prefix, upstream, here):
    """The module with upstream's arrays, by the map that converts checkpoints."""
    known, done = variables(module), set()
    names = name_map(PUBLISHED)
    for name in (n for n in arrays if n.startswith(f"{prefix}/w/")):
        (pair,) = names.to_here(upstream + name.removeprefix(f"{prefix}/w/"))
        path = pair.target.removeprefix(here)
        known[path][1][...] = jnp.asarray(forward(pair.transform, arrays[name]))
        done.add(path)
    return module, set(known) - done


@pytest.mark.slow
def test_convolutions_are_those_of_upstream(arrays, parity):
    sizes = ConvHeadSizes(stages=(32, 32, 16), last=8)
    head, left = filled(
        ConvHead(24, (2, 1), sizes, **KINDS), arrays, "convhead", "point_head.",
        "depth_head/point/conv/",
    )  # fmt: skip
    assert not left
    places = with_places(jnp.zeros((1, 16, 24, 0)), 1.5)[0]
    group, gate = "pi3/pi3x_modules", 5e-5
    parity(
        group, "convhead/uv_24x16_aspect1.5", places, arrays["convhead/uv_24x16_aspect1.5"], 1e-6
    )

    @quick.jit
    def run(x):
        y, stages = x.reshape(2, 2, 3, 24), []
        for stage in head.stages:
            y = stage(with_places(y, 1.5))
            stages.append(jnp.moveaxis(y, -1, 1))
        return stages, jnp.moveaxis(head(x, (2, 3), 14), -1, 1)

    stages, both = run(arrays["convhead/in"])
    for i, stage in enumerate(stages):
        parity(group, f"convhead/stage{i}", stage, arrays[f"convhead/stage{i}"], gate)
    for name, some in (("xy", both[:, :2]), ("z", both[:, 2:])):
        parity(group, f"convhead/{name}", some, arrays[f"convhead/{name}"], gate)


def test_the_metric_branch_is_that_of_upstream(arrays, parity):
    sizes = MetricSizes(dim=16, heads=2, depth=2, out=12)
    head, left = filled(
        MetricHead(20, sizes, 4.0, dtype=jnp.float32, **KINDS), arrays, "metric",
        "metric_decoder.", "depth_head/metric/",
    )  # fmt: skip
    assert left == {"token", "scale/kernel", "scale/bias"}
    query, context, positions = (arrays[f"metric/{name}"] for name in ("query", "context", "pos"))

    @quick.jit
    def run(query, context, positions):
        return head.decode(query[None], context[None], rope_table(positions, head.head_dim))[0]

    got = jnp.stack([run(*some) for some in zip(query, context, positions, strict=True)])
    parity("pi3/pi3x_modules", "metric/out", got, arrays["metric/out"], 1e-5)


def test_published_counts():
    entry = get_backbone("pi3")
    model = abstract_model(entry, PUBLISHED, heads=entry.heads)
    shapes = name_map(PUBLISHED).upstream_shapes(model.shapes)
    mine = len(shapes), sum(map(math.prod, shapes.values()))
    # the encoder of known depth has two channels in place of three, embeddings of rays alike; five
    # blocks for known poses have the size of those of the trunk
    depth_encoder = (343, 304_371_712 - 14 * 14 * 1024)
    rays, poses = (2, 2 * 14 * 14 * 1024 + 1024), (5 * 18, 5 * 12_598_528)
    total = [sum(x) for x in zip(mine, depth_encoder, rays, poses, strict=True)]
    assert total == [1873, 1_360_032_439]
    assert shapes["metric_token"] == (1, 1, 2048) and shapes["depth_emb"] == (1, 1, 1024)
    assert license_of(PUBLISHED) == "CC-BY-NC-4.0" and entry.published[1].repo == "yyfz233/Pi3X"


@pytest.fixture(scope="module")
def tiny_json(tiny_pi3_json):
    own = {"conv_head": {"stages": [32, 16, 16], "last": 8},
           "metric_head": {"dim": 16, "heads": 2, "depth": 1, "out": 16}}  # fmt: skip
    return tiny_pi3_json | {"metric": True} | own


@pytest.fixture(scope="module")
def checkpoint(tiny_json, tmp_path_factory):
    """A tiny one as upstream would publish it, with its parts for conditions."""
    config, entry = config_from_json(tiny_json), get_backbone("pi3")
    rng, names, tensors = np.random.default_rng(0), name_map(config), {}
    for path, shape in abstract_model(entry, config, heads=entry.heads).shapes.items():
        array = rng.standard_normal(shape, np.float32)
        if re.search(r"norm\w*/scale$|gamma$", path):
            array = 1 + 0.1 * array
        elif path.endswith("kernel"):
            inputs = shape[0] if path.endswith("up/kernel") else math.prod(shape[-4:-1])
            array /= np.float32(inputs**0.5) if len(shape) != 3 else np.float32(shape[1] ** 0.5)
        else:
            array *= 0.1
        for pair, _ in names.to_upstream(path, array.shape):
            one = array if pair.index is None else array[pair.index]
            tensors[pair.source] = np.array(inverse(pair.transform, one), order="C")
    # rays that spread within an image, and tokens that the metric branch can tell apart
    tensors["point_head.output_block.0.0.weight"][:] = 0
    tensors["point_head.output_block.0.0.weight"][0, -2, 1, 1] = 1
    tensors["point_head.output_block.0.0.weight"][1, -1, 1, 1] = 1
    tensors["point_head.output_block.0.0.bias"][:] = 1
    tensors["point_head.output_block.0.2.weight"][:] = 0
    tensors["point_head.output_block.0.2.weight"][0, 0] = 1
    tensors["point_head.output_block.0.2.weight"][1, 1] = 1
    tensors["point_head.output_block.0.2.bias"][:] = -1
    tensors["metric_token"] = rng.standard_normal(tensors["metric_token"].shape, np.float32)
    tensors |= {
        "image_mean": np.reshape(np.float32(IMAGE_MEAN), (1, 3, 1, 1)),
        "image_std": np.reshape(np.float32(IMAGE_STD), (1, 3, 1, 1)),
        "depth_emb": np.ones((1, 1, 64), np.float32),
        "depth_encoder.cls_token": np.ones((1, 1, 64), np.float32),
        "ray_embed.proj.bias": np.ones(64, np.float32),
        "pose_inject_blk.0.ls1.gamma": np.ones(64, np.float32),
    }
    path = tmp_path_factory.mktemp("pi3x") / "model.safetensors"
    save_file(tensors, path)
    return path


def converted(checkpoint, tiny_json, out):
    with open_safetensors(checkpoint) as source:
        convert(source, out, backbone="pi3", config=tiny_json)
    return out


@pytest.fixture(scope="module")
def weights(checkpoint, tiny_json, tmp_path_factory):
    return converted(checkpoint, tiny_json, tmp_path_factory.mktemp("pi3x") / "weights")


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).random((2, 3, 28, 42, 3), np.float32)


@pytest.mark.slow
def test_it_converts_and_goes_back_with_the_parts_for_conditions(checkpoint, weights, tmp_path):
    skipped = read_manifest(weights).skipped
    assert {"depth_emb", "ray_embed.proj.bias", "pose_inject_blk.0.ls1.gamma"} <= set(skipped)
    export(weights, tmp_path / "again.safetensors")
    before, after = load_file(checkpoint), load_file(tmp_path / "again.safetensors")
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)


@pytest.mark.slow
def test_lengths_are_meters_views_permute_and_scenes_stay_apart(
    checkpoint, weights, tiny_json, images, tmp_path
):
    model = load(weights)
    one, _ = model(images, points=True)
    assert one.unit == "meter" and (one.depth > 0).all()
    order = [2, 0, 1]
    turned, _ = model(images[:, order], points=True)
    np.testing.assert_allclose(turned.depth, one.depth[:, order], rtol=1e-4)
    changed, _ = model(np.concatenate([images[:1], 1 - images[1:]]), points=True)
    np.testing.assert_array_equal(changed.depth[0], one.depth[0])
    np.testing.assert_array_equal(changed.extrinsics[0], one.extrinsics[0])
    rays = np.asarray(one.intrinsics)
    assert (rays[..., 0, 0] > 0).all() and np.isfinite(rays).all()

    tensors = load_file(checkpoint)
    tensors["metric_head.bias"] = tensors["metric_head.bias"] + np.float32(np.log(2))
    save_file(tensors, tmp_path / "twice.safetensors")
    twice = load(converted(tmp_path / "twice.safetensors", tiny_json, tmp_path / "twice"))
    two, _ = twice(images, points=True)
    lengths = {"depth": 1e-5, "world_points": 1e-3, "extrinsics": 1e-4}
    for name, rtol in lengths.items():
        got, before = (np.asarray(getattr(x, name)) for x in (two, one))
        if name == "extrinsics":
            got, before = got[..., 3], before[..., 3]
        np.testing.assert_allclose(got, 2 * before, rtol, atol=1e-5 * np.abs(before).max())
    np.testing.assert_allclose(two.extrinsics[..., :3], one.extrinsics[..., :3], atol=1e-5)
    np.testing.assert_array_equal(two.intrinsics, one.intrinsics)


@pytest.mark.slow
def test_depth_is_limited_before_it_is_scaled(weights):
    depth = load(weights).depth_head.depth(jnp.array([-1.0, 14.0, 15.0, 200.0]))
    np.testing.assert_allclose(depth, np.exp([-1, 14, 15, 15]), rtol=1e-5)


@pytest.mark.slow
def test_operations_are_those_of_a_trace(tiny_json):
    config = config_from_json(tiny_json)
    head = nnx.eval_shape(lambda: Pi3(config, rngs=nnx.Rngs(0))).depth_head
    conv, state = nnx.split(head.point.conv)
    x = jax.ShapeDtypeStruct((3, 6, config.heads.point_out), jnp.float32)
    outside, inside = products(lambda s, x: nnx.merge(conv, s)(x, (2, 3), 14), state, x)
    maps = jax.ShapeDtypeStruct((3, 16, 24, 16), jnp.float32)
    resize = functools.partial(jax.image.resize, shape=(3, 28, 42, 16), method="linear")
    resized = products(lambda x: resize(x, antialias=False), maps)[0]  # which is not counted
    assert (outside - resized, inside) == (head.point.conv.operations((2, 3), 14, 3)["layers"], 0)
    metric, state = nnx.split(head.metric)
    rope = rope_table(np.zeros((11, 2), np.int32), head.metric.head_dim)
    tokens = jax.ShapeDtypeStruct((1, 33, 2 * config.decoder.dim), jnp.float32)
    outside, inside = products(lambda s, x: nnx.merge(metric, s)(x, rope), state, tokens)
    assert (outside, inside) == (sum(head.metric.operations(33).values()), 0)


@pytest.mark.slow
def test_photos_become_files_that_say_meters(weights, tmp_path):
    (tmp_path / "photos").mkdir()
    for i in range(2):
        pixels = np.random.default_rng(i).integers(0, 256, (28, 42, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{i}.png")
    out = tmp_path / "out"
    words = ["reconstruct", tmp_path / "photos", "--weights", weights, "--output", out,
             "--images.size", 28 * 42, "--formats",
             "npz,ply,glb,colmap_txt,nerfstudio,depth_png16,tum,html"]  # fmt: skip
    assert main([str(word) for word in words]) == 0
    said = "meters, as the model estimates them"
    scene = read_npz(out / "predictions.npz")
    assert scene.unit == "meter"
    files = [path for path in out.rglob("*") if path.is_file()]
    assert {path.name for path in files if said.encode() in path.read_bytes()} == {
        "points.ply", "scene.glb", "points3D.txt", "transforms.json", "depth.json",
        "trajectory.txt", "scene.html", "report.json",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conv_head": {"stages": [32, 16]}}, "conv_head.stages must be three multiples of 16"),
        ({"conv_head": {"units": 3}}, "conv_head.units must be 2"),
        ({"metric_head": {"dim": 10}}, "metric_head.dim / heads: a multiple of 4"),
        ({"metric_head": {"depth": 33}}, "metric_head.depth must be at most 32"),
        ({"metric": 1}, "config.metric: expected true or false, got 1"),
    ],
)
def test_wrong_sizes_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        config_from_json({"metric": True} | change)
    assert config_from_json(to_json(PUBLISHED)) == PUBLISHED


def test_pi3_given_as_pi3x_is_told_apart(tiny_pi3_json, golden_dir, tmp_path):
    with (
        open_safetensors(golden_dir.parent / "pi3" / "model.safetensors") as source,
        pytest.raises(InputError, match=r"but pi.3 without meters; leave metric out of --config"),
    ):
        convert(source, tmp_path / "out", backbone="pi3", config=tiny_pi3_json | {"metric": True})
