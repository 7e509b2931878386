"""Makes a student beside its teacher, and their objective, from a model and settings."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from lite3r_jax.attention.plan import Plan
from lite3r_jax.backbones.model import count_parameters
from lite3r_jax.distillation.checkpoint import (
    StudentManifest,
    check_teacher,
    describe_teacher,
    fill,
    read_student,
    write_student,
)
from lite3r_jax.distillation.loss import DistillLoss, Loss, select_sites
from lite3r_jax.distillation.options import DistillOptions
from lite3r_jax.distillation.surgery import variables
from lite3r_jax.distillation.teacher_student import Pair, make_pair, of_student, selectors
from lite3r_jax.distillation.trainable import add_low_rank, sizes, trained_paths
from lite3r_jax.errors import InputError
from lite3r_jax.precision import apply_precision, preset
from lite3r_jax.weights.load import resolve
from lite3r_jax.weights.save import to_host


@dataclass(frozen=True)
class Distillation:
    """A student beside its teacher, before the first step.

    Attributes:
        pair: student and teacher.
        manifest: of the student.
        trained: paths in the student of what is trained.
        loss: the objective.
    """

    pair: Pair
    manifest: StudentManifest
    trained: tuple[str, ...]
    loss: DistillLoss

    @property
    def selectors(self) -> tuple[str, ...]:
        """Regular expressions of the trained paths, for `training.trainer.make_trainer`."""
        return selectors(self.trained)

    def report(self) -> dict[str, Any]:
        """Returns what is trained and which layers are compared, for the log of the run."""
        student = self.pair.student
        counts = sizes(student, self.trained)
        return {
            "attention": student.attention(),
            "precision": self.manifest.precision,
            "trainable": self.manifest.trainable,
            "trained_parameters": sum(counts.values()),
            "all_parameters": count_parameters(student),
            "trained": counts,
            "compared": {role: list(layers) for role, layers in self.loss.sites.items()},
            "teacher": dict(self.manifest.teacher),
        }

    def summary(self) -> str:
        """Returns a line with the numbers of trained parameters and of compared layers."""
        facts = self.report()
        sites = ", ".join(f"{role} {len(layers)}" for role, layers in facts["compared"].items())
        return (
            f"student: {facts['trained_parameters']:,} of {facts['all_parameters']:,} parameters"
            f" are trained ({self.manifest.trainable}), attention layers compared: {sites}"
        )

    def write(self, folder: Path, arrays: dict[str, Any]) -> None:
        """Writes the student from the first process; every process has to call this.

        Args:
            folder: to be made or replaced.
            arrays: trained parameters by their paths in the pair.

        Raises:
            InputError: the student cannot be written.
        """
        whole = {path: to_host(x) for path, x in of_student(arrays).items()}
        if jax.process_index() == 0:
            write_student(folder, self.manifest, whole, overwrite=True)


def prepare(
    model: Any,
    weights: str | os.PathLike[str],
    options: DistillOptions,
    *,
    steps: int,
    task: Loss | None,
    forward: tuple[tuple[str, Any], ...] = (),
    seed: int = 0,
) -> Distillation:
    """Makes a student beside its teacher from a model with the student's attention plan.

    Args:
        model: with the teacher's weights, parameters in float32; becomes the student.
        weights: where the teacher's are, as for `load`.
        options: which student, which objective.
        steps: of the run.
        task: loss of a model and a batch with known cameras and depth.
        forward: see `DistillLoss`.
        seed: of the student's new parameters.

    Raises:
        InputError: settings that do not fit together or the model, or a student to go on from that
            is another.
    """
    directory, remedy = resolve(weights)
    student = as_student(model, options, seed)
    trained = trained_paths(student, options.trainable)
    parts = sorted({path.partition("/")[0] for path in variables(student)})
    backbone, teacher = describe_teacher(directory, parts, remedy)
    manifest = StudentManifest(
        backbone,
        tuple(student.heads),
        student.plan,
        options.trainable,
        _rank(options),
        options.precision,
        teacher,
    )
    pair = make_pair(student, trained)
    if options.init_from:
        _go_on(student, Path(options.init_from), manifest, directory, remedy)
    loss = objective(student, options, steps=steps, task=task, forward=forward)
    return Distillation(pair, manifest, trained, loss)


def as_student(model: Any, options: DistillOptions, seed: int = 0) -> Any:
    """Returns a model as a student: with low-rank parts, if trained, and simulated precision.

    Args:
        model: with the student's plan and the teacher's weights; is changed.
        options: which student.
        seed: of the student's new parameters.

    Raises:
        InputError: settings that do not fit the model.
    """
    if rank := _rank(options):
        add_low_rank(model, rank, seed)
    return apply_precision(model, preset(options.precision))


def objective(
    student: Any,
    options: DistillOptions,
    *,
    steps: int,
    task: Loss | None,
    forward: tuple[tuple[str, Any], ...] = (),
) -> DistillLoss:
    """Returns the loss that a student is trained with; arguments as for `prepare`.

    Raises:
        InputError: settings that do not fit the student.
    """
    return DistillLoss(
        options.match,
        select_sites(student, Plan(), options.match.sites),
        steps,
        task=None if options.targets == "none" else task,
        from_teacher=options.targets == "teacher",
        forward=forward,
    )


def _rank(options: DistillOptions) -> int:
    return options.rank if options.trainable == "lora" else 0


def _go_on(
    student: Any, folder: Path, manifest: StudentManifest, directory: Path, remedy: str
) -> None:
    """Puts the trained parameters of another run into a student, after checking that they fit."""
    before, arrays = read_student(folder)
    check_teacher(folder, before, directory, remedy)
    here, there = manifest.to_json(), before.to_json()
    for name in ("plan", "trainable", "rank"):
        if here[name] != there[name]:
            raise InputError(
                f"config.distill.init_from: {folder} was trained with another {name}; choose the"
                " same settings as there"
            )
    fill(student, arrays, before, folder)
