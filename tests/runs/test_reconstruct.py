"""`--mode=reconstruct` from the command line to the files."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lite3r_jax import exports
from lite3r_jax.exports.npz import read_npz
from lite3r_jax.main import main
from lite3r_jax.weights.convert import convert
from lite3r_jax.weights.safetensors_file import open_safetensors
from tools.benchmark.random_checkpoint import write_random

ROOT = Path(__file__).parents[2]
CONFIG = f"--config={ROOT / 'configs' / 'vggt.py'}"


def photo_folder(path: Path, count: int = 2, size: tuple[int, int] = (112, 84)) -> Path:
    path.mkdir(parents=True)
    rng = np.random.default_rng(count)
    for i in range(count):
        pixels = rng.integers(0, 256, (size[1] // 7, size[0] // 7, 3), np.uint8)
        Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(path / f"p{i}.png")
    return path


def flags(source, weights, output, *more):
    settings = {"input": source, "weights": weights, "output": output, "images.size": 56}
    settings["backbone"] = "fake" if Path(weights).name == "fake" else "vggt"
    return [CONFIG, *(f"--config.{name}={value}" for name, value in settings.items()), *more]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the report, which has times in it."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "report.json"
    }


def test_photos_become_files_and_a_report(fake_dir, tmp_path, capsys):
    photos, out = photo_folder(tmp_path / "garden"), tmp_path / "out"
    (photos / "notes.txt").write_text("no photo")
    formats = ",".join(exports.FORMATS)
    assert main(flags(photos, fake_dir, out, f"--config.formats={formats}")) == 0
    expected = {path.name for path in exports.planned(out, tuple(exports.FORMATS))}
    assert {path.name for path in out.iterdir()} == expected | {"report.json"}

    scene = read_npz(out / "predictions.npz")
    assert scene.names == ("p0.png", "p1.png")
    np.testing.assert_allclose(scene.depth, 1 + scene.images.mean(-1) / 255, atol=1e-6)

    report = json.loads((out / "report.json").read_text())
    assert report["scene"]["network_size"] == {"height": 42, "width": 56}
    assert report["scene"]["photos"][1] == {"name": "p1.png", "width": 112, "height": 84}
    assert report["scene"]["ignored_files"] == ["notes.txt"]
    assert report["settings"]["images"]["size"] == 56
    assert list(report["outputs"]) == list(exports.FORMATS)
    assert report["outputs"]["npz"]["bytes"] == (out / "predictions.npz").stat().st_size
    assert {"load photos", "compile", "run", "export"} <= set(report["seconds"])
    assert report["memory_GiB"]["measured_peak"] > 0
    assert report["versions"]["jax"]

    screen = capsys.readouterr().out
    assert "garden: 2 views" in screen
    assert "scene.glb" in screen and "notes.txt" in screen


def test_names_that_would_control_the_screen_or_are_no_text_are_escaped(fake_dir, tmp_path, capsys):
    root, out = tmp_path / "rooms", tmp_path / "out"
    names = ["red\x1b[31m\nerror: forged", os.fsdecode(b"caf\xe9")]
    for name in names:
        photos = photo_folder(root / name, 1)
        (photos / os.fsdecode(b"\xff.txt")).write_text("no photo")
    broken = photo_folder(root / "z\x07", 1)
    (broken / "p0.png").write_bytes(b"no photo")
    assert main(flags(root, fake_dir, out, "--config.formats=npz,html")) == 1
    said, errors = capsys.readouterr()
    text = said + errors
    assert all(line.isprintable() for line in text.splitlines())
    assert not [line for line in text.splitlines() if line.startswith("error: forged")]
    assert "red\\x1b[31m\\nerror: forged: 1 views" in said and "caf\\udce9: 1 views" in said
    assert "\\udcff.txt" in said and "error: z\\x07: " in errors
    for name in names:  # folders have the names of their scenes
        assert json.loads((out / name / "report.json").read_text())["scene"]["views"] == 1


@pytest.mark.slow
def test_the_same_photos_give_the_same_bytes(fake_dir, tmp_path):
    photos = photo_folder(tmp_path / "garden", 3)
    formats = f"--config.formats={','.join(exports.FORMATS)}"
    for name in ("a", "b"):
        assert main(flags(photos, fake_dir, tmp_path / name, formats)) == 0
    first = contents(tmp_path / "a")
    assert len(first) > 20
    assert first == contents(tmp_path / "b")


def test_results_are_replaced_only_on_demand(fake_dir, tmp_path, capsys):
    photos, out = photo_folder(tmp_path / "garden"), tmp_path / "out"
    assert main(flags(photos, fake_dir, out, "--config.formats=npz,tum")) == 0
    (out / "mine.txt").write_text("kept")
    before = contents(out)
    capsys.readouterr()

    assert main(flags(photos, fake_dir, out, "--config.formats=npz,ply")) == 2
    error = capsys.readouterr().err
    assert "predictions.npz, " in error and "--config.overwrite" in error
    assert error.count("\n") == 1
    assert contents(out) == before

    more = photo_folder(tmp_path / "more", 3)
    assert main(flags(more, fake_dir, out, "--config.formats=npz,tum", "--config.overwrite")) == 0
    assert read_npz(out / "predictions.npz").views == 3
    assert (out / "mine.txt").read_text() == "kept"
    assert main(flags(more, fake_dir, out, "--config.formats=ply", "--config.overwrite")) == 0
    assert {path.name for path in out.iterdir()} == {"mine.txt", "points.ply", "report.json"}
    assert main(flags(more, fake_dir, out, "--config.formats=npz,tum", "--config.overwrite")) == 0
    assert json.loads((out / "report.json").read_text())["scene"]["views"] == 3


def test_folders_of_folders_are_scenes_and_one_bad_scene_spares_the_others(
    fake_dir, tmp_path, capsys
):
    for name in ("a", "b", "c"):
        photo_folder(tmp_path / "in" / name)
    (tmp_path / "in" / "b" / "p1.png").write_bytes(b"no image")
    out = tmp_path / "out"
    assert main(flags(tmp_path / "in", fake_dir, out, "--config.formats=npz")) == 1
    assert sorted(path.name for path in out.iterdir()) == ["a", "c"]
    captured = capsys.readouterr()
    assert "error: b:" in captured.err and "p1.png" in captured.err
    assert "2 of 3 scenes done" in captured.out


def test_masks_are_checked_before_anything_runs_and_change_the_results(fake_dir, tmp_path, capsys):
    photos, masks, out = photo_folder(tmp_path / "garden"), tmp_path / "masks", tmp_path / "out"
    masks.mkdir()
    points = "--config.export.points"
    more = ["--config.formats=npz,ply", f"{points}.mask_folder={masks}"]
    mask = np.zeros((84, 112), np.uint8)
    mask[:, 56:] = 255
    Image.fromarray(mask).save(masks / "p0.png")
    assert main(flags(photos, fake_dir, out, *more)) == 2
    assert f"{masks}: has no mask for p1.png; expected p1.png" in capsys.readouterr().err
    Image.fromarray(mask[:80]).save(masks / "p1.png")
    assert main(flags(photos, fake_dir, out, *more)) == 2
    assert "p1.png: is 112x80, expected 112x84" in capsys.readouterr().err
    assert main(flags(photos, fake_dir, out, f"{points}.mask=ski")) == 2
    assert "points.mask: unknown: ski" in capsys.readouterr().err
    assert not list(out.glob("*.*"))

    Image.fromarray(mask).save(masks / "p1.png")
    whole = f"{points}.conf_percentile=0"
    assert main(flags(photos, fake_dir, out, *more, whole)) == 0
    count = (out / "points.ply").read_bytes().split(b"element vertex ")[1].split(b"\n")[0]
    assert int(count) == 2 * 42 * 28  # of 56: the left half of every photo is gone
    assert (read_npz(out / "predictions.npz").depth > 0).all()
    Image.fromarray(255 - mask).save(masks / "p1.png")
    assert main(flags(photos, fake_dir, out, *more, whole)) == 2, "another mask, other results"

    rooms = tmp_path / "rooms"
    photo_folder(rooms / "one"), photo_folder(rooms / "two")
    batch = ["--config.formats=ply", f"{points}.mask_folder={masks}"]
    assert main(flags(rooms, fake_dir, tmp_path / "both", *batch)) == 2
    assert f"{masks}: has no folder one" in capsys.readouterr().err


def test_a_batch_goes_on_and_names_what_failed(fake_dir, tmp_path, capsys):
    rooms, out = tmp_path / "rooms", tmp_path / "out"
    photo_folder(rooms / "a")
    (rooms / "b").mkdir()
    (tmp_path / "clip.mp4").write_bytes(b"no video")
    words = ["--config.formats=npz,tum"]
    given = f"{rooms}/a,{rooms}/b,{tmp_path}/clip.mp4"
    assert main(flags(given, fake_dir, out, *words)) == 1
    shown = capsys.readouterr()
    assert [path.name for path in out.iterdir()] == ["a"]
    assert shown.out.splitlines()[-1] == "1 of 3 scenes done; failed: b, clip"
    assert "error: b: " in shown.err and "error: clip: " in shown.err

    photo_folder(rooms / "more").rename(rooms / "b" / "images")
    for photo in (rooms / "b" / "images").iterdir():
        photo.rename(rooms / "b" / photo.name)
    written = (out / "a" / "predictions.npz").stat().st_mtime_ns
    assert main(flags(rooms, fake_dir, out, *words)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "[1/2] a: done before; overwrite does it again" in lines
    assert lines[-1] == "2 of 2 scenes done, 1 of them before"
    assert (out / "a" / "predictions.npz").stat().st_mtime_ns == written

    assert main([CONFIG, "--mode=view", f"--config.input={out}"]) == 0
    listed = capsys.readouterr().out
    assert "results of 2 scenes" in listed and f"lite3r view {out}/b\n" in listed


def test_a_stopped_run_goes_on_and_other_photos_are_refused(fake_dir, tmp_path, capsys):
    photos, out = photo_folder(tmp_path / "garden"), tmp_path / "out"
    words = flags(photos, fake_dir, out, "--config.formats=npz,tum", "--config.quiet")
    assert main(words) == 0
    assert capsys.readouterr().out == f"open {out}\n"
    (out / "trajectory.txt").unlink()  # as if it had been killed
    assert main(words) == 0 and (out / "trajectory.txt").is_file()
    assert capsys.readouterr().out == f"open {out}\n"
    assert main([word for word in words if "quiet" not in word]) == 0
    assert "done before" in capsys.readouterr().out
    photo_folder(tmp_path / "other", 3).joinpath("p2.png").rename(photos / "p2.png")
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "exist already, made with other settings, weights or photos" in error


def test_points_of_the_head_are_exported_on_demand(fake_dir, tmp_path):
    photos, out = photo_folder(tmp_path / "garden"), tmp_path / "out"
    more = ("--config.formats=npz,ply", "--config.export.points.source=head")
    assert main(flags(photos, fake_dir, out, *more)) == 0
    assert read_npz(out / "predictions.npz").world_points is not None


@pytest.mark.parametrize(
    "more,message",
    [
        (["--config.input="], "config.input: not set; add --config.input="),
        (["--config.weights="], "config.weights: not set"),
        (["--config.input=nowhere"], "nowhere: no such file or folder"),
        (["--config.formats=ply,obj"], "formats: unknown: obj; expected some of npz, ply"),
        (["--config.images.mode=fit"], "config.images.mode: expected one of auto, crop, pad"),
        (["--config.images.size=100"], "size: expected a positive multiple of 14"),
        (["--config.images.min_views=3"], "too few views: 2, at least 3"),
        (["--config.video.fps=2.0", "--config.video.stride=3"], "choose one of the two"),
        (["--config.compute.dtype=int8"], "config.compute.dtype: expected one of auto, float32"),
        (["--config.export.points.voxel=2.0"], "points.voxel: expected 0"),
        (["--config.compute.memory_limit=0.001"], "do not fit"),
        (["--config.cameras.known=nowhere"], "cameras.known: FakeModel takes no known cameras"),
        (
            ["--config.cameras.poses=ray"],
            "cameras.poses: FakeModel has no such choice; leave it auto",
        ),
        (["--config.cameras.world=mine"], "config.cameras.world: expected one of known, predicted"),
        (["--config.backbone=da3", "--config.cameras.known=nowhere"], "nowhere: no such file or"),
        (
            ["--config.backbone=da3", "--config.cameras.reference=last"],
            "cameras.reference: expected one of auto, saddle_balanced, saddle_sim_range, middle",
        ),
        (["--config.nonsense=1"], "--config.nonsense: there is no such setting"),
        (["surplus"], "surplus: unexpected"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(fake_dir, tmp_path, capsys, more, message):
    photos, out = photo_folder(tmp_path / "garden"), tmp_path / "out"
    assert main([*flags(photos, fake_dir, out), *more]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert not out.exists()


def test_known_cameras_that_do_not_fit_are_refused_before_the_weights_are_read(
    fake_dir, tmp_path, capsys
):
    photos, out = photo_folder(tmp_path / "garden"), tmp_path / "out"
    path = tmp_path / "cameras.npz"
    extrinsics, k = np.tile(np.eye(3, 4), (2, 1, 1)), np.tile(np.eye(3), (2, 1, 1))
    np.savez(path, extrinsics=extrinsics, intrinsics=k, names=["p0.png", "p7.png"])
    known = ["--config.backbone=da3", f"--config.cameras.known={path}"]
    assert main([*flags(photos, fake_dir, out), *known]) == 2
    assert f"error: {path}: has no camera for p1.png" in capsys.readouterr().err
    for name in ("a", "b"):
        photo_folder(tmp_path / "rooms" / name)
    assert main([*flags(tmp_path / "rooms", fake_dir, out), *known]) == 2
    assert "is of one scene, the input has 2" in capsys.readouterr().err
    assert not out.exists()


def test_bad_weights_are_named(tiny_dir, tmp_path, capsys):
    photos, out = photo_folder(tmp_path / "garden"), tmp_path / "out"
    assert main(flags(photos, tmp_path / "nowhere", out)) == 2
    assert "nowhere: " in capsys.readouterr().err
    assert main(flags(photos, tiny_dir, out, "--config.backbone=other")) == 2
    assert "weights of vggt, but the config is for other" in capsys.readouterr().err
    assert main(flags(photos, tiny_dir, out, "--config.compute.memory_limit=1e-6")) == 2
    assert "memory: the weights alone need" in capsys.readouterr().err
    assert not out.exists()


@pytest.fixture(scope="session")
def random_dir(tmp_path_factory, golden_dir):
    """A tiny VGGT with random weights and finite cameras, converted."""
    folder = tmp_path_factory.mktemp("random")
    config = json.loads((golden_dir / "config.json").read_text())
    del config["param_count"]
    write_random("vggt", folder / "checkpoint.safetensors", config)
    with open_safetensors(folder / "checkpoint.safetensors") as source:
        convert(source, folder / "weights", backbone="vggt", config=config)
    return folder / "weights"


def command(*arguments) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "lite3r_jax.main", *map(str, arguments)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.slow
def test_depth_anything_takes_known_cameras_and_gives_them_back(tiny_da3_dir, tmp_path, capsys):
    photos, out = photo_folder(tmp_path / "garden", 3), tmp_path / "out"
    rng = np.random.default_rng(0)
    extrinsics = np.tile(np.eye(3, 4), (3, 1, 1))
    extrinsics[:, :, 3] = rng.standard_normal((3, 3))
    k = np.tile(np.array([[100.0, 0, 50], [0, 90, 45], [0, 0, 1]]), (3, 1, 1))
    cameras = tmp_path / "cameras.npz"
    names = ["p2.png", "p0.png", "p1.png"]
    np.savez(cameras, extrinsics=extrinsics, intrinsics=k, names=names)
    config = f"--config={ROOT / 'configs' / 'da3_small.py'}"
    _, *settings = flags(photos, tiny_da3_dir, out, "--config.formats=npz")
    settings = [flag for flag in settings if not flag.startswith("--config.backbone=")]
    assert main([config, *settings, f"--config.cameras.known={cameras}"]) == 0
    scene = read_npz(out / "predictions.npz")
    np.testing.assert_array_equal(scene.extrinsics, extrinsics[[1, 2, 0]].astype(np.float32))
    np.testing.assert_allclose(scene.source_intrinsics, k, rtol=1e-5)
    assert (scene.depth > 0).all()
    report = json.loads((out / "report.json").read_text())
    assert report["scene"]["known_cameras"]["known"] == str(cameras)
    assert report["scene"]["known_cameras"]["scale"] > 0
    said = " ".join(capsys.readouterr().out.split())  # lines are as wide as the screen
    assert f"known cameras {cameras}; predicted ones are" in said


@pytest.mark.slow
def test_two_real_runs_are_bit_equal(random_dir, tmp_path):
    photos = photo_folder(tmp_path / "garden", 3)
    formats = f"--config.formats={','.join(exports.FORMATS)}"
    for name in ("a", "b"):
        process = command(*flags(photos, random_dir, tmp_path / name, formats))
        output, errors = process.communicate()
        assert process.returncode == 0, errors
        assert "dense (blocked)" in output
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    report = json.loads((tmp_path / "a" / "report.json").read_text())
    assert report["model"]["backbone"] == "vggt"
    assert report["model"]["weights"]["license"]


@pytest.mark.slow
def test_a_killed_run_leaves_only_complete_files(random_dir, tmp_path):
    photos = photo_folder(tmp_path / "garden", 2)
    formats = f"--config.formats={','.join(exports.FORMATS)}"
    whole = tmp_path / "whole"
    process = command(*flags(photos, random_dir, whole, formats))
    process.communicate()
    assert process.returncode == 0
    expected = contents(whole)
    rng = random.Random(0)
    cut_short = 0
    for attempt in range(6):
        out = tmp_path / f"out{attempt}"
        process = command(*flags(photos, random_dir, out, formats))
        # a moment after so many files, and the lock, were begun or done, whenever that is
        while process.poll() is None and (not out.exists() or len(os.listdir(out)) <= attempt + 1):
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.01))
        process.kill()
        process.communicate()
        final = (
            {path.name for path in out.iterdir() if not path.name.startswith(".")}
            if (out.exists())
            else set()
        )
        files = {name: b for name, b in contents(out).items() if name.split("/")[0] in final}
        assert files.items() <= expected.items()
        for folder in final & {name.split("/")[0] for name in expected if "/" in name}:
            inside = {name for name in expected if name.startswith(f"{folder}/")}
            assert inside <= set(files)
        cut_short += process.returncode == -signal.SIGKILL
    assert cut_short
