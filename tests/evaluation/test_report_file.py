"""report.json of evaluations, also of those that were written before its keys were renamed."""

from lite3r_jax.evaluation.report_file import read_report
from lite3r_jax.weights import strict_json
from tests.fuzz.readers import _report


def test_a_report_that_calls_its_variants_rows_is_read_as_well(tmp_path):
    _report(tmp_path)
    file = tmp_path / "report.json"
    report = read_report(file, "bench.quality")
    assert {entry["variant"] for entry in report["results"]} == {"dense-float32"}
    older = strict_json.read_object(file)
    for entry in older["results"]:
        entry["row"] = entry.pop("variant")
    file.write_bytes(strict_json.dump(older))
    assert read_report(file, "bench.quality") == report
