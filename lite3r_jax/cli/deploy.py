"""`lite3r deploy`: a model with float8 weights, and programs that run without this package.

`lite3r_jax.load(OUT)` gives the model; reconstruct, evaluate and bench take OUT as their weights.
docs/deployment.md has the few lines that run a program.
"""

import argparse
import re
from collections.abc import Sequence
from typing import cast, get_args

import jax

from lite3r_jax.cli.programs import Parser, exit_code
from lite3r_jax.deploy.manifest import Platform, Program, Rest
from lite3r_jax.errors import InputError, printable
from lite3r_jax.precision import PRESETS, Kind
from lite3r_jax.runs.deploy import export_deployment


def parser(program: str = "lite3r deploy") -> Parser:
    """Builds the parser of the command line; `program` is the name that its messages show."""
    top = Parser(prog=program, description="Deploy a model.")
    add = top.add_argument
    add("weights", help="converted weights, a hub repository or vggt-tiny; a student's teacher")
    add("out", help="directory to make")
    add("--student", help="folder of a distilled student; default: the weights as they are")
    add("--kind", choices=get_args(Kind), default="fp8_dynamic", help="default: fp8_dynamic")
    add(
        "--rules",
        choices=[name for name in PRESETS if not name.startswith("paper_w4")],
        help="what becomes float8; default: what the student was trained under, or `default`",
    )
    add("--heads", help="heads to keep, with commas between; default: all")
    add(
        "--rest",
        choices=get_args(Rest),
        default="bfloat16",
        help="dtype of what does not become float8; default: bfloat16",
    )
    add("--license", help="license of the result; default: what the weights say")
    add(
        "--artifact",
        action="append",
        default=[],
        metavar="VIEWSxHEIGHTxWIDTH",
        help="put a serialized forward pass for that shape beside the weights; can be given"
        " several times; needs pip install 'lite3r_jax[deploy]'",
    )
    add(
        "--platform",
        action="append",
        choices=get_args(Platform),
        help="that the programs run on, can be given several times; default: this machine's",
    )
    add(
        "--dtype",
        choices=("bfloat16", "float32"),
        default="bfloat16",
        help="that the programs compute in; default: bfloat16",
    )
    add("--overwrite", action="store_true", help="replace a deployed model")
    return top


def programs(arguments: argparse.Namespace) -> list[Program]:
    """Returns the serialized forward passes that the command line asks for.

    Raises:
        InputError: a malformed shape, or one that is given twice.
    """
    here: Platform = "cuda" if jax.default_backend() == "gpu" else "cpu"
    platforms = cast(list[Platform], arguments.platform or [here])
    programs: list[Program] = []
    for text in arguments.artifact:
        if not re.fullmatch(r"[1-9]\d{0,4}x[1-9]\d{0,4}x[1-9]\d{0,4}", text):
            raise InputError(f"--artifact: expected VIEWSxHEIGHTxWIDTH as 8x294x518, got {text!r}")
        views, height, width = map(int, text.split("x"))
        programs += [
            Program(platform, views, height, width, arguments.dtype) for platform in platforms
        ]
    if len({program.file_name for program in programs}) < len(programs):
        raise InputError("--artifact, --platform: each once")
    if arguments.platform and not programs:
        raise InputError("--platform: is for --artifact, which is not there")
    return programs


def run(arguments: argparse.Namespace) -> int:
    """Deploys the model that the command line names and prints the report.

    Raises:
        InputError: see `export_deployment`.
    """
    heads = arguments.heads
    deployment = export_deployment(
        arguments.weights,
        arguments.out,
        student=arguments.student,
        kind=arguments.kind,
        rules=arguments.rules,
        heads=None if heads is None else [head for head in heads.split(",") if head],
        rest=arguments.rest,
        license=arguments.license,
        programs=programs(arguments),
        overwrite=arguments.overwrite,
    )
    print(printable(deployment.report(), lines=True))
    return 0


def main(arguments: Sequence[str] | None = None, program: str = "lite3r deploy") -> int:
    """Runs `lite3r deploy` and returns the exit code.

    It is 0, 2 for bad input (one line), 130 when interrupted, 143 when terminated.
    """
    return exit_code(lambda: run(parser(program).parse_args(arguments)))
