"""Frame lists: frozen ones are what their rule made, others follow from the data alone."""

import shutil
from typing import get_args

import numpy as np
import pytest

from lite3r_jax.data import sources
from lite3r_jax.data.motorcycle import BASELINE, DOFFS, FOCAL, SIZE, Motorcycle
from lite3r_jax.data.sampling import choose_frames
from lite3r_jax.data.splits import BLENDEDMVS_VALIDATION, DTU64_EVALUATION
from lite3r_jax.data.synthetic.source import SyntheticScenes
from lite3r_jax.data.synthetic.splits import Split
from lite3r_jax.errors import InputError
from lite3r_jax.evaluation import open_protocol
from lite3r_jax.evaluation.options import EvaluateOptions
from lite3r_jax.evaluation.protocols import Item
from lite3r_jax.evaluation.variants import Variant, build_variant, parse_variants
from tests.data.world import views, write_blendedmvs


@pytest.fixture(scope="module")
def frozen():
    return sources.frozen_lists()


def test_every_held_out_split_has_64_scenes_with_their_frames_in_an_order(frozen):
    assert not any(split.startswith("train") for split in frozen)
    assert {*frozen, *sources.TRAINING_SPLITS} == set(get_args(Split))
    for split, entries in frozen.items():
        names = SyntheticScenes(split, 64, 8).scenes
        assert tuple(scene for scene, _ in entries) == names
        assert all(sorted(frames) == list(range(8)) for _, frames in entries)


def test_the_frozen_list_is_what_its_rule_makes(frozen):
    scene, frames = frozen["wide_baseline"][5]
    source = SyntheticScenes("wide_baseline", 64, 8)
    made = choose_frames(range(8), 8, "pairs", seed=0, index=5, pairs=source.pairs(scene))
    assert tuple(frames) == made


def test_fewer_views_are_the_first_of_more_and_fewer_scenes_the_first_of_all():
    two, _ = open_protocol("synthetic:sky", views=2)
    four, _ = open_protocol("synthetic:sky", views=4, scenes=3, size=(28, 42))
    assert len(two.items) == 64 and two.size == (112, 112) and four.size == (28, 42)
    for a, b in zip(two.items, four.items, strict=False):
        assert a.scene == b.scene and a.frames == b.frames[:2]


def test_longer_paths_are_scenes_of_their_own_with_frames_in_order():
    long, source = open_protocol("synthetic:test@frames=24", views=8, scenes=2)
    assert long.name == "synthetic:test@frames=24" and long.size == (112, 112)
    assert [item.frames for item in long.items] == [tuple(range(0, 24, 3))] * 2
    assert len(source.frames(long.items[0].scene)) == 24
    frozen, _ = open_protocol("synthetic:test", views=8, scenes=2)
    same, _ = open_protocol("synthetic:test@frames=8", views=8, scenes=2)
    assert same.items == frozen.items and same.name != frozen.name


@pytest.mark.parametrize(
    "name,settings,message",
    [
        (
            "synthetic:train",
            {},
            r"split for evaluation 'train' is not known; .*validation, test",
        ),
        ("blendedmvs", {}, "say where the data is, blendedmvs:FOLDER"),
        ("photos:x", {}, "has no cameras to compare with"),
        ("synthetic:test*2", {}, "weights are for mixtures"),
        ("synthetc:test", {}, "did you mean 'synthetic'"),
        ("dtu64:/nowhere/at/all", {}, "/nowhere/at/all"),
        ("synthetic:test@frames=1", {}, "frames: expected a number from 2 to 9999, got '1'"),
        ("synthetic:test@frame=24", {}, "did you mean 'frames'"),
        ("synthetic:test@frames=24", {"views": 25}, "has 24 frames, 25 views are asked for"),
        ("synthetic:test", {"views": 9}, "has 8 frames, 9 views are asked for"),
        ("motorcycle", {"views": 3}, "views: the scene has 2 frames, 3 views are asked for"),
        ("synthetic:test", {"views": 0}, "views and scenes: expected at least 1"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(name, settings, message):
    with pytest.raises(InputError, match=message):
        open_protocol(name, **settings)


class Fake:
    def __init__(self, scenes, count):
        self.scenes, self.count = scenes, count

    def frames(self, scene):
        return tuple(range(0, 2 * self.count, 2))

    def pairs(self, scene):
        frames = self.frames(scene)
        return {a: {b: 1.0 for b in frames if abs(a - b) == 2} for a in frames}


def test_blendedmvs_takes_overlapping_frames_of_the_official_scenes_by_rule(monkeypatch):
    made = Fake(BLENDEDMVS_VALIDATION, 10)
    monkeypatch.setattr(sources, "BlendedMVS", lambda root, split: made)
    protocol, source = open_protocol("blendedmvs:x", views=3)
    assert source is made and len(protocol.items) == 7 * 4 and protocol.size == (518, 518)
    for item in protocol.items:
        assert np.ptp(item.frames) <= 4 and len(set(item.frames)) == 3  # neighbors of neighbors
    again, _ = open_protocol("blendedmvs:x", views=3)
    assert again == protocol


def test_blendedmvs_on_disk_is_read_and_a_scene_that_is_missing_is_named(tmp_path):
    for scene in BLENDEDMVS_VALIDATION:
        write_blendedmvs(tmp_path, scene, views(3, (48, 64)))
    name = f"blendedmvs:{tmp_path}"
    protocol, source = open_protocol(name, size=(28, 42), scenes=1)
    assert protocol.name == "blendedmvs"  # reports name no folder of this machine
    (item,) = protocol.items
    sample = source.read(item.scene, item.frames, protocol.size)
    assert sample.views == 2 and sample.size == (28, 42) and sample.mask is not None
    shutil.rmtree(tmp_path / BLENDEDMVS_VALIDATION[2])
    with pytest.raises(InputError, match=BLENDEDMVS_VALIDATION[2]):
        open_protocol(name)


def test_dtu64_begins_with_its_reference_view(monkeypatch):
    made = Fake(DTU64_EVALUATION, 64)
    monkeypatch.setattr(sources, "DTU64", lambda root, split: made)
    whole, _ = open_protocol("dtu64:x", views=64)
    assert [item.scene for item in whole.items] == list(DTU64_EVALUATION)
    assert whole.items[0].frames == (66, *(f for f in range(0, 128, 2) if f != 66))
    few, _ = open_protocol("dtu64:x", views=4)
    assert few.items[3].frames[0] == 66 and len(set(few.items[3].frames)) == 4
    assert np.ptp(few.items[3].frames[1:]) > 80


def test_a_capture_is_one_scene_with_evenly_spaced_frames(monkeypatch):
    monkeypatch.setattr(sources, "Capture", lambda root, depth: Fake(("mine",), 9))
    protocol, _ = open_protocol("capture:here/x", views=3)
    assert protocol.name == "capture:x"
    assert protocol.items == (Item("mine", (0, 6, 12)),)


def fake_pair():
    rng = np.random.default_rng(0)
    left = rng.integers(0, 256, (*SIZE, 3), np.uint8)
    disparity = np.full(SIZE, np.inf, np.float32)
    disparity[100:400, 100:600] = rng.uniform(8, 60, (300, 500))
    return left, left[:, ::-1].copy(), disparity


def test_a_pixel_of_the_left_photo_is_its_disparity_further_left_in_the_right_one():
    sample = Motorcycle(fake_pair).read("motorcycle", (0, 1), SIZE)
    assert sample.unit == "m" and sample.depth is not None and sample.mask is not None
    disparity = fake_pair()[2]
    assert (sample.mask[0] == np.isfinite(disparity)).all() and not sample.mask[1].any()
    v, u = 250, 300
    z = sample.depth[0, v, u]
    assert z == pytest.approx(FOCAL * BASELINE / (disparity[v, u] + DOFFS), rel=1e-6)
    k, e = sample.intrinsics.astype(np.float64), sample.extrinsics.astype(np.float64)
    point = np.linalg.inv(k[0]) @ [u * z, v * z, z]
    pixel = k[1] @ (e[1, :, :3] @ point + e[1, :, 3])
    np.testing.assert_allclose(pixel[:2] / pixel[2], [u - disparity[v, u], v], atol=1e-3)


def test_another_picture_is_refused():
    left, right, disparity = fake_pair()
    with pytest.raises(InputError, match=r"disparity is \[500, 740\], expected \[500, 741\]"):
        Motorcycle(lambda: (left, right, disparity[:, 1:])).read("motorcycle", (0,), SIZE)
    with pytest.raises(InputError, match="expected frames 0 and 1, got 2"):
        Motorcycle(fake_pair).read("motorcycle", (2,), SIZE)


def test_the_real_pair_agrees_across_its_views():
    pytest.importorskip("skimage")
    sample = Motorcycle().read("motorcycle", (0, 1), SIZE)
    assert sample.depth is not None and sample.mask is not None
    v, u = np.nonzero(sample.mask[0])
    v, u = v[::97], u[::97]
    k, e = sample.intrinsics.astype(np.float64), sample.extrinsics.astype(np.float64)
    rays = np.linalg.inv(k[0]) @ np.stack([u, v, np.ones(len(u))])

    def difference(z):
        moved = k[1] @ (e[1, :, :3] @ (rays * z) + e[1, :, 3:])
        at = np.rint(moved[0] / moved[2]).astype(int).clip(0, SIZE[1] - 1)
        return np.abs(sample.images[0, v, u] - sample.images[1, v, at]).mean()

    z = sample.depth[0, v, u]
    assert difference(z) < 0.6 * difference(1.1 * z) and difference(z) < 0.6 * difference(0.9 * z)
    assert z.min() > 2 and z.max() < 5.1


def test_settings_become_tasks_and_a_size():
    options = EvaluateOptions(protocols="synthetic:test, motorcycle@2,", views="2,4", size="56x84")
    assert options.tasks() == (("synthetic:test", 2), ("synthetic:test", 4), ("motorcycle", 2))
    assert options.pixels() == (56, 84) and EvaluateOptions().pixels() is None


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"views": "two"}, "evaluate.views: expected numbers"),
        ({"protocols": "synthetic:test@"}, "evaluate.views: expected numbers"),
        ({"protocols": ""}, "expected at least one of each"),
        ({"views": ""}, "expected at least one of each"),
        ({"size": "112"}, "evaluate.size: expected HEIGHTxWIDTH"),
    ],
)
def test_settings_without_a_meaning_are_refused(changes, message):
    options = EvaluateOptions(**changes)
    with pytest.raises(InputError, match=message):
        options.tasks()
        options.pixels()


def test_rows_are_attention_and_precision():
    assert parse_variants("dense-float32, sla_global-fp8_dynamic") == (
        Variant("dense", "float32"), Variant("sla_global(keep=0.3)", "fp8_dynamic"),
    )  # fmt: skip
    for text, message in (
        ("dense", "expected ATTENTION-PRECISION"),
        ("flash-float32", "plan 'flash' is not known"),
        ("dense-int4", "expected ATTENTION-PRECISION"),
        ("", "at least one variant"),
        ("dense-float32,dense-float32", "each once"),
        ("student-bfloat16", "evaluate.student: not set"),
        ("dense-float32+refine", "expected nothing behind float32"),
    ):
        with pytest.raises(InputError, match=message):
            parse_variants(text)
    (row,) = parse_variants("dense-float32+refine", refine=True)
    assert row == Variant("dense", "float32", refine=True) and row.name == "dense-float32+refine"
    with pytest.raises(InputError, match=r"expected \+refine or nothing behind float32"):
        parse_variants("dense-float32+refined", refine=True)


def test_a_row_without_weights_is_refused(tmp_path):
    with pytest.raises(InputError, match="nothing"):
        build_variant(Variant("dense", "float32"), tmp_path / "nothing")
