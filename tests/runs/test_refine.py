"""`lite3r reconstruct PHOTOS --refine` from photos to files and the report."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pycolmap
import pytest
from PIL import Image

from lite3r_jax import PointOptions, RefineOptions, reconstruct
from lite3r_jax.cli.lite3r import main
from lite3r_jax.exports import read_npz
from lite3r_jax.infer import reconstruct as reconstructing
from lite3r_jax.infer.memory import Forward
from lite3r_jax.infer.options import ImageOptions
from lite3r_jax.refine import refine
from tests.data.world import cast

VIEWS, SIZE = 4, 168
LENS = np.array([[1.05 * SIZE, 0, SIZE / 2], [0, 1.05 * SIZE, SIZE / 2], [0, 0, 1]])
YAW = (0.0, 0.02, -0.02, 0.03)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Photos of a camera that steps to the right, and turns, which the fake model does not know.

    It predicts half of the steps and a shorter focal length as well.
    """
    folder = tmp_path_factory.mktemp("photos") / "room"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for view in range(VIEWS):
        c, s = np.cos(YAW[view]), np.sin(YAW[view])
        turn = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
        center = np.array([[0.2 * view - 0.3], [0.0], [-2.4]])
        pose = np.concatenate([turn, -turn @ center], -1)
        pixels = cast(pose, LENS, (SIZE, SIZE))[0].astype(int)
        pixels += rng.integers(-2, 3, pixels.shape)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"p{view}.png")
    return folder


def test_photos_become_refined_files_and_a_report(photos, fake_dir, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["reconstruct", str(photos), "--weights", str(fake_dir), "--output", str(out)]
    words += ["--size", str(SIZE), "--formats", "npz,colmap,ply", "--backbone", "fake"]
    assert main([*words, "--refine"]) == 0
    screen = capsys.readouterr().out
    report = json.loads((out / "report.json").read_text())
    refinement = report["scene"]["refinement"]
    assert refinement["refined"] and "refine" in report["seconds"]
    assert report["settings"]["refine"]["on"] is True
    assert "refined" in screen and f"{refinement['tracks']:,} points in" in screen
    assert refinement["error_pixels"]["after"] < 0.3 < refinement["error_pixels"]["before"]
    scene = read_npz(out / "predictions.npz")
    turned = [np.degrees(np.arcsin(pose[0, 2])) for pose in scene.extrinsics]
    assert np.corrcoef(turned, YAW)[0, 1] > 0.9 and np.ptp(turned) > 2  # predicted: none turns
    assert scene.tracks is not None and scene.predicted is not None
    np.testing.assert_array_equal(
        scene.predicted.extrinsics[:, :, :3], np.tile(np.eye(3), (4, 1, 1))
    )
    model = pycolmap.Reconstruction(out / "colmap" / "sparse" / "0")
    assert model.num_points3D() == len(scene.tracks) == refinement["tracks"]
    assert model.compute_mean_track_length() == pytest.approx(scene.tracks.mean_length)
    assert {path.name for path in (out / "colmap" / "images").iterdir()} == set(scene.names)
    assert not (out / "refining").exists()
    # other settings are another result
    assert main([*words, "--refine", "--refine.corners=300"]) == 2
    assert "exist already, made with other settings" in capsys.readouterr().err
    # what was saved is exported again without a model
    again = ["export", str(out), "--output", str(tmp_path / "again"), "--formats", "colmap_txt"]
    assert main([*again, "--export.images=network", "--export.colmap_points=both"]) == 0
    model = pycolmap.Reconstruction(tmp_path / "again" / "colmap_txt" / "sparse" / "0")
    assert model.num_points3D() > len(scene.tracks)


def test_sift_and_lenses_from_the_command_line(photos, fake_dir, tmp_path):
    out = tmp_path / "out"
    words = ["reconstruct", str(photos), "--weights", str(fake_dir), "--output", str(out)]
    words += ["--size", str(SIZE), "--formats", "npz,colmap", "--backbone", "fake", "--refine"]
    words += ["--refine.matches=sift", "--refine.camera=SIMPLE_RADIAL"]
    assert main(words) == 0
    report = json.loads((out / "report.json").read_text())["scene"]["refinement"]
    assert report["matched_tracks"] > 100
    assert report["error_pixels"]["after"] < 0.5 * report["error_pixels"]["before"]
    # a ball before a wall tells little of a lens
    assert not report["refined"] and "more than one set of cameras" in report["reason"]
    assert not (out / "colmap" / "distorted").exists() and not (out / "refining").exists()


class Stop(Exception):
    """Ends a run."""


def test_a_run_that_was_stopped_goes_on_without_the_model(photos, fake_dir, tmp_path, monkeypatch):
    words = ["reconstruct", str(photos), "--weights", str(fake_dir), "--formats", "npz", "--refine"]
    words += ["--size", str(SIZE), "--backbone", "fake", "--refine.rounds=1"]
    words += ["--refine.corners=200", "--output"]
    out = tmp_path / "out"

    def stopped(*scene, progress, **settings):
        def tick():
            progress()
            raise Stop

        return refine(*scene, progress=tick, **settings)

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(reconstructing, "refine_scene", stopped)
        main([*words, str(out)])
    (kept,) = (out / "refining").glob("*/prediction.npz")
    with np.load(kept) as file:
        depth = file["depth"]
    other = tmp_path / "other"
    shutil.copytree(out / "refining", other / "refining")
    with monkeypatch.context() as patch:
        patch.setattr(Forward, "__call__", lambda *_: pytest.fail("the model was run again"))
        assert main([*words, str(out)]) == 0
        # What is left of other settings is not taken, though no report says whose it is.
        with pytest.raises(pytest.fail.Exception, match="the model was run again"):
            main([*words, str(other), "--refine.corners=201"])
    report = json.loads((out / "report.json").read_text())
    assert report["finished"] and report["memory_GiB"]["predicted_peak"] is None
    assert not (out / "refining").exists()
    scene = read_npz(out / "predictions.npz")
    assert scene.predicted is not None
    np.testing.assert_array_equal(scene.predicted.depth, depth[0, ..., 0])


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on(photos, tmp_path):
    out = tmp_path / "out"
    words = [sys.executable, "-m", "lite3r_jax.cli.lite3r", "reconstruct", str(photos)]
    words += ["--weights", "vggt-tiny", "--output", str(out), "--formats", "npz", "--refine"]
    with subprocess.Popen(words) as run:
        while run.poll() is None and not list(out.glob("refining/**/0-000001.npz")):
            pass
        run.kill()
    assert list(out.glob("refining/**/0-000001.npz")) and not (out / "predictions.npz").exists()
    assert main(words[3:]) == 0
    report = json.loads((out / "report.json").read_text())
    assert report["finished"] is True and "run" not in report["seconds"]  # no pass of the model
    assert not (out / "refining").exists()


def test_python_refines_and_masks_count(photos, fake_model, tmp_path, caplog):
    model, images = fake_model(), ImageOptions(mode="crop", size=SIZE)
    options = RefineOptions(rounds=1)
    scene = reconstruct(model, photos, images=images, refine=options, progress=False)
    assert scene.tracks is not None and len(scene.tracks) > 30
    masks = tmp_path / "masks"
    masks.mkdir()
    for view in range(VIEWS):
        Image.new("L", (SIZE, SIZE), 0 if view else 255).save(masks / f"p{view}.png")
    caplog.clear()
    scene = reconstruct(
        model, photos, images=images, refine=options,
        masks=PointOptions(mask_folder=str(masks)), progress=False,
    )  # fmt: skip
    assert scene.tracks is None and scene.predicted is None
    assert "room: not refined, the prediction stays: too few points" in caplog.text


@pytest.mark.parametrize(
    "more,message",
    [
        (["--refine.matcher=flow"], "--refine.matcher: there is no such setting"),
        (["--refine.camera=FISHEYE"], "--refine.camera: expected one of SIMPLE_PINHOLE, PINHOLE"),
        (["--refine.matches=flow"], "--refine.matches: expected one of klt, sift, track"),
        (["--refine.matches=track"], "refine.matches=track: needs a track head, this model has"),
        (["--refine.partners=0"], "--refine.partners: expected 1 to 1000, got 0"),
        (["--export.colmap_points=some"], "export.colmap_points: expected "),
    ],
)
def test_bad_settings_are_named_and_nothing_is_written(
    photos, fake_dir, tmp_path, capsys, more, message
):
    out = tmp_path / "out"
    words = ["reconstruct", str(photos), "--weights", str(fake_dir), "--output", str(out)]
    assert main([*words, "--backbone", "fake", "--refine", *more]) == 2
    assert message in capsys.readouterr().err and not out.exists()


def test_a_missing_extra_is_named_before_the_weights_are_read(
    photos, tmp_path, capsys, monkeypatch
):
    monkeypatch.setitem(__import__("sys").modules, "pycolmap", None)
    assert main(["reconstruct", str(photos), "--output", str(tmp_path / "out"), "--refine"]) == 2
    assert "refine: needs pycolmap and OpenCV; pip install 'lite3r_jax[refine]'" in (
        capsys.readouterr().err
    )
