"""`--mode=train`: a backbone and data with known cameras to checkpoints."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lite3r_jax.backbones.base import get_backbone
from lite3r_jax.data.blendedmvs import BlendedMVS
from lite3r_jax.data.pipeline import Part, Pipeline, PipelineOptions, parse_buckets
from lite3r_jax.data.synthetic.source import SyntheticScenes
from lite3r_jax.data.views import SceneSource
from lite3r_jax.errors import InputError
from lite3r_jax.experiment import Experiment, require
from lite3r_jax.infer.report import environment
from lite3r_jax.train.loop import Diverged, train
from lite3r_jax.train.options import DataOptions, TrainOptions
from lite3r_jax.train.task import held_out, task_loss
from lite3r_jax.train.trainer import make_trainer
from lite3r_jax.weights import strict_json
from lite3r_jax.weights.load import load

DONE, DIVERGED, TERMINATED = 0, 3, 75
"""Exit codes. 75 is EX_TEMPFAIL: run the same command again."""
FREE = ("output", "overwrite", "train.checkpoint", "train.data.workers", "train.data.prefetch",
        "train.mesh", "train.loop.tensorboard")  # fmt: skip
"""Settings that may change from one part of a run to the next."""


def run(experiment: Experiment) -> int:
    """Train, or continue a run, in the folder `output`.

    Args:
        experiment: `output` and `train`, and either `weights` or `train.model`.

    Returns:
        Exit code: 0 when all steps are done, 75 after SIGTERM with everything saved, 3 when too
        many steps in a row had to be skipped.

    Raises:
        InputError: nothing was trained: settings, data, weights or the folder are wrong; or the
            folder can no longer be written.
    """
    require(experiment, "output")
    options = experiment.train
    pipeline, evaluation = open_data(options)
    loss_fn = task_loss(options.loss)
    trainer = make_trainer(
        build(experiment),
        loss_fn,
        steps=options.loop.steps,
        optimiser=options.optimiser,
        options=options.step,
        mesh=options.mesh,
        trainable=(options.trainable,),
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
                facts=environment() | {"mesh": dict(trainer.mesh.shape)},
            )
    except Diverged as error:
        print(f"error: {error}", file=sys.stderr)
        return DIVERGED
    print(f"{experiment.output}: {outcome.reason} after step {int(outcome.state.step)}")
    return TERMINATED if outcome.reason == "terminated" else DONE


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
    kinds = {"heads": ("camera", "depth"), "dtype": jnp.dtype(options.dtype)}
    if experiment.weights:
        return load(experiment.weights, param_dtype=jnp.float32, **kinds)
    backbone = get_backbone(experiment.backbone)
    config = backbone.config_from_json(strict_json.read_object(Path(options.model)))
    return backbone.build(
        config, plan=None, param_dtype=jnp.float32, rngs=nnx.Rngs(options.seed), **kinds
    )


def open_data(options: TrainOptions) -> tuple[Pipeline, Pipeline]:
    """Batches to train on, and those of held-out scenes.

    Raises:
        InputError: settings without a meaning, or no dataset there.
    """
    data = options.data
    buckets = parse_buckets(data.buckets)
    where = {"process_index": jax.process_index(), "process_count": jax.process_count()}

    def pipeline(source: SceneSource, shapes: Any, seed: int, **more: Any) -> Pipeline:
        settings = PipelineOptions(
            shapes,
            seed=seed,
            normalization=None if data.normalization == "none" else data.normalization,
            **more,
        )
        return Pipeline([Part(source, strategy=data.strategy)], settings, **where)

    training, validation = _sources(data)
    return (
        pipeline(training, buckets, options.seed, workers=data.workers, prefetch=data.prefetch),
        pipeline(validation, buckets[:1], 0),
    )


def _sources(data: DataOptions) -> tuple[SceneSource, SceneSource]:
    if data.source == "synthetic":
        return (
            SyntheticScenes("train", data.scenes, data.frames),
            SyntheticScenes("validation", 1000, data.frames),
        )
    root = Path(data.source)
    return BlendedMVS(root, "train"), BlendedMVS(root, "validation")
