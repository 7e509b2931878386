"""Draws charts as SVG text, without a plotting library. Equal data give equal text."""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 820, 420
LEFT, RIGHT, TOP, BOTTOM = 74, 216, 44, 52
LINE = 17
# Okabe and Ito's colors, which people with any color vision can tell apart.
COLORS = ("#000000", "#7a7a7a", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
DASHES = ("", "7 4", "2 3")


@dataclass(frozen=True)
class Series:
    """A named series of points (x, y) of a chart, with x ascending where points are joined.

    `style` chooses color and line, so that a series looks the same in several charts; by default it
    is the index of the series in the chart.
    """

    name: str
    points: tuple[tuple[float, float], ...]
    style: int | None = None


@dataclass(frozen=True)
class Reference:
    """A point of a chart that was not measured here; `name` is its explanation below the chart."""

    name: str
    x: float
    y: float


@dataclass(frozen=True)
class Chart:
    """The content of a chart: title, axes, measured series and reference points.

    Attributes:
        title: heading.
        x: name and unit of the x axis.
        y: name and unit of the y axis.
        series: measured points.
        references: points drawn as hollow diamonds with numbers, explained below the chart.
        log_x: whether the x axis is logarithmic; then values are positive.
        log_y: whether the y axis is logarithmic; then values are positive.
        joined: whether the points of a series are joined by lines.
    """

    title: str
    x: str
    y: str
    series: tuple[Series, ...]
    references: tuple[Reference, ...] = ()
    log_x: bool = True
    log_y: bool = True
    joined: bool = True


def svg(chart: Chart) -> str:
    """Draws a chart as an SVG document, which can also be embedded in HTML.

    Raises:
        ValueError: there are no points, or a point cannot be drawn on its axis.
    """
    points = [p for series in chart.series for p in series.points]
    points += [(r.x, r.y) for r in chart.references]
    if not points:
        raise ValueError(f"chart {chart.title!r}: there are no points")
    xs, ys = (_Axis([p[i] for p in points], log) for i, log in ((0, chart.log_x), (1, chart.log_y)))

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + xs.share(x) * (WIDTH - LEFT - RIGHT)
        return across, HEIGHT - BOTTOM - ys.share(y) * (HEIGHT - TOP - BOTTOM)

    below = HEIGHT + LINE * sum(len(lines) for lines in _notes(chart.references))
    total = below + (12 if chart.references else 0)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {total}" width="{WIDTH}"'
        f' height="{total}" role="img" font-family="system-ui, sans-serif" font-size="12"'
        ' fill="#222">',
        f"<title>{escape(chart.title)}</title>",
        f'<rect width="{WIDTH}" height="{total}" fill="#fff"/>',
        f'<text x="{LEFT}" y="24" font-size="15" font-weight="600">{escape(chart.title)}</text>',
    ]
    parts += _grid(chart, xs, ys, place)
    for i, series in enumerate(chart.series):
        parts += _series(i, series, chart.joined, place)
    parts += _references(chart.references, place)
    return "\n".join([*parts, "</svg>"]) + "\n"


class _Axis:
    """An axis of a chart: maps values to fractions of its length, and chooses the ticks."""

    def __init__(self, values: Sequence[float], log: bool):
        if not all(math.isfinite(v) and (v > 0 or not log) for v in values):
            raise ValueError(f"values {sorted(values)} cannot be drawn on this axis")
        self._log = log
        low, high = min(values), max(values)
        if log:
            edge = max(math.log10(high / low) * 0.06, 0.08)
            self.low, self.high = math.log10(low) - edge, math.log10(high) + edge
        else:
            edge = (high - low) * 0.08 or abs(high) * 0.1 or 1.0
            self.low, self.high = low - edge, high + edge

    def share(self, value: float) -> float:
        at = math.log10(value) if self._log else value
        return (at - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        if not self._log:
            step = 10 ** math.floor(math.log10((self.high - self.low) / 4))
            step *= next(m for m in (1, 2, 5, 10) if (self.high - self.low) / (step * m) <= 6)
            first = math.ceil(self.low / step)
            return [n * step for n in range(first, math.floor(self.high / step) + 1)]
        for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
            candidates = [
                m * 10.0**n
                for n in range(math.floor(self.low), math.ceil(self.high) + 1)
                for m in steps
                if self.low <= math.log10(m * 10.0**n) <= self.high
            ]
            if len(candidates) >= 4:
                break
        return candidates


def _grid(chart, xs, ys, place):
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    own = sorted({x for series in chart.series for x, _ in series.points})
    counts = chart.log_x and 1 < len(own) <= 10 and all(x == int(x) for x in own)
    # numbers of views as they are, and beyond them where references stand
    ticks = [*own, *(t for t in xs.ticks() if t > 1.5 * own[-1])] if counts else xs.ticks()
    for tick in ticks:
        x = place(tick, 10**ys.low if chart.log_y else ys.low)[0]
        yield f'<path d="M{x:.1f} {TOP}V{bottom}" stroke="#e4e4e4"/>'
        yield f'<text x="{x:.1f}" y="{bottom + 17}" text-anchor="middle">{tick:g}</text>'
    for tick in ys.ticks():
        y = place(10**xs.low if chart.log_x else xs.low, tick)[1]
        yield f'<path d="M{LEFT} {y:.1f}H{right}" stroke="#e4e4e4"/>'
        yield f'<text x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{tick:.6g}</text>'
    yield f'<path d="M{LEFT} {TOP}V{bottom}H{right}" fill="none" stroke="#555"/>'
    middle = (LEFT + right) / 2
    yield f'<text x="{middle}" y="{HEIGHT - 12}" text-anchor="middle">{escape(chart.x)}</text>'
    high = (TOP + bottom) / 2
    yield (
        f'<text transform="translate(18 {high}) rotate(-90)" text-anchor="middle">'
        f"{escape(chart.y)}</text>"
    )


def _series(i, series, joined, place):
    style = i if series.style is None else series.style
    color = COLORS[style % len(COLORS)]
    dash = DASHES[style // len(COLORS) % len(DASHES)]
    at = [place(*point) for point in series.points]
    line = f'stroke="{color}" stroke-width="2" stroke-dasharray="{dash}"'
    if joined and len(at) > 1:
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in at)
        yield f'<path d="M{path}" fill="none" {line}/>'
    name = escape(series.name)
    for (x, y), (a, b) in zip(at, series.points, strict=True):
        yield (
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{color}">'
            f"<title>{name}: {a:g}, {b:.4g}</title></circle>"
        )
    left, y = WIDTH - RIGHT + 18, TOP + 8 + 20 * i
    yield f'<path d="M{left} {y}h22" {line}/><circle cx="{left + 11}" cy="{y}" r="3.5"'
    yield f' fill="{color}"/><text x="{left + 30}" y="{y + 4}">{name}</text>'


def _references(references, place):
    y = HEIGHT + 12
    for i, (reference, lines) in enumerate(zip(references, _notes(references), strict=True), 1):
        x, top = place(reference.x, reference.y)
        yield (
            f'<path d="M{x:.1f} {top - 5.5:.1f}l5.5 5.5l-5.5 5.5l-5.5 -5.5z" fill="#fff"'
            f' stroke="#8a1c1c" stroke-width="1.5"><title>{escape(reference.name)}</title></path>'
            f'<text x="{x + 8:.1f}" y="{top + 4:.1f}" fill="#8a1c1c">{i}</text>'
        )
        for n, line in enumerate(lines):
            number = f"{i}" if n == 0 else ""
            yield f'<text x="20" y="{y}" fill="#8a1c1c">{number}</text>'
            yield f'<text x="44" y="{y}">{escape(line)}</text>'
            y += LINE


def _notes(references: Sequence[Reference], width: int = 118) -> list[list[str]]:
    """Wraps the explanation of each reference point to lines of at most `width` characters."""
    return [textwrap.wrap(reference.name, width) for reference in references]
