"""The HTML page of an evaluation: tables, charts, and pictures of the variants' predictions."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from html import escape
from typing import Any

from lite3r_jax.evaluation.figures import (
    ERROR_RANGE,
    PREDICTED,
    TRUE,
    Figures,
    Panel,
    SceneFigures,
    figures,
)  # fmt: skip
from lite3r_jax.evaluation.score import ScoreOptions
from lite3r_jax.evaluation.table import HIGHER_IS_BETTER, blocks, legend
from lite3r_jax.html_report import document as html
from lite3r_jax.html_report.chart import Chart, Series
from lite3r_jax.html_report.colors import INFERNO, VIRIDIS, gradient

LIMIT = 24_000_000
"""Largest number of bytes of a page's pictures; scenes beyond are left out and counted."""
CHARTS = {"abs_rel": "AbsRel, lower is better", "auc_30": "AUC@30, higher is better"}


def page(body: Mapping[str, Any], scenes: Sequence[SceneFigures], *, limit: int = LIMIT) -> str:
    """Returns the page as HTML; equal results give equal text.

    Args:
        body: of report.json.
        scenes: those that are shown in pictures, by protocol.
        limit: of the bytes of the pictures.

    Raises:
        InputError: a scene cannot be drawn, see `figures.figures`.
    """
    settings, results = body["settings"], body["results"]
    versions, device = body["versions"], body["device"]
    variants = list(dict.fromkeys(entry["variant"] for entry in results))
    score = settings["evaluate"]["score"]
    parts = {"Quality": html.charts(charts(results)) + quality(body)}
    if scenes:
        parts["Pictures"] = pictures(scenes, ScoreOptions(**score), limit)
    parts["Settings"] = html.details(
        "All settings, versions, device", html.without(body, "results")
    )
    note = (
        f"{', '.join(variants)}; backbone {settings['backbone']}; {device['count']} x"
        f" {device['kind']}, {device['machine']}; jax {versions['jax']}."
    )
    return html.document(f"{html.loaded(settings)}: evaluation", note, parts)


def quality(body: Mapping[str, Any]) -> str:
    """Returns the tables of all results as HTML.

    Args:
        body: of report.json.
    """
    text = ""
    for block in blocks(body["results"]):
        text += f"<h3>{escape(block.title)}</h3>\n"
        for heading, cells in block.tables.items():
            better = {name: html.LOWER for name in cells[0] if name != "variant"}
            better |= {name: html.HIGHER for name in HIGHER_IS_BETTER if name in better}
            text += html.paragraph(f"{heading}:") if heading else ""
            text += html.table(cells, better=better)
        text += html.bullets(block.notes)
    score = body["settings"].get("evaluate", {}).get("score") or asdict(ScoreOptions())
    return text + html.paragraph(legend(score))


def charts(results: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """Returns charts of metrics against the number of views, for protocols run with several."""
    sections = []
    styles = {
        name: n for n, name in enumerate(dict.fromkeys(entry["variant"] for entry in results))
    }
    for protocol in dict.fromkeys(entry["protocol"] for entry in results):
        for metric, label in CHARTS.items():
            points: dict[str, list[tuple[float, float]]] = {}
            for entry in results:
                value = entry["metrics"].get(metric, {}).get("value")
                if entry["protocol"] == protocol and value is not None:
                    points.setdefault(entry["variant"], []).append((entry["views"], value))
            series = tuple(
                Series(name, tuple(sorted(p)), styles[name]) for name, p in points.items()
            )
            if any(len(one.points) > 1 for one in series):
                sections.append(Chart(protocol, "views", label, series, log_y=False))
    return sections


def pictures(scenes: Sequence[SceneFigures], options: ScoreOptions, limit: int = LIMIT) -> str:
    """Returns pictures of scenes as HTML, as many as fit into a limit of bytes.

    The first scene of every protocol is taken first, then the second ones.

    Args:
        scenes: by protocol.
        options: the alignment of the depth that is drawn.
        limit: bytes of all pictures.

    Raises:
        InputError: a scene cannot be drawn, see `figures.figures`.
    """
    kinds: dict[str, list[SceneFigures]] = {}
    for scene in scenes:
        kinds.setdefault(scene.protocol, []).append(scene)
    order = sorted((n, k) for k, some in enumerate(kinds.values()) for n in range(len(some)))
    by_kind, drawn, used, left_out = list(kinds.values()), {}, 0, 0
    for n, k in order:
        made = figures(by_kind[k][n], options)
        if used + made.size > limit:
            left_out += 1
            continue
        drawn[k, n], used = made, used + made.size
    text = _explanation()
    for k, name in enumerate(kinds):
        if shown := [_scene(drawn[key]) for key in sorted(drawn) if key[0] == k]:
            text += f"<h3>{escape(name)}</h3>\n" + "".join(shown)
    count = sum(len(made.panels) for made in drawn.values())
    size = f"{used / 1e6:.1f} MB of pictures in {count} panels; at most {limit / 1e6:.0f} MB."
    if left_out:
        size += f" {left_out} scenes are left out, or the page would be larger."
    return text + html.paragraph(size)


def _explanation() -> str:
    low, high = (100 * share for share in ERROR_RANGE)
    scales = (
        f'<span>far <i style="background:{gradient(INFERNO)}"></i> near: depth, one scale for each'
        " scene</span>"
        f'<span>{low:g} % <i style="background:{gradient(VIRIDIS)}"></i> {high:g} %: error of depth'
        " relative to the truth, logarithmic</span>"
        f'<span><i class="line" style="background:rgb{TRUE}"></i> true cameras</span>'
        f'<span><i class="line" style="background:rgb{PREDICTED}"></i> predicted cameras</span>'
    )
    text = (
        "The first scenes of each list, whatever their errors. Points of all shown views in the"
        " colors of the photos, seen from one place for all models, after the similarity that"
        " brings them onto the true points; surfaces that turn their back are left out. Below,"
        " view by view: depth in the alignment of the tables, and its error. Gray: no depth. Where"
        " a dataset has no depth, the first variant stands in for the truth."
    )
    return html.paragraph(text) + f'<p class="scales">{scales}</p>\n'


def _scene(made: Figures) -> str:
    columns = "".join(_panel(panel) for panel in made.panels)
    shown = f'<div class="scene">{columns}</div>\n' if columns else ""
    return html.paragraph(made.caption) + shown


def _panel(panel: Panel) -> str:
    caption = f"<b>{escape(panel.name)}</b><br>{escape(panel.note)}"
    rows = [_image(panel.points, f"points, {panel.name}")]
    for n, pair in enumerate(panel.views, 1):
        images = (_image(one, f"view {n}, {what}, {panel.name}") for what, one in pair.items())
        rows.append(f"<div>{''.join(images)}</div>")
    return f"<figure><figcaption>{caption}</figcaption>{''.join(rows)}</figure>"


def _image(jpeg: bytes | str, meaning: str) -> str:
    """Returns the HTML of a picture, or of the words that say why there is none."""
    if isinstance(jpeg, str):
        return f'<span class="none">{escape(jpeg)}</span>'
    return html.image(jpeg, meaning)
