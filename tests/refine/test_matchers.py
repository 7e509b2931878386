"""Matchers other than the default one: SIFT, a track head, and how matches become tracks."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lite3r_jax.data.synthetic.source import SyntheticScenes
from lite3r_jax.errors import InputError
from lite3r_jax.refine import RefineOptions, refine
from lite3r_jax.refine.geometry_of_views import Cameras, depth_lookup, to_network, to_photo
from lite3r_jax.refine.matching import merge
from lite3r_jax.refine.track import query_views
from lite3r_jax.scene import StillPhoto
from tools.benchmark.refine import camera_errors, disturbed, scene_of

SIZE = (224, 224)
OPTIONS = RefineOptions(corners=300)


@pytest.fixture(scope="module")
def truth():
    """Four generated views with exact cameras and depth."""
    source = SyntheticScenes("test", 1, 4, samples=1)
    return scene_of(source.read(source.scenes[0], range(4), SIZE))


class ExactTracker:
    """Knows where points of a scene are; a fifth of what it says is wrong, and some it is sure of.

    Attributes:
        calls: the views of each call.
    """

    def __init__(self, truth, noise=0.3):
        self._truth, self._noise, self.calls = truth, noise, []

    def __call__(self, views, points):
        self.calls.append(list(views))
        rng = np.random.default_rng(len(self.calls))
        scene, cameras, count = self._truth, Cameras.of(self._truth), len(points)
        depth = depth_lookup(scene, None)
        of = np.full(count, views[0])
        pixels = to_photo(scene, of, points.astype(np.float64))
        world = cameras.centers[of] + cameras.rays(of, pixels) * depth.at(of, pixels)[:, None]
        places, visible = [], []
        for view in views:
            into = np.full(count, view)
            place, z = cameras.project(into, world)
            there = depth.at(into, place)
            visible.append((np.abs(there - z) < 0.03 * z).astype(np.float32))
            matched = to_network(scene, into, place) + rng.normal(size=(count, 2)) * self._noise
            wrong = rng.random(count) < 0.2
            matched[wrong] = rng.uniform(0, SIZE[0], (int(wrong.sum()), 2))
            places.append(matched)
        return np.array(places, np.float32), np.array(visible), np.ones_like(visible)


def test_sift_brings_cameras_back(truth):
    start = disturbed(truth, 3, seed=0)
    result = refine(start, replace(OPTIONS, matches="sift"))
    before, after = camera_errors(start, truth), camera_errors(result.scene, truth)
    assert result.report["refined"] and result.report["not_tied"] == []
    assert before["rotation"] > 2 and after["rotation"] < 0.6
    assert after["direction"] < 0.5 * before["direction"] and after["focal"] < 0.03


def test_things_that_move_are_left_out_and_their_share_is_reported(truth):
    start = disturbed(truth, 1, seed=0)
    whole = refine(start, OPTIONS)
    rng = np.random.default_rng(0)
    # something before the camera that moves with it, while the room does not
    rider = np.kron(rng.integers(0, 255, (12, 12, 3), np.uint8), np.ones((8, 8, 1), np.uint8))
    images = truth.images.copy()
    images[:, 110:206, 20:116] = rider
    photos = tuple(map(StillPhoto, images))
    result = refine(replace(start, images=images, photos=photos), OPTIONS)
    assert result.report["refined"], result.report["reason"]
    assert whole.report["outliers"] < 0.02 and 0.04 < result.report["outliers"] < 0.5
    assert camera_errors(result.scene, truth)["rotation"] < 0.6
    u, v = result.scene.tracks.pixel.T
    on_it = (u > 24) & (u < 112) & (v > 114) & (v < 202)
    assert on_it.mean() < 0.05


def test_masks_keep_sift_away(truth):
    masked = np.zeros(truth.depth.shape, bool)
    masked[:, :, :112] = True
    result = refine(truth, replace(OPTIONS, matches="sift", rounds=1), masked=masked, known=True)
    assert result.scene.tracks is not None
    assert (np.rint(result.scene.tracks.pixel[:, 0]) >= 112).all()


def test_a_tracker_brings_cameras_back_and_its_wrong_places_are_left_out(truth):
    start = disturbed(truth, 3, seed=0)
    tracker = ExactTracker(truth)
    result = refine(start, replace(OPTIONS, matches="track"), tracker=tracker)
    after = camera_errors(result.scene, truth)
    assert result.report["refined"] and after["rotation"] < 0.5 and after["focal"] < 0.03
    assert result.report["error_pixels"]["after"] < 1
    tracks = result.scene.tracks
    assert tracks.mean_length > 2.2  # of several queries, joined where they mean one corner
    place, _ = Cameras.of(truth).project(tracks.view, np.zeros((len(tracks.view), 3)))
    assert np.isfinite(place).all()
    assert all(len(set(views)) == len(views) for views in tracker.calls)


def test_track_without_a_tracker_is_refused(truth):
    with pytest.raises(
        InputError, match=r"refine\.matches=track: there is no track head; choose klt"
    ):
        refine(truth, replace(OPTIONS, matches="track"))


@given(st.integers(2, 40), st.integers(1, 6), st.integers(0, 10**6))
def test_every_view_is_a_query_or_followed_from_some(views, partners, seed):
    rng = np.random.default_rng(seed)
    near = np.zeros((views, views), bool)
    for a in range(views):
        near[a, rng.choice(views, min(partners, views), replace=False)] = True
    near |= near.T
    np.fill_diagonal(near, False)
    pairs = [np.flatnonzero(row).tolist() for row in near]
    queries = query_views(pairs)
    assert len(set(queries)) == len(queries)
    for a in range(views):
        seen = len(set(pairs[a]) & set(queries))
        assert a in queries or seen >= min(3, len(pairs[a]))


def test_matches_become_tracks_without_two_places_in_a_view():
    view = np.array([0, 1, 2, 2, 0, 1])
    pixel = np.arange(12.0).reshape(6, 2)
    one, two = np.array([0, 1, 0, 4]), np.array([1, 2, 3, 5])
    tracks = merge(view, pixel, one, two, np.array([0.9, 0.8, 0.7, 0.6]))
    # place 3 is of the same view as place 2, which was joined before it
    np.testing.assert_array_equal(tracks.track, [0, 0, 0, 1, 1])
    np.testing.assert_array_equal(tracks.view, [0, 1, 2, 0, 1])
    np.testing.assert_array_equal(tracks.pixel, pixel[[0, 1, 2, 4, 5]])
    tracks = merge(view, pixel, one, two, np.array([0.9, 0.6, 0.7, 0.6]))
    np.testing.assert_array_equal(tracks.pixel[:3], pixel[[0, 1, 3]])


@given(st.integers(0, 10**6))
def test_merged_tracks_are_ordered_and_see_no_view_twice(seed):
    rng = np.random.default_rng(seed)
    view = rng.integers(0, 5, 30)
    one, two = rng.integers(0, 30, (2, 60))
    apart = view[one] != view[two]
    tracks = merge(view, rng.normal(size=(30, 2)), one[apart], two[apart],
                   rng.random(int(apart.sum())))  # fmt: skip
    assert (np.diff(tracks.track * 5 + tracks.view) > 0).all()
    assert (np.bincount(tracks.track) >= 2).all()
