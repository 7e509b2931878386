"""The documented way of the small teacher: trained, saved, gone on with, evaluated."""

import csv
import json
import sys

import numpy as np
import pytest

from lite3r_jax import load
from lite3r_jax.main import main
from lite3r_jax.training.checkpoint import read_arrays
from lite3r_jax.training.parameters import split
from tools import teacher_curve, training_state


def call(program, *words, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["program", *map(str, words)])
    program.main()


def train(output, steps, **settings):
    small = {
        "data.buckets": "2x2x56x56",
        "data.scenes": 4,
        "loop.steps": steps,
        "loop.log_every": 1,
        "checkpoint.every": 1,
        **settings,
    }
    words = [f"--config.train.{name}={value}" for name, value in small.items()]
    return main(["--config=vggt_tiny_teacher", "--mode=train", f"--config.output={output}", *words])


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_once")
def test_the_small_teacher_is_trained_gone_on_with_and_evaluated(tmp_path, monkeypatch, capsys):
    assert train(tmp_path / "first", 1) == 0
    capsys.readouterr()
    call(training_state, "save", tmp_path / "first", tmp_path / "state", monkeypatch=monkeypatch)
    assert json.loads(capsys.readouterr().out) == {"step": 1, "views": 4}

    assert train(tmp_path / "second", 2, init_from=tmp_path / "state") == 0
    events = (tmp_path / "second" / "events.jsonl").read_text().splitlines()
    (begun,) = [e for e in map(json.loads, events) if e["event"] == "start"]
    assert (begun["init_from"]["step"], begun["init_from"]["views"]) == (1, 4)

    with pytest.raises(SystemExit, match="began from this state"):
        call(
            training_state, "save", tmp_path / "second", tmp_path / "state", monkeypatch=monkeypatch
        )

    table = tmp_path / "curve.csv"
    options = ["--csv", table, "--protocols", "synthetic:photographs", "--views", 2, "--scenes", 2]
    call(teacher_curve, tmp_path / "second", *options, monkeypatch=monkeypatch)
    with table.open() as file:
        (line,) = csv.DictReader(file)
    assert (line["run"], line["step"], line["seen"]) == ("second", "2", "8")
    assert (line["weights"], line["split"], line["views"]) == ("average", "photographs", "2")
    assert 0 < float(line["abs_rel"]) < 10 and float(line["wrong_partner"]) > 0

    out = tmp_path / "weights"
    words = ("--license", "Apache-2.0", "--license-from", "us")
    call(training_state, "weights", tmp_path / "second", out, *words, monkeypatch=monkeypatch)
    origin = json.loads((out / "manifest.json").read_text())["origin"]
    assert (origin["license"], origin["license_from"]) == ("Apache-2.0", "us")
    average = read_arrays(tmp_path / "second", 2, "average")
    loaded = {f"model/{path}": x for path, x in split(load(str(out)))[1].items()}
    assert loaded.keys() < average.keys()  # without the heads that only help training
    assert all((np.asarray(x) == average[path]).all() for path, x in loaded.items())


def test_charts_show_the_averaged_weights_on_new_textures(tmp_path, monkeypatch, capsys):
    table = tmp_path / "curve.csv"
    shared = dict.fromkeys(teacher_curve.COLUMNS, 0.5) | {"views": 2, "weights": "average"}
    lines = [
        shared | {"split": "new_textures", "seen": 1_000_000},
        shared | {"split": "new_textures", "seen": 2_000_000, "views": 8},
        shared | {"split": "new_textures", "seen": 3_000_000, "views": 4, "weights": "raw"},
        shared | {"split": "floating", "seen": 3_000_000, "views": 4},
    ]
    teacher_curve.append(table, lines)
    call(teacher_curve, "--csv", table, "--charts", tmp_path / "out", monkeypatch=monkeypatch)
    for name, titles in (
        ("tiny_teacher_curve.svg", ["AbsRel, 2 views", "AUC@30, 2 views", "AUC@30, 8 views"]),
        ("tiny_teacher_views.svg", ["wrong partner, 2 views", "wrong partner, 8 views"]),
    ):
        drawn = (tmp_path / "out" / name).read_text()
        assert all(title in drawn for title in titles) and "4 views" not in drawn
    capsys.readouterr()
    table.unlink()
    teacher_curve.append(table, lines[2:])
    for text, file in (("has no line of averaged", table), ("No such file", tmp_path / "none")):
        with pytest.raises(SystemExit, match=text):
            call(teacher_curve, "--csv", file, "--charts", tmp_path, monkeypatch=monkeypatch)
