"""Map of tensor names in the VGGT checkpoint (facebook/VGGT-1B) to parameter paths here.

Upstream names: vggt/models/vggt.py, vggt/models/aggregator.py, vggt/layers/*, vggt/heads/*.
"""

from collections.abc import Mapping

from lite3r_jax.backbones import tensor_rules
from lite3r_jax.backbones.tensor_rules import blocks, dpt, layer
from lite3r_jax.name_map import Checkpoint, NameMap, Skip, TensorRule, Transform

FIELDS: Mapping[str, Mapping[str, str]] = {
    **tensor_rules.FIELDS,
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


_TRACK_BLOCK = "track_head.tracker.updateformer.{track_blocks}.{i}"
_TRACK_BLOCK_HERE = "track_head/tracker/updateformer/{track_blocks}"

NAME_MAP = NameMap(
    fields=FIELDS,
    rules=(
        TensorRule("aggregator.{token}", "aggregator/{token}"),
        TensorRule("aggregator.patch_embed.{vit_token}", "aggregator/patch_embed/{vit_token}"),
        TensorRule("aggregator.patch_embed.norm.{affine}", "aggregator/patch_embed/norm/{affine}"),
        *layer(
            "aggregator.patch_embed.patch_embed.proj",
            "aggregator/patch_embed/proj",
            Transform.CONV,
        ),
        # Blocks of the encoder, the aggregator and the camera trunk.
        *blocks("{blocks}", "{blocks}"),
        # Camera head.
        TensorRule("camera_head.empty_pose_tokens", "camera_head/empty_pose_tokens"),
        TensorRule("camera_head.{camera_norm}.{affine}", "camera_head/{camera_norm}/{affine}"),
        *layer("camera_head.{camera_dense}", "camera_head/{camera_dense}", Transform.LINEAR),
        # Depth head, point head, features of the track head.
        *dpt("{dpt}", "{dpt}"),
        # Tracker. Upstream spells the virtual tracks "virual_tracks"; in_proj packs q, k and v.
        TensorRule("track_head.tracker.query_ref_token", "track_head/tracker/query_ref_token"),
        TensorRule(
            "track_head.tracker.updateformer.virual_tracks",
            "track_head/tracker/updateformer/virtual_tracks",
        ),
        TensorRule(
            "track_head.tracker.{tracker_norm}.{affine}",
            "track_head/tracker/{tracker_norm}/{affine}",
        ),
        *layer(
            "track_head.tracker.{tracker_dense}",
            "track_head/tracker/{tracker_dense}",
            Transform.LINEAR,
        ),
        TensorRule(
            f"{_TRACK_BLOCK}.{{track_norm}}.{{affine}}",
            f"{_TRACK_BLOCK_HERE}/{{track_norm}}/{{affine}}",
            stack="i",
        ),
        TensorRule(
            f"{_TRACK_BLOCK}.{{track_attn}}.in_proj_weight",
            f"{_TRACK_BLOCK_HERE}/{{track_attn}}/in_proj/kernel",
            Transform.LINEAR,
            stack="i",
        ),
        TensorRule(
            f"{_TRACK_BLOCK}.{{track_attn}}.in_proj_bias",
            f"{_TRACK_BLOCK_HERE}/{{track_attn}}/in_proj/bias",
            stack="i",
        ),
        *layer(
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
    names=lambda config: NAME_MAP,
    trunk="aggregator",
    heads={
        "camera": "camera_head",
        "depth": "depth_head",
        "point": "point_head",
        "track": "track_head",
    },
    signs={r"model\.(aggregator|camera_head)\..*": "a VGGT state dict with a prefix 'model.'"},
)
