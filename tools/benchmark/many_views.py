r"""Compares models by time and memory for many views on this machine, or planned for an H200.

    python -m tools.benchmark.many_views --rows dense-float32,spark3r-float32 --views 128 \
        --height 112 --width 140
    python -m tools.benchmark.many_views --backbone pi3 --rows dense-float32,speed3r-float32 \
        --views 16 32 --height 280 --width 378
    JAX_PLATFORMS=cpu python -m tools.benchmark.many_views --plan h200 --views 32 100 300 1000

VGGT-1B, or another backbone of its published size, with camera and depth heads and random weights,
one scene. A row is a model as `--mode=bench` has it, ATTENTION-PRECISION; others are compared with
the first. Rows take turns with the same images and, where they have the same, the same weights. On
a CPU time is that of the processor, which other work on the machine changes less than that of the
clock. "Of operations" is how much of the ratio of operations (`benchmarking.flops`) the ratio of
times is.

`--plan h200` compiles for a described device (needs jax-cuda13-plugin and jax-cuda13-pjrt of jax's
version, no GPU and no driver) and runs nothing. Launches are those of the optimized program, loops
as often as they turn. cuDNN's attention cannot be compiled for without a GPU: in its place is one
kernel for each layer that takes q, k and v and gives o. `roofline` has the estimate of the time.
"""

import argparse
import gc
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lite3r_jax import InputError
from lite3r_jax.allocator import give_back_freed_memory
from lite3r_jax.attention.plan import Plan
from lite3r_jax.attention.presets import parse_plan
from lite3r_jax.backbones.base import backbone_names, get_backbone
from lite3r_jax.benchmarking.flops import Work, count
from lite3r_jax.evaluation.variants import HEADS, Variant, held_dtype, parse_variants
from lite3r_jax.infer.memory import GIB, peak_device, peak_process, restart_peak
from lite3r_jax.layers.rngs import traced_rngs
from lite3r_jax.weights import strict_json
from tools.benchmark.forward import as_row, lower, planned, random_model
from tools.benchmark.launches import launches
from tools.benchmark.roofline import (
    SIDE,
    TERA,
    OneLaunch,
    check_row,
    dense_in_one_launch,
    estimate,
)

ROWS = (
    "dense-bfloat16,sla_global(keep=0.1)-bfloat16,spark3r-bfloat16,key_views(count=25)-bfloat16,"
    "spark3r(query_factor=1,inner=sla(keep=0.1))-fp8_dynamic"
)


def main(argv: list[str] | None = None) -> None:
    """Parses the command line and prints a table row for every number of views and model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--plan", choices=["h200"], help="compile only, for this device")
    parser.add_argument("--backbone", choices=backbone_names(), default="vggt")
    parser.add_argument("--config", type=Path, help="JSON of other sizes than the published")
    parser.add_argument("--rows", default=ROWS, help="models with commas between")
    parser.add_argument("--views", type=int, nargs="+", default=[32, 100, 300, 1000])
    parser.add_argument("--height", type=int, default=518)
    parser.add_argument("--width", type=int, default=518)
    parser.add_argument("--frame-chunk", type=int, default=8)
    parser.add_argument("--runs", type=int, default=1, help="turns that are timed")
    parser.add_argument("--warmup", type=int, default=0, help="turns before those")
    args = parser.parse_args(argv)
    try:
        rows = parse_variants(args.rows, where="--rows")
        if args.plan:
            plan(args, rows)
        else:
            measure(args, rows)
    except InputError as error:
        sys.exit(f"error: {error}")


def abstract(row: Variant, attention: Plan, sizes: Path | None = None, name: str = "vggt") -> Any:
    """Builds a row's backbone without values, of its published size or those in a JSON file."""
    low = row.precision.startswith("fp8")
    kinds = {
        "dtype": jnp.dtype("bfloat16" if low else row.precision),
        "param_dtype": held_dtype(row),
    }
    backbone = get_backbone(name)
    config = backbone.default_config
    if sizes is not None:
        config = backbone.config_from_json(strict_json.read_object(sizes))
    model = nnx.eval_shape(
        lambda: backbone.build(config, heads=HEADS, plan=attention, rngs=traced_rngs(0), **kinds)
    )
    return as_row(model, row)


def plan(args: argparse.Namespace, rows: tuple[Variant, ...]) -> None:
    """Compiles every row for the described device and prints its plan.

    Raises:
        InputError: sizes that the estimate is not for, or a row without rates.
    """
    if args.backbone != "vggt" or args.config or (args.height, args.width) != (SIDE, SIDE):
        raise InputError(
            f"--plan: the estimate is of VGGT-1B and {SIDE} x {SIDE};"
            " leave --backbone and sizes out"
        )
    for row in rows:
        check_row(row)
    print(f"jax {jax.__version__}, compiled for {args.plan}, not run\n")
    print("| views | model | TFLOP | of attention | launches | temporary | estimate | times less |")
    print("|" + "---|" * 8)
    for views in args.views:
        first = None
        for row in rows:
            model = abstract(row, planned(row, args.plan, OneLaunch()))
            with dense_in_one_launch():
                lowered = lower(model, (1, views, SIDE, SIDE, 3), args.frame_chunk)
            # No GPU, no autotuning: XLA's own Triton GEMMs cannot choose their tiles.
            compiled = lowered.compile({"xla_gpu_enable_triton_gemm": False})
            memory, text = compiled.memory_analysis(), compiled.as_text()
            assert memory is not None and text is not None, "XLA tells nothing for this device"
            work, number = count(model, views, SIDE, SIDE), launches(text)
            seconds = estimate(work, row, views, number)
            first = first or seconds
            print(
                f"| {views:,} | `{row.name}` | {work.total / TERA:,.0f} |"
                f" {between_tokens(work) / TERA:,.0f} | {number:,} |"
                f" {memory.temp_size_in_bytes / GIB:.2f} GiB | {seconds:.2f} s |"
                f" {first / seconds:.1f} |",
                flush=True,
            )


def between_tokens(work: Work) -> int:
    """Counts operations between queries, keys and values in the layers over all views."""
    return sum(number for kind, number in work.parts["global"].items() if kind != "layers")


@dataclass(frozen=True)
class Turn:
    """Figures of one pass: seconds of clock and processor, and most bytes in use."""

    wall: float
    cpu: float
    peak: int


def measure(args: argparse.Namespace, rows: tuple[Variant, ...]) -> None:
    """Runs the models of all rows in turns and prints tables of their time and memory."""
    kind = jax.devices()[0].device_kind
    on_cpu = jax.default_backend() == "cpu"
    print(
        f"jax {jax.__version__} on {kind}, {args.backbone}, {args.height} x {args.width}",
        flush=True,
    )
    known: dict[Any, jax.Array] = {}
    models = {}
    for row in rows:
        model = abstract(row, parse_plan(row.attention), args.config, args.backbone)
        models[row] = nnx.split(random_model(model, known))
    for views in args.views:
        rng = np.random.default_rng(0)
        images = jnp.asarray(rng.random((1, views, args.height, args.width, 3), np.float32))
        programs, works = {}, {}
        for row, (graph, state) in models.items():
            start = time.perf_counter()
            programs[row] = compile_here(graph, state, images, args.frame_chunk)
            model = nnx.merge(graph, state)
            works[row] = count(model, views, args.height, args.width)
            print(f"{row.name} compiled in {time.perf_counter() - start:.1f} s", flush=True)
        turns: dict[Variant, list[Turn]] = {row: [] for row in rows}
        for turn in range(args.warmup + args.runs):
            for row, program in programs.items():
                done = one_pass(program, models[row][1], images)
                print(
                    f"{views} views, {row.name}: {done.wall:.1f} s wall, {done.cpu:.1f} s CPU,"
                    f" peak {done.peak / GIB:.2f} GiB",
                    flush=True,
                )
                if turn >= args.warmup:
                    turns[row].append(done)
        print(table(views, works, turns, on_cpu), flush=True)


def compile_here(graph: Any, state: Any, images: jax.Array, frame_chunk: int) -> Any:
    """Compiles the forward pass of a model over images for this machine."""

    def forward(state: Any, images: jax.Array) -> Any:
        return nnx.merge(graph, state)(images, frame_chunk=frame_chunk)[0]

    return jax.jit(forward).lower(state, images).compile()


def one_pass(program: Any, state: Any, images: jax.Array) -> Turn:
    """Runs one pass and returns its time and memory."""
    gc.collect()
    give_back_freed_memory()
    restart_peak()
    wall, cpu = time.perf_counter(), time.process_time()
    jax.block_until_ready(program(state, images))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return Turn(wall, cpu, peak_device() or peak_process())


def table(
    views: int,
    works: Mapping[Variant, Work],
    turns: Mapping[Variant, list[Turn]],
    on_cpu: bool,
) -> str:
    """Formats the rows of one number of views, compared with the first row."""
    lines = [
        "",
        "| views | model | TFLOP | time | times | of operations | peak |",
        "|" + "---|" * 7,
    ]
    first = next(iter(works))
    seconds = {
        row: float(np.median([t.cpu if on_cpu else t.wall for t in done]))
        for row, done in turns.items()
    }
    for row, work in works.items():
        faster = seconds[first] / seconds[row]
        share = faster / (works[first].total / work.total)
        peak = max(turn.peak for turn in turns[row])
        lines.append(
            f"| {views} | `{row.name}` | {work.total / TERA:.1f} | {seconds[row]:.1f} s |"
            f" {faster:.2f} | {share:.2f} | {peak / GIB:.2f} GiB |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
