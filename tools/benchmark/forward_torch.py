"""Time the original PyTorch VGGT on the same shapes as `tools.benchmark.forward`.

    PYTHONPATH=DIRECTORY_OF_THE_VGGT_PACKAGE python -m tools.benchmark.forward_torch --views 2

Needs torch, einops, huggingface_hub and a checkout of the original's `vggt` package. Weights are
random, the track head is off.
"""

import argparse
import resource
import time

import torch
from vggt.models.vggt import VGGT  # pyright: ignore[reportMissingImports]


def main() -> None:
    """Build, run, print one line per forward pass."""
    parser = argparse.ArgumentParser(description="Time the original PyTorch VGGT.")
    parser.add_argument("--views", type=int, default=2)
    parser.add_argument("--height", type=int, default=392)
    parser.add_argument("--width", type=int, default=518)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    start = time.perf_counter()
    model = VGGT(enable_track=False).eval()
    count = sum(p.numel() for p in model.parameters())
    print(
        f"torch {torch.__version__}, {count:,} parameters, "
        f"built in {time.perf_counter() - start:.1f} s, peak {_peak():.2f} GiB",
        flush=True,
    )
    images = torch.rand(args.views, 3, args.height, args.width)
    with torch.inference_mode():
        for run in range(args.runs):
            wall, cpu = time.perf_counter(), time.process_time()
            model(images)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            print(
                f"run {run}: {wall:.2f} s wall, {cpu:.2f} s CPU, peak {_peak():.2f} GiB", flush=True
            )


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
