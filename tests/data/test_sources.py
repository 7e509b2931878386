"""Data sources by name: one string for training, evaluation and checks; what is held out."""

import pickle

import numpy as np
import pytest

from lite3r_jax.data.registry import SOURCES, SourceOptions, evenly_spaced
from lite3r_jax.data.sources import (
    open_training,
    parse_source,
    parse_sources,
    register_source,
    split_sources,
)
from lite3r_jax.data.subset import hold_out
from lite3r_jax.errors import InputError
from tests.data.world import views, write_blendedmvs, write_dtu64


class Numbered:
    """Scenes with so many frames each, whose pixels nobody looks at."""

    def __init__(self, **counts):
        self.scenes, self.counts = tuple(counts), counts

    def frames(self, scene):
        return tuple(range(self.counts[scene]))

    def pairs(self, scene):
        return {frame: {} for frame in self.frames(scene)}


def test_a_mixture_is_sources_with_weights():
    one, two = parse_sources("synthetic:train*2, blendedmvs:/data/x y*1")
    assert (one.row.name, one.argument, one.weight) == ("synthetic", "train", 2)
    assert (two.row.name, two.argument, two.weight) == ("blendedmvs", "/data/x y", 1)
    (photos,) = parse_sources("photos:/a/*.jpg,/b*3")
    assert (photos.argument, photos.weight) == ("/a/*.jpg,/b", 3)
    assert split_sources("photos:a,b,synthetic,motorcycle") == [
        "photos:a,b", "synthetic", "motorcycle",
    ]  # fmt: skip
    capture = parse_source("capture:/data/me@home@depth=/data/depth")
    assert capture.argument == "/data/me@home" and dict(capture.options) == {"depth": "/data/depth"}


@pytest.mark.parametrize("text,message", [
    ("synthtic", "data source 'synthtic' is not known; did you mean 'synthetic'?"),
    ("blended_mvs:/data", "did you mean 'blendedmvs'"),
    ("/nowhere/at/all", "/nowhere/at/all: no such folder"),
    ("dtu64", "dtu64: say where the data is, dtu64:FOLDER"),
    ("motorcycle:here", "motorcycle takes nothing behind a colon"),
    ("synthetic*0", "expected a weight of at least 1"),
    ("capture:x@deptth=y", "option 'deptth' is not known; did you mean 'depth'"),
    ("", "data source: not set; expected one of synthetic, blendedmvs"),
])  # fmt: skip
def test_what_is_no_source_is_named_in_one_line(text, message):
    with pytest.raises(InputError, match=message.replace("?", r"\?")) as caught:
        parse_sources(text)
    assert "\n" not in str(caught.value)


def test_a_name_is_registered_once_and_is_a_name():
    with pytest.raises(InputError, match="'synthetic': is registered already"):
        register_source("synthetic", lambda argument, split, options: Numbered())
    with pytest.raises(InputError, match="expected letters, digits"):
        register_source("a:b", lambda argument, split, options: Numbered())


def test_every_row_says_its_terms_and_unit():
    for row in SOURCES.values():
        assert row.license and row.unit in ("scene", "m", "mm")


def test_a_folder_is_told_by_its_layout(tmp_path):
    made = views(2, (20, 24))
    write_blendedmvs(tmp_path / "mvs", "attic", made)
    write_dtu64(tmp_path / "dtu", {"scan1": made})
    assert parse_source(str(tmp_path / "mvs")).row.name == "blendedmvs"
    assert parse_source(f"{tmp_path / 'dtu'}*2").row.name == "dtu64"
    with pytest.raises(InputError, match=f"layout of no dataset; .*say photos:{tmp_path}"):
        parse_source(str(tmp_path))


def test_results_are_called_by_list_or_by_folder():
    labels = {
        "synthetic:sky": "synthetic:sky",
        "blendedmvs:/a/b": "blendedmvs",
        "capture:/a/desk/": "capture:desk",
        "motorcycle": "motorcycle",
    }
    for text, label in labels.items():
        assert parse_source(text).label == label


def test_of_ten_scenes_or_more_every_tenth_is_held_out():
    whole = Numbered(**{f"s{i}": 4 for i in range(23)})
    training, held = hold_out(whole, 4)
    assert held.scenes == ("s9", "s19")
    assert set(training.scenes) == set(whole.scenes) - {"s9", "s19"}
    assert all(training.frames(scene) == (0, 1, 2, 3) for scene in training.scenes)


def test_of_fewer_scenes_the_last_frames_are_held_out():
    training, held = hold_out(Numbered(long=100, small=7, short=8), 4)
    assert training.scenes == ("long", "small", "short") and held.scenes == ("long", "short")
    assert (training.frames("long")[-1], held.frames("long")) == (89, tuple(range(90, 100)))
    assert (len(training.frames("small")), held.frames("short")) == (7, (4, 5, 6, 7))


def test_too_few_frames_to_hold_any_out_is_an_error_that_says_how_to_go_without():
    with pytest.raises(InputError, match=r"no scene has 8 frames, 4 of which .*evaluate_every=0"):
        hold_out(Numbered(a=7, b=4), 4)


def test_dtu64_is_trained_on_the_scans_that_nobody_evaluates(tmp_path):
    made = views(64, (20, 24))
    write_dtu64(tmp_path, {"scan24": made, "scan1": made, "scan2": made})
    (source,) = open_training(f"dtu64:{tmp_path}", SourceOptions(views=2))
    assert source.training.scenes == source.held_out.scenes == ("scan1", "scan2")
    assert source.training.frames("scan1") + source.held_out.frames("scan1") == tuple(range(64))
    assert source.report == f"dtu64:{tmp_path}: 128 frames in 2 scenes, 12 of them held out"
    assert not source.spec.has_depth(source.training)
    assert pickle.loads(pickle.dumps(source.training)).frames("scan2") == tuple(range(58))
    (tmp_path / "scan1").rename(tmp_path / "scan37")
    (tmp_path / "scan2").rename(tmp_path / "scan40")
    with pytest.raises(InputError, match="has only scans that are evaluated on"):
        open_training(f"dtu64:{tmp_path}")


def test_splits_of_the_generated_world_to_train_on_hold_out_scenes_of_their_own():
    (plain,) = open_training("synthetic", SourceOptions(scenes=5, frames=3))
    assert plain.training.scenes[0] == "train-000000000" and len(plain.training.scenes) == 5
    assert plain.held_out.scenes[0] == "validation-000000000" and not plain.report
    with pytest.raises(InputError, match="split for train 'sky' is not known"):
        open_training("synthetic:sky")


def test_frames_are_evenly_spaced_from_the_first():
    assert evenly_spaced(Numbered(a=9), 3) == [("a", (0, 3, 6))]
    with pytest.raises(InputError, match="has 9 frames, 10 views"):
        evenly_spaced(Numbered(a=9), 10)


def test_the_readers_of_an_evaluation_and_of_a_training_are_the_same(tmp_path):
    write_blendedmvs(tmp_path / "mvs", "attic", views(3, (20, 24)))
    spec = parse_source(f"blendedmvs_layout:{tmp_path / 'mvs'}")
    (source,) = open_training(str(spec), hold_out_views=False)
    one, two = (s.read("attic", (0, 2), (14, 14)) for s in (spec.open(None), source.training))
    np.testing.assert_array_equal(one.images, two.images)
    np.testing.assert_array_equal(one.depth, two.depth)
