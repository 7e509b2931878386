"""Peak memory of conversion, loading and export, measured on half a gigabyte of weights."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tools.benchmark.random_checkpoint import write_random

ROOT = Path(__file__).parents[2]
CONFIG = {"embed_dim": 512, "vit": {"depth": 6}, "aggregator": {"depth": 6}}
CONFIG["dpt"] = {"intermediate_layer_idx": [1, 2, 4, 5]}
# Runs a statement and prints the largest resident size in bytes.
MEASURE = (
    "from lite3r_jax.infer.memory import peak_process\n"
    "from lite3r_jax.weights.load import load\n"
    "from tools.convert_torch_weights.__main__ import main\n"
    "{}\n"
    "print(peak_process())\n"
)


def peak(statement: str) -> int:
    run = subprocess.run(
        [sys.executable, "-c", MEASURE.format(statement)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return int(run.stdout.splitlines()[-1])


@pytest.mark.slow
def test_peak_memory_is_one_tensor_to_convert_and_one_copy_to_load(tmp_path):
    source, config, out = tmp_path / "x.safetensors", tmp_path / "config.json", tmp_path / "out"
    config.write_text(json.dumps(CONFIG))
    size = write_random("vggt", source, CONFIG).size
    assert size > 4e8
    idle = peak("import jax; jax.block_until_ready(jax.numpy.zeros(1))")
    # beyond a JAX process that does nothing
    arguments = ["vggt", str(source), str(out), "--config", str(config)]
    assert peak(f"assert main({arguments}) == 0") - idle < 0.1 * size
    arguments = ["export", str(out), str(tmp_path / "back.safetensors")]
    assert peak(f"assert main({arguments}) == 0") - idle < 0.1 * size
    assert peak(f"model = load({str(out)!r})") - idle < 1.1 * size
