"""Tables and charts of results that are known."""

from dataclasses import asdict

import pytest

from lite3r_jax.backbones.base import get_backbone
from lite3r_jax.backbones.da3.config import PRESETS
from lite3r_jax.benchmarking.literature import PUBLISHED, published_for
from lite3r_jax.benchmarking.measure import Cell
from lite3r_jax.benchmarking.options import BenchOptions
from lite3r_jax.benchmarking.report import charts, entries, in_common, markdown
from lite3r_jax.errors import InputError

GIB = 2**30
WORK = {"total": 4 * 10**12, "parts": {}}


def cell(row, views, seconds, peak, work=WORK, **more):
    return Cell(
        row, views, "", (seconds,) * 3, 1.5, 1, GIB, 2 * peak, peak, peak, "process", flops=work,
        **more,
    )  # fmt: skip


CELLS = (
    cell("dense-float32", 2, 4.0, 8 * GIB),
    Cell("dense-float32", 4, "does not fit: 4 views", flops=WORK),
    Cell("dense-float32", 8, "does not fit: 4 views", flops=WORK),
    cell("dense-bfloat16", 2, 2.0, 4 * GIB),
    cell("sla_global-bfloat16", 2, 1.0, 2 * GIB, {"total": 10**12, "parts": {}}),
    cell("sla_global-bfloat16", 4, 3.0, 3 * GIB),
)


def body(cells=CELLS, published=()):
    return {
        "backbone": "vggt", "date": "2026-01-02", "versions": {"jax": "0.10"},
        "device": {"kind": "H200", "machine": "m"}, "settings": {"bench": asdict(BenchOptions())},
        "variants": {
            "dense-float32": {"compute": "float32", "weights": "float32", "attention": {}}
        },
        "cells": entries(cells), "published": [asdict(p) for p in published],
    }  # fmt: skip


def test_every_cell_stands_beside_both_baselines_at_the_same_views():
    ratios = {(e["variant"], e["views"]): e["against"] for e in entries(CELLS)}
    student = ratios["sla_global-bfloat16", 2]
    assert student["dense-float32"] == {
        "speed": 4, "memory": 4, "planned_memory": 4, "flops": 4
    }  # fmt: skip
    assert student["dense-bfloat16"]["speed"] == 2 and student["dense-bfloat16"]["flops"] == 4
    assert ratios["dense-float32", 2]["dense-float32"]["speed"] == 1
    assert ratios["sla_global-bfloat16", 4] == {}  # no baseline fits there


def test_the_table_has_one_line_for_each_measured_cell_and_says_what_is_missing():
    text = markdown(body())
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(lines) == 2 + 4 and len({len(line) for line in lines}) == 1
    student = [part.strip() for part in lines[4].split("|")[1:-1]]
    assert student == [
        "2", "sla_global-bfloat16", "1000.0", "1000.0", "1.5", "2.00", "4.00", "1", "1",
        "4.00", "2.00", "4.00", "2.00",
    ]  # fmt: skip
    assert text.count("dense-float32, from 4 views on: not measured: does not fit") == 1


def test_a_peak_that_is_not_known_is_said_and_plans_take_its_place():
    unknown = Cell(**vars(CELLS[3]) | {"peak": None, "peak_note": "no statistics"})
    report = body((CELLS[0], unknown))
    assert "dense-bfloat16, 2 views: peak not known: no statistics" in markdown(report)
    assert "~2.00" in markdown(report)
    chart = charts(report)["memory"]
    assert "planned" in chart.title
    assert [s.points for s in chart.series] == [((2, 16.0),), ((2, 8.0),)]


def test_charts_have_every_row_and_published_points_with_hardware_and_baseline():
    published = published_for(get_backbone("vggt").default_config)
    plots = charts(body(published=published), published)
    assert set(plots) == {"latency", "memory", "work"}
    assert [s.name for s in plots["latency"].series] == [
        "dense-float32", "dense-bfloat16", "sla_global-bfloat16"
    ]  # fmt: skip
    assert plots["latency"].series[2].points == ((2, 1.0), (4, 3.0))
    assert plots["memory"].series[0].points == ((2, 8.0),)
    assert [(s.name, [x for x, _ in s.points]) for s in plots["work"].series] == [
        ("dense", [2, 4, 8]), ("sla_global", [2, 4])
    ]  # fmt: skip
    lite3r = next(r for r in plots["latency"].references if r.name.startswith("VGGT-1B Lite3R"))
    assert (lite3r.x, lite3r.y) == (2, 0.27438)
    assert "A100-PCIE-40GB" in lite3r.name and "float32 without TF32, 483.33 ms" in lite3r.name
    assert "A100-PCIE-40GB" in markdown(body(published=published))


def test_published_points_are_of_the_same_size_of_model():
    assert {p.model for p in published_for(PRESETS["da3-large"])} == {"DA3-Large"}
    assert published_for(PRESETS["da3-base"]) == ()
    assert {p.model for p in PUBLISHED} == {"VGGT-1B", "DA3-Large", "DA3-Giant"}


def test_quality_is_drawn_against_the_time_of_the_same_row_and_views():
    results = [
        {"variant": row, "protocol": "synthetic:test", "views": views,
         "metrics": {"abs_rel": {"value": value}}}
        for row, views, value in (
            ("dense-float32", 2, 0.1), ("sla_global-bfloat16", 2, 0.2), ("student-float32", 2, 0.3),
            ("dense-bfloat16", 2, None), ("sla_global-bfloat16", 3, 0.4),
        )
    ]  # fmt: skip
    plots = charts(body(), evaluation={"results": results})
    (name,) = set(plots) - {"latency", "memory", "work"}
    assert name == "quality-synthetic-test-2-abs_rel"
    assert [(s.name, s.points) for s in plots[name].series] == [
        ("dense-float32", ((4.0, 0.1),)), ("sla_global-bfloat16", ((1.0, 0.2),))
    ]  # fmt: skip
    look = {s.name: s.style for s in plots["latency"].series}
    assert all(s.style == look[s.name] for s in plots[name].series)
    assert in_common({"results": results}, ["dense-float32"], [2])
    assert not in_common({"results": results}, ["dense-float32"], [3])


def test_settings_are_read_and_wrong_ones_named():
    kept = "sla_global(keep=0.3)"  # what is kept by default is part of the name
    rows = BenchOptions(variants="sla_global-float32, dense-bfloat16").all_variants()
    assert [row.name for row in rows] == ["dense-float32", "dense-bfloat16", f"{kept}-float32"]
    assert len(BenchOptions(variants="").all_variants()) == 2
    alone = BenchOptions(variants="sla_global-float32", baselines="dense-float32").all_variants()
    assert [row.name for row in alone] == ["dense-float32", f"{kept}-float32"]
    assert BenchOptions(size="28x42").pixels(14, 518) == (28, 42)
    assert BenchOptions().pixels(14, 518) == (518, 518)
    for changes, call, name in (
        ({"variants": "dense-int8"}, lambda o: o.all_variants(), "bench.variants"),
        ({"variants": "student-float32"}, lambda o: o.all_variants(), "bench.student"),
        ({"size": "28x43"}, lambda o: o.pixels(14, 518), "bench.size: expected .* multiples of 14"),
        ({"size": "28"}, lambda o: o.pixels(14, 518), "bench.size"),
        ({"views": "4,2"}, lambda o: o.numbers_of_views(), "bench.views: .* ascending"),
        ({"views": "two"}, lambda o: o.numbers_of_views(), "bench.views"),
        ({"views": ""}, lambda o: o.numbers_of_views(), "bench.views"),
    ):
        with pytest.raises(InputError, match=name):
            call(BenchOptions(**changes))
