"""Chunks, the fit of two predictions, the graph of similarities, and the merging of points."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lite3r_jax.errors import InputError
from lite3r_jax.exports.points import PointCloud
from lite3r_jax.geometry import Sim3
from lite3r_jax.long_video.chunks import plan_chunks
from lite3r_jax.long_video.joint import fit
from lite3r_jax.long_video.merging import CELLS, VoxelMap
from lite3r_jax.long_video.pose_graph import Edge, _changed, _Graph, solve
from lite3r_jax.long_video.similarity import (
    apply_to_many,
    compose,
    exp_rotation,
    inverse,
    log_rotation,
    moved,
    views_of,
)
from tools.benchmark.corridors import DegradedTruth, Faults, Walk

EXACT = Faults(0, 0, 0, 0, 0, 0)


def some(rng: np.random.Generator, count: int, size: float = 1.0) -> Sim3:
    return Sim3(
        np.exp(0.3 * size * rng.standard_normal(count)),
        exp_rotation(size * rng.standard_normal((count, 3))),
        size * rng.standard_normal((count, 3)),
    )


def at(sim3: Sim3, i: int) -> Sim3:
    return Sim3(*(part[i] for part in sim3))


@settings(deadline=None)
@given(st.integers(2, 60), st.data())
def test_chunks_cover_all_frames_and_every_frame_has_one_owner(chunk, data):
    overlap = data.draw(st.integers(1, chunk - 1))
    frames = data.draw(st.integers(chunk + 1, 400))
    chunks = plan_chunks(frames, chunk, overlap)
    assert all(len(each) == chunk for each in chunks)
    owned = [n for each in chunks for n in range(each.own_start, each.own_stop)]
    assert owned == list(range(frames))
    for before, after in itertools.pairwise(chunks):
        assert before.stop - after.start >= overlap
        assert after.start > before.start
    for each in chunks:
        assert each.start <= each.own_start < each.own_stop <= each.stop


def test_chunks_that_cannot_be_are_refused():
    for chunk, overlap in ((10, 10), (10, 0), (10, 12)):
        with pytest.raises(InputError, match=r"video\.overlap"):
            plan_chunks(100, chunk, overlap)
    with pytest.raises(InputError, match="one pass"):
        plan_chunks(10, 10, 3)


@given(st.integers(0, 10**6))
@settings(deadline=None, max_examples=25)
def test_similarities_are_a_group(seed):
    rng = np.random.default_rng(seed)
    a, b = (at(some(rng, 1), 0) for _ in range(2))
    points = rng.standard_normal((5, 3))
    both = apply_to_many(a, apply_to_many(b, points))
    np.testing.assert_allclose(apply_to_many(compose(a, b), points), both, atol=1e-12)
    np.testing.assert_allclose(apply_to_many(compose(inverse(a), a), points), points, atol=1e-12)
    vector = rng.uniform(-1, 1, 3)
    np.testing.assert_allclose(log_rotation(exp_rotation(vector)), vector, atol=1e-12)


def test_a_moved_scene_has_its_points_moved():
    scene = DegradedTruth(Walk(30), EXACT).scene([3, 4])
    sim3 = at(some(np.random.default_rng(1), 1), 0)
    points, there = scene.points()[0].reshape(-1, 3), moved(scene, sim3).points()[0].reshape(-1, 3)
    np.testing.assert_allclose(there, apply_to_many(sim3, points), atol=2e-4)


def test_the_fit_finds_an_exact_similarity_through_noise_and_outliers():
    walk = Walk(100)
    truth = DegradedTruth(walk, EXACT)
    for faults, degrees, scale in (
        (EXACT, 1e-3, 1e-5),
        (Faults(0, 0, 0, 0, 0.03, 0.4), 0.3, 5e-3),  # two fifths of the depths are nonsense
    ):
        worse = DegradedTruth(walk, faults, seed=1)
        a, b = worse.scene(range(10, 18)), truth.scene(range(10, 17 + 1))
        joint = fit(a, b)
        assert not joint.fault and joint.similarity is not None
        assert joint.degrees < degrees
        # scenes of one world: centers tell the true scale
        ours, theirs = (
            np.linalg.norm(np.diff(s.camera_to_world[..., 3], axis=0), axis=-1) for s in (a, b)
        )
        assert abs(joint.similarity.scale * ours.sum() / theirs.sum() - 1) < scale


def test_what_does_not_fit_says_why():
    walk = Walk(100)
    good = DegradedTruth(walk, EXACT).scene(range(8))
    wild = DegradedTruth(walk, EXACT, broken=(0,)).scene(range(8))
    assert "agree within 10 %" in fit(wild, good).fault
    turned = np.einsum(
        "ij,sjk->sik", exp_rotation(np.array([0, 1.0, 0])), good.extrinsics
    )  # about each camera's own axis: the points move, and so would the fit of cameras
    assert fit(_with(good, extrinsics=turned.astype(np.float32)), good).fault
    unknown = _with(good, depth=np.full_like(good.depth, np.nan))
    assert "0 pixels" in fit(unknown, good).fault


def _with(scene, **changes):
    import dataclasses

    return dataclasses.replace(scene, **changes)


def test_derivatives_of_the_graph_are_those_of_its_residuals():
    rng = np.random.default_rng(0)
    nodes = some(rng, 5)
    edges = [
        Edge(
            i,
            (i + 1) % 5,
            compose(
                compose(inverse(at(nodes, i)), at(nodes, (i + 1) % 5)), at(some(rng, 1, 0.02), 0)
            ),
            rng.standard_normal(3),
            0.1,
        )
        for i in range(5)
    ]
    graph = _Graph(np.full(5, 2.0), edges, (0,))
    ours = graph.jacobian(nodes).toarray()
    numeric = np.zeros_like(ours)
    for column in range(35):
        change = np.zeros(35)
        change[column] = 1e-6
        up, down = (
            graph.residuals(_changed(nodes, sign * change.reshape(5, 7))) for sign in (1, -1)
        )
        numeric[:, column] = (up - down).ravel() / 2e-6
    np.testing.assert_allclose(ours, numeric, atol=2e-6)


def test_the_graph_finds_consistent_similarities_and_doubts_a_false_loop():
    rng = np.random.default_rng(2)
    truth = some(rng, 12)
    for part, nothing in zip(truth, (1, np.eye(3), 0), strict=True):
        part[0] = nothing

    def edge(i, j, wrong=None):
        measured = compose(inverse(at(truth, i)), at(truth, j))
        if wrong is not None:
            measured = compose(measured, wrong)
        return Edge(i, j, measured, np.zeros(3), 0.01, may_be_false=j != i + 1)

    chain = [edge(i, i + 1) for i in range(11)]
    start = _changed(truth, 0.05 * rng.standard_normal((12, 7)) * (np.arange(12) > 0)[:, None])
    false = edge(1, 9, at(some(rng, 1, 1.0), 0))
    solved, weights = solve(start, np.ones(12), [*chain, edge(0, 11), edge(2, 8), false])
    for ours, theirs in zip(solved, truth, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    np.testing.assert_allclose(weights[-3:], [1, 1, 0], atol=1e-6)


def test_the_origins_of_chunks_do_not_change_the_result():
    rng = np.random.default_rng(5)
    truth = some(rng, 6)
    edges, moves = [], some(rng, 6, 3.0)
    for i in range(6):
        j = (i + 1) % 6
        measured = compose(inverse(at(truth, i)), at(truth, j))
        edges.append(
            Edge(i, j, compose(measured, at(some(rng, 1, 0.05), 0)), rng.standard_normal(3), 0.05)
        )
    solved, _ = solve(truth, np.ones(6), edges)
    # the same measurements where chunk k has its world at moves[k]
    other = [
        Edge(
            e.first, e.second,
            compose(compose(at(moves, e.first), e.similarity), inverse(at(moves, e.second))),
            apply_to_many(at(moves, e.second), e.place[None])[0], e.deviation,
        )
        for e in edges
    ]  # fmt: skip
    back = [inverse(at(moves, k)) for k in range(6)]
    start = [compose(at(truth, k), back[k]) for k in range(6)]
    again, _ = solve(
        Sim3(*(np.stack(part) for part in zip(*start, strict=True))), moves.scale, other
    )
    for k in range(6):
        for ours, theirs in zip(compose(at(again, k), at(moves, k)), at(solved, k), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-4)


def cloud(xyz, conf, view) -> PointCloud:
    count = len(xyz)
    return PointCloud(
        np.asarray(xyz, np.float32), np.zeros((count, 3), np.uint8), np.asarray(conf, np.float32),
        np.full(count, view, np.int32), np.stack([np.arange(count)] * 2, -1).astype(np.int32),
    )  # fmt: skip


def test_points_of_two_chunks_are_merged_by_voxel_and_confidence():
    grid = VoxelMap(1.0, 0)
    grid.add(cloud([[0.1, 0.1, 0.1], [5, 5, 5]], [1, 3], 7))
    grid.add(cloud([[0.2, 0.2, 0.2], [5.5, 5.5, 5.5], [-0.1, 0, 0]], [2, 2, 1], 3))
    merged = grid.cloud()
    assert merged.view.tolist() == [3, 3, 7]  # by view
    assert merged.conf.tolist() == [2, 1, 3]


def test_the_map_stays_small_and_the_result_has_as_many_points_as_are_wanted():
    rng = np.random.default_rng(0)
    grid = VoxelMap(1e-3, 500)
    for view in range(6):
        grid.add(cloud(rng.uniform(-1, 1, (2000, 3)), rng.random(2000), view))
        assert len(grid) <= CELLS * 500
    assert grid.edge > 1e-3
    assert len(grid.cloud()) == 500


def test_views_are_taken_with_all_they_have():
    scene = DegradedTruth(Walk(30), EXACT).scene(range(6))
    few = views_of(scene, [4, 1])
    assert few.names == (scene.names[4], scene.names[1])
    np.testing.assert_array_equal(few.depth, scene.depth[[4, 1]])
