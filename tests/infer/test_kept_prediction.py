"""A prediction that is kept while its scene is refined is the same when it is read again."""

from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from lite3r_jax.backbones.base import Prediction
from lite3r_jax.errors import InputError
from lite3r_jax.infer.kept_prediction import FILE, kept_prediction

SHAPES = {
    "pose_enc": (9,), "extrinsics": (3, 4), "intrinsics": (3, 3), "depth": (4, 6, 1),
    "depth_conf": (4, 6), "world_points": (4, 6, 3), "world_points_conf": (4, 6),
    "rays": (2, 3, 6), "rays_conf": (2, 3),
}  # fmt: skip


def predicted(*names):
    """A prediction of two views with these arrays, all drawn at random."""
    rng = np.random.default_rng(0)
    arrays: Any = {n: rng.normal(size=(1, 2, *SHAPES[n])).astype(np.float32) for n in names}
    return Prediction(**arrays, unit="meter")


@pytest.mark.parametrize("names", [tuple(SHAPES), ("extrinsics", "intrinsics", "depth")])
def test_it_comes_back_bit_for_bit_and_is_made_once(tmp_path, names):
    assert set(SHAPES) | {"tracks", "unit"} == {field.name for field in fields(Prediction)}
    made = kept_prediction(tmp_path / "work", lambda: predicted(*names))
    again = kept_prediction(tmp_path / "work", lambda: pytest.fail("it was made again"))
    assert again.unit == made.unit == "meter"
    for name in SHAPES:
        one, two = getattr(made, name), getattr(again, name)
        assert (one is None) == (two is None) == (name not in names)
        if one is not None:
            np.testing.assert_array_equal(one, two, strict=True)


def test_without_a_folder_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert kept_prediction(None, lambda: predicted("depth")).depth is not None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", [lambda data: data[:-40], lambda data: b"PK" + data[:9]])
def test_a_damaged_file_is_named(tmp_path, damage):
    kept_prediction(tmp_path, lambda: predicted("depth"))
    path = tmp_path / FILE
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=r"prediction\.npz: cannot be used again .* delete it"):
        kept_prediction(tmp_path, lambda: predicted("depth"))


def test_an_array_that_is_none_of_a_prediction_is_named(tmp_path):
    np.savez(tmp_path / FILE, unit=np.array("model"), colors=np.zeros(3, np.float32))
    with pytest.raises(InputError, match=r"cannot be used again .*colors"):
        kept_prediction(tmp_path, lambda: predicted("depth"))
