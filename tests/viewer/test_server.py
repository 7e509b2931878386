"""The live viewer: it starts, shows the scene, does what its controls say, and stops."""

import os
import socket
import subprocess
import sys
import textwrap
import threading
import time
import urllib.request
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from lite3r_jax.errors import InputError
from lite3r_jax.exports.points import PointOptions, select_points
from lite3r_jax.scene import Scene
from lite3r_jax.viewer import access
from lite3r_jax.viewer.server import ViewerOptions, _look_through, serve
from tests.chromium import Chromium

EVERY = ViewerOptions(points=PointOptions(conf_percentile=0))


def wall(views: int = 2) -> Scene:
    """A red wall, 2 in front of cameras that stand side by side; confidence grows with the view."""
    height, width = 42, 56
    pose = np.tile(np.concatenate([np.eye(3), np.zeros((3, 1))], -1), (views, 1, 1))
    pose[:, 0, 3] = -0.3 * np.arange(views)
    lens = np.array([[50.0, 0, width / 2], [0, 50, height / 2], [0, 0, 1]])
    shape = (views, height, width)
    conf = np.broadcast_to(1.0 + np.arange(views)[:, None, None], shape)
    return Scene(
        names=tuple(f"{i} & 'wall' \u6771.jpg" for i in range(views)),
        images=np.broadcast_to(np.array([220, 30, 30], np.uint8), (*shape, 3)),
        depth=np.full(shape, 2, np.float32),
        depth_conf=conf.astype(np.float32),
        extrinsics=pose.astype(np.float32),
        intrinsics=np.tile(lens, (views, 1, 1)).astype(np.float32),
        boxes=np.tile([0, 0, width, height], (views, 1)).astype(np.float32),
        source_sizes=np.tile([width, height], (views, 1)),
    )


@pytest.fixture
def viewer():
    with serve(wall(), port=0, options=EVERY, report={"dtype": "float32"}) as viewer:
        yield viewer


def fetch(url: str) -> str:
    # without the proxies that the environment may name
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=20) as answer:
        return answer.read().decode()


def eventually(condition) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def shown(viewer) -> np.ndarray:
    return viewer._shown._points.points


def test_page_is_served_on_loopback_only(viewer):
    assert viewer.url.startswith("http://127.0.0.1:")
    assert "<html" in fetch(viewer.url)
    assert viewer._server.get_host() == "127.0.0.1"


def test_points_and_colors_are_those_of_the_scene(viewer):
    want = select_points(wall(), PointOptions(conf_percentile=0))
    got = shown(viewer)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(np.unique(got, axis=0), np.unique(want.xyz, axis=0))
    assert len(got) == len(want) == 2 * 42 * 56
    assert (viewer._shown._points.colors == [220, 30, 30]).all()


def test_frusta_stand_where_the_cameras_are(viewer):
    scene = wall()
    for s, frustum in enumerate(viewer._shown._frusta):
        np.testing.assert_allclose(frustum.position, scene.camera_to_world[s, :, 3], atol=1e-6)
        np.testing.assert_allclose(frustum.wxyz, [1, 0, 0, 0], atol=1e-6)
        assert np.tan(frustum.fov / 2) == pytest.approx(21 / 50)
        assert frustum.aspect == pytest.approx(56 / 42)


def test_confidence_slider_hides_the_least_sure_view(viewer):
    viewer._shown._share.value = 75.0
    eventually(lambda: len(shown(viewer)) == 42 * 56)
    np.testing.assert_array_equal(viewer._shown._limit.value, "2")
    viewer._shown._share.value = 0.0
    eventually(lambda: len(shown(viewer)) == 2 * 42 * 56)


def test_number_slider_thins_evenly(viewer):
    viewer._shown._number.value = 1000
    eventually(lambda: len(shown(viewer)) == 1000)
    assert abs((shown(viewer)[:, 0] > 0.15).mean() - 0.5) < 0.06


def test_switch_of_a_view_hides_its_points_and_camera(viewer):
    viewer._shown._views_on[0].value = False
    eventually(lambda: len(shown(viewer)) == 42 * 56)
    eventually(lambda: [f.visible for f in viewer._shown._frusta] == [False, True])
    viewer._shown._cameras_on.value = False
    eventually(lambda: not viewer._shown._frusta[1].visible)


def test_slider_begins_at_the_percentile_of_the_exports():
    options = ViewerOptions(points=PointOptions(conf_percentile=60))
    with serve(wall(), port=0, options=options) as viewer:
        assert len(shown(viewer)) == 42 * 56


def test_slider_begins_by_what_the_confidence_means():
    scene = wall(3)  # of confidence 1 to 3; a third of the pixels is far less sure than the median
    conf = np.where(np.arange(3)[:, None, None] == 0, np.float32(1), scene.depth_conf * 4)
    with serve(replace(scene, depth_conf=conf), port=0) as viewer:
        assert len(shown(viewer)) == 2 * 42 * 56


def test_no_browser_can_open_a_tunnel(viewer):
    assert viewer._server.request_share_url() is None
    assert viewer._server._share_tunnel is None


def connect(viewer, **headers):
    """A WebSocket as viser's page opens it."""
    import viser
    from websockets.sync.client import connect

    return connect(
        viewer.url.replace("http", "ws"), subprotocols=[f"viser-v{viser.__version__}"],
        additional_headers=headers, proxy=None, max_size=None,
    )  # fmt: skip


def test_pages_of_other_sites_are_refused(viewer):
    from websockets.exceptions import ConnectionClosedError

    with connect(viewer, Origin=viewer.url) as own:
        assert own.recv(timeout=20)
    with connect(viewer) as program:
        assert program.recv(timeout=20)
    for origin in ("http://attacker.example", "null", viewer.url.replace("http", "https") + "1"):
        with (
            connect(viewer, Origin=origin) as foreign,
            pytest.raises(ConnectionClosedError, match=r"1008 .*may not use this viewer"),
        ):
            foreign.recv(timeout=20)
    eventually(lambda: len(viewer._server.get_clients()) == 0)


@pytest.mark.parametrize("listen,host,origin,allowed,ok", [
    ("127.0.0.1", "127.0.0.1:8080", "http://127.0.0.1:8080", "", True),
    ("127.0.0.1", "localhost:9000", "http://localhost:9000", "", True),  # through a tunnel
    ("127.0.0.1", "[::1]:8080", None, "", True),
    ("127.0.0.1", "rebound.example:8080", "http://rebound.example:8080", "", False),
    ("127.0.0.1", "10.0.0.7:8080", "http://10.0.0.7:8080", "", False),
    ("127.0.0.1", "proxy.example", "https://proxy.example", "a.example, proxy.example", True),
    ("0.0.0.0", "10.0.0.7:8080", "http://10.0.0.7:8080", "", True),
    ("0.0.0.0", f"{socket.gethostname()}:8080", f"http://{socket.gethostname()}:8080", "", True),
    ("0.0.0.0", "rebound.example:8080", "http://rebound.example:8080", "", False),
    ("127.0.0.1", "localhost:8080", "http://localhost:8081", "", False),
    ("127.0.0.1", "localhost:8080", "file://", "", False),
    ("127.0.0.1", "", None, "", False),
    ("127.0.0.1", "[::1", None, "", False),
])  # fmt: skip
def test_hosts_and_origins(listen, host, origin, allowed, ok):
    headers = {"Host": host} | ({} if origin is None else {"Origin": origin})
    assert (access.refusal(headers, listen, allowed) is None) == ok


def test_uploads_are_dropped(viewer):
    import msgspec
    from viser import _messages

    gui, slider = viewer._server.gui, viewer._shown._share
    start = _messages.FileTransferStartUpload(slider._impl.uuid, "id", "a.bin", "", 9, 1 << 30)
    update = _messages.GuiUpdateMessage(slider._impl.uuid, {"value": 75.0})
    with connect(viewer) as client:
        for message in (start, update):
            client.send(msgspec.msgpack.encode(message.as_serializable_dict()))
        eventually(lambda: slider.value == 75.0)  # what came after it has arrived
        assert not gui._current_file_upload_states


@pytest.mark.parametrize("value", [500.0, -3.0, float("nan"), float("inf")])
def test_numbers_that_no_slider_has_stop_nothing(viewer, value):
    viewer._shown._share.value = value
    viewer._shown._number.value = 10**9
    viewer._shown._share.value = 75.0
    eventually(lambda: len(shown(viewer)) == 42 * 56)
    assert viewer._shown._worker.is_alive()
    viewer._shown._share.value = value
    eventually(lambda: not viewer._shown._dirty.is_set())
    viewer._shown._share.value = 0.0
    eventually(lambda: len(shown(viewer)) == 2 * 42 * 56)


def test_closing_frees_the_port():
    with serve(wall(), port=0, options=EVERY) as viewer:
        port = int(viewer.url.rpartition(":")[2])
    viewer.close()  # once more does no harm
    with socket.create_server(("127.0.0.1", port)):
        pass
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=1).close()


def test_port_in_use_is_refused_by_number():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            InputError, match=rf"cannot listen on 127\.0\.0\.1 port {port} \(.*in use"
        ):
            serve(wall(), port=port)


@pytest.mark.parametrize("host,port", [("127.0.0.1", 70000), ("no such host", 0)])
def test_impossible_address_is_refused(host, port):
    with pytest.raises(InputError, match=f"viewer: cannot listen on {host} port {port}"):
        serve(wall(), host=host, port=port)


def test_missing_viser_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "viser", None)
    with pytest.raises(InputError, match=r"pip install 'lite3r_jax\[viewer\]'"):
        serve(wall(), port=0)


@pytest.mark.parametrize("key,value", [("frustum", 0.0), ("max_image_side", 1)])
def test_impossible_options_are_refused_by_name(key, value):
    with pytest.raises(InputError, match=rf"^viewer\.{key}: expected .*{value}"):
        ViewerOptions(**{key: value})


def test_wait_ends_when_another_thread_closes(viewer):
    waiting = threading.Thread(target=viewer.wait)
    waiting.start()
    viewer.close()
    waiting.join(20)
    assert not waiting.is_alive()


@pytest.mark.slow
def test_interrupt_ends_the_program_cleanly():
    program = textwrap.dedent("""
        import os, signal, threading
        from tests.viewer.test_server import EVERY, serve, wall
        viewer = serve(wall(), port=0, options=EVERY)
        threading.Timer(1, os.kill, (os.getpid(), signal.SIGINT)).start()
        viewer.wait()
        print("closed", flush=True)
    """)
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "closed" in run.stdout and "Traceback" not in run.stderr


@pytest.mark.slow
def test_browser_shows_the_wall():
    with serve(wall(), port=0, options=EVERY) as viewer, Chromium(timeout=300) as browser:
        browser.open(viewer.url)

        def red() -> float:
            image = browser.screenshot().astype(int)
            return ((image[..., 0] > 150) & (image[..., 1:].max(-1) < 90)).mean()

        deadline = time.monotonic() + 120
        while red() < 0.05:
            assert time.monotonic() < deadline, browser.errors
            time.sleep(0.5)
        (client,) = viewer._server.get_clients().values()
        frustum = viewer._shown._frusta[1]
        _look_through(SimpleNamespace(client=client, target=frustum))
        eventually(lambda: np.allclose(client.camera.position, frustum.position, atol=1e-3))
        assert client.camera.fov == pytest.approx(2 * np.arctan(21 / 50), abs=1e-3)
        for switch in viewer._shown._views_on:
            switch.value = False
        while red() > 0.01:
            assert time.monotonic() < deadline, browser.errors
            time.sleep(0.5)
        elsewhere = [
            r for r in browser.requests if not r.startswith((viewer.url, "data:", "blob:"))
        ]
        assert elsewhere == browser.errors == []
