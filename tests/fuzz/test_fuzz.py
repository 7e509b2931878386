"""Damaged files and texts, for every reader; `make fuzz` is the long form."""

import mmap
import time

import numpy as np
import pytest

from lite3r_jax.errors import InputError
from lite3r_jax.npz_file import open_npz
from tests.fuzz import run
from tests.fuzz.readers import READERS, Reader, equal
from tests.fuzz.run import fuzz

QUICK = [name for name, reader in READERS.items() if not reader.slow]


@pytest.mark.parametrize("name", QUICK)
def test_damaged_files_are_read_or_refused_in_one_line(name):
    figures = fuzz(READERS[name], 20, large=False)
    assert not figures.faults, figures.examples
    assert figures.cases == 20


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_many_damaged_and_large_files_are_read_or_refused_in_one_line(name):
    figures = fuzz(READERS[name], 300)
    # `make fuzz` has 2 s, on a quiet machine; beside other work processor time is more
    assert figures.faults == figures.slow and figures.seconds < 10, figures.examples
    # damaged ones are left out with a warning
    lenient = ("metrics.jsonl", "checkpoint", "proof of a kernel", "table of kernel launches")
    assert figures.refused > 0 or name in lenient


def _write(folder):
    np.savez(folder / "a.npz", x=np.arange(1000))


def _read(folder):
    with open_npz(folder / "a.npz") as file:
        return file.read("x")


def _unchecked(folder):
    try:
        return _read(folder)
    except InputError:
        return np.zeros(1)


def _raises(folder):
    return {}[len((folder / "a.npz").read_bytes()) % 2] if _damaged(folder) else 0


def _takes_time(folder):
    end = time.process_time() + (0.3 if _damaged(folder) else 0)
    while time.process_time() < end:
        pass


def _takes_memory(folder):
    """From the system, not from what earlier tests have left in the process."""
    with mmap.mmap(-1, (320 << 20) if _damaged(folder) else 1) as memory:
        np.frombuffer(memory, np.uint8)[:] = 1


def _says_nothing(folder):
    if _damaged(folder):
        raise InputError("two\nlines")


def _damaged(folder):
    try:
        return len(_read(folder)) != 1000 or _read(folder)[-1] != 999
    except InputError:
        return True


@pytest.mark.parametrize(
    "read,fault",
    [
        (_read, None), (_unchecked, "wrong"), (_raises, "tracebacks"), (_takes_time, "hangs"),
        (_takes_memory, "large"), (_says_nothing, "wrong"),
    ],
)  # fmt: skip
def test_every_kind_of_fault_is_noticed(monkeypatch, read, fault):
    """That nothing was found means something only if there is something that can be found."""
    monkeypatch.setattr(run, "LONGEST", 0.1)
    reader = Reader("toy", _write, ("a.npz",), read, valid=equal, same=read is not _says_nothing)
    if read not in (_read, _unchecked):
        reader = Reader("toy", _write, ("a.npz",), read)
    figures = fuzz(reader, 8, large=False)
    assert (getattr(figures, fault) > 0) if fault else not figures.faults


def test_cases_are_the_same_wherever_they_run(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    benches = [run.Bench(READERS["PNG"], tmp_path / folder) for folder in ("a", "b")]
    assert [benches[0].case(n) for n in range(20)] == [benches[1].case(n) for n in range(20)]
