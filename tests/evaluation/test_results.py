"""The folder of an evaluation, and its tables."""

import json

import numpy as np
import pytest

from lite3r_jax.errors import InputError
from lite3r_jax.evaluation import table
from lite3r_jax.evaluation.evaluator import measure, report
from lite3r_jax.evaluation.predictor import Output
from lite3r_jax.evaluation.record import Record
from lite3r_jax.evaluation.results import Results
from tests.evaluation.scenes import Scenes, oracle

SETTINGS = {"evaluate": {"scenes": 4, "score": {"alignment": "scale"}}, "weights": {"a": "1"}}


@pytest.fixture
def measured():
    source = Scenes(4, broken=(2,))
    return source.protocol(), measure(oracle(source), source.protocol(), source)


def test_records_come_back_as_they_were_and_failures_do_not(tmp_path, measured):
    protocol, records = measured
    results = Results(tmp_path, SETTINGS)
    for n, record in enumerate(records):
        results.keep("row", protocol, n, record)
    kept = Results(tmp_path, SETTINGS).records("row", protocol)
    assert sorted(kept) == [0, 1, 3]
    for n, record in kept.items():
        assert record.to_json() == records[n].to_json()
    failed = json.loads((tmp_path / "scenes/row/planes-3/00002-scene2.json").read_text())
    assert failed == {"scene": "scene2", "frames": [0, 1, 2], "failure": "scene2: is damaged"}
    assert results.records("other", protocol) == {}


def test_predictions_come_back_as_they_were(tmp_path, measured):
    protocol, _ = measured
    results = Results(tmp_path, SETTINGS)
    output = Output(np.random.default_rng(0).random((3, 6, 8), np.float32))
    results.keep_output(protocol, 1, output)
    kept = results.output(protocol, 1)
    assert kept is not None and kept.extrinsics is None
    np.testing.assert_array_equal(kept.depth, output.depth)
    assert results.output(protocol, 0) is None
    path = tmp_path / "predictions/planes-3/00001.npz"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(InputError, match=r"00001.npz: cannot be read as NPZ .* delete it"):
        results.output(protocol, 1)


def test_other_settings_are_refused_by_name_or_begin_anew(tmp_path, measured):
    protocol, records = measured
    Results(tmp_path, SETTINGS).keep("row", protocol, 0, records[0])
    (tmp_path / "mine.txt").write_text("keep")
    other = {**SETTINGS, "evaluate": {"scenes": 4, "score": {"alignment": "median"}}}
    with pytest.raises(
        InputError,
        match=r"settings.json: evaluate.score.alignment was 'scale', is 'median'; choose",
    ):
        Results(tmp_path, other)
    assert len(Results(tmp_path, SETTINGS).records("row", protocol)) == 1
    anew = Results(tmp_path, other, overwrite=True)
    assert anew.records("row", protocol) == {} and (tmp_path / "mine.txt").exists()


def test_a_folder_that_somebody_else_filled_is_refused(tmp_path):
    (tmp_path / "scenes").mkdir()
    with pytest.raises(InputError, match=r"scenes: exists, but not settings.json"):
        Results(tmp_path, SETTINGS, overwrite=True)


def test_results_of_other_frames_or_damaged_ones_are_refused(tmp_path, measured):
    protocol, records = measured
    results = Results(tmp_path, SETTINGS)
    results.keep("row", protocol, 0, records[1])
    with pytest.raises(InputError, match="is of other frames than the protocol has now"):
        results.records("row", protocol)
    for text in ("{}", '{"scene": "a"}', '{"scene": "a", "frames": 3}', "[1]", "{",
                 '{"scene": "a", "frames": [0], "metrics": {"x": "y"}}'):  # fmt: skip
        (tmp_path / "scenes/row/planes-3/00000-scene0.json").write_text(text)
        with pytest.raises(InputError, match=r"00000-scene0.json"):
            results.records("row", protocol)


def test_a_record_survives_json_with_what_is_not_available(measured):
    _, records = measured
    record = Record.from_json(json.loads(json.dumps(records[0].to_json())), "here")
    assert record.to_json() == records[0].to_json()
    assert record.metrics == records[0].metrics and record.cameras == records[0].cameras


def test_tables_show_intervals_baselines_reasons_and_failures(measured):
    protocol, records = measured
    text = table.markdown({"dense-float32": report(protocol, records, resamples=50)})
    lines = text.splitlines()
    assert lines[0] == "## planes, 3 views of 8x6, 4 samples"
    (row,) = [line for line in lines if line.startswith("| dense-float32") and "[0.000" in line]
    cells = [cell.strip() for cell in row.split("|")]
    assert cells[2] == "0.0000 [0.0000, 0.0000]" and cells[-2] == "1"
    assert any(line.startswith("| baseline: constant depth") for line in lines)
    assert "- dense-float32: scene2 failed: scene2: is damaged" in lines
    assert any("wrong partner: not available for 1 samples" in line for line in lines)
    dark = Scenes(2, depth=False)
    first = Output(np.ones((3, 6, 8), np.float32))
    compared = measure(oracle(dark), dark.protocol(), dark, reference=lambda n: first)
    bare = report(dark.protocol(), compared)
    text = table.markdown({"a": bare, "b": bare})
    assert "n/a" in text and "AbsRel: not available for 2 samples: the dataset has no depth" in text
    assert "AbsRel to first variant" in text
    entries = table.to_json({"dense-float32": report(protocol, records, resamples=50)})
    assert entries[0]["failures"][0]["reason"] == "scene2: is damaged"
    json.dumps(entries, allow_nan=False)
