"""Writes a model as a directory with float8 weights, and programs that run without this package."""

import os
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import get_args

import jax.numpy as jnp

from lite3r_jax.deploy.checkpoint import check_place, write_deployment
from lite3r_jax.deploy.manifest import Deployment, Program, Rest
from lite3r_jax.errors import InputError
from lite3r_jax.folder_lock import locked_beside
from lite3r_jax.models import ModelSpec, check_model
from lite3r_jax.precision import Kind
from lite3r_jax.runs.image_sizes import size_note
from lite3r_jax.weights.manifest import Manifest


def export_deployment(
    weights: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    student: str | os.PathLike[str] | None = None,
    kind: Kind = "fp8_dynamic",
    rules: str | None = None,
    heads: Sequence[str] | None = None,
    rest: Rest = "bfloat16",
    license: str | None = None,
    programs: Collection[Program] = (),
    overwrite: bool = False,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Deployment:
    """Writes a model that runs with float8 weights as a directory, which `load` takes.

    The directory is made under a temporary name and appears only when it is complete. Equal inputs
    give equal bytes. Weights are rounded once, from the dtype that they are stored in.

    Args:
        weights: of the model, or of the student's teacher, as for `load`.
        out: directory to make.
        student: folder of a distilled student.
        kind: see `precision.deploy`.
        rules: a name of `precision.preset`; None for those that the student was trained under, or
            "default".
        heads: heads to keep; None for all that weights or student have.
        rest: dtype of what does not become float8.
        license: of the result; None for what the weights say.
        programs: serialized forward passes to put beside it; their `jax`, `weights` and `outputs`
            are filled in.
        overwrite: whether `out` may be replaced, if it is a deployed model.
        cache_dir: as for `load`.

    Returns:
        The manifest: what was written, with hashes.

    Raises:
        InputError: weights or student cannot be read or do not fit together; rules that cannot be
            deployed; `out` exists, cannot be written or is being written by another process.
    """
    out = Path(os.path.abspath(out))
    if rest not in get_args(Rest):
        raise InputError(f"rest: expected one of {', '.join(get_args(Rest))}, got {rest!r}")
    with locked_beside(out, "deploy"):
        check_place(out, programs, overwrite=overwrite)
        spec = ModelSpec(
            weights, student or "", precision=kind, rules=rules or "", dtype=jnp.float32,
            cache_dir=cache_dir,
        )  # fmt: skip
        checked = check_model(spec)
        if not isinstance(checked.manifest, Manifest):
            raise InputError(
                f"{weights}: a deployed model already; name the weights that it was made from"
            )
        if note := size_note(checked, ((each.height, each.width) for each in programs)):
            print(note, file=sys.stderr, flush=True)
        return write_deployment(
            checked.build(heads),
            out,
            weights=(checked.directory, checked.manifest),
            student=None if checked.student is None else (Path(spec.student), checked.student),
            kind=kind,
            rules=checked.rules,
            rest=rest,
            license=license,
            programs=programs,
            overwrite=overwrite,
        )
