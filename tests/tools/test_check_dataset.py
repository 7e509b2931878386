"""The dataset check: what it finds is said, every fault is listed, the sheet shows the views."""

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.data.world import cam_text, depth_tail, pfm_bytes, views, write_blendedmvs, write_dtu64
from tools import check_dataset

SIZE = (48, 64)


@pytest.fixture(scope="module")
def made():
    return views(4, SIZE, scale=12)


@pytest.fixture
def blendedmvs(made, tmp_path):
    for scene in ("attic", "cellar"):
        write_blendedmvs(tmp_path / "data", scene, made)
    return tmp_path / "data"


@pytest.fixture
def run(tmp_path, capsys):
    """Runs the command: (exit code, lines of output, error output)."""

    def call(path, *options):
        arguments = [str(path), "--sheet", str(tmp_path / "sheet.png"), *options]
        code = check_dataset.main(arguments)
        printed = capsys.readouterr()
        return code, printed.out.splitlines(), printed.err

    return call


def faults(lines):
    return [line.removeprefix("fault: ") for line in lines if line.startswith("fault: ")]


def test_a_whole_dataset_has_no_faults(run, blendedmvs):
    code, lines, _ = run(blendedmvs)
    assert code == 0 and not faults(lines)
    assert lines[0].startswith(f"blendedmvs:{blendedmvs}: 2 scenes; license: CC BY 4.0")
    for line, scene in zip(lines[1:3], ("attic", "cellar"), strict=True):
        assert re.match(rf"  {scene}: 4 frames of 64x48, depth in 100 % of the pixels, from", line)
        error, visible = re.search(r"agree to ([\d.]+) % .*, (\d+) % visible", line).groups()
        assert float(error) < 1 and int(visible) > 60
    assert lines[3].endswith("0 of 106 for training, 0 of 7 for validation; others: 2")


def test_the_sheet_shows_the_views_with_their_depth(run, blendedmvs, made, tmp_path):
    assert run(blendedmvs)[0] == 0
    with Image.open(tmp_path / "sheet.png") as image:
        sheet = np.asarray(image)
    side = (120, 160)  # 48 x 64, enlarged
    assert sheet.shape[1] == 5 * 164 and sheet.shape[0] == 2 * (28 + 2 * side[0])
    count = 0
    for s in range(4):
        picture = sheet[28 : 28 + side[0], s * 164 : s * 164 + side[1]].astype(float)
        depth = sheet[28 + side[0] : 28 + 2 * side[0], s * 164 : s * 164 + side[1]]
        for view in made:
            wanted = Image.fromarray(view.rgb).resize(side[::-1], Image.Resampling.BICUBIC)
            if np.abs(picture - np.asarray(wanted)).mean() < 10:
                count += 1
                # near is bright
                luma = np.asarray(depth[::5, ::5].mean(-1)).ravel()
                near = np.asarray(Image.fromarray(-view.depth).resize(side[::-1], 0))[::5, ::5]
                assert np.corrcoef(luma, near.ravel())[0, 1] > 0.9
    assert count == 4


def test_equal_datasets_have_equal_sheets(run, blendedmvs, tmp_path):
    run(blendedmvs)
    first = (tmp_path / "sheet.png").read_bytes()
    run(blendedmvs, "--overwrite")
    assert (tmp_path / "sheet.png").read_bytes() == first


def test_every_fault_is_listed(run, blendedmvs, made):
    attic, cellar = blendedmvs / "attic", blendedmvs / "cellar"
    (attic / "blended_images" / "00000001.jpg").unlink()
    (attic / "rendered_depth_maps" / "00000002.pfm").write_bytes(pfm_bytes(made[2].depth)[:-3])
    (cellar / "cams" / "00000000_cam.txt").write_text("extrinsic\n")
    (cellar / "cams" / "pair.txt").write_text("4\n")
    values = made[3].depth.copy()
    values[5, 6] = np.nan
    (cellar / "rendered_depth_maps" / "00000003.pfm").write_bytes(pfm_bytes(values))
    code, lines, _ = run(blendedmvs)
    assert code == 1
    problems = faults(lines)
    assert len(problems) == 5 and lines[-1].startswith("5 faults; contact sheet: ")
    for part in (
        "attic/blended_images/00000001.jpg: is missing",
        "attic/rendered_depth_maps/00000002.pfm: has",
        "cellar/cams/00000000_cam.txt: line 1: expected 10 lines",
        "cellar/cams/pair.txt: line 1: 4 views need 9 lines",
        "cellar/rendered_depth_maps/00000003.pfm: row 5, column 6: expected finite",
    ):
        assert sum(part in fault for fault in problems) == 1, part


@pytest.mark.parametrize("mistake", ["camera to world", "units"])
def test_cameras_that_do_not_fit_the_depth_are_found(run, blendedmvs, made, mistake):
    for i, view in enumerate(made):
        e = view.extrinsics.copy()
        if mistake == "units":
            e[:, 3] *= 1000
        else:
            e = np.concatenate([e[:, :3].T, -e[:, :3].T @ e[:, 3:]], -1)
        wrong = type(view)(view.rgb, view.depth, e, view.intrinsics)
        text = cam_text(wrong, depth_tail(view.depth))
        (blendedmvs / "attic" / "cams" / f"{i:08d}_cam.txt").write_text(text)
    code, lines, _ = run(blendedmvs)
    (fault,) = faults(lines)
    assert code == 1 and fault.startswith("blendedmvs attic: frames 0000000")
    assert "check conventions and units" in fault


def test_one_scene_of_blendedmvs_is_recognized(run, blendedmvs):
    code, lines, _ = run(blendedmvs / "cellar")
    assert code == 0 and lines[0].startswith(f"blendedmvs:{blendedmvs / 'cellar'}: 1 scenes")
    assert lines[1].startswith("  cellar: 4 frames")


def test_dtu64_is_recognized_and_views_are_counted(run, made, tmp_path):
    root = write_dtu64(tmp_path / "dtu", {"scan1": made})
    code, lines, _ = run(root)
    assert code == 1 and lines[0].startswith(f"dtu64:{root}: 1 scenes")
    assert lines[1] == "  scan1: 4 frames of 64x48, no depth"
    (fault,) = faults(lines)
    assert "has 4 images with cameras, expected 64" in fault


def test_captures_are_recognized(run, made, tmp_path):
    root = tmp_path / "capture"
    root.mkdir()
    frames = []
    for i, view in enumerate(made):
        Image.fromarray(view.rgb).save(root / f"{i}.png")
        pose = np.linalg.inv(np.vstack([view.extrinsics, [0, 0, 0, 1]]))
        pose[:, 1:3] *= -1
        frames.append({"file_path": f"{i}.png", "transform_matrix": pose.tolist()})
    shutil.copy(root / "0.png", root / "extra.png")
    table = {"fl_x": 50, "frames": frames}
    (root / "transforms.json").write_text(json.dumps(table))
    code, lines, _ = run(root)
    assert code == 0 and lines[0] == f"capture:{root}: 1 scenes; license: your own"
    assert "note: cameras of transforms.json" in lines
    assert "note: 1 photos have no camera: extra.png" in lines


def test_what_is_no_dataset_is_refused_before_anything_is_written(run, blendedmvs, tmp_path):
    for path in (tmp_path / "nowhere", blendedmvs / "attic" / "cams"):
        code, lines, error = run(path)
        assert code == 2 and not lines and error.startswith(f"error: {path}: ")
        assert error.count("\n") == 1
    code, lines, error = run(f"blendedmvs:{blendedmvs}@depth={tmp_path}")
    assert code == 2 and "option 'depth' is not known" in error
    code, lines, error = run(f"blendedmsv:{blendedmvs}")
    assert code == 2 and "did you mean 'blendedmvs'?" in error
    assert not (tmp_path / "sheet.png").exists()
    (tmp_path / "sheet.png").write_text("mine")
    code, lines, error = run(blendedmvs)
    assert code == 2 and "exists already" in error and not lines
    assert (tmp_path / "sheet.png").read_text() == "mine"


def test_sources_without_files_are_checked_by_reading_them(run, tmp_path):
    code, lines, _ = run("motorcycle")
    assert code == 0 and lines[1].startswith("  motorcycle: 2 frames of 518x518, depth in ")
    (tmp_path / "photos").mkdir()
    for name in "ab":
        Image.new("RGB", (30, 20), "red").save(tmp_path / "photos" / f"{name}.png")
    code, lines, _ = run(f"photos:{tmp_path / 'photos'}", "--overwrite")
    assert code == 0 and lines[1] == "  photos: 2 frames of 518x518, no depth"
