"""Sizes of a pi^3, and their JSON form."""

from dataclasses import dataclass, field
from typing import Any

from flax import nnx

from lite3r_jax.attention.plan import Plan, Rule, runs
from lite3r_jax.attention.presets import plan_name
from lite3r_jax.attention.speed3r import Speed3R
from lite3r_jax.backbones.base import Published
from lite3r_jax.backbones.config_json import from_json, to_json
from lite3r_jax.backbones.model import count_parameters
from lite3r_jax.errors import InputError
from lite3r_jax.layers.rngs import traced_rngs


@dataclass(frozen=True)
class EncoderSizes:
    """Sizes of the DINOv2 encoder of single views.

    Attributes:
        img_size: side of the images that the position table was made for.
        dim: C.
        depth: number of blocks.
        heads: attention heads of a block.
        registers: register tokens, which the trunk does not see.
    """

    img_size: int = 518
    dim: int = 1024
    depth: int = 24
    heads: int = 16
    registers: int = 4


@dataclass(frozen=True)
class TrunkSizes:
    """Sizes of the trunk, whose blocks attend within views and over all views in turn.

    Attributes:
        dim: C, that of the encoder.
        depth: number of blocks; even ones attend within a view, odd ones over all views.
        heads: attention heads of a block.
        registers: R, register tokens of every view.
    """

    dim: int = 1024
    depth: int = 36
    heads: int = 16
    registers: int = 5


@dataclass(frozen=True)
class HeadSizes:
    """Sizes of the three decoders in front of the heads.

    Attributes:
        dim: channels of their blocks.
        heads: attention heads of a block.
        depth: blocks of each.
        point_out: channels that points and confidence are read from.
        camera_out: channels that cameras are read from.
    """

    dim: int = 1024
    heads: int = 16
    depth: int = 5
    point_out: int = 1024
    camera_out: int = 512


@dataclass(frozen=True)
class ConvHeadSizes:
    """Sizes of the convolutional heads of Pi3X.

    Attributes:
        stages: channels of the three stages, each a multiple of 16.
        units: residual units of each; weights have two.
        last: channels in front of the outputs.
    """

    stages: tuple[int, ...] = (256, 128, 64)
    units: int = 2
    last: int = 32


@dataclass(frozen=True)
class MetricSizes:
    """Sizes of the metric branch of Pi3X.

    Attributes:
        dim: channels.
        heads: attention heads of a block.
        depth: number of blocks, at most 32.
        out: channels that the meters per unit are read from.
    """

    dim: int = 512
    heads: int = 8
    depth: int = 5
    out: int = 512


@dataclass(frozen=True)
class Pi3Config:
    """Sizes of a pi^3; the defaults are the published model.

    Attributes:
        patch_size: side of a patch in pixels.
        mlp_ratio: hidden size of MLPs over channels.
        encoder: see `EncoderSizes`.
        decoder: see `TrunkSizes`.
        heads: see `HeadSizes`.
        metric: whether it is Pi3X: points and confidence come from convolutions (`conv_head`), and
            lengths are meters (`metric_head`).
        conv_head: sizes of the convolutional heads; of no meaning without `metric`.
        metric_head: sizes of the metric branch; likewise.
        sparse: whether it is the sparse pi^3 of Speed3R: its layers over all views have
            `attention.speed3r` with gates among the weights, its trunk has no register tokens.
    """

    patch_size: int = 14
    mlp_ratio: float = 4.0
    encoder: EncoderSizes = field(default_factory=EncoderSizes)
    decoder: TrunkSizes = field(default_factory=TrunkSizes)
    heads: HeadSizes = field(default_factory=HeadSizes)
    metric: bool = False
    conv_head: ConvHeadSizes = field(default_factory=ConvHeadSizes)
    metric_head: MetricSizes = field(default_factory=MetricSizes)
    sparse: bool = False

    @property
    def registers(self) -> int:
        """Number of register tokens that every view has in the trunk."""
        return 0 if self.sparse else self.decoder.registers

    @property
    def pairs(self) -> int:
        """Number of frame blocks, and of global blocks."""
        return self.decoder.depth // 2


PUBLISHED = (
    Published("Pi3", "yyfz233/Pi3", Pi3Config(), "CC-BY-NC-4.0", "3.8 GB"),
    Published("Pi3X", "yyfz233/Pi3X", Pi3Config(metric=True), "CC-BY-NC-4.0", "5.4 GB"),
)

SPEED3R = Pi3Config(sparse=True)
"""Sizes of the pi^3 that Visual-AI/speed3r has released."""

# Keys of the JSON form that describe a test run and not the model.
_RUN_KEYS = {"input", "input_axes"}
# What every pi^3 has; files may say so.
_CONSTANTS: dict[str, Any] = {
    "rope_base": 100.0,
    "encoder_norm_eps": 1e-6,
    "decoder_norm_eps": 1e-6,
    "head_norm_eps": 1e-6,
    "qk_norm_eps": 1e-5,
    "layer_scale": {"encoder": True, "decoder": True, "heads": False},
    "qk_norm": {"encoder": False, "decoder": True, "heads": False},
    "rope": {"encoder": False, "decoder": True, "heads": True},
}


def config_from_json(data: dict[str, Any]) -> Pi3Config:
    """Reads the sizes of a pi^3 from JSON; settings that are absent keep the published values.

    `parameters`, if present, is checked against the model with all heads, and so are constants of
    the architecture (eps, RoPE). Keys of a test run (input, input_axes) are accepted and ignored.

    Raises:
        InputError: unknown keys, wrong types, sizes that do not fit together.
    """
    expected = None
    if isinstance(data, dict):
        data = {key: value for key, value in data.items() if key not in _RUN_KEYS}
        expected = data.pop("parameters", None)
        for key, value in _CONSTANTS.items():
            if (given := data.pop(key, value)) != value:
                raise InputError(f"config.{key}: {given!r}, but every pi^3 has {value!r}")
    config = from_json(Pi3Config, data, "config")
    _check(config)
    if expected is not None:
        from lite3r_jax.backbones.pi3.model import Pi3

        count = count_parameters(nnx.eval_shape(lambda: Pi3(config, rngs=traced_rngs(0))))
        if count != expected:
            raise InputError(
                f"config: parameters says {expected!r} but these sizes give {count:,}; correct one"
            )
    return config


def config_to_json(config: Pi3Config) -> dict[str, Any]:
    """Returns the JSON form that `config_from_json` reads.

    A dense model leaves out the key `sparse`.
    """
    return {key: value for key, value in to_json(config).items() if key != "sparse" or value}


def own_plan(config: Pi3Config) -> Plan:
    """Returns the attention plan that weights of these sizes were trained with."""
    return Plan((Rule("global", Speed3R()),)) if config.sparse else Plan()


def check_plan(config: Pi3Config, plan: Plan) -> None:
    """Raises an error for attention that leaves out what weights of a sparse model have learned.

    Raises:
        InputError: another strategy, or other settings than may change without training.
    """
    if not config.sparse:
        return
    specs = plan.specs("global", config.pairs)
    same = [isinstance(spec, Speed3R) and spec.window == Speed3R.window for spec in specs]
    parts = runs(plan.specs("frame", config.pairs), specs)
    if not all(same) or len(parts) > 1:
        raise InputError(
            "attention: these weights are Speed3R's, fine-tuned for its sparse attention in all"
            f" layers over views, which is no dense one; leave out the plan, or change the number"
            f" of windows alone: {plan_name(own_plan(config)).replace('32', '64')}; for other plans"
            " take the dense weights of yyfz233/Pi3"
        )


def _check(config: Pi3Config) -> None:
    encoder, trunk, heads = config.encoder, config.decoder, config.heads
    rules = [
        (
            encoder.img_size % config.patch_size == 0,
            "encoder.img_size must be a multiple of patch_size",
        ),
        (encoder.dim == trunk.dim, "encoder.dim and decoder.dim must be equal"),
        (encoder.dim % encoder.heads == 0, "encoder.heads must divide encoder.dim"),
        (trunk.dim % (4 * trunk.heads) == 0, "decoder.dim / decoder.heads: a multiple of 4"),
        (heads.dim % (4 * heads.heads) == 0, "heads.dim / heads.heads: a multiple of 4"),
        (trunk.depth % 2 == 0, "decoder.depth must be even"),
    ]
    rules.append((not (config.metric and config.sparse), "metric and sparse exclude each other"))
    if config.metric:
        conv, metric = config.conv_head, config.metric_head
        fits = len(conv.stages) == 3 and all(n and n % 16 == 0 for n in conv.stages)
        rules += [
            (fits, "conv_head.stages must be three multiples of 16"),
            (conv.units == 2, "conv_head.units must be 2"),
            (metric.depth <= 32, "metric_head.depth must be at most 32"),
            (metric.dim % (4 * metric.heads) == 0, "metric_head.dim / heads: a multiple of 4"),
        ]
    if broken := [text for ok, text in rules if not ok]:
        raise InputError(f"config: {'; '.join(broken)}")


def license_of(config: Pi3Config) -> str | None:
    """Returns the license of the published weights of these sizes; None if there are none."""
    return next((known.license for known in PUBLISHED if known.config == config), None)
