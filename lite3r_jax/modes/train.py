"""`--mode=train`: a backbone, or a student beside its teacher, and data to checkpoints."""

import sys
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lite3r_jax.allocator import keep_freed_memory
from lite3r_jax.backbones.base import get_backbone
from lite3r_jax.data.blendedmvs import BlendedMVS
from lite3r_jax.data.photo_scenes import PhotoScenes, find_photos, hold_out
from lite3r_jax.data.pipeline import Part, Pipeline, PipelineOptions, parse_buckets
from lite3r_jax.data.synthetic.source import SyntheticScenes
from lite3r_jax.data.video import VideoOptions
from lite3r_jax.data.views import SceneSource, ViewSource
from lite3r_jax.distill.recipe import Distillation, prepare
from lite3r_jax.errors import InputError
from lite3r_jax.evaluate.protocols import open_protocol
from lite3r_jax.evaluate.rows import parse_rows
from lite3r_jax.experiment import Experiment, require
from lite3r_jax.infer.report import environment
from lite3r_jax.modes import eval as evaluation_mode
from lite3r_jax.train.loop import Diverged, train
from lite3r_jax.train.options import DataOptions, TrainOptions
from lite3r_jax.train.scratch import Helped
from lite3r_jax.train.step import LossFn
from lite3r_jax.train.task import held_out, task_loss
from lite3r_jax.train.trainer import make_trainer
from lite3r_jax.weights import strict_json
from lite3r_jax.weights.load import load, resolve
from lite3r_jax.weights.manifest import read_manifest
from lite3r_jax.weights.save import save, to_host

DONE, DIVERGED, TERMINATED = 0, 3, 75
"""Exit codes. 75 is EX_TEMPFAIL: run the same command again."""
NEEDED = ("backbone", "weights", "video", "train", "distill")
"""Groups of settings that a training depends on."""
FREE = (
    *(field.name for field in fields(Experiment) if field.name not in NEEDED),
    "train.checkpoint", "train.data.workers", "train.data.prefetch", "train.mesh",
    "train.loop.tensorboard", "distill.compare",
)  # fmt: skip
"""Settings that may change from one part of a run to the next."""
WEIGHTS = "weights"
"""Folder of the result of a training, in `output`."""
STUDENT = "student"
"""Folder of the result of a distillation, in `output`."""
PHOTOS = "photos:"
"""What a `train.data.source` without cameras begins with."""
EVALUATION = "evaluation"
"""Folder of what `distill.compare` found, in `output`."""


def run(experiment: Experiment) -> int:
    """Train, or continue a run, in the folder `output`.

    A training that is done writes its weights into `weights/` of that folder, for `weights.load`; a
    distillation writes what it has trained into `student/` of that folder when it is done, see
    `distill.checkpoint`, and evaluates the rows of `distill.compare` into `evaluation/`.

    Args:
        experiment: `output` and `train`, and either `weights` or `train.model`; `distill.plan` and
            `weights` for a distillation.

    Returns:
        Exit code: 0 when all steps are done, 75 after SIGTERM with everything saved, 3 when too
        many steps in a row had to be skipped.

    Raises:
        InputError: nothing was trained: settings, data, weights or the folder are wrong; or the
            folder can no longer be written.
    """
    require(experiment, "output")
    keep_freed_memory()
    options = experiment.train
    if experiment.distill.plan:
        check_distillation(experiment)
    if options.data.source.startswith(PHOTOS):
        check_unlabelled(experiment)
    pipeline, evaluation = open_data(options, experiment.video)
    loss_fn = task_loss(options.loss)
    trainable: Sequence[str] = (options.trainable,)
    facts: dict[str, Any] = environment()
    distillation = None
    if experiment.distill.plan:
        distillation = build_distillation(experiment, loss_fn)
        model, loss_fn = distillation.pair, distillation.loss
        trainable = distillation.selectors
        facts["distillation"] = distillation.report()
        print(distillation.summary(), flush=True)
    else:
        model = build(experiment)
        if options.remat:
            if isinstance(model, Helped):
                raise InputError(
                    "config.train.remat: not with train.from_scratch, whose helpers look into the"
                    " model; switch one of them off"
                )
            loss_fn = recomputing(loss_fn)
    trainer = make_trainer(
        model,
        loss_fn,
        steps=options.loop.steps,
        optimiser=options.optimiser,
        options=options.step,
        mesh=options.mesh,
        trainable=trainable,
        count=options.count or None,
        seed=options.seed,
    )
    evaluate = None
    if options.loop.evaluate_every:
        batches = (evaluation.batch(n).arrays() for n in range(options.data.held_out))
        evaluate = held_out(loss_fn, batches, trainer.mesh)
    try:
        with iter(pipeline) as batches:
            outcome = train(
                trainer,
                batches,
                Path(experiment.output),
                options=options.loop,
                checkpoint=options.checkpoint,
                evaluate=evaluate,
                settings=asdict(experiment),
                free=FREE,
                facts=facts | {"mesh": dict(trainer.mesh.shape)},
            )
    except Diverged as error:
        print(f"error: {error}", file=sys.stderr)
        return DIVERGED
    print(f"{experiment.output}: {outcome.reason} after step {int(outcome.state.step)}")
    if distillation is not None and outcome.reason == "done":
        folder = Path(experiment.output) / STUDENT
        distillation.write(folder, outcome.state.params)
        print(f"{folder}: the student; it needs the weights of its teacher {experiment.weights}")
        if experiment.distill.compare and jax.process_index() == 0:
            evaluation_mode.run(_comparison(experiment))
    elif outcome.reason == "done":
        folder = Path(experiment.output) / WEIGHTS
        whole = outcome.state.params | trainer.frozen
        arrays: Any = {path: to_host(x) for path, x in whole.items()}
        trained = trainer.layout.merge(arrays)
        if jax.process_index() == 0:
            trained = trained.model if isinstance(trained, Helped) else trained
            origin = None
            if experiment.weights:  # the licence goes on with them
                origin = read_manifest(resolve(experiment.weights)[0]).origin
            save(trained, folder, backbone=experiment.backbone, origin=origin, overwrite=True)
            print(f"{folder}: the weights; load(...) and config.weights take this folder")
    return TERMINATED if outcome.reason == "terminated" else DONE


def check_distillation(experiment: Experiment) -> None:
    """Refuse what no distillation can start from, before anything is read.

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
            " downloaded and converted once, or a directory made by python -m"
            " tools.convert_torch_weights; --config=configs/vggt.py:tiny needs no download"
        )
    if experiment.distill.compare:
        options = _comparison(experiment).evaluate
        parse_rows(options.rows, options.student, "distill.compare")
        for name, views in options.tasks():
            open_protocol(name, views=views, size=options.pixels(), folders=options.folders)


def check_unlabelled(experiment: Experiment) -> None:
    """Refuse an objective that photos without cameras cannot have.

    Raises:
        InputError: naming the settings that can.
    """
    if experiment.distill.plan and experiment.distill.targets != "truth":
        return
    needing = "distill.targets=truth" if experiment.distill.plan else "training without a teacher"
    raise InputError(
        f"config.train.data.source: photos have no cameras and depth, which {needing} needs;"
        " distil a student with config.distill.targets=teacher (configs/vggt.py:unlabelled), or"
        " with targets=none and match.inputs=teacher (configs/vggt.py:unlabelled,apart)"
    )


def _comparison(experiment: Experiment) -> Experiment:
    """The evaluation of a finished student."""
    out, rows = Path(experiment.output), experiment.distill.compare
    evaluate = replace(experiment.evaluate, rows=rows, student=str(out / STUDENT))
    return replace(experiment, output=str(out / EVALUATION), evaluate=evaluate)


def build_distillation(experiment: Experiment, task: LossFn) -> Distillation:
    """Student and teacher.

    Raises:
        InputError: settings and weights do not fit together.
    """
    options = experiment.train
    return prepare(
        experiment.weights,
        experiment.distill,
        backbone=experiment.backbone,
        heads=_heads(options),
        steps=options.loop.steps,
        task=task,
        dtype=jnp.dtype(options.dtype),
        forward=(("remat", True),) if options.remat else (),
        seed=options.seed,
    )


def recomputing(loss_fn: LossFn) -> LossFn:
    """The loss with `remat` in the forward pass of the model."""

    def loss(model: Any, batch: Any, key: jax.Array) -> Any:
        return loss_fn(partial(model, remat=True), batch, key)

    return loss


def _heads(options: TrainOptions) -> tuple[str, ...]:
    return tuple(head.strip() for head in options.heads.split(","))


def build(experiment: Experiment) -> nnx.Module:
    """The model: converted weights, or random ones for a config.

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
        return load(experiment.weights, param_dtype=jnp.float32, **kinds)
    backbone = get_backbone(experiment.backbone)
    config = backbone.config_from_json(strict_json.read_object(Path(options.model)))
    model = backbone.build(
        config, plan=None, param_dtype=jnp.float32, rngs=nnx.Rngs(options.seed), **kinds
    )
    if options.from_scratch:
        return Helped(model, options.scratch, options.seed)
    return model


def open_data(
    options: TrainOptions, video: VideoOptions | None = None
) -> tuple[Pipeline, Pipeline]:
    """Batches to train on, and those of held-out scenes.

    Args:
        options: of the run.
        video: which frames of videos among photos without cameras; None: one per second.

    Raises:
        InputError: settings without a meaning, or no dataset there.
    """
    data = options.data
    buckets = parse_buckets(data.buckets)
    truth = not data.source.startswith(PHOTOS)
    where = {"process_index": jax.process_index(), "process_count": jax.process_count()}

    def pipeline(source: ViewSource, shapes: Any, seed: int, **more: Any) -> Pipeline:
        settings = PipelineOptions(
            shapes,
            seed=seed,
            normalization=data.normalization if truth and data.normalization != "none" else None,
            truth=truth,
            **more,
        )
        return Pipeline([Part(source, strategy=data.strategy)], settings, **where)

    training, validation = _sources(data) if truth else _photos(options, video)
    return (
        pipeline(
            training,
            buckets,
            options.seed,
            workers=data.workers,
            prefetch=data.prefetch,
            augmentation=data.augmentation,
        ),
        pipeline(validation, buckets[:1], 0),
    )


def _photos(options: TrainOptions, video: VideoOptions | None) -> tuple[PhotoScenes, PhotoScenes]:
    folder = options.data.source.removeprefix(PHOTOS)
    views = max(bucket.views for bucket in parse_buckets(options.data.buckets))
    whole, left_out = find_photos(folder, views, video)
    # what nobody evaluates on is not held out
    training, held = hold_out(whole, views) if options.loop.evaluate_every else (whole, whole)
    said = f"{folder}: {whole.count} photos in {len(whole.scenes)} scenes"
    if held is not whole:
        said += f", {held.count} of them held out"
    if left_out:
        names = ", ".join(f"{name} ({count})" for name, count in left_out.items())
        said += f"; left out, with fewer than {views} photos: {names}"
    print(said, flush=True)
    return training, held


def _sources(data: DataOptions) -> tuple[SceneSource, SceneSource]:
    if data.source == "synthetic":
        return (
            SyntheticScenes(
                "train", data.scenes, data.frames, renderer="jax", remember=data.remember
            ),
            SyntheticScenes("validation", 1000, data.frames, renderer="jax"),
        )
    if not data.source:
        raise InputError(
            "config.train.data.source: not set; the folder of BlendedMVS (low-resolution set of its"
            " authors, unpacked), photos:FOLDER for photos without cameras (see"
            " configs/vggt.py:unlabelled), or synthetic, which is generated and needs no download;"
            " --config=configs/vggt.py:tiny has all that it needs"
        )
    root = Path(data.source)
    if root.is_dir() and not any([*root.glob("blended_images"), *root.glob("*/blended_images")]):
        raise InputError(
            f"config.train.data.source: {root} has no scene of BlendedMVS (a folder with"
            f" blended_images); for photos without cameras say photos:{root}"
        )
    return BlendedMVS(root, "train"), BlendedMVS(root, "validation")
