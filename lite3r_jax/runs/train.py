"""`--mode=train`: trains a backbone, or distills a student, and writes checkpoints."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lite3r_jax.allocator import keep_freed_memory
from lite3r_jax.backbones.base import get_backbone
from lite3r_jax.data.pipeline import Part, Pipeline, PipelineOptions, parse_buckets
from lite3r_jax.data.sources import (
    SourceOptions,
    TrainingSource,
    open_training,
    parse_sources,
)
from lite3r_jax.data.video import VideoOptions
from lite3r_jax.distillation.recipe import Distillation, prepare
from lite3r_jax.errors import InputError, printable
from lite3r_jax.evaluation.protocols import open_protocol
from lite3r_jax.evaluation.variants import parse_variants
from lite3r_jax.evaluation.verdict import verdicts
from lite3r_jax.experiment import Experiment, refuse_devices, refuse_model_settings, require
from lite3r_jax.html_report.screen import on_screen
from lite3r_jax.infer.report import environment
from lite3r_jax.interrupts import INTERRUPTED
from lite3r_jax.models import CheckedModel, ModelSpec, check_model
from lite3r_jax.precision import preset
from lite3r_jax.processes import joined, refuse_different
from lite3r_jax.runs.evaluate import Evaluation
from lite3r_jax.runs.evaluate import evaluate as evaluate_models
from lite3r_jax.runs.image_sizes import size_note
from lite3r_jax.runs.long_video import refuse_chunks
from lite3r_jax.small_teacher import task as small_teacher
from lite3r_jax.training.code_version import code_version
from lite3r_jax.training.loop import Diverged
from lite3r_jax.training.loop import train as run_loop
from lite3r_jax.training.options import INSTEAD, TrainOptions
from lite3r_jax.training.portable import read_portable
from lite3r_jax.training.step import LossFn
from lite3r_jax.training.task import held_out, task_loss
from lite3r_jax.training.tasks import make_task, register_task
from lite3r_jax.training.trainer import make_trainer, trained_parameters
from lite3r_jax.weights import strict_json
from lite3r_jax.weights.load import resolve
from lite3r_jax.weights.manifest import read_manifest
from lite3r_jax.weights.save import save, to_host

register_task(small_teacher.NAME, small_teacher.make)

DONE, DIVERGED, TERMINATED = 0, 3, 75
"""Exit codes. 75 is EX_TEMPFAIL: run the same command again."""
NEEDED = ("backbone", "weights", "video", "train", "small_teacher", "distill")
"""Groups of settings that a training depends on."""
FREE = (
    *(field.name for field in fields(Experiment) if field.name not in NEEDED),
    "train.checkpoint", "train.data.workers", "train.data.prefetch", "train.mesh",
    "train.loop.tensorboard", "train.allow_changes",
    "distill.final_variants",
)  # fmt: skip
"""Settings that may change from one part of a run to the next."""
WEIGHTS = "weights"
"""Folder of the result of a training, in `output`."""
STUDENT = "student"
"""Folder of the result of a distillation, in `output`."""
EVALUATION = "evaluation"
"""Folder of what `distill.final_variants` found, in `output`."""


@dataclass(frozen=True)
class Training:
    """The outcome of a training: how it ended, and what it has written.

    Attributes:
        reason: "done"; or "terminated" by SIGTERM or "interrupted" by Ctrl-C with everything saved,
            and the same call goes on.
        step: steps that are done.
        folder: of the run.
        result: the weights or the student that the run has written; None if it is not done.
        evaluation: of `distill.final_variants`; None without them.
    """

    reason: str
    step: int
    folder: Path
    result: Path | None = None
    evaluation: Evaluation | None = None


def run(experiment: Experiment) -> int:
    """Runs `--mode=train`, which distills if `distill.plan` is set; see `train_any`.

    Returns:
        Exit code: 0 when all steps are done, 75 after SIGTERM and 130 after Ctrl-C with
        everything saved, 3 when too many steps in a row had to be skipped.
    """
    try:
        ended = train_any(experiment)
    except Diverged as error:
        print(f"error: {printable(error)}", file=sys.stderr)
        return DIVERGED
    if ended.evaluation is not None and not experiment.quiet:
        print(on_screen(ended.evaluation.text))
    for line in _closing(experiment, ended):
        print(printable(line))
    return {"terminated": TERMINATED, "interrupted": INTERRUPTED}.get(ended.reason, DONE)


def _closing(experiment: Experiment, ended: Training) -> list[str]:
    """Returns the last lines: what was written, how good a student is, and how to use it."""
    if ended.result is None:
        return []
    result = shlex.quote(str(ended.result))
    if not experiment.distill.plan:
        return [f"weights: {ended.result}", f"use: lite3r PHOTOS --weights {result}"]
    named = f"--weights {shlex.quote(experiment.weights)} --student {result}"
    lines = [f"student: {ended.result}", f"use: lite3r PHOTOS {named}"]
    said: list[str] = []
    if ended.evaluation is not None:
        lines.append(f"open {ended.evaluation.folder / 'report.html'}")
        said = verdicts(ended.evaluation.results)
    return lines + (
        said
        or [
            f"verdict: none, it was not compared with its teacher; that is: lite3r evaluate {named}"
            " --variants dense-float32,student-float32 --output OUT"
        ]
    )


def train(experiment: Experiment) -> Training:
    """Trains a backbone, or continues a run, in the folder `output`.

    When it is done `weights/` of that folder is what `load` takes.

    Args:
        experiment: `output` and `train`, and either `weights` or `train.model`.

    Raises:
        InputError: nothing was trained: settings, data, weights or the folder are wrong, or the
            settings are those of a distillation; or the folder can no longer be written.
        Diverged: too many steps in a row had to be skipped.
    """
    if experiment.distill.plan:
        raise InputError(
            "distill.plan: set, so these settings distill a student; use distill, or the variant"
            " backbone of the recipe"
        )
    return train_any(experiment)


def distill(experiment: Experiment) -> Training:
    """Trains a student beside its teacher, or continues a run, in the folder `output`.

    When it is done `student/` of that folder is what was trained, and `distill.final_variants` are
    evaluated into `evaluation/`.

    Args:
        experiment: `output`, `weights` of the teacher, `distill` with a plan, and `train`.

    Raises:
        InputError: as `train`, or the settings have no plan of a student.
        Diverged: too many steps in a row had to be skipped.
    """
    if not experiment.distill.plan:
        raise InputError(
            "distill.plan: not set, so these settings train a backbone; set it, for example to"
            " sla_global, or use train"
        )
    return train_any(experiment)


def train_any(experiment: Experiment) -> Training:
    """Distills if `distill.plan` is set, else trains; with `processes`, if there are several.

    Raises:
        InputError: as `distill` and `train`.
        Diverged: as `distill` and `train`.
    """
    keep_freed_memory()  # before JAX has devices, whose threads would have heaps by then
    with joined(experiment.processes):
        body = {name: asdict(experiment)[name] for name in NEEDED} | environment()["versions"]
        refuse_different(body, "settings or versions")
        return _train_any(experiment)


def _train_any(experiment: Experiment) -> Training:
    require(experiment, "output")
    instead = {
        "student": "distill.init_from",
        "attention.plan": "distill.plan",
        "precision": "distill.precision",
    }
    refuse_model_settings(experiment, instead)
    refuse_chunks(experiment, "training")
    refuse_devices(experiment, "training", **INSTEAD)
    options = experiment.train
    if experiment.distill.plan:
        check_distillation(experiment)
    check_unlabeled(experiment)
    pipeline, evaluation = open_data(options, experiment.video)
    loss_fn, task = task_loss(options.loss), make_task(experiment)
    trainable: Sequence[str] = (options.trainable,)
    facts: dict[str, Any] = environment()
    distillation = None
    if experiment.distill.plan:
        distillation = build_distillation(experiment, loss_fn)
        model, loss_fn = distillation.pair, distillation.loss
        trainable = distillation.selectors
        facts["distillation"] = distillation.report()
        if not experiment.quiet:
            print(distillation.summary(), flush=True)
    else:
        model, loss_fn = task.wrap(build(experiment), options.seed), task.loss
        if options.remat:
            loss_fn = recomputing(loss_fn)
    start = read_portable(Path(options.init_from)) if options.init_from else None
    if start is not None:
        said = {"step": start.step, "views": start.views, "parts": start.parts}
        facts["init_from"] = said | {"sha256": start.digest}
    trainer = make_trainer(
        model,
        loss_fn,
        steps=options.loop.steps,
        optimizer=options.optimizer,
        options=options.step,
        mesh=options.mesh,
        trainable=trainable,
        count=options.count or None,
        seed=options.seed,
        start=start,
    )
    evaluate = None
    if options.loop.evaluate_every:
        batches = (evaluation.batch(n).arrays() for n in range(options.data.held_out))
        evaluate = held_out(loss_fn, batches, trainer.mesh)
    with iter(pipeline) as batches:
        outcome = run_loop(
            trainer,
            batches,
            Path(experiment.output),
            options=options.loop,
            checkpoint=options.checkpoint,
            evaluate=evaluate,
            settings=asdict(experiment) | {"code": code_version()},
            free=FREE,
            allow_changes=options.allow_changes,
            facts=facts | {"mesh": dict(trainer.mesh.shape)},
            show=not experiment.quiet,
        )
    result, evaluated = None, None
    stopped = outcome.reason in ("terminated", "interrupted")
    goes_on = "; everything is saved, the same command goes on" if stopped else ""
    print(f"{experiment.output}: {outcome.reason} after step {int(outcome.state.step)}{goes_on}")
    if distillation is not None and outcome.reason == "done":
        folder = result = Path(experiment.output) / STUDENT
        distillation.write(folder, trained_parameters(outcome.state))
        if experiment.distill.final_variants and jax.process_index() == 0:
            evaluated = evaluate_models(_comparison(experiment))
    elif outcome.reason == "done":
        folder = result = Path(experiment.output) / WEIGHTS
        whole = trained_parameters(outcome.state) | trainer.frozen
        arrays: Any = {path: to_host(x) for path, x in whole.items()}
        trained = trainer.layout.merge(arrays)
        if jax.process_index() == 0:
            origin = None
            if experiment.weights:  # the license goes on with them
                origin = read_manifest(resolve(experiment.weights)[0]).origin
            save(
                task.unwrap(trained),
                folder,
                backbone=experiment.backbone,
                origin=origin,
                overwrite=True,
            )
    step = int(outcome.state.step)
    return Training(outcome.reason, step, Path(experiment.output), result, evaluated)


def check_distillation(experiment: Experiment) -> None:
    """Raises if no distillation can start from the settings, before anything is read.

    Raises:
        InputError: naming the setting, and what to do.
    """
    if experiment.train.trainable != TrainOptions().trainable:
        raise InputError(
            "config.train.trainable: a distillation trains what config.distill.trainable names;"
            " leave it out"
        )
    if experiment.train.model:
        raise InputError(
            "config.train.model: a distillation has a teacher with weights; set config.weights"
        )
    if not experiment.weights:
        raise InputError(
            "config.weights: not set; the teacher's, for example facebook/VGGT-1B, which is"
            " downloaded and converted once, or a directory made by lite3r"
            " convert; --config=configs/vggt.py:tiny needs no download"
        )
    if experiment.distill.final_variants:
        options = _comparison(experiment).evaluate
        parse_variants(options.variants, options.student, "distill.final_variants", refine=True)
        for name, views in options.tasks():
            open_protocol(name, views=views, size=options.pixels())


def check_unlabeled(experiment: Experiment) -> None:
    """Raises if the objective needs cameras or depth that the data does not have.

    Raises:
        InputError: naming the settings that can; a source that is not set or not known.
    """
    options, distill = experiment.train, experiment.distill
    if not options.data.source:
        raise InputError(
            "config.train.data.source: not set; blendedmvs:FOLDER (BlendedMVS in low"
            " resolution, unpacked), photos:FOLDER for photos without cameras (see"
            " configs/vggt.py:unlabeled), or synthetic, which is generated and needs no download;"
            " --config=configs/vggt.py:tiny has all that it needs"
        )
    specs = parse_sources(options.data.source)
    if distill.plan and distill.targets != "truth":
        return
    needing = "distill.targets=truth" if distill.plan else "training without a teacher"
    for spec in specs:
        if not spec.row.has_ground_truth:
            raise InputError(
                f"config.train.data.source: {spec.row.name} have no cameras and depth, which"
                f" {needing} needs; distill a student with config.distill.targets=teacher"
                " (configs/vggt.py:unlabeled), or with targets=none and match.mode=layerwise"
                " (configs/vggt.py:unlabeled,apart)"
            )


def _comparison(experiment: Experiment) -> Experiment:
    """Returns the settings of the evaluation of a finished student."""
    out, variants = Path(experiment.output), experiment.distill.final_variants
    evaluate = replace(experiment.evaluate, variants=variants, student=str(out / STUDENT))
    return replace(experiment, output=str(out / EVALUATION), evaluate=evaluate)


def build_distillation(experiment: Experiment, task: LossFn) -> Distillation:
    """Builds student and teacher, with the loss between them.

    Raises:
        InputError: settings and weights do not fit together.
    """
    options, distill = experiment.train, experiment.distill
    preset(distill.precision)  # a misspelt name before weights are read
    spec = ModelSpec(
        experiment.weights,
        attention=distill.student_plan(),
        dtype=jnp.dtype(options.dtype),
        param_dtype=jnp.float32,
        seed=options.seed,
    )
    return prepare(
        _checked(spec, experiment).build(_heads(options)),
        experiment.weights,
        distill,
        steps=options.loop.steps,
        task=task,
        forward=(("remat", True),) if options.remat else (),
        seed=options.seed,
    )


def recomputing(loss_fn: LossFn) -> LossFn:
    """Wraps a loss to recompute activations in the backward pass of the model (`remat`)."""

    def loss(model: Any, batch: Any, key: jax.Array) -> Any:
        return loss_fn(partial(model, remat=True), batch, key)

    return loss


def _heads(options: TrainOptions) -> tuple[str, ...]:
    return tuple(head.strip() for head in options.heads.split(","))


def _checked(spec: ModelSpec, experiment: Experiment) -> CheckedModel:
    """Checks the model, and prints a note on images of another size than its weights are for."""
    model = check_model(spec, experiment.backbone)
    buckets = parse_buckets(experiment.train.data.buckets)
    if note := size_note(model, ((bucket.height, bucket.width) for bucket in buckets)):
        print(note, file=sys.stderr, flush=True)
    return model


def build(experiment: Experiment) -> nnx.Module:
    """Builds the model: with converted weights, or with random ones for a config.

    Raises:
        InputError: neither or both are given, or they cannot be read.
    """
    options = experiment.train
    if bool(experiment.weights) == bool(options.model):
        raise InputError(
            "config.weights and config.train.model: set one of them, weights to go on from or the"
            " JSON config of a model to begin"
        )
    kinds = {"heads": _heads(options), "dtype": jnp.dtype(options.dtype)}
    if experiment.weights:
        spec = ModelSpec(experiment.weights, dtype=kinds["dtype"], param_dtype=jnp.float32)
        return _checked(spec, experiment).build(kinds["heads"])
    backbone = get_backbone(experiment.backbone)
    config = backbone.config_from_json(strict_json.read_object(Path(options.model)))
    model = backbone.build(
        config, plan=None, param_dtype=jnp.float32, rngs=nnx.Rngs(options.seed), **kinds
    )
    return model


def open_data(
    options: TrainOptions, video: VideoOptions | None = None
) -> tuple[Pipeline, Pipeline]:
    """Opens the batches to train on, and those of held-out scenes.

    Args:
        options: of the run.
        video: which frames of videos among photos without cameras; None: one per second.

    Raises:
        InputError: settings without a meaning, or no dataset there.
    """
    data = options.data
    buckets = parse_buckets(data.buckets)
    reading = SourceOptions(
        views=max(bucket.views for bucket in buckets),
        scenes=data.scenes,
        frames=data.frames,
        cache=data.cache,
        video=video,
    )
    # what nobody evaluates on is not held out
    opened = open_training(data.source, reading, hold_out_views=bool(options.loop.evaluate_every))
    for source in opened:
        if source.report:
            print(source.report, flush=True)
    truth = all(source.spec.row.has_ground_truth for source in opened)
    if truth:
        check_depth(options, opened)
    where = {"process_index": jax.process_index(), "process_count": jax.process_count()}

    def pipeline(held_out: bool, shapes: Any, seed: int, **more: Any) -> Pipeline:
        settings = PipelineOptions(
            shapes,
            seed=seed,
            normalization=data.normalization if truth and data.normalization != "none" else None,
            has_ground_truth=truth,
            **more,
        )
        parts = [
            Part(s.held_out, s.spec.weight, data.strategy)
            if held_out
            else Part(s.training, s.spec.weight, data.strategy, data.renew)
            for s in opened
        ]
        return Pipeline(parts, settings, **where)

    return (
        pipeline(
            False,
            buckets,
            options.seed,
            workers=data.workers,
            prefetch=data.prefetch,
            augmentation=data.augmentation,
        ),
        pipeline(True, buckets[:1], 0),
    )


def check_depth(options: TrainOptions, sources: Sequence[TrainingSource]) -> None:
    """Raises if settings need depth where a source has cameras alone.

    Raises:
        InputError: naming the source and the settings that can do without.
    """
    without = [s.spec for s in sources if not s.spec.has_depth(s.training)]
    if not without:
        return
    if options.data.normalization == "vggt":
        raise InputError(
            f"config.train.data.normalization: vggt needs depth, {without[0]} has cameras alone;"
            " set lite3r or none"
        )
    counted = (
        options.loss.kind == "multitask" and options.loss.multitask_camera.min_valid_pixels < 0
    )
    if not counted:
        raise InputError(
            f"config.train.loss: no scene of {without[0]} would count, which has cameras without"
            " depth; set train.loss.kind=multitask and"
            " train.loss.multitask_camera.min_valid_pixels=-1"
        )
