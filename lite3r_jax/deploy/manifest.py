"""The manifest of a deployed model: its settings, and size and SHA-256 of every file."""

import dataclasses
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from lite3r_jax.attention.plan import Plan, plan_from_json, plan_to_json
from lite3r_jax.backbones.base import get_backbone
from lite3r_jax.errors import InputError
from lite3r_jax.precision import Fp8Rule, Kind
from lite3r_jax.weights import strict_json
from lite3r_jax.weights.manifest import (
    CONFIG_FILE,
    DEPLOYED_FORMAT,
    Origin,
)
from lite3r_jax.weights.safetensors_writer import FileRecord
from lite3r_jax.weights.sealed_json import (
    FILE_NAME,
    check_types,
    flat_records,
    seal,
    unseal,
    written,
)

REMEDY = "export it again with lite3r deploy"
Rest = Literal["bfloat16", "float32"]
Platform = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class Program:
    """A serialized forward pass, see `deploy.program`.

    Attributes:
        platform: platform that the program runs on.
        views: S of the images [1, S, H, W, 3] that it takes.
        height: H.
        width: W.
        dtype: compute dtype.
        jax: version of JAX that wrote it.
        weights: safetensors files whose arrays it takes.
        outputs: names of the arrays that it returns.
    """

    platform: Platform
    views: int
    height: int
    width: int
    dtype: str
    jax: str = ""
    weights: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()

    @property
    def file_name(self) -> str:
        """Name of the program's file in the directory of the model."""
        return f"forward-{self.platform}-{self.views}x{self.height}x{self.width}.jax"


@dataclass(frozen=True)
class Deployment:
    """The manifest of a deployed model: backbone, plan, precision, origin and files.

    Attributes:
        backbone: registry name.
        heads: heads that the model has.
        plan: attention strategies of the model.
        rank: of a student's low-rank parts; 0 if there are none.
        kind: see `precision.deploy`.
        precision: name of the rules, see `precision.preset`.
        rules: the rules themselves; later versions may have others under that name.
        rest: dtype of what is not float8.
        origin: license of the weights, and who says so.
        teacher: file name -> SHA-256, of the weights that it was made from.
        student: SHA-256 of the manifest of the student that it was made from, which has all other
            hashes; None for the teacher itself.
        parameters: part of the model -> weights in it, without scales; the arrays of a part are in
            `<part>.safetensors`.
        programs: serialized forward passes.
        files: file name -> record, of every other file in the directory.
        tool: program and versions.
    """

    backbone: str
    heads: tuple[str, ...]
    plan: Plan
    rank: int
    kind: Kind
    precision: str
    rules: tuple[Fp8Rule, ...]
    rest: Rest
    origin: Origin
    teacher: Mapping[str, str]
    student: str | None
    parameters: Mapping[str, int]
    programs: tuple[Program, ...]
    files: Mapping[str, FileRecord]
    tool: str

    @property
    def variant(self) -> str:
        """Name of the model as a variant in `--mode=eval`."""
        return f"{'dense' if self.student is None else 'student'}-{self.kind}"

    def bytes_of(self, heads: Collection[str]) -> int:
        """Returns the size in bytes of the weights of a model with these heads."""
        parts = get_backbone(self.backbone).parts
        off = {parts[head] for head in self.heads if head not in heads}
        return sum(self.files[f"{p}.safetensors"].size for p in self.parameters if p not in off)

    def to_json(self) -> dict[str, Any]:
        """Returns the manifest as a JSON object with its own SHA-256."""
        body = {
            **{f.name: getattr(self, f.name) for f in dataclasses.fields(self)},
            "heads": list(self.heads),
            "plan": plan_to_json(self.plan),
            "rules": [dataclasses.asdict(rule) for rule in self.rules],
            "origin": dataclasses.asdict(self.origin),
            "teacher": dict(self.teacher),
            "parameters": dict(self.parameters),
            "programs": [
                dataclasses.asdict(p) | {"weights": list(p.weights), "outputs": list(p.outputs)}
                for p in self.programs
            ],
            "files": {name: dataclasses.asdict(record) for name, record in self.files.items()},
        }
        return seal(DEPLOYED_FORMAT, body)

    def report(self) -> str:
        """Returns a readable table of kind, origin, license, size and files."""
        lines = [
            f"model    {self.backbone} with {', '.join(self.heads) or 'no heads'}",
            f"kind     {self.kind}, rules {self.precision!r}, the rest {self.rest}",
            f"made of  {'a student and its' if self.student else 'a'} teacher",
            f"license  {self.origin.license} ({self.origin.license_from})",
            f"weights  {sum(self.parameters.values()):,} in {self.bytes_of(self.heads):,} bytes",
        ]
        lines += [f"read     {name}  sha256 {sha256}" for name, sha256 in self.teacher.items()]
        lines += [f"read     student  sha256 {self.student}"] if self.student else []
        return "\n".join([*lines, *written(self.files)])


def find_deployment(directory: Path) -> Deployment | None:
    """Reads the manifest of a deployed model; None if the directory is something else.

    Raises:
        InputError: it is a deployed model, but its manifest is damaged, edited or of another
            version; or a manifest of something is no JSON.
    """
    path = directory / FILE_NAME
    if not os.path.isfile(path):
        return None
    body = strict_json.read_object(path)
    if body.get("format") != DEPLOYED_FORMAT:
        return None
    body = unseal(DEPLOYED_FORMAT, body, path, REMEDY)
    try:
        return _from_json(body)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: not as this version writes it ({error}); {REMEDY}") from error


def read_deployment(directory: Path) -> Deployment:
    """Reads the manifest of a deployed model.

    Raises:
        InputError: see `find_deployment`, or the directory is no deployed model.
    """
    if not os.path.isdir(directory):
        raise InputError(f"{directory}: no such directory; expected a deployed model")
    deployment = find_deployment(directory)
    if deployment is None:
        raise InputError(
            f"{directory / FILE_NAME}: not there or of something else, so this is no deployed"
            " model; make one with lite3r deploy"
        )
    return deployment


def _from_json(body: dict[str, Any]) -> Deployment:
    values = body | {
        "heads": tuple(body["heads"]),
        "plan": plan_from_json(body["plan"]),
        "rules": tuple(Fp8Rule(**rule) for rule in body["rules"]),
        "origin": Origin(**body["origin"]),
        "programs": tuple(
            Program(**p | {"weights": tuple(p["weights"]), "outputs": tuple(p["outputs"])})
            for p in body["programs"]
        ),
        "files": flat_records(body["files"]),
    }
    deployment = Deployment(**values)
    check_types(deployment)
    needed = {CONFIG_FILE, *(f"{part}.safetensors" for part in deployment.parameters)}
    if not needed <= set(deployment.files):
        raise ValueError("files and parts disagree")
    if deployment.kind not in get_args(Kind) or deployment.rest not in get_args(Rest):
        raise ValueError(f"kind {deployment.kind!r}, rest {deployment.rest!r}")
    return deployment
