"""The demo: that it gives every file, and measures what it shows."""

import numpy as np
import pytest

from lite3r_jax.data.synthetic.source import SyntheticScenes
from lite3r_jax.exports import planned
from lite3r_jax.exports.npz import read_npz
from lite3r_jax.weights.load import load
from tools import demo


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_once")
def test_demo_reconstructs_distils_and_measures(tmp_path, capsys, monkeypatch):
    short = {"train.loop.steps": 2, "train.data.buckets": "1x2x112x112", "evaluate.scenes": 2}
    flags = [f"--config.{name}={value}" for name, value in short.items()]
    monkeypatch.setattr(demo, "DISTILLATION", flags)
    out = tmp_path / "out"
    for _ in range(2):  # it may be run again
        assert demo.main(["--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert demo.NOTICE in printed and "against the truth" in printed
    assert "student-fp8_dynamic" in printed
    assert (out / "student" / "evaluation" / "report.html").exists()
    for name, views in (("room", 4), ("photos", 2)):
        assert all(path.exists() for path in planned(out / name / "scene", demo.FORMATS.split(",")))
        scene = read_npz(out / name / "scene" / "predictions.npz")
        assert len(scene.names) == views
        assert np.isfinite(scene.depth).all() and scene.depth.min() > 0
    truth = demo.generated()
    prediction, _ = load("vggt-tiny")(truth.images[None])
    scene = read_npz(out / "room" / "scene" / "predictions.npz")
    np.testing.assert_allclose(scene.depth, prediction.depth[0, ..., 0], rtol=1e-3)
    p, g = scene.depth.astype(float), truth.depth.astype(float)
    error = np.abs(p * (p * g).sum() / (p * p).sum() - g) / g
    assert f"{error.mean():8.3f}  depth: mean error" in printed


def test_the_room_of_the_demo_is_held_out():
    scene = demo.generated().scene
    assert scene in SyntheticScenes("new_textures", 64).scenes


def test_an_output_folder_that_cannot_be_made_is_named(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert demo.main(["--out", str(tmp_path / "file" / "out")]) == 2
    error = capsys.readouterr().err
    assert str(tmp_path / "file" / "out") in error
    assert error.count("\n") == 1
