"""Recognizes by the names of its tensors what kind of model a checkpoint is of."""

import re
from collections.abc import Iterable

from lite3r_jax.backbones.base import backbone_names, get_backbone

# A name that only such a checkpoint has -> what it is; backbones declare their own.
_OTHERS: dict[str, str] = {
    r"(enc_blocks|dec_blocks2?|downstream_head1)\..*": "DUSt3R or MASt3R",
    r"encoder\.backbone\..*": "MoGe",
    r"(model\.diffusion_model|first_stage_model)\..*": "Stable Diffusion",
    r"(blocks\.\d+\..*|cls_token|patch_embed\.proj\.weight)": "a plain DINOv2",
    r"module\..*": "a model wrapped for data-parallel training (names start with 'module.')",
    r"\w+/.*": "already converted weights of this package",
}


def detect_checkpoint(names: Iterable[str]) -> str | None:
    """Returns which model a checkpoint with these tensor names is of, None when none fits."""
    names = list(names)
    checkpoints = [get_backbone(name).checkpoint for name in backbone_names()]
    signs = {sign: kind for known in checkpoints for sign, kind in known.signs.items()} | _OTHERS
    for sign, kind in signs.items():
        if any(re.fullmatch(sign, name) for name in names):
            return kind
    return None
