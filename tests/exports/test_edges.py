"""Points at edges of objects: equal to the original, and left out on request."""

from dataclasses import replace

import numpy as np
import pytest

from lite3r_jax.errors import InputError
from lite3r_jax.exports.edges import depth_edges, edges, normal_edges, normals
from lite3r_jax.exports.points import PointOptions, select_points

EVERYTHING = PointOptions(conf_percentile=0, max_points=0)


def test_edges_agree_with_upstream(golden_pi3, parity):
    g = golden_pi3("geometry")
    points, mask = g["edge_points"], g["edge_mask"]
    functions = {
        "depth_edge": lambda s: depth_edges(points[s, ..., 2], mask[s]),
        "depth_edge_nomask": lambda s: depth_edges(points[s, ..., 2], np.ones_like(mask[s])),
        "normals": lambda s: normals(points[s], mask[s])[0],
        "normal_edge": lambda s: normal_edges(g["normals"][s], g["normals_mask"][s]),
        "depth_normal_edge": lambda s: edges(points[s], points[s, ..., 2], mask[s]),
    }
    for key, get in functions.items():
        got, want = np.stack([get(s) for s in range(2)]), g[key]
        gate = 1e-6 if key == "normals" else 0
        parity("pi3/geometry", key, got.astype(np.float32), want.astype(np.float32), gate)
    np.testing.assert_array_equal(normals(points[0], mask[0])[1], g["normals_mask"][0])


def test_a_box_before_a_wall_has_edges_and_a_slanted_wall_has_none():
    u, v = np.meshgrid(np.linspace(-1, 1, 40), np.linspace(-1, 1, 30))
    valid = np.ones(u.shape, bool)
    box = np.full(u.shape, 4.0)
    box[10:20, 15:25] = 2
    slanted = 1 / (0.3 + 0.29 * u)  # a plane, steep in depth
    for depth, expected in ((box, True), (slanted, False)):
        points = np.stack([u * depth, v * depth, depth], -1).astype(np.float32)
        mask = edges(points, depth.astype(np.float32), valid)
        assert mask.any() == expected
        if expected:
            assert mask[10, 15] and not mask[15, 20] and not mask[3, 3]
    assert depth_edges(slanted, valid).any(), "depth alone would count the slanted wall"


def test_points_at_edges_are_left_out_on_request(room):
    scene = room.scene
    depth = scene.depth.copy()
    depth[0, 20:30, 30:50] *= 0.5
    scene = replace(scene, depth=depth)
    every = select_points(scene, EVERYTHING)
    kept = select_points(scene, replace(EVERYTHING, mask="edges"))
    assert 0 < len(every) - len(kept) < 0.2 * len(every)
    left = {(s, *p) for s, p in zip(every.view.tolist(), every.pixel.tolist(), strict=True)}
    left -= {(s, *p) for s, p in zip(kept.view.tolist(), kept.pixel.tolist(), strict=True)}
    assert (0, 30, 20) in left and (0, 40, 25) not in left
    np.testing.assert_array_equal(
        select_points(scene, EVERYTHING).xyz, every.xyz, "off unless asked for"
    )


def test_a_scene_of_edges_alone_says_so(room):
    noise = np.random.default_rng(0).uniform(1, 9, room.scene.depth.shape).astype(np.float32)
    with pytest.raises(InputError, match=r"points\.mask=edges mask every pixel that has a point"):
        select_points(replace(room.scene, depth=noise), replace(EVERYTHING, mask="edges"))
