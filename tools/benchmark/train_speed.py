"""Measures the parts of a training step on this machine, and the speed of the whole loop.

    python -m tools.benchmark.train_speed lite3r_jax/recipes/vggt_tiny_teacher.py
    python -m tools.benchmark.train_speed FILE --buckets 16x4x112x112 --workers 0 1
    python -m tools.benchmark.train_speed FILE --loop-only --remat

First every part alone, in processor time of this process, the least of some runs: the gradient of
encoder and trunk, of the dense head, of the camera head, of everything (the rest are losses and
helpers), one update of the optimizer, the step as it is compiled for the loop, and a batch, of
scenes that were never drawn and of scenes that are in memory. Shares are of the step and a batch
from memory. A part that is compiled alone may be slower than within the step.

Then the real loop, in wall time: steps per second without the first step, which compiles, and the
part of the time in which it had no batch. Of several shapes of batches the loop would compile each
in the middle of the run, so --buckets takes one.
"""

import argparse
import json
import runpy
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lite3r_jax import InputError
from lite3r_jax.allocator import keep_freed_memory
from lite3r_jax.backbones.heads import run_frames
from lite3r_jax.backbones.vggt import VGGT
from lite3r_jax.data.pipeline import parse_buckets
from lite3r_jax.experiment import Experiment, from_config
from lite3r_jax.runs.train import build, open_data, recomputing
from lite3r_jax.training.checkpoint import CheckpointOptions
from lite3r_jax.training.loop import LoopOptions, train
from lite3r_jax.training.parameters import size
from lite3r_jax.training.run_dir import EVENTS
from lite3r_jax.training.step import LossFn
from lite3r_jax.training.tasks import make_task
from lite3r_jax.training.trainer import Trainer, make_trainer

RUNS = 5
"""Number of runs of each part that is timed, of which the fastest counts."""


def main() -> None:
    """Parses the command line, measures the parts and a short training, and prints them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="FILE.py or FILE.py:VARIANT, of a training without teacher")
    parser.add_argument("--steps", type=int, default=30, help="of the loop that are timed")
    parser.add_argument("--workers", type=int, nargs="+", default=[0])
    parser.add_argument("--buckets", help="one shape of batches; default: the first of the config")
    parser.add_argument(
        "--scenes", type=int, help="of each part of the data; default: the config's"
    )
    parser.add_argument("--remat", action="store_true")
    parser.add_argument("--loop-only", action="store_true", help="without the parts")
    parser.add_argument("--parts-only", action="store_true", help="without the loop")
    parser.add_argument(
        "--give-back", action="store_true", help="freed memory, which the command keeps on a CPU"
    )
    args = parser.parse_args()
    try:
        run(args)
    except InputError as error:
        sys.exit(f"error: {error}")


def run(args: argparse.Namespace) -> None:
    """Measures the parts of a training step and the training loop, and prints their times."""
    if not args.give_back:
        keep_freed_memory()
    experiment = read(args.config)
    options = experiment.train
    buckets = args.buckets or options.data.buckets.split(",")[0].partition("*")[0]
    data = replace(options.data, buckets=buckets, scenes=args.scenes or options.data.scenes)
    options = replace(options, remat=args.remat or options.remat, data=data)
    experiment = replace(experiment, train=options)
    trainer, loss_fn = make(experiment, args.steps)
    (bucket,) = parse_buckets(buckets)
    views = bucket.batch * bucket.views
    print(
        f"jax {jax.__version__} on {jax.devices()[0].device_kind}, {size(trainer.params):,} trained"
        f" parameters, {options.dtype}, remat {options.remat}, {buckets}"
    )
    if not args.loop_only:
        show_parts(parts(experiment, trainer, loss_fn), views)
    for workers in () if args.parts_only else args.workers:
        speed, share = measure(experiment, trainer, workers, args.steps)
        print(
            f"loop, {workers} workers: {speed:.3f} steps/s, {speed * views:.2f} views/s, waiting"
            f" for data {100 * share:.1f} %",
            flush=True,
        )


def read(name: str) -> Experiment:
    """Reads the experiment of a config file, which must be a training without a teacher."""
    path, _, variant = name.partition(":")
    made = runpy.run_path(path)["get_config"](*[variant] if variant else [])
    experiment = from_config(made.to_dict())
    if experiment.distill.plan:
        raise InputError(f"{name}: is a distillation; take a training without a teacher")
    return experiment


def make(experiment: Experiment, steps: int) -> tuple[Trainer, LossFn]:
    """Makes the trainer of an experiment, as `--mode=train` makes it, and its objective."""
    options = experiment.train
    task = make_task(experiment)
    loss_fn = recomputing(task.loss) if options.remat else task.loss
    trainer = make_trainer(
        task.wrap(build(experiment), options.seed),
        loss_fn,
        steps=steps + 1,
        optimizer=options.optimizer,
        options=options.step,
        mesh=options.mesh,
        trainable=(options.trainable,),
        seed=options.seed,
    )
    return trainer, loss_fn


def parts(experiment: Experiment, trainer: Trainer, loss_fn: LossFn) -> dict[str, float]:
    """Measures the processor seconds of every part of a step, by name."""
    data = replace(experiment.train.data, workers=0, prefetch=0, cache=True)
    pipeline, _ = open_data(replace(experiment.train, data=data))
    pipeline.batch(0)  # compiles the renderer
    seconds = {"batch, never drawn": min(_once(lambda n=n: pipeline.batch(n)) for n in range(1, 4))}
    seconds["batch, in memory"] = min(_once(lambda: pipeline.batch(1)) for _ in range(RUNS))
    batch = {name: jnp.asarray(x) for name, x in pipeline.batch(1).arrays().items()}
    params, frozen, layout = trainer.params, trainer.frozen, trainer.layout
    key = jax.random.key(0)

    with jax.set_mesh(trainer.mesh):
        model = layout.merge(params, frozen)
        task = make_task(experiment)
        vggt = task.unwrap(model)
        if isinstance(vggt, VGGT):
            chunk = experiment.train.loss.frame_chunk
            seconds |= vggt_parts(vggt, batch["images"], chunk, task.dense_fraction)

        def objective(params: Any, batch: Any) -> Any:
            return loss_fn(layout.merge(params, frozen), batch, key)[0]

        gradient = jax.jit(jax.grad(objective))
        seconds["gradient"] = _least(gradient, params, batch)
        grads, state = gradient(params, batch), trainer.new_state()
        update = jax.jit(trainer.optimizer.update)
        seconds["optimizer"] = _least(update, grads, state.opt_state, state.params)
    times = []
    for _ in range(RUNS + 1):
        start = time.process_time()
        state, metrics = trainer.step(state, frozen, batch)
        jax.block_until_ready((state, metrics))
        times.append(time.process_time() - start)
    return seconds | {"step": min(times[1:])}


def vggt_parts(
    model: VGGT, images: jax.Array, frame_chunk: int, fraction: float
) -> dict[str, float]:
    """Times gradients of the parts of a VGGT by name, of the mean square of their outputs.

    Args:
        model: with heads camera and depth.
        images: [B, S, H, W, 3].
        frame_chunk: of the dense head.
        fraction: of the views whose depth is predicted.
    """
    config, count = model.config, images.shape[1]
    grid = (images.shape[2] // config.patch_size, images.shape[3] // config.patch_size)
    read = [model.aggregator.read.index(layer) for layer in config.dpt.intermediate_layer_idx]
    kept = model.aggregator(images)[0]
    dense = kept[:, : max(1, round(fraction * count))]

    def trunk(part: Any) -> jax.Array:
        return part(images)[0]

    def depth(part: Any, tokens: jax.Array) -> jax.Array:
        return run_frames(part, tokens, read, model.aggregator.special, frame_chunk, grid)

    def camera(part: Any, tokens: jax.Array) -> jax.Array:
        return part(tokens[:, :, -1, 0])

    return {
        "gradient, encoder and trunk": _gradient(trunk, model.aggregator),
        "gradient, dense head": _gradient(depth, model.depth_head, dense),
        "gradient, camera head": _gradient(camera, model.camera_head, kept),
    }


def _gradient(apply: Callable[..., jax.Array], module: nnx.Module, *inputs: jax.Array) -> float:
    graph, state = nnx.split(module)

    def objective(state: Any, *inputs: jax.Array) -> jax.Array:
        return jnp.square(apply(nnx.merge(graph, state), *inputs)).mean()

    return _least(jax.jit(jax.grad(objective, tuple(range(1 + len(inputs))))), state, *inputs)


def _least(function: Callable[..., Any], *args: Any) -> float:
    jax.block_until_ready(function(*args))
    return min(_once(lambda: jax.block_until_ready(function(*args))) for _ in range(RUNS))


def _once(function: Callable[[], Any]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def show_parts(seconds: dict[str, float], views: int) -> None:
    """Prints a table of the seconds of all parts."""
    whole = seconds["step"] + seconds["batch, in memory"]
    print(f"{'part':30s} {'s':>7s} {'ms/view':>8s} {'share':>7s}")
    for name, part in seconds.items():
        print(f"{name:30s} {part:7.3f} {1e3 * part / views:8.2f} {part / whole:7.1%}")
    print(f"step and batch in memory: {views / whole:.1f} views per second of one core", flush=True)


def measure(
    experiment: Experiment, trainer: Trainer, workers: int, steps: int
) -> tuple[float, float]:
    """Runs the loop; returns steps per second and the share of time without a batch."""
    data = experiment.train.data
    data = replace(data, workers=workers, prefetch=max(data.prefetch, min(workers, 1)))
    pipeline, _ = open_data(replace(experiment.train, data=data))
    with tempfile.TemporaryDirectory() as folder, iter(pipeline) as batches:
        options = LoopOptions(steps + 1, log_every=steps + 1)
        checkpoint = CheckpointOptions(every=steps + 1)
        train(trainer, batches, Path(folder), options=options, checkpoint=checkpoint, show=False)
        lines = [json.loads(line) for line in (Path(folder) / EVENTS).read_text().splitlines()]
    (speed,) = [line for line in lines if line["event"] == "speed"]
    return speed["steps_per_second"], speed["input_share"]


if __name__ == "__main__":
    main()
