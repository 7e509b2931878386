"""The writer of generated scenes: the project's readers read back what was drawn."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lite3r_jax.data.blendedmvs import BlendedMVS
from lite3r_jax.data.dtu64 import DTU64
from lite3r_jax.data.pfm import read_pfm
from lite3r_jax.data.synthetic import drawing
from lite3r_jax.data.synthetic.source import SyntheticScenes
from lite3r_jax.data.views import cross_view_check
from tools import check_dataset, make_synthetic
from tools.make_synthetic import PRESETS, Preset, write

SMALL = Preset(2, 4, (72, 96), samples=1)
TABLES = Preset(2, 64, (36, 48), samples=1)


@pytest.fixture(scope="module")
def blendedmvs(tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "blendedmvs"
    write("blendedmvs", SMALL, out, seed=30, renderer="numpy")
    return out


@pytest.fixture(scope="module")
def dtu64(tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "dtu64"
    write("dtu64", TABLES, out, renderer="numpy")
    return out


@pytest.fixture(scope="module")
def source():
    return SyntheticScenes("test", 2, 4, first=30)


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_blendedmvs_is_read_back_as_it_was_drawn(blendedmvs, source):
    reader = BlendedMVS(blendedmvs)
    assert reader.scenes == source.scenes
    for scene in reader.scenes:
        assert reader.frames(scene) == source.frames(scene)
        drawn = source.read(scene, range(4), SMALL.size)
        for frame in range(4):
            read = reader.read_frame(scene, frame)
            np.testing.assert_array_equal(read.depth, drawn.depth[frame])
            np.testing.assert_array_equal(read.extrinsics.astype(np.float32),
                                          drawn.extrinsics[frame])  # fmt: skip
            np.testing.assert_array_equal(read.intrinsics.astype(np.float32),
                                          drawn.intrinsics[frame])  # fmt: skip
            image = np.asarray(read.image) / 255
            assert np.abs(image - drawn.images[frame]).mean() < 0.03  # JPEG


def test_blendedmvs_has_the_scores_of_the_scene(blendedmvs, source):
    for scene in source.scenes:
        read = BlendedMVS(blendedmvs).pairs(scene)
        for view, partners in source.pairs(scene).items():
            wanted = {other: score for other, score in partners.items() if score > 0}
            assert read[view] == pytest.approx(wanted, abs=1e-6)
            assert list(read[view].values()) == sorted(read[view].values(), reverse=True)


def test_depth_ranges_are_those_of_the_depth(blendedmvs):
    for path in blendedmvs.rglob("*_cam.txt"):
        low, step, count, high = map(float, path.read_text().split("\n")[-2].split())
        name = path.name.replace("_cam.txt", ".pfm")
        values = read_pfm(path.parents[1] / "rendered_depth_maps" / name)
        assert (low, high) == pytest.approx((values.min(), values.max()))
        assert step * (count - 1) == pytest.approx(high - low)


def test_views_of_what_was_written_agree(blendedmvs):
    reader = BlendedMVS(blendedmvs)
    for scene in reader.scenes:
        check = cross_view_check(reader.read(scene, range(4), SMALL.size))
        assert np.diagonal(check.error, 1).max() < 0.02
        assert np.diagonal(check.visible, 1).mean() > 0.6


def test_dtu64_has_64_views_that_share_their_cameras(dtu64):
    reader = DTU64(dtu64)
    assert reader.scenes == ("scan24", "scan37")
    first, second = (reader.read(scan, reader.frames(scan), (28, 28)) for scan in reader.scenes)
    assert first.views == 64 and first.depth is None
    np.testing.assert_array_equal(first.extrinsics, second.extrinsics)
    assert np.abs(first.images - second.images).mean() > 0.05
    assert len(np.unique(first.extrinsics, axis=0)) == 64
    center = -np.einsum("vij,vi->vj", first.extrinsics[..., :3], first.extrinsics[..., 3])
    assert 200 < np.ptp(center, axis=0).max() < 2000  # millimeters
    assert (dtu64 / "Cameras" / "00000000_cam.txt").read_text().endswith("\n425.0 2.5\n")


def test_the_dataset_check_finds_no_fault(blendedmvs, dtu64, tmp_path, capsys):
    for path in (blendedmvs, dtu64):
        assert check_dataset.main([str(path), "--sheet", str(tmp_path / f"{path.name}.png")]) == 0
    assert capsys.readouterr().out.count("0 faults") == 2


def test_sky_is_0_in_depth_and_black_in_the_masked_image(tmp_path):
    write("blendedmvs", Preset(1, 2, (48, 64), 1), tmp_path / "out", split="sky", renderer="numpy")
    (frame, _) = (BlendedMVS(tmp_path / "out").read_frame("sky-000000000", i) for i in (0, 1))
    images = tmp_path / "out" / "sky-000000000" / "blended_images"
    with Image.open(images / "00000000_masked.jpg") as image:
        masked = np.asarray(image).astype(float).mean(-1)
    sky = frame.depth == 0
    assert 0.02 < sky.mean() < 0.7
    assert masked[sky].mean() < 15 < 40 < masked[~sky].mean()
    assert np.asarray(frame.image)[sky].mean() > 60


def test_equal_arguments_write_equal_bytes(blendedmvs, tmp_path):
    write("blendedmvs", SMALL, tmp_path / "again", seed=30, renderer="numpy")
    write("blendedmvs", SMALL, tmp_path / "other", seed=31, renderer="numpy")
    whole = tree(blendedmvs)
    assert tree(tmp_path / "again") == whole
    other = tree(tmp_path / "other")
    shared = [name for name in whole if "000000031" in name]  # the scene that both have
    assert len(shared) == 4 * 4 + 1 and all(other[name] == whole[name] for name in shared)
    assert other.keys() != whole.keys()


def test_what_exists_stays_unless_it_may_be_replaced(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    arguments = [str(tmp_path / "out"), "--layout=dtu64", "--preset=tiny"]
    assert make_synthetic.main(arguments) == 2
    assert (tmp_path / "out" / "mine").read_text() == "mine"


@pytest.mark.parametrize("layout", sorted(PRESETS))
def test_nothing_is_left_when_the_user_interrupts(layout, tmp_path, monkeypatch):
    drawn, views = drawing.draw, []

    def interrupted(*arguments, **options):
        views.append(1)
        if len(views) > 3:
            raise KeyboardInterrupt
        return drawn(*arguments, **options)

    monkeypatch.setattr("lite3r_jax.data.synthetic.source.draw", interrupted)
    monkeypatch.setattr("tools.make_synthetic.draw", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(layout, Preset(1, 64, (24, 32), 1), tmp_path / "out", renderer="numpy")
    assert len(views) == 4 and os.listdir(tmp_path) == []


def test_the_command_writes_presets(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(PRESETS["blendedmvs"], "tiny", Preset(1, 2, (24, 32), 1))
    options = ["--layout=blendedmvs", "--preset=tiny", "--split=low_texture", "--seed=5"]
    options += ["--renderer=numpy", "--overwrite", str(tmp_path / "out")]
    assert make_synthetic.main(options) == 0 == make_synthetic.main(options)
    assert BlendedMVS(tmp_path / "out").scenes == ("low_texture-000000005",)
    assert "out: 1 scenes with 2 views each" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options,message",
    [
        (["--layout=dtu64", "--split=sky"], "split: sky is about cameras or the sky"),
        (["--layout=blendedmvs", "--seed=-1"], "seed: expected 0 to 999999996, got -1"),
        (["--layout=blendedmvs", "--seed=1000000000"], "seed: expected 0 to"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(options, message, tmp_path, capsys):
    assert make_synthetic.main(["--preset=tiny", *options, str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert re.match(f"error: {message}", error) and error.count("\n") == 1
    assert os.listdir(tmp_path) == []
