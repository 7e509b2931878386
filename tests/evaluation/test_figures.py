"""Pictures of a scene whose depth, errors and failures are known, and the page of them."""

import io
import re
from dataclasses import asdict, replace

import numpy as np
import pytest
from PIL import Image

from lite3r_jax.errors import InputError
from lite3r_jax.evaluation.evaluator import measure, report
from lite3r_jax.evaluation.figures import ERROR_RANGE, SceneFigures, figures
from lite3r_jax.evaluation.options import EvaluateOptions
from lite3r_jax.evaluation.page import page
from lite3r_jax.evaluation.predictor import Output
from lite3r_jax.evaluation.record import Record
from lite3r_jax.evaluation.score import ScoreOptions, in_unit
from lite3r_jax.evaluation.table import to_json
from lite3r_jax.evaluation.thumbnails import SIDE, Thumbnails, pack, predicted, truth, unpack
from lite3r_jax.html_report.colors import VIRIDIS, color_map
from tests.chromium import Chromium
from tests.evaluation.scenes import SIZE, Scenes, oracle

EXACT = ScoreOptions(alignment="none")


def stage(views=3, *, depth=True, factors=(1.0, 1.1), failed=False):
    """A scene, and rows whose depth is the true one times a factor."""
    sample = in_unit(Scenes(1, views).read("scene0", range(views), SIZE))
    record = Record("scene0", tuple(range(views)), {"abs_rel": 0.125})
    rows = {}
    for factor in factors:
        output = Output(sample.depth * np.float32(factor), sample.extrinsics, sample.intrinsics)
        rows[f"times-{factor:g}"] = record, predicted(output, views, SIZE)
    if failed:
        rows["<broken>"] = replace(record, failure="ran <out>"), None
    true = truth(sample if depth else replace(sample, depth=None, mask=None))
    return SceneFigures("planes, 3 views", record, true, rows)


def pixels(jpeg):
    assert isinstance(jpeg, bytes)
    return np.asarray(Image.open(io.BytesIO(jpeg))).astype(int)


def test_an_error_has_the_color_of_its_share_and_no_depth_is_gray():
    figure = figures(stage(), EXACT)
    assert [panel.name for panel in figure.panels] == ["truth", "times-1", "times-1.1"]
    assert figure.caption == "scene0, frames 0, 1, 2"
    low, high = np.log(ERROR_RANGE)
    for panel, share in zip(figure.panels[1:], (1e-9, 0.1), strict=True):
        want = color_map(np.array((np.log(share) - low) / (high - low)), VIRIDIS)
        error = pixels(panel.views[1]["error"])
        assert np.abs(error[2:, 2:] - want).max() <= 12  # JPEG
    assert np.ptp(pixels(figure.panels[0].views[0]["true depth"])[0, 0]) < 40


def test_after_an_alignment_a_wrong_unit_is_no_error():
    exact, scaled = figures(stage(1), ScoreOptions()).panels[1:]
    unaligned = figures(stage(1), EXACT).panels[2]

    def maps(panel):
        return [pixels(one) for one in (panel.points, *panel.views[0].values())]

    assert all(np.abs(a - b).mean() < 0.5 for a, b in zip(maps(exact), maps(scaled), strict=True))
    far = [np.abs(a - b).mean() for a, b in zip(maps(exact), maps(unaligned), strict=True)]
    assert far[0] < 0.5 < 5 < min(far[1:])  # points are compared after a similarity


def test_what_is_not_there_is_said_in_words():
    figure = figures(stage(failed=True), EXACT)
    last = figure.panels[-1]
    assert (last.note, last.views) == ("failed: ran <out>", ())
    bare = figures(stage(depth=False), EXACT)
    assert bare.panels[0].points == "no true points"
    assert bare.panels[0].views[0]["true depth"] == "the dataset has no depth"
    assert bare.panels[1].views[0]["error"] == "stands in for the truth"
    assert pixels(bare.panels[2].views[0]["error"]).shape == (*SIZE, 3)
    scene = stage()
    shown = scene.variants["times-1"][1]
    blind = replace(scene, variants={"a": (scene.record, replace(shown, depth=None)),
                                 "b": (scene.record, replace(shown, extrinsics=None))})  # fmt: skip
    a, b = figures(blind, EXACT).panels[1:]
    assert a.points == a.views[0]["depth"] == "the model has no depth head"
    assert b.points == "the model has no camera head" and isinstance(b.views[0]["depth"], bytes)
    lost = replace(scene, truth=None, record=replace(scene.record, failure="cannot be read"))
    assert figures(lost, EXACT).caption.endswith("failed: cannot be read")


def test_what_is_kept_is_thinned_and_comes_back_as_it_was(tmp_path):
    sample = in_unit(Scenes(1, 6).read("scene0", range(6), (500, 300)))
    kept = truth(sample)
    assert kept.views.tolist() == [0, 1, 3, 4]
    assert kept.images is not None and kept.images.shape == (4, SIDE, 134, 3)
    # the center of a pixel of the small map, in the large one
    k, small = sample.intrinsics[0], kept.intrinsics[0]
    ray = np.array([0.1, -0.2, 1])
    large_at, small_at = k @ ray, small @ ray
    scale = np.array([134 / 300, SIDE / 500])
    np.testing.assert_allclose(small_at[:2], (large_at[:2] + 0.5) * scale - 0.5, rtol=1e-5)
    path = tmp_path / "truth.npz"
    path.write_bytes(pack(kept))
    again = unpack(path)
    assert pack(again) == pack(kept) and again.depth.dtype == np.float32
    np.testing.assert_array_equal(again.depth, kept.depth)
    path.write_bytes(pack(Thumbnails(kept.views))[:60])
    with pytest.raises(InputError, match=r"truth.npz: cannot be read as NPZ .* delete it"):
        unpack(path)


def body(row="dense-float32", views=(3,)):
    entries = []
    for count in views:
        source = Scenes(4, count, broken=(2,))
        records = measure(oracle(source), source.protocol(), source)
        entries += to_json({row: report(source.protocol(), records, resamples=20)})
    score = asdict(ScoreOptions())
    return {
        "settings": {"backbone": "vggt", "weights": "<w>", "evaluate": {"score": score}},
        "versions": {"jax": "0"}, "device": {"count": 1, "kind": "cpu", "machine": "m"},
        "results": entries,
    }  # fmt: skip


def test_the_page_has_tables_charts_pictures_and_escapes_names():
    scenes = [stage(failed=True), replace(stage(), protocol="<planes>")]
    text = page(body(views=(2, 3)), scenes)
    assert text == page(body(views=(2, 3)), scenes)
    assert "<h3>planes, 3 views of 8x6, 4 samples</h3>" in text and text.count("<svg") == 2
    assert "baseline: constant depth" in text and "scene2 failed: scene2: is damaged" in text
    assert (
        "AbsRel 0.125" in text
        and "&lt;broken&gt;" in text
        and "ran &lt;out&gt;" in text
        and "&lt;planes&gt;" in text
    )
    assert not re.search("<broken>|<out>|<planes>|<w>|<script", text)
    # two scenes, three or two rows that work, three views: points, and two maps of every view
    assert text.count("data:image/jpeg") == 2 * 3 * (1 + 2 * 3)
    sought = re.findall(r'href="([^"]*)"', text)
    assert sought == ["#quality", "#pictures", "#settings"]
    assert "Pictures" not in page(body(), [])
    with pytest.raises(InputError, match=r"evaluate.pictures: expected 0 or more, got -1"):
        EvaluateOptions(pictures=-1)


def test_scenes_beyond_the_limit_are_left_out_and_counted_the_second_ones_first():
    first, second = stage(), replace(stage(), record=replace(stage().record, scene="again"))
    other = replace(stage(), protocol="other")
    one = figures(first, ScoreOptions()).size
    text = page(body(), [first, second, other], limit=2 * one + one // 2)
    assert "1 scenes are left out" in text and "again" not in text
    assert text.count("scene0, frames") == 2 and "<h3>other</h3>" in text


@pytest.mark.slow
def test_a_browser_shows_it_offline_and_narrow(tmp_path):
    path = tmp_path / "report.html"
    path.write_text(page(body(views=(2, 3)), [stage(failed=True)]))
    with Chromium() as browser:
        for size, theme in (((1280, 900), "light"), ((400, 800), "dark")):
            browser.open(path, size, theme=theme)
            picture = browser.screenshot()
            assert (picture[3, 3].mean() > 128) == (theme == "light")
            assert browser.run("document.documentElement.scrollWidth") <= size[0]
            broken = "[...document.images].filter(i => !i.complete || !i.naturalWidth).length"
            assert browser.run("document.images.length") == 21 and browser.run(broken) == 0
            browser.run("document.querySelector('.scene').scrollIntoView()")
            left, top, width, height = map(int, browser.box(".scene img"))
            assert width > 200 and height > 150
            drawn = browser.screenshot(tmp_path / f"{theme}.png")
            part = drawn[top : top + height, left : left + width].reshape(-1, 3)
            assert len(np.unique(part, axis=0)) > 50
        loaded = [url for url in browser.requests if not url.startswith("data:image/jpeg;")]
        assert browser.errors == [] and loaded == [path.as_uri()]
