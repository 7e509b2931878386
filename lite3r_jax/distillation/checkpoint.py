"""Writes and reads students: trained parameters, attention plan and hashes of the teacher.

manifest.json          see `StudentManifest`
student.safetensors    trained parameters by their paths in the student, float32
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from lite3r_jax.attention.plan import Plan, plan_from_json, plan_to_json, trained_alike
from lite3r_jax.distillation.surgery import variables
from lite3r_jax.distillation.trainable import Trainable, add_low_rank, trained_paths
from lite3r_jax.errors import InputError
from lite3r_jax.files import atomic_write
from lite3r_jax.precision import apply_precision, preset
from lite3r_jax.weights import strict_json
from lite3r_jax.weights.converted import ConvertedWeights
from lite3r_jax.weights.load import load, resolve
from lite3r_jax.weights.manifest import CONFIG_FILE
from lite3r_jax.weights.safetensors_file import SafetensorsFile, TensorSpec
from lite3r_jax.weights.safetensors_writer import FileRecord, SafetensorsWriter, hash_file
from lite3r_jax.weights.sealed_json import FILE_NAME, check_types, seal, unseal
from lite3r_jax.weights.strict_json import shown

MANIFEST, ARRAYS = FILE_NAME, "student.safetensors"
_FORMAT = "lite3r_jax student 1"


@dataclass(frozen=True)
class StudentManifest:
    """The manifest of a student: backbone, plan, what was trained, and hashes of its teacher.

    Attributes:
        backbone: registry name.
        heads: heads that the model had in training.
        plan: attention strategies of the student.
        trainable: name of the set that was trained.
        rank: of low-rank parts; 0 if there are none.
        precision: simulated in training, see `precision.preset`.
        teacher: file name -> SHA-256, of the teacher's config and the parts used in training.
    """

    backbone: str
    heads: tuple[str, ...]
    plan: Plan
    trainable: Trainable
    rank: int
    precision: str
    teacher: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """Returns the manifest as a JSON object."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return values | {
            "heads": list(self.heads),
            "plan": plan_to_json(self.plan),
            "teacher": dict(self.teacher),
        }


def describe_teacher(
    directory: Path, parts: Sequence[str], remedy: str
) -> tuple[str, dict[str, str]]:
    """Returns the backbone and the hashes of converted weights, to identify a teacher.

    Args:
        directory: of converted weights.
        parts: top-level parts of the model.
        remedy: what to do if the weights are damaged.

    Returns:
        (backbone, `StudentManifest.teacher`).

    Raises:
        InputError: no converted weights.
    """
    manifest = ConvertedWeights(directory, remedy).manifest
    names = [CONFIG_FILE, *(f"{part}.safetensors" for part in sorted(parts))]
    return manifest.backbone, {
        name: manifest.files[name].sha256 for name in names if name in manifest.files
    }


def write_student(
    folder: Path,
    manifest: StudentManifest,
    arrays: Mapping[str, np.ndarray],
    *,
    overwrite: bool = False,
) -> None:
    """Writes a student as a folder; equal students give equal bytes.

    Args:
        folder: to be made.
        manifest: of the student.
        arrays: path in the student -> trained parameter.
        overwrite: whether a folder that exists may be replaced.

    Raises:
        InputError: the folder exists and may not be replaced, or cannot be written.
    """
    host = {path: np.asarray(arrays[path], np.float32) for path in sorted(arrays)}
    specs = {path: TensorSpec(x.shape, "F32") for path, x in host.items()}
    with atomic_write(folder, overwrite=overwrite) as partial:
        partial.mkdir()
        with SafetensorsWriter(partial / ARRAYS, specs) as writer:
            for path, x in host.items():
                writer.write(path, x)
        assert writer.record is not None
        body = {
            **manifest.to_json(),
            "parameters": {path: list(x.shape) for path, x in host.items()},
            "count": sum(x.size for x in host.values()),
            "arrays": dataclasses.asdict(writer.record),
        }
        (partial / MANIFEST).write_bytes(strict_json.dump(seal(_FORMAT, body)))


def read_student(folder: Path) -> tuple[StudentManifest, dict[str, np.ndarray]]:
    """Reads and verifies the manifest and the trained parameters of a student.

    Raises:
        InputError: there is no student, or it is damaged or of another version.
    """
    path = folder / MANIFEST
    if not os.path.isfile(path):
        raise InputError(
            f"{path}: missing, so this is no student; expected the folder `student` of a finished"
            " distillation"
        )
    if extra := sorted({entry.name for entry in folder.iterdir()} - {MANIFEST, ARRAYS}):
        raise InputError(f"{folder / shown(extra[0])}: not part of the student; remove it")
    body = unseal(_FORMAT, strict_json.read_object(path), path, "train again")
    try:
        fields = {f.name for f in dataclasses.fields(StudentManifest)}
        values = {name: body[name] for name in fields}
        values |= {"heads": tuple(body["heads"]), "plan": plan_from_json(body["plan"])}
        manifest = StudentManifest(**values)
        wanted = {name: tuple(shape) for name, shape in body["parameters"].items()}
        record = FileRecord(**body["arrays"])
        check_types(manifest)
        check_types(record)
        if not all(type(side) is int for shape in wanted.values() for side in shape):
            raise TypeError("parameters")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: not as this version writes it ({error})") from error
    if not (folder / ARRAYS).is_file() or hash_file(folder / ARRAYS) != record:
        raise InputError(f"{folder / ARRAYS}: missing or damaged; train again or copy it again")
    file = SafetensorsFile(folder / ARRAYS)
    try:
        arrays = {name: file.read(name) for name in file.specs}
    finally:
        file.close()
    if missing := sorted(wanted.items() ^ {name: x.shape for name, x in arrays.items()}.items()):
        raise InputError(f"{folder / ARRAYS}: {shown(missing[0][0])} is not as in {MANIFEST}")
    return manifest, arrays


def load_student(
    folder: str | os.PathLike[str],
    teacher: str | os.PathLike[str],
    *,
    heads: Sequence[str] | None = None,
    dtype: Any = jnp.float32,
    param_dtype: Any = None,
    plan: Plan | None = None,
    simulate: bool = True,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Any:
    """Loads a student from its teacher's weights and its own trained parameters.

    Args:
        folder: that `write_student` made, `student/` of a finished distillation.
        teacher: weights that it was distilled from, as for `load`.
        heads: heads to build; None for those that were there in training.
        dtype: compute dtype, float32 or bfloat16.
        param_dtype: dtype in which the teacher's parameters are held, as for `load`.
        plan: None for the student's. Another one is accepted if it differs in kernels, mesh axes
            or adjustable settings only.
        simulate: whether products run with as few bits as in training; False for
            `precision.deploy`, which stores such weights.
        cache_dir: as for `load`.

    Returns:
        The model (flax.nnx.Module), on the default device.

    Raises:
        InputError: the student is damaged, was distilled from other weights, has another plan, or
            lacks a parameter; or what `load` raises.
    """
    folder = Path(folder)
    manifest, arrays = read_student(folder)
    if plan is None:
        plan = manifest.plan
    elif not trained_alike(plan, manifest.plan):
        raise InputError(
            f"{folder}: was trained with another plan, {shown(manifest.plan, 400)}; leave out"
            " `plan`, or train a student with yours"
        )
    directory, remedy = resolve(teacher, cache_dir)
    check_teacher(folder, manifest, directory, remedy)
    model = load(
        directory,
        heads=manifest.heads if heads is None else heads,
        dtype=dtype,
        param_dtype=param_dtype,
        plan=plan,
    )
    if manifest.rank:
        add_low_rank(model, manifest.rank)
    fill(model, arrays, manifest, folder)
    return apply_precision(model, preset(manifest.precision)) if simulate else model


def check_teacher(folder: Path, manifest: StudentManifest, directory: Path, remedy: str) -> None:
    """Refuse weights that a student was not distilled from.

    Args:
        folder: of the student, for messages.
        manifest: of the student.
        directory: of the weights.
        remedy: what to do if the weights are damaged.

    Raises:
        InputError: naming the first difference.
    """
    parts = [name.removesuffix(".safetensors") for name in manifest.teacher if name != CONFIG_FILE]
    backbone, hashes = describe_teacher(directory, parts, remedy)
    if backbone != manifest.backbone:
        raise InputError(
            f"{directory}: is a {backbone}, the student {folder} a {manifest.backbone}"
        )
    for name, wanted in manifest.teacher.items():
        if hashes.get(name) != wanted:
            raise InputError(
                f"{directory / name}: not of the teacher that the student {folder} was distilled"
                " from (another SHA-256); use that teacher's weights"
            )


def fill(
    model: nnx.Module, arrays: Mapping[str, np.ndarray], manifest: StudentManifest, folder: Path
) -> None:
    """Put trained parameters into a student, in place.

    Parameters of heads that the model is without are left out.

    Raises:
        InputError: one is missing, one does not belong there, or shapes differ.
    """
    known = variables(model)
    parts = {path.partition("/")[0] for path in known}
    arrays = {path: x for path, x in arrays.items() if path.partition("/")[0] in parts}
    wanted = trained_paths(model, manifest.trainable)
    if missing := sorted(set(wanted) - set(arrays)):
        raise InputError(
            f"{folder / ARRAYS}: lacks {missing[0]} ({len(missing)} of {len(wanted)} trained"
            " parameters); train again, or copy it again"
        )
    for path, x in arrays.items():
        if path not in wanted or x.shape != known[path][1].shape:
            raise InputError(
                f"{folder / ARRAYS}: {shown(path)} {x.shape} does not fit this model; it is a"
                " student of another one"
            )
        known[path][1].set_value(jnp.asarray(x, known[path][1].dtype))
