"""Stores weights as float8 and scales: those that are not trained, or all weights."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from lite3r_jax.errors import InputError
from lite3r_jax.kernels.fp8.fused import OPERATOR, without_products
from lite3r_jax.kernels.fp8.quantize import quantize
from lite3r_jax.kernels.fp8.reference import FormatName, WeightFormat
from lite3r_jax.layers.fp8 import Fp8Linear
from lite3r_jax.precision.rules import Fp8Rule, PrecisionRule, RuleDotGeneral
from lite3r_jax.precision.simulate import apply_precision
from lite3r_jax.precision.sites import find_places, path_matches

Kind = Literal["fp8_weight_only", "fp8_dynamic"]


def freeze_quantized(model: Any, trainable: Sequence[str] = ()) -> Any:
    """Stores the weights that are not trained as float8 and scales.

    For a model of `apply_precision`. A Linear under an `Fp8Rule` with weights becomes an
    `Fp8Linear`, whose gradient flows to its input only; kernel paths change from `kernel` to
    `weight` and `weight_scale`, neither of which is an `nnx.Param`. Everything else stays: what is
    trained, `proj_lin`, and `Int4Rule`s are quantized at use as before.

    Memory: one byte per weight, against none for a student that shares its teacher's arrays and
    quantizes at use. So where the teacher is in memory as well, do not call this on a GPU, where
    quantizing at use costs little; call it where time counts (a CPU) or where there is no teacher.

    Args:
        model: from `apply_precision`; abstract will do. The model is not changed.
        trainable: regular expressions of the parameters that are trained, as for
            `training.parameters.split`.

    Raises:
        InputError: one of `trainable` is no regular expression.
    """
    model = nnx.merge(*nnx.split(model))
    for path, place in find_places(model).items():
        rule, trained = place.rule, any(path_matches(p, f"{path}/kernel") for p in trainable)
        linear = isinstance(place.held, nnx.Linear)
        if linear and not trained and isinstance(rule, Fp8Rule) and rule.weights is not None:
            place.put(_stored(place.held, rule, rule.activations, "xla"))
    return model


def deploy(
    model: Any,
    rules: Sequence[PrecisionRule],
    kind: Kind,
    *,
    count: int | None = None,
    rest: Any = None,
    implementation: str = "auto",
) -> Any:
    """Returns the model with its weights stored as float8, for inference only.

    The numbers are those of the simulation: what was trained is what runs. `proj_lin` keeps its
    dtype and has the values of its codes.

    Args:
        model: a built model in full precision; abstract will do. It is not changed.
        rules: as for `apply_precision`, but only `Fp8Rule`s. Their formats for gradients are not
            used.
        kind: "fp8_weight_only": activations stay as they are, whatever the rules say.
            "fp8_dynamic": activations get scales per token at run time, and float8 is multiplied by
            float8; on a CPU and on GPUs without such a product XLA converts, which is right but
            slow, and on TPUs without it, v5e and v5p, this is refused.
        count: as for `apply_precision`.
        rest: dtype in which parameters are held that no rule is for; None: as they are.
        implementation: of products with quantized activations, a name in
            `kernels.fp8.fused.OPERATOR`, or "auto", which is chosen for every call when it is
            traced, by device and sizes, and `layers.fp8.products` says what it is; another name
            holds everywhere, and a call that it cannot run is a ValueError.

    Raises:
        InputError: see `apply_precision`; an unknown kind, or one that this device has not; a rule
            that cannot be deployed.
        ValueError: an unknown implementation.
    """
    OPERATOR.check_name(implementation)
    if kind not in ("fp8_weight_only", "fp8_dynamic"):
        raise InputError(f"deploy: kind {kind!r} is not known; choose fp8_weight_only, fp8_dynamic")
    if kind == "fp8_dynamic" and (reason := without_products()):
        raise InputError(f"deploy: {reason}; choose fp8_weight_only or bfloat16")
    for rule in rules:
        if not isinstance(rule, Fp8Rule) or not (rule.full or rule.weights):
            raise InputError(f"deploy: {rule} stores no float8 weights; it can only be simulated")
    model = apply_precision(model, rules, count=count)
    for place in find_places(model).values():
        rule = place.rule
        if not isinstance(rule, Fp8Rule):
            continue
        activations = None if kind == "fp8_weight_only" else rule.activations
        if isinstance(place.held, nnx.Linear):
            place.put(_stored(place.held, rule, activations, implementation))
        else:
            metadata = {k: v for k, v in place.held.get_metadata().items() if k != "rule"}
            matrix = _compute(jax.jit(rule.matrix), place.held.get_value())
            place.put(nnx.Param(matrix, **metadata))
            inputs = replace(rule, weights=None) if activations else None
            place.owner.dot_general = inputs and RuleDotGeneral(inputs)
    if rest is not None:
        graph, held, others = nnx.split(model, nnx.Param, ...)
        cast = partial(_compute, lambda x: x.astype(rest))
        model = nnx.merge(graph, jax.tree.map(cast, held), others)
    return model


def _stored(
    linear: nnx.Linear, rule: Fp8Rule, activations: FormatName | None, implementation: str
) -> Fp8Linear:
    """Builds the float8 module that takes the place of a Linear."""
    assert rule.weights is not None
    axis = -1 if rule.scale == "row" else (-2, -1)
    kernel = linear.kernel.get_value()
    codes, scale = _compute(partial(_codes, form=rule.weights, axis=axis), kernel)
    return Fp8Linear(
        codes,
        scale,
        linear,
        weights=rule.weights,
        activations=activations,
        gradients=rule.gradients,
        granularity=rule.scale,
        implementation=implementation,
    )


@partial(jax.jit, static_argnames=("form", "axis"))  # compiled for a shape, not for a layer
def _codes(kernel: jax.Array, form: WeightFormat, axis: Any) -> tuple[jax.Array, jax.Array]:
    codes, scale = quantize(jnp.swapaxes(kernel, -1, -2), form, axis)
    return codes, scale[..., 0]


def _compute(function: Callable[..., Any], value: Any) -> Any:
    """Returns function(value), or the shapes of the result where `value` is only a shape."""
    if isinstance(value, jax.ShapeDtypeStruct):
        return jax.eval_shape(function, value)
    return function(value)
