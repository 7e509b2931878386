"""`--mode=eval`: settings to tables and files, and on from there."""

import json
from dataclasses import replace

import pytest

from lite3r_jax.errors import InputError
from lite3r_jax.evaluation.options import EvaluateOptions
from lite3r_jax.evaluation.score import ScoreOptions
from lite3r_jax.experiment import Experiment
from lite3r_jax.main import main
from lite3r_jax.runs import evaluate as mode

SMALL = EvaluateOptions(
    protocols="synthetic:test,motorcycle", views="2", scenes=2, size="28x28", resamples=20,
    score=ScoreOptions(compat="lite3r"),
)  # fmt: skip


def test_a_run_measures_writes_goes_on_and_takes_more_variants(fake_dir, tmp_path, capsys):
    out = tmp_path / "out"
    experiment = Experiment("fake", weights=str(fake_dir), output=str(out), evaluate=SMALL)
    assert mode.run(experiment) == 0
    shown = capsys.readouterr().out
    assert "## synthetic:test, 2 views of 28x28, 2 samples" in shown and "baseline:" in shown
    report = json.loads((out / "report.json").read_text())
    results = {entry["protocol"]: entry for entry in report["results"]}
    assert results["synthetic:test"]["metrics"]["abs_rel"]["scenes"] == 2
    assert results["motorcycle"]["metrics"]["wrong_partner_ratio"]["missing"] == {
        "there is no other scene": 1
    }
    assert "lite3r_abs_rel" in results["motorcycle"]["metrics"] and report["versions"]["jax"]
    files = sorted((out / "scenes").rglob("*.json"))
    assert [path.name for path in files] == [
        "00000-motorcycle.json", "00000-test-000000000.json", "00001-test-000000001.json",
    ]  # fmt: skip
    before = [(path.read_bytes(), path.stat().st_mtime_ns) for path in files]
    texts = [(out / name).read_bytes() for name in ("report.md", "report.html")]
    # of two scenes 2 points and 2 x 2 x 2 maps; the right photo of the other has no true depth
    assert texts[1].count(b"data:image/jpeg") == 2 * 10 + 8

    assert mode.run(experiment) == 0  # nothing was left to do
    assert [(path.read_bytes(), path.stat().st_mtime_ns) for path in files] == before
    assert [(out / name).read_bytes() for name in ("report.md", "report.html")] == texts

    files[1].unlink()  # as if it had been killed there
    (out / "pictures/synthetic-test-2/00001/dense-float32.npz").unlink()
    assert mode.run(experiment) == 0
    assert files[1].read_bytes() == before[1][0]
    assert [(out / name).read_bytes() for name in ("report.md", "report.html")] == texts

    more = replace(SMALL, variants="dense-float32,dense-bfloat16")
    assert mode.run(replace(experiment, evaluate=more)) == 0
    report = json.loads((out / "report.json").read_text())
    last = report["results"][1]
    assert last["variant"] == "dense-bfloat16" and last["metrics"]["teacher_auc_3"]["value"] == 1

    other = replace(SMALL, score=ScoreOptions())
    with pytest.raises(InputError, match=r"evaluate.score.compat was 'lite3r', is ''; choose"):
        mode.run(replace(experiment, evaluate=other))


def test_a_sample_that_fails_is_listed_and_the_exit_code_says_so(
    fake_dir, tmp_path, monkeypatch, capsys
):
    def broken():
        raise InputError("motorcycle: cannot be read")

    monkeypatch.setattr("lite3r_jax.data.motorcycle._from_skimage", broken)
    options = replace(SMALL, protocols="motorcycle")
    out = str(tmp_path / "out")
    experiment = Experiment("fake", weights=str(fake_dir), output=out, evaluate=options)
    assert mode.run(experiment) == 1
    assert "motorcycle failed: motorcycle: cannot be read" in capsys.readouterr().out


def test_wrong_settings_stop_before_anything_is_written(tiny_dir, tmp_path):
    out = tmp_path / "out"
    for changes, message in (
        ({"backbone": "da3"}, "weights of vggt, but the config is for da3"),
        ({"weights": str(tmp_path / "none")}, "none"),
        ({"evaluate": replace(SMALL, protocols="kitti")}, "data source .kitti. is not known"),
        ({"evaluate": replace(SMALL, variants="dense-int8")}, "evaluate.variants: expected"),
        ({"weights": ""}, r"config.weights: not set"),
    ):
        base = Experiment(weights=str(tiny_dir), output=str(out), evaluate=SMALL)
        with pytest.raises(InputError, match=message):
            mode.run(replace(base, **changes))
    assert not out.exists()


@pytest.mark.slow
def test_the_command_evaluates_rows_of_a_real_model(tiny_dir, tmp_path, capsys):
    flags = {
        "weights": tiny_dir, "output": tmp_path / "out", "evaluate.scenes": 2,
        "evaluate.size": "28x42", "evaluate.batch": 2, "evaluate.resamples": 20,
        "evaluate.variants": "dense-float32,sla_global-float32,dense-fp8_weight_only",
    }  # fmt: skip
    arguments = [f"--config.{name}={value}" for name, value in flags.items()]
    assert main(["--config=configs/vggt.py", "--mode=eval", *arguments]) == 0
    entries = json.loads((tmp_path / "out/report.json").read_text())["results"]
    sparse = "sla_global(keep=0.3)-float32"
    assert [entry["variant"] for entry in entries] == [
        "dense-float32", sparse, "dense-fp8_weight_only",
    ]  # fmt: skip
    assert not any(entry["failures"] for entry in entries)
    off = [entry["metrics"]["teacher_abs_rel"]["value"] for entry in entries[1:]]
    assert 0 < off[0] < 0.1 and 0 < off[1] < 0.2
    assert sparse in capsys.readouterr().out
