"""Reads from its HLO text what the devices of a compiled program send each other."""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GIB = 2**30

KINDS = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")


@dataclass(frozen=True)
class Collective:
    """A collective instruction of a compiled program.

    Attributes:
        kind: one of `KINDS`.
        size: bytes of its result on one device.
        times: how often it runs, by the trip counts of the loops around it.
    """

    kind: str
    size: int
    times: int


def collectives(text: str) -> list[Collective]:
    """Lists the collective instructions of a compiled program.

    Args:
        text: `jax.stages.Compiled.as_text()`.

    Raises:
        ValueError: a loop around one of them has no known trip count.
    """
    bodies, entry = _computations(text)
    collectives: list[Collective] = []

    def visit(name: str, times: int) -> None:
        for line in bodies[name]:
            operation = _OPERATION.match(line)
            if operation is None:
                continue
            shape, kind = operation.groups()
            # The result of an asynchronous one is that of its end.
            kind = kind.removesuffix("-done")
            if kind in KINDS:
                collectives.append(Collective(kind, _bytes(shape), times))
            turns = times
            if kind == "while":
                turns = times * _turns(line, bodies[name], bodies)
            for called in _CALLED.findall(line):
                for inner in re.findall(r"[\w.\-]+", called):
                    if inner in inside:
                        if not turns:
                            raise ValueError(
                                f"a loop with collectives in an unknown number: {line}"
                            )
                        visit(inner, turns)

    inside = _with_collectives(bodies)
    visit(entry, 1)
    return collectives


def _turns(loop: str, around: list[str], bodies: dict[str, list[str]]) -> int:
    """Returns how often a loop runs, 0 where that is not known.

    The compiler for GPUs notes the number; for TPUs it is read from what JAX makes of a scan: a
    counter that goes up by one from a constant as long as it is below another constant.

    Args:
        loop: the instruction.
        around: those of its computation.
        bodies: all computations.
    """
    if noted := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop):
        return int(noted[1])
    inside = bodies.get(re.findall(r"condition=%?([\w.\-]+)", loop)[0], [])
    bound = re.search(
        r"ROOT .* compare\(%?([\w.\-]+), %?([\w.\-]+)\), direction=LT", "\n".join(inside)
    )
    if bound is None:
        return 0
    place = re.search(r"get-tuple-element\(.*\), index=(\d+)", _definition(inside, bound[1]))
    given = re.search(r" while\(%?([\w.\-]+)\)", loop)
    values = re.search(r" tuple\((.*?)\)", _definition(around, given[1])) if given else None
    if place is None or values is None:
        return 0
    start = re.findall(r"%[\w.\-]+", values[1])[int(place[1])].removeprefix("%")
    first, last = _constant(around, start), _constant(inside, bound[2])
    return 0 if first is None or last is None else max(0, last - first)


def _definition(lines: list[str], name: str) -> str:
    """Returns the line that defines the instruction `name`, "" where none of the lines does."""
    return next((x for x in lines if re.match(rf"\s*(ROOT )?%?{re.escape(name)} = ", x)), "")


def _constant(lines: list[str], name: str) -> int | None:
    """Returns the integer of a constant instruction or of a copy of one, None for any other."""
    line = _definition(lines, name)
    while copied := re.search(r" copy\(%?([\w.\-]+)\)", line):
        line = _definition(lines, copied[1])
    value = re.search(r" constant\((-?\d+)\)", line)
    return int(value[1]) if value else None


_OPERATION = re.compile(r"\s*(?:ROOT )?%?[\w.\-]+ = (\(.*?\)|\S+) ([a-z\-]+)\(")
_CALLED = re.compile(
    r"(?:body|calls|to_apply|branch_computations|called_computations)=(\{[^}]*\}|%?[\w.\-]+)"
)


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Splits a program: (lines of every computation by its name, name of the one that is run)."""
    bodies: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{\s*$", line)
        if head:
            lines = bodies[head[2]] = []
            entry = head[2] if head[1] else entry
        else:
            lines.append(line)
    return bodies, entry


def _with_collectives(bodies: dict[str, list[str]]) -> set[str]:
    """Returns names of computations that have collectives, or call one that has."""
    calls = {
        name: {inner for line in lines for called in _CALLED.findall(line)
               for inner in re.findall(r"[\w.\-]+", called)}
        for name, lines in bodies.items()
    }  # fmt: skip
    marks = tuple(f" {kind}{end}(" for kind in KINDS for end in ("", "-done"))
    having = {
        name for name, lines in bodies.items() if any(m in line for line in lines for m in marks)
    }
    while more := {name for name, inner in calls.items() if inner & having} - having:
        having |= more
    return having


def _bytes(shape: str) -> int:
    """Returns the bytes of an HLO type, such as f32[2,3]{1,0}, or of a tuple of types."""
    total = 0
    for kind, bits, sizes in re.findall(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]", shape):
        width = 1 if kind == "pred" else math.ceil(int(bits) / 8)
        total += width * math.prod(int(n) for n in sizes.split(",") if n)
    return total


def summary(collectives: list[Collective]) -> str:
    """Formats the number and bytes of collectives by kind."""
    parts = []
    for kind in sorted({one.kind for one in collectives}):
        of_kind = [one for one in collectives if one.kind == kind]
        count = sum(one.times for one in of_kind)
        size = math.fsum(one.times * one.size for one in of_kind)
        parts.append(f"{count} {kind} of {size / GIB:.3f} GiB")
    return ", ".join(parts) or "no collectives"


def described(count: int) -> list[Any]:
    """Returns descriptions of H200s to compile for, without having any."""
    from jax.experimental import topologies

    text = (Path(__file__).parent / "h200.txtpb").read_text()
    topology = topologies.get_topology_desc(
        platform="cuda", target_config=text, topology=f"1x1x{count}"
    )
    return list(topology.devices)
