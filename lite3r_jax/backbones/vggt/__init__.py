"""VGGT: views to cameras, depth, points and tracks in one pass (arXiv 2503.11651)."""

from lite3r_jax.backbones.base import BackboneEntry, Published
from lite3r_jax.backbones.config_json import to_json
from lite3r_jax.backbones.vggt.config import VGGTConfig, config_from_json
from lite3r_jax.backbones.vggt.model import VGGT
from lite3r_jax.backbones.vggt.weight_map import CHECKPOINT

__all__ = ["ENTRY", "VGGT", "VGGTConfig"]

ENTRY = BackboneEntry(
    name="vggt",
    model=VGGT,
    default_config=VGGTConfig(),
    config_from_json=config_from_json,
    config_to_json=to_json,
    checkpoint=CHECKPOINT,
    published=(Published("VGGT-1B", "facebook/VGGT-1B", VGGTConfig(), "CC-BY-NC-4.0", "5.0 GB"),),
)
