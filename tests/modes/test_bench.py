"""`--mode=bench`: settings to tables, charts and JSON."""

import json
from dataclasses import asdict, replace

import jax
import pytest

from lite3r_jax.bench.flops import Work
from lite3r_jax.bench.isolate import Died
from lite3r_jax.bench.measure import Cell, Protocol
from lite3r_jax.bench.options import BASELINES, BenchOptions
from lite3r_jax.errors import InputError
from lite3r_jax.evaluate.predictor import Output
from lite3r_jax.evaluate.record import Record
from lite3r_jax.evaluate.results import Results
from lite3r_jax.evaluate.score import ScoreOptions, in_unit
from lite3r_jax.evaluate.shown import predicted, truth
from lite3r_jax.experiment import Experiment
from lite3r_jax.main import main
from lite3r_jax.modes import bench as mode
from lite3r_jax.weights.manifest import read_manifest
from tests.evaluate.scenes import SIZE, Scenes

SMALL = BenchOptions(
    rows="sla_global-float32", views="1,2", size="28x42", warmup=0, runs=2, isolate=False
)


@pytest.fixture
def built(monkeypatch, fake_model):
    """Names of the rows whose model was built."""
    names = []

    def build(row, weights, student, *, dtype):
        names.append(row.name)
        return fake_model()

    monkeypatch.setattr(mode, "build_row", build)
    work = Work({"frame": {"layers": 10**9}})
    monkeypatch.setattr(mode, "count", lambda model, views, height, width: work)
    return names


def write_evaluation(folder):
    """With one result, and one scene of two in pictures."""
    source = Scenes(2, 2)
    protocol, results = source.protocol(), Results(folder, {})
    for n, item in enumerate(protocol.items):
        results.keep("dense-float32", protocol, n, Record(item.scene, item.frames))
    sample = in_unit(source.read("scene0", (0, 1), SIZE))
    seen = Output(sample.depth, sample.extrinsics, sample.intrinsics)
    results.keep_shown("truth", protocol, 0, truth(sample))
    results.keep_shown("dense-float32", protocol, 0, predicted(seen, 2, SIZE))
    metrics = {"auc_30": {"value": 0.5, "low": 0.4, "high": 0.6, "scenes": 3, "missing": {}}}
    result = {
        "row": "dense-float32", "protocol": protocol.name, "views": 2, "metrics": metrics,
        "samples": 3, "failures": [], "size": {"height": 28, "width": 42},
    }  # fmt: skip
    shown = {"pictures": 1, "score": asdict(ScoreOptions())}
    evaluation = {"settings": {"backbone": "vggt", "evaluate": shown}, "results": [result]}
    results.write("report.json", json.dumps(evaluation).encode())


@pytest.mark.slow
def test_a_run_measures_the_baselines_first_and_writes_tables_and_charts(
    built, tiny_dir, tmp_path, capsys
):
    write_evaluation(tmp_path)
    options = replace(SMALL, quality=str(tmp_path / "report.json"))
    out = tmp_path / "out"
    experiment = Experiment(weights=str(tiny_dir), output=str(out), bench=options)
    assert mode.run(experiment) == 0
    assert built == ["dense-float32", "dense-bfloat16", "sla_global-float32"]
    body = json.loads((out / "bench.json").read_text())
    assert [(c["row"], c["views"]) for c in body["cells"]] == [
        (r, v) for r in built for v in (1, 2)
    ]
    assert all(len(c["seconds"]) == 2 and len(c["against"]) == 2 for c in body["cells"])
    assert body["versions"]["jax"] and body["device"]["kind"] and body["date"].startswith("20")
    assert body["settings"]["bench"]["size"] == "28x42" and body["weights"]
    assert body["published"] == []  # the model is none of the published sizes
    text = (out / "bench.md").read_text()
    assert text in capsys.readouterr().out and "sla_global-float32" in text
    assert sorted(path.name for path in out.iterdir()) == [
        "bench.json", "bench.md", "latency.svg", "memory.svg", "quality-planes-2-auc_30.svg",
        "report.html", "work.svg",
    ]  # fmt: skip
    text = (out / "report.html").read_text()
    assert "0.500 <small>[0.400, 0.600]</small>" in text
    # points, photo and depth of the truth; points, depth and error of the row; of two views
    assert text.count("data:image/jpeg") == 2 * (1 + 2 * 2) and "scene1" not in text
    with pytest.raises(InputError, match=r"bench.json: exists; choose"):
        mode.run(experiment)


def test_a_row_whose_weights_do_not_fit_is_listed_and_the_exit_code_says_so(
    built, tiny_dir, tmp_path, capsys
):
    experiment = Experiment(weights=str(tiny_dir), output=str(tmp_path / "out"), bench=SMALL)
    compute = replace(experiment.compute, memory_limit=1e-3)
    assert mode.run(replace(experiment, compute=compute)) == 1 and built == []
    shown = capsys.readouterr().out
    assert "dense-float32, from 1 views on: not measured: memory: the weights alone" in shown
    assert [path.name for path in (tmp_path / "out").iterdir()].count("latency.svg") == 0


def test_products_of_float32_are_as_asked(built, tiny_dir, monkeypatch):
    seen = []

    def spy(*args, **kwargs):
        seen.append(jax.config.jax_default_matmul_precision)
        yield Cell("dense-float32", 1)

    monkeypatch.setattr(mode, "measure", spy)
    for matmul in ("default", "highest"):
        options = replace(SMALL, matmul=matmul)
        experiment = Experiment(weights=str(tiny_dir), bench=options)
        with jax.default_matmul_precision("tensorfloat32"):
            manifest, protocol = read_manifest(tiny_dir), Protocol((1,), 28, 42)
            list(mode.row_of(experiment, manifest, BASELINES[0], protocol))
    assert seen == ["tensorfloat32", "highest"]


def test_a_row_that_is_killed_keeps_what_it_had():
    def row():
        yield {"row": None}
        yield Cell("dense-float32", 2)
        raise Died("the process was ended by SIGKILL")

    found = list(mode._to_the_end(row(), SMALL.all_rows()[0], (2, 4, 8)))
    assert [(c.views, c.missing[-7:]) for c in found[1:]] == [
        (2, ""), (4, "SIGKILL"), (8, "SIGKILL")
    ]  # fmt: skip


def test_wrong_settings_stop_before_anything_is_written(tiny_dir, tmp_path):
    out, other = tmp_path / "out", tmp_path / "other.json"
    shown = {"backbone": "vggt", "evaluate": {"pictures": 1}}
    other.write_text(json.dumps({"settings": shown, "results": []}))
    (tmp_path / "no.json").write_text("{}")
    for changes, message in (
        ({"backbone": "da3"}, "weights of vggt, but the config is for da3"),
        ({"weights": ""}, "config.weights: not set"),
        ({"weights": str(tmp_path / "none")}, "none"),
        ({"bench": replace(SMALL, rows="dense-int8")}, "bench.rows: expected"),
        ({"bench": replace(SMALL, baselines="sla_global-float32")}, "one or both of dense-f"),
        ({"bench": replace(SMALL, size="30x42")}, "bench.size: expected"),
        ({"bench": replace(SMALL, views="8,4")}, "bench.views: expected"),
        ({"bench": replace(SMALL, runs=0)}, "bench.runs: expected"),
        ({"bench": replace(SMALL, quality=str(other))}, "bench.quality: .* none of these rows"),
        ({"bench": replace(SMALL, quality=str(tmp_path / "no.json"))}, "is not the report.json"),
        ({"bench": replace(SMALL, rows="student-float32", student=str(out))}, "out"),
    ):
        base = Experiment(weights=str(tiny_dir), output=str(out), bench=SMALL)
        with pytest.raises(InputError, match=message):
            mode.run(replace(base, **changes))
    assert not out.exists()


@pytest.mark.slow
def test_the_command_measures_rows_of_a_real_model_in_processes_of_their_own(
    tiny_dir, tmp_path, capfd
):
    flags = {
        "weights": tiny_dir, "output": tmp_path / "out", "bench.size": "28x42",
        "bench.views": "2", "bench.runs": 3, "bench.rows": "sla_global-fp8_weight_only",
    }  # fmt: skip
    arguments = [f"--config.{name}={value}" for name, value in flags.items()]
    assert main(["--config=configs/vggt.py", "--mode=bench", *arguments]) == 0
    body = json.loads((tmp_path / "out/bench.json").read_text())
    cells = {(c["row"], c["views"]): c for c in body["cells"]}
    assert len(cells) == 3 and not any(c["missing"] for c in cells.values())
    low = cells["sla_global-fp8_weight_only", 2]
    assert low["weights"] < 0.6 * cells["dense-float32", 2]["weights"]
    assert low["flops"]["parts"]["global"]["selection"] > 0
    assert "float8_e4m3fn" in body["rows"]["sla_global-fp8_weight_only"]["weights"]
    assert all(c["peak"] > c["weights"] for c in cells.values())
    assert "sla_global-fp8_weight_only" in capfd.readouterr().out
