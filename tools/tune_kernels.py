"""Chooses how the kernels of `sla.jax_triton` are launched, by compiling them for GPUs.

python -m tools.tune_kernels [--capability 9.0 ...] [--table FILE] [--verbose]

No GPU is needed, only the package triton. It rewrites the rows of these capabilities (by default of
8.0, 8.9, 9.0 and 10.0) in `lite3r_jax/kernels/sla/launches.json`, whose format stands in
`lite3r_jax/kernels/sla/launches.py`. On a GPU, `lite3r device-check tune` times them.
"""

import argparse
import datetime
import importlib.metadata
from collections.abc import Sequence
from pathlib import Path

from lite3r_jax.kernels.sla import compile_triton, launches


def main(arguments: Sequence[str] | None = None) -> int:
    """Chooses launches for the capabilities of the command line and rewrites their table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--capability",
        nargs="+",
        type=float,
        choices=compile_triton.SHARED_MEMORY,
        default=compile_triton.CAPABILITIES,
    )
    parser.add_argument("--table", type=Path, default=launches.COMPILED)
    parser.add_argument("--verbose", action="store_true", help="a line for each candidate")
    options = parser.parse_args(arguments)
    report = print if options.verbose else lambda line: None
    version = importlib.metadata.version("triton")
    made = f"{datetime.date.today()}, triton {version}, by python -m tools.tune_kernels"
    rows = launches.read(options.table) if options.table.exists() else ()
    for capability in options.capability:
        new = list(compile_triton.table(capability, report))
        others = [row for row in rows if row.capability != capability]
        rows = sorted([*others, *new], key=lambda row: row.capability or 0.0)
        launches.write(options.table, rows, made)
        print(f"{options.table.name}: {len(new)} launches for compute capability {capability}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
