"""What only a GPU can say about Sparse Linear Attention, in one call: is it right, is it fast.

    python -m tools.benchmark.attention_gpu | tee attention_gpu.md

First every case: value and gradients against float64, two runs bit by bit, the selection of blocks
against the sorted one. Then the layer of `tools.benchmark.attention`, forward and gradient, against
dense attention (cuDNN flash on a GPU), most views first. Prints Markdown. After `--seconds` no more
is measured, and what is missing is named. Exit status 1 if a case failed or something is missing.

The same program on a CPU, small:

    python -m tools.benchmark.attention_gpu --implementation blocked --dense blocked \
        --selection sorted --dtype float32 --views 1 --grid 4 5 --keep 0.5
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lite3r_jax.attention.core import AttentionSpec, TokenLayout
from lite3r_jax.attention.dense import Dense
from lite3r_jax.attention.sla import SLA
from lite3r_jax.attention.windows import SPECIAL as SPECIAL_BLOCK
from lite3r_jax.attention.windows import blocks
from lite3r_jax.kernels.block_map.api import block_map, budgets
from lite3r_jax.kernels.sla.api import choose, sla
from lite3r_jax.kernels.sla.cases import Case
from tools.benchmark.attention import HEAD_DIM, HEADS, SPECIAL, forward, gradient

# What the kernels are made for, odd and even.
CASES = (
    Case("short last blocks", 150, 170, 2, 2),
    Case("short last wide blocks", 700, 650, 2, 3, q_block=128),
    Case("one token", 1, 1, q_block=128),
    Case("protected blocks, softmax", 500, 560, 2, 2, q_block=128, always=2, phi="softmax"),
    Case("everything kept, relu", 400, 400, q_block=128, keep=1.0, phi="relu"),
    Case("head dim 128", 600, 600, 1, 2, 128, 128, keep=0.1),
    Case("head dim 128, equal blocks", 300, 500, 1, 2, 128),
    Case("marginal", 700, 900, 2, 2, q_block=128, low=0.2, routing="block3"),
    Case("no marginal block", 300, 300, keep=0.5, low=0.5, routing="block3"),
    Case("long", 4096, 4096, 1, 4, q_block=128, keep=0.1),
)
CAPS = {"float32": 2e-6, "bfloat16": 1e-2, "float16": 1e-2}
RESULTS = ("o", "dq", "dk", "dv", "dproj_lin")
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
    """A table of the largest errors; how many checks failed.

    An error is over the largest exact value, at least 1. It may be twice that of the definition
    computed in float32 plus half the cap of its dtype, and at most the cap.
    """
    print(f"| case | dtype | implementation | {' | '.join(RESULTS)} | same bits | verdict |")
    print("|" + "---|" * (len(RESULTS) + 5))
    failed = 0
    for case in cases:
        for dtype in dtypes:
            q, k, v, w, up, q_valid, k_valid, maps = problem(case, dtype, selections[0])
            run = partial(jit_both, case, maps, q_valid, k_valid)
            with jax.enable_x64(True):
                wide = [x.astype(jnp.float64) for x in (q, k, v, w, up)]
                exact = [np.asarray(x) for x in run("reference")(*wide)]
            plain = errors(run("reference")(q, k, v, w, up), exact)
            for name in implementations:
                try:
                    choose(name, case.routing, q, maps)
                    compiled = run(name).lower(q, k, v, w, up).compile()
                    got, again = compiled(q, k, v, w, up), compiled(q, k, v, w, up)
                except ValueError as error:
                    # What a kernel is not made for it refuses: not a failure, but to be seen.
                    print(f"| {case.name} | {dtype} | {name} | refused: {one_line(error)} |")
                    continue
                except jax.errors.JaxRuntimeError as error:
                    failed += 1
                    print(f"| {case.name} | {dtype} | {name} | FAILED: {one_line(error)} |")
                    continue
                same = all(
                    np.asarray(x).tobytes() == np.asarray(y).tobytes()
                    for x, y in zip(got, again, strict=True)
                )
                found, cap = errors(got, exact), CAPS[dtype]
                fine = same and all(
                    e <= min(2 * p + cap / 2, cap) for e, p in zip(found, plain, strict=True)
                )
                failed += not fine
                row = " | ".join(f"{e:.1e}" for e in found)
                verdict = "fine" if fine else "FAILED"
                print(
                    f"| {case.name} | {dtype} | {name} | {row} | {same} | {verdict} |", flush=True
                )
    return failed + compare_selections(selections, cases)


def problem(case: Case, dtype: str, selection: str) -> tuple[Any, ...]:
    """q, k, v, proj_lin, a cotangent, masks and a map; rows of padding hold NaN."""
    rng = np.random.default_rng(0)
    b, n, d = case.batch, case.heads, case.head_dim
    q_valid, k_valid = (rng.random((b, t)) < 0.9 for t in (case.q_tokens, case.k_tokens))
    q_valid[:, 0] = k_valid[:, 0] = True

    def draw(valid):
        x = rng.standard_normal((*valid.shape, n, d))
        return jnp.asarray(np.where(valid[..., None, None], x, np.nan), dtype)

    q, k, v, up = draw(q_valid), draw(k_valid), draw(k_valid), draw(q_valid)
    up = jnp.where(q_valid[..., None, None], up, 0)
    w = jnp.asarray(rng.standard_normal((d, d)) * d**-0.5, jnp.float32)
    q_valid, k_valid = jnp.asarray(q_valid), jnp.asarray(k_valid)
    maps = select(case, selection, q, k, q_valid, k_valid)
    return q, k, v, w, up, q_valid, k_valid, maps


def select(case: Case, name: str, q, k, q_valid, k_valid):
    """The block map of a case."""
    top, bottom = case.budgets
    return jax.jit(
        lambda q, k, q_valid, k_valid: block_map(
            q,
            k,
            q_block=case.q_block,
            k_block=case.k_block,
            top=top,
            bottom=bottom,
            always=range(case.always),
            q_valid=q_valid,
            k_valid=k_valid,
            implementation=name,
        )
    )(q, k, q_valid, k_valid)


def jit_both(case: Case, maps, q_valid, k_valid, implementation: str) -> Any:
    """(q, k, v, w, up) -> o, dq, dk, dv, dproj_lin."""

    def attend(q, k, v, w):
        settings: dict[str, Any] = {
            "routing": case.routing,
            "phi": case.phi,
            "implementation": implementation,
        }
        return sla(q, k, v, w, maps, q_valid=q_valid, k_valid=k_valid, **settings)

    def both(q, k, v, w, up):
        o, pull = jax.vjp(attend, q, k, v, w)
        return o, *pull(up)

    return jax.jit(both)


def one_line(error: Exception) -> str:
    """Its message, for a cell of a table."""
    return " ".join(str(error).split()).replace("|", "/")[:300]


def errors(got: Sequence[jax.Array], exact: Sequence[np.ndarray]) -> list[float]:
    """Largest error over largest value of every result; infinite if one is not finite."""
    found = []
    for x, y in zip(got, exact, strict=True):
        error = np.abs(np.asarray(x, np.float64) - y).max() / max(np.abs(y).max(), 1)
        found.append(float(error) if np.isfinite(error) else float("inf"))
    return found


def compare_selections(names: Sequence[str], cases: Sequence[Case]) -> int:
    """Whether they choose the same of small whole numbers, whose scores are exact."""
    failed = 0
    for case in cases:
        rng = np.random.default_rng(0)
        shapes = [
            (case.batch, blocks, case.heads, case.head_dim)
            for blocks in (case.q_blocks, case.k_blocks)
        ]
        # One value per block, so that its mean is exact too.
        q, k = (
            jnp.asarray(np.repeat(rng.integers(-2, 3, shape), size, 1)[:, :tokens], jnp.float32)
            for shape, size, tokens in zip(
                shapes,
                (case.q_block, case.k_block),
                (case.q_tokens, case.k_tokens),
                strict=True,
            )
        )
        masks = tuple(jnp.ones(x.shape[:2], bool) for x in (q, k))
        wanted = select(case, "sorted", q, k, *masks)
        for name in names:
            if name == "sorted":
                continue
            got = select(case, name, q, k, *masks)
            same = np.array_equal(wanted.critical.ids, got.critical.ids)
            same &= np.array_equal(wanted.negligible.ids, got.negligible.ids)
            failed += not same
            if not same:
                print(f"\nselection {name!r} chooses other blocks than 'sorted': {case.name}")
    print(f"\nselections {', '.join(names)}: {failed} differences in {len(cases)} cases")
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


def strategies(args: argparse.Namespace, which: str) -> list[AttentionSpec]:
    """Dense first. Mosaic differs from Triton in the forward pass only."""
    found: list[AttentionSpec] = [Dense(args.dense)]
    for name in args.implementation:
        if which == "forward" or name != "mosaic":
            found += [SLA(keep=keep, implementation=name) for keep in args.keep]
    return found


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


def pairs(layout: TokenLayout, spec: AttentionSpec) -> float:
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
