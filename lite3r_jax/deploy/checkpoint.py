"""Deployed models as directories: written by `write_deployment`, read by `load_deployed`.

manifest.json          see `Deployment`
config.json            sizes of the model
PART.safetensors       float8 codes [..., N, K] as `weight`, their float32 scales as `weight_scale`,
                       and the rest, by their paths in the model
forward-*.jax          serialized forward passes, where they were asked for
"""

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import jax.numpy as jnp
import numpy as np
from flax import nnx

from lite3r_jax.attention.plan import Plan
from lite3r_jax.backbones.base import get_backbone
from lite3r_jax.deploy.manifest import (
    REMEDY,
    Deployment,
    Program,
    Rest,
    find_deployment,
    read_deployment,
)
from lite3r_jax.deploy.program import check_program, export_program
from lite3r_jax.distillation.checkpoint import MANIFEST as STUDENT_MANIFEST
from lite3r_jax.distillation.checkpoint import (
    StudentManifest,
    describe_teacher,
)
from lite3r_jax.distillation.trainable import add_low_rank
from lite3r_jax.errors import InputError
from lite3r_jax.files import atomic_write
from lite3r_jax.layers.rngs import traced_rngs
from lite3r_jax.precision import Fp8Rule, Kind, PrecisionRule, deploy, preset
from lite3r_jax.weights import strict_json
from lite3r_jax.weights.abstract import AbstractModel, abstract_of
from lite3r_jax.weights.convert import tool
from lite3r_jax.weights.converted import VerifiedFiles
from lite3r_jax.weights.load import read_arrays
from lite3r_jax.weights.manifest import CONFIG_FILE, FILE_NAME, Manifest
from lite3r_jax.weights.safetensors_file import TensorSpec
from lite3r_jax.weights.safetensors_writer import hash_file, write_file
from lite3r_jax.weights.save import write_parts
from lite3r_jax.weights.strict_json import shown


def deployed_rules(student: StudentManifest | None, name: str | None = None) -> str:
    """Returns the name of the precision rules that a model is deployed with.

    A student that was trained under simulated float8 is deployed with the same rules: what was
    trained is what runs.

    Args:
        student: manifest of the student to deploy; None for a teacher.
        name: name that was asked for; None for the student's own, or "default".

    Raises:
        InputError: other rules than the student's own were asked for.
    """
    trained = "none" if student is None else student.precision
    if name is not None and trained not in ("none", name):
        raise InputError(
            f"rules: the student was trained under {trained!r}, {name!r} was asked for; leave that"
            " out"
        )
    return name or ("default" if trained == "none" else trained)


def check_place(out: Path, programs: Collection[Program], *, overwrite: bool) -> None:
    """Refuse a place that `write_deployment` cannot write to, and programs that it cannot make.

    Raises:
        InputError: `out` exists and is something else or may not be replaced, or a program cannot
            be made.
    """
    if overwrite and os.path.lexists(out) and find_deployment(out) is None:
        raise InputError(f"{out}: exists and is no deployed model, so it is not replaced")
    if not overwrite and os.path.lexists(out):
        raise InputError(f"{out}: exists already; choose another place or allow overwriting")
    for program in programs:
        check_program(program)


def write_deployment(
    model: Any,
    out: Path,
    *,
    weights: tuple[Path, Manifest],
    student: tuple[Path, StudentManifest] | None,
    kind: Kind,
    rules: str,
    rest: Rest,
    license: str | None = None,
    programs: Collection[Program] = (),
    overwrite: bool = False,
) -> Deployment:
    """Write a model with float8 weights as a directory.

    The directory is made under a temporary name and appears only when it is complete. Equal inputs
    give equal bytes.

    Args:
        model: from `precision.deploy`, what is not float8 in the dtype that it is stored in.
        out: directory to make; an absolute path.
        weights: directory that it was made from, and its manifest.
        student: folder of the student that it is, and its manifest.
        kind: see `precision.deploy`.
        rules: name of the rules that say what is float8.
        rest: dtype of what is not.
        license: of the result; None for what the weights say.
        programs: serialized forward passes to put beside it; their `jax`, `weights` and `outputs`
            are filled in.
        overwrite: whether a deployed model may be replaced.

    Returns:
        The manifest: what was written, with hashes.

    Raises:
        InputError: the directory cannot be written.
    """
    directory, source = weights
    trained = None if student is None else student[1]
    described = abstract_of(model)
    dtypes = _stored_dtypes(described, rest)
    parameters = _parameters(described)
    teacher = describe_teacher(directory, list(parameters), "")[1]
    origin = source.origin
    if license:
        origin = replace(origin, license=license, license_from="who exported it")
    with atomic_write(out, overwrite=overwrite) as partial_out:
        partial_out.mkdir()
        arrays = {path: v.get_value() for path, (_, v) in described.variables.items()}
        files = write_parts(partial_out, arrays, dtypes, out)
        config = get_backbone(source.backbone).config_to_json(model.config)
        files[CONFIG_FILE] = write_file(partial_out / CONFIG_FILE, strict_json.dump(config))
        deployment = Deployment(
            backbone=source.backbone,
            heads=tuple(model.heads),
            plan=Plan() if trained is None else trained.plan,
            rank=0 if trained is None else trained.rank,
            kind=kind,
            precision=rules,
            rules=cast(tuple[Fp8Rule, ...], tuple(preset(rules))),  # `deploy` refuses all others
            rest=rest,
            origin=origin,
            teacher=teacher,
            student=None if student is None else hash_file(student[0] / STUDENT_MANIFEST).sha256,
            parameters=parameters,
            programs=(),
            files=files,
            tool=tool(),
        )
        del model, arrays, described
        written = []
        for program in programs:
            abstract = _abstract(deployment, config, deployment.heads, jnp.dtype(program.dtype))
            program, data = export_program(abstract, program)
            files[program.file_name] = write_file(partial_out / program.file_name, data)
            written.append(program)
        deployment = replace(deployment, programs=tuple(written))
        write_file(partial_out / FILE_NAME, strict_json.dump(deployment.to_json()))
    return deployment


def load_deployed(
    directory: str | os.PathLike[str],
    *,
    heads: Sequence[str] | None = None,
    dtype: Any = jnp.bfloat16,
) -> Any:
    """Loads a deployed model from its directory.

    It equals `precision.deploy` of the weights that it was made from, with the parameters that are
    not float8 rounded to the dtype in which they are stored. The files that are needed are checked
    against the SHA-256 in the manifest while they are read.

    Args:
        directory: made by `write_deployment`.
        heads: heads to build; None for all that it has. Files of other heads are not read.
        dtype: compute dtype, bfloat16 or float32.

    Returns:
        The model (flax.nnx.Module), on the default device. It runs and cannot be trained.

    Raises:
        InputError: no deployed model, a damaged, missing or extra file (named), or heads that it
            does not have.
    """
    directory = Path(directory)
    deployment = read_deployment(directory)
    files = VerifiedFiles(directory, deployment.files, REMEDY, "deployed model")
    wanted = deployment.heads if heads is None else tuple(heads)
    for head in wanted:
        if head not in deployment.heads:
            raise InputError(
                f"heads: {shown(head)} is not in {directory}; choose from"
                f" {', '.join(deployment.heads) or 'none'}"
            )
    files.verify([CONFIG_FILE, *(program.file_name for program in deployment.programs)])
    config = strict_json.read_object(directory / CONFIG_FILE)
    model = _abstract(deployment, config, wanted, dtype)
    parts = list(dict.fromkeys(path.partition("/")[0] for path in model.shapes))
    return model.fill(read_arrays(files, parts, model.dtypes, partial(_check_fit, files, model)))


def _abstract(
    deployment: Deployment, config: Mapping[str, Any], heads: Sequence[str], dtype: Any
) -> AbstractModel:
    """Returns the deployed model with stored shapes and dtypes, without values."""
    backbone = get_backbone(deployment.backbone)
    sizes = backbone.config_from_json(dict(config))

    def build() -> nnx.Module:
        model = backbone.build(
            sizes,
            heads=heads,
            plan=deployment.plan,
            dtype=dtype,
            param_dtype=jnp.float32,
            rngs=traced_rngs(0),
        )
        if deployment.rank:
            add_low_rank(model, deployment.rank)
        return model

    rules: Sequence[PrecisionRule] = deployment.rules
    model = abstract_of(deploy(nnx.eval_shape(build), rules, deployment.kind))
    return model.astype(_stored_dtypes(model, deployment.rest))


def _stored_dtypes(model: AbstractModel, rest: str) -> dict[str, np.dtype]:
    """Returns path -> dtype on disk: `rest` for parameters, their own for codes and scales."""
    return {
        path: np.dtype(jnp.dtype(rest) if isinstance(variable, nnx.Param) else variable.dtype)
        for path, (_, variable) in model.variables.items()
    }


def _parameters(model: AbstractModel) -> dict[str, int]:
    """Returns the number of weights in each part of a model, without scales."""
    counts: dict[str, int] = {}
    for path, (_, variable) in sorted(model.variables.items()):
        if isinstance(variable, nnx.Param) or variable.dtype.itemsize == 1:
            part = path.partition("/")[0]
            counts[part] = counts.get(part, 0) + int(np.prod(variable.shape, dtype=np.int64))
    return counts


def _check_fit(files: VerifiedFiles, model: AbstractModel, specs: Mapping[str, TensorSpec]) -> None:
    asked = {name: spec.shape for name, spec in specs.items()}
    if wrong := sorted(asked.items() ^ model.shapes.items()):
        raise InputError(
            f"{files.path}: does not fit the model of this version, for one {shown(wrong[0][0])};"
            f" {files.remedy}"
        )
