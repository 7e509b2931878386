"""The HTML page as Chromium shows it."""

import json
import re
import time
from dataclasses import replace

import numpy as np
import pytest
import trimesh
from PIL import Image

from lite3r_jax.exports.page import write_page
from lite3r_jax.exports.points import PointOptions, select_points
from lite3r_jax.scene import UNITS, Scene
from tests.chromium import Chromium

TARGET = np.array([0.35, -0.2, 2.0])  # in the camera frame of the first view
RED, BLUE = np.array([230, 20, 20]), np.array([20, 60, 220])


@pytest.fixture(scope="module")
def marked(tmp_path_factory):
    """A blue wall, red around one place, and two cameras with principal points of their own."""
    height, width = 112, 154
    poses, lenses, images, depths = [], [], [], []
    for angle, cx in ((0.0, 70.0), (0.35, 90.0)):
        turn = np.array(
            [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]]
        )
        shift = np.array([0, 0, 2.0]) - turn @ [0, 0, 2.0]
        lens = np.array([[120.0, 0, cx], [0, 126.0, 50.0], [0, 0, 1]])
        v, u = np.mgrid[0:height, 0:width]
        rays = np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(lens).T @ turn
        center = -turn.T @ shift
        depth = (2.0 - center[2]) / rays[..., 2]
        world = center + rays * depth[..., None]
        near = np.linalg.norm(world - TARGET, axis=-1) < 0.12
        images.append(np.where(near[..., None], RED, BLUE))
        depths.append(depth)
        poses.append(np.concatenate([turn, shift[:, None]], -1))
        lenses.append(lens)
    scene = Scene(
        names=("one & 'only'.jpg", "two \u6771.jpg"),
        images=np.stack(images).astype(np.uint8),
        depth=np.stack(depths).astype(np.float32),
        depth_conf=np.linspace(1, 5, 2 * height * width)
        .reshape(2, height, width)
        .astype(np.float32),
        extrinsics=np.stack(poses).astype(np.float32),
        intrinsics=np.stack(lenses).astype(np.float32),
        boxes=np.tile([0, 0, width, height], (2, 1)).astype(np.float32),
        source_sizes=np.tile([width, height], (2, 1)),
    )
    path = tmp_path_factory.mktemp("marked") / "page.html"
    write_page(
        scene,
        path,
        points=PointOptions(conf_percentile=0),
        report={"dtype": "float32"},
    )
    return scene, path


@pytest.fixture(scope="module")
def browser():
    with Chromium(timeout=300) as chromium:
        yield chromium


def opened(browser: Chromium, path, fragment: str = "", **options) -> Chromium:
    browser.errors.clear()
    browser.open(path.as_uri() + fragment, **options)
    browser.wait("document.documentElement.classList.contains('complete')")
    return browser


def reddish(image: np.ndarray) -> np.ndarray:
    return (image[..., 0] > 150) & (image[..., 1] < 90) & (image[..., 2] < 90)


def stage(browser: Chromium) -> np.ndarray:
    left, top, width, height = (round(v) for v in browser.box("#canvas"))
    return browser.screenshot()[top : top + height, left : left + width]


def center_of(mask: np.ndarray) -> np.ndarray:
    rows, columns = np.nonzero(mask)
    return np.array([columns.mean(), rows.mean()]) + 0.5


@pytest.mark.slow
@pytest.mark.parametrize("view", [0, 1])
@pytest.mark.parametrize("size", [(1200, 800), (420, 900)])
def test_points_are_where_the_camera_saw_them(browser, marked, view, size):
    scene, path = marked
    opened(browser, path, f"#points={view}", size=size)
    browser.run("overlay.value = 0; overlay.dispatchEvent(new Event('input'))")
    # on a slope, points cover their neighbors on the far side by their radius
    browser.run("size.value = -1; size.dispatchEvent(new Event('input'))")
    image = stage(browser)
    height, width = image.shape[:2]
    camera = scene.extrinsics[view, :, :3] @ TARGET + scene.extrinsics[view, :, 3]
    u, v = (scene.intrinsics[view] @ camera)[:2] / camera[2]
    zoom = min(width / 154, height / 112)
    want = [(u + 0.5 - 77) * zoom + width / 2, (v + 0.5 - 56) * zoom + height / 2]
    seen = reddish(image)
    radius = 0.12 * scene.intrinsics[view, 0, 0] / camera[2] * zoom
    assert 0.4 < seen.sum() / (np.pi * radius**2) < 1.2
    assert np.abs(center_of(seen) - want).max() < 0.5 * zoom
    # the photo, laid over the points, shows the same thing at the same place
    browser.run("overlay.value = 100; overlay.dispatchEvent(new Event('input'))")
    assert np.abs(center_of(reddish(stage(browser))) - want).max() < 0.5 * zoom
    assert browser.errors == []


@pytest.mark.slow
@pytest.mark.parametrize("theme", ["dark", "light"])
@pytest.mark.parametrize("size", [(1200, 800), (390, 844)])
@pytest.mark.parametrize("part", ["points", "depth", "about"])
def test_page_opens_from_disk_without_errors_or_requests(browser, marked, theme, size, part):
    _, path = marked
    opened(browser, path, f"#{part}", theme=theme, size=size, touch=size[0] < 600)
    image = browser.screenshot()
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 50
    ground = np.median(image[:40].reshape(-1, 3), axis=0).mean()  # of the heading
    assert ground > 200 if theme == "light" else ground < 80
    assert browser.errors == []
    assert [r for r in browser.requests if not r.startswith("data:image/jpeg")] == [path.as_uri()]
    # nothing is wider than the screen
    assert browser.run("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.slow
def test_policy_stops_what_is_not_part_of_the_page(browser, marked):
    _, path = marked
    opened(browser, path)
    browser.run(
        "document.body.append(Object.assign(new Image(), {src: 'http://127.0.0.1:9/a.png'}))"
    )
    browser.run(
        "window.hacked = 0; document.body.insertAdjacentHTML('beforeend',"
        " '<img src=data:, onerror=hacked=1>')"
    )
    browser.wait("document.images.length > 3")
    browser.settle()
    assert browser.run("hacked") == 0
    assert any("Content Security Policy" in error for error in browser.errors)


@pytest.mark.slow
def test_film_strip_flies_to_the_camera_and_escape_leaves_it(browser, marked):
    _, path = marked
    opened(browser, path)
    assert browser.run("document.getElementById('through').hidden")
    start = stage(browser)
    left, top, width, height = browser.box("#strip li:nth-child(2) button")
    browser.click(left + width / 2, top + height / 2)
    assert browser.run("document.getElementById('through-name').textContent") == "two \u6771.jpg"
    assert (
        browser.run("document.querySelector('#strip [aria-current=true]').title")
        == "two \u6771.jpg"
    )
    assert np.abs(stage(browser).astype(int) - start).mean() > 5
    browser.press("Escape")
    assert browser.run("document.getElementById('through').hidden")
    assert browser.errors == []


@pytest.mark.slow
def test_clicking_a_frustum_looks_through_it(browser, marked):
    _, path = marked
    opened(browser, path)
    left, top, *_ = browser.box("#canvas")
    browser.run("document.getElementById('canvas').focus()")
    for _ in range(8):  # the scene fills the first view; the cameras are behind
        browser.press("-")
    browser.run("threshold.value = 99; threshold.dispatchEvent(new Event('input'))")
    mask = reddish(stage(browser))  # with the points gone, the photos on the frusta are left
    x, y = center_of(mask)
    rows, columns = np.nonzero(mask)
    i = np.argmin(np.hypot(columns - x, rows - y))
    browser.click(left + float(columns[i]), top + float(rows[i]))
    assert not browser.run("document.getElementById('through').hidden")


@pytest.mark.slow
def test_dragging_turns_and_double_click_keeps_the_point(browser, marked):
    _, path = marked
    opened(browser, path)
    browser.press("c")  # without cameras
    before = stage(browser)
    left, top, width, height = browser.box("#canvas")
    middle = (left + width / 2, top + height / 2)
    browser.drag(middle, (middle[0] + 120, middle[1]))
    turned = stage(browser)
    assert np.abs(turned.astype(int) - before).mean() > 2
    # after a double click on the red place it is in the middle and stays there while turning
    x, y = center_of(reddish(turned))
    browser.click(left + float(x), top + float(y), count=2)
    browser.settle()
    want = [width / 2, height / 2]
    assert np.abs(center_of(reddish(stage(browser))) - want).max() < 12
    browser.drag(middle, (middle[0] - 60, middle[1] - 30))
    assert np.abs(center_of(reddish(stage(browser))) - want).max() < 12
    assert browser.errors == []


@pytest.mark.slow
def test_confidence_slider_hides_the_least_sure_points(browser, marked):
    _, path = marked
    opened(browser, path, "#points=0")
    browser.run("overlay.value = 0; overlay.dispatchEvent(new Event('input'))")
    count = "parseInt(document.getElementById('shown').textContent.replace(/\\s/g, ''))"
    everything, all_points = stage(browser), browser.run(count)
    browser.run("threshold.value = 60; threshold.dispatchEvent(new Event('input'))")
    fewer, few_points = stage(browser), browser.run(count)
    assert all_points == 2 * 112 * 154
    assert few_points == pytest.approx(0.4 * all_points, rel=0.02)
    ground = np.array([13, 15, 18])  # --stage of the dark theme

    def covered(image):  # above the bar with the name of the camera
        return (np.abs(image[:-120] - ground).max(-1) > 20).mean()

    assert covered(fewer) < 0.9 * covered(everything)
    # confidence grows downwards and with the view: the first view is below the limit
    browser.run("only.click()")
    assert covered(stage(browser)) < 0.001


def shown(browser: Chromium) -> int:
    return browser.run("parseInt(document.getElementById('shown').textContent.replace(/\\s/g, ''))")


@pytest.mark.slow
@pytest.mark.parametrize("size", [(1440, 900), (1024, 768), (390, 844)])
def test_the_first_view_is_filled_by_the_scene(browser, marked, size):
    _, path = marked
    opened(browser, path, size=size, touch=size[0] < 600)
    browser.press("c")  # without cameras
    image = stage(browser)
    covered = np.abs(image - np.array([13, 15, 18])).max(-1) > 20
    rows, columns = np.nonzero(covered)
    across, down = np.ptp(columns) / image.shape[1], np.ptp(rows) / image.shape[0]
    assert max(across, down) > 0.9
    assert np.abs(center_of(covered) / image.shape[1::-1] - 0.5).max() < 0.12
    assert reddish(image).any()


@pytest.mark.slow
def test_views_and_backgrounds_are_filtered(browser, marked, tmp_path):
    scene, path = marked
    opened(browser, path)
    each = 112 * 154
    assert shown(browser) == 2 * each
    browser.run("first.value = 1; first.dispatchEvent(new Event('input'))")
    assert shown(browser) == each
    browser.run("last.value = 0; last.dispatchEvent(new Event('input'))")  # ends in any order
    assert shown(browser) == 2 * each
    assert browser.run("document.getElementById('hide-black').parentElement.hidden")

    images = scene.images.copy()
    images[1, :50] = 0
    write_page(
        replace(scene, images=images), tmp_path / "p.html", points=PointOptions(conf_percentile=0)
    )
    opened(browser, tmp_path / "p.html", "#points=1")
    browser.run("overlay.value = 0; overlay.dispatchEvent(new Event('input'))")
    browser.run("only.click()")
    dark = "document.getElementById('hide-black')"
    assert not browser.run(f"{dark}.parentElement.hidden || {dark}.checked")
    before = stage(browser)
    browser.run(f"{dark}.click()")
    assert shown(browser) == each - 50 * 154
    # black points are as dark as the ground: light, they are seen to be gone
    browser.run("document.getElementById('theme').click()")
    after = stage(browser)
    top = slice(before.shape[0] // 4, before.shape[0] // 3)
    assert np.median(before[top]) < 30 and np.median(after[top]) > 240
    assert browser.errors == []


def downloaded(browser: Chromium, folder, button: str, suffix: str):
    browser.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
    browser.run(f"document.getElementById('{button}').click()")
    deadline = time.monotonic() + 60
    while not (files := list(folder.glob(f"*{suffix}"))) or not files[0].stat().st_size:
        assert time.monotonic() < deadline and not browser.errors, browser.errors
        time.sleep(0.05)
    return files[0]


@pytest.mark.slow
def test_points_and_pictures_are_saved_as_they_are_shown(browser, marked, tmp_path):
    scene, path = marked
    opened(browser, path)
    browser.run("first.value = 1; first.dispatchEvent(new Event('input'))")
    want = select_points(scene, PointOptions(conf_percentile=0, max_points=0))
    second = want.view == 1
    saved = downloaded(browser, tmp_path, "save-ply", ".ply")
    assert f"comment unit: {UNITS[scene.unit]}\n".encode() in saved.read_bytes()[:500]
    ply = trimesh.load(saved)
    assert np.abs(ply.vertices - want.xyz[second]).max() < 1e-4
    np.testing.assert_array_equal(ply.colors[:, :3], want.rgb[second])
    sure = ply.metadata["_ply_raw"]["vertex"]["data"]["confidence"].ravel()
    assert (sure <= want.conf[second] + 1e-5).all() and (sure > want.conf[second] - 0.1).all()

    read = trimesh.load(downloaded(browser, tmp_path, "save-glb", ".glb"))
    (points,) = read.geometry.values()
    first = scene.extrinsics[0]
    truth = (want.xyz[second] @ first[:, :3].T + first[:, 3]) * [1, -1, -1]
    assert np.abs(points.vertices - truth).max() < 1e-4

    picture = np.asarray(
        Image.open(downloaded(browser, tmp_path, "save-picture", ".png")).convert("RGB")
    )
    shown_now = stage(browser)
    assert picture.shape == shown_now.shape
    assert np.abs(picture[:-150, :-200].astype(int) - shown_now[:-150, :-200]).mean() < 3
    assert browser.errors == []


@pytest.mark.slow
def test_a_camera_path_is_copied_in_the_world_of_the_scene(browser, marked):
    scene, path = marked
    opened(browser, path)
    browser.run("navigator.clipboard.writeText = async (text) => { window.copied = text; }")

    def copied() -> dict:
        browser.run("document.getElementById('path-copy').click()")
        return json.loads(browser.run("window.copied"))

    for view, camera in enumerate(copied()["camera_path"]):
        pose = np.reshape(camera["camera_to_world"], (4, 4)) @ np.diag([1, -1, -1, 1])
        world_to_camera = np.vstack([scene.extrinsics[view], [0, 0, 0, 1]])
        assert np.abs(pose @ world_to_camera - np.eye(4)).max() < 1e-5
        focal = 112 / 2 / np.tan(np.radians(camera["fov"]) / 2)
        assert focal == pytest.approx(scene.intrinsics[view, 1, 1], rel=1e-5)
    browser.run("document.querySelectorAll('#strip button')[1].click()")
    browser.run("document.getElementById('path-add').click()")
    (kept,) = copied()["camera_path"]
    pose = np.reshape(kept["camera_to_world"], (4, 4)) @ np.diag([1, -1, -1, 1])
    assert np.abs(pose @ np.vstack([scene.extrinsics[1], [0, 0, 0, 1]]) - np.eye(4)).max() < 1e-5
    browser.run("document.getElementById('path-clear').click()")
    assert len(copied()["camera_path"]) == 2


@pytest.mark.slow
def test_on_a_phone_settings_are_half_a_screen_beside_a_live_scene(browser, marked):
    _, path = marked
    opened(browser, path, size=(390, 844), touch=True)
    _, top, _, whole = browser.box("#canvas")
    browser.run("document.getElementById('settings').click()")
    browser.settle()
    left, sheet, width, height = browser.box("#controls")
    assert (left, width) == (0, 390) and abs(height - 422) < 3 and abs(sheet + height - 844) < 1
    _, top, _, canvas = browser.box("#canvas")
    assert 0.3 * 844 < canvas < whole and abs(top + canvas - sheet) < 2
    before = stage(browser)
    assert reddish(before).any()
    browser.run("first.value = 1; first.dispatchEvent(new Event('input'))")
    assert np.abs(stage(browser).astype(int) - before).mean() > 2, "the scene follows"
    assert browser.run("document.documentElement.scrollWidth <= innerWidth")
    browser.run("document.getElementById('settings').click()")
    browser.settle()
    assert browser.box("#canvas")[3] == whole


@pytest.mark.slow
def test_depth_panel_reads_the_depth_under_the_pointer(browser, marked):
    scene, path = marked
    opened(browser, path, "#depth=1")
    left, top, width, height = browser.box("#depth-map")
    u, v = 40, 60
    x, y = left + (u + 0.5) * width / 154, top + (v + 0.5) * height / 112
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    browser.wait("document.getElementById('readout').textContent.startsWith('Pixel')")
    text = browser.run("document.getElementById('readout').textContent")
    column, row, depth, conf = map(float, re.findall(r"\d+(?:\.\d+)?", text))
    assert (column, row) == (u, v)
    assert depth == pytest.approx(scene.depth[1, v, u], rel=2e-3)
    assert conf == pytest.approx(scene.depth_conf[1, v, u], abs=0.03)
    # the map's colors follow the depth: a rank correlation of -1, near is bright
    image = browser.screenshot()
    box = [round(value) for value in (left, top, width, height)]
    drawn = image[box[1] : box[1] + box[3], box[0] : box[0] + box[2]].astype(float).mean(-1)
    columns = ((np.arange(box[2]) + 0.5) * 154 / box[2]).astype(int)
    profile, truth = drawn[box[3] // 2][8:-8], scene.depth[1, 56][columns][8:-8]
    assert np.corrcoef(profile, truth)[0, 1] < -0.9


@pytest.mark.slow
def test_depth_panel_is_scrubbed_with_arrow_keys(browser, marked):
    _, path = marked
    opened(browser, path, "#depth")
    name = "document.getElementById('depth-name').textContent"
    assert browser.run(name) == "one & 'only'.jpg"
    browser.press("ArrowRight")
    assert browser.run(name) == "two \u6771.jpg"
    browser.press("ArrowRight")  # the last one stays
    assert browser.run(name) == "two \u6771.jpg"
    browser.press("ArrowLeft")
    assert browser.run(name) == "one & 'only'.jpg"
    assert browser.errors == []


@pytest.mark.slow
def test_without_webgl_the_page_says_so_and_shows_depth(marked):
    _, path = marked
    with Chromium("--disable-3d-apis") as browser:
        opened(browser, path)
        browser.wait("!document.getElementById('depth-panel').hidden")
        browser.wait("document.getElementById('level-bar').textContent.length > 3")
        browser.press("1")
        assert "WebGL 2" in browser.run("document.getElementById('loading').textContent")
        assert not browser.run("document.getElementById('loading').hidden")
        assert browser.errors == []
