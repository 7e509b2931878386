"""Photos to the sizes of Depth Anything 3, against upstream."""

import sys

import numpy as np
import pytest
from PIL import Image

from lite3r_jax.data.bounds import network_size
from lite3r_jax.data.images import FittedImage, fit_image, stack_images
from lite3r_jax.data.known_cameras import network_intrinsics
from lite3r_jax.errors import InputError
from lite3r_jax.layers.patch_embed import normalize

METHODS = ("upper_bound_resize", "lower_bound_resize", "upper_bound_crop", "lower_bound_crop")


def shifted(k, by):
    """Upstream counts pixels from their corners, here they are counted from their centers."""
    k = np.array(k, np.float64)
    k[..., :2, 2] += by
    return k


def uint8(images):
    return np.rint(images * 255).astype(np.uint8)


def intrinsics(boxes, k, size):
    return shifted(network_intrinsics(shifted(k, -0.5), boxes, size), 0.5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("index", [0, 1, 2])
def test_photos_agree_with_upstream(golden_da3, parity, method, index):
    g = golden_da3("mod_preprocess")
    images, boxes = stack_images(
        [fit_image(Image.fromarray(g[f"in_image{index}"]), method, 84)], cut=True
    )
    name = f"{method}_{index}"
    # Versions of OpenCV differ by one level.
    parity("da3/mod_preprocess", f"{name}_u8", uint8(images)[0], g[f"{name}_u8"], 1)
    k = intrinsics(boxes, g[f"in_K{index}"][None], images.shape[1:3])[0]
    parity("da3/mod_preprocess", f"{name}_K", k, g[f"{name}_K"], 2e-5)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_normalization_agrees_with_upstream(golden_da3, parity, index):
    g = golden_da3("mod_preprocess")
    name = f"upper_bound_resize_{index}"
    got = normalize(g[f"{name}_u8"].astype(np.float32) / 255)
    parity("da3/mod_preprocess", f"{name}_norm", np.moveaxis(got, -1, 0), g[f"{name}_norm"], 1e-6)


def test_photos_of_several_sizes_agree_with_upstream(golden_da3, parity):
    g = golden_da3("mod_preprocess")
    photos = [Image.fromarray(g[f"in_image{i}"]) for i in range(3)]
    images, boxes = stack_images(
        [fit_image(photo, "upper_bound_resize", 84) for photo in photos], cut=True
    )
    k = intrinsics(boxes, np.stack([g[f"in_K{i}"] for i in range(3)]), images.shape[1:3])
    parity("da3/mod_preprocess", "mixed_u8", uint8(images), g["mixed_u8"], 1)
    parity("da3/mod_preprocess", "mixed_K", k, g["mixed_K"], 2e-5)


def test_sizes_agree_with_upstream(golden_da3, parity):
    table = golden_da3("mod_preprocess")["shape_table_504"]
    rows = []
    for width, height in table[:, :2].tolist():
        sizes = [network_size(width, height, 504, method)[1] for method in METHODS]
        rows.append([width, height, *(n for size in sizes for n in size)])
    parity("da3/mod_preprocess", "shape_table_504", np.array(rows), table, 0)


def test_what_is_cut_is_the_same_number_of_pixels_on_both_sides_but_for_one_to_the_right():
    wide, narrow = (np.arange(w, dtype=np.uint8)[None, :, None].repeat(3, 2) for w in (19, 14))
    fitted = [
        FittedImage(np.repeat(p, 14, 0), (0, 0, p.shape[1], 14), (p.shape[1], 14))
        for p in (wide, narrow)
    ]
    images, boxes = stack_images(fitted, cut=True)
    np.testing.assert_array_equal(uint8(images)[0, 0, :, 0], np.arange(2, 16))
    np.testing.assert_array_equal(boxes[:, :4], [[-2, 0, 17, 14], [0, 0, 14, 14]])


def test_bad_photos_are_refused(monkeypatch):
    photo = Image.new("RGB", (60, 40))
    with pytest.raises(InputError, match=r"mode: expected one of crop, .* lower_bound_crop"):
        fit_image(photo, "stretch")
    with pytest.raises(InputError, match="size: expected a positive multiple of 14"):
        fit_image(photo, "upper_bound_crop", 10)
    assert fit_image(photo, "upper_bound_crop", 45).pixels.shape == (28, 42, 3)
    narrow = Image.new("RGB", (400, 20))
    with pytest.raises(InputError, match=r"a.jpg: 400x20 has a side of less than 14 .* at size 28"):
        fit_image(narrow, "upper_bound_resize", 28, "a.jpg")
    long = Image.new("RGB", (10_000, 14))  # 79996x112 would be computed with
    with pytest.raises(InputError, match=r"10000x14 is too narrow for mode lower_bound_resize"):
        fit_image(long, "lower_bound_resize", 112)
    with pytest.raises(InputError, match=r"20000x14 is too narrow for mode lower_bound_crop"):
        fit_image(Image.new("RGB", (20000, 14)), "lower_bound_crop", 504, "a.jpg")
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(InputError, match=r"pip install 'lite3r_jax\[da3\]', or use images.mode"):
        fit_image(photo, "upper_bound_resize", 28)
