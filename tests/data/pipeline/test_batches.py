"""What is in a batch, who makes which rows, what happens with damaged data."""

import json
import logging
import sys

import numpy as np
import pytest

from lite3r_jax.data.augment import Augmentation, augment
from lite3r_jax.data.blendedmvs import BlendedMVS
from lite3r_jax.data.pipeline import Bucket, Part, Pipeline, PipelineOptions
from lite3r_jax.data.transforms import normalize
from lite3r_jax.data.views import Views
from lite3r_jax.errors import InputError
from tests.data.pipeline.numbers import Numbers
from tests.data.world import pfm_bytes, views, write_blendedmvs

ONE = (Bucket(2, 2, 14, 28),)
TWO = (Bucket(4, 3, 14, 28, weight=2), Bucket(2, 4, 28, 14))
ARRAYS = ("images", "extrinsics", "intrinsics", "depth", "mask")


def pipeline(source=None, buckets=ONE, *, process=(0, 1), **options) -> Pipeline:
    return Pipeline(
        [Part(source or Numbers())],
        PipelineOptions(buckets, **options),
        process_index=process[0],
        process_count=process[1],
    )


def assert_equal(got, wanted) -> None:
    assert got.record == wanted.record
    assert got.arrays().keys() == set(ARRAYS)
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(got, name), getattr(wanted, name))


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    root = tmp_path_factory.mktemp("blendedmvs")
    for scene in range(3):
        write_blendedmvs(root, f"scene{scene}", views(5, (48, 64), seed=scene))
    return root


def test_rows_are_what_their_names_say(room):
    source = BlendedMVS(room)
    for step in range(4):
        batch = pipeline(source, TWO).batch(step)
        for row, sample in enumerate(batch.samples):
            frames = [int(frame) for frame in sample.frames]
            alone = source.read(sample.scene, frames, batch.images.shape[2:4])
            for name in ARRAYS:
                np.testing.assert_array_equal(getattr(batch, name)[row], getattr(alone, name))
        assert str(sample) == f"blendedmvs {sample.scene} frames {' '.join(sample.frames)}"


def test_every_batch_has_the_shape_of_its_bucket():
    shapes = set()
    for batch, _ in zip(pipeline(buckets=TWO), range(12), strict=False):
        b, s, h, w, _ = batch.images.shape
        shapes.add((b, s, h, w))
        assert batch.images.dtype == batch.extrinsics.dtype == np.float32
        assert (batch.extrinsics.shape, batch.intrinsics.shape) == ((b, s, 3, 4), (b, s, 3, 3))
        assert (batch.depth.shape, batch.depth.dtype) == ((b, s, h, w), np.float32)
        assert (batch.mask.shape, batch.mask.dtype) == ((b, s, h, w), np.bool_)
    assert shapes == {(4, 3, 14, 28), (2, 4, 28, 14)}


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_iteration_gives_the_batches_by_number(prefetch):
    one = pipeline(buckets=TWO, prefetch=prefetch)
    with iter(one) as batches:
        for step in range(8):
            assert batches.step == step
            assert_equal(next(batches), one.batch(step))


def test_grain_is_needed_only_for_what_it_does(monkeypatch):
    monkeypatch.setitem(sys.modules, "grain", None)  # as if it were not installed
    assert_equal(next(iter(pipeline(prefetch=0))), pipeline().batch(0))
    for options in ({"prefetch": 1}, {"workers": 1}):
        with pytest.raises(
            InputError, match=r"need the package grain; pip install 'lite3r_jax\[tr"
        ):
            next(iter(pipeline(**options)))


def test_iterators_do_not_disturb_each_other():
    one = pipeline()
    first, second = iter(one), iter(one)
    seen = [next(first).record for _ in range(5)]
    assert [next(second).record for _ in range(5)] == seen


@pytest.mark.parametrize("count", [2, 4])
def test_processes_see_disjoint_samples_whose_union_is_the_epoch(count):
    source, buckets = Numbers(scenes=24), (Bucket(8, 2, 14, 14), Bucket(4, 3, 14, 14))
    whole = pipeline(source, buckets)
    parts = [pipeline(source, buckets, process=(index, count)) for index in range(count)]
    scenes: list[str] = []
    for step in range(4):  # two of each, 24 samples
        alone, shared = whole.batch(step), [part.batch(step) for part in parts]
        for name in ARRAYS:
            joined = np.concatenate([getattr(batch, name) for batch in shared])
            np.testing.assert_array_equal(joined, getattr(alone, name))
        assert sum((batch.samples for batch in shared), ()) == alone.samples
        scenes += [sample.scene for batch in shared for sample in batch.samples]
    assert sorted(scenes) == sorted(source.scenes)


def test_samples_without_depth_have_an_empty_mask():
    mixed = Pipeline(
        [Part(Numbers(depth=False)), Part(Numbers())], PipelineOptions((Bucket(8, 2, 14, 14),))
    )
    batch = mixed.batch(0)
    without = ~batch.mask.any((1, 2, 3))
    assert without.sum() == 4
    assert (batch.depth[without] == 0).all() and batch.mask[~without].all()


def test_batches_without_truth_are_the_same_images_alone():
    posed, alone = pipeline(normalization="lite3r"), pipeline(has_ground_truth=False)
    for step in range(3):
        batch = alone.batch(step)
        assert batch.arrays().keys() == {"images"} and batch.extrinsics is batch.depth is None
        np.testing.assert_array_equal(batch.images, posed.batch(step).images)
        assert batch.record == posed.batch(step).record
    with pytest.raises(InputError, match="normalization: vggt needs cameras"):
        pipeline(has_ground_truth=False, normalization="vggt")


def test_a_source_without_cameras_needs_batches_without_truth():
    class Seen(Numbers):
        def read(self, scene, frames, size):
            sample = super().read(scene, frames, size)
            return Views(sample.dataset, sample.scene, sample.frames, sample.images)

    wanted = pipeline(has_ground_truth=False).batch(0)
    np.testing.assert_array_equal(
        pipeline(Seen(), has_ground_truth=False).batch(0).images, wanted.images
    )
    with pytest.raises(ValueError, match=r"numbers \d: has no cameras; make batches with has_"):
        pipeline(Seen()).batch(0)


def test_augmentation_and_normalization_are_applied_in_this_order(room):
    change = Augmentation(brightness=0.5, crop=0.8, mirror=0.5, shuffle=True)
    source, buckets = BlendedMVS(room), (Bucket(3, 3, 40, 56),)
    one = pipeline(source, buckets, augmentation=change, normalization="vggt")
    batch, plain = one.batch(1), pipeline(source, buckets).batch(1)
    for row, sample in enumerate(batch.samples):
        draw = next(one.schedule.draws(sample.index))
        frames = one.schedule.frames(draw, 3)
        assert plain.samples[row].frames == tuple(f"{frame:08d}" for frame in frames)
        read = source.read(sample.scene, frames, (50, 70))
        wanted = augment(read, change, one.schedule.uniform(draw), (40, 56))
        wanted = normalize(wanted, "vggt")
        for name in ARRAYS:
            np.testing.assert_array_equal(getattr(batch, name)[row], getattr(wanted, name))
    assert np.abs(batch.images - plain.images).max() > 0.1


def damage(root, scene: str, frame: int) -> str:
    file = root / scene / "blended_images" / f"{frame:08d}.jpg"
    file.write_bytes(file.read_bytes()[:200])
    return str(file)


def test_a_damaged_frame_is_named_once_counted_and_replaced_by_the_rule(tmp_path, caplog):
    for scene in "ab":
        write_blendedmvs(tmp_path, scene, views(4, (14, 28), seed=ord(scene)))
    file = damage(tmp_path, "b", 1)
    one = pipeline(BlendedMVS(tmp_path))
    met, replaced = 0, 0
    with iter(one) as batches, caplog.at_level(logging.WARNING):
        for step in range(12):
            batch = next(batches)
            met += len(batch.faults)
            assert all(file in fault for fault in batch.faults)
            assert_equal(batch, one.batch(step))
            for sample in batch.samples:
                for draw in one.schedule.draws(sample.index):
                    frames = one.schedule.frames(draw, 2)
                    if draw.scene == "b" and 1 in frames:
                        replaced += 1
                        continue
                    assert sample.scene == draw.scene
                    assert sample.frames == tuple(f"{frame:08d}" for frame in frames)
                    break
        assert met == replaced > 2
        assert list(batches.faults.values()) == [met]
        (fault,) = batches.faults
    assert file in fault
    assert [fault in record.getMessage() for record in caplog.records] == [True]


@pytest.mark.parametrize(
    "file,content,message",
    [
        ("blended_images/00000001.jpg", b"", "is empty"),
        ("blended_images/00000001.jpg", b"photo", "is not an image"),
        ("rendered_depth_maps/00000001.pfm", pfm_bytes(np.ones((7, 7))), "the depth map is 7x7"),
        ("rendered_depth_maps/00000001.pfm", b"Pf\n28 14\n-1\n", "bytes"),
        ("cams/00000001_cam.txt", b"extrinsic\n", "expected"),
    ],
)
def test_a_damaged_file_stops_a_run_without_tolerance_by_its_name(tmp_path, file, content, message):
    folder = write_blendedmvs(tmp_path, "a", views(2, (14, 28)))
    (folder / file).write_bytes(content)
    with pytest.raises(InputError) as caught:
        next(iter(pipeline(BlendedMVS(tmp_path), fault_limit=0)))
    assert f"{folder / file}: " in str(caught.value) and message in str(caught.value)


def test_one_fault_more_than_the_limit_stops_the_run_and_names_all():
    broken = [("0", 0), ("1", 3), ("4", 5)]
    batches = iter(pipeline(Numbers(broken=broken), fault_limit=2))
    with pytest.raises(InputError, match=r"the data has 3 faults, fault_limit is 2") as caught:
        for _ in range(1000):
            next(batches)
    for scene, frame in broken:
        assert f"/photos/{scene}/{frame}.jpg" in str(caught.value)
    step = batches.step
    with pytest.raises(InputError, match="the data has 3 faults"):  # it stays a fault
        next(batches)
    assert batches.step == step and len(batches.faults) == 2


def test_without_tolerance_the_first_fault_stops():
    batches = iter(pipeline(Numbers(broken=[("2", 2)]), fault_limit=0))
    with pytest.raises(InputError, match=r"has 1 faults, fault_limit is 0: /photos/2/2\.jpg"):
        for _ in range(1000):
            next(batches)


def test_data_of_which_nothing_can_be_read_ends_in_an_error():
    broken = [(str(scene), frame) for scene in range(2) for frame in range(2)]
    with pytest.raises(InputError, match=r"sample 0: 64 draws from 2 scenes were all faulty: /ph"):
        pipeline(Numbers(scenes=2, frames=2, broken=broken)).batch(0)


def test_an_iterator_goes_on_exactly_after_any_step():
    one = pipeline(Numbers(broken=[("2", 2)]), TWO)
    straight = iter(one)
    saved, wanted = [straight.get_state()], []
    for _ in range(8):
        wanted.append(next(straight))
        saved.append(straight.get_state())
    assert sum(len(batch.faults) for batch in wanted) > 1
    for step in range(8):
        restored = iter(pipeline(Numbers(broken=[("2", 2)]), TWO, prefetch=0))
        restored.set_state(saved[step])
        for batch in wanted[step:]:
            assert restored.step == batch.step
            assert_equal(next(restored), batch)
        assert restored.get_state() == saved[-1]
        assert restored.faults == straight.faults


def test_what_was_prefetched_is_not_part_of_the_state():
    batches = iter(pipeline(prefetch=4))
    next(batches)
    assert json.loads(batches.get_state())["step"] == 1
    assert len(batches.get_state()) < 150


def test_a_state_restored_in_the_middle_goes_back():
    batches = iter(pipeline())
    state, first = batches.get_state(), next(batches)
    next(batches)
    batches.set_state(state)
    assert_equal(next(batches), first)


def test_a_fault_is_not_reported_again_after_restoring(caplog):
    one = pipeline(Numbers(broken=[("2", 2)]))
    batches, restored = iter(one), iter(one)
    while not batches.faults:
        next(batches)
    restored.set_state(batches.get_state())
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        while sum(restored.faults.values()) < 4:
            next(restored)
    assert len(restored.faults) == 1 and not caplog.records


@pytest.mark.parametrize(
    "state,message",
    [
        (b"", "expected what get_state gave"),
        (b"[1]", "expected what get_state gave"),
        (b'{"step": 3}', "expected what get_state gave"),
        ({"version": 2}, "expected version 1 and a step, got version 2"),
        ({"step": -1}, "got version 1 and step -1"),
        ({"step": 1.5}, "got version 1 and step 1.5"),
        ({"faults": [1]}, "expected what get_state gave"),
        ({"digest": "0" * 64}, "it is of other data or other options"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(state, message):
    batches = iter(pipeline())
    if isinstance(state, dict):
        state = json.dumps(json.loads(batches.get_state()) | state)
    with pytest.raises(InputError, match=message):
        batches.set_state(state)
    assert batches.step == 0


@pytest.mark.parametrize(
    "process,message",
    [
        ((2, 2), "process_index: expected 0 to 1, got 2"),
        ((-1, 2), "process_index: expected 0 to 1, got -1"),
        ((0, 3), "a batch of 2 cannot be divided among 3 processes"),
    ],
)
def test_processes_that_cannot_share_a_batch_are_refused(process, message):
    with pytest.raises(InputError, match=message):
        pipeline(process=process)


def test_an_error_that_is_no_fault_of_the_data_is_not_passed_over():
    class Wrong(Numbers):
        def read(self, scene, frames, size):
            return super().read(scene, frames, (13, 28))

    with pytest.raises(ValueError, match=r"numbers \d: gave views of \(13, 28\), \(14, 28\) are"):
        next(iter(pipeline(Wrong())))
