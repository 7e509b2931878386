"""Jobs of `lite3r device-check`, the rows of figures that they give, and their table."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import jax

from lite3r_jax.kernels.self_check import one_line

COLUMNS = ("part", "views", "what", "variant", "ms", "times faster", "TFLOP/s", "peak GiB", "note")


@dataclass(frozen=True)
class Figures:
    """Time, operations and memory that a job measured.

    Attributes:
        ms: milliseconds of one call.
        work: floating-point operations of the call; 0: not counted.
        peak: bytes in use at most; None: not known.
    """

    ms: float
    work: int = 0
    peak: int | None = None


@dataclass(frozen=True)
class Row:
    """One line of the table of measurements.

    Attributes:
        part: of the check: "attention", ...
        views: of the scene; 0 where there is none.
        what: what is computed.
        variant: in which way. The first variant of a part, views and what is what others are
            compared with.
        figures: that were measured, or None.
        note: why there are no figures.
    """

    part: str
    views: int
    what: str
    variant: str
    figures: Figures | None = None
    note: str = ""


@dataclass(frozen=True)
class Job:
    """A row of the table and the function that measures its figures."""

    row: Row
    run: Callable[[], Figures]


def done(jobs: Iterable[Job], end: float) -> Iterator[Row]:
    """Runs jobs and yields their rows; no job begins after `end`, which its row then says.

    Args:
        jobs: in the order in which they are done.
        end: as `time.time()`.
    """
    for job in jobs:
        if time.time() >= end:
            yield replace(job.row, note="not measured: no time")
            continue
        try:
            yield replace(job.row, figures=job.run())
        except (ValueError, jax.errors.JaxRuntimeError, MemoryError) as error:
            # What cannot run here says why; that it has not the memory, for instance.
            yield replace(job.row, note=f"not measured: {one_line(error)}")


def cells(row: Row, first: Figures | None) -> tuple[str, ...]:
    """Returns the text of a row by `COLUMNS`; first: figures of the variant to compare with."""
    views = str(row.views) if row.views else ""
    start = row.part, views, row.what, row.variant
    if row.figures is None:
        return *start, "", "", "", "", row.note
    f = row.figures
    return (
        *start,
        f"{f.ms:.3f}",
        "" if first is None else f"{first.ms / f.ms:.2f}",
        f"{f.work / f.ms / 1e9:.0f}" if f.work else "",
        "" if f.peak is None else f"{f.peak / 2**30:.2f}",
        row.note,
    )


def table(rows: Iterable[Row]) -> str:
    """Formats all rows as a Markdown table, as docs/benchmarks.md takes it."""
    lines = [line(COLUMNS), "|" + "---|" * len(COLUMNS)]
    first: dict[tuple[str, int, str], Figures | None] = {}
    for row in rows:
        key = row.part, row.views, row.what
        lines.append(line(cells(row, first.setdefault(key, row.figures))))
    return "\n".join(lines)


def line(texts: Iterable[str]) -> str:
    """Formats texts as one line of a Markdown table."""
    return "| " + " | ".join(text.replace("|", "/") for text in texts) + " |"


def milliseconds(call: Callable[..., object], arrays: Iterable[object]) -> float:
    """Times a call among many that are queued, by the median of three rounds of about 0.2 s.

    Args:
        call: is compiled for the arrays.
        arrays: its arguments, on the device.
    """
    arrays = list(arrays)
    compiled = jax.jit(call).lower(*arrays).compile()
    jax.block_until_ready(compiled(*arrays))
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
