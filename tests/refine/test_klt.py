"""Guided Lucas-Kanade: how many corners of a view are followed, and which."""

import cv2
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lite3r_jax.data.synthetic.source import SyntheticScenes
from lite3r_jax.refine.geometry_of_views import Cameras, depth_lookup
from lite3r_jax.refine.klt import longest, match
from lite3r_jax.refine.matching import Task
from tools.benchmark.refine import scene_of

VIEWS, SIZE = 9, (160, 160)


def test_of_many_tracks_in_a_view_no_more_than_its_corners_are_followed():
    source = SyntheticScenes("test", 1, 100, samples=1)
    scene = scene_of(source.read(source.scenes[0], range(VIEWS), SIZE))
    kept = {}

    def keep(view, make):
        kept[view] = make()
        return kept[view]

    corners = 30
    obs = match(
        Task(
            gray=[cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in scene.images],
            scales=np.ones((VIEWS, 2)),
            cameras=Cameras.of(scene),
            depth=depth_lookup(scene, None),
            pairs=[[b for b in range(VIEWS) if b != a] for a in range(VIEWS)],
            corners=corners,
            keep=keep,
        )
    )
    came: list[set[int]] = [set() for _ in range(VIEWS)]
    crowded = 0
    for view in range(VIEWS):
        followed = set(kept[view]["track"].tolist())
        assert len(followed) <= corners
        if len(came[view]) > corners:
            crowded += 1
            assert len(kept[view]["corners"]) == 0 and followed <= came[view]
        for track, partner in zip(kept[view]["track"], kept[view]["partner"], strict=True):
            came[partner].add(int(track))
    assert crowded >= 2
    assert np.bincount(obs.view).max() > corners  # what was found is kept


@given(
    st.lists(
        st.tuples(st.floats(0, 159), st.floats(0, 119), st.integers(1, 9)), min_size=1, max_size=60
    ),
    st.integers(1, 70),
)
def test_the_longest_of_each_part_are_followed(tracks, count):
    pixels, lengths = np.array([t[:2] for t in tracks]), [t[2] for t in tracks]
    chosen = longest(pixels, lengths, (120, 160), count)
    assert len(chosen) == min(count, len(tracks)) and (np.diff(chosen) > 0).all()
    part = [(int(u * 8 / 160), int(v * 8 / 120)) for u, v in pixels]
    for here in set(part):
        mine = [n for n, where in enumerate(part) if where == here]
        taken, left = ([n for n in mine if (n in chosen) == is_in] for is_in in (True, False))
        if taken and left:
            assert min(lengths[n] for n in taken) >= max(lengths[n] for n in left)
        for other in set(part) - {here}:  # no part is left out for the second of another one
            others = [n for n, where in enumerate(part) if where == other]
            more = sum(n in chosen for n in others) - len(taken)
            assert more <= 1 or not left
