"""The demo: that it gives every file, and says what it does not show."""

import numpy as np
import pytest

from lite3r_jax.export import planned
from lite3r_jax.export.npz import read_npz
from tools import demo


@pytest.mark.slow
def test_demo_runs_and_says_that_the_weights_are_random(tmp_path, capsys):
    out = tmp_path / "out"
    for _ in range(2):  # it may be run again
        assert demo.main(["--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert printed.count(demo.NOTICE) == 4
    assert "2 of 518x350" in printed
    assert all(path.exists() for path in planned(out / "scene", demo.FORMATS.split(",")))
    scene = read_npz(out / "scene" / "predictions.npz")
    assert scene.names == ("left.png", "right.png")
    assert np.isfinite(scene.depth).all() and scene.depth.min() > 0
    assert scene.source_sizes.tolist() == [[741, 500]] * 2


def test_an_output_folder_that_cannot_be_made_is_named(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert demo.main(["--out", str(tmp_path / "file" / "out")]) == 2
    error = capsys.readouterr().err
    assert str(tmp_path / "file" / "out") in error
    assert error.count("\n") == 1
