"""Recognizing checkpoints that are not what they were taken for."""

import re
from collections.abc import Iterable, Mapping

# What a checkpoint is -> a name that only such a checkpoint has.
_SIGNS: Mapping[str, str] = {
    "a nested Depth Anything 3": r"model\.da3(_metric)?\..*",
    "Depth Anything 3": r"(model\.)?backbone\.pretrained\..*",
    "Speed3R, a sparse pi^3": r"(local|global)_decoder\..*",
    "Pi3": r"(decoder\.\d+\..*|point_decoder\..*|conf_decoder\..*)",
    "DUSt3R or MASt3R": r"(enc_blocks|dec_blocks2?|downstream_head1)\..*",
    "MoGe": r"encoder\.backbone\..*",
    "Stable Diffusion": r"(model\.diffusion_model|first_stage_model)\..*",
    "a plain DINOv2": r"(blocks\.\d+\..*|cls_token|patch_embed\.proj\.weight)",
    "a VGGT wrapped for data-parallel training (names start with 'module.')": r"module\..*",
    "a VGGT state dict with a prefix 'model.'": r"model\.(aggregator|camera_head)\..*",
    "already converted weights of this package": r"aggregator/.*",
}


def detect_checkpoint(names: Iterable[str]) -> str | None:
    """What a checkpoint with these tensor names looks like, None when nothing fits."""
    names = list(names)
    for kind, sign in _SIGNS.items():
        if any(re.fullmatch(sign, name) for name in names):
            return kind
    return None
