"""Serialized forward passes: they compute what the model does, without the model's code."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lite3r_jax.attention.presets import plan
from lite3r_jax.backbones.vggt import ENTRY as BACKBONE
from lite3r_jax.backbones.vggt import VGGT
from lite3r_jax.deploy.checkpoint import load_deployed
from lite3r_jax.deploy.manifest import Program, read_deployment
from lite3r_jax.deploy.program import check_program, export_program
from lite3r_jax.errors import InputError
from lite3r_jax.layers.rngs import traced_rngs
from lite3r_jax.precision import deploy, preset
from lite3r_jax.runs.deploy import export_deployment
from lite3r_jax.weights import strict_json
from lite3r_jax.weights.abstract import abstract_of

ROOT = Path(__file__).parents[2]
PROGRAM = Program("cpu", 2, 28, 42, "float32")


def test_a_program_that_cannot_be_made_is_refused(monkeypatch):
    with pytest.raises(InputError, match="platform: expected one of cpu, cuda, got 'tpu'"):
        check_program(replace(PROGRAM, platform="tpu"))
    with pytest.raises(InputError, match=r"forward-cpu-0x28x42.jax: expected at least one view"):
        check_program(replace(PROGRAM, views=0))
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    with pytest.raises(InputError, match=r"needs the package flatbuffers; pip install"):
        check_program(PROGRAM)


@pytest.mark.slow
def test_a_process_with_jax_alone_computes_what_the_model_does(tiny_dir, tmp_path):
    out = tmp_path / "out"
    # weights only: codes of activations could fall to another side of an edge in another program
    export_deployment(tiny_dir, out, heads=("depth",), kind="fp8_weight_only", programs=[PROGRAM])
    [program] = read_deployment(out).programs
    assert program.jax == jax.__version__ and program.outputs == ("depth", "depth_conf")
    data = (out / program.file_name).read_bytes()
    assert str(ROOT).encode() not in data and b".py" not in data
    images = np.random.default_rng(0).random((1, 2, 28, 42, 3), np.float32)
    np.save(tmp_path / "images.npy", images)
    [snippet] = re.findall(r"```python\n(.*?)```", (ROOT / "docs/deployment.md").read_text(), re.S)
    snippet += "\nassert not {'lite3r_jax', 'flax', 'safetensors'} & set(sys.modules)\n"
    snippet = "import jax\njax.config.update('jax_default_matmul_precision', 'highest')\n" + snippet
    files = [out / program.file_name, tmp_path / "images.npy", tmp_path / "found.npz"]
    run = subprocess.run(
        [sys.executable, "-I", "-c", snippet, *files],
        cwd=tmp_path, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    wanted, _ = load_deployed(out, dtype=jnp.float32)(images)
    with np.load(tmp_path / "found.npz") as outputs:
        assert set(outputs) == set(program.outputs)
        for name in program.outputs:
            array = np.asarray(getattr(wanted, name))
            np.testing.assert_allclose(outputs[name], array, atol=1e-5 * np.abs(array).max())
    (out / program.file_name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(InputError, match=f"{program.file_name}: damaged"):
        load_deployed(out, heads=())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*Pallas Triton.*:DeprecationWarning")
def test_a_program_for_a_gpu_has_the_kernels_and_no_paths(tiny_dir):
    config = BACKBONE.config_from_json(strict_json.read_object(tiny_dir / "config.json"))
    config = replace(config, embed_dim=256)  # heads of 64, which the kernels take
    model = nnx.eval_shape(
        lambda: VGGT(
            config,
            heads=("camera",),
            plan=plan("sla_global", implementation="triton"),
            dtype=jnp.bfloat16,
            rngs=traced_rngs(0),
        )
    )
    deployed = abstract_of(deploy(model, preset("default"), "fp8_dynamic"))
    first, data = export_program(deployed, Program("cuda", 2, 56, 56, "bfloat16"))
    assert data.count(b"sla_forward") and str(ROOT).encode() not in data and b".py" not in data
    exported = jax.export.deserialize(bytearray(data))
    assert exported.platforms == ("cuda",) and "pose_enc" in first.outputs
