"""Photos to the sizes of pi^3."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lite3r_jax.data.bounds import pixel_limit_size
from lite3r_jax.data.images import load_images_with_boxes
from lite3r_jax.errors import InputError

FOLDER = Path(__file__).parents[1] / "golden" / "pi3" / "preprocess"


def photos(*names):
    """Without transparency, which upstream drops and which becomes white here."""
    return [Image.open(FOLDER / f"{name}.png").convert("RGB") for name in names]


@pytest.mark.parametrize(("key", "names"), [("all_u8", "abc"), ("interval2_u8", "ac")])
def test_pixels_agree_with_upstream(golden_pi3, parity, key, names):
    g = golden_pi3("preprocess/preprocess")
    limit = int(g["pixel_limit"])
    images, boxes = load_images_with_boxes(photos(*names), "pixel_limit", limit)
    got = np.moveaxis(np.rint(images * 255), -1, 1)
    parity("pi3/preprocess/preprocess", key, got, g[key], 0)
    height, width = images.shape[1:3]
    np.testing.assert_array_equal(boxes[:, :4], [[0, 0, width, height]] * len(names))
    np.testing.assert_array_equal(boxes[0, 4:], [90, 61])


def test_sizes_agree_with_upstream(golden_pi3, parity):
    key = "target_sizes_wh_to_wh_255000"
    table = golden_pi3("preprocess/preprocess")[key]
    got = [[w, h, *pixel_limit_size(w, h, 255_000)] for w, h, *_ in table.tolist()]
    parity("pi3/preprocess/preprocess", key, got, table, 0)


def test_a_limit_below_one_patch_is_refused():
    with pytest.raises(InputError, match=r"size: expected 196 to .* in mode pixel_limit, got 100"):
        load_images_with_boxes(photos("a"), "pixel_limit", 100)
