"""Registry of the attention strategies, and of the plans that their names stand for.

A strategy is a file of this folder and a row of `BUILT_IN`; one from outside calls `register`.
Everything that lists strategies (plans by name, files of students, the command line) asks here.
"""

import dataclasses
import re
import types
from collections.abc import Iterable, Mapping
from typing import TypeVar

from lite3r_jax.attention.dense import Dense
from lite3r_jax.attention.key_views import KeyViews
from lite3r_jax.attention.query_merging import MergeQueries
from lite3r_jax.attention.sla import SLA
from lite3r_jax.attention.spark3r import Spark3R
from lite3r_jax.attention.speed3r import Speed3R
from lite3r_jax.attention.strategy import ROLES, AttentionStrategy, Preset
from lite3r_jax.attention.token_merging import FastVGGT
from lite3r_jax.errors import InputError, unknown_name

BUILT_IN: tuple[type[AttentionStrategy], ...] = (
    Dense,
    SLA,
    Speed3R,
    Spark3R,
    KeyViews,
    MergeQueries,
    FastVGGT,
)

_STRATEGIES: dict[str, type[AttentionStrategy]] = {}
_C = TypeVar("_C", bound=type[AttentionStrategy])


def register(cls: _C) -> _C:
    """Registers a strategy by its name, and the names of plans that come with it.

    Args:
        cls: a frozen dataclass that derives from `AttentionStrategy`; each of its settings has a
            default, and its type is bool, int, float, str, a Literal of str, a strategy, a tuple of
            one of these, or one of these or None.

    Returns:
        The class, so that this can be a decorator.

    Raises:
        InputError: the class is not of that kind, or one of the names is taken.
    """
    name = getattr(cls, "name", "")
    where = f"attention strategy {name or cls.__name__!r}"
    if not (isinstance(name, str) and re.fullmatch(r"[a-z][a-z0-9_]*", name)):
        raise InputError(f"{where}: expected a `name` of lower-case letters, digits and _")
    if not issubclass(cls, AttentionStrategy) or "__dataclass_fields__" not in vars(cls):
        raise InputError(
            f"{where}: expected a frozen dataclass that derives from AttentionStrategy"
        )
    fields = dataclasses.fields(cls)
    needed = (dataclasses.MISSING, dataclasses.MISSING)
    if missing := [f.name for f in fields if (f.default, f.default_factory) == needed]:
        raise InputError(f"{where}: setting {missing[0]!r} has no default; give it one")
    if unknown := sorted(cls.runtime - {f.name for f in fields}):
        raise InputError(f"{where}: `runtime` names {unknown[0]!r}, which is no setting of it")
    taken = {plan: preset.strategy for plan, preset in plans_by_name().items()}
    for plan in _plans_of(cls):
        if plan in taken:
            raise InputError(
                f"{where}: the name {plan!r} is taken by {taken[plan].__module__}."
                f"{taken[plan].__qualname__}; choose another name"
            )
    _STRATEGIES[name] = cls
    return cls


def unregister(name: str) -> None:
    """Removes a strategy from the registry, so that its name is free; for tests and notebooks.

    Raises:
        InputError: there is none of that name.
    """
    del _STRATEGIES[strategy(name).name]


def strategies() -> Mapping[str, type[AttentionStrategy]]:
    """Returns all strategies by name, in the order in which they were registered."""
    return types.MappingProxyType(_STRATEGIES)


def strategy(name: str, where: str = "attention") -> type[AttentionStrategy]:
    """Returns the registered strategy of a name.

    Raises:
        InputError: there is none; with the nearest name.
    """
    return _STRATEGIES[known_name(name, _STRATEGIES, f"{where}: attention strategy")]


@dataclasses.dataclass(frozen=True)
class NamedPlan:
    """The plan that a name stands for: a strategy, its sites, and its changed settings."""

    strategy: type[AttentionStrategy]
    preset: Preset


def plans_by_name() -> dict[str, NamedPlan]:
    """Returns all plans that have a name, by name.

    A strategy has NAME, for all of its sites, NAME_ROLE for each role, and its presets.
    """
    return {
        plan: NamedPlan(cls, preset)
        for cls in _STRATEGIES.values()
        for plan, preset in _plans_of(cls).items()
    }


def named_plan(name: str, where: str = "attention") -> NamedPlan:
    """Returns the plan of a name.

    Raises:
        InputError: there is none, with the nearest name; the strategy is not made for that role.
    """
    known = plans_by_name()
    of, _, role = name.rpartition("_")
    if name not in known and of in _STRATEGIES and role in ROLES:
        roles = " and ".join(_STRATEGIES[of].roles)
        raise InputError(
            f"{where}: plan {name!r}: {of} is for {roles} attention, not for {role} attention; use"
            f" {of}"
        )
    return known[known_name(name, known, f"{where}: plan")]


def _plans_of(cls: type[AttentionStrategy]) -> dict[str, Preset]:
    whole = Preset(cls.roles[0] if len(cls.roles) == 1 else None)
    roles = {f"{cls.name}_{role}": Preset(role) for role in cls.roles}
    return {cls.name: whole, **roles, **cls.presets}


def known_name(name: str, known: Iterable[str], what: str) -> str:
    """Returns `name` if it is one of `known`.

    Raises:
        InputError: the name is not known; with the nearest.
    """
    if name not in (names := list(known)):
        raise unknown_name(what, name, names)
    return name


for _cls in BUILT_IN:
    register(_cls)
