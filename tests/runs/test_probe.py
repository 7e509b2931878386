"""Layers that can do with less attention are told from those that cannot."""

import json
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import pytest

from lite3r_jax.attention.presets import parse_plan
from lite3r_jax.cli.lite3r import main
from lite3r_jax.errors import InputError
from lite3r_jax.evaluation.options import ProbeOptions
from lite3r_jax.evaluation.probe_page import curve_chart, layer_charts, page
from lite3r_jax.evaluation.token_cosine import mean_cosine
from lite3r_jax.runs.probe import ERRORS, ProbedLayer, compare, cost_curve
from lite3r_jax.weights.convert import convert
from lite3r_jax.weights.safetensors_file import SafetensorsFile
from tools.benchmark.random_checkpoint import write_random


def entry(row, views=2, **metrics):
    values = {name: {"value": value} for name, value in metrics.items()}
    return {"variant": row, "protocol": "rooms", "views": views, "metrics": values}


def test_a_layer_is_sensitive_if_any_error_grows():
    results = [
        entry("dense-float32", abs_rel=0.1, rotation_median_deg=2.0, ate=None, auc_30=0.5),
        entry("zero", abs_rel=0.104, rotation_median_deg=1.0, ate=9.0, auc_30=0.1),
        entry("one", abs_rel=0.1, rotation_median_deg=2.12),
        entry("dense-float32", 8, abs_rel=0.2),
        entry("zero", 8, abs_rel=0.2),
        entry("one", 8, abs_rel=0.1),
    ]
    zero, one = compare(results, {0: "zero", 1: "one"}, 1.05)
    assert (zero.sensitive, one.sensitive) == (False, True)
    assert zero.worst == pytest.approx(1.04) and one.worst == pytest.approx(1.06)
    assert one.ratios["rooms@8"] == {"abs_rel": 0.5}
    with pytest.raises(InputError, match=r"the data defines no error; choose other data"):
        compare([entry("dense-float32"), entry("zero")], {0: "zero"}, 1.05)


def layer(number, worst, **cosine):
    ratios = {"rooms@2": {"abs_rel": worst, "ate": 0.9}}
    return ProbedLayer(number, ratios, worst > 1.05, {"rooms@2": cosine.get("cosine", 0.99)})


def test_layers_that_lose_least_are_replaced_first():
    probed = [layer(0, 1.2), layer(1, 1.01), layer(2, 1.1)]
    curve = cost_curve(probed, lambda layers: 1 - 0.1 * len(layers))
    assert [step.layers for step in curve] == [(), (1,), (1, 2), (0, 1, 2)]
    assert [step.worst for step in curve] == [1.0, 1.01, 1.1, 1.2]
    assert [step.operations for step in curve] == pytest.approx([1, 0.9, 0.8, 0.7])


def test_the_page_shows_every_layer_and_the_plan():
    probed = [layer(0, 1.234, cosine=0.987654), layer(1, 1.01)]
    body = {
        "weights": "W", "device": {"kind": "cpu", "machine": "M"}, "versions": {"jax": "1"},
        "probe": {"plan": "key_views(count=1)", "threshold": 1.05}, "plan": "PLAN", "views": 2,
        "operations": 0.456, "measured": {"rooms@2": {"abs_rel": 1.077}},
        "curve": [asdict(step) for step in cost_curve(probed, lambda x: 1 - 0.1 * len(x))],
        "layers": [asdict(x) | {"worst": x.worst} for x in probed],
    }  # fmt: skip
    text = page(body)
    for shown in ("1.234", "0.98765", "PLAN: 45.6% of", "1.077", "abs_rel, rooms@2", "1.05"):
        assert shown in text, shown
    titles = [chart.title for chart in layer_charts(body)]
    assert titles == ["Error over that of dense attention", "Tokens against dense attention"]
    points = {series.name: series.points for series in curve_chart(body).series}
    assert points["the plan, evaluated"] == ((0.456, 1.077),)
    assert points["one layer more, each alone"] == ((0.8, 1.234), (0.9, 1.01), (1.0, 1.0))
    for x in body["layers"]:
        x["cosine"] = {}
    assert len(layer_charts(body)) == 1


def test_the_example_in_the_documentation_is_what_the_code_writes():
    docs = Path(__file__).parents[2] / "docs"
    body = json.loads((docs / "probe/probe.json").read_text())
    shown, written = page(body), (docs / "probe/probe.html").read_text()
    for layer in body["layers"]:
        assert f"{layer['worst']:.3f}" in written and f"{layer['worst']:.3f}" in shown
    assert body["plan"] in written and "<svg" in (docs / "images/probe.svg").read_text()
    assert parse_plan(str(docs / "probe/plan.json")) == parse_plan(body["plan"])
    assert set(body["probe"]) == {field.name for field in fields(ProbeOptions)}
    table = (docs / "attention.md").read_text().partition("## A probe")[2].partition("\n## ")[0]
    for layer in body["layers"]:
        (ratios,), (cosine,) = layer["ratios"].values(), layer["cosine"].values()
        cells = [f"{ratios[name]:.3f}" for name in ERRORS]
        assert f"| {layer['layer']} | {' | '.join(cells)} | {cosine:.5f} |" in table


def test_the_cosine_is_that_of_every_token():
    a = np.array([[[1.0, 0], [3, 4]]], np.float32)
    b = np.array([[[2.0, 0], [-4, 3]]], np.float32)
    assert mean_cosine(a, b) == pytest.approx(0.5)
    assert mean_cosine(a, 7 * a) == pytest.approx(1, abs=1e-12)


@pytest.mark.slow
def test_the_command_probes_a_layer_and_writes_a_plan(tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    words = [
        "probe", "--weights", "vggt-tiny", "--output", out, "--layers", "2", "--views", "2",
        "--scenes", "1", "--size", "28x28", "--plan", "key_views(count=1)",
        "--evaluate.pictures", "0", "--evaluate.resamples", "10", "--threshold", "1000",
    ]  # fmt: skip
    words = [str(word) for word in words]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert "layer  2  largest error ratio" in told and "token cosine 0." in told
    record = json.loads((out / "probe.json").read_text())
    (layer,) = record["layers"]
    ratios = layer["ratios"]["synthetic:test@2"]
    assert layer["layer"] == 2 and ratios["abs_rel"] > 0 and ratios["abs_rel"] != 1
    wanted = "key_views_global(choose=diverse,count=1,layers=[2])"
    assert parse_plan(str(out / "plan.json")) == parse_plan(wanted)
    assert (out / "report.html").exists() and "<svg" in (out / "probe.html").read_text()
    assert layer["ratios"] == record["measured"], "the plan has this layer alone"
    assert 0.5 < layer["cosine"]["synthetic:test@2"] < 1
    assert [step["layers"] for step in record["curve"]] == [[], [2]]
    assert record["operations"] == record["curve"][1]["operations"] < 1

    def never(*_):
        raise AssertionError("what is done is not done again")

    monkeypatch.setattr("lite3r_jax.runs.probe.build_variant", never)
    assert main([*words, "--budget", "0.9999"]) == 0
    again = json.loads((out / "probe.json").read_text())
    assert again["layers"] == record["layers"] and again["plan"] == record["plan"]
    assert main([*words, "--budget", "0.5"]) == 2
    assert "probe.budget: 0.5 of the operations of dense" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words,message",
    [
        (["--plan", "dense"], "probe.plan: expected the attention of one role"),
        (["--plan", "key_views(layers=[1])"], "and no layers, got 'key_views(layers=[1])'"),
        (["--plan", "key_view"], "did you mean 'key_views'"),
        (["--layers", "4"], "probe.layers: '4' is no global layer of this model; choose from 0"),
        (["--threshold", "0.5"], "probe.threshold"),
        (["--budget", "1.5"], "probe.budget"),
        (["--budget", "0.01"], "probe.budget: 0.01 of the operations of dense attention, but with"),
        (["--precision", "bfloat16"], "a probe compares models in float32; leave it out"),
    ],
)
def test_bad_settings_are_refused(words, message, tmp_path, capsys):
    start = ["probe", "--weights", "vggt-tiny", "--output", str(tmp_path / "out")]
    assert main([*start, *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_eight_global_layers_of_da3_large_can_be_probed(tmp_path, capsys):
    """Of its depth and alternation; narrow and with random weights, which mean nothing."""
    config = {
        "embed_dim": 32, "num_heads": 2, "camera_heads": 2, "features": 8,
        "out_channels": [8] * 4,
    }  # fmt: skip
    write_random("da3", tmp_path / "random.safetensors", config)
    with SafetensorsFile(tmp_path / "random.safetensors") as source:
        convert(source, tmp_path / "weights", backbone="da3", config=config)
    words = ["probe", "--weights", tmp_path / "weights", "--output", tmp_path / "out"]
    words += ["--plan", "key_views(choose=stride,every=2)", "--views", "4", "--scenes", "1"]
    words += ["--size", "28x42", "--layers", "7", "--threshold", "1000"]
    words += ["--evaluate.pictures", "0", "--evaluate.resamples", "10"]
    assert main([str(word) for word in words]) == 0
    assert "layer  7  largest error ratio" in capsys.readouterr().out
    record = json.loads((tmp_path / "out/probe.json").read_text())
    (layer,) = record["layers"]
    (cosine,) = layer["cosine"].values()
    assert layer["layer"] == 7 and 0 < cosine < 1
    wanted = "key_views_global(choose=stride,every=2,layers=[7])"
    assert parse_plan(str(tmp_path / "out/plan.json")) == parse_plan(wanted)
    assert main([*map(str, words), "--layers", "8"]) == 2
    assert "no global layer of this model; choose from 0" in capsys.readouterr().err
