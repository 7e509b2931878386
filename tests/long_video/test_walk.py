"""Long videos of an exact world whose predictions drift: joining apart from any model."""

import dataclasses

import numpy as np
import pytest

from lite3r_jax.data.video import VideoOptions
from lite3r_jax.errors import InputError
from lite3r_jax.exports import ExportOptions, PointOptions
from lite3r_jax.geometry import Sim3
from lite3r_jax.long_video.outputs import write_part
from lite3r_jax.long_video.run import LongVideo, reconstruct_chunks
from lite3r_jax.long_video.store import Store
from lite3r_jax.progress import Progress
from tools.benchmark.corridors import (
    DegradedTruth,
    Faults,
    Walk,
    WalkFrames,
    depth_maps,
    trajectory_error,
)

OPTIONS = VideoOptions(chunk=30, overlap=10)


def reconstructed(predictor: DegradedTruth, folder, options=OPTIONS) -> LongVideo:
    frames = WalkFrames(predictor.walk)
    return reconstruct_chunks(frames, predictor, options, Store(folder), Progress(False))


def errors(video: LongVideo, walk: Walk) -> tuple[float, float, float]:
    """(ATE by neighbors alone, ATE, length of the path)."""
    chained = dataclasses.replace(video.joined, similarities=video.joined.chained)
    measured = []
    for joined in (chained, video.joined):
        (part,) = dataclasses.replace(video, joined=joined).parts()
        centers = part.cameras(WalkFrames(walk)).camera_to_world[..., 3]
        measured.append(trajectory_error(walk, centers))
    return measured[0][0], measured[1][0], measured[1][1]


def test_the_world_is_exact():
    """A ray down the middle of a corridor meets the wall where the plan says."""
    turn, center = np.eye(3)[None], np.array([[2.0, 0.0, 2.0]])  # looks along z from a corner
    depth = depth_maps(turn, center)[0]
    assert depth.shape == (18, 24)
    middle = depth[8:10, 11:13]
    assert np.all((middle > 3) & (middle < 14.1))
    floor = depth[17, 12]  # a ray that falls 8.5 / 16.8 per unit from height 0 to the floor at 1.5
    assert abs(floor - 1.5 * 16.8 / 8.5) < 1e-9


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_closing_a_loop_of_300_frames_takes_the_drift_out(tmp_path, seed):
    walk = Walk(300)
    video = reconstructed(DegradedTruth(walk, seed=seed), tmp_path)
    before, after, path = errors(video, walk)
    assert before > 0.3  # there is drift to take out
    assert after < before / 3
    assert after < 0.01 * path
    assert video.facts["scale_drift"] > 1.1
    assert not video.facts["failed_joints"]


@pytest.mark.slow
def test_random_drift_is_taken_out_as_well(tmp_path):
    walk = Walk(300)
    faults = Faults(drift=0, turn=0, scale=0.03, bend=1.5)
    before, after, path = errors(reconstructed(DegradedTruth(walk, faults, seed=1), tmp_path), walk)
    assert after < 0.5 * before and after < 0.01 * path


def test_a_chunk_that_does_not_fit_is_kept_apart_and_the_rest_is_written(tmp_path):
    walk = Walk(150, laps=0.5)
    predictor = DegradedTruth(walk, broken=(60,))  # the fourth of seven chunks
    video = reconstructed(predictor, tmp_path)
    assert [each["chunk"] for each in video.facts["failed_joints"]] == [3, 4]
    assert video.joined.parts == ((0, 1, 2), (4, 5, 6), (3,))
    frames = WalkFrames(walk)
    owned = sorted(number for part in video.parts() for number in part.frames)
    assert owned == list(range(150))
    for number, part in enumerate(video.parts()):
        options = ExportOptions(images="network", points=PointOptions(max_points=5000))
        paths, facts = write_part(
            part, frames, Store(tmp_path), tmp_path / str(number), ("ply", "colmap", "tum"),
            options, report={}, tick=lambda: None,
        )  # fmt: skip
        assert len(paths["tum"].read_text().splitlines()) == 2 + len(part.frames)
        assert 0 < facts["points"] <= 5000


def test_where_nothing_fits_every_chunk_is_a_part(tmp_path):
    walk = Walk(50, laps=0.2)
    video = reconstructed(DegradedTruth(walk, broken=(0, 20)), tmp_path)
    assert video.joined.parts == ((0,), (1,))
    assert sum(len(part.frames) for part in video.parts()) == 50


def test_overlapping_points_are_written_once(tmp_path):
    """Two laps over the same ground give hardly more points than one."""
    counts = []
    for laps, frames in ((1, 61), (2, 122)):
        walk, folder = Walk(frames, laps), tmp_path / str(laps)
        few = VideoOptions(chunk=31, overlap=1, loops=4)
        video = reconstructed(DegradedTruth(walk, Faults(0, 0, 0, 0, 0, 0)), folder, few)
        (part,) = video.parts()
        options = ExportOptions(points=PointOptions(voxel=0.02, max_points=0, conf_percentile=0))
        _, facts = write_part(
            part, WalkFrames(walk), Store(folder), folder, ("ply",), options,
            report={}, tick=lambda: None,
        )  # fmt: skip
        counts.append(facts["points"])
    assert counts[0] < counts[1] < 1.35 * counts[0]


def test_what_is_done_is_not_done_again(tmp_path):
    walk = Walk(100, laps=0.3)
    first = DegradedTruth(walk)
    whole = reconstructed(first, tmp_path)
    again = DegradedTruth(walk)
    same = reconstructed(again, tmp_path)
    assert first.calls and not again.calls
    for ours, theirs in zip(same.joined.similarities, whole.joined.similarities, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    (tmp_path / "chunks" / "000002" / "chunk.json").write_bytes(b"{")
    with pytest.raises(InputError, match=r"000002: cannot be used again .* delete it"):
        reconstructed(again, tmp_path)


def test_loops_can_be_left_out(tmp_path):
    walk = Walk(120)
    video = reconstructed(DegradedTruth(walk), tmp_path, dataclasses.replace(OPTIONS, loops=0))
    assert video.loops == () and not (tmp_path / "chunks" / "loops").exists()
    for ours, theirs in zip(video.joined.similarities, video.joined.chained, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-9)
    assert isinstance(video.joined.similarities, Sim3)
