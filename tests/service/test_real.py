"""The service with its model, in its process: photos to files, and what takes the process down."""

import io
import os
import signal
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from PIL import Image

from lite3r_jax.exports.npz import read_npz
from lite3r_jax.runs import serve_engine
from lite3r_jax.runs.serve_engine import Process
from tests.data.test_video import record
from tests.service.client import TWO, Client, photo, served

WORDS = ("--size=28", "--formats=npz,ply,html")


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Less time in the compiler of the service's process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
        yield


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    with served(tmp_path_factory.mktemp("served"), *WORDS, engine=Process) as service:
        service.start()
        yield Client(service.url), service


def test_two_photos_become_files_and_a_damaged_one_is_named(real, tmp_path):
    client, service = real
    damaged = photo(size=(300, 300))[:-3000]
    first = client.sent(name="<room>")
    second = client.sent([("IMG 1.png", photo()), ("IMG 2.png", damaged)])
    third = client.sent()
    scene = client.wait(first)
    assert (scene["state"], scene["error"], scene["views"]) == ("done", None, 2)
    assert {"compile", "run", "export"} <= scene["seconds"].keys()
    content = {f["format"]: client.get(f["href"]).body for f in scene["files"]}
    assert {f["format"]: f["bytes"] for f in scene["files"]} == {
        name: len(body) for name, body in content.items()
    }
    (tmp_path / "predictions.npz").write_bytes(content["npz"])
    got = read_npz(tmp_path / "predictions.npz")
    assert got.names == ("photo_0001.png", "photo_0002.png")
    assert got.depth.shape == (2, 28, 28) and (got.depth > 0).all()
    np.testing.assert_array_equal(got.images[0], Image.open(io.BytesIO(TWO[0][1])))
    assert content["ply"].startswith(b"ply") and b"<title>&lt;room&gt;</title>" in content["html"]
    assert Image.open(io.BytesIO(client.get(f"/scenes/{first}/thumbnail").body)).size == (28, 28)
    scene = client.wait(second)
    assert scene["state"] == "failed" and scene["error"].startswith("IMG 2.png: cannot be read (")
    process = service.scenes._engine._process
    scene = client.wait(third)
    assert scene["state"] == "done" and service.scenes._engine._process is process
    assert client.get(scene["files"][0]["href"]).body == content["npz"]
    client("POST", f"/scenes/{first}/files/colmap")
    scene = client.wait(first)
    assert (scene["error"], scene["files"][-1]["format"]) == (None, "colmap")
    archive = zipfile.ZipFile(io.BytesIO(client.get(scene["files"][-1]["href"]).body))
    assert archive.read("colmap/images/photo_0002.png") == TWO[1][1]
    assert client.get(scene["files"][0]["href"]).body == content["npz"]


@pytest.mark.slow
def test_a_video_gives_at_most_so_many_frames_as_photos(tmp_path):
    video = record(tmp_path / "walk.mp4", frames=12, rate=4).read_bytes()
    words = ("--serve.max_photos=2", "--formats=npz", "--size=28")
    with served(tmp_path / "out", *words, engine=Process) as service:
        service.start()
        client = Client(service.url)
        scene = client.wait(client.sent([("walk.mp4", video)], fps="4"))
        assert (scene["state"], scene["views"], scene["name"]) == ("done", 2, "walk")
        assert client.wait(client.sent([("cut.mp4", video[:-500])]))["error"].startswith(
            "cut.mp4: "
        )
    names = read_npz(tmp_path / "out" / scene["id"] / "results" / "predictions.npz").names
    assert [name.partition(".")[0] for name in names] == ["frame_000000", "frame_000011"]


@pytest.mark.slow
def test_a_scene_that_ends_its_process_or_is_cancelled_fails_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(serve_engine, "_PATIENCE", 0.0)
    with served(tmp_path, *WORDS, engine=Process) as service:
        service.start()
        client = Client(service.url)
        first, second, third = client.sent(), client.sent(), client.sent([("a.png", b"no photo")])
        client.until(first, lambda scene: scene["progress"])
        os.kill(service.scenes._engine._process.pid, signal.SIGKILL)
        scene = client.wait(first)
        assert scene["state"] == "failed" and "where memory is short" in scene["error"]
        client.until(second, lambda scene: (scene["progress"] or {}).get("stage") == "compile")
        client("POST", f"/scenes/{second}/cancel")
        assert client.wait(second)["state"] == "cancelled"
        assert not (tmp_path / second / "results").exists()
        assert client.wait(third)["error"].startswith("a.png: is not an image")


@pytest.mark.slow
@pytest.mark.parametrize("number,code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_and_the_next_start_goes_on(tmp_path, number, code):
    program = (  # a job in the background may be born with interrupts ignored or blocked
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT});"
        "from lite3r_jax.cli.lite3r import program; program()"
    )
    command = [sys.executable, "-c", program, "serve", "--port=0", f"--output={tmp_path}", *WORDS]
    with subprocess.Popen(
        [*command, "--quiet"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            line = process.stdout.readline()
            assert line.endswith("(stop with Ctrl-C)\n")
            client = Client(line.split()[0])
            name = client.sent()
            client.wait(name, "running")
            process.send_signal(number)
            assert process.wait(60) == code
            assert "Traceback" not in process.stderr.read()
        finally:
            process.kill()
    assert sorted(path.name for path in tmp_path.iterdir()) == [name]  # nor a lock
    with served(tmp_path, *WORDS) as service:
        service.start()
        assert Client(service.url).wait(name)["state"] == "done"
