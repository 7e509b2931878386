"""Plans memory and communication of a training step for H200s or TPUs, by compiling without one.

    JAX_PLATFORMS=cpu python -m tools.benchmark.train_memory --views 2 8 24
    JAX_PLATFORMS=cpu python -m tools.benchmark.train_memory --data 1 --fsdp 4 --views 8
    JAX_PLATFORMS=cpu python -m tools.benchmark.train_memory --recipe fp8 --views 2 8 24
    PYTHONPATH=.venv/tpu JAX_PLATFORMS=cpu python -m tools.benchmark.train_memory --recipe fp8 \
        --plan v5e --fsdp 4 --views 2

The step is that of `--mode=train`: bfloat16 compute, float32 parameters, AdamW, the multitask loss.
With --recipe it is that of `configs/vggt.py`, a student beside its teacher, or what the variants
make of it that are named (fp8: with simulated float8). The model is VGGT-1B with camera and depth
heads, or has the sizes in --config. Needs jax-cuda13-plugin and jax-cuda13-pjrt of jax's version,
no GPU and no driver. cuDNN cannot be compiled for that way, so attention has its blocked form, and
Triton GEMMs are off because nothing can be tuned.

With --plan v5e, v5p or v6e it is compiled for the chips of a slice (see `tools.benchmark.tpu`), and
with --here for the devices of this machine.

Memory is XLA's plan for one device; parameters, optimizer and batch are its arguments. Bytes of
collectives are what one device gets from them in one step. --record appends every plan to a file of
JSON lines (`tools.benchmark.plans`, which makes tables of them).
"""

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from lite3r_jax import InputError
from lite3r_jax.attention.dense import Dense
from lite3r_jax.attention.plan import Plan
from lite3r_jax.backbones.base import get_backbone
from lite3r_jax.distillation.recipe import as_student, objective
from lite3r_jax.distillation.teacher_student import make_pair, selectors
from lite3r_jax.distillation.trainable import trained_paths
from lite3r_jax.experiment import from_config
from lite3r_jax.kernels import proofs
from lite3r_jax.layers.rngs import traced_rngs
from lite3r_jax.training.optimizer import OptimizerOptions
from lite3r_jax.training.sharding import MeshOptions, batch_shardings, check_batch, make_mesh
from lite3r_jax.training.step import LossFn, StepOptions
from lite3r_jax.training.task import LossOptions, task_loss
from lite3r_jax.training.trainer import Trainer, make_trainer
from lite3r_jax.weights import strict_json
from tools.benchmark import plans, tpu
from tools.benchmark.collectives import collectives, described, summary

GIB = 2**30


def main(argv: list[str] | None = None) -> None:
    """Parses the command line, compiles, and prints one line per number of views."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, help="JSON sizes of a VGGT; VGGT-1B without it")
    parser.add_argument("--views", type=int, nargs="+", default=[2])
    parser.add_argument("--size", type=int, nargs=2, default=[518, 518], metavar=("H", "W"))
    parser.add_argument("--scenes", type=int, help="of the whole batch; default: data x fsdp")
    parser.add_argument("--data", type=int, default=1)
    parser.add_argument("--fsdp", type=int, default=1)
    parser.add_argument("--view", type=int, default=1)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--frame-chunk", type=int, default=1)
    parser.add_argument("--remat", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--trainable", default=".*", help="regular expression")
    parser.add_argument(
        "--recipe", nargs="?", const="", metavar="VARIANTS",
        help="of configs/vggt.py, which says what the model, --dtype, --remat and --trainable are",
    )  # fmt: skip
    parser.add_argument("--accumulate", type=int, default=1)
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--here", action="store_true", help="for the devices of this machine")
    where.add_argument("--plan", choices=["h200", *tpu.CHIPS], default="h200", help="for these")
    parser.add_argument("--record", type=Path, help="append the plan to this file of JSON lines")
    args = parser.parse_args(argv)
    try:
        run(args)
    except InputError as error:
        sys.exit(f"error: {error}")


def run(args: argparse.Namespace) -> None:
    """Compiles the training step for every number of views and prints XLA's memory plan of it."""
    count = args.data * args.fsdp * args.view
    on_tpus = args.plan in tpu.CHIPS
    devices = None
    if not args.here:
        devices = tpu.devices(args.plan, count) if on_tpus else described(count)
    mesh = make_mesh(MeshOptions(args.data, args.fsdp, args.view), devices)
    trainer = make(args, mesh) if args.recipe is None else make_distillation(args, mesh)
    what = ["this machine" if args.here else args.plan]
    if args.recipe is None:
        what += [args.dtype, f"remat {args.remat}"]
    else:
        what += [f"configs/vggt.py:{args.recipe}"]
    print(f"jax {jax.__version__}, compiled for {', '.join(what)}; mesh {dict(mesh.shape)}")
    for views in args.views:
        scenes = args.scenes or args.data * args.fsdp
        start = time.perf_counter()
        batch = shapes(scenes, views, args.size, mesh, args.accumulate)
        with contextlib.nullcontext() if args.here else proofs.assumed():
            lowered = trainer.step.lower(trainer.shapes(), trainer.frozen, batch)
        row = {
            "program": "train" if args.recipe is None else "distill", "what": what[1:],
            "scenes": scenes, "views": views, "height": args.size[0], "width": args.size[1],
            "mesh": [args.data, args.fsdp, args.view], "accumulate": args.accumulate,
            "frame_chunk": args.frame_chunk,
        }  # fmt: skip
        step = f"{scenes} scenes x {views} views x {args.size[0]} x {args.size[1]}"
        device = None if args.here else args.plan
        outcome = plans.compiled(lowered, device, row, args.record)
        if isinstance(outcome, plans.TooLarge):
            print(f"{step}: {outcome}", flush=True)
            continue
        m = outcome.memory
        peak = m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes
        peak += m.temp_size_in_bytes
        print(
            f"{step}: a device needs"
            f" {peak / GIB:.2f} GiB (state and batch {m.argument_size_in_bytes / GIB:.2f},"
            f" temporary {m.temp_size_in_bytes / GIB:.2f}); traced and compiled in"
            f" {time.perf_counter() - start:.0f} s; {summary(collectives(outcome.text))}",
            flush=True,
        )


def make(args: argparse.Namespace, mesh: Mesh) -> Trainer:
    """Makes the trainer of a model without arrays."""
    model = abstract(args, Plan() if args.here else Plan(default=Dense("blocked")), args.dtype)
    return make_trainer(
        model,
        loss(args.frame_chunk, args.remat),
        steps=1000,
        optimizer=OptimizerOptions(),
        options=StepOptions(accumulate=args.accumulate),
        mesh=mesh,
        trainable=(args.trainable,),
    )


def make_distillation(args: argparse.Namespace, mesh: Mesh) -> Trainer:
    """Makes the trainer of a student beside its teacher, without arrays."""
    from lite3r_jax.recipes.vggt import get_config

    settings = from_config(get_config(args.recipe))
    options, distill = settings.train, settings.distill
    student = abstract(
        args, distill.student_plan(), options.dtype, lambda m: as_student(m, distill)
    )
    trained = trained_paths(student, distill.trainable)
    return make_trainer(
        make_pair(student, trained),
        objective(
            student,
            distill,
            steps=options.loop.steps,
            task=task_loss(replace(options.loss, frame_chunk=args.frame_chunk)),
            forward=(("remat", options.remat),),
        ),
        steps=options.loop.steps,
        optimizer=options.optimizer,
        options=replace(options.step, accumulate=args.accumulate),
        mesh=mesh,
        trainable=selectors(trained),
    )


def abstract(
    args: argparse.Namespace, plan: Plan, dtype: str, change: Callable[[Any], Any] = lambda m: m
) -> Any:
    """Builds a VGGT without arrays, changed by `change`."""
    backbone = get_backbone("vggt")
    config = backbone.default_config
    if args.config is not None:
        config = backbone.config_from_json(strict_json.read_object(args.config))
    kinds = {
        "heads": ("camera", "depth"),
        "plan": plan,
        "dtype": jnp.dtype(dtype),
        "param_dtype": jnp.float32,
    }
    return nnx.eval_shape(lambda: change(backbone.build(config, **kinds, rngs=traced_rngs(0))))


def loss(frame_chunk: int, remat: bool) -> LossFn:
    """Returns the multitask loss as a function of model, batch and key."""
    of_task = task_loss(LossOptions(kind="multitask", frame_chunk=frame_chunk))

    def of_model(model: Any, batch: Any, key: jax.Array) -> Any:
        return of_task(partial(model, remat=remat), batch, key)

    return of_model


def shapes(
    scenes: int, views: int, size: Sequence[int], mesh: Mesh, accumulate: int
) -> dict[str, jax.ShapeDtypeStruct]:
    """Describes a batch of `data.pipeline` by shapes, dtypes and shardings, without numbers."""
    b, s, height, width = scenes, views, *size
    batch = {
        "images": jax.ShapeDtypeStruct((b, s, height, width, 3), jnp.float32),
        "extrinsics": jax.ShapeDtypeStruct((b, s, 3, 4), jnp.float32),
        "intrinsics": jax.ShapeDtypeStruct((b, s, 3, 3), jnp.float32),
        "depth": jax.ShapeDtypeStruct((b, s, height, width), jnp.float32),
        "mask": jax.ShapeDtypeStruct((b, s, height, width), jnp.bool_),
    }
    check_batch(batch, mesh, accumulate)
    where = batch_shardings(batch, mesh)
    return {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where[name])
        for name, x in batch.items()
    }


if __name__ == "__main__":
    main()
