"""Plans assign a strategy to every attention site of a backbone; cores are built from them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, cast

from flax import nnx

from lite3r_jax.attention.dense import Dense
from lite3r_jax.attention.registry import known_name
from lite3r_jax.attention.settings import from_json, to_json
from lite3r_jax.attention.strategy import ROLES, AttentionCore, AttentionStrategy, Role
from lite3r_jax.errors import InputError


@dataclass(frozen=True)
class Rule:
    """Gives one strategy to the attention layers that it matches.

    Attributes:
        role: role of the sites.
        spec: their strategy.
        layers: layer indices within the role; None means all of them.
    """

    role: Role
    spec: AttentionStrategy
    layers: tuple[int, ...] | None = None

    def matches(self, role: Role, layer: int) -> bool:
        """Returns whether this rule applies to a layer of a role."""
        return role == self.role and (self.layers is None or layer in self.layers)


@dataclass(frozen=True)
class Plan:
    """Strategy of every attention site of a backbone: the first matching rule wins."""

    rules: tuple[Rule, ...] = ()
    default: AttentionStrategy = field(default=Dense())

    def at(self, role: Role, layer: int) -> AttentionStrategy:
        """Returns the strategy of one layer of a role."""
        for rule in self.rules:
            if rule.matches(role, layer):
                return rule.spec
        return self.default

    def specs(
        self, role: Role, depth: int, views: int | None = None
    ) -> tuple[AttentionStrategy, ...]:
        """Returns the strategies of all `depth` layers of a role, resolved if `views` is given."""
        specs = tuple(self.at(role, layer) for layer in range(depth))
        return specs if views is None else resolve(specs, role, views)

    def describe(
        self,
        sites: Mapping[Role, int],
        dtypes: Mapping[Role, Any],
        head_dims: Mapping[Role, int],
    ) -> dict[str, str]:
        """Describes the strategies and kernels of the layers of every role, for reports.

        Args:
            sites: number of layers of each role.
            dtypes: compute dtype of each role.
            head_dims: size of a head of each role.

        Returns:
            {role: "strategy and kernel x layers, ..."}.
        """
        by_role = {}
        for role, depth in sites.items():
            parts = [
                f"{run.specs[0].describe(dtypes[role], head_dims[role])} x {run.stop - run.start}"
                for run in runs(self.specs(role, depth))
            ]
            by_role[role] = ", ".join(parts)
        return by_role

    def check(self, sites: dict[Role, int]) -> None:
        """Refuses rules that match nothing, and strategies that do not fit their sites.

        Args:
            sites: number of layers of each role that the backbone has.

        Raises:
            ValueError: a rule matches no site, or names a layer that does not exist.
            InputError: a strategy is not made for a role, or its settings not for the backbone.
        """
        for rule in self.rules:
            _check_rule(rule, sites)
        for role, depth in sites.items():
            for spec in dict.fromkeys(self.specs(role, depth)):
                if role not in spec.roles:
                    raise InputError(
                        f"attention plan: {spec.name} is for {' and '.join(spec.roles)} attention,"
                        f" not for {role} attention; use {spec.name}_{spec.roles[0]}"
                    )
                try:
                    spec.check(depth)
                except ValueError as error:
                    raise InputError(f"attention plan: {spec.name}: {error}") from error


def _check_rule(rule: Rule, sites: Mapping[Role, int]) -> None:
    depth = sites.get(rule.role, 0)
    wrong = [i for i in rule.layers or () if not 0 <= i < depth]
    if depth and not wrong and rule.layers != ():
        return
    asked = f"{rule.spec.name} is for {rule.role} attention"
    have = ", ".join(f"{role}: {n}" for role, n in sites.items())
    if not depth:
        raise ValueError(f"plan: {asked}, and this backbone has none (its layers are {have})")
    named = f"layers {wrong}" if wrong else "no layer"
    raise ValueError(
        f"plan: {asked}, {named}, but those of this backbone are 0 to {depth - 1}; a plan fits the"
        " backbone that it was made for, give layers of this one"
    )


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """Returns a plan as JSON: what it computes, not by which kernel or on which devices.

    Raises:
        InputError: a strategy is not registered.
    """
    rules = [
        {
            "role": rule.role,
            "layers": None if rule.layers is None else list(rule.layers),
            "spec": to_json(rule.spec),
        }
        for rule in plan.rules
    ]
    return {"rules": rules, "default": to_json(plan.default)}


def plan_from_json(data: Any, where: str = "attention plan") -> Plan:
    """Builds a plan from the JSON of `plan_to_json`; runtime settings have their defaults.

    Args:
        data: what `json.loads` gave.
        where: file or setting, for messages.

    Raises:
        InputError: the JSON is not of that form, or has unknown names; with the nearest.
    """
    if not isinstance(data, dict) or set(data) != {"rules", "default"}:
        raise InputError(f'{where}: expected an object with "rules" and "default", got {data!r}')
    rules, listed = [], cast(list[Any], data["rules"])
    if not isinstance(listed, list):
        raise InputError(f"{where}: rules: expected a list, got {listed!r}")
    for number, rule in enumerate(listed):
        here = f"{where}: rules[{number}]"
        if not isinstance(rule, dict) or set(rule) != {"role", "layers", "spec"}:
            raise InputError(f'{here}: expected "role", "layers" and "spec", got {rule!r}')
        role, layers = known_name(rule["role"], ROLES, f"{here}: role"), rule["layers"]
        if layers is not None:
            if not isinstance(layers, list) or any(type(layer) is not int for layer in layers):
                raise InputError(f"{here}.layers: expected a list of integers, or null for all")
            layers = tuple(layers)
        rules.append(Rule(cast(Role, role), from_json(rule["spec"], f"{here}.spec"), layers))
    return Plan(tuple(rules), from_json(data["default"], f"{where}: default"))


def strategies_of(plan: Plan) -> tuple[AttentionStrategy, ...]:
    """Returns all strategies of a plan, with those that are nested in others."""

    def with_inner(spec: AttentionStrategy) -> list[AttentionStrategy]:
        inner = (getattr(spec, f.name) for f in fields(spec))
        return [
            spec,
            *(y for x in inner if isinstance(x, AttentionStrategy) for y in with_inner(x)),
        ]

    specs = (plan.default, *(rule.spec for rule in plan.rules))
    return tuple(inner for spec in specs for inner in with_inner(spec))


def trained_alike(one: Plan, other: Plan) -> bool:
    """Returns whether parameters that were trained with one plan fit the other.

    They do where the plans differ in runtime and adjustable settings at most.
    """

    def fixed(spec: AttentionStrategy) -> AttentionStrategy:
        changes: dict[str, Any] = {}
        for entry in fields(spec):
            if entry.name in spec.adjustable:
                changes[entry.name] = entry.default
            elif isinstance(inner := getattr(spec, entry.name), AttentionStrategy):
                changes[entry.name] = fixed(inner)
        return replace(spec.model(), **changes)

    def of(plan: Plan) -> Plan:
        rules = tuple(replace(rule, spec=fixed(rule.spec)) for rule in plan.rules)
        return Plan(rules, fixed(plan.default))

    return of(one) == of(other)


def resolve(
    specs: Sequence[AttentionStrategy], role: Role, views: int, first: int = 0, depth: int = 0
) -> tuple[AttentionStrategy, ...]:
    """Returns the strategies of consecutive layers as their schedules set them for a scene.

    Args:
        specs: strategies of consecutive layers of a role.
        role: role of these layers.
        views: S of the scene.
        first: number of the first of these layers.
        depth: layers of the role in all; 0 if these are all.
    """
    depth = depth or len(specs)
    return tuple(spec.resolve(role, first + i, depth, views) for i, spec in enumerate(specs))


@dataclass(frozen=True)
class Run:
    """Consecutive layers [start, stop) with the same strategies."""

    start: int
    stop: int
    specs: tuple[AttentionStrategy, ...]


def runs(*specs: Sequence[AttentionStrategy]) -> tuple[Run, ...]:
    """Splits layers into runs over which every given role keeps its strategy.

    Args:
        *specs: for each role executed side by side, the strategies of its layers.

    Returns:
        Runs in order; their `specs` hold one strategy per role.
    """
    per_layer = list(zip(*specs, strict=True))
    merged: list[Run] = []
    for i, here in enumerate(per_layer):
        if merged and merged[-1].specs == here:
            merged[-1] = Run(merged[-1].start, i + 1, here)
        else:
            merged.append(Run(i, i + 1, here))
    return tuple(merged)


def build_cores(
    plan_runs: Sequence[Run],
    role: int,
    heads: int,
    head_dim: int,
    param_dtype: Any,
    rngs: nnx.Rngs,
) -> nnx.List:
    """Builds a stacked core for every run, its parameters with a leading axis of stop - start.

    Args:
        plan_runs: result of `runs`.
        role: position of the role in `Run.specs`.
        heads: N of these sites.
        head_dim: D of these sites.
        param_dtype: dtype of the strategies' own parameters.
        rngs: random streams; each layer gets its own.
    """

    def stacked(run: Run) -> AttentionCore:
        def make(layer_rngs: nnx.Rngs) -> AttentionCore:
            return run.specs[role].build(
                heads=heads, head_dim=head_dim, param_dtype=param_dtype, rngs=layer_rngs
            )

        return nnx.vmap(make)(rngs.split(run.stop - run.start))

    return nnx.List([stacked(run) for run in plan_runs])
