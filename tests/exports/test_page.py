"""The HTML page: what it holds, read back here."""

import base64
import io
import json
import re
import zlib
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lite3r_jax.errors import InputError
from lite3r_jax.exports.page import PageOptions, _pack, write_page
from lite3r_jax.exports.points import PointOptions, diagonal, select_points
from lite3r_jax.scene import Scene

ODD_NAMES = (
    "a/Tom & Jerry's.jpg",
    "\u00fcber \u6771\u4eac \U0001f3e0.png",
    "{{data}} &lt;b&gt;.jpg",
    "d.jpg",
)


class PageReader(HTMLParser):
    """Elements by id with their text, and everything that could load or run something."""

    def __init__(self, text: str):
        super().__init__()
        self.texts: dict[str, str] = {}
        self.scripts: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style", "title"):
            self._open = [dict(attrs).get("id") or tag]
            self.texts[self._open[0]] = ""

    def handle_endtag(self, tag):
        if tag in ("script", "style", "title"):
            self._open = []

    def handle_data(self, data):
        for name in self._open:
            self.texts[name] += data


def unpack(text: str, count: int, widths: list[int]) -> list[np.ndarray]:
    """The packing as its definition says, number by number."""
    planes = zlib.decompress(base64.b64decode(text))
    assert len(planes) == count * sum(widths)
    streams, at = [], 0
    for width in widths:
        values, value = [], 0
        for i in range(count):
            coded = 0
            for plane in range(width):
                coded = coded * 256 + planes[at + plane * count + i]
            value += -(coded + 1) // 2 if coded % 2 else coded // 2
            values.append(value)
        at += width * count
        streams.append(np.array(values))
    return streams


def read(path) -> tuple[PageReader, dict]:
    reader = PageReader(path.read_text(encoding="utf-8"))
    return reader, json.loads(reader.texts["scene"])


def read_points(reader: PageReader, data: dict) -> list[np.ndarray]:
    x, y, z, *rest = unpack(
        reader.texts["points"], data["points"]["count"], [4, 4, 4, 2, 2, 2, 2, 4, 1]
    )
    low, step = np.array(data["points"]["low"]), data["points"]["step"]
    return [low + step * np.stack([x, y, z], -1), np.stack(rest[:3], -1), *rest[3:]]


@pytest.fixture(scope="module")
def page(room, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "scene.html"
    write_page(room.scene, path, PageOptions(title="A <b>wall</b>", max_points=3000))
    return path


# -- content ----------------------------------------------------------------------------------


def test_points_are_those_of_every_confidence(page, room):
    reader, data = read(page)
    want = select_points(room.scene, PointOptions(conf_percentile=0, max_points=3000))
    xyz, rgb, level, view, _ = read_points(reader, data)
    assert data["points"]["count"] == len(want) == 3000
    assert np.abs(xyz - want.xyz).max() < 2e-5 * diagonal(want.xyz)
    np.testing.assert_array_equal(rgb, want.rgb)
    np.testing.assert_array_equal(view, want.view)
    levels = np.array(data["points"]["confidence"])
    assert len(levels) == 256 and (levels[level] <= want.conf).all()
    above = np.append(levels, np.inf)[level + 1]
    assert (want.conf < above).all()


@pytest.mark.parametrize("percentile", [50.0, 10.0, -1.0])
def test_slider_begins_where_the_other_exports_end(room, tmp_path, percentile):
    points = PointOptions(conf_percentile=percentile, max_points=0)
    conf = 1 + np.exp(3 * room.scene.depth_conf - 4)  # the median is 8.4
    scene = replace(room.scene, depth_conf=conf)
    write_page(scene, tmp_path / "p.html", PageOptions(max_points=0), points)
    reader, data = read(tmp_path / "p.html")
    kept = len(select_points(scene, points)) / data["points"]["count"]
    assert data["points"]["percentile"] == pytest.approx(100 * (1 - kept), abs=1.1)
    level = read_points(reader, data)[2]
    shown = level >= 256 * round(data["points"]["percentile"]) // 100
    assert abs(shown.mean() - kept) < 0.015 and 0 < kept < 0.999


def test_backgrounds_are_marked_unless_they_are_masked(room, tmp_path):
    images = room.scene.images.copy()
    images[:, :20], images[0, 40:] = 0, 255
    scene = replace(room.scene, images=images)
    write_page(scene, tmp_path / "p.html", PageOptions(max_points=0))
    reader, data = read(tmp_path / "p.html")
    rgb, marks = (read_points(reader, data)[k] for k in (1, 4))
    np.testing.assert_array_equal(marks & 2 > 0, (rgb == 0).all(-1))
    np.testing.assert_array_equal(marks & 4 > 0, (rgb == 255).all(-1))
    assert data["points"]["backgrounds"] == {
        "sky": 0, "black": (rgb == 0).all(-1).sum(), "white": (rgb == 255).all(-1).sum(),
    }  # fmt: skip
    write_page(scene, tmp_path / "m.html", points=PointOptions(mask="black,edges"))
    reader, data = read(tmp_path / "m.html")
    assert not (read_points(reader, data)[1] == 0).all(-1).any()
    assert data["points"]["mask"] == ["black", "edges"]
    assert list(data["points"]["backgrounds"]) == ["sky", "white"]


def test_outliers_cost_the_scene_no_precision(room, tmp_path):
    depth = room.scene.depth.copy()
    depth[1, 20:22, 30] = 3000.0
    scene = replace(room.scene, depth=depth)
    write_page(scene, tmp_path / "p.html", PageOptions(max_points=0))
    reader, data = read(tmp_path / "p.html")
    want = select_points(scene, PointOptions(conf_percentile=0, max_points=0))
    xyz, *_ = read_points(reader, data)
    assert np.ptp(want.xyz[:, 2]) > 1000 > 100 * diagonal(want.xyz)
    assert np.abs(xyz - want.xyz).max() < 1e-4 * diagonal(want.xyz)


def test_depth_and_confidence_are_those_of_the_scene(page, room):
    reader, data = read(page)
    scene = room.scene
    assert data["pictureSize"] == [84, 70]
    levels = np.array(data["depth"]["confidence"])
    for s in range(scene.views):
        codes, level = unpack(reader.texts[f"maps-{s}"], 84 * 70, [3, 2])
        codes, level = codes.reshape(70, 84), level.reshape(70, 84)
        valid = scene.inside()[s] & np.isfinite(scene.depth[s]) & (scene.depth[s] > 0)
        np.testing.assert_array_equal(codes > 0, valid)
        depth = np.exp(data["depth"]["low"] + (codes - 1) * data["depth"]["step"])
        np.testing.assert_allclose(depth[valid], scene.depth[s][valid], rtol=1.1e-4)
        assert (levels[level] <= scene.depth_conf[s]).all()
        assert (scene.depth_conf[s] < np.append(levels, np.inf)[level + 1]).all()
    assert (codes == 0).any()


def test_photos_are_those_of_the_scene(page, room):
    reader, _ = read(page)
    for s, want in enumerate(room.scene.images):
        with Image.open(io.BytesIO(base64.b64decode(reader.texts[f"photo-{s}"]))) as photo:
            assert photo.format == "JPEG"
            assert np.abs(np.asarray(photo, int) - want).mean() < 4


def test_cameras_are_those_of_the_scene(page, room):
    _, data = read(page)
    for s, view in enumerate(data["views"]):
        assert view["name"] == room.scene.names[s]
        np.testing.assert_array_equal(
            np.reshape(view["extrinsics"], (3, 4)), room.scene.extrinsics[s]
        )
        fx, fy, cx, cy = view["intrinsics"]
        np.testing.assert_array_equal(
            [[fx, 0, cx], [0, fy, cy], [0, 0, 1]], room.scene.intrinsics[s]
        )
    assert data["views"][1]["crop"] == [0, 0, 84, 70]
    assert data["views"][3]["crop"] == [3.25, 7.5, 80.75, 62.5]


def test_large_pictures_are_scaled_and_depth_stays_measured(room, tmp_path):
    write_page(room.scene, tmp_path / "p.html", PageOptions(max_image_side=64))
    reader, data = read(tmp_path / "p.html")
    assert data["pictureSize"] == [64, 53]
    codes, _ = unpack(reader.texts["maps-1"], 64 * 53, [3, 2])
    depth = np.exp(data["depth"]["low"] + (codes - 1) * data["depth"]["step"])
    nearest = np.abs(depth[:, None] - room.scene.depth[1].ravel()).min(-1)
    assert nearest.max() < 1e-3
    # the same place: a map that was scaled with an offset would be off by the slope of the wall
    at = room.scene.depth[1][35, 42]
    assert abs(depth.reshape(53, 64)[26, 32] - at) < 0.01 * at


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-(2**21), 2**21), min_size=1, max_size=40))
def test_packing_keeps_every_number(values):
    got = unpack(_pack((np.array(values), 4), (np.array(values) % 7, 2)), len(values), [4, 2])
    np.testing.assert_array_equal(got[0], values)
    np.testing.assert_array_equal(got[1], np.array(values) % 7)


# -- self-contained and safe ------------------------------------------------------------------


def test_nothing_is_loaded_from_elsewhere(page):
    text = page.read_text(encoding="utf-8")
    assert not re.search(
        r"https?:|//[a-z]+\.|\bimport\b|@import|url\(|fetch\(|XMLHttp|WebSocket", text
    )
    reader = PageReader(text)
    for tag, attributes in reader.tags:
        assert tag not in {"link", "iframe", "object", "embed", "base", "a"}
        assert not {"src", "href", "srcset", "action", "style"} & attributes.keys()
        assert not [name for name in attributes if name.startswith("on")]


def test_policy_allows_only_what_is_inside(page):
    reader, _ = read(page)
    policy = next(a["content"] for t, a in reader.tags if a.get("http-equiv"))
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    assert "unsafe" not in policy and "*" not in policy and "connect-src" not in rules
    assert rules["script-src"].startswith("'sha256-") and " " not in rules["script-src"]


def test_names_and_report_cannot_leave_their_place(room, tmp_path):
    scene = replace(room.scene, names=ODD_NAMES)
    report = {"note": "</script><script>alert(1)</script><!--", "\u2028": {"seconds": 1.5}}
    path = tmp_path / "p.html"
    write_page(
        scene,
        path,
        PageOptions(title="</title><script>{{data}} & '\"", max_points=100),
        report=report,
    )
    reader, data = read(path)
    assert [view["name"] for view in data["views"]] == list(ODD_NAMES)
    assert data["report"] == report
    assert reader.texts["title"] == "</title><script>{{data}} & '\""
    scripts = [attributes for tag, attributes in reader.tags if tag == "script"]
    assert len(scripts) == 3 + 2 * scene.views
    assert sum("type" not in attributes for attributes in scripts) == 1
    assert path.read_text(encoding="utf-8").count('id="points"') == 1


def test_equal_scenes_give_equal_bytes(page, room, tmp_path):
    write_page(room.scene, tmp_path / "p.html", PageOptions(title="A <b>wall</b>", max_points=3000))
    assert (tmp_path / "p.html").read_bytes() == page.read_bytes()


# -- limits and bad input ---------------------------------------------------------------------


def noisy(views: int, height: int = 140, width: int = 182) -> Scene:
    """Views that hardly compress."""
    rng = np.random.default_rng(0)
    shape = (views, height, width)
    pose = np.concatenate([np.eye(3), np.zeros((3, 1))], -1)
    lens = [[150, 0, width / 2], [0, 150, height / 2], [0, 0, 1]]
    return Scene(
        names=tuple(f"{i}.jpg" for i in range(views)),
        images=rng.integers(0, 256, (*shape, 3), np.uint8),
        depth=rng.uniform(1, 9, shape).astype(np.float32),
        depth_conf=rng.uniform(1, 9, shape).astype(np.float32),
        extrinsics=np.tile(pose, (views, 1, 1)).astype(np.float32),
        intrinsics=np.tile(lens, (views, 1, 1)).astype(np.float32),
        boxes=np.tile(np.array([0, 0, width, height]), (views, 1)).astype(np.float32),
        source_sizes=np.tile([width, height], (views, 1)),
    )


def test_page_stays_below_its_limit_with_smaller_pictures(tmp_path):
    scene, calls = noisy(12), []
    whole = PageOptions(max_points=2000)
    write_page(scene, tmp_path / "whole.html", whole)
    size = (tmp_path / "whole.html").stat().st_size
    write_page(
        scene, tmp_path / "p.html", replace(whole, max_megabytes=size / 2e6),
        progress=lambda: calls.append(1),
    )  # fmt: skip
    _, data = read(tmp_path / "p.html")
    assert 0.25 * size < (tmp_path / "p.html").stat().st_size <= size / 2
    assert 64 <= data["pictureSize"][0] < 182
    assert len(calls) == scene.views


def test_impossible_limit_is_refused_and_nothing_is_left(tmp_path):
    with pytest.raises(InputError, match=r"12 views do not fit into page\.max_megabytes"):
        write_page(noisy(12), tmp_path / "p.html", PageOptions(max_points=100, max_megabytes=0.15))
    assert list(tmp_path.iterdir()) == []


def test_existing_file_is_kept_unless_overwriting_is_allowed(room, tmp_path):
    path = tmp_path / "p.html"
    path.write_text("mine")
    with pytest.raises(InputError, match=r"p\.html: exists already"):
        write_page(room.scene, path)
    assert path.read_text() == "mine"
    write_page(room.scene, path, PageOptions(max_points=10), overwrite=True)
    assert path.read_text().startswith("<!doctype html>")


@pytest.mark.parametrize("report", [{"a": float("nan")}, {"a": np.zeros(2)}, {"a": object()}])
def test_report_that_is_not_plain_data_is_refused(room, tmp_path, report):
    with pytest.raises(InputError, match="report must hold strings, finite numbers"):
        write_page(room.scene, tmp_path / "p.html", report=report)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "key,value", [("max_points", -1), ("max_image_side", 8), ("max_megabytes", 0.0)]
)
def test_impossible_options_are_refused_by_name(key, value):
    with pytest.raises(InputError, match=rf"^page\.{key}: expected .*{value}"):
        PageOptions(**{key: value})
