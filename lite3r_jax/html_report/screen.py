"""Formats Markdown for terminals: wraps text and splits tables to a limited width."""

import textwrap
from collections.abc import Iterator, Sequence
from itertools import groupby

WIDTH = 100


def on_screen(text: str, width: int = WIDTH) -> str:
    """Formats text and tables in Markdown to at most `width` columns.

    A wider table becomes several, each with the first column and some of the others; other text is
    wrapped between words. A single word or cell that is wider than the screen stays whole.

    Args:
        text: Markdown as in reports, with "|" at both ends of every line of a table.
        width: columns of the screen.
    """
    lines: list[str] = []
    for table, group in groupby(text.splitlines(), lambda line: line.startswith("|")):
        if table:
            lines += _tables([_cells(line) for line in group], width)
            continue
        for line in group:
            indent = "  " if line.startswith("- ") else ""
            lines += textwrap.wrap(
                line, width, subsequent_indent=indent, break_long_words=False
            ) or [""]
    return "\n".join(lines)


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def _tables(rows: Sequence[Sequence[str]], width: int) -> Iterator[str]:
    head, *body = (row for row in rows if not all(set(cell) <= set("-: ") for cell in row))
    widths = [max(len(row[k]) for row in (head, *body)) for k in range(len(head))]
    chosen = [0]
    for k in range(1, len(head)):
        if len(chosen) > 1 and sum(widths[i] + 2 for i in (*chosen, k)) - 2 > width:
            yield from _table([head, *body], widths, chosen)
            yield ""
            chosen = [0]
        chosen.append(k)
    yield from _table([head, *body], widths, chosen)


def _table(
    rows: Sequence[Sequence[str]], widths: Sequence[int], columns: Sequence[int]
) -> Iterator[str]:
    for n, row in enumerate(rows):
        yield "  ".join(row[k].ljust(widths[k]) for k in columns).rstrip()
        if n == 0:
            yield "  ".join("-" * widths[k] for k in columns)
