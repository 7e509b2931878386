"""Sizes of a VGGT, and their JSON form."""

from dataclasses import dataclass, field
from typing import Any

from flax import nnx

from lite3r_jax.backbones.config_json import from_json
from lite3r_jax.backbones.dinov2 import EncoderConfig
from lite3r_jax.backbones.heads import DPTConfig
from lite3r_jax.backbones.model import count_parameters
from lite3r_jax.backbones.vggt.camera_head import CameraConfig
from lite3r_jax.backbones.vggt.tracker import TrackConfig
from lite3r_jax.errors import InputError
from lite3r_jax.layers.rngs import traced_rngs


@dataclass(frozen=True)
class TrunkConfig:
    """Sizes of the trunk, which has `depth` frame blocks and as many global blocks."""

    depth: int = 24
    num_heads: int = 16
    mlp_ratio: float = 4.0


@dataclass(frozen=True)
class VGGTConfig:
    """Sizes of a VGGT; the defaults are VGGT-1B."""

    img_size: int = 518
    patch_size: int = 14
    embed_dim: int = 1024
    num_register_tokens: int = 4
    vit: EncoderConfig = field(default_factory=EncoderConfig)
    aggregator: TrunkConfig = field(default_factory=TrunkConfig)
    camera_head: CameraConfig = field(default_factory=CameraConfig)
    dpt: DPTConfig = field(default_factory=DPTConfig)
    track: TrackConfig = field(default_factory=TrackConfig)


# Keys of the JSON form that describe a test run and not the model.
_RUN_KEYS = {"batch", "views", "height", "width"}


def config_from_json(data: dict[str, Any]) -> VGGTConfig:
    """Reads the sizes of a VGGT from JSON; settings that are absent keep VGGT-1B's values.

    `param_count`, if present, is checked against the model with all heads. Keys of a test run
    (batch, views, height, width) are accepted and ignored.

    Raises:
        InputError: unknown keys, wrong types, sizes that do not fit together.
    """
    expected = None
    if isinstance(data, dict):
        data = {k: v for k, v in data.items() if k not in _RUN_KEYS}
        expected = data.pop("param_count", None)
    config = from_json(VGGTConfig, data, "config")
    _check_config(config)
    if expected is not None:
        from lite3r_jax.backbones.vggt.model import VGGT

        model = nnx.eval_shape(lambda: VGGT(config, rngs=traced_rngs(0)))
        # DINOv2's mask token is in every checkpoint and in no forward pass.
        count = count_parameters(model) + config.embed_dim
        if count != expected:
            raise InputError(
                f"config: param_count says {expected:,} but these sizes give {count:,}; correct one"
            )
    return config


def _check_config(config: VGGTConfig) -> None:
    depth = config.aggregator.depth
    c = config.embed_dim
    rules = [
        (config.img_size % config.patch_size == 0, "img_size must be a multiple of patch_size"),
        (
            c % (4 * config.aggregator.num_heads) == 0,
            "embed_dim / aggregator.num_heads must be a multiple of 4",
        ),
        (c % config.vit.num_heads == 0, "vit.num_heads must divide embed_dim"),
        (
            2 * c % config.camera_head.num_heads == 0,
            "camera_head.num_heads must divide 2 * embed_dim",
        ),
        (len(config.dpt.out_channels) == 4, "dpt.out_channels must have 4 entries"),
        (len(config.track.dpt_out_channels) == 4, "track.dpt_out_channels must have 4 entries"),
        (
            all(n % 4 == 0 for n in (*config.dpt.out_channels, config.dpt.features // 2)),
            "dpt.out_channels and dpt.features / 2 must be multiples of 4",
        ),
        (
            len(config.dpt.intermediate_layer_idx) == 4
            and all(0 <= i < depth for i in config.dpt.intermediate_layer_idx),
            f"dpt.intermediate_layer_idx must name 4 of the {depth} trunk layers",
        ),
    ]
    broken = [text for ok, text in rules if not ok]
    if broken:
        raise InputError(f"config: {'; '.join(broken)}")
