"""Simulates quantization on a built model, whose parameters stay as they are."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx

from lite3r_jax.errors import InputError
from lite3r_jax.precision.rules import PrecisionRule, RuleDotGeneral
from lite3r_jax.precision.sites import find_places, match


def apply_precision(model: Any, rules: Sequence[PrecisionRule], *, count: int | None = None) -> Any:
    """Returns the model with simulated quantization; its parameters stay what they are.

    The parameters keep path, shape, dtype and value, so checkpoints, weight maps and selectors of
    trained parameters do not change. Quantization happens at every use, from the parameter as it is
    held, and in float32.

    Args:
        model: a built model, before `nnx.split`; abstract will do. It is not changed; the result
            shares its arrays.
        rules: the first one that matches a site counts; see `preset`. An empty list gives
            an equal model.
        count: how many Linears have to be quantized, stacked layers counted one by one; None if it
            does not matter.

    Raises:
        InputError: see `match`; one scale for all of the input of `proj_lin`; another count; a
            model that is quantized already.
    """
    sites = match(model, rules)
    total = sum(site.layers for site in sites if site.wrapped)
    if count is not None and total != count:
        raise InputError(
            f"precision: the rules quantize {total} Linears, expected {count}; correct the rules or"
            " the count"
        )
    model = nnx.merge(*nnx.split(model))
    places = find_places(model)
    for site in sites:
        rule, place = site.rule, places[site.path]
        if rule is None or rule.full:
            continue
        if place.quantized:
            raise InputError(
                f"precision: {site.path} is quantized already; start from the model as it was built"
            )
        if isinstance(place.held, nnx.Linear):
            place.held.promote_dtype = _promote
            place.held.dot_general = RuleDotGeneral(rule)
            continue
        if rule.activations is None:
            old = place.held
            place.put(QuantizedParam(old.get_value(), **old.get_metadata(), rule=rule))
            continue
        if rule.joins_tokens:
            raise InputError(
                f"precision rule {rule.path!r}: the heads of {site.path} are computed in turns and"
                " cannot share a scale; use scale='row' or activations=None there"
            )
        place.owner.dot_general = RuleDotGeneral(rule)
    return model


class QuantizedParam(nnx.Param):
    """A matrix that its module reads quantized: `param[...]`, with a straight-through gradient.

    `get_value` gives what is stored and trained. Metadata: rule.
    """

    def __getitem__(self, key: Any) -> Any:
        """Returns the quantized value, or a part of it."""
        value = self.get_metadata("rule").matrix(self.get_value())
        return value if key is Ellipsis else value[key]


def _promote(arrays: Any, /, *, dtype: Any = None, inexact: bool = True) -> Any:
    """Promotes dtypes for a Linear, without rounding the kernel before it is quantized."""
    del inexact
    x, kernel, bias = arrays
    dtype = jnp.result_type(x, kernel) if dtype is None else dtype
    return jnp.asarray(x, dtype), kernel, None if bias is None else jnp.asarray(bias, dtype)
