"""Feeds damaged files to every reader and counts: wrong results, tracebacks, hangs, memory.

python -m tests.fuzz.run --cases 3000                    all readers, each in a process of its own
python -m tests.fuzz.run --cases 3000 --reader PNG       one of them
python -m tests.fuzz.run --reader PNG --case 1234        one case again, with its traceback
"""

import argparse
import contextlib
import importlib.metadata as metadata
import json
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from lite3r_jax.errors import InputError
from lite3r_jax.infer.memory import peak_process, restart_peak
from tests.fuzz.mutation import any_text, bulk
from tests.fuzz.readers import READERS, Reader

LONGEST = 10.0
"""Seconds of processor time of a case; more is a hang."""
SECONDS, BYTES = 2.0, 256 << 20
"""Of processor time and of memory beyond what was there, for a file of five megabytes."""


class Hang(BaseException):
    """A case took too long."""


@dataclass
class Figures:
    """What was counted for one reader.

    Attributes:
        reader: its name.
        cases: that were run, the large files included.
        accepted: read without an error.
        refused: with an `InputError`.
        wrong: accepted with another content than the file's checksums allow, or no valid one; or
            refused with a message that is not one line.
        tracebacks: any other exception.
        hangs: cases that took more than `LONGEST`.
        slow: large files that took more than `SECONDS`.
        large: cases that needed more than `BYTES`.
        seconds: of processor time, the slowest case.
        mebibytes: the case that needed most memory.
        examples: some of what went wrong.
    """

    reader: str
    cases: int = 0
    accepted: int = 0
    refused: int = 0
    wrong: int = 0
    tracebacks: int = 0
    hangs: int = 0
    slow: int = 0
    large: int = 0
    seconds: float = 0.0
    mebibytes: float = 0.0
    examples: list[str] = field(default_factory=list)

    @property
    def faults(self) -> int:
        """Everything that must not be."""
        return self.wrong + self.tracebacks + self.hangs + self.slow + self.large


class Bench:
    """A reader with good files in a folder, of which one at a time is damaged."""

    def __init__(self, reader: Reader, folder: Path):
        """Args: reader: which; folder: empty, for its files."""
        self.reader, self.folder = reader, folder
        reader.make(folder)
        self.good = {name: (folder / name).read_bytes() for name in reader.files}
        self.value = reader.read(folder)
        self.figures = Figures(reader.name)

    def case(self, number: int) -> tuple[str, bytes]:
        """The file and the damaged content of a case."""
        rng = random.Random(f"{self.reader.name} {number}")
        name = rng.choice(self.reader.files)
        return name, self.reader.mutate(self.good[name], rng)

    def run(self, label: str, name: str, data: bytes, *, is_large: bool = False) -> None:
        """Read one damaged file and count what comes of it."""
        figures, path = self.figures, self.folder / name
        path.unlink(missing_ok=True)
        path.write_bytes(data)
        figures.cases += 1
        restart_peak()
        before, start, fault = peak_process(), time.process_time(), ""
        try:
            with _limited(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                value = self.reader.read(self.folder)
            figures.accepted += 1
            wanted = self.value if self.reader.same else None
            if not self.reader.valid(value, wanted):
                figures.wrong += 1
                fault = "accepted with another content"
        except InputError as error:
            figures.refused += 1
            quoted = self.reader.mutate is any_text and b"\n" in data  # printing escapes it
            if (
                ("\n" in str(error) and not quoted)
                or len(str(error)) > 4 * len(data) + 2000
                or not str(error).strip()
            ):
                figures.wrong += 1
                fault = f"message {str(error)[:100]!r}"
        except Hang:
            figures.hangs += 1
            fault = "hangs"
        except Exception as error:
            figures.tracebacks += 1
            at = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{Path(at.filename).name}:{at.lineno}"
            fault = f"{type(error).__name__}: {str(error)[:100]} at {place}"
        spent, used = time.process_time() - start, peak_process() - before
        figures.seconds = max(figures.seconds, round(spent, 2))
        figures.mebibytes = max(figures.mebibytes, round(used / 2**20, 1))
        if is_large and spent > SECONDS:
            figures.slow += 1
            fault += f" took {spent:.1f} s"
        if used > BYTES + self.reader.decoded:
            figures.large += 1
            fault += f" took {used / 2**20:.0f} MiB"
        if fault and len(figures.examples) < 20:
            figures.examples.append(f"{label}, {name}: {fault}")
        path.write_bytes(self.good[name])


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise Hang

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, LONGEST)  # processor time: other programs do not count
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def fuzz(reader: Reader, cases: int, *, large: bool = True, first: int = 0) -> Figures:
    """Run the cases of one reader.

    Args:
        reader: which.
        cases: damaged files.
        large: whether files of five megabytes come after them.
        first: number of the first case.
    """
    folder = Path(tempfile.mkdtemp(prefix="fuzz"))
    try:
        bench = Bench(reader, folder)
        for number in range(first, first + cases):
            bench.run(f"case {number}", *bench.case(number))
        if large:
            for name in reader.files:
                for label, data in bulk(bench.good[name], reader.most).items():
                    bench.run(label, name, data, is_large=True)
        return bench.figures
    finally:
        shutil.rmtree(folder, ignore_errors=True)


BEGIN, END = "<!-- figures of make fuzz -->\n", "<!-- end of figures -->\n"


def table(all_figures: Sequence[Figures]) -> str:
    """The figures as Markdown, a row for each reader and one for all."""
    head = ("reader", "damaged", "read", "refused", "wrong", "tracebacks", "hangs", "slow", "large",
            "slowest, s", "most memory, MiB")  # fmt: skip
    rows = [
        (f.reader, f.cases, f.accepted, f.refused, f.wrong, f.tracebacks, f.hangs, f.slow, f.large,
         f.seconds, f.mebibytes)
        for f in all_figures
    ]  # fmt: skip
    sums = [sum(int(row[k]) for row in rows) for k in range(1, 9)]
    rows.append(
        ("all", *sums, max(f.seconds for f in all_figures), max(f.mebibytes for f in all_figures))
    )
    lines = [f"| {' | '.join(map(str, row))} |" for row in (head, ["---"] * len(head), *rows)]
    versions = f"Python {platform.python_version()}, Pillow {metadata.version('pillow')}"
    today = datetime.now(UTC).date().isoformat()
    return "\n".join([f"{today}, {versions}, numpy {np.__version__}:", "", *lines, ""])


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0, or 1 if any reader did what it must not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=3000, help="of each reader; default: 3000")
    parser.add_argument("--reader", choices=list(READERS), help="one alone, in this process")
    parser.add_argument("--case", type=int, help="one case alone; an error is not caught")
    parser.add_argument("--table", type=Path, help="page whose figures are rewritten")
    given = parser.parse_args(arguments)
    if given.case is not None:
        bench = Bench(READERS[given.reader], Path(tempfile.mkdtemp(prefix="fuzz")))
        name, data = bench.case(given.case)
        (bench.folder / name).write_bytes(data)
        print(f"{bench.folder / name}: {len(data)} bytes", flush=True)
        print(bench.reader.read(bench.folder))
        return 0
    if given.reader:
        figures = fuzz(READERS[given.reader], given.cases)
        print(json.dumps(asdict(figures)))
        return int(figures.faults > 0)
    all_figures = []
    for name in READERS:
        words = [sys.executable, "-m", "tests.fuzz.run", "--reader", name]
        ended = subprocess.run(
            [*words, "--cases", str(given.cases)], stdout=subprocess.PIPE, text=True
        )
        if ended.returncode not in (0, 1) or not ended.stdout:
            figures = Figures(name, examples=[f"the process ended with {ended.returncode}"])
            figures.tracebacks = 1
        else:
            figures = Figures(**json.loads(ended.stdout.splitlines()[-1]))
        all_figures.append(figures)
        print(
            f"{name}: {figures.cases} cases, {figures.accepted} read, {figures.refused} refused,"
            f" {figures.wrong} wrong, {figures.tracebacks} tracebacks, {figures.hangs} hangs,"
            f" slowest {figures.seconds} s, most {figures.mebibytes} MiB",
            flush=True,
        )
        for example in figures.examples:
            print(f"    {example}", flush=True)
    faults = sum(figures.faults for figures in all_figures)
    print(f"{faults} faults")
    if given.table:
        before, _, rest = given.table.read_text().partition(BEGIN)
        given.table.write_text(before + BEGIN + table(all_figures) + END + rest.partition(END)[2])
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
