"""How far a run is, on a terminal and in logs."""

import io
import sys
import threading
import time

import pytest

from lite3r_jax.errors import InputError
from lite3r_jax.progress import Bar, Progress


class Terminal(io.StringIO):
    """stderr as a terminal."""

    def isatty(self):
        return True


def test_stages_are_timed_and_short_ones_leave_no_lines_in_logs(capsys):
    progress = Progress()
    with progress.stage("count", 3, "step") as tick:
        threads = [threading.Thread(target=tick) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    with progress.stage("wait"):
        pass
    with pytest.raises(InputError), progress.stage("wait"):
        raise InputError("x")
    assert list(progress.seconds) == ["count", "wait"]
    assert all(seconds >= 0 for seconds in progress.seconds.values())
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err == ""


def test_a_terminal_sees_bars_and_clocks(monkeypatch):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    progress = Progress()
    with progress.stage("load photos", 2, "photo") as tick:
        tick()
        tick()
    with progress.stage("compile"):
        pass
    with progress.stage("run", expected=130):
        pass
    shown = terminal.getvalue()
    assert "load photos: 100%" in shown and "2/2" in shown
    assert "compile: 00:00" in shown and "run: 00:00 of about 02:10" in shown


def test_quiet_is_quiet(monkeypatch):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with Progress(show=False).stage("load photos", 2, "photo") as tick:
        tick()
    assert terminal.getvalue() == ""


def test_logs_get_a_line_now_and_then(capsys):
    with Bar("train", 100, "step", initial=40, every=0.02) as bar:
        for _ in range(10):
            bar.update("loss 0.5")
        time.sleep(0.5)
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("train: 50 of 100 steps, 00:0")
    assert last.endswith(" to go, loss 0.5")


def test_the_time_that_is_left_leaves_out_the_first_step(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    bar = Bar("train", 11, show=False)
    for seconds in (100, 2, 2):  # the first one compiles
        now[0] += seconds
        bar.update()
    assert bar.line() == "train: 3 of 11 steps, 01:44, about 00:16 to go"
    bar.close()
    bar = Bar("run", expected=1000.0, show=False)
    now[0] += 100
    assert bar.line() == "run, 01:40, about 15:00 to go"
    now[0] += 1000  # nobody knows any more
    assert bar.line() == "run, 18:20"
    bar.close()
