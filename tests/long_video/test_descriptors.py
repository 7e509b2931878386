"""Descriptors of views from the tokens of every backbone: two views of one place are alike."""

import numpy as np
import pytest

from lite3r_jax.infer.memory import Forward
from lite3r_jax.weights.load import load

VIEWS, PLACE = 4, (1, 3)
"""Views 1 and 3 are of one place, with other noise."""


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["vggt", "da3", "pi3"])
def test_two_views_of_one_place_are_alike(backbone, request):
    directory = {"vggt": "tiny_dir", "da3": "tiny_da3_dir", "pi3": "tiny_pi3_dir"}[backbone]
    model = load(request.getfixturevalue(directory), heads=("camera", "depth"))
    rng = np.random.default_rng(0)
    # smooth pictures, since random weights see little of white noise
    coarse = rng.random((VIEWS, 2, 3, 3), np.float32)
    coarse[PLACE[1]] = coarse[PLACE[0]]
    images = np.repeat(np.repeat(coarse, 14, axis=1), 14, axis=2)
    images = 0.9 * images + 0.1 * rng.random(images.shape, np.float32)
    arguments = {"reference": "first"} if backbone == "da3" else {}
    forward = Forward(model, tokens=model.view_tokens, arguments=arguments)
    _, described = forward(images[None], forward.plan(VIEWS, *images.shape[1:3]))
    (described,) = np.asarray(described)
    assert described.shape[0] == VIEWS and described.dtype == np.float32
    assert np.isfinite(described).all()
    vectors = described - described.mean(0)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    alike = vectors @ vectors.T - 2 * np.eye(VIEWS)
    assert (alike[PLACE[0]].argmax(), alike[PLACE[1]].argmax()) == (PLACE[1], PLACE[0]), alike
    # clearly: any other pair is further apart than half way
    others = [alike[i, j] for i in range(VIEWS) for j in range(i) if (j, i) != PLACE]
    assert alike[PLACE] > max(others) + 0.2, alike
