"""BlendedMVS: what is written in its layout is read; what is missing is named."""

import hashlib
import math
import re
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lite3r_jax.data.blendedmvs import BlendedMVS, DepthFilter
from lite3r_jax.data.cam_file import CamFile
from lite3r_jax.data.sampling import choose_frames
from lite3r_jax.data.splits import BLENDEDMVS_TRAINING, BLENDEDMVS_VALIDATION
from lite3r_jax.data.transforms import center_box, fit_intrinsics
from lite3r_jax.data.views import cross_view_check
from lite3r_jax.errors import InputError
from tests.data.world import cam_text, pair_text, pfm_bytes, views, write_blendedmvs

OPEN = DepthFilter(0, math.inf, math.inf)


@pytest.fixture(scope="module")
def made():
    return views(5, (48, 64), scale=20)


@pytest.fixture(scope="module")
def untouched(made, tmp_path_factory):
    root = tmp_path_factory.mktemp("blendedmvs")
    write_blendedmvs(root, "b_room", made)
    write_blendedmvs(root, "a_room", made[:2])
    (root / "BlendedMVS_list.txt").write_text("a_room\n")
    return root


@pytest.fixture
def root(untouched, tmp_path):
    shutil.copytree(untouched, tmp_path / "data")
    return tmp_path / "data"


def test_scenes_frames_and_pairs_are_found(untouched):
    source = BlendedMVS(untouched)
    assert source.scenes == ("a_room", "b_room")
    assert source.frames("b_room") == (0, 1, 2, 3, 4)
    assert source.pairs("a_room") == {0: {1: 1000.0}, 1: {0: 1000.0}}


def test_views_are_read_in_the_order_asked_for(untouched, made):
    size = (42, 42)
    sample = BlendedMVS(untouched, depth_filter=OPEN).read("b_room", (3, 0, 2), size)
    assert sample.frames == ("00000003", "00000000", "00000002")
    assert (sample.name, sample.unit, sample.scale) == ("blendedmvs b_room", "scene", 1.0)
    for s, i in enumerate((3, 0, 2)):
        box = center_box((48, 64), size)
        np.testing.assert_allclose(sample.extrinsics[s], made[i].extrinsics, atol=1e-5)
        expected = fit_intrinsics(made[i].intrinsics, box, size)
        np.testing.assert_allclose(sample.intrinsics[s], expected, rtol=1e-5)
    assert np.abs(sample.images[0] - sample.images[1]).mean() > 0.05


def test_what_is_read_is_one_world(untouched):
    source = BlendedMVS(untouched)
    chosen = choose_frames(
        source.frames("b_room"), 4, "pairs", seed=0, index=0, pairs=source.pairs("b_room")
    )
    check = cross_view_check(source.read("b_room", chosen, (56, 56)), stride=2)
    assert np.nanmax(check.error) < 0.02 and check.visible.min() > 0.5


def test_images_and_depth_show_the_same_pixels(untouched, made):
    sample = BlendedMVS(untouched, depth_filter=OPEN).read("b_room", (1,), (48, 64))
    assert np.abs(sample.images[0] * 255 - made[1].rgb).mean() < 12  # JPEG
    np.testing.assert_array_equal(sample.depth[0], made[1].depth)


def test_depth_beyond_the_range_or_far_beyond_the_median_does_not_count(root, made):
    depth = made[0].depth.copy()
    depth[0, :4] = [11, 9, 149, 151]  # halves and times 1.5 of the range
    folder = root / "a_room"
    (folder / "cams" / "00000000_cam.txt").write_text(cam_text(made[0], "20 1 128 100"))
    (folder / "rendered_depth_maps" / "00000000.pfm").write_bytes(pfm_bytes(depth))

    def valid(**settings) -> list[bool]:
        source = BlendedMVS(root, depth_filter=DepthFilter(**settings))
        return source.read("a_room", (0,), (48, 64)).mask[0, 0, :4].tolist()

    assert 15 * np.median(depth) > 151 > 1.5 * np.median(depth)
    assert valid() == [True, False, True, False]
    assert valid(nearest=0) == [True, True, True, False]
    assert valid(farthest=math.inf) == [True, False, True, True]
    assert valid(median=1.2) == [True, False, False, False]


@settings(deadline=None, max_examples=300)
@given(
    depth=st.lists(st.sampled_from([0.0, 1.0, 1.5, 2.0, 4.999999, 5.0, 5.000001, 10.0, 80.0])),
    median=st.sampled_from([1.0, 1.2, 2.0, 5.0, math.inf]),
)
def test_the_median_counts_only_where_it_matters_and_then_exactly(depth, median):
    values = np.array([0.0, *depth], np.float32)
    cam = CamFile(np.eye(3, 4), np.eye(3), 0.0, 1.0, None, None)  # without a range
    wanted = values.copy()
    if depth and max(depth) > 0:
        wanted[values > median * np.median(values[values > 0])] = 0
    np.testing.assert_array_equal(DepthFilter(median=median)(values, cam), wanted)


def test_a_file_without_range_filters_nothing(root, made):
    for tail in ("1000 1", "-9 0.1 128 -2"):
        (root / "a_room" / "cams" / "00000000_cam.txt").write_text(cam_text(made[0], tail))
        mask = BlendedMVS(root).read("a_room", (0,), (48, 64)).mask
        assert mask.all()


@pytest.mark.parametrize("field", ["nearest", "farthest", "median"])
def test_filters_that_make_no_sense_are_refused(field):
    with pytest.raises(InputError, match="depth_filter: expected"):
        DepthFilter(**{field: -1})


# -- splits -----------------------------------------------------------------------------------


def test_lists_are_the_published_ones():
    # SHA-256 of the ids in alphabetical order, a line each, taken from the lists themselves.
    text = "".join(f"{scene}\n" for scene in sorted(BLENDEDMVS_TRAINING))
    digest = "b78af64839d03250ef0812f6ceb4a489ac88510d6cfadf85fc8d6cdc86c2f4a6"
    assert hashlib.sha256(text.encode()).hexdigest() == digest
    assert len({*BLENDEDMVS_TRAINING, *BLENDEDMVS_VALIDATION}) == 106 + 7


def test_splits_are_read_whole_or_not_at_all(root):
    lists = {"train": BLENDEDMVS_TRAINING, "validation": BLENDEDMVS_VALIDATION}
    for split, scenes in lists.items():
        for scene in scenes[1:]:
            (root / scene / "blended_images").mkdir(parents=True)
        with pytest.raises(InputError, match=f"{scenes[0]}: is missing or has no blended_images$"):
            BlendedMVS(root, split)
        (root / scenes[0] / "blended_images").mkdir(parents=True)
        assert BlendedMVS(root, split).scenes == scenes
    assert BlendedMVS(root, ["b_room"]).scenes == ("b_room",)
    with pytest.raises(InputError, match=r"is missing .*, as are 1 more$"):
        BlendedMVS(root, ["b_room", "c_room", "d_room"])


@pytest.mark.parametrize("scenes", ["test", ["c_room"]])
def test_unknown_scenes_are_refused(untouched, scenes):
    with pytest.raises(InputError, match=r"scenes: expected train|c_room: is missing"):
        BlendedMVS(untouched, scenes)


# -- missing and damaged ----------------------------------------------------------------------

IMAGE, CAM, DEPTH = (
    "blended_images/00000001.jpg", "cams/00000001_cam.txt", "rendered_depth_maps/00000001.pfm"
)  # fmt: skip


@pytest.mark.parametrize("file", [IMAGE, CAM, DEPTH])
def test_a_missing_file_is_named_and_nothing_stands_in(root, file):
    path = root / "b_room" / file
    path.unlink()
    source = BlendedMVS(root)
    with pytest.raises(InputError, match=re.escape(f"{path}: is missing; frame 1 has")):
        source.frames("b_room")
    assert source.inventory("b_room").frames == (0, 2, 3, 4)
    with pytest.raises(InputError, match=re.escape(str(path))):
        source.read("b_room", (0, 1), (28, 28))
    assert source.frames("a_room") == (0, 1)


@pytest.mark.parametrize("file", [IMAGE, CAM, DEPTH])
@pytest.mark.parametrize("damage", ["empty", "cut"])
def test_a_damaged_file_is_named(root, file, damage):
    path = root / "b_room" / file
    data = path.read_bytes()
    path.write_bytes(b"" if damage == "empty" else data[: len(data) // 2])
    with pytest.raises(InputError, match=re.escape(str(path))) as error:
        BlendedMVS(root).read("b_room", (0, 1), (28, 28))
    assert "\n" not in str(error.value)


def test_wrong_extensions_are_not_taken_for_images(root):
    for path in (root / "b_room" / "blended_images").iterdir():
        path.rename(path.with_suffix(".png"))
    with pytest.raises(InputError, match=r"blended_images: has no image; expected .*00000000\.jpg"):
        BlendedMVS(root).frames("b_room")


def test_several_faults_are_counted(root):
    for file in (IMAGE, DEPTH):
        (root / "b_room" / file).unlink()
    shutil.rmtree(root / "a_room" / "cams")
    source = BlendedMVS(root)
    with pytest.raises(InputError, match=r"no image \(and 1 more faults\)"):
        source.frames("b_room")
    assert len(source.inventory("b_room").faults) == 2
    with pytest.raises(InputError, match=r"a_room/cams: cannot be read"):
        source.frames("a_room")


def test_depth_of_another_size_is_refused(root, made):
    path = root / "b_room" / DEPTH
    path.write_bytes(pfm_bytes(made[1].depth[:, :-1]))
    with pytest.raises(InputError, match="the depth map is 63x48, its image is 64x48"):
        BlendedMVS(root).read("b_room", (1,), (28, 28))


def test_intrinsics_for_another_size_are_refused(root):
    path = root / "b_room" / CAM
    text = path.read_text().replace(" 31.36", " 313.6")
    path.write_text(text)
    with pytest.raises(InputError, match=r"00000001_cam.txt: the principal point \(313.6"):
        BlendedMVS(root).read("b_room", (1,), (28, 28))


def test_pairs_must_be_of_frames(root):
    path = root / "a_room" / "cams" / "pair.txt"
    path.write_text(pair_text(3))
    with pytest.raises(InputError, match="has view 2, which is no frame"):
        BlendedMVS(root).pairs("a_room")
    path.unlink()
    with pytest.raises(InputError, match=r"pair\.txt: cannot be read"):
        BlendedMVS(root).pairs("a_room")


@pytest.mark.parametrize(
    "change,message",
    [
        ("nothing there", "nowhere: cannot be read"),
        ("empty", "has no scene of BlendedMVS"),
        ("scene itself", "this is one scene, give the folder above it"),
        ("file", "is a file; expected a folder"),
    ],
)
def test_roots_that_are_none_are_refused(root, change, message):
    place = {
        "nothing there": root / "nowhere",
        "empty": root / "a_room" / "cams",
        "scene itself": root / "a_room",
        "file": root / "BlendedMVS_list.txt",
    }[change]
    with pytest.raises(InputError, match=message):
        BlendedMVS(place)


def test_unknown_compat_is_refused(untouched):
    with pytest.raises(InputError, match="compat: expected lite3r or None"):
        BlendedMVS(untouched, compat="original")  # type: ignore[arg-type]
