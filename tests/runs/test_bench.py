"""`--mode=bench`: settings to tables, charts and JSON."""

import copy
import json
import random
from dataclasses import asdict, replace

import jax
import numpy as np
import pytest

from lite3r_jax.benchmarking.measure import Cell, Protocol
from lite3r_jax.benchmarking.options import BASELINES, BenchOptions
from lite3r_jax.benchmarking.report import charts, entries
from lite3r_jax.benchmarking.subprocess_runs import Died
from lite3r_jax.errors import InputError
from lite3r_jax.evaluation.page import quality
from lite3r_jax.evaluation.predictor import Output
from lite3r_jax.evaluation.record import Record
from lite3r_jax.evaluation.results import Results
from lite3r_jax.evaluation.score import ScoreOptions, in_unit
from lite3r_jax.evaluation.thumbnails import predicted, truth
from lite3r_jax.experiment import Experiment
from lite3r_jax.html_report.chart import svg
from lite3r_jax.html_report.screen import on_screen
from lite3r_jax.main import main
from lite3r_jax.runs import bench as mode
from lite3r_jax.weights.manifest import read_manifest
from tests.evaluation.scenes import SIZE, Scenes

SMALL = BenchOptions(
    variants="sla_global-float32", views="1,2", size="28x42", warmup=0, runs=2, isolate=False
)


def write_evaluation(folder, backbone="vggt"):
    """With one result, and one scene of two in pictures."""
    source = Scenes(2, 2)
    protocol, results = source.protocol(), Results(folder, {})
    for n, item in enumerate(protocol.items):
        results.keep("dense-float32", protocol, n, Record(item.scene, item.frames))
    sample = in_unit(source.read("scene0", (0, 1), SIZE))
    seen = Output(sample.depth, sample.extrinsics, sample.intrinsics)
    results.keep_thumbnails("truth", protocol, 0, truth(sample))
    results.keep_thumbnails("dense-float32", protocol, 0, predicted(seen, 2, SIZE))
    metrics = {"auc_30": {"value": 0.5, "low": 0.4, "high": 0.6, "scenes": 3, "missing": {}}}
    result = {
        "variant": "dense-float32", "protocol": protocol.name, "views": 2, "metrics": metrics,
        "samples": 3, "failures": [], "size": {"height": 28, "width": 42},
    }  # fmt: skip
    shown = {"pictures": 1, "score": asdict(ScoreOptions())}
    evaluation = {"settings": {"backbone": backbone, "evaluate": shown}, "results": [result]}
    results.write("report.json", json.dumps(evaluation).encode())


@pytest.mark.slow
def test_a_run_measures_the_baselines_first_and_writes_tables_and_charts(
    fake_dir, tmp_path, capsys
):
    write_evaluation(tmp_path, "fake")
    options = replace(SMALL, quality=str(tmp_path / "report.json"))
    out = tmp_path / "out"
    experiment = Experiment("fake", weights=str(fake_dir), output=str(out), bench=options)
    assert mode.run(experiment) == 0
    names = ["dense-float32", "dense-bfloat16", "sla_global(keep=0.3)-float32"]
    body = json.loads((out / "bench.json").read_text())
    assert [(c["variant"], c["views"]) for c in body["cells"]] == [
        (name, v) for name in names for v in (1, 2)
    ]
    assert all(len(c["seconds"]) == 2 and len(c["against"]) == 2 for c in body["cells"])
    assert body["versions"]["jax"] and body["device"]["kind"] and body["date"].startswith("20")
    assert body["settings"]["bench"]["size"] == "28x42" and body["weights"]
    assert body["published"] == []  # the model is none of the published sizes
    text = (out / "bench.md").read_text()
    assert on_screen(text) in capsys.readouterr().out and "sla_global(keep=0.3)-float32" in text
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
    tiny_dir, tmp_path, capsys
):
    experiment = Experiment(weights=str(tiny_dir), output=str(tmp_path / "out"), bench=SMALL)
    compute = replace(experiment.compute, memory_limit=1e-3)
    assert mode.run(replace(experiment, compute=compute)) == 1
    shown = capsys.readouterr().out
    assert "dense-float32, from 1 views on: not measured: memory: the weights alone" in shown
    assert [path.name for path in (tmp_path / "out").iterdir()].count("latency.svg") == 0


def test_products_of_float32_are_as_asked(fake_dir, monkeypatch):
    seen = []

    def spy(*args, **kwargs):
        seen.append(jax.config.jax_default_matmul_precision)
        yield Cell("dense-float32", 1)

    monkeypatch.setattr(mode, "measure", spy)
    for matmul in ("default", "highest"):
        options = replace(SMALL, matmul=matmul)
        experiment = Experiment("fake", weights=str(fake_dir), bench=options)
        with jax.default_matmul_precision("tensorfloat32"):
            manifest, protocol = read_manifest(fake_dir), Protocol((1,), 28, 42)
            list(mode.measure_variant(experiment, manifest, BASELINES[0], protocol))
    assert seen == ["tensorfloat32", "highest"]


def test_a_row_that_is_killed_keeps_what_it_had():
    def row():
        yield {"variant": None}
        yield Cell("dense-float32", 2)
        raise Died("the process was ended by SIGKILL")

    cells = list(mode._to_the_end(row(), SMALL.all_variants()[0], (2, 4, 8)))
    assert [(c.views, c.missing[-7:]) for c in cells[1:]] == [
        (2, ""), (4, "SIGKILL"), (8, "SIGKILL")
    ]  # fmt: skip


def test_wrong_settings_stop_before_anything_is_written(tiny_dir, tmp_path):
    out, other = tmp_path / "out", tmp_path / "other.json"
    score = asdict(ScoreOptions())
    shown = {"backbone": "vggt", "evaluate": {"pictures": 1, "score": score}}
    other.write_text(json.dumps({"settings": shown, "results": []}))
    (tmp_path / "no.json").write_text("{}")
    for changes, message in (
        ({"backbone": "da3"}, "weights of vggt, but the config is for da3"),
        ({"weights": ""}, "config.weights: not set"),
        ({"weights": str(tmp_path / "none")}, "none"),
        ({"bench": replace(SMALL, variants="dense-int8")}, "bench.variants: expected"),
        ({"bench": replace(SMALL, baselines="sla_global-float32")}, "one or both of dense-f"),
        ({"bench": replace(SMALL, size="30x42")}, "bench.size: expected"),
        ({"bench": replace(SMALL, views="8,4")}, "bench.views: expected"),
        ({"bench": replace(SMALL, runs=0)}, "bench.runs: expected 1 to 100000, got 0"),
        ({"bench": replace(SMALL, warmup=-1)}, "bench.warmup: expected"),
        ({"bench": replace(SMALL, seconds=float("inf"))}, r"bench.seconds: expected 0 to 1e\+06"),
        ({"bench": replace(SMALL, seconds=float("nan"))}, "bench.seconds: expected"),
        ({"bench": replace(SMALL, quality=str(other))}, "bench.quality: .* none of these variants"),
        ({"bench": replace(SMALL, quality=str(tmp_path / "no.json"))}, "is not the report.json"),
        ({"bench": replace(SMALL, variants="student-float32", student=str(out))}, "out"),
    ):
        base = Experiment(weights=str(tiny_dir), output=str(out), bench=SMALL)
        with pytest.raises(InputError, match=message):
            mode.run(replace(base, **changes))
    assert not out.exists()


def test_a_report_that_was_edited_is_refused_before_anything_is_measured(tiny_dir, tmp_path):
    """Whatever is done to report.json or to what lies beside it: refused, or used to the end."""
    write_evaluation(tmp_path)
    path = tmp_path / "report.json"
    good = json.loads(path.read_text())
    options = replace(SMALL, quality=str(path))
    experiment = Experiment(weights=str(tiny_dir), output=str(tmp_path / "out"), bench=options)
    rows = SMALL.all_variants()
    evaluation, shown = mode._evaluation(experiment, rows, (1, 2))
    assert evaluation == good and "data:image/jpeg" in shown
    cells = [
        Cell(row.name, n, seconds=(1.0,), planned=1, flops={"total": 1})
        for row in rows
        for n in (1, 2)
    ]
    body = {
        "backbone": "vggt", "settings": {"bench": asdict(SMALL)}, "device": {"kind": "cpu"},
        "cells": entries(cells),
    }  # fmt: skip
    places, wild = list(_places(good)), [None, "", "../x", -1, 0, 1e308, 10**30, True, [], {}, "x"]
    rng, used = random.Random(20), 0
    for _ in range(250):
        changed = copy.deepcopy(good)
        *way, last = rng.choice(places)
        inner = changed
        for step in way:
            inner = inner[step]
        if rng.random() < 0.3:
            del inner[last]
        else:
            inner[last] = rng.choice(wild)
        path.write_text(json.dumps(changed))
        try:
            evaluation, shown = mode._evaluation(experiment, rows, (1, 2))
        except InputError as error:
            assert str(error).isprintable() and str(tmp_path) in str(error)
            continue
        used += 1
        charts_of = {name: svg(chart) for name, chart in charts(body, (), evaluation).items()}
        assert charts_of and quality(evaluation)
    assert 10 < used < 200


def _places(value, place=()):
    if place:
        yield place
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _places(inner, (*place, key))


def test_pictures_of_another_shape_are_refused_before_anything_is_measured(tiny_dir, tmp_path):
    write_evaluation(tmp_path)
    options = replace(SMALL, quality=str(tmp_path / "report.json"))
    experiment = Experiment(weights=str(tiny_dir), output=str(tmp_path / "out"), bench=options)
    (path,) = tmp_path.rglob("dense-float32.npz")
    with np.load(path) as file:
        good = dict(file)
    for changes in (
        {"depth": good["depth"][:, 1:]}, {"views": np.array([1, 0])},
        {"views": np.array([0, 7])}, {"views": np.array([-1, 0])}, {"views": np.zeros(0, int)},
        {"depth": good["depth"][:, :, :, None]}, {"depth": good["depth"][:1]},
        {"depth": good["depth"].astype("U3")}, {"intrinsics": 0 * good["intrinsics"]},
        {"extrinsics": good["extrinsics"][:, :2]}, {"extrinsics": np.nan * good["extrinsics"]},
        {"more": np.zeros(3)},
    ):  # fmt: skip
        np.savez(path, **(good | changes))
        with pytest.raises(
            InputError,
            match=r"dense-float32.npz: |00000: pictures of other views or sizes; delete it",
        ):
            mode.bench(experiment)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_measurements_are_written_before_what_is_made_of_them(fake_dir, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("a page that cannot be made")

    monkeypatch.setattr(mode, "page", fail)
    experiment = Experiment(
        "fake", weights=str(fake_dir), output=str(tmp_path / "out"), bench=SMALL
    )
    with pytest.raises(RuntimeError, match="cannot be made"):
        mode.bench(experiment)
    cells = json.loads((tmp_path / "out" / "bench.json").read_text())["cells"]
    assert [(cell["variant"], cell["views"]) for cell in cells if not cell["missing"]]


@pytest.mark.slow
def test_the_command_measures_rows_of_a_real_model_in_processes_of_their_own(
    tiny_dir, tmp_path, capfd
):
    flags = {
        "weights": tiny_dir, "output": tmp_path / "out", "bench.size": "28x42",
        "bench.views": "2", "bench.runs": 3, "bench.variants": "sla_global-fp8_weight_only",
    }  # fmt: skip
    arguments = [f"--config.{name}={value}" for name, value in flags.items()]
    assert main(["--config=configs/vggt.py", "--mode=bench", *arguments]) == 0
    body = json.loads((tmp_path / "out/bench.json").read_text())
    cells = {(c["variant"], c["views"]): c for c in body["cells"]}
    assert len(cells) == 3 and not any(c["missing"] for c in cells.values())
    low = cells["sla_global(keep=0.3)-fp8_weight_only", 2]
    assert low["weights"] < 0.6 * cells["dense-float32", 2]["weights"]
    assert low["flops"]["parts"]["global"]["selection"] > 0
    assert "float8_e4m3fn" in body["variants"]["sla_global(keep=0.3)-fp8_weight_only"]["weights"]
    assert all(c["peak"] > c["weights"] for c in cells.values())
    assert "sla_global(keep=0.3)-fp8_weight_only" in capfd.readouterr().out
