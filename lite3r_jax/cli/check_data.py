"""`lite3r check-data`: what a multi-view dataset holds, and everything that is wrong with it."""

from collections.abc import Sequence
from pathlib import Path

from lite3r_jax.cli.programs import Parser, exit_code
from lite3r_jax.runs.check_data import check


def parser(program: str) -> Parser:
    """Builds the parser of the command line; `program` is the name that its messages show."""
    top = Parser(prog=program, description=(__doc__ or "").partition(": ")[2])
    top.add_argument("source", help="data source, such as dtu64:FOLDER, or a folder")
    top.add_argument(
        "--sheet", type=Path, default=Path("contact_sheet.png"), help="PNG file to write"
    )
    top.add_argument("--overwrite", action="store_true", help="replace the contact sheet")
    return top


def main(arguments: Sequence[str] | None = None, program: str = "lite3r check-data") -> int:
    """Checks a dataset; returns 0 without faults, 1 with faults, 2 for bad input."""

    def run() -> int:
        options = parser(program).parse_args(arguments)
        faults = check(options.source, options.sheet, overwrite=options.overwrite)
        return 1 if faults else 0

    return exit_code(run)
