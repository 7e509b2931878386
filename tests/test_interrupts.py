"""Ctrl-C ends a program at once, with its exit code and a line, whatever it is doing."""

import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

BEGIN = (  # a job in the background may be born with interrupts ignored or blocked
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
    "signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT});"
)
LINE = "interrupted; no file is half-written"


def interrupted(program: str, *words: str, until: str, after: float):
    """(exit code, seconds, stderr) of a program that is interrupted so long after a line."""
    command = [sys.executable, "-u", "-c", BEGIN + program, *words]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        assert any(line.startswith(until) for line in running.stdout)
        time.sleep(after)
        start = time.monotonic()
        running.send_signal(signal.SIGINT)
        _, errors = running.communicate(timeout=100)
        return running.returncode, time.monotonic() - start, errors


@pytest.mark.parametrize(
    "start",
    [
        "from lite3r_jax.__main__ import program; program()",
        "import runpy; runpy.run_module('lite3r_jax.main', run_name='__main__')",
    ],
)
def test_an_interrupt_while_the_program_is_still_imported_is_one_line(start):
    program = (
        "import sys, time\n"
        "class Slow:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'jax':\n"
        "            print('busy'); time.sleep(60)\n"
        "sys.meta_path.insert(0, Slow())\n"
    )
    code, seconds, errors = interrupted(program + start, "--help", until="busy", after=0.1)
    assert (code, errors.strip()) == (130, LINE) and seconds < 30


def test_the_package_imports_nothing_until_a_name_is_used():
    program = (
        "import sys, lite3r_jax; assert 'jax' not in sys.modules; print(lite3r_jax.__version__);"
        "assert 'load' in dir(lite3r_jax); lite3r_jax.InputError; assert 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(
    "body",
    [
        "hashlib.pbkdf2_hmac('sha256', b'x', b'y', 10**9)",  # compiled code, which does not return
        # an interrupt that is lost, as in callbacks of the garbage collector
        "\n gc.callbacks.append(lambda *_: time.sleep(60)); gc.collect(); time.sleep(60)",
    ],
)
def test_what_does_not_notice_an_interrupt_is_ended(body):
    program = (
        "import gc, hashlib, time; from lite3r_jax.interrupts import run_as_process\n"
        f"def main():\n print('busy'); {body}\n"
        "run_as_process(main)"
    )
    code, seconds, errors = interrupted(program, until="busy", after=0.1)
    assert (code, errors.strip()) == (130, LINE) and seconds < 30


@pytest.mark.slow
@pytest.mark.parametrize("after", [0.2, 0.8, 1.5, 2.5, 3.5, 5.0])
def test_a_reconstruction_that_compiles_is_interrupted_without_a_crash(after, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    rng = np.random.default_rng(0)
    for i in range(2):
        pixels = rng.integers(0, 256, (112, 112, 3), np.uint8)
        Image.fromarray(pixels).save(photos / f"{i}.png")
    program = "from lite3r_jax.cli.lite3r import program; program()"
    words = (str(photos), f"--output={tmp_path / 'out'}")
    code, seconds, errors = interrupted(program, *words, until="[1/1]", after=after)
    done = (tmp_path / "out" / "report.json").exists()
    if after > 1 and done and code in (0, -signal.SIGINT):  # of a quick machine
        return
    assert code == 130 and seconds < 30
    assert errors.strip().endswith(LINE) and "Traceback" not in errors
    assert not [path.name for path in tmp_path.rglob("*") if ".partial-" in path.name]
