"""Precision rules: how matrix products are quantized, and at which sites of a model."""

from dataclasses import dataclass
from typing import Any

import jax
from jax import lax

from lite3r_jax.errors import InputError
from lite3r_jax.kernels.fp8.api import fp8_dot_general
from lite3r_jax.kernels.fp8.quantize import fake_quantize, fake_quantize_int
from lite3r_jax.kernels.fp8.reference import (
    FORMATS,
    WEIGHT_FORMATS,
    FormatName,
    ScaleName,
    WeightFormat,
)

CAMERA_OUTPUTS = "<camera outputs>"
"""Path of a rule that stands for the layers whose outputs are cameras.

A backbone says which layers they are (`Backbone.camera_outputs`)."""


@dataclass(frozen=True)
class Fp8Rule:
    """Quantizes to float8, or weights to int8, the sites whose path has `path` (`re.search`).

    With weights and activations both None the sites keep full precision, which is how a rule makes
    exceptions from the rules behind it.

    Attributes:
        path: regular expression, or `CAMERA_OUTPUTS`.
        weights: "e4m3", "e5m2", "int8" (where activations are left), or None to leave them.
        activations: "e4m3", "e5m2" or None, for what comes in. With None at `proj_lin` the operator
            folds the matrix into its state; otherwise it computes its linear part apart, one scale
            for every token of a head.
        gradients: likewise, for what comes back; None is straight-through in full precision.
        scale: "row" (float32, one per output of a weight and one per token) or "tensor" (one each;
            not for the input of `proj_lin`, whose heads are computed in turns).
        optional: whether the rule may find nothing: for lists that serve several models.
    """

    path: str
    weights: WeightFormat | None = "e4m3"
    activations: FormatName | None = "e4m3"
    gradients: FormatName | None = None
    scale: ScaleName = "row"
    optional: bool = False

    def __post_init__(self) -> None:
        """Refuses settings without a meaning."""
        for name in ("weights", "activations", "gradients"):
            known = WEIGHT_FORMATS if name == "weights" else FORMATS
            if getattr(self, name) not in (None, *known):
                raise InputError(
                    f"precision rule {self.path!r}: {name} must be one of {', '.join(known)} or"
                    f" None, got {getattr(self, name)!r}"
                )
        if self.weights == "int8" and self.activations is not None:
            raise InputError(
                f"precision rule {self.path!r}: weights in int8 are multiplied by activations as"
                f" they are, got activations {self.activations!r}; set them to None"
            )
        if self.scale not in ("row", "tensor"):
            raise InputError(
                f"precision rule {self.path!r}: scale must be row or tensor, got {self.scale!r}"
            )
        if self.gradients is not None and self.full:
            raise InputError(
                f"precision rule {self.path!r}: gradients alone cannot be quantized; name weights"
                " or activations"
            )

    @property
    def full(self) -> bool:
        """Whether the sites keep full precision."""
        return self.weights is None and self.activations is None

    @property
    def joins_tokens(self) -> bool:
        """Whether tokens share a scale, and so have to be quantized together."""
        return self.scale == "tensor" and (self.activations or self.gradients) is not None

    def dot_general(self, x: Any, w: Any, dimensions: Any, **settings: Any) -> jax.Array:
        """Multiplies as `lax.dot_general` does, with quantized operands."""
        return fp8_dot_general(
            x, w, dimensions, weights=self.weights, activations=self.activations,
            gradients=self.gradients, scale=self.scale, **settings,
        )  # fmt: skip

    def matrix(self, w: jax.Array) -> jax.Array:
        """Returns the weights [..., K, N] quantized and dequantized, as the product sees them."""
        if self.weights is None:
            return w
        return fake_quantize(w, self.weights, -2 if self.scale == "row" else (-2, -1))


@dataclass(frozen=True)
class Int4Rule:
    """Four-bit integer weights in groups of inputs, the first stage of Lite3R's recipe.

    Simulated only. Where `group` does not divide the inputs of a Linear, all of them are one group
    (lite3r_kit/fake_quant.py).

    Attributes:
        path: as for `Fp8Rule`.
        group: neighboring inputs of one output that share a scale.
        activation_bits: of activations, one scale per token, 2 to 8; None leaves them.
        optional: as for `Fp8Rule`.
    """

    path: str
    group: int = 128
    activation_bits: int | None = None
    optional: bool = False

    def __post_init__(self) -> None:
        """Refuses settings without a meaning."""
        bits = self.activation_bits
        if self.group < 1 or not (bits is None or 2 <= bits <= 8):
            raise InputError(
                f"precision rule {self.path!r}: expected a group of at least 1 and 2 to 8"
                f" activation bits or None, got {self.group} and {bits}"
            )

    full = False
    joins_tokens = False

    @property
    def activations(self) -> int | None:
        """Number of bits of quantized activations, or None where they are left."""
        return self.activation_bits

    def dot_general(self, x: Any, w: Any, dimensions: Any, **settings: Any) -> jax.Array:
        """Multiplies as `lax.dot_general` does, with quantized operands."""
        if self.activation_bits is not None:
            x = fake_quantize_int(x, self.activation_bits, None)
        return lax.dot_general(x, self.matrix(w).astype(x.dtype), dimensions, **settings)

    def matrix(self, w: jax.Array) -> jax.Array:
        """Returns the weights [..., K, N] quantized and dequantized, as the product sees them."""
        flat = w.reshape(-1, *w.shape[-2:])
        return jax.vmap(lambda m: fake_quantize_int(m, 4, self.group))(flat).reshape(w.shape)


PrecisionRule = Fp8Rule | Int4Rule


@dataclass(frozen=True)
class RuleDotGeneral:
    """A rule as the `dot_general` of a Linear; equal rules compare equal, so nothing recompiles."""

    rule: PrecisionRule

    @property
    def joins_tokens(self) -> bool:
        """Whether tokens share a scale under the rule, see `Fp8Rule.joins_tokens`."""
        return self.rule.joins_tokens

    def __call__(self, x: Any, w: Any, dimensions: Any, **settings: Any) -> jax.Array:
        """Multiplies as `lax.dot_general` does, by the rule; refuses an output sharding."""
        if settings.pop("out_sharding", None) is not None:
            raise ValueError("out_sharding is not supported where a Linear is quantized")
        return self.rule.dot_general(x, w, dimensions, **settings)
