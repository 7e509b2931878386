"""The track head of a model as a matcher, from the model to the scene."""

import jax.numpy as jnp
import numpy as np
import pytest

from lite3r_jax import RefineOptions, reconstruct
from lite3r_jax.data.synthetic.source import SyntheticScenes
from lite3r_jax.errors import InputError
from lite3r_jax.infer.point_tracker import ModelTracker, check_track_head
from lite3r_jax.refine import refine
from tools.benchmark.refine import scene_of


@pytest.mark.slow
def test_points_are_followed_as_the_model_does(tiny_vggt, tiny_images):
    images = np.rint(tiny_images[0] * 255).astype(np.uint8)
    some = images[[1, 0]].astype(np.float32) / np.float32(255)
    points = np.random.default_rng(0).uniform(0, 28, (128, 2)).astype(np.float32)
    wanted, _ = tiny_vggt(jnp.asarray(some[None]), jnp.asarray(points[None]))
    places, visible, sure = ModelTracker(tiny_vggt).of(images)([1, 0], points)
    np.testing.assert_allclose(places, wanted.tracks.coords[0], atol=0.02)
    np.testing.assert_allclose(visible, wanted.tracks.visibility[0], atol=1e-3)
    np.testing.assert_allclose(sure, wanted.tracks.confidence[0], atol=1e-3)
    np.testing.assert_allclose(places[0], points, atol=1e-4)  # of the first view
    # other numbers of points are filled up and cut again
    places, visible, _ = ModelTracker(tiny_vggt).of(images)([1, 0], points[:50])
    assert places.shape == (2, 50, 2) and visible.shape == (2, 50)


def test_a_scene_is_matched_by_the_track_head_of_the_model(tiny_vggt):
    source = SyntheticScenes("test", 1, 2, samples=1)
    scene = scene_of(source.read(source.scenes[0], range(2), (56, 56)))
    calls = []

    def tracker(views, points):
        calls.append((views, points, *follow(views, points)))
        return calls[-1][2:]

    follow = ModelTracker(tiny_vggt).of(scene.images)
    result = refine(scene, RefineOptions(matches="track", corners=40, rounds=1), tracker=tracker)
    # random weights follow nothing: the prediction stays, with the reason
    assert result.scene is scene and "photos need texture" in result.report["reason"]
    for views, points, places, visible, sure in calls:
        assert sorted(views) == [0, 1] and places.shape == (2, len(points), 2)
        np.testing.assert_allclose(places[0], points, atol=1e-4)  # of the first view
        assert visible.shape == sure.shape == (2, len(points)) and np.isfinite(places).all()


def test_models_without_a_track_head_are_refused_by_name(fake_model):
    options = RefineOptions(matches="track")
    with pytest.raises(InputError, match=r"refine\.matches=track: needs a track head, this model"):
        reconstruct(fake_model(), [np.zeros((56, 56, 3), np.uint8)], refine=options)
    check_track_head(options, ("camera", "depth", "track"))
    check_track_head(RefineOptions(), ("camera",))
