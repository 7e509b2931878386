"""A built wheel, installed alone outside of the clone, reconstructs photos with its own model."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel of the project, built from what git has, without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    files = subprocess.run(
        ["git", "ls-files", "lite3r_jax", "pyproject.toml", "README.md", "LICENSE"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split("\n")  # fmt: skip
    for name in filter(None, files):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    command += ["--quiet", "--wheel-dir", str(folder), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    (built,) = folder.glob("lite3r_jax-*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_has_every_file_of_the_package_and_nothing_beside(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    ours = subprocess.run(
        ["git", "ls-files", "lite3r_jax"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert {name for name in ours.stdout.split() if not name.endswith("README.md")} <= names
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"lite3r_jax"}


@pytest.mark.slow
def test_installed_alone_it_reconstructs_two_photos(wheel, tmp_path):
    home = tmp_path / "venv"
    venv.create(home, with_pip=False, symlinks=True)
    places = {"base": str(home), "platbase": str(home)}
    target = Path(sysconfig.get_path("purelib", "venv", vars=places))
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    install += ["--prefix", str(home), "--ignore-installed", str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    # what the package needs is taken from this environment, after the package itself
    libraries = sorted({sysconfig.get_path(name) for name in ("purelib", "platlib")})
    (target / "needed.pth").write_text("\n".join(libraries) + "\n")
    photos = tmp_path / "photos"
    photos.mkdir()
    rng = np.random.default_rng(0)
    for i in range(2):
        pixels = rng.integers(0, 256, (28, 28, 3), np.uint8)
        Image.fromarray(pixels).save(photos / f"p{i}.png")

    def run(*words: object) -> str:
        done = subprocess.run(
            list(map(str, words)), cwd=tmp_path, capture_output=True, text=True,
            env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    python, lite3r = home / "bin" / "python", home / "bin" / "lite3r"
    where = run(python, "-c", "import lite3r_jax; print(lite3r_jax.__file__)")
    assert Path(where.strip()).is_relative_to(home)
    assert run(python, "-m", "lite3r_jax", "version").startswith("lite3r_jax ")
    script = [python, lite3r]
    run(
        *script, "reconstruct", photos, "--weights", "vggt-tiny", "--output", tmp_path / "out",
        "--size=28", "--precision=fp8_weight_only",
    )  # fmt: skip
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["model"]["name"] == "dense-fp8_weight_only"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "predictions.npz", "points.ply", "scene.glb", "colmap", "scene.html", "report.json",
    }  # fmt: skip
    assert "vggt:tiny" in run(*script, "distill", "--help")
