"""Chunks that were refined one by one, and then all frames together, on generated views."""

import numpy as np
import pycolmap
import pytest

from lite3r_jax.data.photos import SourcePhoto
from lite3r_jax.data.synthetic.source import SyntheticScenes
from lite3r_jax.data.video import VideoOptions
from lite3r_jax.exports import ExportOptions
from lite3r_jax.geometry import Sim3
from lite3r_jax.long_video.outputs import write_part
from lite3r_jax.long_video.refinement import refine_part
from lite3r_jax.long_video.run import reconstruct_chunks
from lite3r_jax.long_video.similarity import moved, views_of
from lite3r_jax.long_video.store import Store
from lite3r_jax.metrics.pose import pair_errors
from lite3r_jax.progress import Progress
from lite3r_jax.refine import RefineOptions, refine
from tools.benchmark.refine import disturbed, scene_of

COUNT, SIZE = 9, (160, 160)
OPTIONS = RefineOptions(on=True, corners=300)


class Room:
    """Frames of a generated room, as a `Frames`, and a `Predictor` that knows them nearly."""

    def __init__(self, refines):
        source = SyntheticScenes("test", 1, COUNT, samples=1)
        self.truth = scene_of(source.read(source.scenes[0], range(COUNT), SIZE))
        self.name, self.names, self.ignored = "room", self.truth.names, ()
        self._refines = refines

    def photos(self, start, stop=None):
        if stop is None:  # as a predictor: the scene of some photos
            return self._scene([self.names.index(photo.name) for photo in start]), None
        return tuple(
            SourcePhoto(self.names[i], self.truth.images[i], self.names[i])
            for i in range(start, stop)
        )

    def again(self, views):
        raise AssertionError("no loops are asked for")

    def _scene(self, numbers):
        scene = views_of(self.truth, numbers)
        first = scene.extrinsics[0].astype(np.float64)
        scale = 1 + 0.05 * numbers[0]  # every chunk has a world and a unit of its own
        own = Sim3(np.float64(scale), first[:, :3], scale * first[:, 3])
        scene = disturbed(moved(scene, own), 1.5, seed=numbers[0], depth_error=0.02)
        return refine(scene, OPTIONS).scene if self._refines else scene


def joined(room, folder):
    store = Store(folder)
    options = VideoOptions(chunk=5, overlap=3, loops=0)
    video = reconstruct_chunks(room, room, options, store, Progress(False))
    (part,) = video.parts()
    return part, store


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    room = Room(refines=True)
    part, store = joined(room, tmp_path_factory.mktemp("video"))
    return room, part, store, *refine_part(part, room, store, OPTIONS)


def test_frames_refined_together_are_nearer_to_the_truth(made):
    room, before, _, after, report = made
    assert report["refined"], report["reason"]
    assert all(view.refined for view in before.views) and report["not_tied"] == []
    off = [pair_errors(p.cameras(room).extrinsics, room.truth.extrinsics) for p in (before, after)]
    assert np.median(off[1].rotation) < 0.8 * np.median(off[0].rotation)
    assert np.median(off[1].rotation) < 0.5
    assert np.nanmedian(off[1].direction) < np.nanmedian(off[0].direction)
    # the world stays where it was
    centers = [p.cameras(room).camera_to_world[..., 3] for p in (before, after)]
    spread = np.linalg.norm(centers[0] - centers[0].mean(0), axis=-1).mean()
    assert np.linalg.norm(centers[1] - centers[0], axis=-1).max() < 0.3 * spread


def test_tracks_go_over_the_ends_of_chunks(made):
    _, part, _, after, report = made
    tracks = after.whole.tracks
    first, last = (
        np.array([f(tracks.view[tracks.track == t]) for t in range(len(tracks))])
        for f in (np.min, np.max)
    )
    longest = max(len(chunk) for chunk in part.chunks)
    assert (last - first >= longest).sum() > 10  # no chunk alone has such a track
    assert report["error_pixels"]["after"] < 0.5


def test_files_of_the_whole_have_tracks_and_depth_that_follows(made, tmp_path):
    room, _, store, after, _ = made
    paths, facts = write_part(
        after, room, store, tmp_path, ("ply", "colmap"), ExportOptions(images="network"),
        report={}, tick=lambda: None,
    )  # fmt: skip
    model = pycolmap.Reconstruction(paths["colmap"] / "sparse" / "0")
    assert model.num_points3D() == len(after.whole.tracks) and facts["points"] > 1000
    assert model.compute_mean_track_length() == pytest.approx(after.whole.tracks.mean_length)
    off = [
        np.linalg.norm(image.project_point(model.points3D[p.point3D_id].xyz) - p.xy)
        for image in model.images.values()
        for p in image.points2D
        if p.has_point3D()
    ]
    assert np.median(off) < 0.5
    scenes = [after.own_scene(n, store) for n in range(len(after.chunks))]
    ratio = [
        np.median(scene.depth / room.truth.depth[[room.names.index(n) for n in scene.names]])
        for scene in scenes
    ]
    assert np.ptp(ratio) < 0.05 * np.mean(ratio)  # one unit along the video


def test_chunks_without_tracks_stay_as_they_were_joined(tmp_path):
    room = Room(refines=False)
    part, store = joined(room, tmp_path)
    same, report = refine_part(part, room, store, OPTIONS)
    assert same is part and not report["refined"] and "too few tracks" in report["reason"]
    assert not any(view.refined for view in part.views)
