"""Plans by name."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from lite3r_jax.attention.core import Plan, Rule
from lite3r_jax.attention.dense import Dense
from lite3r_jax.attention.sla import SLA


def _dense(**settings: Any) -> Plan:
    return Plan(default=Dense(**settings))


def _sla_global(**settings: Any) -> Plan:
    return Plan((Rule("global", SLA(**settings)),))


def _sla_paper(**settings: Any) -> Plan:
    as_coded = {"routing": "token", "keep": 0.3, "protect": False}
    return Plan(default=SLA(**as_coded | settings))


PRESETS: Mapping[str, Callable[..., Plan]] = MappingProxyType(
    {"dense": _dense, "sla_global": _sla_global, "sla_paper": _sla_paper}
)
DEFAULT = "sla_global"


def plan(name: str = DEFAULT, **settings: Any) -> Plan:
    """The plan of that name.

    `dense`: softmax attention everywhere; what a teacher has.

    `sla_global`: SLA by blocks in the layers that attend over all views, dense elsewhere. These
    layers are where the time goes when views are many; others have short sequences.

    `sla_paper`: Lite3R as published (arXiv 2605.11354; lite3r_kit/sla.py), SLA at every site of the
    model: 24 patch, 24 frame, 24 global and 4 camera layers of VGGT, 360,448 parameters. As there
    it keeps 0.3 of the keys of every query, and at least one, which is what the camera layers have
    for 2 or 3 views; no token is protected. Its time and memory grow with the square of the tokens;
    `plan("sla_paper", routing="block")` has blocks at the same sites.

    Args:
        name: one of `PRESETS`.
        **settings: of the strategy, `Dense` or `SLA`, in place of the preset's.

    Raises:
        ValueError: an unknown name, or a setting that is unknown or out of range.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown plan {name!r}, there are: {', '.join(PRESETS)}")
    try:
        return PRESETS[name](**settings)
    except TypeError as error:
        raise ValueError(f"plan {name!r}: {error}") from None
