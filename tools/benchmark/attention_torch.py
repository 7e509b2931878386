"""Time PyTorch's attention at the sizes of a global layer of VGGT-1B; run by `lite3r device-check`.

    python -m tools.benchmark.attention_torch --tokens 10992 --pass forward

`torch.nn.functional.scaled_dot_product_attention` in bfloat16, 16 heads of 64, on the GPU if there
is one. Prints the milliseconds of one call among many that are queued, the median of three rounds.
"""

import argparse
import time
from collections.abc import Callable

import torch

HEADS, HEAD_DIM = 16, 64


def main(argv: list[str] | None = None) -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("--pass", dest="which", choices=["forward", "gradient"], required=True)
    args = parser.parse_args(argv)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    kinds = {"device": device, "dtype": torch.bfloat16}
    backward = args.which == "gradient"
    shape = 1, HEADS, args.tokens, HEAD_DIM
    q, k, v = (torch.randn(shape, requires_grad=backward, **kinds) for _ in range(3))
    up = torch.randn(shape, **kinds)

    def call() -> None:
        o = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        if backward:
            torch.autograd.grad(o, (q, k, v), up)

    print(milliseconds(call, torch.cuda.synchronize if device == "cuda" else lambda: None))


def milliseconds(call: Callable[[], None], wait: Callable[[], None]) -> float:
    """As `benchmarking.device_check.rows.milliseconds`."""
    for _ in range(2):
        start = time.perf_counter()
        call()
        wait()
    count = max(1, min(200, int(0.2 / (time.perf_counter() - start))))
    rounds = []
    for _ in range(3):
        start = time.perf_counter()
        for _ in range(count):
            call()
        wait()
        rounds.append((time.perf_counter() - start) / count)
    return 1000 * sorted(rounds)[1]


if __name__ == "__main__":
    main()
