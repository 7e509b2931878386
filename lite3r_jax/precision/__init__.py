"""Rules by path choose which matrix products of a built model run in float8 or four-bit integers.

`apply_precision` simulates (`simulate.py`): weights and activations are quantized and dequantized
where they are used, gradients go straight through, and the model's parameters stay what and where
they were.
`freeze_quantized` then stores the weights that are not trained as float8, once. `deploy` stores all
of them, for running without training (`storage.py`). All three compute the same numbers but for the
order of summation.

A *site* is an `nnx.Linear` or the matrix `proj_lin` of an attention core, named by its path, "/"
between the parts: `aggregator/global_blocks/attn/qkv`, `aggregator/global_cores/0/proj_lin`. Layers
that are stacked are one site, each layer with scales of its own. The presets leave the Linears of
dense heads alone, which upstream has as convolutions of one pixel and does not quantize.
"""

from lite3r_jax.precision.presets import PRESETS, preset
from lite3r_jax.precision.rules import Fp8Rule, Int4Rule, PrecisionRule
from lite3r_jax.precision.simulate import QuantizedParam, apply_precision
from lite3r_jax.precision.sites import Site, match
from lite3r_jax.precision.storage import Kind, deploy, freeze_quantized

__all__ = [
    "PRESETS",
    "Fp8Rule",
    "Int4Rule",
    "Kind",
    "PrecisionRule",
    "QuantizedParam",
    "Site",
    "apply_precision",
    "deploy",
    "freeze_quantized",
    "match",
    "preset",
]
