"""Time attention of PyTorch packages at the sizes of a global layer of VGGT-1B, in bfloat16.

    python -m tools.benchmark.attention_torch --tokens 10992 --pass forward
    python -m tools.benchmark.attention_torch --tokens 10992 --pass forward --of sla --keep 0.1

16 heads of 64, on the GPU if there is one; run by `lite3r device-check`. Prints the milliseconds of
one call among many that are queued, the median of three rounds.

- dense: `torch.nn.functional.scaled_dot_product_attention`.
- sla: `SparseLinearAttention` of github.com/thu-ml/SLA with query blocks of 128 and key blocks of
  64, choice of blocks and linear part with it.
- cudnn: block-sparse attention of nvidia-cudnn-frontend, an experimental interface of its own: the
  softmax part alone over blocks of 64 that are drawn at random.

The last two were written from their public code and documentation and have never been run.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch

HEADS, HEAD_DIM = 16, 64


def main(argv: list[str] | None = None) -> None:
    """Parses the command line, times the attention and prints its milliseconds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("--pass", dest="which", choices=["forward", "gradient"], required=True)
    parser.add_argument("--of", choices=ATTENTION, default="dense")
    parser.add_argument("--keep", type=float, default=0.1, help="of keys, for sla and cudnn")
    args = parser.parse_args(argv)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    kinds = {"device": device, "dtype": torch.bfloat16}
    backward = args.which == "gradient"
    tokens = -(-args.tokens // 64) * 64 if args.of == "cudnn" else args.tokens  # whole blocks
    shape = 1, HEADS, tokens, HEAD_DIM
    q, k, v = (torch.randn(shape, requires_grad=backward, **kinds) for _ in range(3))
    call = ATTENTION[args.of](q, k, v, torch.randn(shape, **kinds) if backward else None, args.keep)
    print(milliseconds(call, torch.cuda.synchronize if device == "cuda" else lambda: None))


def dense(q: Any, k: Any, v: Any, up: Any, keep: float) -> Callable[[], None]:
    """Returns a call of PyTorch's own attention, with its gradient where there is a cotangent."""
    del keep

    def call() -> None:
        o = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        if up is not None:
            torch.autograd.grad(o, (q, k, v), up)

    return call


def sla(q: Any, k: Any, v: Any, up: Any, keep: float) -> Callable[[], None]:
    """Returns a call of the module of github.com/thu-ml/SLA, with its gradient as for `dense`."""
    from sparse_linear_attention.core import (  # pyright: ignore[reportMissingImports]
        SparseLinearAttention,
    )

    module = SparseLinearAttention(HEAD_DIM, keep, feature_map="elu", BLKQ=128, BLKK=64)
    module = module.to(q.device)
    inputs = (q, k, v, *module.parameters())

    def call() -> None:
        with torch.set_grad_enabled(up is not None):
            o = module(q, k, v)
        if up is not None:
            torch.autograd.grad(o, inputs, up)

    return call


def cudnn(q: Any, k: Any, v: Any, up: Any, keep: float) -> Callable[[], None]:
    """Returns a call of cuDNN frontend's block-sparse attention, with gradient as for `dense`."""
    from cudnn import BSA  # pyright: ignore[reportMissingImports]

    blocks = q.shape[2] // 64
    count = max(1, int(keep * blocks))
    order = torch.rand((1, HEADS, blocks, blocks), device=q.device).argsort(-1)
    ids = order[..., :count].sort(-1).values.int().contiguous()
    q, k, v = q.detach(), k.detach(), v.detach()

    def call() -> None:
        forward = BSA.block_sparse_attention_forward(q, k, v, ids, count, sparse_block_size=64)
        if up is not None:
            o, lse = forward["o_tensor"], forward["lse_tensor"]
            BSA.block_sparse_attention_backward(
                up, q, k, v, o, lse, ids, count, sparse_block_size=64
            )

    return call


ATTENTION = {"dense": dense, "sla": sla, "cudnn": cudnn}


def milliseconds(call: Callable[[], None], wait: Callable[[], None]) -> float:
    """Times one call of many, as `benchmarking.device_check.rows.milliseconds` does."""
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
