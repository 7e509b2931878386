"""Photos to network size, against upstream."""

import numpy as np
import pytest

from lite3r_jax.backbones.da3.photos import crop_alike, fit_photo, network_size
from lite3r_jax.errors import InputError
from lite3r_jax.layers.patch_embed import normalise

METHODS = ("upper_bound_resize", "lower_bound_resize", "upper_bound_crop", "lower_bound_crop")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("index", [0, 1, 2])
def test_photos_agree_with_upstream(golden_da3, parity, method, index):
    g = golden_da3("mod_preprocess")
    image, k = fit_photo(g[f"in_image{index}"], g[f"in_K{index}"], size=84, method=method)
    name = f"{method}_{index}"
    # Versions of OpenCV differ by one level.
    parity("da3/mod_preprocess", f"{name}_u8", image, g[f"{name}_u8"], 1)
    parity("da3/mod_preprocess", f"{name}_K", k, g[f"{name}_K"], 2e-5)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_normalisation_agrees_with_upstream(golden_da3, parity, index):
    g = golden_da3("mod_preprocess")
    name = f"upper_bound_resize_{index}"
    got = normalise(g[f"{name}_u8"].astype(np.float32) / 255)
    parity("da3/mod_preprocess", f"{name}_norm", np.moveaxis(got, -1, 0), g[f"{name}_norm"], 1e-6)


def test_photos_of_several_sizes_agree_with_upstream(golden_da3, parity):
    g = golden_da3("mod_preprocess")
    fitted = [fit_photo(g[f"in_image{i}"], g[f"in_K{i}"], size=84) for i in range(3)]
    images, intrinsics = crop_alike(*zip(*fitted, strict=True))
    parity("da3/mod_preprocess", "mixed_u8", images, g["mixed_u8"], 1)
    parity("da3/mod_preprocess", "mixed_K", np.stack(intrinsics), g["mixed_K"], 2e-5)


def test_sizes_agree_with_upstream(golden_da3, parity):
    table = golden_da3("mod_preprocess")["shape_table_504"]
    rows = []
    for width, height in table[:, :2].tolist():
        sizes = [network_size(width, height, 504, method)[1] for method in METHODS]
        rows.append([width, height, *(n for size in sizes for n in size)])
    parity("da3/mod_preprocess", "shape_table_504", np.array(rows), table, 0)


def test_the_camera_still_sees_the_same_direction():
    """A corner of the photo is a corner of the image, and its ray is the same."""
    k = np.array([[300.0, 0, 160], [0, 310, 130], [0, 0, 1]])
    image, fitted = fit_photo(np.zeros((240, 320, 3), np.uint8), k, size=140)
    height, width = image.shape[:2]
    for corner, was in (((0, 0), (0, 0)), ((width, height), (320, 240))):
        ray = np.linalg.inv(fitted) @ [*corner, 1]
        np.testing.assert_allclose(ray, np.linalg.inv(k) @ [*was, 1], atol=1e-6)


def test_bad_photos_are_refused():
    photo = np.zeros((40, 60, 3), np.uint8)
    with pytest.raises(ValueError, match="method: expected one of upper_bound_resize"):
        fit_photo(photo, method="stretch")
    with pytest.raises(ValueError, match="size: expected at least 14"):
        fit_photo(photo, size=10)
    with pytest.raises(ValueError, match="uint8"):
        fit_photo(photo / 255)
    with pytest.raises(InputError, match="side of less than 14 pixels at size 28"):
        fit_photo(np.zeros((10, 400, 3), np.uint8), size=28)
