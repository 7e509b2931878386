"""The frame of pages."""

import re

import numpy as np

from lite3r_jax.html_report.colors import INFERNO, VIRIDIS, color_map, gradient
from lite3r_jax.html_report.document import (
    bullets,
    charts,
    details,
    document,
    image,
    paragraph,
    table,
)


def test_whatever_is_said_stands_there_as_text():
    bad = '<script>&"'
    text = document(
        bad,
        bad,
        {
            bad: table([["row", bad], [bad, f"1 [{bad}, 2]"]]) + bullets([bad]) + paragraph(bad),
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
    text = table([["views", "row"], ["2", "0.5 [0.4, 0.6]"], ["2", "b"], ["4", "c"]], group=0)
    assert "<td>2</td>" in text and '<td class="text">0.5 <small>[0.4, 0.6]</small></td>' in text
    assert text.count('class="next"') == 2 and text.index("next") < text.index("0.5")


def test_nothing_to_list_or_draw_leaves_no_trace():
    assert bullets([]) == charts([]) == ""


def test_color_maps_get_brighter_evenly():
    for colors, low, high in ((INFERNO, 2, 230), (VIRIDIS, 30, 200)):
        luma = color_map(np.linspace(-0.5, 1.5, 600), colors) @ [0.2126, 0.7152, 0.0722]
        assert (np.diff(luma) > -0.5).all() and luma[0] < low and luma[-1] > high
        assert (color_map(np.array([0.0, 1.0]), colors) == (colors[0], colors[-1])).all()
        assert gradient(colors).count("rgb(") == len(colors)
