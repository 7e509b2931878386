"""Map of tensor names in the pi^3 checkpoint (yyfz233/Pi3) to parameter paths here.

Upstream names: pi3/models/pi3.py, pi3/models/dinov2/*, pi3/models/layers/*. One upstream list holds
all blocks of the trunk, frame blocks at even numbers and global ones at odd. The sparse model of
Speed3R has two lists and gates (Visual-AI/speed3r, pi3/models/pi3_sparse.py).
"""

from collections.abc import Mapping

from lite3r_jax.backbones import tensor_rules
from lite3r_jax.backbones.pi3.config import SPEED3R, Pi3Config, license_of
from lite3r_jax.backbones.tensor_rules import blocks, layer
from lite3r_jax.layers.patch_embed import IMAGE_MEAN, IMAGE_STD
from lite3r_jax.name_map import (
    Checkpoint,
    NameMap,
    Skip,
    SkipPart,
    TensorRule,
    Transform,
    Variant,
)

FIELDS: Mapping[str, Mapping[str, str]] = {
    **tensor_rules.FIELDS,
    "token": {
        "cls_token": "cls_token",
        "pos_embed": "pos_embed",
        "register_tokens": "register_tokens",
    },
    "head_decoder": {
        "point_decoder": "depth_head/point/decoder",
        "conf_decoder": "depth_head/conf/decoder",
        "camera_decoder": "camera_head/decoder",
    },
    "head_dense": {"projects": "projects", "linear_out": "out"},
    "pixels": {"point_head": "depth_head/point", "conf_head": "depth_head/conf"},
    # layers/camera_head.py
    "unit": {"0": "0", "1": "1"},
    "unit_dense": {"res_conv1": "fc1", "res_conv2": "fc2", "res_conv3": "fc3"},
    "camera_dense": {
        "more_mlps.0": "fc1",
        "more_mlps.2": "fc2",
        "fc_t": "translation",
        "fc_rot": "rotation",
    },
    # layers/conv_head.py
    "stage": {"0": "0", "1": "1", "2": "2"},
    "conv_unit": {"1": "0", "2": "1"},
    "unit_norm": {"layers.0": "norm1", "layers.3": "norm2"},
    "unit_conv": {"layers.2": "conv1", "layers.5": "conv2"},
    "output": {"0": "0", "1": "1"},
    # layers/transformer_head.py, layers/block.py
    "metric_dense": {
        "metric_decoder.projects_x": "project_query",
        "metric_decoder.projects_y": "project_scene",
        "metric_decoder.linear_out": "out",
        "metric_head": "scale",
    },
    "metric_block": {str(i): str(i) for i in range(32)},
    "cross_norm": {"norm2": "norm_query", "norm_y": "norm_scene", "norm3": "norm_mlp"},
    "cross_dense": {
        "cross_attn.q_proj": "query",
        "cross_attn.k_proj": "key",
        "cross_attn.v_proj": "value",
        "cross_attn.proj": "proj",
        "mlp.fc1": "mlp/fc1",
        "mlp.fc2": "mlp/fc2",
    },
}
_CONSTANT = "mean and deviation of ImageNet, by which images are normalized in any case"
_CONDITIONS = "of known depth, rays and poses, which this system does not give to Pi3X"


def name_map(config: Pi3Config) -> NameMap:
    """Returns the map of tensor names for a model of these sizes."""
    depth = config.decoder.depth
    heads = (
        *layer("{pixels}.proj", "{pixels}/pixels", Transform.LINEAR),
        *(_of_pi3x() if config.metric else ()),
    )
    skips = tuple(
        Skip(name, _CONSTANT, "encoder/proj/kernel", (None, 2, None, None), values=values)
        for name, values in (("image_mean", IMAGE_MEAN), ("image_std", IMAGE_STD))
    )
    if config.metric:
        skips += (Skip("depth_emb", _CONDITIONS, "trunk/register_token", (None, None, 3)),)
    trunk = (
        *blocks("decoder", "trunk/frame_blocks", range(0, depth, 2)),
        *blocks("decoder", "trunk/global_blocks", range(1, depth, 2)),
    )
    if config.sparse:  # pi3/models/pi3_sparse.py of Visual-AI/speed3r
        trunk = (
            *blocks("local_decoder", "trunk/frame_blocks"),
            *blocks("global_decoder", "trunk/global_blocks"),
            *layer(
                "global_decoder.{i}.attn.gate.0",
                "trunk/global_cores/0/gate",
                Transform.LINEAR,
                "i",
            ),
        )
    return NameMap(
        fields=FIELDS,
        rules=(
            TensorRule("encoder.{token}", "encoder/{token}"),
            TensorRule("encoder.norm.{affine}", "encoder/norm/{affine}"),
            *layer("encoder.patch_embed.proj", "encoder/proj", Transform.CONV),
            *blocks("encoder.blocks", "encoder/blocks"),
            TensorRule("register_token", "trunk/register_token"),
            *trunk,
            *layer("{head_decoder}.{head_dense}", "{head_decoder}/{head_dense}", Transform.LINEAR),
            *blocks("{head_decoder}.blocks", "{head_decoder}/blocks"),
            *heads,
            *layer(
                "camera_head.res_conv.{unit}.{unit_dense}",
                "camera_head/units/{unit}/{unit_dense}",
                Transform.LINEAR,
            ),
            *layer("camera_head.{camera_dense}", "camera_head/{camera_dense}", Transform.LINEAR),
        ),
        skips=skips,
        skip_parts=tuple(
            SkipPart(part, _CONDITIONS)
            for part in ("depth_encoder", "ray_embed", "pose_inject_blk")
            if config.metric
        ),
    )


def _of_pi3x() -> tuple[TensorRule, ...]:
    """Returns the rules of the convolutional heads and the metric branch (pi3/models/pi3x.py)."""
    stage, here = "{pixels}.upsample_blocks.{stage}", "{pixels}/conv/stages/{stage}"
    unit, unit_here = f"{stage}.{{conv_unit}}", f"{here}/units/{{conv_unit}}"
    output, output_here = "{pixels}.output_block.{output}", "{pixels}/conv/outputs/{output}"
    block = "metric_decoder.blocks.{metric_block}"
    block_here = "depth_head/metric/blocks/{metric_block}"
    return (
        *layer(f"{stage}.0.0", f"{here}/up", Transform.DECONV),
        *layer(f"{stage}.0.1", f"{here}/mix/conv", Transform.CONV),
        TensorRule(f"{unit}.{{unit_norm}}.{{affine}}", f"{unit_here}/{{unit_norm}}/{{affine}}"),
        *layer(f"{unit}.{{unit_conv}}", f"{unit_here}/{{unit_conv}}/conv", Transform.CONV),
        *layer(f"{output}.0", f"{output_here}/conv/conv", Transform.CONV),
        *layer(f"{output}.2", f"{output_here}/out", Transform.CONV1X1),
        TensorRule("metric_token", "depth_head/metric/token"),
        *layer("{metric_dense}", "depth_head/metric/{metric_dense}", Transform.LINEAR),
        TensorRule(f"{block}.{{cross_norm}}.{{affine}}", f"{block_here}/{{cross_norm}}/{{affine}}"),
        *layer(f"{block}.{{cross_dense}}", f"{block_here}/{{cross_dense}}", Transform.LINEAR),
    )


def _relatives(config: Pi3Config) -> dict[str, str]:
    signs = {
        r"(local|global)_decoder\..*": "Speed3R's sparse one; leave out --config, or write"
        ' {"sparse": true} into it',
    }
    command = "lite3r convert pi3"
    if config.metric:
        sign = r"(point|conf)_head\.proj\..*"
        return signs | {sign: f"pi^3 without meters; leave metric out of --config: {command}"}
    conditions = r"(depth_encoder|ray_embed|pose_inject_blk)\..*"
    sign = rf"(point|conf)_head\.(?!proj\.).*|metric_.*|{conditions}"
    return signs | {sign: f'Pi3X; write {{"metric": true}} into FILE: {command} --config FILE'}


_HEADS = {"camera": "camera_decoder", "depth": "point_decoder"}
_SPARSE = Checkpoint(
    title="Speed3R (sparse pi^3)",
    names=name_map,
    trunk="global_decoder",
    heads=_HEADS,
    license=license_of,
    relatives=lambda config: {
        r"decoder\..*": "a dense pi^3, which has no gates; convert it without sparse in --config,"
        " and start gates by training a student of it: lite3r distill --recipe pi3:speed3r",
    },
)
CHECKPOINT = Checkpoint(
    title="pi^3",
    names=name_map,
    trunk="decoder",
    heads=_HEADS,
    license=license_of,
    relatives=_relatives,
    signs={
        r"(local|global)_decoder\..*": "Speed3R, a sparse pi^3",
        r"(decoder\.\d+|point_decoder|conf_decoder)\..*": "Pi3",
    },
    variants=(Variant(r"(local|global)_decoder\..*", lambda c: c.sparse, SPEED3R, _SPARSE),),
)
