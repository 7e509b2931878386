"""The page of results, as text and in a browser."""

import re

import pytest

from lite3r_jax.backbones.base import get_backbone
from lite3r_jax.benchmarking.literature import published_for
from lite3r_jax.benchmarking.page import page
from lite3r_jax.benchmarking.report import charts
from tests.benchmarking.test_report import body
from tests.chromium import Chromium


def estimate(value, low=None, high=None, **missing):
    return {"value": value, "low": low, "high": high, "scenes": 2, "missing": missing}


EVALUATION = {
    "settings": {"backbone": "vggt", "evaluate": {"variants": "<b>"}},
    "results": [
        {
            "variant": row, "protocol": "synthetic:test", "views": 2, "samples": 3,
            "size": {"height": 28, "width": 42},
            "failures": [{"scene": "s3", "frames": [], "reason": "not <read>"}],
            "metrics": {
                "abs_rel": estimate(value, value - 0.01, value + 0.01),
                "auc_30": estimate(None, **{"no camera": 2}),
            },
        }
        for row, value in (("dense-float32", 0.05), ("sla_global-bfloat16", 0.0625))
    ],
}  # fmt: skip


def everything():
    published = published_for(get_backbone("vggt").default_config)
    report = body(published=published)
    return page(report, charts(report, published, EVALUATION), EVALUATION)


def test_the_page_has_tables_charts_reasons_and_settings_and_escapes_them():
    text = everything()
    assert text.count("<svg") == 4 and text == everything()
    assert "0.0625 <small>[0.0525, 0.0725]</small>" in text and ">n/a<" in text
    assert "<li>AUC@30: not available for 2 samples: no camera" in text
    assert "s3 failed: not &lt;read&gt;" in text and "<b>" not in text
    assert "does not fit: 4 views" in text and "A100-PCIE-40GB" in text and '"runs": 10' in text
    sought = re.findall(r'(?:src|href)="([^"]*)"|url\(', text)
    assert sought == ["#cost", "#quality", "#published-figures", "#settings"]


def test_a_page_without_an_evaluation_says_nothing_of_quality():
    report = body()
    text = page(report, charts(report))
    assert "Quality" not in text and "Published figures" not in text and "Cost" in text


@pytest.mark.slow
def test_a_browser_shows_it_offline_and_narrow(tmp_path):
    path = tmp_path / "report.html"
    path.write_text(everything())
    with Chromium() as browser:
        for size, theme in (((1280, 900), "light"), ((400, 800), "dark")):
            browser.open(path, size, theme=theme)
            picture = browser.screenshot(tmp_path / f"{theme}.png")
            assert (picture[3, 3].mean() > 128) == (theme == "light")
            wide = "document.documentElement.scrollWidth"
            assert browser.run(wide) <= size[0]  # tables scroll by themselves
            assert browser.run("document.querySelectorAll('svg').length") == 4
            box = browser.box("svg")
            assert box[2] > 300 and box[3] > 150
        assert browser.errors == [] and browser.requests == [path.as_uri()]
