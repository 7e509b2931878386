"""Several processes on one machine that reconstruct, evaluate and measure together."""

import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lite3r_jax.errors import InputError
from lite3r_jax.experiment import Experiment, changed
from lite3r_jax.main import main
from lite3r_jax.processes import ProcessOptions, Watch, all_ready, every_value, joined
from lite3r_jax.runs.bench import bench
from lite3r_jax.runs.evaluate import _follow
from lite3r_jax.runs.reconstruct import reconstruct_files

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (ProcessOptions(count=2), r"processes\.coordinator: not set, but processes\.count or"),
        (ProcessOptions(number=0), "set HOST:PORT of process 0, or leave all of them out"),
        (ProcessOptions("auto", count=2), "takes number and count from the environment"),
        (ProcessOptions("here", 2, 0), "expected HOST:PORT of process 0, such as .*; got 'here'"),
        (ProcessOptions("here:0", 2, 0), "got 'here:0'"),
        (ProcessOptions("here:99999", 2, 0), "got 'here:99999'"),
        (ProcessOptions(":80", 2, 0), "got ':80'"),
        (ProcessOptions("here:80"), r"count of at least 2 .* got count=0 and number=-1"),
        (ProcessOptions("here:80", 2, 2), "got count=2 and number=2"),
    ],
)
def test_processes_that_cannot_be_are_refused(options, message):
    with pytest.raises(InputError, match=message) as error, joined(options):
        pass
    assert "\n" not in str(error.value)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def test_processes_that_do_not_come_together_say_so():
    where = f"127.0.0.1:{free_port()}"
    with (
        pytest.raises(InputError, match=rf"process 0 at {where} cannot be reached within 1 s"),
        joined(ProcessOptions(where, 2, 1, timeout=1)),
    ):
        pass
    with (
        pytest.raises(InputError, match="1 of 2 came within 1 s; start all of them"),
        joined(ProcessOptions(where, 2, 0, timeout=1)),
    ):
        pass
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        with (
            pytest.raises(InputError, match=f"port {port} cannot be listened on .* choose another"),
            joined(ProcessOptions(f"127.0.0.1:{port}", 2, 0, timeout=1)),
        ):
            pass


def test_processes_with_another_count_or_the_same_number_are_refused():
    where = f"127.0.0.1:{free_port()}"

    def come(count, number):
        with suppress(InputError), joined(ProcessOptions(where, count, number, timeout=2)):
            pass

    other = threading.Thread(target=come, args=(3, 2))
    other.start()
    with (
        pytest.raises(InputError, match="another one came with count=3 and number=2; proc"),
        joined(ProcessOptions(where, 2, 0, timeout=20)),
    ):
        pass
    other.join()


def test_one_process_needs_nobody():
    with joined(ProcessOptions()), all_ready():
        assert every_value(7) == [7]
    with pytest.raises(InputError, match="mine"), all_ready():
        raise InputError("mine")


def test_a_process_that_failed_keeps_its_own_reason_and_exit_code(monkeypatch):
    ended = []
    monkeypatch.setattr("lite3r_jax.processes.os._exit", ended.append)
    here, there = socket.socketpair()
    with here, there:
        watch = Watch(1, 2, {0: here})
        listening = [each for each in threading.enumerate() if each.name == "process 0"]
        watch.fail(InputError("photos: no such folder"))
        said = there.recv(4096).decode()
        assert said == "failed process 1 of 2 ended: photos: no such folder\n"
        there.sendall(said.encode())  # as process 0 does when it ends for this reason
        for each in listening:
            each.join(10)
            assert not each.is_alive()
    assert listening and not ended


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, r"set compute\.mesh=view:N, N the number of the devices of all"),
        ({"compute.mesh": "view:2", "video.chunk": 8}, r"video\.chunk=8: is for one process"),
    ],
)
def test_settings_that_do_not_go_with_processes_are_refused(values, message):
    given = {"input": "in", "weights": "w", "processes.coordinator": "here:80"}
    given |= {"processes.count": 2, "processes.number": 0}
    with pytest.raises(InputError, match=message):
        reconstruct_files(changed(Experiment(), given | values))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, r"set compute\.mesh=view:N, N the number of the devices of all"),
        ({"bench.isolate": False}, r"bench\.isolate=false: several processes join for one variant"),
        (
            {"processes.coordinator": "auto", "processes.count": 0, "processes.number": -1},
            "needs to know which process writes; give HOST:PORT",
        ),
        ({"processes.coordinator": ""}, r"processes\.coordinator: not set, but processes\.count"),
    ],
)
def test_settings_of_a_benchmark_that_do_not_go_with_processes_are_refused(values, message):
    given = {"weights": "w", "output": "out", "processes.coordinator": "here:80"}
    given |= {"processes.count": 2, "processes.number": 0}
    given |= {"compute.mesh": "view:2"} if values else {}
    with pytest.raises(InputError, match=message):
        bench(changed(Experiment(), given | values))


def test_processes_of_an_evaluation_are_compared_without_paths(monkeypatch, tiny_dir, tmp_path):
    shutil.copytree(tiny_dir, tmp_path / "weights")
    compared = []
    monkeypatch.setattr(
        "lite3r_jax.runs.evaluate.refuse_different", lambda body, _: compared.append(body)
    )
    monkeypatch.setattr("lite3r_jax.runs.evaluate.take_part", lambda _: None)
    for weights, student, more in (
        (tiny_dir, "here", {}),
        (tmp_path / "weights", "there", {}),
        (tiny_dir, "here", {"compute.dtype": "bfloat16"}),
    ):
        given = {"weights": str(weights), "evaluate.student": student}
        _follow(changed(Experiment(), given | more))
    assert compared[0] == compared[1] != compared[2]


@pytest.fixture
def words(tiny_dir, tmp_path):
    """Of a command line that reconstructs three photos."""
    photos, rng = tmp_path / "photos", np.random.default_rng(0)
    photos.mkdir()
    for name in "abc":
        Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8)).save(photos / f"{name}.png")
    settings = {"weights": tiny_dir, "input": photos, "images.size": 56, "formats": "npz"}
    return [
        "--config=configs/vggt.py", "--mode=reconstruct",
        *(f"--config.{name}={value}" for name, value in settings.items()),
    ]  # fmt: skip


def started(words, out, *more):
    """Two processes with a device each."""
    port = free_port()
    common = {"output": out, "compute.mesh": "view:2", "processes.count": 2}
    common["processes.coordinator"] = f"127.0.0.1:{port}"
    every = [*words, *(f"--config.{name}={value}" for name, value in common.items())]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "bufsize": 1}
    return [
        subprocess.Popen(
            [sys.executable, "-m", "lite3r_jax.main", *every, f"--config.processes.number={n}",
             *(more if n else ())],
            cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1"}, **pipes,
        )
        for n in range(2)
    ]  # fmt: skip


ARRAYS = """
    import sys
    import jax, numpy as np
    from jax import lax
    from lite3r_jax.mesh import check_views, fetch_views, make_view_mesh, put_views, put_weights
    from lite3r_jax.processes import ProcessOptions, every_value, is_first, joined

    where, number = sys.argv[1], int(sys.argv[2])
    with joined(ProcessOptions(where, 2, number, timeout=60)):
        assert every_value(10 + number) == [10, 11] and is_first() == (number == 0)
        mesh = make_view_mesh("view:2")
        parts = check_views(mesh, 3)
        x = np.arange(12, dtype=np.float32).reshape(1, 3, 4)
        weights = np.arange(2**15, dtype=np.float32).reshape(4, -1)
        with jax.set_mesh(mesh):
            kept = put_weights({"split": weights, "small": weights[:, :2]}, mesh, split=True)
            run = parts.on_each(lambda x, w: x + lax.psum(w.sum(), "view"), (1, 1), 1)
            got = fetch_views(jax.jit(run)(put_views(x, mesh, parts), kept["split"]), 3)
        assert kept["split"].addressable_shards[0].data.size == weights.size // 2
        assert kept["small"].is_fully_replicated
        np.testing.assert_allclose(got, x + weights.sum(dtype=np.float64), rtol=1e-5)
    print("compared")
"""


def test_two_processes_share_views_and_weights():
    where = f"127.0.0.1:{free_port()}"
    both = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(ARRAYS), where, str(n)],
            cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for n in range(2)
    ]  # fmt: skip
    ended = [each.communicate(timeout=100) for each in both]
    assert [each.returncode for each in both] == [0, 0], ended
    assert all(shown.endswith("compared\n") for shown, _ in ended)


@pytest.mark.slow
def test_an_evaluation_by_two_processes_has_the_scores_of_one(tiny_dir, tmp_path):
    settings = {
        "weights": tiny_dir, "evaluate.variants": "dense-float32,sla_global(block=4)-float32",
        "evaluate.protocols": "synthetic:validation", "evaluate.views": "2", "evaluate.scenes": 2,
        "evaluate.size": "28x28", "evaluate.pictures": 0,
    }  # fmt: skip
    words = ["--config=configs/vggt.py", "--mode=eval", "--config.quiet=true"]
    words += [f"--config.{name}={value}" for name, value in settings.items()]
    both = started(words, tmp_path / "two")
    ended = [each.communicate(timeout=200) for each in both]
    assert [each.returncode for each in both] == [0, 0], ended
    assert "2 results, 0 samples failed" in ended[0][0] and "results" not in ended[1][0]
    assert main([*words, f"--config.output={tmp_path / 'one'}"]) == 0
    one, two = (
        [
            row["metrics"]
            for row in json.loads((tmp_path / name / "report.json").read_text())["results"]
        ]
        for name in ("one", "two")
    )
    assert len(one) == 2 and one[0] != one[1]
    for of_one, of_two in zip(one, two, strict=True):
        assert of_one.keys() == of_two.keys()
        for name, each in of_one.items():
            if each["value"] is not None:
                assert of_two[name]["value"] == pytest.approx(each["value"], rel=1e-3, abs=1e-4), (
                    name
                )


@pytest.mark.slow
def test_a_benchmark_of_two_processes_is_measured_and_written_once(tiny_dir, tmp_path):
    settings = {
        "weights": tiny_dir, "bench.variants": "sla_global(block=4)-float32",
        "bench.baselines": "dense-float32", "bench.views": "4", "bench.size": "28x28",
        "bench.warmup": 0, "bench.runs": 2, "compute.weights": "split",
    }  # fmt: skip
    words = ["--config=configs/vggt.py", "--mode=bench", "--config.quiet=true"]
    words += [f"--config.{name}={value}" for name, value in settings.items()]
    both = started(words, tmp_path / "two")
    ended = [each.communicate(timeout=200) for each in both]
    assert [each.returncode for each in both] == [0, 0], ended
    assert "2 of 2 measured" in ended[0][0] and "measured" not in ended[1][0]
    assert "views:" not in ended[1][1]
    body = json.loads((tmp_path / "two" / "bench.json").read_text())
    assert [len(cell["seconds"]) for cell in body["cells"]] == [2] * 2
    for cell in body["cells"]:
        assert cell["devices"]["mesh"] == "view:2"
        assert cell["devices"]["views_each"] == cell["views"] // 2


@pytest.mark.slow
def test_what_one_process_of_a_benchmark_has_no_memory_for_is_listed_by_both(tiny_dir, tmp_path):
    settings = {
        "weights": tiny_dir, "bench.variants": "", "bench.baselines": "dense-float32",
        "bench.views": "2", "bench.size": "28x28", "bench.warmup": 0, "bench.runs": 1,
    }  # fmt: skip
    words = ["--config=configs/vggt.py", "--mode=bench", "--config.quiet=true"]
    words += [f"--config.{name}={value}" for name, value in settings.items()]
    both = started(words, tmp_path / "two", "--config.compute.memory_limit=0.0001")
    ended = [each.communicate(timeout=200) for each in both]
    assert [each.returncode for each in both] == [1, 1], ended
    assert "0 of 1 measured" in ended[0][0]
    (cell,) = json.loads((tmp_path / "two" / "bench.json").read_text())["cells"]
    assert "process 1 of 2 could not prepare its part" in cell["missing"]
    assert "dense-float32, 2 views: memory: " in ended[1][1]


@pytest.mark.slow
def test_two_processes_give_the_files_of_one(words, tiny_dir, tmp_path):
    # as on another host, whose paths may be others
    there = {"weights": tiny_dir, "input": tmp_path / "photos"}
    for name, folder in there.items():
        shutil.copytree(folder, tmp_path / "there" / name)
    moved = [f"--config.{name}={tmp_path / 'there' / name}" for name in there]
    both = started(words, tmp_path / "two", *moved)
    ended = [each.communicate(timeout=120) for each in both]
    assert main([*words, f"--config.output={tmp_path / 'one'}"]) == 0
    assert [each.returncode for each in both] == [0, 0], ended
    # three views on two devices; the report is that of process 0, which alone wrote
    assert "view:2, 2 views each, 1 twice to fill up" in ended[0][0]
    assert "depth" not in ended[1][0] and "predictions.npz" not in ended[1][0]
    with (
        np.load(tmp_path / "one" / "predictions.npz") as one,
        np.load(tmp_path / "two" / "predictions.npz") as two,
    ):
        assert set(one) == set(two)
        for name in ("depth", "depth_conf", "extrinsics"):
            assert one[name].shape == two[name].shape
            np.testing.assert_allclose(two[name], one[name], rtol=1e-4, atol=1e-5, err_msg=name)


def wait_for(process, text, seconds=120):
    """Until a process has printed a line with the text."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if select.select([process.stdout], [], [], 1)[0]:
            line = process.stdout.readline()
            if text in line:
                return
            assert line, f"ended without {text!r}: {process.stderr.read()}"
    raise AssertionError(f"no {text!r} within {seconds} s")


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_peer_that_is_killed_ends_the_other_with_a_sentence(words, tmp_path, killed):
    both = started(words, tmp_path / "two")
    wait_for(both[0], "3 views")  # both have joined; the pass is not compiled yet
    both[killed].kill()
    _, said = both[1 - killed].communicate(timeout=60)
    both[killed].communicate()
    # JAX's own service is in process 0 and aborts the others, if it is quicker than the sentence.
    aborted = killed == 0 and both[1].returncode == -signal.SIGABRT
    if aborted:
        assert "another task died" in said
    else:
        assert both[1 - killed].returncode == 1, said
        assert f"error: process {killed} of 2 ended without a word: it was killed" in said
    assert "Traceback" not in said
    assert not (tmp_path / "two" / "predictions.npz").exists()


@pytest.mark.slow
def test_processes_with_other_settings_are_refused(words, tmp_path):
    both = started(words, tmp_path / "two", "--config.images.size=42")
    said = [each.communicate(timeout=120)[1] for each in both]
    for process, text in zip(both, said, strict=True):
        assert process.returncode in (1, 2), said
        assert "process 1 of 2: has other settings, weights, photos, cameras or versions" in text


@pytest.mark.slow
def test_known_cameras_may_lie_elsewhere_in_another_process_but_have_to_be_the_same(
    words, tiny_da3_dir, tmp_path
):
    words = ["--config=configs/da3_large.py", *words[1:], f"--config.weights={tiny_da3_dir}"]
    assert main([*words, f"--config.output={tmp_path / 'found'}"]) == 0
    here, there, other = (tmp_path / f"{name}.npz" for name in ("here", "there", "other"))
    for path in (here, there):
        shutil.copy(tmp_path / "found" / "predictions.npz", path)
    with np.load(here) as file:
        arrays = {name: file[name] for name in ("names", "extrinsics", "source_intrinsics")}
    arrays["intrinsics"] = arrays.pop("source_intrinsics")
    arrays["extrinsics"][1, 0, 3] += 1e-3
    np.savez(other, **arrays)
    words = [*words, f"--config.cameras.known={here}"]
    assert main([*words, f"--config.output={tmp_path / 'one'}"]) == 0
    both = started(words, tmp_path / "two", f"--config.cameras.known={there}")
    ended = [each.communicate(timeout=120) for each in both]
    assert [each.returncode for each in both] == [0, 0], ended
    with (
        np.load(tmp_path / "one" / "predictions.npz") as one,
        np.load(tmp_path / "two" / "predictions.npz") as two,
    ):
        for name in ("depth", "extrinsics"):
            np.testing.assert_allclose(two[name], one[name], rtol=1e-4, atol=1e-5, err_msg=name)
    both = started(words, tmp_path / "three", f"--config.cameras.known={other}")
    said = [each.communicate(timeout=120)[1] for each in both]
    for process, text in zip(both, said, strict=True):
        assert process.returncode in (1, 2), said
        assert "process 1 of 2: has other settings, weights, photos, cameras or versions" in text


@pytest.mark.slow
def test_bad_input_of_one_process_is_said_by_all(words, tmp_path):
    both = started(words, tmp_path / "two", f"--config.input={tmp_path / 'nothing'}")
    said = [each.communicate(timeout=120)[1] for each in both]
    assert both[1].returncode == 2 and both[0].returncode == 1, said
    for text in said:
        assert "nothing: no such file or folder" in text, said
    assert "process 1 of 2 ended: " in said[0]
