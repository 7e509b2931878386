"""One HTML page of a bench run and an evaluation, which needs nothing but itself."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from lite3r_jax.bench import report
from lite3r_jax.bench.chart import Chart, svg
from lite3r_jax.evaluate.table import COLUMNS

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_STYLE = """
:root { color-scheme: light dark; --ground: #f7f7f5; --raised: #fff; --line: #d6d7d3;
  --ink: #1d2025; --soft: #5c636e; --accent: #b35a00; }
@media (prefers-color-scheme: dark) { :root { --ground: #14161a; --raised: #1d2026;
  --line: #2e333c; --ink: #e8eaee; --soft: #a0a7b3; --accent: #ff9e33; } }
body { margin: 0 auto; max-width: 1180px; padding: 24px 20px 60px; background: var(--ground);
  color: var(--ink); font: 15px/1.5 system-ui, "Noto Sans", "DejaVu Sans", sans-serif; }
h1 { font-size: 24px; line-height: 1.25; margin: 0 0 4px; }
h2 { font-size: 18px; margin: 36px 0 8px; }
h3 { font-size: 15px; margin: 20px 0 6px; }
p, li { max-width: 90ch; } .soft { color: var(--soft); font-size: 13px; }
.charts { display: grid; gap: 16px; margin-bottom: 16px;
  grid-template-columns: repeat(auto-fill, minmax(min(540px, 100%), 1fr)); }
.charts svg { width: 100%; height: auto; border: 1px solid var(--line); border-radius: 8px; }
.wide { overflow-x: auto; border: 1px solid var(--line); border-radius: 8px;
  background: var(--raised); }
table { border-collapse: collapse; width: 100%; font-size: 13px;
  font-variant-numeric: tabular-nums; }
th, td { padding: 5px 10px; text-align: right; white-space: nowrap;
  border-top: 1px solid var(--line); }
th { border-top: 0; color: var(--soft); font-weight: 600; white-space: normal; }
th.text, td.text { text-align: left; }
tr.next td { border-top: 2px solid var(--soft); }
nav a, summary { color: var(--accent); }
nav { display: flex; gap: 16px; flex-wrap: wrap; margin-top: 8px; }
pre { overflow-x: auto; font-size: 12px; padding: 12px; background: var(--raised);
  border-radius: 8px; }
"""


def page(
    body: Mapping[str, Any],
    charts: Mapping[str, Chart],
    evaluation: Mapping[str, Any] | None = None,
) -> str:
    """The page. Equal results give equal text.

    It holds tables, charts and settings, has no script and loads nothing.

    Args:
        body: of bench.json.
        charts: of `report.charts`.
        evaluation: of the evaluation's report.json, or None.
    """
    title, run = report.heading(body)
    quality = [(n, c) for n, c in charts.items() if n.startswith("quality-")]
    cost = [(n, c) for n, c in charts.items() if not n.startswith("quality-")]
    parts = {"Cost": _figures(cost) + _table(report.measured(body), {"row"}, group=0)}
    parts["Cost"] += f'<p class="soft">{escape(report.EXPLANATION)}</p>' + _list(report.notes(body))
    if evaluation is not None:
        parts["Quality"] = _figures(quality) + _quality(evaluation)
    if body["published"]:
        text = "On other machines, not measured here. In the charts they are hollow diamonds."
        table = report.published_figures(body)
        words = {"model", "method", "size", "hardware", "baseline", "source"}
        parts["Published figures"] = f"<p>{text}</p>" + _table(table, words)
    parts["Settings"] = _details("Of the bench run", _without(body, "cells", "published"))
    if evaluation is not None:
        parts["Settings"] += _details("Of the evaluation", _without(evaluation, "results"))
    links = "".join(f'<a href="#{_id(name)}">{name}</a>' for name in parts)
    sections = "\n".join(
        f'<section id="{_id(name)}"><h2>{name}</h2>\n{text}</section>'
        for name, text in parts.items()
    )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n"
        f'<body><h1>{escape(title)}</h1><p class="soft">{escape(run)}</p><nav>{links}</nav>\n'
        f"{sections}\n</body></html>\n"
    )


def _quality(evaluation: Mapping[str, Any]) -> str:
    """A table for each protocol with a number of views."""
    parts = []
    results = evaluation["results"]
    for protocol, views in dict.fromkeys((e["protocol"], e["views"]) for e in results):
        some = [e for e in results if (e["protocol"], e["views"]) == (protocol, views)]
        table = [["row", *COLUMNS, "samples", "failed"]]
        reasons: dict[str, None] = {}
        for e in some:
            cells = []
            for heading, (metric, decimals) in COLUMNS.items():
                found = e["metrics"].get(metric, {"value": None, "missing": {}})
                cells.append(_estimate(found, decimals))
                for reason, count in found["missing"].items():
                    text = f"{e['row']}, {heading}: not available for {count} samples: {reason}"
                    reasons[text] = None
            failed = [f"{e['row']}, {f['scene']} failed: {f['reason']}" for f in e["failures"]]
            reasons |= dict.fromkeys(failed)
            table.append([e["row"], *cells, str(e["samples"]), str(len(e["failures"]))])
        size = some[0]["size"]
        parts.append(
            f"<h3>{escape(protocol)}, {views} views of {size['width']}x{size['height']}</h3>"
            + _table(table, {"row"})
            + _list(list(reasons))
        )
    note = "Means over samples with 95 % bootstrap intervals; n/a: not available, reasons below."
    return f'<p class="soft">{note}</p>' + "".join(parts)


def _estimate(found: Mapping[str, Any], decimals: int) -> str:
    if found["value"] is None:
        return "n/a"
    text = f"{found['value']:.{decimals}f}"
    if found["low"] is None or found["high"] is None:
        return text
    return f"{text} [{found['low']:.{decimals}f}, {found['high']:.{decimals}f}]"


def _figures(charts: Sequence[tuple[str, Chart]]) -> str:
    return f'<div class="charts">{"".join(svg(chart) for _, chart in charts)}</div>\n'


def _table(cells: Sequence[Sequence[str]], words: set[str], group: int | None = None) -> str:
    """Columns in `words` are text; a new value in column `group` begins with a heavier line."""
    head, *rows = cells
    marks = [' class="text"' if name in words else "" for name in head]

    def line(tag: str, row: Sequence[str]) -> str:
        return "".join(f"<{tag}{m}>{escape(c)}</{tag}>" for m, c in zip(marks, row, strict=True))

    text, before = [], None
    for row in rows:
        here = None if group is None else row[group]
        mark = ' class="next"' if here != before else ""
        text.append(f"<tr{mark}>{line('td', row)}</tr>")
        before = here
    return f'<div class="wide"><table><tr>{line("th", head)}</tr>{"".join(text)}</table></div>\n'


def _list(lines: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<ul class="soft">{items}</ul>\n' if lines else ""


def _details(name: str, data: Mapping[str, Any]) -> str:
    text = escape(json.dumps(data, indent=2, ensure_ascii=False), quote=False)
    return f"<details><summary>{name}</summary><pre>{text}</pre></details>\n"


def _without(body: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name not in names}


def _id(name: str) -> str:
    return name.lower().replace(" ", "-")
