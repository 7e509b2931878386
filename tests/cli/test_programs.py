"""What every program does when it is terminated."""

import gc
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lite3r_jax.cli import lite3r
from lite3r_jax.cli.programs import exit_code
from lite3r_jax.files import atomic_write
from lite3r_jax.folder_lock import locked

ROOT = Path(__file__).parents[2]


def terminate(process: int) -> None:
    os.kill(process, signal.SIGTERM)
    time.sleep(10)  # the signal ends this


def test_sigterm_removes_what_is_half_written_and_ends_with_143(tmp_path, capsys):
    def run():
        with locked(tmp_path / "out", "bench"), atomic_write(tmp_path / "out" / "x") as partial:
            partial.mkdir()
            (partial / "half").write_text("half")
            try:
                terminate(os.getpid())
            finally:
                os.kill(os.getpid(), signal.SIGTERM)  # one more does not disturb
                (partial / "cleaning").write_text("up")
        raise AssertionError("not terminated")

    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert exit_code(run) == 143
    assert capsys.readouterr().err == "terminated; no file is half-written\n"
    assert not list(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_sigterm_in_a_callback_of_the_garbage_collector_is_not_lost(capsys):
    def callback(*_):
        gc.callbacks.remove(callback)
        terminate(os.getpid())  # Python drops what is raised here

    def run():
        gc.callbacks.append(callback)
        gc.collect()
        time.sleep(10)  # the signal, which is sent again, ends this
        raise AssertionError("not terminated")

    before = sys.unraisablehook
    assert exit_code(run) == 143
    assert capsys.readouterr().err == "terminated; no file is half-written\n"
    assert sys.unraisablehook is before


def test_an_error_that_compiled_code_makes_of_sigterm_is_no_fault_of_the_program(capsys):
    def run():
        try:
            terminate(os.getpid())
        except BaseException:
            raise RuntimeError("INTERNAL: a callback failed") from None

    assert exit_code(run) == 143
    assert capsys.readouterr().err == (
        "while it was terminated: INTERNAL: a callback failed\n"
        "terminated; no file is half-written\n"
    )


def test_a_handler_of_another_program_stays(capsys):
    got = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: got.append(number))
    try:
        assert exit_code(lambda: os.kill(os.getpid(), signal.SIGTERM) or 0) == 0
        assert got == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.filterwarnings("ignore:os.fork")  # the child does nothing but end
def test_a_forked_process_ends_by_the_signal_and_says_nothing(capfd):
    def run():
        child = os.fork()
        if not child:
            terminate(os.getpid())
            os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    assert exit_code(run) == -signal.SIGTERM
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", ["n" * 300, "9" * 4400])
@pytest.mark.parametrize(
    "words",
    [
        "reconstruct NAME --weights vggt-tiny --output OUT",
        "reconstruct PHOTOS --weights NAME --output OUT",
        "reconstruct PHOTOS --weights vggt-tiny --student NAME --output OUT",
        "reconstruct PHOTOS --weights vggt-tiny --cameras NAME --output OUT",
        "reconstruct PHOTOS --weights vggt-tiny --output NAME",
        "evaluate --weights vggt-tiny --protocols NAME --output OUT",
        "evaluate --weights vggt-tiny --protocols capture:NAME --output OUT",
        "bench --weights vggt-tiny --size 56x56 --quality NAME --output OUT",
        "bench --weights vggt-tiny --views NAME --output OUT",
        "distill --recipe vggt:tiny --train.data.buckets NAMEx2x56x56 --output OUT",
        "export NAME --output OUT",
        "view NAME",
        "train --recipe NAME.py",
        "convert vggt NAME OUT",
        "convert export NAME OUT",
        "deploy NAME OUT",
        "deploy vggt-tiny NAME",
        "check-data NAME",
        "check-data synthetic:test --sheet NAME",
    ],
)
def test_a_name_that_no_file_can_have_is_one_line(words, name, tmp_path, capsys):
    (tmp_path / "a.png").touch()
    places = {"NAME": name, "OUT": str(tmp_path / "out"), "PHOTOS": str(tmp_path)}
    for word, place in places.items():
        words = words.replace(word, place)
    assert lite3r.main(words.split(" ")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and len(line) < 4100


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_once")
@pytest.mark.parametrize("command", ["reconstruct", "evaluate", "bench", "deploy", "distill"])
def test_commands_that_are_terminated_leave_nothing_half_written(command, tmp_path):
    import numpy as np
    from PIL import Image

    photos = tmp_path / "photos"
    photos.mkdir()
    for n in range(2):
        pixels = np.random.default_rng(n).integers(0, 256, (84, 112, 3), np.uint8)
        Image.fromarray(pixels).save(photos / f"{n}.png")
    out = tmp_path / "out"
    words = {
        "reconstruct": [str(photos), "--formats", "npz,ply,glb,colmap,html", "--size", "112"],
        "evaluate": ["--variants", "dense-float32", "--scenes", "2", "--views", "2"],
        "bench": ["--variants", "", "--bench.baselines", "dense-float32", "--views", "2",
                  "--size", "112x112", "--runs", "2"],
        "deploy": ["vggt-tiny", str(out)],
        "distill": ["--recipe", "vggt:tiny", "--steps", "4", "--train.data.buckets", "1x2x56x56",
                    "--evaluate.scenes", "2"],
    }[command]  # fmt: skip
    if command != "deploy":
        words += ["--output", str(out)]
        words += ["--weights", "vggt-tiny"] if command != "distill" else []
    rng, codes = random.Random(command), set()
    # the first while it still sets up, so that it cannot have ended; the others whenever they come
    for delay in (0, *(rng.uniform(0, 12) for _ in range(3))):
        process = subprocess.Popen(
            [sys.executable, "-m", "lite3r_jax.cli.lite3r", command, *words],
            cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"}, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        locks = out / ".lock", tmp_path / ".out.lock"  # who holds one listens to signals
        while process.poll() is None and not any(lock.exists() for lock in locks):
            time.sleep(0.01)
        time.sleep(delay)
        process.terminate()
        _, errors = process.communicate(timeout=120)
        codes.add(process.returncode)
        # by the signal itself only when all is done, and the interpreter was being taken down
        assert process.returncode in (0, 2, 75, 143, -signal.SIGTERM), errors
        assert "Traceback" not in errors
        if process.returncode == 143:
            assert errors.splitlines()[-1] == "terminated; no file is half-written"
        hidden = [path.name for path in tmp_path.rglob(".*")]
        assert not hidden
        if process.returncode in (0, 2, -signal.SIGTERM):  # the next has something to do
            shutil.rmtree(out, ignore_errors=True)
        if delay == 0:
            assert codes <= {75, 143}
