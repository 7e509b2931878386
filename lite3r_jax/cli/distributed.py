"""`lite3r distributed`: run a training as one of several processes, of one or several hosts."""

import argparse
from collections.abc import Sequence

import jax

from lite3r_jax.cli.programs import Parser, exit_code
from lite3r_jax.errors import InputError

# Others work in one process, but for reconstructions, which have settings for several.
_COMMANDS = ("train", "distill")
_GIVEN = ("coordinator", "processes", "process")


def parser(program: str) -> Parser:
    """The command line; program: its name."""
    top = Parser(
        prog=program,
        description="Run COMMAND as one of several processes, which all run the same line. On a TPU"
        " slice, under Slurm and Open MPI they find each other; elsewhere give all three options.",
    )
    top.add_argument("--coordinator", metavar="HOST:PORT", help="a free port of process 0's host")
    top.add_argument("--processes", type=int, help="how many there are")
    top.add_argument("--process", type=int, help="which this is, from 0 on; another in each")
    top.add_argument("command", metavar="COMMAND", help=" or ".join(_COMMANDS))
    top.add_argument("words", nargs=argparse.REMAINDER, metavar="...", help="its own words")
    return top


def main(arguments: Sequence[str] | None = None, program: str = "lite3r distributed") -> int:
    """Exit code: that of the command; 2 for bad input."""
    return exit_code(lambda: _run(parser(program).parse_args(arguments)))


def _run(options: argparse.Namespace) -> int:
    from lite3r_jax.cli import lite3r

    if options.command not in _COMMANDS:
        instead = "runs in one process"
        if options.command == "reconstruct":
            instead = "joins others by --processes.coordinator, --processes.count and so on"
        raise InputError(f"{options.command}: {instead}; here run {' and '.join(_COMMANDS)}")
    given = [name for name in _GIVEN if getattr(options, name) is not None]
    if given and len(given) < len(_GIVEN):
        missing = [f"--{name}" for name in _GIVEN if name not in given]
        raise InputError(f"{', '.join(missing)}: not given; give all three, or none where the"
                         " processes find each other")  # fmt: skip
    if given and not 0 <= options.process < options.processes:
        raise InputError(f"--process: expected 0 to {options.processes - 1}, got {options.process}")
    # Before anything asks for a device.
    try:
        jax.distributed.initialize(options.coordinator, options.processes, options.process)
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"the processes found no common coordinator: {error}; on a machine that is no part of a"
            " slice give --coordinator, --processes and --process"
        ) from error
    try:
        return lite3r.main([options.command, *options.words])
    finally:
        jax.distributed.shutdown()
