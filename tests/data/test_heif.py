"""HEIC photos: upright with a plug-in, a clear word without, and no crash on damaged ones."""

import io
import random
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lite3r_jax.data.heif import is_heif
from lite3r_jax.data.images import read_image
from lite3r_jax.errors import InputError

# 60x42 pixels stored lying, with irot and EXIF orientation 6; written by pillow_heif 1.8
HEIC = Path(__file__).with_name("turned.heic")


def refuses(source, *words: str) -> None:
    with pytest.raises(InputError) as caught:
        read_image(source, "a.heic")
    message = str(caught.value)
    assert message.startswith("a.heic: ")
    assert "\n" not in message
    for word in words:
        assert word in message, message


def test_heic_is_read_upright():
    y, x = np.mgrid[0:42, 0:60]
    upright = np.rint(np.stack([x / 59, y / 41, (x + y) / 100], -1) * 255)
    for source in (HEIC, HEIC.read_bytes()):
        rgb = np.asarray(read_image(source), np.int64)
        assert rgb.shape == upright.shape
        assert abs(rgb - upright).max() <= 8


def test_the_content_decides_not_the_name(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(HEIC.read_bytes())
    assert read_image(path).size == (60, 42)


def test_without_a_plug_in_the_error_says_what_to_install(monkeypatch):
    for module in ("pi_heif", "pillow_heif"):
        monkeypatch.setitem(sys.modules, module, None)
    Image.init()
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)  # another test may have registered it
    refuses(HEIC, "HEIC", "pip install 'lite3r_jax[heic]'", "JPEG")


def test_relatives_of_heic_are_told_apart():
    def head(major: bytes, *compatible: bytes) -> bytes:
        size = 16 + 4 * len(compatible)
        return size.to_bytes(4) + b"ftyp" + major + bytes(4) + b"".join(compatible) + b"meta"

    assert is_heif(HEIC.read_bytes()[:256])
    assert is_heif(head(b"mif1", b"mif1", b"heic"))
    assert not is_heif(head(b"avif", b"mif1", b"miaf"))
    assert not is_heif(head(b"mif1", b"avif"))
    assert not is_heif(head(b"isom", b"mp42"))
    assert not is_heif(b"heic")
    avif = io.BytesIO()
    Image.new("RGB", (20, 20)).save(avif, "AVIF")
    assert not is_heif(avif.getvalue()[:256])


def test_a_truncated_file_is_named():
    good = HEIC.read_bytes()
    for share in (0.02, 0.1, 0.5, 0.95):
        refuses(good[: int(share * len(good))])


def test_an_item_whose_type_is_no_text_is_refused():
    good = HEIC.read_bytes()
    kind = good.index(b"Exif")
    for place in range(kind, kind + 4):
        refuses(good[:place] + b"\x99" + good[place + 1 :], "damaged")


@pytest.mark.parametrize("what", ["items that overlap", "boxes without end"])
def test_five_megabytes_of_boxes_are_refused_at_once(what):
    brand = HEIC.read_bytes()[:28]
    assert brand[4:8] == b"ftyp" and int.from_bytes(brand[:4]) == 28
    if what == "boxes without end":
        data = brand + b"\0\0\0\x08free" * 600_000
    else:
        size = 5_000_000
        item = (size - 40).to_bytes(4) + b"infe\x02" + b"a" * 7
        data = brand + size.to_bytes(4) + b"meta" + item * (size // len(item))
    start = time.perf_counter()
    refuses(data, "damaged list of items")
    assert time.perf_counter() - start < 2


def test_damaged_metadata_is_read_or_refused():
    good = HEIC.read_bytes()
    rng = random.Random(0)
    refused = 0
    for _ in range(600):
        data = bytearray(good)
        for _ in range(rng.randint(1, 3)):
            data[rng.randrange(good.index(b"mdat"))] = rng.choice([0, 255, rng.randrange(256)])
        try:
            assert read_image(bytes(data), "a.heic").mode == "RGB"
        except InputError as error:
            refused += 1
            assert str(error).startswith("a.heic: ")
            assert "\n" not in str(error)
    assert 0 < refused < 600
