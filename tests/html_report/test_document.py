"""The frame of pages."""

import re

import numpy as np
import pytest

from lite3r_jax.html_report.colors import INFERNO, VIRIDIS, color_map, gradient
from lite3r_jax.html_report.document import (
    HIGHER,
    LOWER,
    bullets,
    charts,
    details,
    document,
    image,
    loaded,
    paragraph,
    table,
)
from tests.chromium import Chromium


def test_whatever_is_said_stands_there_as_text():
    bad = '<script>&"'
    text = document(
        bad,
        bad,
        {
            bad: table([["variant", bad], [bad, f"1 [{bad}, 2]"]])
            + bullets([bad])
            + paragraph(bad),
            "b": details(bad, {bad: bad}) + image(b"x", bad),
        },
    )
    assert "<script" not in text and text.count("&lt;script&gt;&amp;") >= 12
    assert re.search(r'alt="&lt;script&gt;&amp;&quot;" src="data:image/jpeg;base64,eA=="', text)


def test_a_page_allows_nothing_but_its_own_style_and_pictures():
    text = document("t", "n", {"A b": "", "C": ""})
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy and policy[1] == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert re.findall(r'(?:src|href)="([^"]*)"|url\(', text) == ["#a-b", "#c"]
    assert '<section id="a-b">' in text and '<section id="c">' in text


def test_an_interval_stands_below_its_number_and_a_new_group_below_a_line():
    text = table([["views", "variant"], ["2", "0.5 [0.4, 0.6]"], ["2", "b"], ["4", "c"]], group=0)
    assert '<td data-name="views">2</td>' in text
    assert '<td class="text" data-name="variant">0.5 <small>[0.4, 0.6]</small></td>' in text
    assert text.count('class="next"') == 2 and text.index("next") < text.index("0.5")


def test_arrows_say_what_is_better():
    cells = [["variant", "AbsRel", "AUC"], ["a", "0.1", "0.9"]]
    text = table(cells, better={"AbsRel": LOWER, "AUC": HIGHER, "other": LOWER})
    assert "<th>AbsRel\u00a0\u2193</th><th>AUC\u00a0\u2191</th>" in text
    assert '<th class="text">variant</th>' in text
    assert '<td data-name="AUC\u00a0\u2191">0.9</td>' in text, "on a phone, beside the number"
    assert "\u2193" not in table(cells)


@pytest.mark.parametrize(
    "weights,name",
    [
        ("vggt-tiny", "vggt-tiny"),
        ("facebook/VGGT-1B", "facebook/VGGT-1B"),
        ("runs/a/weights/", "weights"),
        ("./mine/weights", "weights"),
        ("/data/vggt-own", "vggt-own"),
        ("", "vggt"),
    ],
)
def test_models_are_called_as_they_were_loaded(weights, name):
    assert loaded({"backbone": "vggt", "weights": weights}) == name


COLUMNS = ["variant", *(f"a long heading {k}" for k in range(14))]
WIDE = [COLUMNS, *([f"model {n}", *(f"0.{k}123 [0.1, 0.2]" for k in range(14))] for n in range(3))]


@pytest.mark.slow
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_columns_off_the_screen_are_hinted_at_and_a_phone_shows_all(tmp_path, theme):
    path = tmp_path / "report.html"
    path.write_text(document("A report", "note", {"Quality": table(WIDE)}))
    with Chromium() as browser:
        browser.open(path, (700, 600), theme=theme)
        box = [round(v) for v in browser.box(".wide")]
        assert browser.run("document.querySelector('.wide').scrollWidth") > box[2] + 100

        def edges() -> tuple[float, float]:
            left, top, width, height = box
            rows = browser.screenshot()[top + 8 : top + height - 8].astype(float).mean(-1)
            ground = np.median(rows[:, left + 30 : left + width - 30])
            return tuple(
                float(np.median(np.abs(rows[:, x] - ground))) for x in (left + 2, left + width - 4)
            )

        left, right = edges()
        assert right > 20 > 5 > left, "more columns to the right"
        browser.run("document.querySelector('.wide').scrollLeft = 1e6")
        left, right = edges()
        assert left > 20 > 5 > right
        browser.open(path, (390, 844), theme=theme, touch=True)
        assert browser.run("document.documentElement.scrollWidth <= innerWidth")
        cells = "[...document.querySelectorAll('td')].map(c => c.getBoundingClientRect())"
        assert browser.run(
            f"{cells}.every(b => b.width > 0 && b.left >= 0 && b.right <= innerWidth)"
        )
        assert "a long heading 7" in browser.run(
            "getComputedStyle(document.querySelectorAll('td')[8], '::before').content"
        )


def test_nothing_to_list_or_draw_leaves_no_trace():
    assert bullets([]) == charts([]) == ""


def test_color_maps_get_brighter_evenly():
    for colors, low, high in ((INFERNO, 2, 230), (VIRIDIS, 30, 200)):
        luma = color_map(np.linspace(-0.5, 1.5, 600), colors) @ [0.2126, 0.7152, 0.0722]
        assert (np.diff(luma) > -0.5).all() and luma[0] < low and luma[-1] > high
        assert (color_map(np.array([0.0, 1.0]), colors) == (colors[0], colors[-1])).all()
        assert gradient(colors).count("rgb(") == len(colors)
