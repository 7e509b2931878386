"""The README and the pages of docs/: what they print runs, and what they link to is there."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lite3r_jax.cli.lite3r import COMMANDS, PROGRAMS, main, settings_of

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(text: str, language: str = "") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder with two photos in `photos`."""
    (tmp_path / "photos").mkdir()
    rng = np.random.default_rng(0)
    for i in range(2):
        pixels = rng.integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).resize((112, 112)).save(tmp_path / "photos" / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_readme_begins_with_a_command_and_ten_lines_of_python():
    lines = README.splitlines()
    assert len(lines) < 150
    first_screen = "\n".join(lines[:30])
    assert blocks(first_screen)[0] == "pip install .\nlite3r photos --open\n"
    assert "--weights facebook/VGGT-1B" in README
    assert len(blocks(first_screen, "python")[0].splitlines()) <= 11


def test_its_lines_of_python_run_as_printed(here, capsys):
    exec(compile(blocks(README, "python")[0], "README.md", "exec"), {})
    shown = capsys.readouterr().out
    assert "(2, 3, 4) (2, 112, 112)" in shown and "sla" in shown
    assert {path.name for path in (here / "files").iterdir()} == {
        "points.ply", "scene.glb", "scene.html",
    }  # fmt: skip


@pytest.mark.slow
def test_its_command_runs_as_printed(here, monkeypatch):
    monkeypatch.setenv("BROWSER", "true %s")
    assert main(shlex.split(blocks(README)[0].splitlines()[1])[1:]) == 0
    assert (here / "lite3r_output" / "photos" / "scene.html").is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_pages_link_to_is_there(page):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_that_pages_print_have_the_options_that_they_name(page):
    for block in blocks(page.read_text()):
        for line in re.sub(r"\s*\\\n\s*", " ", block).splitlines():
            if not line.startswith("lite3r "):
                continue
            _, name, *words = shlex.split(line, comments=True)
            if name in PROGRAMS:
                continue
            if name not in COMMANDS:  # lite3r PHOTOS
                name, words = "reconstruct", [name, *words]
            words = ["vggt-tiny" if word in ("WEIGHTS", "OUT") else word for word in words]
            words = ["vggt-tiny" if word == "facebook/VGGT-1B" else word for word in words]
            assert settings_of(name, words) is not None, line
