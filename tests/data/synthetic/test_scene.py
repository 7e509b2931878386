"""Scenes: pure functions of their seed, with cameras that stand free and see the same things."""

import numpy as np
import pytest

from lite3r_jax.data.synthetic.cameras import table_cameras
from lite3r_jax.data.synthetic.drawing import cut
from lite3r_jax.data.synthetic.rng import Rng
from lite3r_jax.data.synthetic.scene import TABLE_SCALE, make_scene, make_table
from lite3r_jax.data.synthetic.splits import RECIPES, seeds_of
from lite3r_jax.errors import InputError
from tests.data.synthetic.rooms import filled, scene

MADE = [(split, number) for split in RECIPES for number in range(3)]


def same(a, b) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in vars(a))


def test_a_seed_names_one_scene():
    first = make_scene.__wrapped__(5, 3)
    again = make_scene.__wrapped__(5, 3)
    other = make_scene.__wrapped__(6, 3)
    assert same(first.world, again.world) and same(first.cameras, again.cameras)
    assert not np.array_equal(first.world.half, other.world.half)


def test_draws_are_the_raw_numbers_of_pcg64():
    rng, bits = Rng(3, 4), np.random.PCG64(np.random.SeedSequence([3, 4]))
    raw = [int(bits.random_raw()) for _ in range(6)]
    assert rng.uniform() == (raw[0] >> 11) / 2**53
    wanted = np.reshape([-1 + 3 * (x >> 11) / 2**53 for x in raw[1:5]], (2, 2))
    np.testing.assert_array_equal(rng.uniforms(2, 2, low=-1, high=2), wanted)
    assert rng.bits(1).tolist() == [raw[5] >> 32]


def test_draws_stay_in_their_range():
    rng = Rng(0)
    numbers = [rng.between(2, 4) for _ in range(100)]
    assert set(numbers) == {2, 3, 4}
    wide = [rng.log_uniform(0.1, 100) for _ in range(200)]
    assert 0.1 <= min(wide) < 0.3 and 30 < max(wide) < 100


@pytest.mark.parametrize("split,number", MADE)
def test_cameras_stand_in_the_room_and_outside_of_things(split, number):
    made = scene(split, number)
    around = np.random.default_rng(0).normal(size=(50, 3))
    around *= 0.1 / np.linalg.norm(around, axis=1, keepdims=True)
    assert not filled(made.world, (made.cameras.center[:, None] + around).reshape(-1, 3)).any()


@pytest.mark.parametrize("split,number", MADE)
def test_cameras_are_proper_and_neighbors_see_the_same_things(split, number):
    made = scene(split, number)
    rotation = made.cameras.rotation
    np.testing.assert_allclose(rotation @ rotation.swapaxes(1, 2), np.tile(np.eye(3), (4, 1, 1)),
                               atol=1e-12)  # fmt: skip
    assert (np.linalg.det(rotation) > 0).all()
    assert (rotation[:, 1, 1] > 0.3).all()  # the picture's down is down in the room
    overlap = made.overlap
    assert (np.diagonal(overlap) == 1).all() or RECIPES[split].sky[1] > 0
    assert (np.diagonal(overlap, 1) >= RECIPES[split].overlap).all()
    assert overlap.min() >= 0 and overlap.max() <= 1


def test_scales_lenses_and_proportions_vary():
    made = [scene("train", number, 2) for number in range(60)]
    width = np.array([2 * s.world.half[0, [0, 2]].max() * s.world.scale for s in made])
    assert 0.1 <= width.min() < 0.5 and 20 < width.max() <= 100
    focal = np.array([s.cameras.intrinsics[0, 0, 0] / max(s.cameras.size) for s in made])
    angle = np.rad2deg(2 * np.arctan(0.5 / focal))
    assert 40 <= angle.min() < 50 and 80 < angle.max() <= 90
    assert len({s.cameras.size for s in made}) > 3
    assert len({s.world.active.sum() for s in made}) > 5


def test_cameras_around_tables_suit_all_tables():
    cameras = table_cameras(Rng(0), 64)
    assert len(np.unique(cameras.center.round(6), axis=0)) == 64
    distance = np.linalg.norm(cameras.center - [0, 0.4, 0], axis=1) * TABLE_SCALE
    np.testing.assert_allclose(distance, 598, atol=1)
    for number in range(5):
        made = make_table(seeds_of("test").start + number, cut(cameras, range(8), cameras.size))
        assert not filled(made.world, cameras.center).any()
        assert np.diagonal(made.overlap, 1).min() > 0.4


def test_seeds_of_no_split_are_refused():
    for seed in (-1, len(RECIPES) * 1_000_000_000):
        with pytest.raises(InputError, match=f"seed: expected 0 to .*, got {seed}"):
            make_scene(seed, 2)
