"""One process at a time writes into an output: the lock, and every command that takes it."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lite3r_jax.cli import lite3r
from lite3r_jax.errors import InputError
from lite3r_jax.folder_lock import locked, locked_beside

ROOT = Path(__file__).parents[1]
HOLD = """
import sys
from pathlib import Path
from lite3r_jax.folder_lock import locked
with locked(Path(sys.argv[1]), "evaluate"):
    print("in", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock of `tmp_path`/out."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / "out"],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None
    assert process.stdout.readline() == "in\n"
    yield process
    process.stdin.close()
    process.wait()
    process.stdout.close()


def test_another_process_is_refused_with_who_is_in_the_folder_until_it_ends(holder, tmp_path):
    out = tmp_path / "out"
    with (
        pytest.raises(InputError) as refused,
        locked(out, "bench"),
    ):
        pytest.fail("the block must not run")
    assert str(refused.value).startswith(
        f"{out}: another run is writing there (evaluate, process {holder.pid} of "
    )
    assert str(refused.value).endswith("wait for it or take another folder")
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with locked(out, "bench"):  # a lock of a dead process is none
        assert (out / ".lock").read_text().startswith(f"bench, process {os.getpid()} of ")
    assert not (out / ".lock").exists()


def test_nothing_is_left_of_a_lock_but_what_was_there_or_was_written(tmp_path):
    with locked(tmp_path / "a" / "b", "bench"):
        pass
    assert not list(tmp_path.iterdir())
    with locked(tmp_path / "a" / "b", "bench"):
        (tmp_path / "a" / "b" / "result").write_text("x")
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["result"]
    empty = tmp_path / "empty"
    empty.mkdir()
    with locked(empty, "bench"), locked_beside(empty, "deploy"):
        assert (tmp_path / ".empty.lock").exists()
    assert empty.is_dir() and not (tmp_path / ".empty.lock").exists()


@pytest.mark.parametrize("kind", [locked, locked_beside])
def test_a_place_that_cannot_be_written_is_named(kind, tmp_path):
    (tmp_path / "file").write_text("x")
    for out in (tmp_path / "file" / "out", Path("/proc/none/out"), tmp_path / ("n" * 300) / "out"):
        with pytest.raises(InputError) as refused, kind(out, "bench"):
            pytest.fail("the block must not run")
        assert str(refused.value).startswith(f"{out}: cannot be written (")
    with pytest.raises(InputError, match="too long"), kind(tmp_path / "new" / ("n" * 300), "bench"):
        pytest.fail("the block must not run")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_file_system_without_locks_is_said_and_used(monkeypatch, tmp_path, capsys):
    def refuse(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(tmp_path / "out", "bench"):
        (tmp_path / "out" / "result").write_text("x")
    assert "its file system has no locks; start no second run there" in capsys.readouterr().err


@pytest.mark.slow
def test_processes_that_come_at_once_are_in_one_after_the_other(tmp_path):
    program = """
import sys, time
from pathlib import Path
from lite3r_jax.errors import InputError
from lite3r_jax.folder_lock import locked
out, entered = Path(sys.argv[1]), 0
end = time.monotonic() + 1.5
while time.monotonic() < end:
    try:
        with locked(out, "bench"):
            (out / "inside").touch(exist_ok=False)
            entered += 1
            (out / "inside").unlink()
    except InputError as error:
        assert "another run" in str(error), error
print(entered)
"""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, tmp_path / "out"],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for _ in range(3)
    ]  # fmt: skip
    for process in processes:
        said, errors = process.communicate(timeout=100)
        assert process.returncode == 0, errors
        assert int(said) > 0
    assert not list(tmp_path.glob("out/*"))


COMMANDS = {
    "reconstruct": [
        "reconstruct",
        "none",
        "--recipe",
        "vggt",
        "--weights",
        "none",
        "--output",
        "OUT",
    ],
    "evaluate": ["evaluate", "--recipe", "vggt", "--weights", "none", "--output", "OUT"],
    "bench": ["bench", "--recipe", "vggt", "--weights", "none", "--output", "OUT"],
    "export": ["export", "none", "--output", "OUT"],
    "deploy": ["deploy", "none", "OUT"],
    "convert": ["convert", "vggt", "none", "OUT"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_asks_for_its_output_before_it_reads_anything(name, tmp_path, capsys):
    def said(out):
        words = [str(out) if word == "OUT" else word for word in COMMANDS[name]]
        assert lite3r.main(words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    lock = locked_beside if name in ("deploy", "convert") else locked
    with lock(tmp_path / "out", "training"):
        line = said(tmp_path / "out")
    assert line.startswith(
        f"error: {tmp_path / 'out'}: another run is writing there (training, process {os.getpid()}"
    )
    (tmp_path / "file").write_text("x")
    place = tmp_path / "file" / "out"
    assert said(place).startswith(f"error: {place}: cannot be written (")
    assert "none: " in said(tmp_path / "out")  # the lock is free, so the input is what is wrong
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
