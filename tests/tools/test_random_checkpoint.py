"""Random checkpoints: complete, repeatable, of ordinary size."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from lite3r_jax.weights.abstract import abstract_model
from lite3r_jax.weights.safetensors_file import SafetensorsFile
from tools.benchmark import random_checkpoint
from tools.benchmark.random_checkpoint import main, write_random

GOLDEN = Path(__file__).parents[1] / "golden" / "vggt"


@pytest.fixture(scope="module")
def config() -> dict:
    settings = json.loads((GOLDEN / "config.json").read_text())
    del settings["param_count"]
    return settings


@pytest.fixture(scope="module", autouse=True)
def model_is_traced_once():
    with pytest.MonkeyPatch.context() as patch:
        models = {}

        def once(backbone, config, **kinds):
            if config not in models:
                models[config] = abstract_model(backbone, config, **kinds)
            return models[config]

        patch.setattr(random_checkpoint, "abstract_model", once)
        yield


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, config):
    path = tmp_path_factory.mktemp("random") / "x.safetensors"
    return path, write_random("vggt", path, config)


def test_names_shapes_and_dtypes_are_upstreams(checkpoint):
    with (
        SafetensorsFile(checkpoint[0]) as file,
        SafetensorsFile(GOLDEN / "model.safetensors") as golden,
    ):
        assert file.specs.keys() == golden.specs.keys()
        assert all(file.specs[name] == spec for name, spec in golden.specs.items())


def test_values_are_of_ordinary_size(checkpoint):
    with SafetensorsFile(checkpoint[0]) as file:
        for name, spec in file.specs.items():
            values = file.read(name)
            if name.endswith(("norm.weight", "norm1.weight", "norm2.weight")):
                assert (values == 1).all()
            elif name == "camera_head.pose_branch.fc2.bias":
                assert values.tolist() == [0] * 7 + [0.25] * 2
            elif name.endswith("bias"):
                assert (values == 0).all()
            elif name.endswith("gamma"):
                assert (values == (1 if "patch_embed" in name else np.float32(0.01))).all()
            elif name.endswith("weight") and spec.size > 2000 and "resize_layers" not in name:
                deviation = values.std() * math.sqrt(math.prod(spec.shape[1:]))
                assert 0.9 < deviation < 1.1, name
            else:
                assert np.isfinite(values).all() and np.abs(values).max() < 4


def test_one_seed_gives_one_file(checkpoint, config, tmp_path, capsys):
    again = write_random("vggt", tmp_path / "a", config, seed=0)
    other = write_random("vggt", tmp_path / "b", config, seed=1)
    assert again == checkpoint[1] != other


def test_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(random_checkpoint, "write_random", lambda *a: checkpoint_record(*a))
    seen = []

    def checkpoint_record(backbone, out, config, seed):
        seen.append((backbone, out, config, seed))
        return random_checkpoint.FileRecord(8, "00")

    assert main(["vggt", str(tmp_path / "x"), "--seed", "3"]) == 0
    assert seen == [("vggt", tmp_path / "x", None, 3)]
    assert "8 bytes  sha256 00" in capsys.readouterr().out
    assert main(["vggt", str(tmp_path / "x"), "--config", str(tmp_path / "no.json")]) == 2
    assert capsys.readouterr().err.startswith("error: ")
