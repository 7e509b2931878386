"""Layers that can do with less attention are told from those that cannot."""

import json

import pytest

from lite3r_jax.attention.presets import parse_plan
from lite3r_jax.cli.lite3r import main
from lite3r_jax.errors import InputError
from lite3r_jax.runs.probe import compare


def entry(row, views=2, **metrics):
    values = {name: {"value": value} for name, value in metrics.items()}
    return {"row": row, "protocol": "rooms", "views": views, "metrics": values}


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


@pytest.mark.slow
def test_the_command_probes_a_layer_and_writes_a_plan(tmp_path, capsys):
    out = tmp_path / "out"
    words = [
        "probe", "--weights", "vggt-tiny", "--output", out, "--layers", "2", "--views", "2",
        "--scenes", "1", "--size", "28x28", "--plan", "key_views(count=1)",
        "--evaluate.pictures", "0", "--evaluate.resamples", "10", "--threshold", "1000",
    ]  # fmt: skip
    assert main([str(word) for word in words]) == 0
    assert "layer  2  largest error ratio" in capsys.readouterr().out
    found = json.loads((out / "probe.json").read_text())
    (layer,) = found["layers"]
    ratios = layer["ratios"]["synthetic:test@2"]
    assert layer["layer"] == 2 and ratios["abs_rel"] > 0 and ratios["abs_rel"] != 1
    wanted = "key_views_global(choose=diverse,count=1,layers=[2])"
    assert parse_plan(str(out / "plan.json")) == parse_plan(wanted)
    assert (out / "report.html").exists()


@pytest.mark.parametrize(
    "words,message",
    [
        (["--plan", "dense"], "probe.plan: expected the attention of one role"),
        (["--plan", "key_views(layers=[1])"], "and no layers, got 'key_views(layers=[1])'"),
        (["--plan", "key_view"], "did you mean 'key_views'"),
        (["--layers", "4"], "probe.layers: '4' is no global layer of this model; choose from 0"),
        (["--threshold", "0.5"], "probe.threshold"),
        (["--precision", "bfloat16"], "a probe compares models in float32; leave it out"),
    ],
)
def test_bad_settings_are_refused(words, message, tmp_path, capsys):
    start = ["probe", "--weights", "vggt-tiny", "--output", str(tmp_path / "out")]
    assert main([*start, *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
