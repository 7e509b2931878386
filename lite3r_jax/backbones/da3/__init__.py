"""Depth Anything 3: views, with cameras or without, to depth and cameras (arXiv 2511.10647)."""

from lite3r_jax.backbones.base import BackboneEntry
from lite3r_jax.backbones.config_json import to_json
from lite3r_jax.backbones.da3.config import PUBLISHED, DA3Config, config_from_json
from lite3r_jax.backbones.da3.model import DA3
from lite3r_jax.backbones.da3.weight_map import CHECKPOINT

__all__ = ["DA3", "ENTRY", "DA3Config"]

ENTRY = BackboneEntry(
    name="da3",
    model=DA3,
    default_config=DA3Config(),
    config_from_json=config_from_json,
    config_to_json=to_json,
    checkpoint=CHECKPOINT,
    published=PUBLISHED,
)
