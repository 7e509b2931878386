"""Map of tensor names in Depth Anything 3 checkpoints to parameter paths here.

Upstream names: depth_anything_3/model/*, behind the prefix "model." of the published files. Which
stack a block belongs to depends on the config.

The published file of DA3-SMALL is said to hold three tensors more than the published code has.
Which ones they are is not known here, so no rule skips them: conversion names them and stops, and
its `ignore` is for whoever has looked at them.
"""

from collections.abc import Mapping

from lite3r_jax.backbones import tensor_rules
from lite3r_jax.backbones.da3.config import PUBLISHED, DA3Config
from lite3r_jax.backbones.tensor_rules import blocks, dpt, layer, refinements
from lite3r_jax.name_map import Checkpoint, NameMap, Skip, SkipPart, TensorRule, Transform

_NET = "model.backbone.pretrained"
_AUX1 = "model.head.scratch.output_conv1_aux"
_AUX2 = "model.head.scratch.output_conv2_aux"

FIELDS: Mapping[str, Mapping[str, str]] = {
    **tensor_rules.FIELDS,
    "token": {
        "cls_token": "cls_token",
        "camera_token": "camera_token",
        "pos_embed": "pos_embed",
    },
    # model/dualdpt.py
    "refine_aux": {
        "refinenet1_aux": "refine/0",
        "refinenet2_aux": "refine/1",
        "refinenet3_aux": "refine/2",
        "refinenet4_aux": "refine/3",
    },
    "ray_conv": {str(i): str(i) for i in range(5)},
    # model/cam_dec.py
    "camera_dense": {
        "backbone.0": "fc1",
        "backbone.2": "fc2",
        "fc_t": "translation",
        "fc_qvec": "quaternion",
        "fc_fov.0": "field_of_view",
    },
    # model/cam_enc.py
    "encoder_norm": {"token_norm": "token_norm", "trunk_norm": "trunk_norm"},
    "encoder_dense": {"pose_branch.fc1": "pose_branch/fc1", "pose_branch.fc2": "pose_branch/fc2"},
}


def name_map(config: DA3Config) -> NameMap:
    """Returns the map of tensor names for a model of these sizes."""
    return NameMap(
        fields=FIELDS,
        rules=(
            TensorRule(f"{_NET}.{{token}}", "trunk/{token}"),
            TensorRule(f"{_NET}.norm.{{affine}}", "trunk/norm/{affine}"),
            *layer(f"{_NET}.patch_embed.proj", "trunk/proj", Transform.CONV),
            *blocks(f"{_NET}.blocks", "trunk/early_blocks", config.early_blocks),
            *blocks(f"{_NET}.blocks", "trunk/lead_blocks", config.lead_blocks),
            *blocks(f"{_NET}.blocks", "trunk/frame_blocks", config.frame_blocks),
            *blocks(f"{_NET}.blocks", "trunk/global_blocks", config.global_blocks),
            *dpt("model.head", "depth_head"),
            # Of the four outputs of the ray branch only the finest is used. All share one norm.
            *refinements("model.head", "ray_head", "refine_aux"),
            *layer(f"{_AUX1}.3.{{ray_conv}}", "ray_head/convs/{ray_conv}", Transform.CONV),
            *layer(f"{_AUX2}.3.0", "ray_head/conv", Transform.CONV),
            TensorRule(f"{_AUX2}.0.2.{{affine}}", "ray_head/norm/{affine}"),
            *layer(f"{_AUX2}.3.5", "ray_head/out", Transform.CONV1X1),
            *layer("model.cam_dec.{camera_dense}", "camera_head/{camera_dense}", Transform.LINEAR),
            TensorRule(
                "model.cam_enc.{encoder_norm}.{affine}", "camera_encoder/{encoder_norm}/{affine}"
            ),
            *layer(
                "model.cam_enc.{encoder_dense}", "camera_encoder/{encoder_dense}", Transform.LINEAR
            ),
            *blocks("model.cam_enc.trunk", "camera_encoder/trunk"),
        ),
        skips=tuple(_unused_outputs()),
        skip_parts=(
            SkipPart("model.gs_head", "head of 3-D Gaussians, which this system does not have"),
            SkipPart("model.gs_adapter", "part of the head of 3-D Gaussians"),
        ),
    )


def _unused_outputs() -> list[Skip]:
    """Lists tensors of the ray branch that are skipped: coarser outputs, and copies of its norm.

    These are the outputs for the three coarser levels, and the other names of the shared norm.
    Published files have that norm under its first name only; a file saved by PyTorch has it under
    all four.
    """
    reason = "upstream computes a ray output for this level and discards it"
    conv, deeper = (3, 2, 0, 1), "ray_head/convs"
    skips = []
    for level in range(3):
        for i in range(5):
            like = f"{deeper}/{i}"
            skips.append(Skip(f"{_AUX1}.{level}.{i}.weight", reason, f"{like}/kernel", conv))
            skips.append(Skip(f"{_AUX1}.{level}.{i}.bias", reason, f"{like}/bias", (0,)))
        skips.append(Skip(f"{_AUX2}.{level}.0.weight", reason, "ray_head/conv/kernel", conv))
        skips.append(Skip(f"{_AUX2}.{level}.0.bias", reason, "ray_head/conv/bias", (0,)))
        pointwise = f"{_AUX2}.{level}.5"
        skips.append(Skip(f"{pointwise}.weight", reason, "ray_head/out/kernel", (1, 0, None, None)))
        skips.append(Skip(f"{pointwise}.bias", reason, "ray_head/out/bias", (0,)))
    for level in range(1, 4):
        for upstream, here in (("weight", "scale"), ("bias", "bias")):
            same = f"another name of {_AUX2}.0.2.{upstream}"
            like = f"ray_head/norm/{here}"
            skips.append(Skip(f"{_AUX2}.{level}.2.{upstream}", same, like, (0,), copy=True))
    return skips


def license_of(config: DA3Config) -> str | None:
    """Returns the license of the published weights of these sizes; None if there are none."""
    return next((known.license for known in PUBLISHED if known.config == config), None)


CHECKPOINT = Checkpoint(
    title="Depth Anything 3",
    names=name_map,
    trunk="model.backbone.pretrained",
    heads={
        "camera": "model.cam_dec",
        "depth": "model.head.scratch.output_conv1",
        "ray": _AUX1,
        "camera_encoder": "model.cam_enc",
    },
    license=license_of,
    signs={
        r"model\.da3(_metric)?\..*": "a nested Depth Anything 3",
        r"(model\.)?backbone\.pretrained\..*": "Depth Anything 3",
    },
)
