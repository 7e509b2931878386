"""Preprocessing: equal to the original, defined for every kind of photo, clear on bad input."""

import io
import random
import threading
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lite3r_jax.data.images import (
    FittedImage,
    fit_image,
    load_images,
    load_images_with_boxes,
    read_and_stack,
    read_image,
    stack_images,
)
from lite3r_jax.errors import InputError

GOLDEN = Path(__file__).parents[1] / "golden" / "vggt" / "modules"
PHOTOS = sorted((GOLDEN / "images").glob("*.png"))


@pytest.fixture(scope="module")
def wanted(golden):
    return golden("modules/preprocess")


def photo(width: int = 60, height: int = 42, seed: int = 0) -> np.ndarray:
    """A smooth uint8 [H, W, 3] image whose four corners differ."""
    y, x = np.mgrid[0:height, 0:width]
    phase = np.random.default_rng(seed).uniform(0, 1, 3)
    waves = [x / width, y / height, (x / width + y / height) / 2 + 0.1 * np.sin(x / 5)]
    rgb = np.stack([0.8 * w + 0.1 * p for w, p in zip(waves, phase, strict=True)], -1)
    return np.rint(np.clip(rgb, 0, 1) * 255).astype(np.uint8)


def channels_last(u8: np.ndarray) -> np.ndarray:
    return np.moveaxis(u8, 1, -1).astype(np.float32) / np.float32(255)


# -- golden -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["crop", "pad"])
def test_mixed_sizes_equal_the_original_exactly(wanted, parity, mode):
    images = load_images(PHOTOS, mode=mode)
    assert len(PHOTOS) == 3
    assert images.dtype == np.float32
    name = f"{mode}_all_u8"
    parity("modules/preprocess", name, images, channels_last(wanted[name]), 0)


@pytest.mark.parametrize("mode", ["crop", "pad"])
@pytest.mark.parametrize("i", [0, 1, 2])
def test_single_photos_have_the_original_shape(wanted, parity, mode, i):
    s, h, w, c = load_images([PHOTOS[i]], mode=mode).shape
    name = f"{mode}_single_shape_{i}"
    parity("modules/preprocess", name, (s, c, h, w), wanted[name], 0)


def test_square_variant_equals_the_original_exactly(wanted, parity):
    images, boxes = load_images_with_boxes(PHOTOS, size=112)
    parity("modules/preprocess", "square112_u8", images, channels_last(wanted["square112_u8"]), 0)
    assert boxes.dtype == np.float32
    parity("modules/preprocess", "square112_coords", boxes, wanted["square112_coords"], 0)


def test_files_images_and_arrays_agree():
    opened = [Image.open(path) for path in PHOTOS]
    arrays = [np.asarray(image) for image in opened]
    expected = load_images(PHOTOS)
    np.testing.assert_array_equal(load_images(opened), expected)
    np.testing.assert_array_equal(load_images(arrays), expected)
    np.testing.assert_array_equal(load_images([str(path) for path in PHOTOS]), expected)
    np.testing.assert_array_equal(load_images([path.read_bytes() for path in PHOTOS]), expected)
    as_float = [array / np.float32(255) for array in arrays]
    np.testing.assert_array_equal(load_images(as_float), expected)


# -- geometry of the fit ----------------------------------------------------------------------


def test_halves_round_to_even():
    image = Image.new("RGB", (74, 41))  # 41 * 7 / 14 = 20.5 patches
    assert fit_image(image).pixels.shape == (280, 518, 3)
    image = Image.new("RGB", (74, 43))  # 21.5 patches
    assert fit_image(image).pixels.shape == (308, 518, 3)


@settings(deadline=None, max_examples=200)
@given(
    width=st.integers(14, 300),
    height=st.integers(14, 300),
    patches=st.integers(1, 8),
    mode=st.sampled_from(["crop", "pad"]),
)
def test_size_is_the_nearest_multiple_of_a_patch(width, height, patches, mode):
    image = Image.new("RGB", (width, height))
    size = 14 * patches
    long, short = (height, width) if mode == "pad" and height > width else (width, height)
    exact = Fraction(short * patches, long)
    if exact == Fraction(1, 2):
        return  # a tie between none and one, which binary floating point may miss
    if round(exact) == 0:
        with pytest.raises(InputError, match="too narrow"):
            fit_image(image, mode, size)
        return
    fitted = fit_image(image, mode, size)
    x1, y1, x2, y2 = fitted.box
    new_short = (x2 - x1) if long == height and mode == "pad" and height > width else (y2 - y1)
    assert new_short % 14 == 0
    assert abs(Fraction(int(new_short), 14) - exact) <= Fraction(1, 2)
    if exact.denominator != 2:  # binary floating point may miss a tie
        assert new_short == 14 * round(exact)
    assert fitted.pixels.shape == (size if mode == "pad" else min(size, new_short), size, 3)
    # what is kept lies in the middle
    assert abs((y1 + y2) - fitted.pixels.shape[0]) <= 1
    assert abs((x1 + x2) - size) <= 1


@pytest.mark.parametrize("mode", ["crop", "pad", "square"])
@pytest.mark.parametrize("width,height", [(90, 40), (40, 90), (56, 56)])
def test_box_says_where_the_photo_went(mode, width, height):
    # a bright disc at a known place must be found where the box maps it
    y, x = np.mgrid[0:height, 0:width] + 0.5
    center = np.array([0.4 * width, 0.55 * height])
    disc = 255 * np.exp(-((x - center[0]) ** 2 + (y - center[1]) ** 2) / 18)
    gray = np.rint(disc).astype(np.uint8)
    images, boxes = load_images_with_boxes([gray], mode, 224)
    x1, y1, x2, y2, w, h = boxes[0]
    assert (w, h) == (width, height)
    weight = images[0, :, :, 0].copy()
    inside = np.zeros_like(weight)
    inside[
        max(0, round(float(y1))) : round(float(y2)), max(0, round(float(x1))) : round(float(x2))
    ] = 1
    weight *= inside  # leaves out the white border of pad
    rows, columns = np.mgrid[0 : weight.shape[0], 0 : weight.shape[1]] + 0.5
    centroid = np.array([(weight * columns).sum(), (weight * rows).sum()]) / weight.sum()
    expected = [x1 + center[0] * (x2 - x1) / w, y1 + center[1] * (y2 - y1) / h]
    np.testing.assert_allclose(centroid, expected, atol=0.25)


def test_crop_keeps_the_middle_rows():
    tall = np.zeros((120, 60, 3), np.uint8)
    tall[:40], tall[40:80], tall[80:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    fitted = fit_image(Image.fromarray(tall), "crop", 56)
    assert fitted.box == (0, -28, 56, 84)
    assert fitted.pixels.shape == (56, 56, 3)
    np.testing.assert_array_equal(fitted.pixels[28, 28], (0, 255, 0))
    assert fitted.pixels[0, 0, 0] > 200
    assert fitted.pixels[-1, 0, 2] > 200


def test_borders_are_white_except_in_square():
    black = Image.new("RGB", (56, 28))
    padded = fit_image(black, "pad", 56).pixels
    assert padded[:14].min() == padded[-14:].min() == 255
    assert padded[14:42].max() == 0
    assert fit_image(Image.new("RGB", (56, 28), "white"), "square", 56).pixels[:12].max() == 0


def test_stack_centers_smaller_photos_on_white():
    small = FittedImage(np.zeros((14, 28, 3), np.uint8), (0, 0, 28, 14), (28, 14))
    large = FittedImage(np.zeros((43, 42, 3), np.uint8), (0, 0, 42, 43), (42, 43))
    images, boxes = stack_images([small, large])
    assert images.shape == (2, 43, 42, 3)
    np.testing.assert_array_equal(boxes[0], (7, 14, 35, 28, 28, 14))
    assert images[0, 14:28, 7:35].max() == 0
    assert images[0].sum() == 3 * (43 * 42 - 14 * 28)
    assert images[1].max() == 0


# -- kinds of photos --------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_makes_the_photo_upright(tmp_path, orientation):
    upright = photo()
    # how each orientation stores the rows and columns of the upright photo (EXIF 2.3, tag 274)
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.png"
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif)
    image = read_image(path)
    np.testing.assert_array_equal(np.asarray(image), upright)
    np.testing.assert_array_equal(np.asarray(read_image(image)), upright)  # not turned again


def test_exif_of_a_16_bit_photo_is_applied(tmp_path):
    gray = np.arange(14 * 20, dtype=np.uint16).reshape(14, 20) * 200
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(gray[::-1, ::-1].copy()).save(tmp_path / "a.png", exif=exif)
    expected = np.rint(gray / 257.0).astype(np.uint8)
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "a.png"))[..., 0], expected)


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_16_bit_gray_keeps_its_range(tmp_path, suffix):
    gray = np.linspace(0, 65535, 14 * 20).astype(np.uint16).reshape(14, 20)
    path = tmp_path / f"gray.{suffix}"
    Image.fromarray(gray).save(path)
    expected = np.repeat(np.rint(gray / 257.0).astype(np.uint8)[..., None], 3, -1)
    np.testing.assert_array_equal(np.asarray(read_image(path)), expected)
    np.testing.assert_array_equal(np.asarray(read_image(gray)), expected)


def test_every_16_bit_value_rounds_to_the_nearest():
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    error = np.asarray(read_image(values), np.int64)[..., 0] * 257 - values
    assert abs(error).max() == 128


def test_palette_images_keep_their_colors(tmp_path):
    indexed = Image.fromarray(photo()).quantize(16)
    indexed.save(tmp_path / "palette.png")
    expected = np.asarray(indexed.convert("RGB"))
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "palette.png")), expected)


def test_transparency_of_every_kind_shows_white(tmp_path):
    rgb = Image.new("RGB", (20, 20), (200, 10, 10))
    hidden = rgb.copy()
    hidden.putalpha(0)
    gray = Image.new("LA", (20, 20), (30, 0))
    palette = Image.new("P", (20, 20), 1)
    palette.putpalette([0, 0, 0, 200, 10, 10])
    files = {"rgba.png": (hidden, {}), "la.png": (gray, {}), "rgba.webp": (hidden, {})}
    files["palette.png"] = (palette, {"transparency": 1})
    files["palette.gif"] = (palette, {"transparency": 1})
    files["key.png"] = (rgb, {"transparency": (200, 10, 10)})
    for name, (image, options) in files.items():
        image.save(tmp_path / name, **options)
        assert np.asarray(read_image(tmp_path / name)).min() == 255, name


def test_half_transparent_pixels_mix_with_white():
    rgba = np.full((20, 20, 4), (255, 0, 0, 128), np.uint8)
    np.testing.assert_array_equal(np.asarray(read_image(rgba))[0, 0], (255, 127, 127))


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "L", "1"])
def test_other_color_models_become_rgb(tmp_path, mode):
    image = Image.fromarray(photo()).convert(mode)
    path = tmp_path / "image.tif"
    image.save(path)
    np.testing.assert_array_equal(np.asarray(read_image(path)), np.asarray(image.convert("RGB")))


def test_cmyk_jpeg_looks_like_its_rgb_original(tmp_path):
    flat = Image.new("RGB", (32, 32), (180, 60, 20))
    flat.convert("CMYK").save(tmp_path / "print.jpg", quality=95)
    error = np.asarray(read_image(tmp_path / "print.jpg"), np.int64) - (180, 60, 20)
    assert abs(error).max() <= 3


def test_the_content_decides_not_the_name(tmp_path):
    Image.fromarray(photo()).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "a.jpg")
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "a.jpg")), photo())


def test_the_source_image_is_left_as_it_was():
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.fromarray(photo()).save(buffer, "PNG", exif=exif)
    image = Image.open(buffer)
    load_images([image], size=56)
    assert image.size == (60, 42)
    assert image.getexif()[0x0112] == 6


# -- many at a time ---------------------------------------------------------------------------


def test_any_number_of_workers_gives_the_same():
    photos = [photo(60 + 7 * i, 90 - 5 * i, seed=i) for i in range(12)]
    readers = [(f"photo {i}", lambda p=p: read_image(p)) for i, p in enumerate(photos)]
    expected, boxes = load_images_with_boxes(photos, "crop", 56)
    for workers in (1, 2, 5, 20):
        got = read_and_stack(readers, "crop", 56, workers)
        np.testing.assert_array_equal(got[0], expected)
        np.testing.assert_array_equal(got[1], boxes)
    with pytest.raises(InputError, match="workers"):
        read_and_stack(readers, "crop", 56, 0)


def test_workers_run_side_by_side_and_none_holds_two_photos():
    workers, running, most = 3, 0, 0
    lock, together = threading.Lock(), threading.Barrier(workers, timeout=30)

    def read():
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        together.wait()  # breaks if fewer than three run at once
        with lock:
            running -= 1
        return read_image(photo())

    read_and_stack([("photo", read)] * 12, "crop", 56, workers)
    assert most == workers


def test_the_first_bad_photo_in_order_is_named_though_a_later_one_fails_first():
    later = threading.Event()

    def slow():
        assert later.wait(30)
        raise InputError("second")

    def fast():
        later.set()
        raise InputError("third")

    done = []
    readers = [("first", lambda: read_image(photo())), ("second", slow), ("third", fast)]
    with pytest.raises(InputError, match="second"):
        read_and_stack(readers, "crop", 56, 3, lambda: done.append(threading.current_thread()))
    assert done == [threading.main_thread()]


def test_one_lazy_pillow_image_may_come_many_times():
    buffer = io.BytesIO()
    Image.fromarray(photo(700, 500)).save(buffer, "PNG")
    expected = load_images([photo(700, 500)], size=56)[0]
    for _ in range(5):
        images = load_images([Image.open(buffer)] * 8, size=56)
        np.testing.assert_array_equal(images, np.stack([expected] * 8))


# -- bad input --------------------------------------------------------------------------------


def refuses(source, *words: str, **options) -> None:
    with pytest.raises(InputError) as caught:
        load_images([source], **options)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def test_missing_empty_and_foreign_files_are_named(tmp_path):
    refuses(tmp_path / "none.jpg", "none.jpg", "no such file")
    refuses(tmp_path, str(tmp_path), "is not a file")
    refuses("nul\0byte.jpg", "no such file")
    (tmp_path / "empty.jpg").touch()
    refuses(tmp_path / "empty.jpg", "empty.jpg", "0 bytes")
    (tmp_path / "notes.png").write_text("these are not pixels\n")
    refuses(tmp_path / "notes.png", "notes.png", "not an image in a supported format", "JPEG")
    Image.fromarray(photo()).save(tmp_path / "icon.ico")
    refuses(tmp_path / "icon.ico", "icon.ico", "not an image in a supported format")


def test_a_flipped_bit_of_a_png_is_noticed(tmp_path):
    """Smooth pictures compress to data in which many flips still decode, to other pixels."""
    ramp = np.add.outer(np.arange(48), np.arange(64)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(np.stack([ramp] * 3, -1)).save(buffer, "PNG")
    data = bytearray(buffer.getvalue())
    start, end = data.index(b"IDAT") + 4, data.index(b"IEND") - 8
    rng = np.random.default_rng(0)
    for bit in rng.choice(8 * (end - start), min(200, 8 * (end - start)), replace=False):
        flipped = data.copy()
        flipped[start + bit // 8] ^= 1 << (bit % 8)
        with pytest.raises(InputError, match=r"a\.png: cannot be read"):
            read_image(bytes(flipped), "a.png")


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "bmp"])
def test_truncated_files_are_named(tmp_path, suffix):
    path = tmp_path / f"cut.{suffix}"
    Image.fromarray(photo(200, 150)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refuses(path, f"cut.{suffix}", "cannot be read")


@pytest.mark.parametrize("kind", ["P1", "P2", "P3"])
def test_pixmaps_of_text_are_refused_at_once(kind):
    """Pillow reads 5 MB of comments between two numbers byte by byte."""
    head = f"{kind}\n20 20\n" + ("" if kind == "P1" else "255\n")
    data = head.encode() + b"# comment\n" * 500_000 + b"1 " * 1200
    start = time.perf_counter()
    refuses(data, "image 0", f"pixmap in text form ({kind})", "PNG")
    assert time.perf_counter() - start < 1


def test_pixmaps_of_bytes_are_read():
    pixels = photo(30, 20)
    data = b"P6\n30 20\n255\n" + pixels.tobytes()
    np.testing.assert_array_equal(np.asarray(read_image(data, "a.ppm")), pixels)


def test_size_limits(tmp_path):
    Image.new("1", (9000, 8000)).save(tmp_path / "huge.png")
    refuses(tmp_path / "huge.png", "huge.png", "72.0 Mpx", "limit is 64.0 Mpx", "max_pixels")
    Image.new("1", (11000, 10000)).save(tmp_path / "bomb.png")  # beyond Pillow's warning
    refuses(tmp_path / "bomb.png", "bomb.png", "110.0 Mpx")
    Image.new("1", (20000, 10000)).save(tmp_path / "bomb.png")  # beyond Pillow's own limit
    refuses(tmp_path / "bomb.png", "bomb.png", "far more pixels")
    refuses(photo(60, 42), "image 0", "limit is 0.0 Mpx", max_pixels=60 * 42 - 1)
    assert load_images([photo(60, 42)], size=56, max_pixels=60 * 42).shape == (1, 42, 56, 3)
    refuses(photo(1, 1), "image 0", "1x1", "at least 14")
    refuses(photo(600, 14), "image 0", "too narrow", size=56)
    refuses(np.zeros((500_000, 14), np.uint8), "image 0", "too narrow")
    refuses(np.zeros((16_001, 14), np.uint8), "image 0", "too long", mode="square")


def test_pixels_without_a_range_are_refused(tmp_path):
    for dtype in (np.int32, np.float32):
        Image.fromarray(np.zeros((20, 20), dtype)).save(tmp_path / "depth.tif")
        refuses(tmp_path / "depth.tif", "depth.tif", "32-bit")
    refuses(np.zeros((20, 20, 3), np.int64), "image 0", "int64")
    refuses(np.zeros((20, 20, 3), bool), "image 0", "bool")
    refuses(np.full((20, 20, 3), 255.0), "image 0", "[0, 1]")
    refuses(np.full((20, 20, 3), np.nan), "image 0", "[0, 1]")
    refuses(np.full((20, 20, 3), -0.1), "image 0", "[0, 1]")


@pytest.mark.parametrize("shape", [(20,), (20, 20, 2), (3, 20, 20), (1, 20, 20, 3), (0, 20, 3)])
def test_arrays_of_other_shapes_are_refused(shape):
    refuses(np.zeros(shape, np.uint8), "image 0", str(list(shape)))


def test_bad_arguments():
    with pytest.raises(InputError, match="list of paths"):
        load_images("photo.jpg")
    with pytest.raises(InputError, match="list of paths"):
        load_images(np.zeros((2, 20, 20, 3), np.uint8))
    with pytest.raises(InputError, match="at least one"):
        load_images([])
    refuses(3, "image 0", "int")
    refuses(photo(), "mode", "crop, pad, square", mode="stretch")
    for size in (0, -14, 500, 518.0):
        refuses(photo(), "size", "multiple of 14", size=size)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's remarks on damaged metadata
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "gif", "bmp", "ppm", "avif"])
def test_mutated_files_are_read_or_refused(tmp_path, suffix):
    path = tmp_path / f"good.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(photo(40, 30))
    image.save(path, **({"exif": exif} if suffix in ("jpg", "png", "webp", "tif") else {}))
    good = path.read_bytes()
    rng = random.Random(suffix)
    refused = 0
    for _ in range(60):
        data = bytearray(good)
        for _ in range(rng.randint(1, 6)):
            data[rng.randrange(min(len(data), 400))] = rng.randrange(256)
        path.write_bytes(data[: rng.choice([len(data), rng.randrange(1, len(data))])])
        try:
            rgb = read_image(path, str(path))
            assert rgb.mode == "RGB"
        except InputError as error:
            refused += 1
            assert str(error).startswith(str(path))
            assert "\n" not in str(error)
    assert refused > 0
