"""Charts, read back from their SVG."""

import re
import xml.etree.ElementTree as ET

import pytest

from lite3r_jax.html_report.chart import Chart, Reference, Series, svg

CHART = Chart(
    "Latency <of> a & b", "views", "seconds",
    (Series("dense-float32", ((2, 1.0), (4, 10.0), (8, 100.0))), Series("other", ((2, 0.5),))),
    (Reference("Somebody's figure, " + "with a long explanation " * 8, 20, 3.0),),
)  # fmt: skip


def elements(chart, tag):
    return ET.fromstring(svg(chart)).findall(f".//{{*}}{tag}")


def dots(chart):
    circles = [c for c in elements(chart, "circle") if c.find("{*}title") is not None]
    return [(float(c.get("cx")), float(c.get("cy"))) for c in circles]


def test_equal_factors_are_equal_distances_on_logarithmic_axes():
    (x0, y0), (x1, y1), (x2, y2), (x3, y3) = dots(CHART)
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2) and x1 > x0 == x3
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.2) and y3 > y0 > y1  # up is more


def test_a_linear_axis_has_equal_distances_for_equal_differences():
    line = Series("a", ((1, 0.0), (10, 0.5), (100, 1.0)))
    chart = Chart("t", "x", "y", (line,), log_y=False, joined=False)
    (_, y0), (_, y1), (_, y2) = dots(chart)
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.2) and y1 < y0


def test_ticks_are_at_the_numbers_of_views_and_everything_is_inside():
    texts = [t.text for t in elements(CHART, "text")]
    assert {"2", "4", "8", "20", "views", "seconds", "Latency <of> a & b", "dense-float32"} <= {
        *texts
    }
    width, height = (float(ET.fromstring(svg(CHART)).get(k)) for k in ("width", "height"))
    placed = [(t.get("x"), t.get("y")) for t in elements(CHART, "text") if t.get("x")]
    assert all(0 <= float(x) <= width and 0 <= float(y) <= height for x, y in placed)


def test_references_are_numbered_and_explained_in_full():
    numbers = [t.text for t in elements(CHART, "text") if t.get("fill")]
    assert [text for text in numbers if text] == ["1", "1"]  # at the point, at its explanation
    texts = [t.text or "" for t in elements(CHART, "text")]
    said = " ".join(text for text in texts if "explanation" in text)
    assert said == CHART.references[0].name.strip()


def test_equal_charts_are_equal_text():
    assert svg(CHART) == svg(CHART) and not re.search(r"\d\.\d{5,}", svg(CHART))


@pytest.mark.parametrize(
    "points,message", [((), "no points"), (((2, 0.0),), "cannot"), (((2, float("nan")),), "cannot")]
)
def test_what_cannot_be_drawn_is_refused(points, message):
    with pytest.raises(ValueError, match=message):
        svg(Chart("t", "x", "y", (Series("a", points),)))
