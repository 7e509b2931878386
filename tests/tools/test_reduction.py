"""Quality against cost: operations are those of the plan, rows are read right."""

import json
import subprocess
import sys

import pytest

from lite3r_jax.errors import InputError
from lite3r_jax.html_report.chart import COLORS
from tools.reduction import Entry, chart, family, read, table


def report(tmp_path, rows):
    metrics = {"abs_rel": {"value": 0.17}, "auc_30": {"value": 0.36}}
    more = {"teacher_abs_rel": {"value": 0.02}, "teacher_auc_30": {"value": 0.8}}
    results = [
        {"variant": row, "views": views, "size": {"height": 28, "width": 42},
         "metrics": metrics if row.startswith("dense") else metrics | more}
        for views in (8, 2) for row in rows
    ]  # fmt: skip
    path = tmp_path / "report.json"
    path.write_text(json.dumps({"settings": {"weights": "vggt-tiny"}, "results": results}))
    return path


def test_rows_have_the_operations_of_their_plans(tmp_path):
    rows = ["dense-float32", "key_views(choose=stride,every=2)-float32"]
    entries = read(report(tmp_path, rows))
    assert [entry.views for entry in entries] == [2, 2, 8, 8], "few views first"
    assert [entry.operations for entry in entries] == [1, 0.5, 1, 0.5], "half of the keys"
    assert entries[0].metrics == (0.17, 0.36, None, None)
    assert entries[3].metrics == (0.17, 0.36, 0.02, 0.8)
    lines = table(entries).splitlines()
    assert lines[3] == (
        "| 2 | `key_views(choose=stride,every=2)` | 0.500 | 0.1700 | 0.3600 | 0.0200 | 0.8000 |"
    )
    drawn = chart(entries)
    names = [series.name for series in drawn.series]
    assert names == ["key_views stride, 2 views", "key_views stride, 8 views"]
    assert drawn.series[0].points == ((0.5, 0.02),)


@pytest.mark.parametrize(
    "plan,name",
    [
        ("dense", "dense"),
        ("key_views(choose=diverse,count=4)", "key_views diverse"),
        ("sla_global(keep=0.3,block=4)", "sla"),
        ("spark3r(query_factor=2,key_factor=2)", "spark3r"),
    ],
)
def test_rows_that_differ_in_numbers_are_one_line(plan, name):
    assert family(plan) == name


def test_points_of_a_line_are_in_order_and_dense_is_none():
    entries = [
        Entry(8, "merge_queries(factor=2)", 0.6, (None, None, 0.01, None)),
        Entry(8, "merge_queries(factor=4)", 0.3, (None, None, 0.03, None)),
        Entry(8, "dense", 1.0, (0.1, 0.2, None, None)),
    ]
    (line,) = chart(entries).series
    assert line.points == ((0.3, 0.03), (0.6, 0.01))
    more = [Entry(24, "merge_queries(factor=4)", 0.3, (None, None, 0.02, None)), *entries]
    more.append(Entry(24, "fastvggt", 0.3, (None, None, 0.02, None)))
    colors = [series.style % len(COLORS) for series in chart(more).series]
    assert colors == [0, 0, 1], "one for each strategy"
    assert len({series.style for series in chart(more).series}) == 3
    with pytest.raises(InputError, match="no row differs from dense attention"):
        chart(entries[2:])


def test_what_is_no_report_is_refused(tmp_path):
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(InputError, match=r"plan.json: no report.json of `lite3r evaluate`"):
        read(tmp_path / "plan.json")


@pytest.mark.slow
def test_the_command_prints_the_table_and_writes_the_chart(tmp_path):
    path = report(tmp_path, ["dense-float32", "merge_queries(factor=4)-float32"])
    words = [sys.executable, "-m", "tools.reduction", path, "--chart", tmp_path / "chart.svg"]
    run = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert "| 8 | `merge_queries(factor=4)` | 0." in run.stdout
    assert "merge_queries, 8 views" in (tmp_path / "chart.svg").read_text()
