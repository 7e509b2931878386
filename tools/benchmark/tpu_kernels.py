"""Counts what TPU kernels of attention move and multiply, and compiles them, without a TPU.

    python -m tools.benchmark.tpu_kernels --views 2 8 32 100
    PYTHONPATH=.venv/tpu JAX_PLATFORMS=cpu python -m tools.benchmark.tpu_kernels --views 8 \
        --compile v5e v5p v6e

For value and gradient of a global layer of VGGT-1B (16 heads of 64, 37 x 37 patches a view, query
blocks of 128, random blocks listed). Bytes are those that the kernels fetch from and write to a
chip's memory: a block is fetched when a program wants another one than the program before it.
Products are those that the matrix unit gets from the programs that have work, 128 lanes wide, and
which of them are needed: between listed blocks, of 64 channels. Both follow from the kernels' own
grids, tables and code. Compiled programs, one for each of `tools.benchmark.tpu.CHIPS`, give
temporary memory, and what of a kernel's registers goes into vector memory and back (spills), with
the kernel of the block selection. None of it says how long anything takes.
"""

import argparse
import math
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from lite3r_jax import InputError
from lite3r_jax.benchmarking.subprocess_runs import in_subprocess
from lite3r_jax.kernels.block_map.pallas_tpu import select_tpu
from lite3r_jax.kernels.block_map.table import BlockMap, BlockTable
from lite3r_jax.kernels.sla.cases import Case, vggt_global
from lite3r_jax.kernels.sla.pallas_tpu import Plan, key_steps, sla_tpu
from lite3r_jax.kernels.sla.tiles import TpuTiles
from lite3r_jax.kernels.sla.tpu_kernels import K_BLOCK, parts
from tools.benchmark import tpu

MIB = 2**20
LANES = 128


@dataclass(frozen=True)
class Work:
    """Bytes and operations of all programs of a kernel in one call of the operator.

    Attributes:
        kernel: its name.
        programs: those that have work, of all.
        grid: all programs.
        read: bytes that are fetched into vector memory.
        written: bytes.
        products: operations of the matrix unit, two for each multiplication.
        needed: those between listed blocks, without lanes that hold 0.
        listed: pairs of blocks in the table.
        computed: pairs of blocks that are multiplied.
    """

    kernel: str
    programs: int
    grid: int
    read: int
    written: int
    products: int
    needed: int
    listed: int
    computed: int


def random_table(case: Case) -> np.ndarray:
    """Draws [H, Mq, K] int32: blocks that are always kept, and as many others as the budget."""
    rng = np.random.default_rng(0)
    free = case.k_blocks - case.always
    shape = (case.batch * case.heads, case.q_blocks)
    order = np.argsort(rng.random((*shape, free), dtype=np.float32), axis=-1)
    chosen = case.always + order[..., : case.budgets[0]]
    always = np.broadcast_to(np.arange(case.always), (*shape, case.always))
    return np.sort(np.concatenate([always, chosen], axis=-1), axis=-1).astype(np.int32)


def count(case: Case, ids: np.ndarray, dtype: str, tiles: TpuTiles | None = None) -> list[Work]:
    """Counts the bytes and operations of the operator's three kernels.

    Args:
        case: sizes.
        ids: [H, Mq, K] int32, Mk where nothing is listed.
        dtype: of q, k and v.
        tiles: see `pallas_tpu`.
    """
    plan = Plan(
        tiles or TpuTiles(), case.heads, ids.shape[1], ids.shape[2], case.k_blocks, interpret=False
    )
    size = jnp.dtype(dtype).itemsize
    multiplied = products(case, dtype, plan.tiles)
    pairs = int((ids < case.k_blocks).sum())
    one = case.q_block * case.k_block  # a pair of blocks
    wide = max(LANES, case.head_dim)
    pair_of_key = 2 * case.k_block * case.head_dim * size  # [v | k]
    pair_of_query = 2 * case.q_block * case.head_dim * size  # [do | q]
    stats = 2 * case.q_block * 4
    forward = _by_rows(plan, ids, plan.tiles.forward.keys)
    gradient = _by_rows(plan, ids, plan.tiles.query_gradient.keys)
    rows = forward.rows
    made = [
        ("sla_forward", forward.fetched * pair_of_key + rows * case.q_block * wide * size,
         rows * case.q_block * (wide * size + 4), 2, forward),
        ("sla_query_gradient", gradient.fetched * pair_of_key + rows * (pair_of_query + stats),
         rows * case.q_block * wide * size, 3, gradient),
    ]  # fmt: skip
    keys = _by_keys(plan, ids, case.q_block)
    out = pair_of_key if plan.parts == 1 else 2 * case.k_block * case.head_dim * 4
    made.append(
        ("sla_key_gradient", keys.fetched * (pair_of_query + stats) + keys.rows * pair_of_key,
         keys.rows * out, 4, keys)
    )  # fmt: skip
    return [
        Work(name, at.programs, at.grid, read, written,
             at.computed * multiplied[name] // at.entries,
             pairs * one * 2 * case.head_dim * terms, pairs, at.computed)
        for name, read, written, terms, at in made
    ]  # fmt: skip


@dataclass(frozen=True)
class _Programs:
    """Numbers of the programs of one kernel, and of the blocks that they use.

    Attributes:
        programs: that have work.
        grid: all.
        entries: blocks of a program.
        computed: blocks of the products that are not left out.
        fetched: blocks of the list that are fetched.
        rows: times that what a list is for is fetched or written.
    """

    programs: int
    grid: int
    entries: int
    computed: int
    fetched: int
    rows: int


def _by_rows(plan: Plan, ids: np.ndarray, width: int) -> _Programs:
    """Counts programs of kernels that go over the key blocks of a query block."""
    table = np.asarray(plan.table(jnp.asarray(ids)))
    groups, calls, heads, rows, _ = table.shape
    lists = table.reshape(groups * calls, heads, rows * plan.steps, plan.entries)
    block = np.minimum(lists, plan.columns - 1) + plan.columns * np.arange(heads)[:, None, None]
    programs = int((lists[..., 0] < plan.columns).sum())
    computed = sum(
        len(some) * int((lists[..., some[0]] < plan.columns).sum())
        for some in parts(plan.entries, K_BLOCK, width)
    )
    fetched = sum(_changes(call.reshape(-1, plan.entries)) for call in block)
    rows = table[..., 0].size
    return _Programs(programs, lists[..., 0].size, plan.entries, computed, fetched, rows)


def _by_keys(plan: Plan, ids: np.ndarray, q_block: int) -> _Programs:
    """Counts programs of the kernel that goes over the query blocks of a key block."""
    split = plan.of_queries(jnp.asarray(ids), plan.columns)
    entries, programs, grid, computed, fetched, rows = plan.query_entries, 0, 0, 0, 0, 0
    steps = plan.steps_of_keys
    make = jax.jit(lambda x: key_steps(BlockTable(x[None], plan.columns), steps, entries))
    for some in split.reshape(-1, *split.shape[2:]):
        query, keys, starts, counts = (np.asarray(x) for x in make(some))
        head = np.repeat(np.arange(some.shape[0]), steps)
        block = query[starts[:, None] + np.arange(entries)] + plan.rows * head[:, None]
        programs, grid = programs + int((counts > 0).sum()), grid + counts.size
        computed += sum(
            len(one) * int((counts > one[0]).sum())
            for one in parts(entries, q_block, plan.tiles.key_gradient)
        )
        fetched += _changes(block)
        rows += _changes((keys + plan.columns * head)[:, None])
    return _Programs(programs, grid, entries, computed, fetched, rows)


def _changes(blocks: np.ndarray) -> int:
    """Counts fetches of blocks [programs, entries]: those that change, and all of the first."""
    return blocks.shape[1] + int((blocks[1:] != blocks[:-1]).sum())


def arguments(case: Case, dtype: str, sharding: Any = None) -> list[jax.ShapeDtypeStruct]:
    """Describes the arguments of `both`: q, k, v, proj_lin, critical table and a cotangent."""
    like = partial(jax.ShapeDtypeStruct, sharding=sharding)
    d = case.head_dim
    q, k = ((case.batch, t, case.heads, d) for t in (case.q_tokens, case.k_tokens))
    table = like(case.table_shape, jnp.int32)
    return [like(q, dtype), like(k, dtype), like(k, dtype), like((d, d), jnp.float32), table,
            like(q, dtype)]  # fmt: skip


def both(case: Case, tiles: TpuTiles | None = None) -> Any:
    """Returns a function (q, k, v, proj_lin, critical, cotangent) -> o and gradients.

    The gradients are those of q, k, v and proj_lin.
    """

    def call(q: Any, k: Any, v: Any, w: Any, critical: Any, up: Any) -> Any:
        none = jnp.zeros((*case.table_shape[:3], 0), jnp.int32)
        tables = BlockTable(critical, case.k_blocks), BlockTable(none, case.k_blocks)
        run = partial(
            sla_tpu,
            block_map=BlockMap(*tables, case.q_block, case.k_block),
            routing=case.routing,
            phi=case.phi,
            keep=None,
            eps=1e-6,
            q_valid=jnp.ones(q.shape[:2], bool),
            k_valid=jnp.ones(k.shape[:2], bool),
            tiles=tiles,
        )
        o, pull = jax.vjp(run, q, k, v, w)
        return o, *pull(up)

    return call


def products(case: Case, dtype: str, tiles: TpuTiles | None = None) -> dict[str, int]:
    """Counts the matrix unit's operations in one program with work of each kernel, by its code."""
    with tpu.traced_for("v5e"):
        traced = jax.jit(both(case, tiles)).trace(*arguments(case, dtype))
    return {name: _multiplied(inner) for name, inner in _kernels(traced.jaxpr.jaxpr)}


def _kernels(jaxpr: Any) -> Iterator[tuple[str, Any]]:
    """Yields (name, code) of every Pallas kernel in a program."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "pallas_call":
            inner = equation.params["jaxpr"]
            yield str(equation.params.get("name") or inner.debug_info.func_name), inner
            continue
        for inner in _inner(equation):
            yield from _kernels(inner)


def _inner(equation: Any) -> Iterator[Any]:
    for value in equation.params.values():
        for one in value if isinstance(value, tuple | list) else [value]:
            one = getattr(one, "jaxpr", one)
            if hasattr(one, "eqns"):
                yield one


def _multiplied(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        total += sum(_multiplied(inner) for inner in _inner(equation))
        if equation.primitive.name == "dot_general":
            x = equation.invars[0].aval.shape
            (contract, _), _ = equation.params["dimension_numbers"]
            out = math.prod(equation.outvars[0].aval.shape)
            total += 2 * out * math.prod(x[i] for i in contract)
    return total


@dataclass(frozen=True)
class Compiled:
    """Numbers of instructions in the compiled code of a kernel, whose loops count once.

    Attributes:
        bundles: of instructions that are issued at a time.
        products: that feed the matrix units.
        spills: that put a vector register into vector memory for want of registers.
        fills: that get one back.
    """

    bundles: int
    products: int
    spills: int
    fills: int


def dumped(folder: Path) -> dict[str, Compiled]:
    """Reads the numbers of every kernel whose utilization by bundle libtpu wrote (`dumping`).

    The file has a line of names, of the units of a core, and a line of numbers for every bundle.

    Raises:
        InputError: a file of another form.
    """
    kernels = {}
    for path in sorted(folder.glob("*final_hlo-static-per-bundle-utilization.txt")):
        name = re.search(r"(sla_[a-z_]+|block_map_select)", path.name)
        if name is None:
            continue
        lines = path.read_text().splitlines()
        units = [unit.strip() for unit in lines[1].split(",")]
        bundles = [line.split() for line in lines[4:]]
        if "VSTORE:SPILL" not in units or any(len(line) != len(units) for line in bundles):
            raise InputError(f"{path.name}: expected numbers of units by bundle, as libtpu 0.0.42")
        total = dict.fromkeys(units, 0)
        for line in bundles:
            for unit, number in zip(units, line, strict=True):
                total[unit] += int(number)
        kernels[name[1]] = Compiled(
            len(bundles), total["MXU"], total["VSTORE:SPILL"], total["VLOAD:FILL"]
        )
    return kernels


def dumping(folder: Path) -> None:
    """Makes libtpu write the code of what it compiles; to be called before libtpu is loaded.

    Source of the flags: LIBTPU_INIT_ARGS of libtpu 0.0.42.
    """
    flags = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
    flags += " --xla_jf_dump_llo_pass_label_regex=.*utilization.*"
    os.environ["LIBTPU_INIT_ARGS"] = f"{os.environ.get('LIBTPU_INIT_ARGS', '')} {flags}".strip()


def main(argv: list[str] | None = None) -> None:
    """Prints a table of what was counted, and one of what was compiled."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--views", type=int, nargs="+", default=[2, 8, 32, 100])
    parser.add_argument("--keep", type=float, default=0.1)
    parser.add_argument("--q-block", type=int, default=128, choices=[64, 128])
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--compile", nargs="+", choices=list(tpu.CHIPS), default=[])
    parser.add_argument("--tiny", action="store_true", help="2 heads of 2 views of 64 patches")
    args = parser.parse_args(argv)
    cases = [_case(views, args) for views in args.views]
    print(
        f"jax {jax.__version__}, {args.dtype}, query blocks of {args.q_block}, keep {args.keep:g}"
    )
    head = "programs with work", "read", "written", "products", "of them needed", "blocks in use"
    print(f"\n| views | kernel | {' | '.join(head)} |")
    print("|" + "---|" * 8)
    for views, case in zip(args.views, cases, strict=True):
        for work in count(case, random_table(case), args.dtype):
            print(_line(views, work), flush=True)
    if not args.compile:
        return
    head = "bundles", "products", "spills", "fills", "temporary memory of the call"
    print(f"\n| chip | views | kernel | {' | '.join(head)} |")
    print("|" + "---|" * 8)
    for chip in args.compile:
        for views, case in zip(args.views, cases, strict=True):
            for name, code, temporary in in_subprocess(compiled, chip, case, args.dtype):
                row = chip, views, f"`{name}`", code.bundles, code.products, code.spills, code.fills
                print(f"| {' | '.join(map(str, row))} | {temporary / MIB:.0f} MiB |", flush=True)


def compiled(chip: str, case: Case, dtype: str) -> Iterator[tuple[str, Compiled, int]]:
    """Compiles for a chip and yields (kernel, its code, temporary bytes of the call).

    It has to run in a process that has not loaded libtpu.

    Raises:
        InputError: libtpu is not there, or writes no code of kernels.
    """
    with tempfile.TemporaryDirectory() as folder:
        dumping(Path(folder))
        here = NamedSharding(tpu.mesh(chip), PartitionSpec())
        seen: set[str] = set()
        for call, shapes in (
            (both(case), arguments(case, dtype, here)),
            (partial(_select, case), _pooled(case, dtype, here)),
        ):
            analysis = tpu.lower(chip, call, *shapes).compile().memory_analysis()
            assert analysis is not None, "XLA gives no memory plan for this device"
            kernels = {n: code for n, code in dumped(Path(folder)).items() if n not in seen}
            if not kernels:
                raise InputError("libtpu wrote no code of kernels: its flags for that have changed")
            for name, code in kernels.items():
                yield name, code, analysis.temp_size_in_bytes
            seen |= set(kernels)


def _select(case: Case, q: Any, q_used: Any, k: Any, k_used: Any) -> Any:
    """Runs the block selection of the case by its kernel."""
    kept = np.arange(case.always, dtype=np.int32)
    top, bottom = case.budgets
    return select_tpu(q, q_used, k, k_used, kept=kept, top=top, bottom=bottom)


def _pooled(case: Case, dtype: str, sharding: Any) -> list[jax.ShapeDtypeStruct]:
    """Describes pooled queries and keys [B, N, M, D] and which are used [B, M], for `_select`."""
    like = partial(jax.ShapeDtypeStruct, sharding=sharding)
    q, k = (
        (like((case.batch, case.heads, m, case.head_dim), dtype), like((case.batch, m), bool))
        for m in (case.q_blocks, case.k_blocks)
    )
    return [*q, *k]


def _case(views: int, args: argparse.Namespace) -> Case:
    if args.tiny:
        return Case("tiny", 64 * views, 64 * views, heads=2, q_block=args.q_block, keep=args.keep)
    return vggt_global(views, args.keep, q_block=args.q_block)


def _line(views: int, work: Work) -> str:
    cells = (
        str(views), f"`{work.kernel}`", f"{work.programs:,} of {work.grid:,}",
        f"{work.read / MIB:,.1f} MiB", f"{work.written / MIB:,.1f} MiB",
        f"{work.products / 1e9:,.1f} GFLOP", f"{work.needed / work.products:.1%}",
        f"{work.listed / work.computed:.1%}",
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
