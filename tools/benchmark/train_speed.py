"""Steps per second of a training run on this machine, and its share of waiting for data.

    python -m tools.benchmark.train_speed configs/vggt_tiny_teacher.py --workers 0 1 2
    python -m tools.benchmark.train_speed configs/vggt_tiny_teacher.py --buckets 2x4x112x112 --remat

Every line is one run of the real loop, without its first step, which compiles, and without
checkpoints but for that of the end. The share is that of the wall time in which the loop had no
batch: near 0 the data pipeline is not what limits the speed. Of several shapes of batches the loop
would compile each in the middle of the run, so --buckets takes one.
"""

import argparse
import json
import runpy
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import jax

from lite3r_jax import InputError
from lite3r_jax.allocator import keep_freed_memory
from lite3r_jax.data.pipeline import parse_buckets
from lite3r_jax.experiment import Experiment, from_config
from lite3r_jax.modes.train import build, open_data, recomputing
from lite3r_jax.train.checkpoint import CheckpointOptions
from lite3r_jax.train.folder import EVENTS
from lite3r_jax.train.loop import LoopOptions, train
from lite3r_jax.train.parameters import size
from lite3r_jax.train.task import task_loss
from lite3r_jax.train.trainer import Trainer, make_trainer


def main() -> None:
    """Parse, train a little, print one line per number of workers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="FILE.py or FILE.py:VARIANT, of a training without teacher")
    parser.add_argument("--steps", type=int, default=30, help="that are timed")
    parser.add_argument("--workers", type=int, nargs="+", default=[0])
    parser.add_argument("--buckets", help="one shape of batches; default: the first of the config")
    parser.add_argument("--remat", action="store_true")
    parser.add_argument(
        "--give-back", action="store_true", help="freed memory, which the command keeps on a CPU"
    )
    args = parser.parse_args()
    try:
        run(args)
    except InputError as error:
        sys.exit(f"error: {error}")


def run(args: argparse.Namespace) -> None:
    """Measure."""
    if not args.give_back:
        keep_freed_memory()
    experiment = read(args.config)
    buckets = args.buckets or experiment.train.data.buckets.split(",")[0]
    experiment = replace(
        experiment,
        train=replace(
            experiment.train,
            remat=args.remat or experiment.train.remat,
            data=replace(experiment.train.data, buckets=buckets),
        ),
    )
    trainer = make(experiment, args.steps)
    (bucket,) = parse_buckets(buckets)
    print(
        f"jax {jax.__version__} on {jax.devices()[0].device_kind}, {size(trainer.params):,} trained"
        f" parameters, {experiment.train.dtype}, remat {experiment.train.remat}, {buckets}"
    )
    for workers in args.workers:
        speed, share = measure(experiment, trainer, workers, args.steps)
        views = speed * bucket.batch * bucket.views
        print(
            f"{workers} workers: {speed:.3f} steps/s, {views:.2f} views/s, waiting for data"
            f" {100 * share:.1f} %",
            flush=True,
        )


def read(name: str) -> Experiment:
    """The experiment of a config file."""
    path, _, variant = name.partition(":")
    made = runpy.run_path(path)["get_config"](*[variant] if variant else [])
    experiment = from_config(made.to_dict())
    if experiment.distill.plan:
        raise InputError(f"{name}: is a distillation; take a training without a teacher")
    return experiment


def make(experiment: Experiment, steps: int) -> Trainer:
    """What the run does, as `--mode=train` makes it."""
    options = experiment.train
    loss_fn = task_loss(options.loss)
    return make_trainer(
        build(experiment),
        recomputing(loss_fn) if options.remat else loss_fn,
        steps=steps + 1,
        optimiser=options.optimiser,
        options=options.step,
        mesh=options.mesh,
        trainable=(options.trainable,),
        seed=options.seed,
    )


def measure(
    experiment: Experiment, trainer: Trainer, workers: int, steps: int
) -> tuple[float, float]:
    """(steps per second, share of the time in which there was no batch)."""
    data = replace(experiment.train.data, workers=workers)
    pipeline, _ = open_data(replace(experiment.train, data=data))
    with tempfile.TemporaryDirectory() as folder, iter(pipeline) as batches:
        options = LoopOptions(steps + 1, log_every=steps + 1)
        checkpoint = CheckpointOptions(every=steps + 1)
        train(trainer, batches, Path(folder), options=options, checkpoint=checkpoint, show=False)
        lines = [json.loads(line) for line in (Path(folder) / EVENTS).read_text().splitlines()]
    (found,) = [line for line in lines if line["event"] == "speed"]
    return found["steps_per_second"], found["input_share"]


if __name__ == "__main__":
    main()
