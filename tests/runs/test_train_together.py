"""`--mode=train` by two processes on one machine."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lite3r_jax.weights import strict_json

ROOT = Path(__file__).parents[2]
SIZES = {
    "img_size": 28,
    "embed_dim": 32,
    "vit": {"depth": 1, "num_heads": 2},
    "aggregator": {"depth": 1, "num_heads": 2},
    "camera_head": {"trunk_depth": 1, "num_heads": 2, "num_iterations": 1},
    "dpt": {"features": 8, "out_channels": [8] * 4, "intermediate_layer_idx": [0, 0, 0, 0]},
}


@pytest.fixture
def words(tmp_path):
    """Of a training of two steps on generated rooms."""
    (tmp_path / "sizes.json").write_bytes(strict_json.dump(SIZES))
    settings = {
        "model": tmp_path / "sizes.json",
        "data.source": "synthetic",
        "data.buckets": "4x2x28x28",
        "data.scenes": 8,
        "data.workers": 0,
        "loop.steps": 2,
        "loop.log_every": 1,
        "loop.evaluate_every": 0,
        "dtype": "float32",
        "remat": False,
    }
    named = [f"--config.train.{name}={value}" for name, value in settings.items()]
    return ["--config=configs/vggt.py:backbone", "--mode=train", *named]


def start(words, output, *more):
    # A process that has one core has one thread, which a collective operation would hold.
    environment = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PJRT_NPROC": "8"}
    return subprocess.Popen(
        [sys.executable, "-m", "lite3r_jax.main", *words, f"--config.output={output}", *more],
        cwd=ROOT, env=os.environ | environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def together(words, output, *of_the_second):
    with socket.create_server(("127.0.0.1", 0)) as free:
        where = f"127.0.0.1:{free.getsockname()[1]}"
    common = ["--config.train.mesh.data=2", f"--config.processes.coordinator={where}"]
    common.append("--config.processes.count=2")
    both = []
    for number, more in enumerate(([], of_the_second)):
        own = [*common, f"--config.processes.number={number}", *more]
        both.append(start(words, output, *own))
    return [(*process.communicate(timeout=600), process.returncode) for process in both]


def losses(run):
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_two_processes_train_what_one_does(words, tmp_path):
    for out, errors, code in together(words, tmp_path / "two"):
        assert code == 0, out + errors
        assert f"{tmp_path / 'two'}: done after step 2" in out
    one = start(words, tmp_path / "one")
    out, errors = one.communicate(timeout=600)
    assert one.returncode == 0, out + errors
    assert (tmp_path / "two" / "weights" / "manifest.json").is_file()
    assert len(losses(tmp_path / "one")) == 2
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-4)


@pytest.mark.slow
def test_processes_with_other_settings_are_refused_by_all(words, tmp_path):
    (_, first, of_first), (_, second, of_second) = together(
        words, tmp_path / "run", "--config.train.seed=1"
    )
    assert of_first and of_second
    assert "process 1 of 2: has other settings or versions than process 0" in first + second
    assert not (tmp_path / "run" / "weights").exists()
