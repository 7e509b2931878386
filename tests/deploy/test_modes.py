"""The commands take a deployed model as weights, and say what it is."""

import json

import numpy as np
import pytest

from lite3r_jax.exports.npz import read_npz
from lite3r_jax.main import main
from lite3r_jax.runs.deploy import export_deployment
from tests.runs.test_reconstruct import flags, photo_folder


@pytest.fixture(scope="module")
def made(tiny_dir, tmp_path_factory):
    out = tmp_path_factory.mktemp("deployed") / "out"
    export_deployment(tiny_dir, out, heads=("camera", "depth"), kind="fp8_weight_only")
    return out


@pytest.mark.slow
def test_photos_are_reconstructed_and_the_report_names_the_precision(
    made, tiny_dir, tmp_path, capsys
):
    photos = photo_folder(tmp_path / "photos")
    outputs = {}
    for name, weights in (("deployed", made), ("teacher", tiny_dir)):
        arguments = flags(photos, weights, tmp_path / name, "--config.formats=npz")
        assert main(arguments) == 0
        report = json.loads((tmp_path / name / "report.json").read_text())
        outputs[name] = report["model"], read_npz(tmp_path / name / "predictions.npz").depth
    model, depth = outputs["deployed"]
    assert model["precision"] == "fp8_weight_only"
    assert model["dtype"]["weights"] == "bfloat16, float32, float8_e4m3fn"
    teacher, wanted = outputs["teacher"]
    assert teacher["precision"] == "float32" and teacher["parameters"] == model["parameters"]
    assert 0 < np.abs(depth - wanted).max() < 0.3 * np.abs(wanted).max()
    assert "fp8_weight_only, computed in float32" in capsys.readouterr().out


@pytest.mark.slow
def test_it_is_evaluated_as_the_row_that_it_is(made, tmp_path, capsys):
    settings = {
        "weights": made, "output": tmp_path / "out", "evaluate.scenes": 1,
        "evaluate.size": "28x42", "evaluate.resamples": 20, "evaluate.variants": "dense-float32",
    }  # fmt: skip

    def run():
        arguments = [f"--config.{name}={value}" for name, value in settings.items()]
        return main(["--config=configs/vggt.py", "--mode=eval", *arguments])

    assert run() == 2
    assert "set evaluate.variants=dense-fp8_weight_only" in capsys.readouterr().err
    settings["evaluate.variants"] = "dense-fp8_weight_only"
    assert run() == 0
    [entry, *_] = json.loads((tmp_path / "out/report.json").read_text())["results"]
    assert entry["variant"] == "dense-fp8_weight_only" and not entry["failures"]
