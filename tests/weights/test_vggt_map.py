"""The map of VGGT against the golden names and the published counts."""

import math

import pytest
from safetensors import safe_open

from lite3r_jax.backbones.base import get_backbone
from lite3r_jax.backbones.vggt.weight_map import NAME_MAP
from lite3r_jax.weights.abstract import abstract_model


@pytest.fixture(scope="module")
def published() -> dict[str, tuple[int, ...]]:
    backbone = get_backbone("vggt")
    model = abstract_model(backbone, backbone.default_config, heads=backbone.heads)
    return NAME_MAP.upstream_shapes(model.shapes)


def test_golden_names_and_shapes_come_back_exactly(golden_file, golden_config):
    backbone = get_backbone("vggt")
    config = backbone.config_from_json(golden_config)
    model = abstract_model(backbone, config, heads=backbone.heads)
    with safe_open(golden_file, "np") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    plan = NAME_MAP.match(shapes, model.shapes, "golden")
    assert list(plan.skipped) == ["aggregator.patch_embed.mask_token"]
    assert sum(len(pairs) for pairs in plan.leaves.values()) == len(shapes) - 1
    assert NAME_MAP.upstream_shapes(model.shapes) == shapes


# Tensors and parameters of the published checkpoint, counted upstream.
@pytest.mark.slow
@pytest.mark.parametrize(
    "prefixes, tensors, parameters",
    [
        (("",), 1797, 1_256_537_516),
        (("aggregator.",), 1210, 909_112_320),
        (("aggregator.patch_embed.",), 344, 304_372_736),
        (("aggregator.frame_blocks.",), 432, 302_364_672),
        (("aggregator.global_blocks.",), 432, 302_364_672),
        (("camera_head.",), 69, 216_174_610),
        (("point_head.",), 62, 32_654_628),
        (("depth_head.",), 62, 32_654_562),
        (("track_head.",), 394, 65_941_396),
        (("track_head.feature_extractor.",), 58, 22_834_048),
        (("track_head.tracker.",), 336, 43_107_348),
        (("aggregator.", "camera_head.", "depth_head."), 1341, 1_157_941_492),
        (("aggregator.", "camera_head.", "depth_head.", "point_head."), 1403, 1_190_596_120),
    ],
)
def test_the_published_model_has_the_published_counts(published, prefixes, tensors, parameters):
    shapes = {name: shape for name, shape in published.items() if name.startswith(prefixes)}
    assert (len(shapes), sum(math.prod(s) for s in shapes.values())) == (tensors, parameters)


@pytest.mark.parametrize(
    "name, shape",
    [
        ("aggregator.camera_token", (1, 2, 1, 1024)),
        ("aggregator.patch_embed.patch_embed.proj.weight", (1024, 3, 14, 14)),
        ("aggregator.patch_embed.pos_embed", (1, 1370, 1024)),
        ("aggregator.patch_embed.mask_token", (1, 1024)),
        ("aggregator.frame_blocks.23.attn.qkv.weight", (3072, 1024)),
        ("aggregator.global_blocks.0.attn.q_norm.weight", (64,)),
        ("camera_head.trunk.3.mlp.fc1.weight", (8192, 2048)),
        ("camera_head.poseLN_modulation.1.weight", (6144, 2048)),
        ("depth_head.resize_layers.0.weight", (256, 256, 4, 4)),
        ("depth_head.scratch.output_conv2.2.weight", (2, 32, 1, 1)),
        ("point_head.scratch.refinenet4.resConfUnit2.conv1.weight", (256, 256, 3, 3)),
        ("track_head.feature_extractor.scratch.output_conv1.weight", (128, 128, 3, 3)),
        ("track_head.tracker.updateformer.virual_tracks", (1, 64, 1, 384)),
        ("track_head.tracker.updateformer.time_blocks.5.attn.in_proj_weight", (1152, 384)),
        ("track_head.tracker.corr_mlp.fc1.weight", (384, 567)),
    ],
)
def test_published_names_and_shapes(published, name, shape):
    assert published[name] == shape


def test_names_that_the_checkpoint_does_not_have(published):
    assert "depth_head.scratch.refinenet4.resConfUnit1.conv1.weight" not in published
    assert "depth_head.resize_layers.2.weight" not in published
    assert "depth_head.scratch.layer1_rn.bias" not in published
    assert "track_head.feature_extractor.scratch.output_conv2.0.weight" not in published
