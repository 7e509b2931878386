"""The variants of a model in evaluations and benchmarks: attention x precision."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import jax.numpy as jnp

from lite3r_jax.attention.plan import Plan
from lite3r_jax.attention.presets import (
    change_plan,
    parse_plan,
    plan_name,
    plan_names,
    split_plans,
)
from lite3r_jax.attention.registry import named_plan
from lite3r_jax.attention.settings import parse_call, parse_settings
from lite3r_jax.deploy.checkpoint import deployed_rules
from lite3r_jax.deploy.manifest import Deployment, find_deployment
from lite3r_jax.distillation.checkpoint import read_student
from lite3r_jax.errors import InputError
from lite3r_jax.models import ModelSpec, Precision, check_model

STUDENT, UNTRAINED = "student", "untrained"
REFINE = "refine"
PRECISION = ("float32", "bfloat16", "fp8_weight_only", "fp8_dynamic")
HEADS = ("camera", "depth")


@dataclass(frozen=True)
class Variant:
    """A variant of a model: its attention and precision, and whether predictions are refined.

    Attributes:
        attention: a plan as text, see `attention.presets.parse_plan`; or student: that of a
            distilled student, or student(SETTING=VALUE,...) with other adjustable settings
            (`AttentionStrategy.adjustable`); or untrained: that of the same student before its
            first step. Plans other than dense take the teacher's weights as they are, too: the
            parameters that they add have their initial values and are untrained.
        precision: dtype of weights and compute, or a kind of `precision.deploy`.
        refine: whether predictions are refined, see `evaluation.refined`.
    """

    attention: str
    precision: str
    refine: bool = False

    @property
    def name(self) -> str:
        """Name of the variant: ATTENTION-PRECISION, and +refine if predictions are refined."""
        return f"{self.attention}-{self.precision}" + (f"+{REFINE}" if self.refine else "")

    @property
    def of_student(self) -> bool:
        """Whether the variant needs a distilled student."""
        return self.attention.partition("(")[0] in (STUDENT, UNTRAINED)


def parse_variants(
    text: str,
    student: str = "",
    where: str = "evaluate.variants",
    deployment: Deployment | None = None,
    *,
    refine: bool = False,
) -> tuple[Variant, ...]:
    """Parses variants, ATTENTION-PRECISION each, with commas between.

    ATTENTION is student, untrained, or a plan such as dense or sla_global(keep=0.1); PRECISION is
    float32, bfloat16, fp8_weight_only or fp8_dynamic. With +refine behind it predictions are
    refined.

    Args:
        text: the variants.
        student: folder of the student; needed by the variants student and untrained.
        where: name of the setting, for messages.
        deployment: the weights, if they are a deployed model, which is one variant and no other.
        refine: whether there may be variants with +refine.

    Raises:
        InputError: an unknown variant, one twice, none at all, or no student; another variant than
            that of the deployed model.
    """
    variants = []
    for name in split_plans(text):
        attention, _, precision = name.rpartition("-")
        precision, plus, suffix = precision.partition("+")
        if plus and not (refine and suffix == REFINE):
            behind = f"+{REFINE} or nothing" if refine else "nothing"
            raise InputError(f"{where}: expected {behind} behind {precision}, got {name!r}")
        if not attention or precision not in PRECISION:
            known = ", ".join((*plan_names(), STUDENT, UNTRAINED))
            raise InputError(
                f"{where}: expected ATTENTION-PRECISION of {known} and {', '.join(PRECISION)},"
                f" got {name!r}"
            )
        if attention.startswith(f"{STUDENT}("):
            attention = f"{STUDENT}({parse_call(attention, where)[1]})"
        elif attention not in (STUDENT, UNTRAINED):
            # the whole name: it says what is kept, and names a folder
            attention = plan_name(parse_plan(attention, where))
        if deployment is not None and f"{attention}-{precision}" != deployment.variant:
            raise InputError(
                f"{where}: the weights are a deployed model, {deployment.variant}, which cannot be"
                f" {name!r}; set {where}={deployment.variant}"
            )
        chosen = Variant(attention, precision, bool(plus))
        if chosen.of_student and not student and deployment is None:
            raise InputError(f"{where.rpartition('.')[0]}.student: not set, but {name!r} needs it")
        variants.append(chosen)
    if not variants or len(set(variants)) < len(variants):
        raise InputError(f"{where}: expected at least one variant and each once, got {text!r}")
    return tuple(variants)


def held_dtype(variant: Variant) -> Any:
    """Returns the dtype that weights are loaded in, from which float8 weights are rounded once."""
    return jnp.dtype("float32" if variant.precision.startswith("fp8") else variant.precision)


def spec_of(
    variant: Variant, weights: str | Path, student: str = "", *, dtype: Any = None
) -> ModelSpec:
    """Returns the `ModelSpec` of a variant; arguments are as for `build_variant`.

    Raises:
        InputError: there is no such student.
    """
    low = variant.precision.startswith("fp8")
    compute = dtype if low else None
    if find_deployment(Path(weights)) is not None:
        return ModelSpec(weights, dtype=compute)
    precision = cast(Precision, variant.precision)
    if variant.attention == STUDENT:
        return ModelSpec(weights, student, precision=precision, dtype=compute)
    if variant.attention.startswith(STUDENT):
        plan = _adjusted(variant.attention, student)
        return ModelSpec(weights, student, plan, precision, dtype=compute)
    if variant.attention == UNTRAINED:
        made = read_student(Path(student))[0]
        rules = deployed_rules(made)
        return ModelSpec(weights, "", made.plan, precision, rules, dtype=compute)
    return ModelSpec(weights, "", variant.attention, precision, dtype=compute)


def _adjusted(attention: str, student: str) -> Plan:
    """Returns the plan of a student, changed by the settings in student(SETTING=VALUE,...).

    Raises:
        InputError: settings that it does not have, or plans of several parts.
    """
    where = f"variant {attention}"
    before = plan_name(read_student(Path(student))[0].plan)
    strategy = named_plan(parse_call(before, where)[0], where).strategy
    settings = parse_settings(strategy, parse_call(attention, where)[1], where)
    return parse_plan(change_plan(before, **settings), where)


def build_variant(
    variant: Variant, weights: str | Path, student: str = "", *, dtype: Any = None
) -> Any:
    """Builds the model of a variant, with camera and depth head.

    Args:
        variant: which.
        weights: of the teacher, as for `load`, or a deployed model of this variant.
        student: folder of the student; not for a deployed model, which is complete.
        dtype: compute dtype of variants with float8 weights; None: bfloat16.

    Raises:
        InputError: weights or student cannot be read, or do not fit together.
    """
    return check_model(spec_of(variant, weights, student, dtype=dtype)).build(HEADS)
