"""Processes that are killed, continued, and run beside each other."""

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from lite3r_jax.training.checkpoint import Checkpoints, read_arrays
from lite3r_jax.training.manifest import damage
from lite3r_jax.training.run_dir import EVENTS, METRICS

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


def output(process, code=0):
    try:
        out, errors = process.communicate(timeout=800)  # before the limit that ends all tests
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert process.returncode == code, f"{out}\n{errors}"
    return out


def pair(*arguments):
    """Two processes that train together."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    return [
        start("tests.training.toy", *arguments, f"--port={port}", f"--process={i}", "--fsdp=2")
        for i in range(2)
    ]


def test_fifty_kills_lose_nothing_that_was_committed():
    report = json.loads(output(start("tests.training.kill", 50)).splitlines()[-1])
    assert report["kills"] == 50 and 15 <= report["while_saving"] < 50
    assert report["committed_steps_lost"] == 0
    assert report["equal_to_a_run_without_kills"]


@pytest.mark.parametrize("devices,workers", [(1, 0), (1, 1), (8, 0), (8, 2)])
def test_runs_continue_bit_for_bit_with_any_workers_and_devices(devices, workers):
    stops = (1, 2, 4, 5, 7, 10, 12, 15, 19, 23)
    arguments = (devices, workers, ",".join(map(str, stops)))
    out = output(start("tests.training.matrix", *arguments, devices=devices))
    report = json.loads(out.splitlines()[-1])
    assert report == {"devices": devices, "stops": len(stops), "differ": []}


def test_two_processes_train_to_the_parameters_of_one(tmp_path):
    for process in pair(tmp_path / "two", 12, "--until=12"):
        output(process)
    one = start("tests.training.toy", tmp_path / "one", 12, "--until=12", "--data=1", "--plain=1")
    output(one)
    one, two = read_arrays(tmp_path / "one"), read_arrays(tmp_path / "two")
    assert one.keys() == two.keys()
    for path, x in one.items():
        np.testing.assert_allclose(two[path], x, rtol=0, atol=2e-5, err_msg=path)
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / name / METRICS).read_text().splitlines()]
        for name in ("one", "two")
    ]
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_sigterm_to_one_of_two_processes_stops_both_after_the_same_step(tmp_path):
    steps, metrics = 1_000_000, tmp_path / METRICS
    both = pair(tmp_path, steps, "--every=1000000")
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < 3:
        assert [process.poll() for process in both] == [None, None]
        time.sleep(0.01)
    both[1].send_signal(signal.SIGTERM)  # not the one that writes
    ends = [output(process, 75).splitlines()[-1] for process in both]
    reason, step = ends[0].split()
    assert ends[0] == ends[1] and reason == "terminated" and int(step) >= 9
    assert Checkpoints(tmp_path).steps() == [int(step)]
    assert damage(tmp_path / "checkpoints" / step) is None
    for process in pair(tmp_path, steps, f"--until={int(step) + 2}"):
        assert output(process).splitlines()[-1] == f"until {int(step) + 2}"
    events = [json.loads(line) for line in (tmp_path / EVENTS).read_text().splitlines()]
    assert [line["step"] for line in events if line["event"] == "start"] == [0, int(step)]


BROKEN = textwrap.dedent("""
    import ctypes, os, resource, sys, time
    from pathlib import Path

    if os.geteuid() == 0:  # root may write anywhere by its capabilities; threads inherit the loss
        version, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        assert ctypes.CDLL(None).capset(version, nothing) == 0

    import jax, numpy as np
    from lite3r_jax.errors import InputError
    from lite3r_jax.training.checkpoint import CheckpointOptions, Checkpoints
    from lite3r_jax.training.run_dir import METRICS
    from lite3r_jax.training.loop import LoopOptions, train
    from tests.training.toy import ToyBatches, toy_trainer

    trainer = toy_trainer(20)

    def go(folder, batches):
        checkpoint = CheckpointOptions(7)
        return train(trainer, batches, folder, options=LoopOptions(20), checkpoint=checkpoint).state

    def protect(yes):
        (broken / "checkpoints").chmod(0o555 if yes else 0o755)

    def fill(yes):  # no file can grow beyond this: EFBIG, in the place of a full disk's ENOSPC
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096 if yes else hard, hard))

    class Breaking(ToyBatches):
        def __next__(self):
            if self.step == 10:
                while not (broken / "checkpoints/7/manifest.json").exists():
                    time.sleep(0.01)
                (fill if sys.argv[2] == "full" else protect)(True)
            return super().__next__()

    straight, broken = (Path(sys.argv[1]) / name for name in ("straight", "broken"))
    want = go(straight, ToyBatches())
    try:
        go(broken, Breaking())
    except InputError as error:
        (fill if sys.argv[2] == "full" else protect)(False)
        print(error)
    assert Checkpoints(broken).steps()[-1] == 7
    got = go(broken, ToyBatches())
    jax.tree.map(np.testing.assert_array_equal, got, want)
    assert (broken / METRICS).read_bytes() == (straight / METRICS).read_bytes()
""")


@pytest.mark.parametrize("how,reason", [("full", "File too large"), ("read-only", "Permission")])
def test_a_run_that_cannot_save_stops_and_continues_when_it_can(tmp_path, how, reason):
    run = subprocess.run(
        [sys.executable, "-c", BROKEN, tmp_path, how],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "ERROR:absl" not in run.stderr  # Orbax's six tracebacks of one full disk
    message = run.stdout.splitlines()[0]
    assert "the checkpoint of step 14 cannot be written" in message
    assert reason in message and "step 7 is the last there is" in message
