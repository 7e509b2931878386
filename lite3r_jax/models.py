"""The description of a model, its check before weights are read, and its construction.

`check_model(ModelSpec("WEIGHTS", student="RUN/student", precision="fp8_dynamic")).build()`
"""

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lite3r_jax.attention.plan import Plan, strategies_of, trained_alike
from lite3r_jax.attention.presets import parse_plan, plan_name
from lite3r_jax.backbones.base import get_backbone
from lite3r_jax.backbones.model import count_parameters
from lite3r_jax.deploy.checkpoint import deployed_rules, load_deployed
from lite3r_jax.deploy.manifest import Deployment, find_deployment
from lite3r_jax.distillation.checkpoint import MANIFEST as STUDENT_MANIFEST
from lite3r_jax.distillation.checkpoint import (
    StudentManifest,
    check_teacher,
    load_student,
    read_student,
)
from lite3r_jax.errors import InputError, unknown_name
from lite3r_jax.kernels.operators import OPERATORS
from lite3r_jax.kernels.registry import decisions
from lite3r_jax.kernels.self_check import check_model_kernels
from lite3r_jax.layers.fp8 import describe_products
from lite3r_jax.precision import Kind, apply_precision, deploy, preset
from lite3r_jax.weights import strict_json
from lite3r_jax.weights.load import load, resolve
from lite3r_jax.weights.manifest import CONFIG_FILE, Manifest, read_manifest
from lite3r_jax.weights.safetensors_writer import hash_file

Precision = Literal["", "float32", "bfloat16", "simulated", "fp8_weight_only", "fp8_dynamic"]
PRECISIONS: tuple[str, ...] = tuple(filter(None, get_args(Precision)))
_CONTRADICTION = (
    "student, attention: a student has the attention that it was trained with{}; leave out one of"
    " them"
)


@dataclass(frozen=True)
class AttentionChoice:
    """Which attention a model has in place of that of its weights.

    Attributes:
        plan: as one line of text, see `attention.presets.parse_plan`: "sla_global(keep=0.1)"; ""
            for that of the weights, of the student or of the deployed model: dense attention but
            where something else was trained.
    """

    plan: str = ""


@dataclass(frozen=True)
class ModelSpec:
    """Which model to build: its weights, student, attention and precision.

    Attributes:
        weights: a directory of converted weights or of a deployed model, a hub repository such as
            "facebook/VGGT-1B", or "vggt-tiny", the small model that comes with the package.
        student: folder of a distilled student of these weights; with an `attention` that differs
            from its own in what may be adjusted after training.
        attention: plan of the attention, or its text as in `AttentionChoice`. Parameters that its
            strategies add and the weights are without have their initial values: they are
            untrained.
        precision: of the matrix products and the weights. "float32" or "bfloat16": both are of that
            dtype. "fp8_weight_only" or "fp8_dynamic": the weights that `rules` name are float8, see
            `precision.deploy`. "simulated": they are rounded where they are used, as in training.
            "": as `dtype` and `param_dtype` say.
        rules: what becomes float8, a name of `precision.preset`; "" for what the student was
            trained under, or "default".
        dtype: compute dtype, float32 or bfloat16; None: that of the precision, which for float8
            is bfloat16 and for "" float32; "auto": likewise, but for "" bfloat16 on a GPU.
        param_dtype: of the parameters; None: as they are stored. Not with a precision.
        seed: of the initial values of parameters that are no part of the weights.
        cache_dir: where converted weights of a hub repository are kept; None: the user's cache.
    """

    weights: str | os.PathLike[str]
    student: str | os.PathLike[str] = ""
    attention: str | Plan = ""
    precision: Precision = ""
    rules: str = ""
    dtype: Any = None
    param_dtype: Any = None
    seed: int = 0
    cache_dir: str | os.PathLike[str] | None = None


@dataclass(frozen=True)
class CheckedModel:
    """A model that can be built: all but its weights was read, and fits together.

    Attributes:
        spec: what was asked for.
        directory: of the weights.
        manifest: of the weights, or of the deployed model.
        student: manifest of the student, if it is one.
        plan: its attention.
        rules: name of the rules for what is float8 or simulated.
    """

    spec: ModelSpec
    directory: Path
    manifest: Manifest | Deployment
    student: StudentManifest | None
    plan: Plan
    rules: str
    _config: dict[str, Any] = field(repr=False)

    @property
    def name(self) -> str:
        """Name of the model, ATTENTION-PRECISION, as in variants of evaluations and benchmarks."""
        if isinstance(self.manifest, Deployment):
            return self.manifest.variant
        precision = self.spec.precision or str(np.dtype(self.dtype))
        return f"{plan_name(self.plan) if self.student is None else 'student'}-{precision}"

    @property
    def config(self) -> Any:
        """The config of the backbone."""
        return get_backbone(self.manifest.backbone).config_from_json(dict(self._config))

    @property
    def dtype(self) -> Any:
        """The compute dtype."""
        if self.spec.precision in ("float32", "bfloat16"):
            return jnp.dtype(self.spec.precision)
        if self.spec.dtype not in (None, "auto"):
            return jnp.dtype(self.spec.dtype)
        if self.spec.precision.startswith("fp8") or isinstance(self.manifest, Deployment):
            return jnp.dtype(jnp.bfloat16)
        return auto_dtype() if self.spec.dtype == "auto" else jnp.dtype(jnp.float32)

    @property
    def param_dtype(self) -> Any:
        """The dtype that weights are loaded in; what becomes float8 is rounded once, from float32.

        None: as they are stored.
        """
        if self.spec.precision.startswith("fp8"):
            return jnp.dtype(jnp.float32)
        if self.spec.precision in ("float32", "bfloat16"):
            return jnp.dtype(self.spec.precision)
        return self.spec.param_dtype

    @property
    def held_dtype(self) -> Any:
        """The dtype that estimates of memory take for parameters: `param_dtype`, else float32."""
        return jnp.dtype(self.param_dtype or jnp.float32)

    def refuse_untrained(self) -> None:
        """Raises if the attention has untrained parameters; for entry points that give results.

        Raises:
            InputError: with what to do.
        """
        if isinstance(self.manifest, Deployment) or self.student is not None:
            return
        own = get_backbone(self.manifest.backbone).own_plan(self.config)
        for strategy in strategies_of(self.plan):
            if strategy.needs_training and not trained_alike(self.plan, own):
                raise InputError(
                    f"attention.plan: {strategy.name} has parameters that {self.spec.weights} is"
                    " without, and nothing has learned to use their first values; train a student,"
                    f' lite3r distill --weights {self.spec.weights} --plan "{plan_name(self.plan)}"'
                    " --output RUN, and give it as --student RUN/student"
                )

    def build(self, heads: Sequence[str] | None = None) -> Any:
        """Builds the model, with its weights.

        On a GPU the kernels that it would take are checked against their definitions first, once
        for the kind of device, jax, driver and version of the package; see
        `kernels.self_check.check_model_kernels`.

        Args:
            heads: heads to build; None for all that weights, student or deployed model have. Files
                of other heads are not read.

        Returns:
            The model (flax.nnx.Module), on the default device.

        Raises:
            InputError: a damaged, missing or extra file (named); heads that are not there; a plan
                with a rule that fits no site of the backbone; on a GPU, a kernel that was asked
                for by name and cannot run or fails its self-check.
        """
        if isinstance(self.manifest, Deployment):
            return _checked(load_deployed(self.directory, heads=heads, dtype=self.dtype))
        kinds: dict[str, Any] = {
            "heads": heads,
            "dtype": self.dtype,
            "param_dtype": self.param_dtype,
        }
        if self.student is not None:
            kinds["plan"] = self.plan
            model = load_student(self.spec.student, self.directory, simulate=False, **kinds)
        else:
            try:
                model = load(self.directory, plan=self.plan, seed=self.spec.seed, **kinds)
            except ValueError as error:
                if isinstance(error, InputError):
                    raise
                raise InputError(f"attention: {error}") from error
        if self.spec.precision == "simulated":
            model = apply_precision(model, preset(self.rules))
        if self.spec.precision.startswith("fp8"):
            kind = cast(Kind, self.spec.precision)
            model = deploy(model, preset(self.rules), kind, rest=self.dtype)
        return _checked(model)

    def facts(self) -> dict[str, Any]:
        """Returns names and hashes of the model, as far as they are known before it is built."""
        deployed = self.manifest if isinstance(self.manifest, Deployment) else None
        source = {
            name: record.sha256
            for name, record in getattr(self.manifest, "source_files", {}).items()
        }
        precision = deployed.kind if deployed else self.spec.precision
        low = precision.startswith(("fp8", "simulated"))
        return {
            "name": self.name,
            "backbone": self.manifest.backbone,
            "plan": plan_name(self.plan),
            "student": self._describe_student(),
            "precision": precision,
            "float8_rules": self.rules if low else None,
            "weights": {
                "name": str(self.spec.weights),
                "files": {name: r.sha256 for name, r in sorted(self.manifest.files.items())},
                "source": dict(deployed.teacher) if deployed else source,
                "repository": self.manifest.origin.repo,
                "license": self.manifest.origin.license,
            },
        }

    def identity(self) -> dict[str, Any]:
        """Returns `facts` with only the hashes of the weights, so that it is equal on all hosts."""
        facts = self.facts()
        return facts | {"weights": facts["weights"]["files"]}

    def describe(self, model: Any) -> dict[str, Any]:
        """Returns `facts` and what the built model shows (heads, dtypes, kernels), for reports.

        Args:
            model: what `build` gave.
        """
        leaves = jax.tree.leaves(nnx.state(model))
        held = ", ".join(sorted({str(x.dtype) for x in leaves}))
        stored = sum(x.size for x in leaves if x.dtype.itemsize == 1)
        facts = self.facts()
        with decisions() as made:
            attention, products = model.attention(), describe_products(model)
        return facts | {
            "heads": list(model.heads),
            "parameters": count_parameters(model) + stored,
            "precision": facts["precision"] if facts["float8_rules"] else held,
            "dtype": {"compute": str(np.dtype(model.dtype)), "weights": held},
            "attention": attention,
            "float8_products": products,
            "kernels": [
                dataclasses.asdict(each) | {"text": str(each)}
                for each in dict.fromkeys(made)
                if each.state != "plain"
            ],
        }

    def _describe_student(self) -> dict[str, Any] | None:
        if isinstance(self.manifest, Deployment):
            return {"sha256": self.manifest.student} if self.manifest.student else None
        if self.student is None:
            return None
        return {
            "sha256": student_hash(self.spec.student),
            "trainable": self.student.trainable,
            "trained_under": self.student.precision,
        }


def auto_dtype() -> Any:
    """Returns the compute dtype of "auto": float32 on a CPU, bfloat16 on a GPU or TPU."""
    return jnp.dtype(jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16)


def _checked(model: Any) -> Any:
    """Checks the kernels of a model if this is a GPU, and returns the model.

    Raises:
        InputError: one that was asked for by name cannot run here.
    """

    def describe() -> None:
        model.attention()
        describe_products(model)

    try:
        check_model_kernels(describe, OPERATORS)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"implementation: {error}") from error
    return model


def student_hash(folder: str | os.PathLike[str]) -> str:
    """Returns the SHA-256 of a student's manifest, which has the hashes of all its other files."""
    return hash_file(Path(folder) / STUDENT_MANIFEST).sha256


def check_model(spec: ModelSpec, backbone: str = "") -> CheckedModel:
    """Reads what a model is and checks that it fits together, before any weights are read.

    Args:
        spec: which model. Weights of a hub repository are fetched and converted if need be.
        backbone: registry name that it has to be of; "" for any.

    Raises:
        InputError: weights or student are not there or damaged; the student is of other weights;
            settings contradict each other; a name is unknown, with the nearest. One line, with what
            to change.
    """
    if spec.precision and spec.precision not in PRECISIONS:
        raise unknown_name("precision", spec.precision, PRECISIONS)
    if spec.precision in ("float32", "bfloat16"):
        for name, asked in (("dtype", spec.dtype), ("param_dtype", spec.param_dtype)):
            if asked in (None, "auto"):
                continue
            if jnp.dtype(asked) != jnp.dtype(spec.precision):
                raise InputError(
                    f"precision, {name}: {spec.precision} and {jnp.dtype(asked)} contradict each"
                    " other; leave out one of them"
                )
    deployment = find_deployment(Path(spec.weights))
    if deployment is not None:
        _check_deployed(spec, deployment)
    asked = _parsed(spec.attention)
    if spec.student and asked and not any(s.adjustable for s in strategies_of(asked)):
        raise InputError(_CONTRADICTION.format(""))
    student = read_student(Path(spec.student))[0] if spec.student else None
    if student is not None and asked is not None and not trained_alike(asked, student.plan):
        raise InputError(_CONTRADICTION.format(f", {plan_name(student.plan)}"))
    if deployment is not None:
        directory, remedy, manifest = Path(spec.weights), "", deployment
    else:
        directory, remedy = resolve(spec.weights, spec.cache_dir)
        manifest = read_manifest(directory)
    if backbone and manifest.backbone != backbone:
        raise InputError(
            f"{spec.weights}: weights of {manifest.backbone}, but the config is for {backbone};"
            f" use configs/{manifest.backbone}*.py"
        )
    if student is not None:
        check_teacher(Path(spec.student), student, directory, remedy)
    config = strict_json.read_object(directory / CONFIG_FILE)
    if deployment is not None:
        plan, rules = deployment.plan, deployment.precision
    else:
        own = student.plan if student is not None else _own_plan(manifest, config)
        plan = own if asked is None else asked
        rules = deployed_rules(student, spec.rules or None)
        preset(rules)
    return CheckedModel(spec, directory, manifest, student, plan, rules, config)


def _parsed(attention: str | Plan) -> Plan | None:
    if isinstance(attention, Plan):
        return attention
    return parse_plan(attention, "attention.plan") if attention else None


def _own_plan(manifest: Any, config: dict[str, Any]) -> Plan:
    """Returns the attention plan that weights were trained with."""
    backbone = get_backbone(manifest.backbone)
    return backbone.own_plan(backbone.config_from_json(dict(config)))


def _check_deployed(spec: ModelSpec, deployment: Deployment) -> None:
    """Raises if settings ask for anything that a deployed model cannot be made into."""
    for name in ("student", "attention", "rules", "param_dtype"):
        if getattr(spec, name):
            raise InputError(
                f"{name}: {spec.weights} is a deployed model, complete with its attention and"
                f" precision; leave out {name}, or name the weights that it was made from"
            )
    if spec.precision not in ("", deployment.kind):
        raise InputError(
            f"precision: {spec.weights} is a deployed model in {deployment.kind}; leave out"
            f" precision, or name the weights that it was made from"
        )
