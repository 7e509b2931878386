"""Time the original PyTorch VGGT or pi^3 on the same shapes as `tools.benchmark.forward`.

    PYTHONPATH=DIRECTORY_OF_THE_VGGT_PACKAGE python -m tools.benchmark.forward_torch --views 2
    PYTHONPATH=DIRECTORY_OF_THE_PI3_PACKAGE python -m tools.benchmark.forward_torch --backbone pi3

Needs torch, einops, huggingface_hub and a checkout of the original's package (`vggt`, `pi3`).
Weights are random, VGGT's track head is off.
"""

import argparse
import resource
import time
from typing import Any

import torch


def main() -> None:
    """Builds the original model, runs it and prints one line per forward pass."""
    parser = argparse.ArgumentParser(description="Time the original PyTorch VGGT or pi^3.")
    parser.add_argument("--backbone", choices=("vggt", "pi3"), default="vggt")
    parser.add_argument("--views", type=int, default=2)
    parser.add_argument("--height", type=int, default=392)
    parser.add_argument("--width", type=int, default=518)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    start = time.perf_counter()
    model = _original(args.backbone).eval()
    count = sum(p.numel() for p in model.parameters())
    print(
        f"torch {torch.__version__}, {count:,} parameters, "
        f"built in {time.perf_counter() - start:.1f} s, peak {_peak():.2f} GiB",
        flush=True,
    )
    images = torch.rand(1, args.views, 3, args.height, args.width)
    with torch.inference_mode():
        for run in range(args.runs):
            wall, cpu = time.perf_counter(), time.process_time()
            model(images)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            print(
                f"run {run}: {wall:.2f} s wall, {cpu:.2f} s CPU, peak {_peak():.2f} GiB", flush=True
            )


def _original(backbone: str) -> Any:
    if backbone == "pi3":
        from pi3.models.pi3 import Pi3  # pyright: ignore[reportMissingImports]

        return Pi3()
    from vggt.models.vggt import VGGT  # pyright: ignore[reportMissingImports]

    return VGGT(enable_track=False)


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
