"""Compares the memory plan of a forward pass with the memory that the pass then takes.

    python -m tools.benchmark.memory WEIGHTS --views 2 8 32 --height 392 --width 518

Every number of views runs in a process of its own, because the peak of a process never goes down.
The plan is made as the reconstruct command makes it: after loading, before running.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from lite3r_jax import InputError, load
from lite3r_jax.infer.memory import GIB, Forward, peak_device, peak_process


def main() -> None:
    """Parses the command line and runs one process per number of views, to print a line each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("weights", type=Path)
    parser.add_argument("--views", type=int, nargs="+", default=[2, 8, 32])
    parser.add_argument("--height", type=int, default=392)
    parser.add_argument("--width", type=int, default=518)
    parser.add_argument("--heads", default="camera,depth")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    args = parser.parse_args()
    if len(args.views) == 1:
        try:
            measure(args)
        except InputError as error:
            sys.exit(f"error: {error}")
        return
    options = sys.argv[1:]
    at = options.index("--views")
    rest = options[:at] + options[at + 1 + len(args.views) :]
    for views in args.views:
        command = [sys.executable, "-m", "tools.benchmark.memory", *rest, "--views", str(views)]
        if code := subprocess.run(command).returncode:
            sys.exit(code)


def measure(args: argparse.Namespace) -> None:
    """Loads a model, plans a pass, runs it and prints planned and measured memory."""
    (views,) = args.views
    model = load(
        args.weights, heads=args.heads.split(","), dtype=args.dtype, param_dtype=args.dtype
    )
    rng = np.random.default_rng(0)
    images = rng.random((1, views, args.height, args.width, 3), dtype=np.float32)
    forward = Forward(model)
    start = time.perf_counter()
    plan = forward.plan(views, args.height, args.width)
    compiled = time.perf_counter() - start
    start = time.perf_counter()
    forward(images, plan)
    seconds = time.perf_counter() - start
    measured = peak_device() or peak_process()
    print(
        f"{views:4d} views: planned {plan.peak / GIB:.2f} GiB (temporary"
        f" {plan.temporary / GIB:.2f}), measured {measured / GIB:.2f} GiB, plan / measured"
        f" {plan.peak / measured:.3f}; compiled in {compiled:.1f} s, ran in {seconds:.1f} s",
        flush=True,
    )


if __name__ == "__main__":
    main()
