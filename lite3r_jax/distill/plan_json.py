"""Plans as JSON, so that a student brings its own."""

import dataclasses
from typing import Any

from lite3r_jax.attention.core import ROLES, AttentionSpec, Plan, Rule
from lite3r_jax.attention.dense import Dense
from lite3r_jax.attention.sla import SLA

# Strategy -> (class, settings that say how it is computed and not what).
_STRATEGIES: dict[str, tuple[Any, frozenset[str]]] = {
    "dense": (Dense, frozenset({"implementation", "q_block", "k_block"})),
    "sla": (SLA, frozenset({"implementation", "batch_axis", "heads_axis"})),
}


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """What a plan computes; not by which kernel or on which devices."""
    rules = [
        {
            "role": rule.role,
            "layers": None if rule.layers is None else list(rule.layers),
            "spec": _spec_to_json(rule.spec),
        }
        for rule in plan.rules
    ]
    return {"rules": rules, "default": _spec_to_json(plan.default)}


def plan_from_json(data: Any) -> Plan:
    """Its inverse; kernels are chosen automatically.

    Raises:
        KeyError: something is missing.
        TypeError: a type is wrong, or a setting is unknown.
        ValueError: a name is unknown or a value out of range.
    """
    rules = []
    for rule in data["rules"]:
        if set(rule) != {"role", "layers", "spec"} or rule["role"] not in ROLES:
            raise ValueError(f"rule {rule}")
        layers = None if rule["layers"] is None else tuple(map(int, rule["layers"]))
        rules.append(Rule(rule["role"], _spec_from_json(rule["spec"]), layers))
    return Plan(tuple(rules), _spec_from_json(data["default"]))


def _spec_to_json(spec: AttentionSpec) -> dict[str, Any]:
    for name, (cls, how) in _STRATEGIES.items():
        if type(spec) is cls:
            values = {
                entry.name: getattr(spec, entry.name)
                for entry in dataclasses.fields(cls)
                if entry.name not in how
            }
            return {"strategy": name, **values}
    raise ValueError(f"{type(spec).__name__} has no JSON form")


def _spec_from_json(data: Any) -> AttentionSpec:
    values = dict(data)
    cls, how = _STRATEGIES[values.pop("strategy")]
    if wrong := how & values.keys():
        raise ValueError(f"settings {sorted(wrong)}")
    return cls(**values)
