"""`--mode=train`: settings to a run in a folder."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lite3r_jax.backbones.base import (
    POSE_STAGES,
    BackboneEntry,
    Prediction,
    Tap,
    register,
    unregister,
)
from lite3r_jax.backbones.config_json import to_json
from lite3r_jax.backbones.model import BackboneModel
from lite3r_jax.errors import InputError
from lite3r_jax.experiment import Experiment
from lite3r_jax.interrupts import INTERRUPTED
from lite3r_jax.name_map import Checkpoint, NameMap
from lite3r_jax.runs import train as mode
from lite3r_jax.training.checkpoint import Checkpoints, read_arrays
from lite3r_jax.training.loop import LoopOptions
from lite3r_jax.training.optimizer import OptimizerOptions
from lite3r_jax.training.options import DataOptions, TrainOptions
from lite3r_jax.training.parameters import split
from lite3r_jax.weights.load import load
from lite3r_jax.weights.manifest import Origin, read_manifest
from lite3r_jax.weights.save import save
from tests.runs.test_train_together import SIZES

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class SmallConfig:
    patch_size: int = 14


class Small(BackboneModel):
    """Depth from the color of a pixel, cameras that are the same whatever comes in."""

    parts: ClassVar = {"camera": "pose", "depth": "kernel"}
    taps: ClassVar = {POSE_STAGES: Tap("1 B S 9", "the only stage", "camera")}

    def __init__(self, config, *, heads, plan, dtype, param_dtype, rngs):
        del rngs
        super().__init__(config, heads=heads, plan=plan, dtype=dtype)
        self.kernel = nnx.Param(jnp.zeros((3, 1), param_dtype))
        self.pose = nnx.Param(jnp.array([0, 0, 0, 0, 0, 0, 1, 1, 1], param_dtype))

    def roles(self):
        return {}

    def forward(self, images, given, call):
        assert call.taps == (POSE_STAGES,)
        depth = jnp.exp(images @ self.kernel[...])
        pose = jnp.broadcast_to(self.pose[...], (1, *images.shape[:2], 9))
        return Prediction(depth=depth, depth_conf=1 + depth[..., 0]), {POSE_STAGES: pose}


def settings(folder, backbone="vggt", weights="", **changes):
    options = TrainOptions(
        data=DataOptions(buckets="4x2x28x28", scenes=12, frames=3, held_out=2),
        loop=LoopOptions(6, log_every=2, evaluate_every=3, best="loss"),
        optimizer=OptimizerOptions(learning_rate=0.05),
    )
    train = replace(options, **changes)
    return Experiment(output=str(folder), backbone=backbone, weights=str(weights), train=train)


@pytest.fixture
def small(tmp_path):
    """The backbone "small", and the file with the config of one to be trained from the start."""
    register(
        BackboneEntry(
            "small", Small, SmallConfig(), lambda data: SmallConfig(**data), to_json,
            Checkpoint("small", lambda config: NameMap({}, ()), "small", {}),
        )
    )  # fmt: skip
    config = tmp_path / "small.json"
    config.write_text("{}")
    yield {"backbone": "small", "model": str(config)}
    unregister("small")


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_trains_evaluates_and_records_itself_and_goes_on(small, tmp_path, capsys):
    run = tmp_path / "run"
    assert mode.run(settings(run, **small)) == 0
    said = capsys.readouterr().out
    weights = run / "weights"
    assert said.startswith(f"{run}: done after step 6\nweights: {weights}\n")
    assert said.endswith(f"use: lite3r PHOTOS --weights {weights}\n")
    trained = load(run / "weights")
    np.testing.assert_array_equal(trained.kernel[...], read_arrays(run)["kernel"])
    assert read_manifest(run / "weights").origin == Origin()
    records = lines(run)
    losses = [line["loss"] for line in records if "loss" in line]
    assert len(losses) == 3 and losses[-1] < losses[0]
    held_out = [line["evaluation"] for line in records if "evaluation" in line]
    assert held_out[1]["loss"] < held_out[0]["loss"]
    assert {"loss_depth", "loss_T", "loss_R", "loss_FL"} <= held_out[0].keys()
    assert read_arrays(run)["kernel"].any()
    config = json.loads((run / "config.json").read_text())
    assert config["train"]["data"]["buckets"] == "4x2x28x28"
    event = json.loads((run / "events.jsonl").read_text().splitlines()[0])
    assert event["versions"]["jax"] == jax.__version__
    assert event["mesh"] == {"data": 1, "fsdp": 1, "view": 1}
    elsewhere = replace(settings(run, **small), port=1, formats="ply")  # nothing to a training
    assert mode.run(elsewhere) == 0  # it is done already
    assert lines(run) == records
    with pytest.raises(InputError, match=r"train.seed was 0, is 1; continue with the same"):
        mode.run(settings(run, seed=1, **small))


def test_weights_that_are_trained_on_keep_their_licence(small, tmp_path):
    kinds = {"heads": ("camera", "depth"), "dtype": jnp.float32, "param_dtype": jnp.float32}
    start = Small(SmallConfig(), plan=None, rngs=None, **kinds)
    save(start, tmp_path / "start", backbone="small", origin=Origin("Apache-2.0", "the test"))
    experiment = settings(tmp_path / "run", "small", tmp_path / "start")
    assert mode.run(experiment) == 0
    assert read_manifest(tmp_path / "run" / "weights").origin.license == "Apache-2.0"


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
        mode.run(settings(tmp_path / "run", **small | changes))
    assert not (tmp_path / "run").exists()


def test_weights_or_a_model_have_to_be_named_not_both(tmp_path):
    for more in ({}, {"weights": "W", "train": TrainOptions(model="M")}):
        with pytest.raises(InputError, match=r"config.weights and config.train.model: set one"):
            mode.build(Experiment(output=str(tmp_path), **more))


PROGRAM = textwrap.dedent("""
    import json, signal, sys
    from dataclasses import replace
    from pathlib import Path
    from lite3r_jax.runs import train
    from lite3r_jax.training.checkpoint import CheckpointOptions
    from lite3r_jax.training.optimizer import OptimizerOptions
    from tests.runs.test_train import settings

    # a job in the background is born with interrupts ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)
    folder, model, dtype = sys.argv[1:]
    experiment = settings(folder, model=model, dtype=dtype, checkpoint=CheckpointOptions(2),
                          optimizer=OptimizerOptions(learning_rate=1e-4))
    sys.exit(train.run(experiment))
""")


def start(folder, model):
    return subprocess.Popen(
        [sys.executable, "-W", "error::DeprecationWarning:lite3r_jax", "-c", PROGRAM,
         folder, model, "bfloat16"],
        cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def end(process, code):
    _, said = process.communicate(timeout=900)
    assert process.returncode == code, said


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_once")
def test_a_real_backbone_is_stopped_and_continues(tmp_path):
    model = tmp_path / "model.json"
    model.write_text(json.dumps(SIZES))
    straight = tmp_path / "straight"
    end(start(straight, model), mode.DONE)
    assert all(line["skipped"] == 0 for line in lines(straight) if "loss" in line)
    want = read_arrays(straight)
    for number, code in ((signal.SIGINT, INTERRUPTED), (signal.SIGTERM, mode.TERMINATED)):
        stopped = tmp_path / number.name
        metrics = stopped / "metrics.jsonl"
        process = start(stopped, model)
        while process.poll() is None and not (metrics.exists() and lines(stopped)):
            time.sleep(0.05)
        process.send_signal(number)
        end(process, code)
        assert 2 <= Checkpoints(stopped).steps()[-1] < 6
    end(start(stopped, model), mode.DONE)
    assert metrics.read_bytes() == (straight / "metrics.jsonl").read_bytes()
    for path, x in read_arrays(stopped).items():
        assert x.dtype == np.float32
        np.testing.assert_array_equal(x, want[path], err_msg=path)
    trained = split(load(stopped / "weights"))[1]
    assert trained.keys() == want.keys()
    for path, x in trained.items():
        np.testing.assert_array_equal(x, want[path], err_msg=path)
