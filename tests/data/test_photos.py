"""What a user may point at: the right photos in order, safe names, clear words on what is wrong."""

import os
import random
import tempfile
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lite3r_jax.data.images import load_images, load_images_with_boxes, read_image
from lite3r_jax.data.photos import (
    PHOTO_SUFFIXES,
    PhotoSet,
    SourcePhoto,
    find_scenes,
    list_scenes,
    load_photos,
)
from lite3r_jax.data.video import VideoOptions
from lite3r_jax.errors import InputError
from lite3r_jax.scene import check_names

HEIC = Path(__file__).with_name("turned.heic")


def pixels(seed: int = 0, width: int = 40, height: int = 30) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, 3), np.uint8)


def put(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(seed)).save(path)
    return path


def put_video(path: Path, frames: int = 4) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 2.0, (64, 48))
    for i in range(frames):
        writer.write(np.full((48, 64, 3), 40 * i, np.uint8))
    writer.release()
    return path


def names(scenes) -> dict[str, list[str]]:
    assert len({scene.name for scene in scenes}) == len(scenes)
    for scene in scenes:
        check_names(tuple(photo.name for photo in scene.photos))
    return {scene.name: [photo.name for photo in scene.photos] for scene in scenes}


def refuses(source, *words: str, **options) -> None:
    with pytest.raises(InputError) as caught:
        find_scenes(source, **options)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


# -- folders --------------------------------------------------------------------------------------


def test_an_empty_scene_among_several_fails_when_it_is_opened(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    put(tmp_path / "a" / "x.png")
    first, second = list_scenes(str(tmp_path))
    assert first.files == (f"{tmp_path}/a/x.png",) and len(first.open().photos) == 1
    with pytest.raises(InputError, match=r"b: the folder has no photos or videos"):
        second.open()
    with pytest.raises(InputError, match=r"b: the folder has no photos or videos"):
        list_scenes(str(tmp_path / "b"))


def test_a_folder_is_a_scene_in_natural_order(tmp_path):
    for name in ("img10.png", "img2.png", "IMG1.png", "img2b.png", "a.png"):
        put(tmp_path / "room" / name)
    assert names(find_scenes(tmp_path / "room")) == {
        "room": ["a.png", "IMG1.png", "img2.png", "img2b.png", "img10.png"]
    }


def test_photos_are_told_by_suffix_in_any_case(tmp_path):
    for suffix in PHOTO_SUFFIXES:
        (tmp_path / f"a{suffix[1:]}{suffix.upper()}").touch()
    (scene,) = find_scenes(str(tmp_path))
    assert len(scene.photos) == len(PHOTO_SUFFIXES)
    assert scene.ignored == ()


def test_what_is_not_used_is_named_but_for_hidden_files(tmp_path):
    put(tmp_path / "a.png")
    put(tmp_path / "masks" / "a.png")
    for name in ("notes.txt", "poses.json", ".hidden.png", "Thumbs.db", "film.mp4"):
        (tmp_path / name).write_text("something")
    (scene,) = find_scenes(tmp_path)
    assert [photo.name for photo in scene.photos] == ["a.png"]
    assert sorted(scene.ignored) == ["film.mp4", "masks/", "notes.txt", "poses.json"]


def test_a_folder_of_folders_is_a_scene_each(tmp_path):
    for name in ("room10/b.png", "room2/a.png", "room2/b.png"):
        put(tmp_path / name)
    put_video(tmp_path / "room11" / "clip.mp4")
    (tmp_path / "list.txt").write_text("room2")
    scenes = find_scenes(tmp_path, video=VideoOptions(stride=2))
    assert names(scenes) == {
        "room2": ["a.png", "b.png"],
        "room10": ["b.png"],
        "room11": ["frame_000000.jpg", "frame_000002.jpg"],
    }
    assert [name for scene in scenes for name in scene.ignored] == ["list.txt"]


def test_a_folder_of_videos_is_a_scene_each(tmp_path):
    put_video(tmp_path / "walk2.mp4")
    put_video(tmp_path / "walk10.mp4")
    assert list(names(find_scenes(tmp_path))) == ["walk2", "walk10"]


def test_the_folder_one_stands_in_has_a_name(tmp_path, monkeypatch):
    put(tmp_path / "room" / "a.png")
    monkeypatch.chdir(tmp_path / "room")
    for spelled in (".", "", "./", "a.png", "*.png"):
        if spelled:
            assert list(names(find_scenes(spelled)).values()) == [["a.png"]]
    assert find_scenes(".")[0].name == "room"
    assert find_scenes("*.png")[0].name == "a"  # one photo


def test_the_home_directory_may_be_abbreviated(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    put(tmp_path / "room" / "a.png")
    assert names(find_scenes("~/room")) == {"room": ["a.png"]}


# -- patterns, lists, single files ----------------------------------------------------------------


def test_a_pattern_of_photos_is_one_scene(tmp_path):
    for name in ("b10.png", "b9.png", "c.jpg", "sub/d.png"):
        put(tmp_path / "room" / name)
    (tmp_path / "room" / "b.txt").write_text("text")
    (scene,) = find_scenes(f"{tmp_path}/room/b*")
    assert names([scene]) == {"room": ["b9.png", "b10.png"]}
    assert scene.ignored == (f"{tmp_path}/room/b.txt",)
    assert names(find_scenes(f"{tmp_path}/room/**/*.png")) == {
        "room": ["b9.png", "b10.png", "d.png"]
    }


def test_a_pattern_of_folders_is_a_scene_each(tmp_path):
    for name in ("flat/room1/images/a.png", "flat/room2/images/a.png"):
        put(tmp_path / name)
    assert list(names(find_scenes(f"{tmp_path}/flat/*/images"))) == [
        "room1_images",
        "room2_images",
    ]


def test_what_exists_is_neither_a_pattern_nor_a_list(tmp_path):
    put(tmp_path / "room [1], left" / "a.png")
    put(tmp_path / "room 1" / "b.png")
    assert names(find_scenes(tmp_path / "room [1], left")) == {"room [1], left": ["a.png"]}
    assert names(find_scenes(f"{tmp_path}/room [1], left")) == {"room [1], left": ["a.png"]}


def test_a_list_keeps_its_order(tmp_path):
    b, a = put(tmp_path / "room" / "b.png"), put(tmp_path / "room" / "a.png")
    expected = {"room": ["b.png", "a.png"]}
    assert names(find_scenes(f"{b}, {a}")) == expected
    assert names(find_scenes([b, str(a)])) == expected
    assert names(find_scenes((b, a))) == expected


def test_a_list_of_folders_and_videos_is_a_scene_each(tmp_path):
    put(tmp_path / "room" / "b.png")
    clip = put_video(tmp_path / "clip.mp4")
    assert names(find_scenes(f"{clip},{tmp_path}/room")) == {
        "clip": ["frame_000000.jpg", "frame_000002.jpg"],
        "room": ["b.png"],
    }
    refuses([tmp_path / "room" / "b.png", clip], "b.png", "clip.mp4", "not both")
    refuses([pixels(), tmp_path / "room"], "image in memory", "room", "not both")


def test_a_single_file_is_a_photo_whatever_its_suffix(tmp_path):
    path = put(tmp_path / "a.png").rename(tmp_path / "upload")
    (scene,) = find_scenes(path)
    assert names([scene]) == {"upload": ["upload"]}
    np.testing.assert_array_equal(np.asarray(scene.photos[0].read()), pixels())


def test_equal_names_take_the_folders_above(tmp_path):
    paths = [put(tmp_path / name) for name in ("left/1.png", "right/1.png", "right/2.png")]
    (scene,) = find_scenes(paths)
    assert [photo.name for photo in scene.photos] == ["left/1.png", "right/1.png", "right/2.png"]
    clips = [put_video(tmp_path / name) for name in ("a/clip.mp4", "b/clip.mp4", "b/clip.mov")]
    assert list(names(find_scenes(clips[:2]))) == ["a_clip", "b_clip"]
    assert list(names(find_scenes(clips))) == ["a_clip.mp4", "b_clip.mp4", "b_clip.mov"]


def test_names_that_cannot_be_told_apart_are_refused(tmp_path):
    lower, upper = put(tmp_path / "a.png"), put(tmp_path / "A.PNG")
    refuses(tmp_path, str(lower), str(upper), "same name", "rename")
    refuses([lower, f"{tmp_path}/./a.png"], "a.png", "more than once")
    put(tmp_path / "room" / "b.png")
    refuses([tmp_path / "room", tmp_path / "room"], "room", "more than once")


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.lists(st.sampled_from(["one", "two", "..", "."]), max_size=6).map("/".join),
        min_size=1,
        max_size=4,
    )
)
def test_names_never_lead_out_of_a_folder(folders):
    with tempfile.TemporaryDirectory() as root:
        paths = {}
        for folder in folders:
            path = os.path.join(root, "x", "y", "z", "u", "v", "w", folder, "photo.png")
            whole = os.path.abspath(path)
            if whole not in paths:
                parents = Path(root, "x", "y", "z", "u", "v", "w")
                for part in Path(folder).parts:  # every folder on the way must be there
                    (parents := parents / part).mkdir(parents=True, exist_ok=True)
                put(Path(whole))
                paths[whole] = path
        (scene,) = find_scenes(list(paths.values()))
        listed = tuple(photo.name for photo in scene.photos)
        check_names(listed)
        for name, whole in zip(listed, paths, strict=True):
            assert whole.endswith(f"/{name}")


def test_a_link_goes_by_its_own_name(tmp_path):
    put(tmp_path / "elsewhere" / "original.png", seed=3)
    room = tmp_path / "room"
    room.mkdir()
    (room / "a.png").symlink_to("../elsewhere/original.png")
    (scene,) = find_scenes(room)
    assert names([scene]) == {"room": ["a.png"]}
    np.testing.assert_array_equal(np.asarray(scene.photos[0].read()), pixels(3))
    (room / "b.png").symlink_to("nowhere.png")
    with pytest.raises(InputError, match=r"b\.png: no such file"):
        load_photos(find_scenes(room)[0].photos)


# -- in memory ------------------------------------------------------------------------------------


def test_an_array_is_a_scene_or_a_photo_by_its_shape():
    batch = np.stack([pixels(i) for i in range(3)])
    alpha = np.concatenate([batch, np.full_like(batch[..., :1], 255)], -1)
    for array, views in [
        (batch, 3),
        (alpha, 3),
        (batch[..., 0], 3),
        (batch[..., :1], 3),
        (batch[0], 1),
        (alpha[0], 1),
        (batch[0, ..., 0], 1),
    ]:
        (scene,) = find_scenes(array)
        assert [p.name for p in scene.photos] == [f"image_{i:06d}.png" for i in range(views)]
        images, _ = load_photos(scene.photos, size=56)
        expected = load_images(list(array) if views == 3 else [array], size=56)
        np.testing.assert_array_equal(images, expected)
    floats = (batch / np.float32(255)).astype(np.float32)
    np.testing.assert_array_equal(
        load_photos(find_scenes(floats)[0].photos, size=56)[0], load_images(list(batch), size=56)
    )
    refuses(batch[:0], "no photos")


def test_paths_images_and_arrays_make_one_scene(tmp_path):
    path = put(tmp_path / "a.png", seed=1)
    (scene,) = find_scenes([pixels(0), path, Image.fromarray(pixels(2))])
    assert names([scene]) == {tmp_path.name: ["image_000000.png", "a.png", "image_000002.png"]}
    expected = load_images([pixels(i) for i in range(3)], size=56)
    np.testing.assert_array_equal(load_photos(scene.photos, size=56)[0], expected)


def test_what_cannot_be_a_photo_is_refused_when_it_is_read():
    for source in (None, 3, [3], np.zeros((2, 3, 40, 30), np.uint8)):
        (scene,) = find_scenes(source)
        with pytest.raises(InputError, match="image 0"):
            load_photos(scene.photos)


# -- photos ---------------------------------------------------------------------------------------


def test_all_doors_lead_to_the_same_pixels(tmp_path):
    paths = [put(tmp_path / f"{i}.png", seed=i) for i in range(5)]
    (scene,) = find_scenes(tmp_path)
    expected = load_images_with_boxes(paths, "pad", 56)
    ticks = []
    for workers in (None, 1, 4):
        got = load_photos(
            scene.photos, "pad", 56, workers=workers, progress=lambda: ticks.append(1)
        )
        for a, b in zip(got, expected, strict=True):
            np.testing.assert_array_equal(a, b)
    assert len(ticks) == 3 * 5
    for photo, path in zip(scene.photos, paths, strict=True):
        np.testing.assert_array_equal(np.asarray(photo.read()), np.asarray(read_image(path)))


def test_frames_go_to_the_network_as_they_are_read_back(tmp_path):
    (scene,) = find_scenes(put_video(tmp_path / "clip.mp4"), video=VideoOptions(stride=1))
    images, boxes = load_photos(scene.photos, size=56)
    again = load_images([photo.read() for photo in scene.photos], size=56)
    np.testing.assert_array_equal(images, again)
    np.testing.assert_array_equal(boxes[:, 4:], [[64, 48]] * 4)
    assert all(photo.upright_file() is None for photo in scene.photos)


def orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


def make(name: str, path: Path) -> Path:
    """One file of the kind that its name says."""
    rgb = Image.fromarray(pixels())
    path = path / name
    kind = path.stem
    if kind == "turned":
        rgb.save(path, exif=orientation(6))
    elif kind == "upright":
        rgb.save(path, exif=orientation(1))
    elif kind == "misnamed":
        rgb.save(path, "JPEG")
    elif kind == "two":
        rgb.save(path, "MPO", save_all=True, append_images=[rgb.resize((8, 6))])
    elif kind == "moving":
        rgb.save(path, save_all=True, append_images=[Image.fromarray(pixels(1))])
    elif kind == "deep":
        Image.fromarray(pixels()[..., 0].astype(np.uint16) * 257).save(path)
    elif kind == "deepcolor":
        cv2.imwrite(str(path), pixels().astype(np.uint16) * 257)
    elif kind == "key":
        rgb.save(path, transparency=(1, 2, 3))
    elif kind == "palette":
        rgb.quantize(16).save(path)
    else:
        rgb.convert(kind).save(path)
    return path


@pytest.mark.parametrize("name", ["RGB.jpg", "RGB.JPEG", "L.jpg", "RGB.png", "L.png", "upright.jpg",
                                  "upright.png", "two.jpg"])  # fmt: skip
def test_plain_jpeg_and_png_may_be_copied(tmp_path, name):
    path = make(name, tmp_path)
    (photo,) = find_scenes(path)[0].photos
    assert photo.upright_file() == path
    # an independent reader sees the same pixels in the file as it is
    seen = cv2.imread(str(path), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    assert seen is not None
    error = np.asarray(photo.read(), np.int64) - seen[:, :, ::-1]
    assert abs(error).max() <= (2 if "jp" in name.lower() else 0)


@pytest.mark.parametrize("name", ["turned.jpg", "turned.png", "CMYK.jpg", "RGBA.png", "LA.png",
                                  "1.png", "palette.png", "key.png", "deep.png", "deepcolor.png",
                                  "moving.png", "misnamed.png", "RGB.webp", "RGB.tif"])  # fmt: skip
def test_others_must_be_read_and_written_anew(tmp_path, name):
    (photo,) = find_scenes(make(name, tmp_path))[0].photos
    assert photo.upright_file() is None


def test_photos_in_memory_have_no_file():
    for source in (pixels(), Image.fromarray(pixels())):
        assert find_scenes([source])[0].photos[0].upright_file() is None


def test_the_limit_of_pixels_goes_with_the_photo(tmp_path):
    path = put(tmp_path / "a.png")
    (photo,) = find_scenes(path, max_pixels=40 * 30 - 1)[0].photos
    for read in (photo.read, lambda: load_photos([photo])):
        with pytest.raises(InputError, match=r"a\.png: 40x30 .* max_pixels"):
            read()
    assert load_photos([photo], max_pixels=40 * 30)[0].shape[0] == 1


# -- bad input ------------------------------------------------------------------------------------


def test_missing_and_empty_places_are_named(tmp_path):
    refuses(tmp_path / "none", "none", "no such file or folder")
    refuses(f"{tmp_path}/none/*.jpg", "*.jpg", "matches no photo")
    refuses("", "empty path")
    refuses("nul\0byte", "no such file or folder")
    refuses([], "no photos were given")
    (tmp_path / "empty").mkdir()
    refuses(tmp_path / "empty", "empty", "has no photos or videos", "jpg", "mp4")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("text")
    refuses(tmp_path / "text", "text", "has no photos or videos")
    refuses(f"{tmp_path}/text/*", "matches no photo")
    refuses(f"{tmp_path}/text,", "empty path")
    refuses(f"{tmp_path}/nope.jpg,b.jpg", "nope.jpg", "no such file")


def test_a_folder_without_photos_among_scenes_is_named(tmp_path):
    put(tmp_path / "room1" / "a.png")
    put(tmp_path / "room2" / "images" / "a.png")
    refuses(tmp_path, "room2", "has no photos or videos", "pattern")
    assert list(names(find_scenes(f"{tmp_path}/*/images"))) == ["images"]


def test_text_among_the_photos_is_named(tmp_path):
    for i in range(6):
        put(tmp_path / f"{i}.png", seed=i)
    (tmp_path / "3.png").write_text("not pixels")
    (scene,) = find_scenes(tmp_path)
    with pytest.raises(InputError, match=r"3\.png: is not an image in a supported format"):
        load_photos(scene.photos)


def test_a_video_without_frames_is_named(tmp_path):
    (tmp_path / "clip.mp4").write_text("not a film")
    put(tmp_path / "room" / "a.png")
    refuses(tmp_path / "clip.mp4", "clip.mp4", "not a video")
    refuses(f"{tmp_path}/room,{tmp_path}/clip.mp4", "clip.mp4", "not a video")


def test_too_few_views_are_counted(tmp_path):
    for name in ("room1/a.png", "room1/b.png", "room2/a.png"):
        put(tmp_path / name)
    assert len(find_scenes(tmp_path, min_views=1)) == 2
    refuses(tmp_path, "room2", "too few views: 1, at least 2", min_views=2)


@contextmanager
def unprivileged():
    """Without the right of root to read everything."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_what_may_not_be_read_is_named():
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        photo, clip = put(folder / "a.png"), put_video(folder / "clip.mp4")
        locked = put(folder / "locked" / "b.png")
        for path in (photo, clip, locked.parent):
            path.chmod(0)
        with unprivileged():
            with pytest.raises(InputError, match=r"a\.png: permission denied"):
                load_images([photo])
            with pytest.raises(InputError, match=r"b\.png: permission denied"):
                load_images([locked])
            refuses(clip, "clip.mp4", "permission denied")
            refuses(locked.parent, "locked", "cannot be read", "Permission denied")
        locked.parent.chmod(0o755)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's remarks on damaged metadata
@pytest.mark.parametrize(
    "suffix", ["jpg", "png", "webp", "tif", "gif", "bmp", "ppm", "avif", "heic"]
)
def test_mutated_photos_are_read_or_refused_alike_by_threads_and_alone(tmp_path, suffix):
    if suffix == "heic":
        good = HEIC.read_bytes()
    else:
        exif = {"exif": orientation(6)} if suffix in ("jpg", "png", "webp", "tif") else {}
        path = tmp_path / f"good.{suffix}"
        Image.fromarray(pixels()).save(path, **exif)
        good = path.read_bytes()
    rng = random.Random(suffix)
    outcomes = {True: 0, False: 0}
    for _ in range(24):
        photos = []
        for i in range(8):
            data = bytearray(good)
            for _ in range(rng.randint(0, 4)):
                data[rng.randrange(len(data))] = rng.randrange(256)
            if not rng.randrange(4):
                del data[rng.randrange(len(data)) :]
            path = tmp_path / f"{i}.{suffix}"
            path.write_bytes(data)
            photos.append(SourcePhoto(path.name, str(path), str(path)))
        usable, messages = [], []
        for photo in photos:
            try:
                load_images([photo.source], size=56)
                usable.append(photo)
            except InputError as error:
                messages.append(str(error))
                assert messages[-1].startswith(photo.label)
                assert "\n" not in messages[-1]
        outcomes[True] += len(usable)
        outcomes[False] += len(messages)
        if messages:
            with pytest.raises(InputError) as caught:
                load_photos(photos, size=56, workers=4)
            assert str(caught.value) == messages[0]
        if usable:
            images, _ = load_photos(usable, size=56, workers=4)
            expected = load_images([photo.source for photo in usable], size=56)
            np.testing.assert_array_equal(images, expected)
            assert images.min() >= 0
            assert images.max() <= 1
    assert outcomes[True] > 20
    assert outcomes[False] > 20


@pytest.mark.parametrize(
    "names,in_order",
    [
        (("frame_000010.jpg", "frame_000020.jpg"), True),
        (("IMG_2041.jpg", "img_2042.JPG"), True),
        (("20240101_1200.jpg", "20240102_0900.jpg"), True),
        (("1.jpg", "2.jpg"), True),
        (("door.jpg", "garden.jpg"), False),
        (("IMG_2041.jpg", "IMG_2041_edited.jpg"), False),
        (("left1.jpg", "right1.jpg"), False),
        (("alone.jpg",), True),
    ],
)
def test_names_tell_whether_photos_are_in_order(names, in_order):
    photos = tuple(SourcePhoto(name, name, name, 10) for name in names)
    assert PhotoSet("scene", photos).in_order == in_order
