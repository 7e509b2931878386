"""`--mode=train`: settings to a run in a folder."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lite3r_jax.backbones.base import Prediction
from lite3r_jax.errors import InputError
from lite3r_jax.experiment import Experiment
from lite3r_jax.modes import train as mode
from lite3r_jax.train.checkpoint import Checkpoints, read_arrays
from lite3r_jax.train.loop import LoopOptions
from lite3r_jax.train.optimiser import OptimiserOptions
from lite3r_jax.train.options import DataOptions, TrainOptions
from lite3r_jax.train.parameters import split
from lite3r_jax.weights.load import load

ROOT = Path(__file__).parents[2]


class Small(nnx.Module):
    """Depth from the colour of a pixel, cameras that are the same whatever comes in."""

    def __init__(self):
        self.kernel = nnx.Param(jnp.zeros((3, 1)))
        self.pose = nnx.Param(jnp.array([0, 0, 0, 0, 0, 0, 1, 1, 1], jnp.float32))

    def __call__(self, images, *, taps, frame_chunk):
        assert taps == ("camera/pose_enc",) and frame_chunk > 0
        depth = jnp.exp(images @ self.kernel[...])
        pose = jnp.broadcast_to(self.pose[...], (1, *images.shape[:2], 9))
        return Prediction(depth=depth, depth_conf=1 + depth[..., 0]), {"camera/pose_enc": pose}


def settings(folder, **changes):
    options = TrainOptions(
        data=DataOptions(buckets="4x2x28x28", scenes=12, frames=3, held_out=2),
        loop=LoopOptions(6, log_every=2, evaluate_every=3, best="loss"),
        optimiser=OptimiserOptions(rate=0.05),
    )
    return Experiment(output=str(folder), train=replace(options, **changes))


@pytest.fixture
def small(monkeypatch):
    """A model that is no backbone, and what it would save: folder -> kernel, and origins."""
    saved, origins = {}, []

    def save(model, folder, *, backbone, origin, overwrite):
        assert backbone == "vggt" and overwrite
        origins.append(origin)
        saved[folder] = np.asarray(model.kernel[...])

    monkeypatch.setattr(mode, "build", lambda experiment: Small())
    monkeypatch.setattr(mode, "save", save)
    return saved, origins


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_trains_evaluates_and_records_itself_and_goes_on(small, tmp_path, capsys):
    assert mode.run(settings(tmp_path)) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{tmp_path}: done after step 6\n{tmp_path / 'weights'}: the weights")
    saved, origins = small
    assert list(saved) == [tmp_path / "weights"] and origins == [None]
    np.testing.assert_array_equal(saved[tmp_path / "weights"], read_arrays(tmp_path)["kernel"])
    found = lines(tmp_path)
    losses = [line["loss"] for line in found if "loss" in line]
    assert len(losses) == 3 and losses[-1] < losses[0]
    held_out = [line["evaluation"] for line in found if "evaluation" in line]
    assert held_out[1]["loss"] < held_out[0]["loss"]
    assert {"loss_depth", "loss_T", "loss_R", "loss_FL"} <= held_out[0].keys()
    assert read_arrays(tmp_path)["kernel"].any()
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["train"]["data"]["buckets"] == "4x2x28x28"
    event = json.loads((tmp_path / "events.jsonl").read_text().splitlines()[0])
    assert event["versions"]["jax"] == jax.__version__
    assert event["mesh"] == {"data": 1, "fsdp": 1, "view": 1}
    elsewhere = replace(settings(tmp_path), port=1, formats="ply")  # nothing to a training
    assert mode.run(elsewhere) == 0  # it is done already
    assert lines(tmp_path) == found
    with pytest.raises(InputError, match=r"train.seed was 0, is 1; continue with the same"):
        mode.run(settings(tmp_path, seed=1))


def test_weights_that_are_trained_on_keep_their_licence(small, tmp_path):
    experiment = replace(settings(tmp_path), weights="vggt-tiny")
    assert mode.run(experiment) == 0
    (origin,) = small[1]
    assert origin.license == "Apache-2.0"


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"trainable": "lora"}, "trainable: 'lora' is in the path of no parameter"),
        ({"count": 5}, r"trainable: .* is 12 parameters, expected 5"),
        ({"data": DataOptions(buckets="2x2")}, "buckets: expected BATCHxVIEWSxHEIGHTxWIDTH"),
        ({"data": DataOptions(source="/nowhere/at/all")}, "/nowhere/at/all"),
    ],
)
def test_settings_that_do_not_fit_stop_before_anything_is_written(
    small, tmp_path, changes, message
):
    with pytest.raises(InputError, match=message):
        mode.run(settings(tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_weights_or_a_model_have_to_be_named_not_both(tmp_path):
    for more in ({}, {"weights": "W", "train": TrainOptions(model="M")}):
        with pytest.raises(InputError, match=r"config.weights and config.train.model: set one"):
            mode.build(Experiment(output=str(tmp_path), **more))


PROGRAM = textwrap.dedent("""
    import json, sys
    from dataclasses import replace
    from pathlib import Path
    from lite3r_jax.modes import train
    from lite3r_jax.train.checkpoint import CheckpointOptions
    from lite3r_jax.train.optimiser import OptimiserOptions
    from tests.modes.test_train import settings

    folder, model, dtype = sys.argv[1:]
    experiment = settings(folder, model=model, dtype=dtype, checkpoint=CheckpointOptions(2),
                          optimiser=OptimiserOptions(rate=1e-4))
    sys.exit(train.run(experiment))
""")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16"])
def test_a_real_backbone_is_terminated_and_continues(tmp_path, golden_dir, dtype):
    model = tmp_path / "model.json"
    config = json.loads((golden_dir / "config.json").read_text())
    del config["param_count"]
    model.write_text(json.dumps(config))

    # The three runs compile the same programs.
    settings = {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")}

    def start(folder):
        return subprocess.Popen(
            [sys.executable, "-W", "error::DeprecationWarning:lite3r_jax", "-c", PROGRAM,
             folder, model, dtype],
            cwd=ROOT, env=os.environ | settings, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def end(process, code):
        _, said = process.communicate(timeout=900)
        assert process.returncode == code, said

    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    end(start(straight), mode.DONE)
    assert all(line["skipped"] == 0 for line in lines(straight) if "loss" in line)
    process = start(stopped)
    while process.poll() is None and not ((stopped / "metrics.jsonl").exists() and lines(stopped)):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    end(process, mode.TERMINATED)
    assert 2 <= Checkpoints(stopped).steps()[-1] < 6
    end(start(stopped), mode.DONE)
    assert (stopped / "metrics.jsonl").read_bytes() == (straight / "metrics.jsonl").read_bytes()
    want = read_arrays(straight)
    for path, x in read_arrays(stopped).items():
        assert x.dtype == np.float32
        np.testing.assert_array_equal(x, want[path], err_msg=path)
    trained = split(load(stopped / "weights"))[1]
    assert trained.keys() == want.keys()
    for path, x in trained.items():
        np.testing.assert_array_equal(x, want[path], err_msg=path)
