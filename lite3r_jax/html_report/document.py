"""Makes self-contained HTML pages of results in one style: headings, tables, charts, pictures.

A page has no script and loads nothing: pictures are inside as data URIs, and its
Content-Security-Policy allows nothing else. It follows the reader's light or dark color scheme.
"""

import base64
import json
from collections.abc import Collection, Mapping, Sequence
from html import escape
from typing import Any

from lite3r_jax.html_report.chart import Chart, svg

HIGHER, LOWER = "\u2191", "\u2193"
"""Arrows in the headings of a table that say whether higher or lower values are better."""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_STYLE = """
:root { color-scheme: light dark; --ground: #f7f7f5; --raised: #fff; --line: #d6d7d3;
  --ink: #1d2025; --soft: #5c636e; --accent: #b35a00; --shade: rgb(0 0 0 / 35%); }
@media (prefers-color-scheme: dark) { :root { --ground: #14161a; --raised: #1d2026;
  --line: #2e333c; --ink: #e8eaee; --soft: #a0a7b3; --accent: #ff9e33;
  --shade: rgb(255 255 255 / 30%); } }
body { margin: 0 auto; max-width: 1240px; padding: 24px 20px 60px; background: var(--ground);
  color: var(--ink); font: 15px/1.5 system-ui, "Noto Sans", "DejaVu Sans", sans-serif; }
h1 { font-size: 24px; line-height: 1.25; margin: 0 0 4px; }
h2 { font-size: 18px; margin: 36px 0 8px; }
h3 { font-size: 15px; margin: 20px 0 6px; }
p, li { max-width: 90ch; } .soft { color: var(--soft); font-size: 13px; }
.charts { display: grid; gap: 16px; margin-bottom: 16px;
  grid-template-columns: repeat(auto-fill, minmax(min(540px, 100%), 1fr)); }
.charts svg { width: 100%; height: auto; border: 1px solid var(--line); border-radius: 8px; }
@media (prefers-color-scheme: dark) { .charts svg { filter: invert(0.9) hue-rotate(180deg);
  border-color: #ccc; } }
/* a shadow at the side where columns are hidden; it is covered at the end of a table */
.wide { overflow-x: auto; border: 1px solid var(--line); border-radius: 8px;
  background:
    linear-gradient(to right, var(--raised) 40%, transparent) 0 0 / 48px 100% no-repeat local,
    linear-gradient(to left, var(--raised) 40%, transparent) 100% 0 / 48px 100% no-repeat local,
    linear-gradient(to right, var(--shade), transparent) 0 0 / 18px 100% no-repeat scroll,
    linear-gradient(to left, var(--shade), transparent) 100% 0 / 18px 100% no-repeat scroll,
    var(--raised); }
.wide:focus-visible { outline: 2px solid var(--accent); }
table { border-collapse: collapse; width: 100%; font-size: 13px;
  font-variant-numeric: tabular-nums; }
th, td { padding: 5px 7px; text-align: right; white-space: nowrap;
  border-top: 1px solid var(--line); }
th { border-top: 0; color: var(--soft); font-weight: 600; white-space: normal; }
th.text, td.text { text-align: left; }
td small { display: block; color: var(--soft); font-size: 11px; }
tr.next td { border-top: 2px solid var(--soft); }
nav a, summary { color: var(--accent); }
nav { display: flex; gap: 16px; flex-wrap: wrap; margin-top: 8px; }
pre { overflow-x: auto; font-size: 12px; padding: 12px; background: var(--raised);
  border-radius: 8px; }
.scene { display: grid; gap: 14px; padding: 12px; overflow-x: auto; margin-bottom: 20px;
  grid-auto-flow: column; grid-auto-columns: minmax(250px, 1fr);
  border: 1px solid var(--line); border-radius: 8px; background: var(--raised); }
.scene figure { margin: 0; display: flex; flex-direction: column; gap: 4px; }
.scene figcaption { min-height: 40px; font-size: 12px; color: var(--soft); }
.scene figcaption b { color: var(--ink); font-size: 13px; }
.scene div { display: flex; gap: 4px; } .scene div img { flex: 1; min-width: 0; }
.scene img { width: 100%; height: auto; display: block; border-radius: 4px; }
.scene .none { flex: 1; display: grid; place-items: center; min-height: 90px; font-size: 12px;
  color: var(--soft); border: 1px dashed var(--line); border-radius: 4px; text-align: center; }
.scales { display: flex; flex-wrap: wrap; gap: 6px 28px; font-size: 12px; color: var(--soft); }
.scales span { display: flex; align-items: center; gap: 8px; }
.scales i { display: block; width: 130px; height: 10px; border-radius: 3px; }
.scales i.line { width: 22px; height: 3px; }
@media (max-width: 640px) {
  body { padding: 16px 12px 40px; }
  /* a row becomes a card of names and values, so that no column is off the screen */
  .wide { border: 0; overflow: visible; background: none; }
  table, tbody { display: block; } tr.head { display: none; }
  tr { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 2px 16px;
    margin-bottom: 10px; padding: 8px 10px; border: 1px solid var(--line); border-radius: 8px;
    background: var(--raised); }
  tr.next td { border: 0; } tr.next { border-top: 2px solid var(--soft); }
  td { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 8px; padding: 2px 0;
    border: 0; white-space: normal; overflow-wrap: anywhere; }
  td:empty { display: none; } td small { flex-basis: 100%; }
  td.text { grid-column: 1 / -1; text-align: right; }
  td::before { content: attr(data-name); color: var(--soft); text-align: left; }
  .scene { grid-auto-flow: row; grid-auto-columns: auto; }
  .scene figcaption { min-height: 0; }
}
"""


def document(title: str, note: str, sections: Mapping[str, str]) -> str:
    """Returns a complete HTML page with a title and sections.

    Args:
        title: heading, plain text.
        note: line below the heading, plain text.
        sections: heading -> HTML; the top of the page has a link to each section.
    """
    links = "".join(f'<a href="#{_id(name)}">{escape(name)}</a>' for name in sections)
    body = "\n".join(
        f'<section id="{_id(name)}"><h2>{escape(name)}</h2>\n{text}</section>'
        for name, text in sections.items()
    )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n"
        f'<body><h1>{escape(title)}</h1><p class="soft">{escape(note)}</p><nav>{links}</nav>\n'
        f"{body}\n</body></html>\n"
    )


def table(
    cells: Sequence[Sequence[str]],
    words: Collection[str] = ("variant",),
    group: int | None = None,
    better: Mapping[str, str] | None = None,
) -> str:
    """Returns a table of plain text as HTML; small screens show a card for every row.

    A bracket that follows a number, such as its confidence interval, is shown below the number.

    Args:
        cells: rows of equal length, the first with the headings.
        words: headings of the columns that are text and not numbers.
        group: index of a column; a row with a new value in it has a heavier line above.
        better: heading -> `HIGHER` or `LOWER`, an arrow that says what is better; None: no arrows.
    """
    head, *rows = cells
    marks = [' class="text"' if name in words else "" for name in head]
    arrows = better or {}
    # a space at which lines do not end
    head = [f"{name}\u00a0{arrows[name]}" if name in arrows else name for name in head]
    named = [f'{m} data-name="{escape(name)}"' for m, name in zip(marks, head, strict=True)]

    def line(tag: str, row: Sequence[str]) -> str:
        places = marks if tag == "th" else named
        return "".join(f"<{tag}{m}>{_cell(c)}</{tag}>" for m, c in zip(places, row, strict=True))

    text, before = [], None
    for row in rows:
        here = None if group is None else row[group]
        mark = ' class="next"' if here != before else ""
        text.append(f"<tr{mark}>{line('td', row)}</tr>")
        before = here
    head_row = f'<tr class="head">{line("th", head)}</tr>'
    return f'<div class="wide" tabindex="0"><table>{head_row}{"".join(text)}</table></div>\n'


def _cell(text: str) -> str:
    number, bracket, rest = text.partition(" [")
    if bracket and rest.endswith("]"):
        return f"{escape(number)} <small>[{escape(rest)}</small>"
    return escape(text)


def charts(shown: Sequence[Chart]) -> str:
    """Returns charts as HTML, side by side as far as the width of the page allows."""
    return f'<div class="charts">{"".join(svg(chart) for chart in shown)}</div>\n' if shown else ""


def paragraph(text: str) -> str:
    """Returns a paragraph of explanatory plain text as HTML."""
    return f'<p class="soft">{escape(text)}</p>\n'


def bullets(lines: Sequence[str]) -> str:
    """Returns a bullet list of plain text lines as HTML; "" if there are no lines."""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<ul class="soft">{items}</ul>\n' if lines else ""


def details(name: str, data: Mapping[str, Any]) -> str:
    """Returns a collapsed HTML element with the heading `name` that shows data as JSON."""
    text = escape(json.dumps(data, indent=2, ensure_ascii=False), quote=False)
    return f"<details><summary>{escape(name)}</summary><pre>{text}</pre></details>\n"


def image(jpeg: bytes, meaning: str) -> str:
    """Returns an HTML image of JPEG bytes, with a plain text description as alternative text."""
    data = base64.b64encode(jpeg).decode()
    return f'<img alt="{escape(meaning)}" src="data:image/jpeg;base64,{data}">'


def loaded(settings: Mapping[str, Any]) -> str:
    """Returns the loaded model's name: "vggt-tiny", "facebook/VGGT-1B", or the folder of weights.

    Args:
        settings: settings of the run, as in its report.
    """
    weights = str(settings.get("weights") or "")
    if len(weights.split("/")) == 2 and weights[0] not in "./~":
        return weights  # a repository
    return weights.rstrip("/").rpartition("/")[2] or str(settings["backbone"])


def without(body: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Returns a dict of all entries of `body` except those of the given names."""
    return {name: value for name, value in body.items() if name not in names}


def _id(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name.lower())
