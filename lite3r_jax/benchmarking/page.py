"""Makes one self-contained HTML page of a bench run and an evaluation."""

from collections.abc import Mapping
from typing import Any

from lite3r_jax.benchmarking import report
from lite3r_jax.evaluation.page import quality
from lite3r_jax.html_report import document as html
from lite3r_jax.html_report.chart import Chart


def page(
    body: Mapping[str, Any],
    charts: Mapping[str, Chart],
    evaluation: Mapping[str, Any] | None = None,
    shown: str = "",
) -> str:
    """Returns the HTML page of a bench run; equal results give equal text.

    It holds tables, charts and settings, and pictures of an evaluation that has some.

    Args:
        body: of bench.json.
        charts: of `report.charts`.
        evaluation: of the evaluation's report.json, or None.
        shown: its pictures as HTML, of `evaluation.page.pictures`; "" without.
    """
    title, run = report.heading(body)
    against = [chart for name, chart in charts.items() if name.startswith("quality-")]
    cost = [chart for name, chart in charts.items() if not name.startswith("quality-")]
    parts = {"Cost": html.charts(cost) + _measured(body)}
    parts["Cost"] += html.paragraph(report.EXPLANATION) + html.bullets(report.notes(body))
    if evaluation is not None:
        parts["Quality"] = html.charts(against) + quality(evaluation)
        if shown:
            parts["Pictures"] = shown
    if body["published"]:
        text = "On other machines, not measured here. In the charts they are hollow diamonds."
        words = {"model", "method", "size", "hardware", "baseline", "source"}
        table = html.table(report.published_figures(body), words)
        parts["Published figures"] = html.paragraph(text) + table
    settings = html.without(body, "cells", "published")
    parts["Settings"] = html.details("Of the bench run", settings)
    if evaluation is not None:
        of_it = html.without(evaluation, "results")
        parts["Settings"] += html.details("Of the evaluation", of_it)
    return html.document(title, run, parts)


def _measured(body: Mapping[str, Any]) -> str:
    cells = report.measured(body)
    costs = ("median ms", "p95 ms", "compile s", "peak GiB", "planned GiB", "TFLOP")
    better = dict.fromkeys(costs, html.LOWER)
    gains = [name for name in cells[0] if name.startswith(("speed /", "memory /", "TFLOP/s"))]
    return html.table(cells, group=0, better=better | dict.fromkeys(gains, html.HIGHER))
