"""`lite3r distributed`: what it refuses, and a process that joins and runs its command."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from lite3r_jax.cli.lite3r import main

ROOT = Path(__file__).parents[2]
# On one core jax has one thread, and a collective that waits for the other process would hold it.
ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PJRT_NPROC": "8"}
TOGETHER = ["--coordinator=localhost:9", "--processes=2", "--process=0"]


@pytest.mark.parametrize(
    "words,message",
    [
        (["evaluate"], "evaluate: runs in one process; here run train and distill"),
        (["reconstruct", "photos"], "reconstruct: joins others by --processes.coordinator"),
        ([*TOGETHER[:2], "train"], "--process: not given; give all three, or none"),
        ([*TOGETHER[:2], "--process=2", "train"], "--process: expected 0 to 1, got 2"),
        (["--processes=many", "train"], "invalid int value: 'many'"),
        ([], "the following arguments are required: COMMAND"),
    ],
)
def test_bad_input_is_one_line_before_any_device_is_asked_for(words, message, capsys):
    assert main(["distributed", *words]) == 2
    assert message in capsys.readouterr().err


def start(words, processes, process, port):
    """`lite3r distributed` as a process of the operating system."""
    joined = [f"--coordinator=localhost:{port}", f"--processes={processes}", f"--process={process}"]
    code = "from lite3r_jax.cli.lite3r import program; program()"
    return subprocess.Popen(
        [sys.executable, "-c", code, "distributed", *joined, *map(str, words)],
        cwd=ROOT, env=os.environ | ENVIRONMENT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def test_a_process_joins_and_runs_the_command():
    """Which has its own words and messages."""
    alone = start(["train", "--weights=nowhere", "--data=synthetic"], 1, 0, free_port())
    out, errors = alone.communicate(timeout=120)
    assert alone.returncode == 2, out + errors
    assert errors.startswith("error: ") and "nowhere" in errors
