"""Records memory plans of programs for devices that are not here, and makes tables of them.

    PYTHONPATH=.venv/tpu JAX_PLATFORMS=cpu python -m tools.benchmark.plans docs/tpu_plans.jsonl \
        --compile --backbone vggt --chip v5e --views 2 8
    python -m tools.benchmark.plans docs/tpu_plans.jsonl --page docs/benchmarks.md

The record has a line of JSON for each program that `tools.benchmark.forward --plan` and
`tools.benchmark.train_memory` compiled with --record. The rows of the tables are fixed (`FORWARD`,
`STEPS`) and compiled with XLA's least effort for speed (`EFFORT`), which takes a fraction of the
time; what is not in the record is "not compiled" there. --compile compiles those of them that
are missing, one process each, and --page rewrites the part of the page between two marks.
--backbone, --chip, --views and --attention choose some.
"""

import argparse
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from lite3r_jax import InputError
from tools.benchmark import tpu
from tools.benchmark.collectives import KINDS, collectives

GIB = 2**30
BEGIN, END = "<!-- plans of TPUs: begin -->", "<!-- plans of TPUs: end -->"


@dataclass(frozen=True)
class Compiled:
    """A program that was compiled, with its memory plan and the time it took.

    Attributes:
        program: the compiled program.
        memory: XLA's plan of one device.
        wall: seconds of compiling.
        cpu: processor time of this process meanwhile, seconds.
    """

    program: Any
    memory: Any
    wall: float
    cpu: float

    @property
    def text(self) -> str:
        """HLO text of the program."""
        return self.program.as_text() or ""


@dataclass(frozen=True)
class TooLarge:
    """A program that the compiler refused because its device has too little memory.

    Attributes:
        needs: bytes that it would take, 0 where the compiler does not say.
        has: bytes that a program can have of the device, likewise.
        cpu: processor time until then, seconds.
    """

    needs: int
    has: int
    cpu: float

    def __str__(self) -> str:
        """Describes in words the memory that the program needs and the device has."""
        return f"does not fit: needs {self.needs / GIB:.2f} of {self.has / GIB:.2f} GiB"


def compiled(
    lowered: jax.stages.Lowered, device: str | None, row: Mapping[str, Any], record: Path | None
) -> Compiled | TooLarge:
    """Compiles a program for its described device and appends its plan to a record.

    Args:
        lowered: the program.
        device: "h200", a chip of `tools.benchmark.tpu`, or None for this machine's.
        row: what the program is; goes into the record.
        record: a file of JSON lines, which is made where it is not there; None for none.
    """
    # No GPU, no tuning: XLA's own Triton GEMMs cannot choose their tiles.
    options: Any = {"xla_gpu_enable_triton_gemm": False} if device == "h200" else None
    wall, cpu = time.perf_counter(), time.process_time()
    outcome: Compiled | TooLarge
    try:
        program = lowered.compile(options)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        outcome = TooLarge(*_exhausted(str(error)), time.process_time() - cpu)
    else:
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        memory = program.memory_analysis()
        assert memory is not None, "XLA gives no memory plan for this device"
        outcome = Compiled(program, memory, wall, cpu)
    if record is not None:
        line = {"device": device, "jax": jax.__version__, **row, **_measured(outcome)}
        if device in tpu.CHIPS:
            line["libtpu"] = importlib.metadata.version("libtpu")
            config: Any = jax.config
            line["effort"] = config.jax_exec_time_optimization_effort
        with record.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    return outcome


def _exhausted(message: str) -> tuple[int, int]:
    """Reads (needed, had) bytes from "Used 21.32G of 15.75G hbm"; 0 from any other message."""
    said = re.search(r"Used ([\d.]+)([KMG]) of ([\d.]+)([KMG])", message)
    if said is None:
        return 0, 0
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    return int(float(said[1]) * units[said[2]]), int(float(said[3]) * units[said[4]])


def _measured(outcome: Compiled | TooLarge) -> dict[str, Any]:
    if isinstance(outcome, TooLarge):
        return {
            "fits": False,
            "needs": outcome.needs,
            "has": outcome.has,
            "cpu": round(outcome.cpu, 1),
        }
    m = outcome.memory
    sent: dict[str, list[int]] = {}
    for one in collectives(outcome.text):
        times, size = sent.get(one.kind, [0, 0])
        sent[one.kind] = [times + one.times, size + one.times * one.size]
    return {
        "fits": True,
        "arguments": m.argument_size_in_bytes,
        "outputs": m.output_size_in_bytes,
        "alias": m.alias_size_in_bytes,
        "temporary": m.temp_size_in_bytes,
        "temporary_on_host": m.host_temp_size_in_bytes,
        "collectives": sent,
        "wall": round(outcome.wall, 1),
        "cpu": round(outcome.cpu, 1),
    }


@dataclass(frozen=True)
class Forward:
    """A row of the plans: a model's forward pass on one chip.

    Attributes:
        backbone: its name.
        height: of a view.
        width: of a view.
        attention: as in --row, without the precision, which is bfloat16.
        chip: of `tools.benchmark.tpu`.
        views: how many.
    """

    backbone: str
    height: int
    width: int
    attention: str
    chip: str
    views: int

    def command(self) -> list[str]:
        """Returns the arguments of `tools.benchmark.forward` for this row."""
        sizes = ["--height", str(self.height), "--width", str(self.width)]
        row = f"{self.attention}-bfloat16"
        return [
            "tools.benchmark.forward", "--plan", self.chip, "--backbone", self.backbone, *sizes,
            "--heads", "camera,depth", "--views", str(self.views), "--row", row,
        ]  # fmt: skip

    def is_of(self, line: Mapping[str, Any]) -> bool:
        """Returns whether a line of the record is the plan of this row."""
        return (
            line["program"] == "forward"
            and line.get("effort") == EFFORT
            and (line["device"], line["backbone"]) == (self.chip, self.backbone)
            and (line["height"], line["width"]) == (self.height, self.width)
            and line["what"] == f"{self.attention}-bfloat16"
            and line["heads"] == ["camera", "depth"]
            and (line["views"], line["devices"], line["on_host"]) == (self.views, 1, False)
        )


@dataclass(frozen=True)
class Step:
    """A row of the plans: a step of the distillation recipe on a slice.

    Attributes:
        chip: of `tools.benchmark.tpu`.
        mesh: chips along data, fsdp and view.
        views: of a scene, of which there is one for each chip of data x fsdp.
    """

    chip: str
    mesh: tuple[int, int, int]
    views: int

    def command(self) -> list[str]:
        """Returns the arguments of `tools.benchmark.train_memory` for this row."""
        names = zip(("--data", "--fsdp", "--view"), self.mesh, strict=True)
        axes = [word for name, size in names for word in (name, str(size))]
        return [
            "tools.benchmark.train_memory", "--recipe", "fp8", "--plan", self.chip, *axes,
            "--views", str(self.views),
        ]  # fmt: skip

    def is_of(self, line: Mapping[str, Any]) -> bool:
        """Returns whether a line of the record is the plan of this row."""
        return (
            line["program"] == "distill"
            and line.get("effort") == EFFORT
            and (line["device"], line["mesh"]) == (self.chip, list(self.mesh))
            and (line["views"], line["height"], line["width"]) == (self.views, 518, 518)
            and line["scenes"] == self.mesh[0] * self.mesh[1]
            and line["accumulate"] == 1
        )


MODELS = {"vggt": ("VGGT-1B", 518, 518), "da3": ("DA3-Large", 378, 504)}
ATTENTION = ("dense", "sla_global(keep=0.1)")
VIEWS = (2, 8, 32, 100)
EFFORT = -1.0
"""Value of `jax_exec_time_optimization_effort` for all rows of the tables."""
FORWARD = tuple(
    Forward(backbone, height, width, attention, chip, views)
    for backbone, (_, height, width) in MODELS.items()
    for attention in ATTENTION
    for chip in tpu.CHIPS
    for views in VIEWS
)
STEPS = tuple(
    Step(chip, mesh, 2)
    for chip in tpu.CHIPS
    for mesh in ((1, 4, 1), (1, 8, 1), (1, 4, 2), (8, 8, 1))
)


def read(record: Path) -> list[dict[str, Any]]:
    """Reads the lines of a record, one JSON object each.

    Raises:
        InputError: one of them is no JSON object.
    """
    lines = []
    for number, text in enumerate(record.read_text(encoding="utf-8").splitlines(), 1):
        try:
            line = json.loads(text)
        except json.JSONDecodeError as error:
            raise InputError(f"{record}, line {number}: expected JSON, {error}") from None
        if not isinstance(line, dict) or "program" not in line:
            raise InputError(f"{record}, line {number}: expected an object with a program")
        lines.append(line)
    return lines


def tables(lines: Iterable[Mapping[str, Any]]) -> str:
    """Formats forward passes and steps as Markdown; of several lines of a row the last counts."""
    lines = list(lines)

    def line_of(row: Forward | Step) -> Mapping[str, Any] | None:
        return next((line for line in reversed(lines) if row.is_of(line)), None)

    out = [f"| model | attention | chip | {' | '.join(f'{n} views' for n in VIEWS)} |"]
    out.append("|" + "---|" * (3 + len(VIEWS)))
    for first in range(0, len(FORWARD), len(VIEWS)):
        some = FORWARD[first : first + len(VIEWS)]
        cells = [_forward_cell(line_of(row)) for row in some]
        names = MODELS[some[0].backbone][0], f"`{some[0].attention}`", some[0].chip
        out.append(f"| {' | '.join((*names, *cells))} |")
    head = "a chip needs", "state and batch", "temporary", "collectives of a step", "compiled in"
    out += ["", f"| chip | data x fsdp x view | scenes x views | {' | '.join(head)} |"]
    out.append("|" + "---|" * 8)
    for row in STEPS:
        what = f"{row.mesh[0] * row.mesh[1]} x {row.views}"
        mesh = " x ".join(map(str, row.mesh))
        out.append(f"| {' | '.join((row.chip, mesh, what, *_step_cells(line_of(row))))} |")
    return "\n".join(out)


def _too_large(line: Mapping[str, Any]) -> str:
    if not line["needs"]:
        return f"does not fit; {line['cpu']:.0f} s"
    needs, has = line["needs"] / GIB, line["has"] / GIB
    return f"does not fit: {needs:.2f} of {has:.2f} GiB; {line['cpu']:.0f} s"


def _forward_cell(line: Mapping[str, Any] | None) -> str:
    if line is None:
        return "not compiled"
    if not line["fits"]:
        return _too_large(line)
    sizes = (line[name] / GIB for name in ("arguments", "outputs", "temporary"))
    return f"{' / '.join(f'{size:.2f}' for size in sizes)} GiB; {line['cpu']:.0f} s"


def _step_cells(line: Mapping[str, Any] | None) -> list[str]:
    if line is None:
        return ["not compiled", "", "", "", ""]
    if not line["fits"]:
        return [_too_large(line), "", "", "", f"{line['cpu']:.0f} s"]
    needs = line["arguments"] + line["outputs"] - line["alias"] + line["temporary"]
    sizes = [f"{x / GIB:.2f} GiB" for x in (needs, line["arguments"], line["temporary"])]
    sent = [
        f"{line['collectives'][kind][0]} {kind} {line['collectives'][kind][1] / GIB:.2f} GiB"
        for kind in KINDS
        if kind in line["collectives"]
    ]
    return [*sizes, ", ".join(sent) or "nothing", f"{line['cpu']:.0f} s"]


def rewrite(page: Path, text: str) -> None:
    """Replaces the text between the two marks of a page.

    Raises:
        InputError: the page has not both marks, once each and in order.
    """
    whole = page.read_text(encoding="utf-8")
    if whole.count(BEGIN) != 1 or whole.count(END) != 1 or whole.index(END) < whole.index(BEGIN):
        raise InputError(f"{page}: expected a line {BEGIN} and behind it a line {END}")
    before, after = whole[: whole.index(BEGIN)], whole[whole.index(END) :]
    page.write_text(f"{before}{BEGIN}\n\n{text}\n\n{after}", encoding="utf-8")


def main(argv: list[str] | None = None) -> None:
    """Compiles what is missing, then prints the tables or writes them into a page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("record", type=Path, help="file of JSON lines")
    parser.add_argument("--compile", action="store_true", help="what is missing, minutes each")
    parser.add_argument("--program", choices=["forward", "distill"], help="default: both")
    parser.add_argument("--backbone", choices=list(MODELS), help="of forward passes; default: all")
    parser.add_argument("--attention", choices=ATTENTION, help="likewise")
    parser.add_argument("--chip", choices=list(tpu.CHIPS), help="default: all")
    parser.add_argument("--views", type=int, nargs="+", default=VIEWS)
    parser.add_argument("--page", type=Path, help="write the tables there, between its marks")
    args = parser.parse_args(argv)
    try:
        if args.compile:
            _compile(args)
        text = tables(read(args.record))
        if args.page is None:
            print(text)
        else:
            rewrite(args.page, text)
    except (InputError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")


def _compile(args: argparse.Namespace) -> None:
    for row in (*FORWARD, *STEPS):
        kind = "forward" if isinstance(row, Forward) else "distill"
        if args.program not in (None, kind) or args.chip not in (None, row.chip):
            continue
        if row.views not in args.views:
            continue
        if isinstance(row, Forward) and (
            args.backbone not in (None, row.backbone) or args.attention not in (None, row.attention)
        ):
            continue
        if args.record.exists() and any(map(row.is_of, read(args.record))):
            continue
        command = [*row.command(), "--record", str(args.record)]
        print(f"python -m {' '.join(command)}", flush=True)
        effort = {"JAX_EXEC_TIME_OPTIMIZATION_EFFORT": str(EFFORT)}
        done = subprocess.run(
            [sys.executable, "-m", *command], env=os.environ | effort, check=False
        )
        if done.returncode:
            raise InputError(f"it ended with {done.returncode}: see what it wrote above")


if __name__ == "__main__":
    main()
