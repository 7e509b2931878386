"""Folders of results: what a report in them is taken for, also a damaged one."""

import random
from pathlib import Path

import pytest

from lite3r_jax.errors import InputError
from lite3r_jax.experiment import Experiment
from lite3r_jax.infer.cameras import CameraOptions
from lite3r_jax.infer.report import FILE_NAME
from lite3r_jax.runs.results import ResultFolder, made_of, refuse_other
from tests.fuzz.mutation import any_json

FORMATS = ("npz", "tum")
NAMES = {"predictions.npz", "trajectory.txt", FILE_NAME}


def done(path: Path, formats: tuple[str, ...] = FORMATS, key: str = "key") -> ResultFolder:
    """Results of a run that came to its end."""
    folder = ResultFolder(path, formats, key)
    path.mkdir(exist_ok=True)
    older = folder.begin()
    for planned in folder.planned():
        planned.touch()
    folder.finish({"outputs": {name: {} for name in formats}}, older)
    return folder


def test_results_are_new_unfinished_done_or_of_something_else(tmp_path):
    folder = ResultFolder(tmp_path, FORMATS, "key")
    assert folder.state() == "new" and folder.begin() == frozenset()
    assert folder.state() == "unfinished"
    assert done(tmp_path).state() == "done" and {p.name for p in tmp_path.iterdir()} == NAMES
    (tmp_path / "predictions.npz").unlink()
    assert folder.state() == "unfinished"
    other = ResultFolder(tmp_path, FORMATS, "of other photos")
    assert other.state() == "other"
    with pytest.raises(
        InputError, match=r"trajectory.txt, .*report.json: exist already, made with"
    ):
        refuse_other([other])


def test_formats_of_an_older_run_go_also_after_a_run_that_was_stopped(tmp_path):
    done(tmp_path)
    (tmp_path / "mine.txt").touch()
    ResultFolder(tmp_path, ("ply",), "key").begin()  # and was killed
    done(tmp_path, ("ply",))
    assert {path.name for path in tmp_path.iterdir()} == {"points.ply", "mine.txt", FILE_NAME}


def test_a_scene_that_fails_leaves_what_was_there(tmp_path):
    folder = ResultFolder(tmp_path / "a", FORMATS, "key")
    folder.path.mkdir()
    folder.begin()
    folder.give_up()
    assert not folder.path.exists()
    done(folder.path).begin()
    folder.give_up()
    assert {path.name for path in folder.path.iterdir()} == NAMES


def test_a_damaged_report_is_none_of_ours_and_removes_nothing_but_formats(tmp_path):
    folder = done(tmp_path)
    (tmp_path / "mine.txt").touch()
    good, rng = (tmp_path / FILE_NAME).read_bytes(), random.Random(0)
    states = set()
    for _ in range(200):
        (tmp_path / FILE_NAME).write_bytes(any_json(good, rng))
        states.add(folder.state())
        folder.finish({}, folder.begin())
        assert {path.name for path in tmp_path.iterdir()} == NAMES | {"mine.txt"}
    assert {"other", "unfinished"} <= states <= {"other", "unfinished", "done"}


def test_results_are_made_of_settings_model_photos_and_known_cameras(tmp_path):
    photo, cameras = tmp_path / "a.jpg", tmp_path / "sparse"
    cameras.mkdir()
    for path in (photo, cameras / "images.bin"):
        path.write_bytes(b"1")
    known = CameraOptions(known=str(cameras))

    def key(model="W", **settings):
        return made_of(Experiment(cameras=known, **settings), {"name": model}, [str(photo)])

    assert key(quiet=True, output="elsewhere") == key()
    keys = {key(), key(model="V"), key(formats="npz")}
    for path in (photo, cameras / "images.bin"):
        path.write_bytes(b"22")
        keys.add(key())
    assert len(keys) == 5
