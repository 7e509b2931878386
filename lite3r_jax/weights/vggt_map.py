"""Names of the VGGT checkpoint (facebook/VGGT-1B) and of the parameters here.

Upstream names: vggt/models/vggt.py, vggt/models/aggregator.py, vggt/layers/*, vggt/heads/*.
"""

from collections.abc import Mapping

from lite3r_jax.weights.name_map import Checkpoint, NameMap, Rule, Skip, Transform

FIELDS: Mapping[str, Mapping[str, str]] = {
    "affine": {"weight": "scale", "bias": "bias"},
    "token": {"camera_token": "camera_token", "register_token": "register_token"},
    "vit_token": {
        "cls_token": "cls_token",
        "pos_embed": "pos_embed",
        "register_tokens": "register_tokens",
    },
    # vggt/layers/block.py
    "blocks": {
        "aggregator.patch_embed.blocks": "aggregator/patch_embed/blocks",
        "aggregator.frame_blocks": "aggregator/frame_blocks",
        "aggregator.global_blocks": "aggregator/global_blocks",
        "camera_head.trunk": "camera_head/trunk",
    },
    "block_norm": {
        "norm1": "norm1",
        "norm2": "norm2",
        "attn.q_norm": "attn/q_norm",
        "attn.k_norm": "attn/k_norm",
    },
    "block_dense": {
        "attn.qkv": "attn/qkv",
        "attn.proj": "attn/proj",
        "mlp.fc1": "mlp/fc1",
        "mlp.fc2": "mlp/fc2",
    },
    "layer_scale": {"ls1": "ls1", "ls2": "ls2"},
    # vggt/heads/camera_head.py
    "camera_norm": {"token_norm": "token_norm", "trunk_norm": "trunk_norm"},
    "camera_dense": {
        "embed_pose": "embed_pose",
        "poseLN_modulation.1": "pose_modulation",
        "pose_branch.fc1": "pose_branch/fc1",
        "pose_branch.fc2": "pose_branch/fc2",
    },
    # vggt/heads/dpt_head.py
    "dpt": {
        "depth_head": "depth_head",
        "point_head": "point_head",
        "track_head.feature_extractor": "track_head/feature_extractor",
    },
    "dpt_pointwise": {
        "projects.0": "projects/0",
        "projects.1": "projects/1",
        "projects.2": "projects/2",
        "projects.3": "projects/3",
        "scratch.refinenet1.out_conv": "refine/0/out",
        "scratch.refinenet2.out_conv": "refine/1/out",
        "scratch.refinenet3.out_conv": "refine/2/out",
        "scratch.refinenet4.out_conv": "refine/3/out",
        "scratch.output_conv2.2": "out_conv3",
    },
    "dpt_upsample": {"resize_layers.0": "upsample/0", "resize_layers.1": "upsample/1"},
    "dpt_conv": {
        "resize_layers.3": "downsample",
        "scratch.output_conv1": "out_conv1",
        "scratch.output_conv2.0": "out_conv2",
    },
    "reassemble": {
        "layer1_rn": "reassemble/0",
        "layer2_rn": "reassemble/1",
        "layer3_rn": "reassemble/2",
        "layer4_rn": "reassemble/3",
    },
    "refine": {
        "refinenet1": "refine/0",
        "refinenet2": "refine/1",
        "refinenet3": "refine/2",
        "refinenet4": "refine/3",
    },
    "unit": {"resConfUnit1": "unit1", "resConfUnit2": "unit2"},
    "unit_conv": {"conv1": "conv1", "conv2": "conv2"},
    # vggt/heads/track_modules/base_track_predictor.py and blocks.py
    "tracker_norm": {
        "fmap_norm": "fmap_norm",
        "ffeat_norm": "ffeat_norm",
        "updateformer.input_norm": "updateformer/input_norm",
        "updateformer.output_norm": "updateformer/output_norm",
    },
    "tracker_dense": {
        "corr_mlp.fc1": "corr_mlp/fc1",
        "corr_mlp.fc2": "corr_mlp/fc2",
        "ffeat_updater.0": "ffeat_updater",
        "vis_predictor.0": "vis_predictor",
        "conf_predictor.0": "conf_predictor",
        "updateformer.input_transform": "updateformer/input_transform",
        "updateformer.flow_head": "updateformer/flow_head",
    },
    "track_blocks": {
        "time_blocks": "time_blocks",
        "space_virtual_blocks": "space_virtual_blocks",
        "space_point2virtual_blocks": "space_point2virtual_blocks",
        "space_virtual2point_blocks": "space_virtual2point_blocks",
    },
    "track_norm": {"norm1": "norm1", "norm2": "norm2", "norm_context": "norm_context"},
    "track_attn": {"attn": "attn", "cross_attn": "cross_attn"},
    "track_dense": {
        "attn.out_proj": "attn/out_proj",
        "cross_attn.out_proj": "cross_attn/out_proj",
        "mlp.fc1": "mlp/fc1",
        "mlp.fc2": "mlp/fc2",
    },
}


def _layer(
    source: str, target: str, kernel: Transform, stack: str | None = None
) -> tuple[Rule, Rule]:
    """A layer with weight and bias."""
    return (
        Rule(f"{source}.weight", f"{target}/kernel", kernel, stack),
        Rule(f"{source}.bias", f"{target}/bias", Transform.IDENTITY, stack),
    )


_TRACK_BLOCK = "track_head.tracker.updateformer.{track_blocks}.{i}"
_TRACK_BLOCK_HERE = "track_head/tracker/updateformer/{track_blocks}"

NAME_MAP = NameMap(
    fields=FIELDS,
    rules=(
        Rule("aggregator.{token}", "aggregator/{token}"),
        Rule("aggregator.patch_embed.{vit_token}", "aggregator/patch_embed/{vit_token}"),
        Rule("aggregator.patch_embed.norm.{affine}", "aggregator/patch_embed/norm/{affine}"),
        *_layer(
            "aggregator.patch_embed.patch_embed.proj",
            "aggregator/patch_embed/proj",
            Transform.CONV,
        ),
        # Blocks of the encoder, the aggregator and the camera trunk.
        Rule("{blocks}.{i}.{block_norm}.{affine}", "{blocks}/{block_norm}/{affine}", stack="i"),
        Rule("{blocks}.{i}.{layer_scale}.gamma", "{blocks}/{layer_scale}/gamma", stack="i"),
        *_layer("{blocks}.{i}.{block_dense}", "{blocks}/{block_dense}", Transform.LINEAR, "i"),
        # Camera head.
        Rule("camera_head.empty_pose_tokens", "camera_head/empty_pose_tokens"),
        Rule("camera_head.{camera_norm}.{affine}", "camera_head/{camera_norm}/{affine}"),
        *_layer("camera_head.{camera_dense}", "camera_head/{camera_dense}", Transform.LINEAR),
        # Depth head, point head, features of the track head.
        Rule("{dpt}.norm.{affine}", "{dpt}/norm/{affine}"),
        *_layer("{dpt}.{dpt_pointwise}", "{dpt}/{dpt_pointwise}", Transform.CONV1X1),
        *_layer("{dpt}.{dpt_upsample}", "{dpt}/{dpt_upsample}", Transform.DECONV),
        *_layer("{dpt}.{dpt_conv}", "{dpt}/{dpt_conv}", Transform.CONV),
        Rule("{dpt}.scratch.{reassemble}.weight", "{dpt}/{reassemble}/kernel", Transform.CONV),
        *_layer(
            "{dpt}.scratch.{refine}.{unit}.{unit_conv}",
            "{dpt}/{refine}/{unit}/{unit_conv}",
            Transform.CONV,
        ),
        # Tracker. Upstream spells the virtual tracks "virual_tracks"; in_proj packs q, k and v.
        Rule("track_head.tracker.query_ref_token", "track_head/tracker/query_ref_token"),
        Rule(
            "track_head.tracker.updateformer.virual_tracks",
            "track_head/tracker/updateformer/virtual_tracks",
        ),
        Rule(
            "track_head.tracker.{tracker_norm}.{affine}",
            "track_head/tracker/{tracker_norm}/{affine}",
        ),
        *_layer(
            "track_head.tracker.{tracker_dense}",
            "track_head/tracker/{tracker_dense}",
            Transform.LINEAR,
        ),
        Rule(
            f"{_TRACK_BLOCK}.{{track_norm}}.{{affine}}",
            f"{_TRACK_BLOCK_HERE}/{{track_norm}}/{{affine}}",
            stack="i",
        ),
        Rule(
            f"{_TRACK_BLOCK}.{{track_attn}}.in_proj_weight",
            f"{_TRACK_BLOCK_HERE}/{{track_attn}}/in_proj/kernel",
            Transform.LINEAR,
            stack="i",
        ),
        Rule(
            f"{_TRACK_BLOCK}.{{track_attn}}.in_proj_bias",
            f"{_TRACK_BLOCK_HERE}/{{track_attn}}/in_proj/bias",
            stack="i",
        ),
        *_layer(
            f"{_TRACK_BLOCK}.{{track_dense}}",
            f"{_TRACK_BLOCK_HERE}/{{track_dense}}",
            Transform.LINEAR,
            "i",
        ),
    ),
    skips=(
        Skip(
            "aggregator.patch_embed.mask_token",
            "used only in the masked pre-training of the encoder, by nothing in VGGT",
            like="aggregator/patch_embed/cls_token",
            axes=(0, 2),
        ),
    ),
)

CHECKPOINT = Checkpoint(
    title="VGGT",
    names=NAME_MAP,
    trunk="aggregator",
    heads={
        "camera": "camera_head",
        "depth": "depth_head",
        "point": "point_head",
        "track": "track_head",
    },
)
