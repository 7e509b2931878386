"""DTU-64: shared cameras, poses only."""

import re
import shutil

import numpy as np
import pytest

from lite3r_jax.data.dtu64 import DTU64, reference_first
from lite3r_jax.data.splits import DTU64_EVALUATION
from lite3r_jax.data.transforms import center_box, fit_intrinsics, normalize
from lite3r_jax.errors import InputError
from tests.data.world import views, write_dtu64


@pytest.fixture(scope="module")
def made():
    return views(4, (48, 64), scale=300)


@pytest.fixture
def root(made, tmp_path):
    return write_dtu64(tmp_path / "dtu", {"scan24": made, "scan105": made[::-1]})


def test_scans_share_their_cameras(root, made):
    source = DTU64(root, views=4)
    assert source.scenes == ("scan24", "scan105")
    size = (42, 56)
    for scan in source.scenes:
        assert source.frames(scan) == (0, 1, 2, 3)
        sample = source.read(scan, (2, 0), size)
        assert sample.frames == ("00000002", "00000000") and sample.unit == "mm"
        for s, i in enumerate((2, 0)):
            np.testing.assert_allclose(sample.extrinsics[s], made[i].extrinsics, atol=1e-4)
            expected = fit_intrinsics(made[i].intrinsics, center_box((48, 64), size), size)
            np.testing.assert_allclose(sample.intrinsics[s], expected, rtol=1e-5)
    assert source.pairs("scan24") is None


def test_there_is_no_depth_and_none_is_made_up(root):
    sample = DTU64(root, views=4).read("scan24", (0, 1), (28, 28))
    assert sample.depth is None and sample.mask is None
    longest = np.linalg.norm(sample.extrinsics[..., 3], axis=-1).max()
    assert normalize(sample, "lite3r").scale == pytest.approx(longest)


def test_images_are_lossless_and_named_by_number(root, made):
    folder = root / "scan24" / "image"
    for path in folder.iterdir():
        path.rename(folder / f"{int(path.stem):08d}.png")
    sample = DTU64(root, views=4).read("scan24", (3,), (48, 64))
    np.testing.assert_array_equal(np.rint(sample.images[0] * 255), made[3].rgb)


def test_evaluation_is_the_13_scans(root, made):
    with pytest.raises(InputError, match="scan37: is missing or has no folder image"):
        DTU64(root, "evaluation", views=4)
    for scan in DTU64_EVALUATION[1:]:
        if scan != "scan105":
            shutil.copytree(root / "scan24", root / scan)
    shutil.copytree(root / "scan24", root / "scan1")
    scans = DTU64(root, "evaluation", views=4).scenes
    numbers = [24, 37, 40, 55, 63, 65, 69, 83, 97, 105, 114, 118, 122]
    assert scans == tuple(f"scan{n}" for n in numbers)
    assert DTU64(root, views=4).scenes == ("scan1", *scans)


def test_reference_view_comes_first():
    order = reference_first(range(64))
    assert order[:3] == (33, 0, 1) and order[33:35] == (32, 34) and sorted(order) == [*range(64)]
    with pytest.raises(InputError, match="expected more than 33"):
        reference_first(range(33))


def test_every_scan_has_64_views_unless_told_otherwise(root):
    with pytest.raises(InputError, match="has 4 images with cameras, expected 64"):
        DTU64(root).frames("scan24")
    assert DTU64(root, views=None).frames("scan24") == (0, 1, 2, 3)


@pytest.mark.parametrize(
    "file,message",
    [
        ("scan24/image/000002.png", "is missing; frame 2 has camera but no image"),
        ("Cameras/00000002_cam.txt", "is missing; frame 2 has image but no camera"),
    ],
)
def test_a_missing_file_is_named(root, file, message):
    (root / file).unlink()
    source = DTU64(root, views=4)
    with pytest.raises(InputError, match=re.escape(f"{root / file}: {message}")):
        source.frames("scan24")
    with pytest.raises(InputError, match="has no file of frame 2"):
        source.read("scan24", (0, 2), (28, 28))


def test_two_files_of_one_number_are_refused(root):
    folder = root / "scan24" / "image"
    shutil.copy(folder / "000001.png", folder / "00000001.png")
    with pytest.raises(InputError, match=r"000001\.png: has the number of 00000001\.png"):
        DTU64(root, views=4).frames("scan24")


def test_damaged_images_are_named(root):
    path = root / "scan24" / "image" / "000001.png"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match=re.escape(str(path))):
        DTU64(root, views=4).read("scan24", (1,), (28, 28))


def test_roots_that_are_none_are_refused(root, tmp_path):
    with pytest.raises(InputError, match="scenes: expected evaluation, training or names"):
        DTU64(root, "test")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="Cameras: is missing"):
        DTU64(root / "scan24")
    shutil.rmtree(root / "scan24"), shutil.rmtree(root / "scan105")
    with pytest.raises(InputError, match="has no scan of DTU-64"):
        DTU64(root)
    with pytest.raises(InputError, match="cannot be read"):
        DTU64(tmp_path / "nowhere")
