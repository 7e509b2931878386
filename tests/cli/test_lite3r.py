"""The program `lite3r`: commands run for real in their smallest form, and what they refuse."""

import contextlib
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import webbrowser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lite3r_jax import __version__
from lite3r_jax.cli import setting_help
from lite3r_jax.cli.lite3r import COMMANDS, PROGRAMS, main, settings_of
from lite3r_jax.experiment import setting_types
from lite3r_jax.exports.npz import read_npz
from lite3r_jax.main import main as by_config
from lite3r_jax.runs.recipes import load_recipe, recipe_names

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two photos of 28 x 28 pixels."""
    folder = tmp_path_factory.mktemp("garden")
    rng = np.random.default_rng(0)
    for i in range(2):
        pixels = rng.integers(0, 256, (28, 28, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"p{i}.png")
    return str(folder)


@pytest.fixture(scope="module")
def first_run(photos, tmp_path_factory):
    """`lite3r PHOTOS` as a new user types it: where, what was on the screen and in the browser."""
    home = tmp_path_factory.mktemp("home")
    browser, seen, screen = home / "browser", home / "seen", io.StringIO()
    browser.write_text(f'#!/bin/sh\necho "$1" > {seen}\n')
    browser.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(screen):
        patch.setenv("BROWSER", f"{browser} %s")
        patch.setattr(webbrowser, "_tryorder", None)  # so that it looks for browsers again
        patch.chdir(home)
        files = sorted(map(str, Path(photos).iterdir()))
        assert main([*files, "--size=28", "--formats=npz,ply,html", "--open"]) == 0
    return home, screen.getvalue().splitlines(), seen.read_text().strip()


@pytest.fixture(scope="module")
def results(photos, first_run):
    """The folder of its results."""
    return first_run[0] / "lite3r_output" / Path(photos).name


def test_photos_alone_give_a_page_that_is_named_and_opened(first_run, results):
    home, lines, opened = first_run
    page = results / "scene.html"
    assert page.is_file() and lines[-1] == f"open {page.relative_to(home)}"
    assert opened == page.as_uri()
    assert lines[0].startswith("vggt-tiny comes with the package")
    assert "--weights facebook/VGGT-1B (5.0 GB" in lines[1]


@pytest.mark.parametrize("words", [["a b/c"], ["no*pe"], ["a.jpg"], ["--size=28", "./train"]])
def test_what_looks_like_a_path_is_photos(words, capsys):
    assert main(words) == 2
    assert words[-1] in capsys.readouterr().err


def test_reconstruct_takes_the_recipe_of_its_weights(results):
    scene = read_npz(results / "predictions.npz")
    assert scene.depth.shape == (2, 28, 28) and (scene.depth > 0).all()
    settings = json.loads((results / "report.json").read_text())["settings"]
    assert settings["images"]["mode"] == "pad" and settings["weights"] == "vggt-tiny"


def test_it_is_the_same_entry_as_config_and_mode(results, photos, tmp_path):
    flags = ["input=" + photos, f"output={tmp_path / 'out'}", "images.size=28", "formats=npz"]
    words = [f"--config.{flag}" for flag in flags]
    assert by_config(["--config=vggt_tiny", "--mode=reconstruct", *words]) == 0
    mine, theirs = (folder / "predictions.npz" for folder in (results, tmp_path / "out"))
    assert mine.read_bytes() == theirs.read_bytes()


def test_results_are_exported_in_other_formats(results, tmp_path):
    out = tmp_path / "more"
    assert main(["export", str(results), "--output", str(out), "--formats=tum,glb"]) == 0
    assert {path.name for path in out.iterdir()} == {"trajectory.txt", "scene.glb"}


def reconstructed(photos, out, *words):
    """The report of a reconstruction by the small model, and its depth."""
    words = (photos, "--weights=vggt-tiny", f"--output={out}", "--size=28", *words)
    assert main(["reconstruct", *words, "--formats=npz,html"]) == 0
    page = (out / "scene.html").read_text()
    report = json.loads((out / "report.json").read_text())
    assert report["model"]["name"] in page and report["model"]["plan"] in page
    return report["model"], read_npz(out / "predictions.npz").depth


def test_attention_and_precision_are_chosen_and_the_results_say_so(photos, results, tmp_path):
    dense = read_npz(results / "predictions.npz").depth
    plan = "sla_global(keep=0.5,block=4)"
    words = ("--attention.plan", plan, "--precision=fp8_weight_only")
    model, depth = reconstructed(photos, tmp_path / "out", *words)
    assert (model["name"], model["plan"]) == (f"{plan}-fp8_weight_only", plan)
    assert model["float8_rules"] == "default" and "float8" in model["dtype"]["weights"]
    assert 0 < np.abs(depth - dense).max() < np.abs(dense).max()


def test_a_student_reconstructs_and_the_results_name_it(photos, results, bundled_student, tmp_path):
    dense = read_npz(results / "predictions.npz").depth
    model, depth = reconstructed(photos, tmp_path / "out", f"--student={bundled_student}")
    assert model["name"] == "student-float32" and len(model["student"]["sha256"]) == 64
    assert model["plan"].startswith("sla_global(")
    assert 0 < np.abs(depth - dense).max() < np.abs(dense).max()


@pytest.mark.slow
def test_models_are_evaluated_measured_and_deployed(bundled_student, tmp_path, capsys):
    words = ["--weights=vggt-tiny", f"--student={bundled_student}"]
    plan = "sla_global(keep=0.5,block=4)"
    small = ["--size=28x28", f"--output={tmp_path / 'evaluation'}", "--scenes=1"]
    variants = f"--variants={plan}-float32"
    assert main(["evaluate", *words, *small, variants, "--evaluate.resamples=10"]) == 0
    report = json.loads((tmp_path / "evaluation" / "report.json").read_text())
    assert report["models"][f"{plan}-float32"]["plan"] == plan

    small = ["--size=28x28", f"--output={tmp_path / 'bench'}", "--views=1", "--runs=1"]
    small += ["--bench.isolate=false", "--bench.warmup=0", "--bench.baselines=dense-float32"]
    assert main(["bench", *words, *small, "--variants=student-float32"]) == 0
    body = json.loads((tmp_path / "bench" / "bench.json").read_text())
    assert [cell["variant"] for cell in body["cells"]] == ["dense-float32", "student-float32"]
    assert body["variants"]["student-float32"]["plan"].startswith("sla_global(keep=0.3")

    out = tmp_path / "deployed"
    assert main(["deploy", "vggt-tiny", str(out), f"--student={bundled_student}"]) == 0
    assert "made of  a student" in capsys.readouterr().out
    assert main(["bench", f"--weights={out}", f"--output={tmp_path / 'no'}"]) == 2
    assert "a deployed model" in capsys.readouterr().err


def test_checkpoints_are_converted_there_and_back(tiny_dir, tmp_path):
    file, again = tmp_path / "model.safetensors", tmp_path / "weights"
    assert main(["convert", "export", str(tiny_dir), str(file)]) == 0
    config = tiny_dir / "config.json"
    assert main(["convert", "vggt", str(file), str(again), f"--config={config}"]) == 0
    parts = sorted(path.name for path in tiny_dir.glob("*.safetensors"))
    assert parts
    for name in parts:
        assert (again / name).read_bytes() == (tiny_dir / name).read_bytes()


def test_a_scene_is_shown_until_it_is_interrupted(results):
    program = (  # a job in the background may be born with interrupts ignored or blocked
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT});"
        "from lite3r_jax.cli.lite3r import program; program()"
    )
    command = [sys.executable, "-c", program, "view", str(results), "--port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as shown:
        try:
            assert shown.stdout is not None
            assert any(line.endswith(b"(stop with Ctrl-C)\n") for line in shown.stdout)
            shown.send_signal(signal.SIGINT)
            assert shown.wait(timeout=60) == 0
        finally:
            shown.kill()  # `with` would wait for a process that does not end


def test_settings_of_a_model_are_refused_where_a_saved_scene_is_read(results, tmp_path, capsys):
    for words in (["view", str(results)], ["export", str(results), f"--output={tmp_path / 'out'}"]):
        for name, value in (
            ("student", "S"),
            ("attention.plan", "dense"),
            ("precision", "float32"),
        ):
            assert main([*words, f"--{name}={value}"]) == 2
            message = capsys.readouterr().err
            assert f"config.{name}: is for reconstructions; leave it out" in message
            assert str(results) in message
    assert not (tmp_path / "out").exists()


def test_version_and_help(capsys):
    for words in (["version"], ["--version"], ["train", "--version"]):
        assert main(words) == 0
        assert capsys.readouterr().out == f"lite3r_jax {__version__}\n"
    assert main([]) == 0
    overview = capsys.readouterr().out
    assert all(f"  {name}" in overview for name in [*COMMANDS, *PROGRAMS])
    for name, command in COMMANDS.items():
        assert main([name, "--help"]) == 0
        shown = capsys.readouterr().out
        assert command.summary in shown
        assert max(map(len, shown.splitlines())) <= setting_help.WIDTH
        listed = {line.split("=")[0].strip().lstrip("'-") for line in shown.splitlines()}
        top = {setting for setting in setting_types() if setting.split(".")[0] in command.shown}
        assert top <= listed
        assert set(command.words) <= listed and {*command.short.values()} <= listed


def test_help_has_the_values_of_the_recipe_and_what_they_mean(capsys):
    assert main(["reconstruct", "--images.size=112", "--help"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^images:$", shown, re.MULTILINE)
    assert re.search(r"^  --images.size=112 +network size in pixels", shown, re.MULTILINE)
    assert "--images.mode=auto " in shown and "--weights=vggt-tiny " in shown


def test_every_setting_has_a_meaning_and_is_written_as_it_is_read():
    for recipe in ("vggt:tiny", "da3_large"):
        settings = load_recipe(recipe)
        entries = [e for each in setting_help.settings_by_group(settings).values() for e in each]
        assert {entry.name for entry in entries} == set(setting_types())
        assert not [entry.name for entry in entries if len(entry.meaning) < 4]
        words = [word for entry in entries for word in shlex.split(entry.word())]
        assert settings_of("reconstruct", words) == settings


def test_config_shows_settings_without_a_run(capsys):
    assert main(["config", "show", "--recipe=vggt:tiny", "--train.seed=3"]) == 0
    shown = capsys.readouterr().out
    assert "--train.seed=3 " in shown and "--images.mode=auto" in shown
    described = [line for line in shown.splitlines() if " " in line.strip()]
    assert max(map(len, described)) <= setting_help.WIDTH
    assert main(["config", "show", "images.min_views", "video"]) == 0
    shown = capsys.readouterr().out
    assert "--images.min_views=1\n    scenes with fewer photos are refused" in shown
    assert "--video.fps" in shown and "--images.size" not in shown


def test_a_platform_that_is_not_there_is_a_sentence(photos):
    run = subprocess.run(
        [sys.executable, "-m", "lite3r_jax", photos],
        env=os.environ | {"JAX_PLATFORMS": "cuda"}, cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 2
    assert run.stderr.startswith("error: JAX_PLATFORMS=cuda: there is no such device here (")
    assert run.stderr.count("\n") == 1


def test_short_options_stand_for_settings_and_every_setting_has_its_dotted_name():
    words = ["--recipe=vggt:tiny", "--steps", "7", "--seed=3", "--plan", "sla_global(keep=0.5)"]
    settings = settings_of("distill", [*words, "--train.remat", "--config.output=RUN"])
    assert settings is not None
    assert (settings.train.loop.steps, settings.train.seed, settings.train.remat) == (7, 3, True)
    assert (settings.distill.plan, settings.output) == ("sla_global(keep=0.5)", "RUN")
    for command in COMMANDS.values():
        assert {*command.short.values(), *command.words, *command.defaults} <= set(setting_types())


def test_without_a_recipe_the_small_model_is_trained_as_any_vggt():
    settings = settings_of("train", ["--weights=vggt-tiny", "--output=RUN"])
    assert settings is not None and not settings.distill.plan
    assert settings.train.loop.steps == load_recipe("vggt:backbone").train.loop.steps
    settings = settings_of("distill", ["--weights=vggt-tiny"])
    assert settings is not None and settings.distill.plan and settings.weights == "vggt-tiny"


def test_recipes_are_found_by_name_and_by_file(tmp_path):
    assert {"vggt", "da3_large", "vggt_tiny"} <= set(recipe_names())
    assert load_recipe("configs/vggt.py:tiny,keep10") == load_recipe("vggt:tiny,keep10")
    for name in recipe_names():
        load_recipe(name)
    own = tmp_path / "mine.py"
    own.write_text(
        "from lite3r_jax.experiment import Experiment\n"
        "def get_config():\n    return Experiment(output='there')\n"
    )
    assert load_recipe(str(own)).output == "there"


@pytest.mark.parametrize(
    "words,message",
    [
        (
            ["recontruct"],
            "recontruct: neither a command nor a file or folder; did you mean 'reconstruct'?",
        ),
        (["photos"], "photos: neither a command nor a file or folder; see lite3r --help"),
        (["export", "a", "b"], "b: unexpected; lite3r export RESULTS --output OUT"),
        (["reconstruct", "a", "b,c"], "b,c: has a comma in its name and is one of several"),
        (
            ["reconstruct", "--weigths=W"],
            "--weigths: there is no such setting; did you mean '--wei",
        ),
        (["reconstruct", "--conf_percentile=3"], "did you mean '--export.points.conf_percentile'?"),
        (["reconstruct", "--size=big"], "--images.size: expected int, got 'big'"),
        (["reconstruct", "--overwrite=1"], "--overwrite: expected true or false, got '1'"),
        (["reconstruct", "--images.mode=corp"], "got 'corp'; did you mean 'crop'?"),
        (["reconstruct", "a", "--weights"], "--weights: a value is missing; write --weights=VALUE"),
        (["reconstruct", "-w", "W"], "-w: there is no such option; options begin with --"),
        (["reconstruct", "--weights=no/where"], "no/where: no such directory, and no hub repos"),
        (
            ["--weights=vggt-tny"],
            "vggt-tny: no such directory; expected converted weights, or one of: vggt-tiny, face"
            ".*; did you mean 'vggt-tiny'?",
        ),
        (["x/", "--weights=facebook/VGGT-1b"], "did you mean 'facebook/VGGT-1B'?"),
        (["--versoin"], "--versoin: there is no such setting; did you mean '--version'?"),
        (["reconstruct", "--config.imags.size=1"], "did you mean '--images.size'?"),
        (["reconstruct", "--inptu=x"], "did you mean '--input'?"),
        (["reconstruct", "x", "--formats=plyy"], "formats: unknown: plyy;.*; did you mean 'ply'?"),
        (["config"], "lite3r config: the word `show` is expected"),
        (["config", "show", "imges"], "imges: there is no such setting; did you mean 'images'?"),
        (["deploy", "a", "b", "--overwrote"], "unrecognized.*; did you mean '--overwrite'?"),
        (
            ["reconstruct", "--recipe=vgt"],
            "recipe 'vgt' is not known; did you mean 'vggt'",
        ),
        (["reconstruct", "--recipe=configs/vgt.py"], "configs/vgt.py: the config file cannot be"),
        (
            ["distill", "--recipe=vggt:tinny"],
            "'tinny' is not known; did you mean 'tiny'?",
        ),
        (["distill", "--recipe=vggt_tiny:x"], "vggt_tiny:x: this recipe has no variants"),
        (["reconstruct", "{photos}", "--student=S", "--attention=dense"], "leave out one of them"),
        (["reconstruct", "{photos}", "--student=S"], "S/manifest.json: missing, so this is no stu"),
        (["reconstruct", "{photos}", "--precision=fp4"], "--precision: expected one of"),
        (["reconstruct", "{photos}", "--attention=sla_glob"], "did you mean 'sla_global'"),
        (["distill", "--recipe=vggt:backbone"], "it trains a backbone; use lite3r train"),
        (["train", "--recipe=vggt"], "it distils a student; use lite3r distill"),
        (["reconstruct", "--recipe=vggt"], "config.input: not set; add --input="),
        (["export", "nowhere", "--output=o"], "nowhere: has no predictions.npz; expected that"),
        (["convert", "vgtt", "a", "b"], "invalid choice: 'vgtt'.*did you mean 'vggt'?"),
        (["convert", "vggt", "model.pt", "b"], "model.pt: is read with torch, which is no part of"),
        (["deploy", "W"], "the following arguments are required: out; see lite3r deploy --help"),
        (["check-data", "nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_one_line_with_the_nearest_name(words, message, capsys, photos, tmp_path):
    if words[1:2] == ["{photos}"]:
        words = ["reconstruct", photos, *words[2:], "--weights=vggt-tiny", f"--output={tmp_path}"]
    assert main([*words]) == 2
    shown, error = capsys.readouterr()
    assert shown == "" and error.startswith("error: ") and error.count("\n") == 1
    parts = message.split(".*")
    assert all(part in error for part in parts), error
