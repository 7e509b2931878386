"""The order of scenes and frames: a pure function of (seed, step)."""

import re
import shutil
from collections import Counter
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lite3r_jax.data.augment import Augmentation
from lite3r_jax.data.blendedmvs import BlendedMVS
from lite3r_jax.data.pipeline import Bucket, Part, PipelineOptions, Schedule
from lite3r_jax.errors import InputError
from tests.data.pipeline.numbers import Numbers
from tests.data.world import views, write_blendedmvs

ONE = (Bucket(2, 2, 14, 28),)
THREE = (Bucket(4, 2, 14, 28), Bucket(2, 3, 28, 14, weight=3), Bucket(6, 4, 14, 14, weight=2))
RECORDED = [("1", (2, 5, 1)), ("0", (2, 5, 4)), ("1", (5, 2, 3)), ("0", (5, 4, 3))]
RECORDED_BATCHES = [1, 2, 1, 2, 2, 1]


def schedule(parts=None, buckets=ONE, **options) -> Schedule:
    return Schedule(parts or [Part(Numbers())], PipelineOptions(buckets, **options))


def first_draws(plan: Schedule, indices) -> list[tuple[str, tuple[int, ...]]]:
    draws = [next(plan.draws(index)) for index in indices]
    return [(draw.scene, plan.frames(draw, 3)) for draw in draws]


def test_every_epoch_has_every_scene_once_in_another_order():
    plan = schedule([Part(Numbers(scenes=7))])
    assert plan.samples_per_epoch == 7
    epochs = [[next(plan.draws(7 * epoch + i)) for i in range(7)] for epoch in range(6)]
    for number, epoch in enumerate(epochs):
        assert {draw.scene for draw in epoch} == set(plan.parts[0].source.scenes)
        assert {draw.epoch for draw in epoch} == {number}
    assert len({tuple(draw.scene for draw in epoch) for epoch in epochs}) == 6


def test_the_order_depends_on_the_seed_and_on_nothing_else():
    there = first_draws(schedule(seed=3), range(40))
    back = first_draws(schedule(seed=3), reversed(range(40)))
    assert there == back[::-1]
    assert there != first_draws(schedule(seed=4), range(40))


def test_a_scene_comes_with_other_frames_in_each_epoch():
    plan = schedule([Part(Numbers(scenes=1, frames=20))])
    assert len({frames for _, frames in first_draws(plan, range(30))}) == 30


@pytest.mark.parametrize("buckets", [ONE, THREE])
def test_steps_take_samples_one_after_the_other(buckets):
    plan, expected = schedule(buckets=buckets), 0
    for step in range(50):
        bucket, first = plan.at(step)
        assert first == expected
        expected += bucket.batch


@settings(deadline=None)
@given(step=st.integers(0, 2**50))
def test_steps_far_away_follow_each_other_too(step):
    plan = schedule(buckets=THREE)
    bucket, first = plan.at(step)
    assert plan.at(step + 1)[1] == first + bucket.batch


def test_each_cycle_has_every_bucket_as_often_as_its_weight_says():
    plan, orders = schedule(buckets=THREE), set()
    for cycle in range(20):
        order = tuple(plan.at(6 * cycle + i)[0] for i in range(6))
        assert Counter(order) == {bucket: bucket.weight for bucket in THREE}
        orders.add(order)
    assert len(orders) > 10


def test_a_mixture_has_its_weights_and_every_part_its_own_epochs():
    large, small = Part(Numbers(scenes=9), weight=3), Part(Numbers(scenes=2), weight=1)
    plan = schedule([large, small])
    assert plan.samples_per_epoch == 12
    draws = [next(plan.draws(index)) for index in range(4 * 18)]
    for cycle in range(18):
        parts = Counter(id(draw.part) for draw in draws[4 * cycle : 4 * cycle + 4])
        assert parts == {id(large): 3, id(small): 1}
    for part, scenes in ((large, 9), (small, 2)):
        of_part = [draw for draw in draws if draw.part is part]
        for i, draw in enumerate(of_part):
            assert draw.epoch == i // scenes
        for start in range(0, len(of_part), scenes):
            assert len({draw.scene for draw in of_part[start : start + scenes]}) == scenes


@pytest.mark.parametrize("weights", [(1, 1), (3, 1), (3, 3), (2, 5)])
@pytest.mark.parametrize("scenes", [(2, 7), (6, 1), (5, 5)])
def test_an_epoch_is_long_enough_for_every_scene(weights, scenes):
    parts = [
        Part(Numbers(scenes=n), weight=weight) for n, weight in zip(scenes, weights, strict=True)
    ]
    for seed in range(20):
        plan = schedule(parts, seed=seed)
        draws = [next(plan.draws(index)) for index in range(plan.samples_per_epoch)]
        assert len({(id(draw.part), draw.scene) for draw in draws}) == sum(scenes)


def test_a_seed_names_the_same_run_for_ever():
    parts = [Part(Numbers(), weight=2), Part(Numbers(3, 9))]
    plan = schedule(parts, (Bucket(2, 3, 14, 14), Bucket(1, 3, 14, 14)), seed=7)
    assert first_draws(plan, range(4)) == RECORDED
    assert [plan.at(step)[0].batch for step in range(6)] == RECORDED_BATCHES


def test_what_replaces_a_sample_is_of_its_part_and_has_numbers_of_its_own():
    parts = [Part(Numbers(scenes=9)), Part(Numbers(scenes=4))]
    plan = schedule(parts)
    draws = list(islice(plan.draws(11), 20))
    assert [draw.attempt for draw in draws] == list(range(20))
    assert len({id(draw.part) for draw in draws}) == 1
    assert len({draw.scene for draw in draws}) > 2
    assert len({plan.frames(draw, 4) for draw in draws}) > 15
    assert len({plan.uniform(draw)() for draw in draws}) == 20
    again = list(islice(schedule(parts).draws(11), 20))
    assert [draw.scene for draw in again] == [draw.scene for draw in draws]


def test_pairs_take_frames_that_overlap():
    plan = schedule([Part(Numbers(frames=12, pairs=True), strategy="pairs")])
    for scene, frames in first_draws(plan, range(20)):
        assert scene in plan.parts[0].source.scenes
        assert max(frames) - min(frames) == 2  # of a chain


def test_the_digest_tells_orders_apart():
    same = schedule().digest
    assert schedule(workers=2, prefetch=5, fault_limit=0).digest == same
    others = [
        schedule(seed=1),
        schedule([Part(Numbers(scenes=6))]),
        schedule([Part(Numbers(frames=7))]),
        schedule([Part(Numbers(), weight=2)]),
        schedule([Part(Numbers(), strategy="consecutive")]),
        schedule([Part(Numbers()), Part(Numbers())]),
        schedule(buckets=THREE),
        schedule(augmentation=Augmentation(hue=0.1)),
        schedule(normalization="vggt"),
    ]
    assert len({same, *(other.digest for other in others)}) == len(others) + 1


def test_what_cannot_be_scheduled_is_refused_at_once():
    with pytest.raises(InputError, match="parts: got none"):
        Schedule([], PipelineOptions(ONE))
    with pytest.raises(
        InputError, match="Numbers scene 0: has 3 frames, the buckets ask for 4 views"
    ):
        schedule([Part(Numbers(frames=3))], THREE)
    with pytest.raises(InputError, match="Numbers scene 0: has no overlap scores"):
        schedule([Part(Numbers(), strategy="pairs")])
    with pytest.raises(InputError, match="parts: expected weights of 10000 together at most"):
        schedule([Part(Numbers(), weight=10_001)])


@pytest.mark.parametrize(
    "lost,named",
    [
        ("b/rendered_depth_maps/00000002.pfm", "00000002.pfm: is missing; frame 2 has image and"),
        ("b/blended_images/00000001.jpg", "00000001.jpg: is missing; frame 1 has camera and depth"),
        ("b/cams/00000003_cam.txt", "00000003_cam.txt: is missing; frame 3 has image and depth"),
        ("b/cams", "cams: cannot be read"),
    ],
)
def test_a_scene_that_lacks_files_is_refused_at_once(tmp_path, lost, named):
    for scene in "ab":
        write_blendedmvs(tmp_path, scene, views(4, (14, 28)))
    path = tmp_path / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(InputError, match=re.escape(f"{path.parent}/") + ".*" + re.escape(named)):
        schedule([Part(BlendedMVS(tmp_path))])


def test_images_with_another_ending_are_no_images(tmp_path):
    folder = write_blendedmvs(tmp_path, "a", views(4, (14, 28))) / "blended_images"
    for image in folder.glob("*.jpg"):
        image.rename(image.with_suffix(".png"))
    with pytest.raises(InputError, match=f"{folder}: has no image; expected files named like 0000"):
        schedule([Part(BlendedMVS(tmp_path))])


class Endless(Numbers):
    """Scenes that are replaced by others."""

    def renewed(self, scene, generation):
        return f"{scene}+{generation}" if generation else scene

    def frames(self, scene):
        return super().frames(scene.partition("+")[0])


def test_scenes_are_replaced_after_so_many_epochs():
    part = Part(Endless(scenes=3), renew=2)
    names = [next(schedule([part]).draws(index)).scene for index in range(18)]
    for generation in range(3):
        here = names[6 * generation : 6 * generation + 6]
        assert {name.partition("+")[2] for name in here} == {str(generation or "")}
        assert set(Counter(here).values()) == {2}
    assert schedule([part]).digest != schedule([Part(Endless(scenes=3))]).digest


def test_a_source_with_a_fixed_number_of_scenes_cannot_renew_them():
    with pytest.raises(InputError, match="renew: Numbers has the scenes that it has"):
        Part(Numbers(), renew=1)


def test_images_are_counted_over_all_steps_before():
    plan = schedule(buckets=THREE)
    counts = [plan.at(step)[0] for step in range(20)]
    for step in (0, 1, 7, 20):
        assert plan.views(step) == sum(b.batch * b.views for b in counts[:step])
