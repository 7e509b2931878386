"""One HTML page of a bench run and an evaluation, which needs nothing but itself."""

from collections.abc import Mapping, Sequence
from typing import Any

from lite3r_jax.bench import report
from lite3r_jax.evaluate.figures import SceneFigures
from lite3r_jax.evaluate.page import pictures, quality
from lite3r_jax.evaluate.score import ScoreOptions
from lite3r_jax.pages import document as html
from lite3r_jax.pages.chart import Chart


def page(
    body: Mapping[str, Any],
    charts: Mapping[str, Chart],
    evaluation: Mapping[str, Any] | None = None,
    scenes: Sequence[SceneFigures] = (),
) -> str:
    """The page. Equal results give equal text.

    It holds tables, charts and settings, and pictures of an evaluation that has some.

    Args:
        body: of bench.json.
        charts: of `report.charts`.
        evaluation: of the evaluation's report.json, or None.
        scenes: of the evaluation, see `evaluate.results.shown_scenes`.

    Raises:
        InputError: a scene cannot be drawn.
    """
    title, run = report.heading(body)
    against = [chart for name, chart in charts.items() if name.startswith("quality-")]
    cost = [chart for name, chart in charts.items() if not name.startswith("quality-")]
    parts = {"Cost": html.charts(cost) + html.table(report.measured(body), group=0)}
    parts["Cost"] += html.paragraph(report.EXPLANATION) + html.bullets(report.notes(body))
    if evaluation is not None:
        parts["Quality"] = html.charts(against) + quality(evaluation)
        if scenes:
            score = ScoreOptions(**evaluation["settings"]["evaluate"]["score"])
            parts["Pictures"] = pictures(scenes, score)
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
