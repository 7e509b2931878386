"""Finds the matrix products of a built model, by path, and the precision rule of each."""

import difflib
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from flax import nnx

from lite3r_jax.errors import InputError
from lite3r_jax.precision.rules import CAMERA_OUTPUTS, PrecisionRule, RuleDotGeneral


@dataclass(frozen=True)
class Site:
    """A matrix product of a model and the rule that it gets from a list of rules.

    Attributes:
        path: path of the Linear or the matrix in the model, "/" between the parts.
        layers: number of upstream Linears that are stacked here.
        rule: the first that fits, or None. It may say to leave the site in full precision.
    """

    path: str
    layers: int
    rule: PrecisionRule | None

    @property
    def wrapped(self) -> bool:
        """Whether the rule quantizes the site."""
        return self.rule is not None and not self.rule.full


def match(model: nnx.Module, rules: Sequence[PrecisionRule]) -> tuple[Site, ...]:
    """Lists all sites of a model, which may be abstract, each with the rule that it gets.

    Raises:
        InputError: a rule is no regular expression, matches no site, or only sites that rules
            before it match.
    """
    layers = {path: site.layers for path, site in find_places(model).items()}
    outputs = getattr(model, "camera_outputs", ())
    chosen: dict[str, PrecisionRule] = {}
    for rule in rules:
        if rule.path == CAMERA_OUTPUTS:
            matched = [path for path in layers if path in outputs]
        else:
            matched = [path for path in layers if path_matches(rule.path, path)]
        left = [path for path in matched if path not in chosen]
        if not left and not rule.optional:
            near = difflib.get_close_matches(rule.path, layers, 3, 0)
            raise InputError(
                f"precision rule {rule.path!r} finds "
                + ("only sites of rules before it; put it first" if matched else "no Linear")
                + f"; nearest are: {', '.join(near) or 'none, the model has no Linear'}"
            )
        chosen |= dict.fromkeys(left, rule)
    return tuple(Site(path, n, chosen.get(path)) for path, n in layers.items())


@dataclass(frozen=True)
class Place:
    """A Linear or a matrix inside a model, the module that multiplies by it, and its setter."""

    held: Any
    layers: int
    owner: Any
    put: Callable[[Any], None]

    @property
    def rule(self) -> PrecisionRule | None:
        """The rule by which the weight is quantized now, or None."""
        if isinstance(dot := self.owner.dot_general, RuleDotGeneral):
            return dot.rule
        return None if isinstance(self.held, nnx.Linear) else self.held.get_metadata("rule", None)

    @property
    def quantized(self) -> bool:
        """Whether a rule has been applied to the weight."""
        return self.rule is not None


def find_places(model: nnx.Module) -> dict[str, Place]:
    """Returns all matrix products of a model by path, sorted."""
    places = {}
    modules = dict(nnx.iter_modules(model))
    for path, module in modules.items():
        if isinstance(module, nnx.Linear):
            put = _setter(modules[path[:-1]], path[-1]) if path else _nowhere
            layers = _count_layers(module.kernel)
            places["/".join(map(str, path))] = Place(module, layers, module, put)
        for name in getattr(module, "matrices", ()):  # of an attention strategy
            if isinstance(matrix := getattr(module, name, None), nnx.Param):
                place = Place(matrix, _count_layers(matrix), module, _setter(module, name))
                places["/".join(map(str, (*path, name)))] = place
    return dict(sorted(places.items()))


def _setter(parent: Any, name: Any) -> Callable[[Any], None]:
    def put(value: Any) -> None:
        if isinstance(name, int):
            parent[name] = value
        else:
            setattr(parent, name, value)

    return put


def _nowhere(value: Any) -> None:
    raise ValueError("a Linear by itself cannot be replaced; put it into a module")


def _count_layers(matrix: nnx.Variable) -> int:
    return math.prod(np.shape(matrix.get_value())[:-2])


def path_matches(pattern: str, path: str) -> bool:
    """Returns whether a regular expression is found in a path (`re.search`).

    Raises:
        InputError: the pattern is no regular expression.
    """
    try:
        return re.search(pattern, path) is not None
    except re.error as error:
        raise InputError(f"precision: {pattern!r} is no regular expression ({error})") from error
