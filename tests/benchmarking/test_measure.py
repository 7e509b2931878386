"""What a row's measurement says, with a clock that is known."""

import jax
import numpy as np
import pytest

from lite3r_jax.benchmarking import measure as measuring
from lite3r_jax.benchmarking.flops import Work
from lite3r_jax.benchmarking.measure import Cell, Protocol, measure


def work(model, views, height, width):
    return Work({"frame": {"layers": views * 100}, "global": {"softmax": views**2 * 900}})


def script(*seconds):
    """A clock that has moved on by these seconds each time it is read."""
    times = iter(np.cumsum(seconds))
    return lambda: float(next(times))


def test_warm_up_and_compilation_are_apart_and_statistics_are_of_the_passes(fake_model):
    # compile: 3 s; one pass to warm up, whose start alone is read; passes of 1, 5 and 2 s
    clock = script(10, 3, 100, 50, 1, 0, 5, 0, 2)
    protocol = Protocol((2,), 28, 42, warmup=1, runs=3)
    (cell,) = measure("a", fake_model(), protocol, count=work, clock=clock)
    assert cell.compile_seconds == 3 and cell.seconds == (1, 5, 2) and cell.missing == ""
    assert cell.median == 2 and cell.p95 == pytest.approx(4.7)
    assert cell.flops["total"] == 200 + 3600 and cell.weights == 4
    assert cell.peak > 10 * 2**20 and cell.peak_note == "process"
    assert cell.planned > cell.working > 0
    assert cell.to_json()["p95_seconds"] == cell.p95 and cell.to_json()["variant"] == "a"


def test_a_row_ends_where_a_pass_would_take_too_long(fake_model):
    # 1 view: 1000 operations in 2 s; 2 views: 3800, that is 7.6 s; 3 views are not even asked for
    protocol = Protocol((1, 2, 3), 28, 42, warmup=0, runs=1, seconds=7.5)
    clock = script(0, 1, 0, 2)
    cells = list(measure("a", fake_model(), protocol, count=work, clock=clock))
    assert [bool(cell.missing) for cell in cells] == [False, True, True]
    assert "2 views is expected to take 8 s, more than bench.seconds=7.5" in cells[1].missing
    assert cells[2].missing == cells[1].missing and cells[2].flops["total"] == 300 + 8100


def test_what_does_not_fit_is_planned_but_not_run(fake_model):
    protocol = Protocol((2, 4), 28, 42, limit=2**20)
    cells = list(measure("a", fake_model(), protocol, count=work))
    assert [cell.seconds for cell in cells] == [(), ()] and cells[0].planned > 2**20
    assert cells[0].missing.startswith("does not fit: 2 views of 42x28")
    assert cells[1].missing == cells[0].missing and cells[1].planned == 0
    assert "median_seconds" not in cells[0].to_json()


def test_memory_that_runs_out_ends_a_row_and_other_faults_are_raised(fake_model, monkeypatch):
    protocol = Protocol((2, 4), 28, 42)
    for text, told in (("RESOURCE_EXHAUSTED: 9 bytes", True), ("INTERNAL: broken", False)):

        def broken(*shape, text=text):
            raise jax.errors.JaxRuntimeError(text)

        monkeypatch.setattr(measuring.Forward, "try_plan", broken)
        cells = measure("a", fake_model(), protocol, count=work)
        if told:
            assert ["memory ran out while 2" in cell.missing for cell in cells] == [True, True]
        else:
            with pytest.raises(jax.errors.JaxRuntimeError, match="broken"):
                next(cells)


def test_cells_without_passes_have_no_statistics():
    assert np.isnan(Cell("a", 2).median) and np.isnan(Cell("a", 2).p95)
