"""Lists of precision rules by name."""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from lite3r_jax.errors import unknown_name
from lite3r_jax.precision.rules import CAMERA_OUTPUTS, Fp8Rule, Int4Rule, PrecisionRule

# Whatever a backbone calls its parts: the dense heads keep full precision, and what is no head is
# encoder or trunk.
_PARTS = r"^(?!(depth|point|ray|track)_head/)"
_TRUNK = Fp8Rule(r"^(?!\w+_head/|camera_encoder/)")
_HEADS = Fp8Rule(r"^(camera_head|camera_encoder)/", optional=True)
_STRATEGIES = r"(^|/)(\w+_)?cores/"  # what attention strategies have of their own

PRESETS: Mapping[str, tuple[PrecisionRule, ...]] = MappingProxyType(
    {
        "none": (),
        "default": (
            Fp8Rule(_STRATEGIES, weights=None, activations=None, optional=True),
            Fp8Rule(CAMERA_OUTPUTS, weights=None, activations=None, optional=True),
            _TRUNK, _HEADS,
        ),
        "paper": (_TRUNK, _HEADS),
        "paper_w4a16": (Int4Rule(_PARTS + r"(?!(.*/)?attn/)(?!(.*/)?(\w+_)?cores/)"),),
        "paper_w4a8": (Int4Rule(_PARTS + r"(?!(.*/)?(\w+_)?cores/)", activation_bits=8),),
        "int8": (
            Fp8Rule(_STRATEGIES, weights=None, activations=None, optional=True),
            Fp8Rule(CAMERA_OUTPUTS, weights=None, activations=None, optional=True),
            *(replace(rule, weights="int8", activations=None) for rule in (_TRUNK, _HEADS)),
        ),
    }
)  # fmt: skip


def preset(name: str) -> tuple[PrecisionRule, ...]:
    """Returns the rules of a preset, which fit all backbones with any heads and plan.

    `none`: full precision.

    `default`: every Linear of the trunk, of the camera head and of the head for known cameras, but
    not what attention strategies have of their own (`proj_lin`) and the layers whose outputs are
    cameras.

    `int8`: the same Linears with weights in int8, one scale for each output, and activations as
    they are: for chips without float8, and for less rounding of weights than e4m3.

    `paper`: the Linears of `default` and its exceptions, which are all that Lite3R wraps
    (lite3r_kit/fp8_fake_quant.py): 384 of VGGT-1B with camera and depth heads and the plan
    "sla_paper", 147 of DA3-Large.

    `paper_w4a16` and `paper_w4a8`: the first stage of Lite3R's recipe for VGGT (four-bit weights
    outside of attention, 156 Linears; its 16-bit activations are finer than bfloat16 and are left)
    and for Depth Anything 3 (with attention, but not `proj_lin`, and 8-bit activations; 119).

    Raises:
        InputError: there is none of that name.
    """
    if name not in PRESETS:
        raise unknown_name("precision", name, PRESETS)
    return PRESETS[name]
