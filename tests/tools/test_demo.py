"""The demo: what it shows, and that it says what it does not show."""

import numpy as np
import pytest
from PIL import Image

from tools import demo


def test_colours_go_from_light_near_to_dark_far():
    depth = np.linspace(1, 5, 400).reshape(20, 20)
    light = demo.coloured(depth).astype(int).sum(-1).ravel()
    assert (np.diff(light) <= 0).all()
    assert light[0] > 600
    assert light[-1] < 10


def test_a_constant_depth_has_a_colour():
    assert len(np.unique(demo.coloured(np.full((4, 4), 2.0)).reshape(-1, 3), axis=0)) == 1


@pytest.mark.slow
def test_demo_runs_and_says_that_the_weights_are_random(tmp_path, capsys):
    assert demo.main(["--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert printed.count(demo.NOTICE) == 2
    assert "1 x 2 x 350 x 518 x 1" in printed
    sheet = np.asarray(Image.open(tmp_path / "out" / "depth.png"))
    assert sheet.shape == (24 + 2 * 350, 2 * 518, 3)
    views = np.concatenate(demo.load_images(demo.photographs()), 1)
    np.testing.assert_array_equal(sheet[24:374], np.rint(views * 255).astype(np.uint8))
    assert sheet[374:].std() > 20


def test_an_output_folder_that_cannot_be_made_is_named(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert demo.main(["--out", str(tmp_path / "file" / "out")]) == 2
    error = capsys.readouterr().err
    assert str(tmp_path / "file" / "out") in error
    assert error.count("\n") == 1
