"""Time the matrix products of a VGGT-1B pass on a CPU, in XLA and in PyTorch, in turns.

    python -m tools.benchmark.products --tokens 2082 --runs 5

One thread each, float32, processor time, the best of the runs. A pass is mostly these products, so
their ratio bounds what the rest of the code can win or lose against PyTorch. Needs torch.
"""

import argparse
import os
import time
from collections.abc import Callable

import numpy as np

PRODUCTS = {
    "queries, keys, values": (1024, 3072),
    "output of attention": (1024, 1024),
    "first of the MLP": (1024, 4096),
    "second of the MLP": (4096, 1024),
}
"""Inputs and outputs of the Linear layers of an encoder or trunk block of VGGT-1B."""


def main() -> None:
    """Time every product and print GFLOP/s as a table."""
    parser = argparse.ArgumentParser(description="Time matrix products in XLA and in PyTorch.")
    parser.add_argument("--tokens", type=int, default=2082, help="rows of the left matrix")
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()

    one_thread = "--xla_cpu_multi_thread_eigen=false"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {one_thread}"
    import jax  # reads XLA_FLAGS
    import torch

    torch.set_num_threads(1)
    multiply = jax.jit(lambda x, kernel: x @ kernel)
    rng = np.random.default_rng(0)
    print(f"jax {jax.__version__}, torch {torch.__version__}, {args.tokens} tokens\n")
    print("| product | XLA, GFLOP/s | PyTorch, GFLOP/s | PyTorch / XLA |\n|---|---|---|---|")
    for name, (inputs, outputs) in PRODUCTS.items():
        x = rng.standard_normal((args.tokens, inputs), np.float32)
        kernel = rng.standard_normal((inputs, outputs), np.float32)
        of_jax = jax.device_put((x, kernel))
        of_torch = torch.from_numpy(x), torch.from_numpy(np.ascontiguousarray(kernel.T))

        def in_xla(of_jax=of_jax) -> None:
            multiply(*of_jax).block_until_ready()

        def in_torch(of_torch=of_torch) -> None:
            torch.nn.functional.linear(*of_torch)

        seconds = {in_xla: float("inf"), in_torch: float("inf")}
        for _ in range(args.runs + 1):  # the first compiles
            for run in seconds:
                seconds[run] = min(seconds[run], _processor_time(run))
        operations = 2e-9 * args.tokens * inputs * outputs
        xla, pytorch = (operations / best for best in seconds.values())
        print(f"| {name} | {xla:.1f} | {pytorch:.1f} | {pytorch / xla:.2f} |")


def _processor_time(run: Callable[[], None]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


if __name__ == "__main__":
    main()
