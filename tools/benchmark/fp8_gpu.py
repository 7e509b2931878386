"""What only a GPU can say about float8 products, in one call: are they right, are they fast.

    python -m tools.benchmark.fp8_gpu | tee fp8_gpu.md

First every case: codes against the definition in float64, products against float64, two runs bit by
bit. Then the four Linears of a block of VGGT-1B (width 1024) with what comes before them, and the
block itself without its attention (see `tools.benchmark.fp8_block`), most views first: bfloat16
weights, float8 weights by XLA ("xla"), with quantization in our kernel ("triton"), and with scales
and bias in the product as well ("mosaic"). Prints Markdown. After `--seconds` no more is measured,
and what is missing is named. Exit status 1 if a case failed or something is missing.

The same program on a CPU, small; what is for GPUs is refused there and says so:

    python -m tools.benchmark.fp8_gpu --implementation xla --views 1 --grid 4 5 --cases 2
"""

import argparse
import sys
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lite3r_jax.attention.strategy import Layouts, TokenLayout
from lite3r_jax.kernels.fp8.check import CASES, Case, outcome
from lite3r_jax.kernels.fp8.fused import OPERATOR
from lite3r_jax.kernels.prove import one_line
from lite3r_jax.layers.block import BlockConfig
from lite3r_jax.layers.fp8 import gelu_between, normed
from lite3r_jax.layers.norm import layer_norm
from lite3r_jax.layers.rope import rope_table
from lite3r_jax.precision import Fp8Rule, deploy
from tools.benchmark.attention_gpu import milliseconds
from tools.benchmark.fp8_block import CONFIG, Sum, part

SPECIAL = 5
LINEARS = (
    Case("qkv", "norm", 1024, 3072),
    Case("proj", "nothing", 1024, 1024),
    Case("fc1", "norm", 1024, 4096),
    Case("fc2", "gelu", 4096, 1024),
)


class Net(nnx.Module):
    """What comes before a Linear, and the Linear."""

    def __init__(self, case: Case, rngs: nnx.Rngs):
        kinds = {"dtype": jnp.dtype(case.dtype), "param_dtype": jnp.dtype(case.dtype), "rngs": rngs}
        self.norm = layer_norm(case.inputs, 1e-5, **kinds) if case.before == "norm" else None
        self.linear: Any = nnx.Linear(case.inputs, case.outputs, **kinds)
        self.gelu = case.before == "gelu"

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., K] -> [..., N]."""
        if self.norm is not None:
            codes = normed(self.norm, x, self.linear)
            return self.linear(self.norm(x) if codes is None else codes)
        return self.linear(gelu_between(lambda x: x, x, self.linear) if self.gelu else x)


def main(argv: list[str] | None = None) -> int:
    """Parse, prove, measure; 0 if all is well."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--implementation", nargs="+", default=["xla", "triton", "mosaic"])
    parser.add_argument("--views", type=int, nargs="+", default=[32, 8, 2])
    parser.add_argument("--grid", type=int, nargs=2, default=[37, 37], metavar=("ROWS", "COLUMNS"))
    parser.add_argument("--cases", type=int, default=len(CASES), help="only the first ones")
    parser.add_argument("--seconds", type=float, default=400, help="after which nothing is started")
    args = parser.parse_args(argv)
    end = time.perf_counter() + args.seconds
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}\n")
    failed = prove(args.implementation, CASES[: args.cases])
    missed = compare(args, end)
    print(f"\n{failed} checks failed, {missed} measurements are missing")
    return int(failed + missed > 0)


def prove(implementations: list[str], cases: tuple[Case, ...]) -> int:
    """A table of the largest errors; how many checks failed. See `kernels.fp8.check`."""
    print("| case | implementation | other codes | codes, of allowed | product | bits | verdict |")
    print("|" + "---|" * 7)
    failed = 0
    for case in cases:
        for name in implementations:
            try:
                OPERATOR.choose(name, case.product)
                result = outcome(case, name)
                fine = result.wrong is None
                numbers = (
                    f"{result.other_codes:.1e} | {result.of_codes:.2f} | {result.of_product:.1e}"
                )
                row = f"{numbers} | {result.same} | {'fine' if fine else 'FAILED'}"
            except ValueError as error:
                # What a kernel is not made for it refuses: not a failure, but to be seen.
                row, fine = f"refused: {one_line(error)}", True
            except jax.errors.JaxRuntimeError as error:
                row, fine = f"FAILED: {one_line(error)}", False
            failed += not fine
            print(f"| {case.name}, {case.dtype} | {name} | {row} |", flush=True)
    return failed


def compare(args: argparse.Namespace, end: float) -> int:
    """A table of times; how many of them there was no time for."""
    print(f"\npatches {args.grid[0]} x {args.grid[1]}, width {CONFIG.dim}\n")
    print("| views | what | weights | ms | TFLOP/s | times faster than bfloat16 |")
    print("|" + "---|" * 6)
    missed = 0
    for views in args.views:
        layout = TokenLayout(views, SPECIAL, tuple(args.grid), "global")
        for what in (*LINEARS, CONFIG):
            first = None
            for name in ("bfloat16", *args.implementation):
                label = f"| {views} | {what.name if isinstance(what, Case) else 'block'} | {name} |"
                if time.perf_counter() > end:
                    missed += 1
                    print(f"{label} no time |")
                    continue
                try:
                    call, arrays, work = made(what, name, layout)
                    ms = milliseconds(call, arrays)
                except ValueError as error:
                    ms, work = one_line(error), 0
                if isinstance(ms, str):
                    missed += 1
                    print(f"{label} {ms} |", flush=True)
                    continue
                first = first or ms
                print(f"{label} {ms:.4f} | {work / ms / 1e9:.0f} | {first / ms:.2f} |", flush=True)
    return missed


def made(what: Case | BlockConfig, name: str, layout: TokenLayout) -> tuple[Any, list[Any], int]:
    """(function, its arguments, floating-point operations of its products)."""
    if isinstance(what, Case):
        model = nnx.eval_shape(partial(network, what, name))
        dtype = jnp.float32 if what.before == "norm" else jnp.dtype(what.dtype)
        x = jax.random.normal(jax.random.key(0), (1, layout.tokens, what.inputs), dtype)
        work = 2 * layout.tokens * what.inputs * what.outputs
        graph, state = nnx.split(model)
        return lambda x, state: nnx.merge(graph, state)(x), [x, filled(state)], work
    graph, state = nnx.split(part(name, what))
    x = jax.random.normal(jax.random.key(0), (1, layout.tokens, what.dim))
    rope = rope_table(np.zeros((layout.tokens, 2), np.int32), what.dim // what.heads)
    # qkv, proj, fc1, fc2.
    work = 2 * layout.tokens * what.dim**2 * 12

    def block(x: jax.Array, state: Any, rope: Any) -> jax.Array:
        return nnx.merge(graph, state).block(x, Sum(), Layouts.both(layout), rope)[0]

    return block, [x, filled(state), rope], work


def network(case: Case, name: str) -> Any:
    """A Linear with what comes before it, deployed."""
    model = Net(case, nnx.Rngs(0))
    if name == "bfloat16":
        return model
    rules = [Fp8Rule("linear")]
    return deploy(model, rules, "fp8_dynamic", rest=jnp.dtype(case.dtype), implementation=name)


def filled(state: Any) -> Any:
    """Numbers in the place of descriptions; those of float8 are finite."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda a: jnp.asarray(rng.standard_normal(a.shape, np.float32) * 0.02, a.dtype), state
    )


if __name__ == "__main__":
    sys.exit(main())
