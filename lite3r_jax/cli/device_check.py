"""`lite3r device-check`: check the kernels on this GPU or TPU, and measure everything on it."""

from collections.abc import Sequence
from pathlib import Path

from lite3r_jax.benchmarking.device_check.run import CHECK, ON_REQUEST, PARTS, device_check
from lite3r_jax.cli.programs import Parser, exit_code


def parser(program: str) -> Parser:
    """Builds the parser of the command line; `program` is the name that its messages show."""
    top = Parser(prog=program, description=(__doc__ or "").partition(": ")[2])
    top.add_argument(
        "parts",
        nargs="*",
        metavar="PART",
        help=f"{', '.join((CHECK, *PARTS))}; default: all but {', '.join(ON_REQUEST)}",
    )
    top.add_argument(
        "--minutes", type=float, default=8.0, help="after which nothing more is begun; default: 8"
    )
    top.add_argument(
        "--record",
        type=Path,
        help="JSON file for all that is found; what is there is replaced, and what is done is kept"
        " if time runs out",
    )
    return top


def main(arguments: Sequence[str] | None = None, program: str = "lite3r device-check") -> int:
    """Runs the device check; returns 0 if no kernel failed, 1 if one did, 2 for bad input."""

    def run() -> int:
        options = parser(program).parse_args(arguments)
        outcome = device_check(minutes=options.minutes, record=options.record, parts=options.parts)
        return int(outcome.failed > 0)

    return exit_code(run)
