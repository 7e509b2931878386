"""Photos without cameras: the right pixels, scenes that are left or held out, batches of images."""

import pickle

import cv2
import numpy as np
import pytest
from PIL import Image

from lite3r_jax.data.augment import Augmentation, augment
from lite3r_jax.data.images import load_images
from lite3r_jax.data.photo_scenes import PhotoScenes, find_photos
from lite3r_jax.data.photos import SourcePhoto
from lite3r_jax.data.pipeline import Bucket, Part, Pipeline, PipelineOptions
from lite3r_jax.data.sampling import Uniform
from lite3r_jax.data.video import VideoOptions
from lite3r_jax.errors import InputError
from tests.data.test_views import sample_of
from tests.data.world import views

ORIENTATION = 0x0112
SIZE = (28, 42)
# How a camera that notes this orientation stores an upright picture (EXIF 2.32, 4.6.4 A).
STORED = {
    1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1), 6: lambda a: a.swapaxes(0, 1)[::-1],
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1), 8: lambda a: a.swapaxes(0, 1)[:, ::-1],
}  # fmt: skip


def pixels(seed, height=60, width=80):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def put(path, upright, orientation=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stored.save(path, exif=exif)
    return path


def put_scene(folder, count, seed=0):
    for i in range(count):  # natural order is not that of the names as text
        put(folder / f"img{i + 8}.{'png' if i % 2 else 'jpg'}", pixels(seed + i), 1 + i % 8)


def pipeline(source, **options):
    settings = PipelineOptions((Bucket(2, 3, *SIZE),), has_ground_truth=False, **options)
    return Pipeline([Part(source, strategy="spaced")], settings)


def same(got, wanted):
    assert got.record == wanted.record
    np.testing.assert_array_equal(got.images, wanted.images)


def test_photos_are_turned_upright_cut_in_the_middle_and_resized(tmp_path):
    upright = pixels(1)
    for orientation in STORED:
        put(tmp_path / f"{orientation}.png", upright, orientation)
    source = find_photos(str(tmp_path), 2)
    sample = source.read(tmp_path.name, range(8), SIZE)
    assert not source.left_out and sample.frames == tuple(f"{o}.png" for o in STORED)
    # 80 x 60 has room for the shape 42 x 28 at 80 x 53 1/3
    box = (0, 10 / 3, 80, 60 - 10 / 3)
    wanted = Image.fromarray(upright).resize(SIZE[::-1], Image.Resampling.BICUBIC, box)
    for image in sample.images:
        np.testing.assert_array_equal(image, np.asarray(wanted) / np.float32(255))


def test_square_photos_are_what_the_command_gives_the_model(tmp_path):
    files = [put(tmp_path / f"{i}.jpg", pixels(i, 70, 70), 1 + 5 * i) for i in range(2)]
    source = find_photos(str(tmp_path), 2)
    sample = source.read(tmp_path.name, (1, 0), (42, 42))
    np.testing.assert_array_equal(sample.images, load_images(files[::-1], "crop", 42))


def test_folders_are_scenes_in_natural_order_and_small_ones_are_left_out(tmp_path):
    put_scene(tmp_path / "room10", 3)
    put_scene(tmp_path / "room9", 5)
    put_scene(tmp_path / "pair", 2)
    source = find_photos(str(tmp_path), 3)
    assert source.scenes == ("room9", "room10") and source.left_out == {"pair": 2}
    assert source.frames("room9") == (0, 1, 2, 3, 4)
    names = source.read("room9", source.frames("room9"), SIZE).frames
    assert names == ("img8.jpg", "img9.png", "img10.jpg", "img11.png", "img12.jpg")


def test_a_video_is_a_scene_of_its_frames(tmp_path):
    codec = cv2.VideoWriter.fourcc(*"mp4v")
    writer = cv2.VideoWriter(str(tmp_path / "walk.mp4"), codec, 2, (64, 48))
    for i in range(6):
        writer.write(np.full((48, 64, 3), 40 * i, np.uint8))
    writer.release()
    source = find_photos(str(tmp_path), 2, VideoOptions(stride=2))
    (scene,) = source.scenes
    sample = source.read(scene, source.frames(scene), SIZE)
    assert sample.frames == ("frame_000000.jpg", "frame_000002.jpg", "frame_000004.jpg")
    np.testing.assert_allclose(sample.images.mean((1, 2, 3)) * 255, [0, 80, 160], atol=3)


@pytest.mark.parametrize("make,message", [
    (lambda root: root / "nowhere", "nowhere: no such file or folder"),
    (lambda root: root, "the folder has no photos or videos"),
    (lambda root: [put_scene(root / name, n) for name, n in (("a", 1), ("b", 2))] and root,
     r"{root}: no scene has the 3 photos that the buckets ask for, the largest \(b\) has 2; add"),
])  # fmt: skip
def test_what_cannot_be_trained_on_is_named(tmp_path, make, message):
    where = make(tmp_path)
    with pytest.raises(InputError, match=message.format(root=tmp_path)):
        find_photos(str(where), 3)


def test_order_and_pixels_are_a_function_of_seed_and_step_also_after_a_restart(tmp_path):
    put_scene(tmp_path / "a", 6)
    put_scene(tmp_path / "b", 4, seed=50)
    change = Augmentation(brightness=0.5, hue=0.1, blur=0.5, crop=0.7, mirror=0.5, shuffle=True)
    source = find_photos(str(tmp_path), 3)
    one = iter(pipeline(source, augmentation=change, prefetch=0))
    wanted, states = [], []
    for _ in range(5):
        states.append(one.get_state())
        wanted.append(next(one))
    assert wanted[0].arrays().keys() == {"images"}
    assert np.abs(wanted[0].images - wanted[1].images).max() > 0.1
    for step, state in enumerate(states):
        again = iter(pipeline(find_photos(str(tmp_path), 3), augmentation=change, prefetch=0))
        again.set_state(state)
        same(next(again), wanted[step])
    other = find_photos(str(tmp_path / "a"), 3)
    with pytest.raises(InputError, match="it is of other data"):
        iter(pipeline(other, augmentation=change)).set_state(states[2])


def test_a_broken_photo_is_named_counted_and_replaced(tmp_path):
    put_scene(tmp_path, 7)
    broken = tmp_path / "img10.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    source = find_photos(str(tmp_path), 3)
    batches = iter(pipeline(source, prefetch=0))
    for _ in range(6):
        assert all("img10.jpg" not in sample.frames for sample in next(batches).samples)
    ((message, count),) = batches.faults.items()
    assert message.startswith(f"{broken}: ") and count > 0


def test_changes_are_those_of_posed_images():
    change = Augmentation(brightness=0.5, contrast=0.4, crop=0.8, place="random", aspect=1.2,
                          mirror=0.5, shuffle=True)  # fmt: skip
    posed = sample_of(views(3, (30, 40)))
    seen = PhotoScenes({"s": {i: SourcePhoto(f"{i}", np.rint(image * 255).astype(np.uint8), f"{i}")
                              for i, image in enumerate(posed.images)}})  # fmt: skip
    alone = seen.read("s", (0, 1, 2), (30, 40))
    np.testing.assert_allclose(alone.images, posed.images, atol=1e-6)
    for index in range(4):
        wanted = augment(posed, change, Uniform(0, index), (28, 28))
        got = augment(alone, change, Uniform(0, index), (28, 28))
        np.testing.assert_allclose(got.images, wanted.images, atol=1e-6)
        assert not hasattr(got, "extrinsics")


def test_a_source_that_travelled_reads_the_same(tmp_path):
    put_scene(tmp_path, 3)
    source = find_photos(str(tmp_path), 3)
    there = pickle.loads(pickle.dumps(source))
    got, wanted = (s.read(tmp_path.name, (2, 0), SIZE) for s in (there, source))
    np.testing.assert_array_equal(got.images, wanted.images)


@pytest.mark.slow
def test_workers_give_the_batches_of_one_process(tmp_path):
    put_scene(tmp_path, 6)
    source = find_photos(str(tmp_path), 3)
    alone = pipeline(source)
    with iter(pipeline(source, workers=2, prefetch=1)) as batches:
        for step in range(4):
            same(next(batches), alone.batch(step))
