"""pi^3: views in any order to cameras, depth and points (arXiv 2507.13347)."""

from lite3r_jax.backbones.base import BackboneEntry
from lite3r_jax.backbones.pi3.config import (
    PUBLISHED,
    Pi3Config,
    config_from_json,
    config_to_json,
    own_plan,
)
from lite3r_jax.backbones.pi3.model import Pi3
from lite3r_jax.backbones.pi3.weight_map import CHECKPOINT

__all__ = ["ENTRY", "Pi3", "Pi3Config"]

ENTRY = BackboneEntry(
    name="pi3",
    model=Pi3,
    default_config=Pi3Config(),
    config_from_json=config_from_json,
    config_to_json=config_to_json,
    checkpoint=CHECKPOINT,
    published=PUBLISHED,
    own_plan=own_plan,
)
