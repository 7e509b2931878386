"""What only a GPU can say about Sparse Linear Attention, in one call: is it right, is it fast.

    python -m tools.benchmark.attention_gpu | tee attention_gpu.md

First every case: value and gradients against float64, two runs bit by bit, the selection of blocks
against its definition. Then the layer of `tools.benchmark.attention`, forward and gradient, against
dense attention (cuDNN flash on a GPU), most views first. Prints Markdown. After `--seconds` no more
is measured, and what is missing is named. Exit status 1 if a case failed or something is missing.

The same program on a CPU, small:

    python -m tools.benchmark.attention_gpu --implementation blocked --dense blocked \
        --selection sorted --dtype float32 --views 1 --grid 4 5 --keep 0.5
"""

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax

from lite3r_jax.attention.dense import Dense
from lite3r_jax.attention.sla import SLA
from lite3r_jax.attention.strategy import AttentionStrategy, TokenLayout
from lite3r_jax.attention.windows import SPECIAL as SPECIAL_BLOCK
from lite3r_jax.attention.windows import blocks
from lite3r_jax.kernels.block_map.api import OPERATOR as SELECTION
from lite3r_jax.kernels.block_map.api import block_map, budgets
from lite3r_jax.kernels.block_map.check import checks
from lite3r_jax.kernels.prove import one_line
from lite3r_jax.kernels.sla.api import OPERATOR
from lite3r_jax.kernels.sla.cases import Case
from lite3r_jax.kernels.sla.check import CAPS, CASES, RESULTS, outcome
from lite3r_jax.kernels.sla.limits import SlaCall
from tools.benchmark.attention import HEAD_DIM, HEADS, SPECIAL, forward, gradient

# Products of T x T x D per pass, two operations each: 2 forward, 5 backward.
PRODUCTS = {"forward": 2, "gradient": 7}


def main(argv: list[str] | None = None) -> int:
    """Parse, prove, measure; 0 if all is well."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--implementation", nargs="+", default=["triton", "mosaic"], help="of SLA")
    parser.add_argument("--selection", nargs="+", default=["triton", "sorted"])
    parser.add_argument("--dense", default="cudnn", help="implementation of dense attention")
    parser.add_argument("--dtype", nargs="+", choices=CAPS, default=["bfloat16", "float32"])
    parser.add_argument("--views", type=int, nargs="+", default=[100, 32, 8, 2])
    parser.add_argument("--grid", type=int, nargs=2, default=[37, 37], metavar=("ROWS", "COLUMNS"))
    parser.add_argument("--keep", type=float, nargs="+", default=[0.05, 0.1, 0.2, 0.3])
    parser.add_argument("--cases", type=int, default=len(CASES), help="only the first ones")
    parser.add_argument("--seconds", type=float, default=500, help="after which nothing is started")
    args = parser.parse_args(argv)
    end = time.perf_counter() + args.seconds
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}\n")
    failed = prove(args.implementation, args.selection, args.dtype, CASES[: args.cases])
    missed = compare(args, end)
    print(f"\n{failed} checks failed, {missed} measurements are missing")
    return int(failed + missed > 0)


def prove(
    implementations: Sequence[str],
    selections: Sequence[str],
    dtypes: Sequence[str],
    cases: Sequence[Case],
) -> int:
    """A table of the largest errors; how many checks failed. See `kernels.sla.check.outcome`."""
    print(f"| case | dtype | implementation | {' | '.join(RESULTS)} | same bits | verdict |")
    print("|" + "---|" * (len(RESULTS) + 5))
    failed = 0
    for case in cases:
        for dtype in dtypes:
            for name in implementations:
                label = f"| {case.name} | {dtype} | {name} |"
                call = SlaCall(case.routing, case.head_dim, dtype, case.q_block, case.k_block)
                try:
                    OPERATOR.choose(name, call)
                    result = outcome(OPERATOR[name].run, case, dtype)
                except ValueError as error:
                    # What a kernel is not made for it refuses: not a failure, but to be seen.
                    print(f"{label} refused: {one_line(error)} |")
                    continue
                except jax.errors.JaxRuntimeError as error:
                    failed += 1
                    print(f"{label} FAILED: {one_line(error)} |")
                    continue
                failed += result.wrong is not None
                row = " | ".join(f"{e:.1e}" for e in result.errors)
                verdict = "FAILED" if result.wrong else "fine"
                print(f"{label} {row} | {result.same} | {verdict} |", flush=True)
    return failed + compare_selections(selections, len(cases))


def compare_selections(names: Sequence[str], count: int) -> int:
    """How many of the first cases of the selections failed; see `kernels.block_map.check`."""
    failed = 0
    for name in names:
        made = 0
        for check in itertools.islice(checks(name), 2 * count):
            try:
                SELECTION.choose(name, check.call)
                wrong = check.run()
            except ValueError as error:
                print(f"\nselection {name!r}, {check.name}: refused: {one_line(error)}")
                continue
            except jax.errors.JaxRuntimeError as error:
                wrong = one_line(error)
            made += 1
            failed += wrong is not None
            if wrong:
                print(f"\nselection {name!r}, {check.name}: FAILED: {wrong}")
        print(f"\nselection {name}: {made} cases")
    return failed


def compare(args: argparse.Namespace, end: float) -> int:
    """A table of times; how many of them there was no time for."""
    dtype = args.dtype[0]
    print(f"\n{dtype}, patches {args.grid[0]} x {args.grid[1]}, {HEADS} heads of {HEAD_DIM}\n")
    print("| views | pass | strategy | ms | TFLOP/s on kept pairs | of dense | times faster |")
    print("|" + "---|" * 7)
    missed = 0
    for views in args.views:
        layout = TokenLayout(views, SPECIAL, tuple(args.grid), "global")
        arrays = tokens(layout, dtype)
        for which, call in (("forward", forward), ("gradient", gradient)):
            dense = None
            for spec in strategies(args, which):
                name = spec.describe(dtype, HEAD_DIM)
                if time.perf_counter() > end:
                    missed += 1
                    print(f"| {views} | {which} | {name} | no time |")
                    continue
                ms = milliseconds(call(spec, layout), arrays)
                if isinstance(ms, str):
                    missed += 1
                    print(f"| {views} | {which} | {name} | {ms} |", flush=True)
                    continue
                rate = pairs(layout, spec) * 2 * HEAD_DIM * HEADS * PRODUCTS[which] / ms / 1e9
                dense = dense or (ms, rate)
                print(
                    f"| {views} | {which} | {name} | {ms:.3f} | {rate:.0f} "
                    f"| {rate / dense[1]:.0%} | {dense[0] / ms:.2f} |",
                    flush=True,
                )
        for name in args.selection:
            if time.perf_counter() > end:
                missed += 1
                print(f"| {views} | selection | {name} | no time |")
                continue
            ms = milliseconds(partial(selection, name), arrays)
            missed += isinstance(ms, str)
            ms = ms if isinstance(ms, str) else f"{ms:.3f}"
            print(f"| {views} | selection | {name}, keep 0.1 | {ms} | | | |", flush=True)
    return missed


def strategies(args: argparse.Namespace, which: str) -> list[AttentionStrategy]:
    """Dense first. Mosaic differs from Triton in the forward pass only."""
    listed: list[AttentionStrategy] = [Dense(args.dense)]
    for name in args.implementation:
        if which == "forward" or name != "mosaic":
            listed += [SLA(keep=keep, implementation=name) for keep in args.keep]
    return listed


def selection(name: str, q: jax.Array, k: jax.Array, v: jax.Array, up: jax.Array) -> Any:
    """A block map of the tokens as they come."""
    del v, up
    columns = -(-k.shape[1] // 64)
    top, _ = budgets(columns, 0.1)
    return block_map(q, k, q_block=128, k_block=64, top=top, implementation=name)


def tokens(layout: TokenLayout, dtype: str) -> list[jax.Array]:
    """q, k, v and a cotangent."""
    shape = (1, layout.tokens, HEADS, HEAD_DIM)
    return [jax.random.normal(key, shape, dtype) for key in jax.random.split(jax.random.key(0), 4)]


def pairs(layout: TokenLayout, spec: AttentionStrategy) -> float:
    """Pairs of query and key that the softmax sees, places without a token included."""
    if not isinstance(spec, SLA):
        return layout.tokens**2
    keys = blocks(layout, spec.block).views
    always = int(((keys == SPECIAL_BLOCK) | (keys == 0)).sum())
    kept = (always + budgets(len(keys) - always, spec.keep)[0]) * spec.block
    special = layout.views * layout.special
    return special * layout.tokens + (layout.tokens - special) * min(kept, layout.tokens)


def milliseconds(call: Callable[..., Any], arrays: list[jax.Array]) -> float | str:
    """Of one call among many that are queued, the median of three rounds of about 0.2 s.

    What the device says if it cannot, for instance that it has not the memory.
    """
    try:
        compiled = jax.jit(call).lower(*arrays).compile()
        jax.block_until_ready(compiled(*arrays))
    except jax.errors.JaxRuntimeError as error:
        return one_line(error)
    start = time.perf_counter()
    jax.block_until_ready(compiled(*arrays))
    count = max(1, min(200, int(0.2 / (time.perf_counter() - start))))
    rounds = []
    for _ in range(3):
        start = time.perf_counter()
        for _ in range(count - 1):
            compiled(*arrays)
        jax.block_until_ready(compiled(*arrays))
        rounds.append((time.perf_counter() - start) / count)
    return 1000 * sorted(rounds)[1]


if __name__ == "__main__":
    sys.exit(main())
