"""Processes that are killed, continued, and run beside each other."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lite3r_jax.train.checkpoint import read_arrays
from lite3r_jax.train.folder import METRICS

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def start(module, *arguments, devices=1):
    flags = f"--xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def output(process):
    out, errors = process.communicate(timeout=1200)
    assert process.returncode == 0, f"{out}\n{errors}"
    return out


def test_ten_kills_lose_nothing_that_was_committed():
    found = json.loads(output(start("tests.train.kill", 10)).splitlines()[-1])
    assert found["kills"] == 10 and found["while_saving"] >= 3
    assert found["committed_steps_lost"] == 0
    assert found["equal_to_a_run_without_kills"]


@pytest.mark.parametrize("devices,workers", [(1, 0), (1, 1), (1, 2), (8, 0), (8, 2)])
def test_runs_continue_bit_for_bit_with_any_workers_and_devices(devices, workers):
    # Workers are processes, and every stop starts them twice.
    stops = (1, 2, 4, 5, 7, 10, 12, 15, 19, 23) if not workers else (1, 11)
    arguments = (devices, workers, ",".join(map(str, stops)))
    out = output(start("tests.train.matrix", *arguments, devices=devices))
    found = json.loads(out.splitlines()[-1])
    assert found == {"devices": devices, "stops": len(stops), "differ": []}


def test_two_processes_train_to_the_parameters_of_one(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    toy = "tests.train.toy"
    pair = [start(toy, tmp_path / "two", 12, f"--port={port}", f"--process={i}", "--fsdp=2",
                  "--until=12") for i in range(2)]  # fmt: skip
    for process in pair:
        output(process)
    output(start(toy, tmp_path / "one", 12, "--until=12", "--data=1", "--plain=1"))
    one, two = read_arrays(tmp_path / "one"), read_arrays(tmp_path / "two")
    assert one.keys() == two.keys()
    for path, x in one.items():
        np.testing.assert_allclose(two[path], x, rtol=0, atol=2e-5, err_msg=path)
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / name / METRICS).read_text().splitlines()]
        for name in ("one", "two")
    ]
    np.testing.assert_allclose(*losses, rtol=1e-5)
