"""Which frames make a sample."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lite3r_jax.data.sampling import choose_frames, overlap_scores, scene_order
from lite3r_jax.data.views import cross_view_check
from lite3r_jax.errors import InputError
from tests.data.test_views import sample_of
from tests.data.world import look_at, views

CHAIN = {i: {i + 1: 10.0} for i in range(29)} | {29: {}}  # each sees the next one
FRAMES = tuple(range(30))
RECORDED = [(22, 3, 11, 14), (28, 24, 8, 1)]  # by seed 7
RECORDED_ORDER = (1, 2, 0, 5, 4, 3)


@settings(deadline=None)
@given(
    views=st.integers(2, 24),
    strategy=st.sampled_from(["pairs", "random", "consecutive", "spaced"]),
    seed=st.integers(0, 2**40),
    index=st.integers(0, 2**40),
)
def test_frames_are_different_members_and_a_function_of_seed_and_index(
    views, strategy, seed, index
):
    chosen = choose_frames(FRAMES, views, strategy, seed=seed, index=index, pairs=CHAIN)
    assert len(chosen) == len(set(chosen)) == views and set(chosen) <= set(FRAMES)
    again = choose_frames(FRAMES, views, strategy, seed=seed, index=index, pairs=CHAIN)
    assert chosen == again


def test_a_seed_names_the_same_frames_for_ever():
    chosen = [choose_frames(FRAMES, 4, "random", seed=7, index=i) for i in range(2)]
    assert chosen == RECORDED
    assert scene_order(6, 7, 0) == RECORDED_ORDER


def test_other_indices_and_seeds_give_other_frames():
    drawn = {
        choose_frames(FRAMES, 6, "random", seed=seed, index=index)
        for seed in range(10)
        for index in range(10)
    }
    assert len(drawn) == 100


def test_random_takes_every_frame_as_often_in_every_place():
    drawn = [choose_frames((3, 5, 8, 9), 2, "random", seed=1, index=i) for i in range(4000)]
    for place in range(2):
        counts = Counter(frames[place] for frames in drawn)
        assert counts.keys() == {3, 5, 8, 9}
        assert all(850 < count < 1150 for count in counts.values())  # 5 sigma


def test_consecutive_takes_neighbors_from_every_start():
    frames = (2, 3, 7, 11, 12)
    drawn = {choose_frames(frames, 3, "consecutive", seed=0, index=i) for i in range(100)}
    assert drawn == {(2, 3, 7), (3, 7, 11), (7, 11, 12)}


def test_spaced_takes_every_nth_frame_of_the_list_for_each_n_up_to_8():
    frames = tuple(range(0, 60, 2))
    steps = Counter()
    for index in range(2000):
        chosen = choose_frames(frames, 3, "spaced", seed=0, index=index)
        first, middle, last = (frames.index(frame) for frame in chosen)
        assert last - middle == middle - first
        steps[middle - first] += 1
    assert sorted(steps) == list(range(1, 9)) and min(steps.values()) > 175  # 5 sigma


def test_spaced_stays_within_the_scene_and_reaches_its_ends():
    drawn = {choose_frames((2, 3, 7, 11, 12), 3, "spaced", seed=0, index=i) for i in range(100)}
    assert drawn == {(2, 3, 7), (3, 7, 11), (7, 11, 12), (2, 7, 12)}


def test_each_further_frame_of_pairs_overlaps_one_before():
    for index in range(200):
        chosen = choose_frames(FRAMES, 8, "pairs", seed=3, index=index, pairs=CHAIN)
        for at in range(1, 8):
            assert any(abs(chosen[at] - frame) == 1 for frame in chosen[:at])


def test_higher_scores_are_taken_more_often():
    pairs = {0: {1: 9.0, 2: 1.0}}
    drawn = [
        choose_frames((0, 1, 2), 2, "pairs", seed=0, index=i, pairs=pairs) for i in range(3000)
    ]
    partners = Counter(second for first, second in drawn if first == 0)
    assert 0.85 < partners[1] / partners.total() < 0.95


def test_frames_without_enough_overlap_are_not_started_from():
    pairs = {0: {1: 1.0}, 2: {3: 1.0, 4: 1.0}, 4: {2: 0.0}}
    drawn = {choose_frames(range(5), 3, "pairs", seed=0, index=i, pairs=pairs) for i in range(50)}
    assert {frozenset(frames) for frames in drawn} == {frozenset({2, 3, 4})}
    with pytest.raises(InputError, match="room: no 4 frames are connected"):
        choose_frames(range(5), 4, "pairs", seed=0, index=0, pairs=pairs, name="room")


@pytest.mark.parametrize(
    "views,strategy,options,message",
    [
        (1, "random", {}, "views: expected 2 to 24, got 1"),
        (25, "random", {}, "views: expected 2 to 24, got 25"),
        (4, "random", {"frames": (1, 2, 3)}, "room: has 3 frames, 4 views are asked for"),
        (4, "pairs", {}, "room: has no overlap scores"),
        (4, "best", {}, "expected one of pairs, random, consecutive, spaced, got 'best'"),
        (4, "random", {"seed": -1}, "seed and index: expected 0 or more"),
    ],
)
def test_what_cannot_be_drawn_is_said(views, strategy, options, message):
    options = {"frames": FRAMES, "seed": 0, "index": 0, "name": "room"} | options
    frames = options.pop("frames")
    with pytest.raises(InputError, match=message):
        choose_frames(frames, views, strategy, **options)


@settings(max_examples=20, deadline=None)
@given(scenes=st.integers(1, 50), seed=st.integers(0, 99), epoch=st.integers(0, 99))
def test_an_epoch_has_every_scene_once(scenes, seed, epoch):
    order = scene_order(scenes, seed, epoch)
    assert sorted(order) == list(range(scenes))
    assert scenes < 10 or order != scene_order(scenes, seed, epoch + 1)


def test_overlap_is_read_from_depth():
    made = views(4, (24, 32))
    back = type(made[0])(
        made[0].rgb, made[0].depth, look_at([0, 0, -2.4], [0, 0, -9]), made[0].intrinsics
    )
    scores = overlap_scores(cross_view_check(sample_of([*made, back])), (10, 11, 12, 13, 14))
    assert scores[10][11] > scores[10][13] > 0.2 and scores[10][11] == scores[11][10]
    chosen = choose_frames(range(10, 15), 4, "pairs", seed=0, index=0, pairs=scores)
    assert set(chosen) == {10, 11, 12, 13} and not scores[14]
