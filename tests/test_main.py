"""The command line up to the mode."""

import subprocess
import sys
from pathlib import Path

import pytest

from lite3r_jax.cli.modes import MODES
from lite3r_jax.main import main

ROOT = Path(__file__).parents[1]
CONFIG = f"--config={ROOT / 'configs' / 'vggt.py'}"


def test_without_a_config_it_says_how_to_give_one(capsys):
    assert main([]) == 2
    assert capsys.readouterr().err == (
        "error: --config: missing; for example --config=configs/vggt.py\n"
    )


@pytest.mark.parametrize("flags", [[CONFIG, "--mode=fly"], [CONFIG, "--speed=1"]])
def test_unknown_modes_and_flags_are_named(capsys, flags):
    assert main(flags) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "fly" in error or "speed" in error


def test_a_missing_config_file_is_named(capsys):
    assert main(["--config=configs/nowhere.py"]) == 2
    error = capsys.readouterr().err
    assert "configs/nowhere.py" in error and error.count("\n") == 1


def test_the_mode_gets_the_experiment_and_its_code_is_the_exit_code(monkeypatch):
    seen = []
    monkeypatch.setitem(MODES, "view", lambda experiment: seen.append(experiment) or 7)
    assert main([CONFIG, "--mode=view", "--config.input=a b", "--config.images.size=392"]) == 7
    (experiment,) = seen
    assert (experiment.input, experiment.images.size) == ("a b", 392)


def test_an_interrupt_is_no_traceback(monkeypatch, capsys):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setitem(MODES, "view", interrupted)
    assert main([CONFIG, "--mode=view"]) == 130
    assert capsys.readouterr().err.startswith("interrupted")


def test_help_lists_modes_and_settings():
    run = subprocess.run(
        [sys.executable, "-m", "lite3r_jax.main", "--help"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "reconstruct" in run.stdout and "--config" in run.stdout
