"""Attention plans by name and as one line of text, the form that every entry point takes.

    PLAN  = PART { "+" PART }       sla_global(keep=0.1)+sla_frame
    PART  = NAME [ "(" SETTING "=" VALUE { "," SETTING "=" VALUE } ")" ]

NAME is that of a strategy, for every site; STRATEGY_ROLE, for the sites of a role (patch, frame,
global, camera, head) with dense attention elsewhere; or a preset of a strategy. SETTING is one of
the strategy's, or `layers`, numbers of layers of the role: `sla_global(layers=[0-3,7])`. VALUE is a
number, true, false, none, a word, a list in brackets, or another strategy with its settings. Of
several parts the first that matches a site counts. A plan may also be given as JSON, or as
the path of a .json file with it.
"""

import json
import re
from pathlib import Path
from typing import Any

from lite3r_jax.attention.dense import Dense
from lite3r_jax.attention.plan import Plan, Rule, plan_from_json
from lite3r_jax.attention.registry import named_plan, plans_by_name
from lite3r_jax.attention.settings import (
    call_text,
    make,
    parse_call,
    parse_settings,
    split,
    told,
)
from lite3r_jax.attention.strategy import AttentionStrategy, Role
from lite3r_jax.errors import InputError

DEFAULT = "sla_global"


def plan_names() -> tuple[str, ...]:
    """Returns the names of all plans, for messages and help."""
    return tuple(plans_by_name())


def plan(name: str = DEFAULT, **settings: Any) -> Plan:
    """Returns the attention plan of a name, with other settings where they are given.

    `dense`: softmax attention everywhere; what a teacher has.

    `sla_global`: SLA by blocks in the layers that attend over all views, dense elsewhere. These
    layers are where the time goes when views are many; others have short sequences.

    `sla_paper`: Lite3R as published (arXiv 2605.11354; lite3r_kit/sla.py), SLA at every site of the
    model: 24 patch, 24 frame, 24 global and 4 camera layers of VGGT, 360,448 parameters. As there
    it keeps 0.3 of the keys of every query, and at least one, which is what the camera layers have
    for 2 or 3 views; no token is protected. Its time and memory grow with the square of the tokens;
    `plan("sla_paper", routing="block")` has blocks at the same sites.

    Args:
        name: one of `plan_names()`.
        **settings: of the strategy, in place of the preset's; `layers`, a sequence of numbers, for
            plans of a role.

    Raises:
        InputError: an unknown name or setting, with the nearest; or a value that is out of range.
    """
    return _plan(name, settings, "attention plan")


def parse_plan(text: str, where: str = "attention plan") -> Plan:
    """Parses the text of a plan, in the form that this module describes.

    Args:
        text: `sla_global(keep=0.1)`, or JSON of a plan, or the path of a .json file with it.
        where: name of the setting, for messages.

    Raises:
        InputError: the text is not of that form; unknown names, with the nearest; values out of
            range; a file that cannot be read.
    """
    text = text.strip()
    if text.startswith("{"):
        return plan_from_json(_json(text, where), where)
    if re.fullmatch(r"[^()]+\.json", text):
        try:
            content = Path(text).read_text()
        except (OSError, ValueError) as error:  # ValueError: not UTF-8, or no path
            raise InputError(f"{where}: {text} cannot be read ({error})") from error
        return plan_from_json(_json(content, text), text)
    plans = [_part(part, where) for part in split(text, "+")]
    if not plans:
        raise InputError(f"{where}: expected a plan such as {DEFAULT}, got {text!r}")
    whole = [p.default for p in plans if not p.rules]
    if len(whole) > 1:
        raise InputError(f"{where}: {text!r} has two strategies for every site; leave out one")
    return Plan(tuple(rule for p in plans for rule in p.rules), *whole)


def change_plan(text: str, *, name: str | None = None, **settings: Any) -> str:
    """Returns the text of a plan of one part, with other settings or another name.

    Args:
        text: a plan of one part; settings of it that are not changed stay.
        name: another name for it.
        **settings: as the strategy has them.

    Raises:
        InputError: several parts, or unknown names.
    """
    before, inner = parse_call(text, "attention plan")
    name = before if name is None else name
    cls = named_plan(name).strategy
    return call_text(name, {**parse_settings(cls, inner, "attention plan"), **settings})


def split_plans(text: str) -> list[str]:
    """Splits a comma-separated list of plans, but not at the commas between settings.

    `dense-float32, sla_global(keep=0.1,block=32)-bfloat16` has two.
    """
    return split(text, ",")


def plan_name(plan: Plan) -> str:
    """Returns the shortest text that `parse_plan` reads as this plan, headline settings included.

    For `plan("sla_global")` it is sla_global(keep=0.3).

    Raises:
        InputError: a strategy is not registered, and so has no name.
    """
    parts = []
    for rule in plan.rules:
        layers = {} if rule.layers is None else {"layers": rule.layers}
        parts.append(_shortest(rule.spec, rule.role, layers))
    if plan.default != Dense() or not parts:
        parts.append(_shortest(plan.default, None, {}))
    return "+".join(parts)


def _shortest(spec: AttentionStrategy, role: Role | None, more: dict[str, Any]) -> str:
    texts = [
        call_text(name, told(spec, named.preset.settings) | more)
        for name, named in plans_by_name().items()
        if named.strategy is type(spec) and named.preset.role == role
    ]
    if not texts:
        raise InputError(f"attention strategy {type(spec).__qualname__}: not registered")
    return min(texts, key=len)


def _part(text: str, where: str) -> Plan:
    name, inner = parse_call(text, where)
    layers, settings = {}, []
    for entry in split(inner, ","):
        key, _, value = entry.partition("=")
        if key.strip() == "layers":
            layers = {"layers": _layers(value.strip(), where)}
        else:
            settings.append(entry)
    cls = named_plan(name, where).strategy
    return _plan(name, parse_settings(cls, ",".join(settings), where) | layers, where)


def _plan(name: str, settings: dict[str, Any], where: str) -> Plan:
    named = named_plan(name, where)
    settings, layers = dict(settings), settings.get("layers")
    settings.pop("layers", None)
    spec = make(named.strategy, {**named.preset.settings, **settings}, f"{where} {name!r}")
    if named.preset.role is not None:
        return Plan((Rule(named.preset.role, spec, None if layers is None else tuple(layers)),))
    if layers is not None:
        raise InputError(
            f"{where} {name!r}: layers are those of a role; choose from"
            f" {', '.join(n for n, p in plans_by_name().items() if p.preset.role)}"
        )
    return Plan(default=spec)


def _layers(text: str, where: str) -> tuple[int, ...]:
    """Parses numbers and ranges of layers: [0-3,7] gives (0, 1, 2, 3, 7)."""
    layers: list[int] = []
    for entry in split(text[1:-1], ",") if re.fullmatch(r"\[.*\]", text) else [text]:
        match = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", entry)
        if not match or int(match[2] or match[1]) < int(match[1]):
            raise InputError(
                f"{where}: layers: expected numbers and ranges such as [0-3,7], got {text!r}"
            )
        layers += range(int(match[1]), int(match[2] or match[1]) + 1)
    return tuple(layers)


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not JSON ({error})") from error
