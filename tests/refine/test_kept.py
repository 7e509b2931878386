"""Matches kept while a scene is refined: a run that was stopped goes on where it was."""

from dataclasses import replace

import numpy as np
import pytest

from lite3r_jax.data.synthetic.source import SyntheticScenes
from lite3r_jax.errors import InputError
from lite3r_jax.refine import RefineOptions, refine
from tools.benchmark.refine import disturbed, scene_of

OPTIONS = RefineOptions(corners=200, rounds=2)


@pytest.fixture(scope="module")
def start():
    """Three generated views, with cameras that are 2 degrees off."""
    source = SyntheticScenes("test", 1, 3, samples=1)
    return disturbed(scene_of(source.read(source.scenes[0], range(3), (160, 160))), 2, seed=0)


class Stop(Exception):
    """Ends a run."""


def stopping(after):
    """A progress callback that ends the run after so many views."""
    left = [after]

    def tick():
        left[0] -= 1
        if left[0] == 0:
            raise Stop

    return tick


def files(folder):
    """Files below a folder, with the time of their last change."""
    return {path.name: path.stat().st_mtime_ns for path in folder.rglob("*.npz")}


def test_a_run_that_was_stopped_goes_on_and_gives_the_same(start, tmp_path):
    whole = refine(start, OPTIONS)
    with pytest.raises(Stop):
        refine(start, OPTIONS, work=tmp_path, progress=stopping(4))
    before = files(tmp_path)
    assert sorted(before) == ["0-000000.npz", "0-000001.npz", "0-000002.npz", "1-000000.npz"]
    again = refine(start, OPTIONS, work=tmp_path)
    after = files(tmp_path)
    assert len(after) == 6 and before.items() <= after.items()  # none was made again
    assert again.report == whole.report
    for name in ("extrinsics", "intrinsics", "depth"):
        np.testing.assert_array_equal(getattr(again.scene, name), getattr(whole.scene, name))


def test_matches_of_something_else_go(start, tmp_path):
    with pytest.raises(Stop):
        refine(start, OPTIONS, work=tmp_path, progress=stopping(2))
    (first,) = tmp_path.iterdir()
    other = replace(start, depth=start.depth * np.float32(1.01))
    for scene, options in ((other, OPTIONS), (start, replace(OPTIONS, corners=201))):
        with pytest.raises(Stop):
            refine(scene, options, work=tmp_path, progress=stopping(1))
        (folder,) = tmp_path.iterdir()
        assert folder != first and len(files(tmp_path)) == 1


def test_damaged_matches_are_named(start, tmp_path):
    with pytest.raises(Stop):
        refine(start, OPTIONS, work=tmp_path, progress=stopping(1))
    (path,) = tmp_path.rglob("*.npz")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match=r"0-000000\.npz: cannot be used again .* delete it"):
        refine(start, OPTIONS, work=tmp_path)
