"""Videos in chunks from the command line to the files."""

import json
import re

import cv2
import numpy as np
import pycolmap
import pytest
from PIL import Image

from lite3r_jax.cli.lite3r import main
from lite3r_jax.data.synthetic.source import SyntheticScenes
from lite3r_jax.data.video import VideoOptions
from lite3r_jax.errors import InputError
from lite3r_jax.exports.npz import read_npz
from lite3r_jax.infer.reconstruct import Reconstructor, reconstruct
from lite3r_jax.runs.view import batch
from tests.data.test_video import record

FORMATS = "npz,ply,glb,colmap,colmap_txt,tum,html"


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    """A second of frames of a generated room for every frame of a path through it."""
    path = tmp_path_factory.mktemp("video") / "room.mp4"
    source = SyntheticScenes("test", 1, 9)
    sample = source.read(source.scenes[0], range(9), (96, 128))
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 1.0, (128, 96))
    for image in np.rint(sample.images * 255).astype(np.uint8):
        writer.write(image[..., ::-1])
    writer.release()
    return path


def run(source, out, *more, weights="vggt-tiny"):
    words = ["reconstruct", str(source), "--output", str(out), "--weights", str(weights)]
    if weights != "vggt-tiny":
        words += ["--backbone", "fake", "--size", "56"]
    return main([*words, *more])


def test_the_small_model_and_a_video_in_chunks(room, tmp_path, capsys):
    out = tmp_path / "out"
    more = ["--video.chunk=4", "--video.overlap=2", f"--formats={FORMATS}"]
    assert run(room, out, *more) == 0
    said = capsys.readouterr().out
    assert "9 frames in 4 chunks of 4" in said and "joints fit" in said
    report = json.loads((out / "report.json").read_text())
    video = report["video"]
    assert report["scene"]["views"] == video["frames"] == 9
    assert [chunk["first_frame"] for chunk in video["chunks"]] == [
        f"frame_{n:06d}.jpg" for n in (0, 2, 4, 5)
    ]
    largest = video["written"][0]["frames"]
    poses = np.loadtxt(out / "trajectory.txt")
    assert poses.shape == (largest, 8) and np.isfinite(poses).all()
    names = sorted(path.name for path in (out / "colmap" / "images").iterdir())
    assert len(names) == largest and set(names) <= {f"frame_{n:06d}.jpg" for n in range(9)}
    model = pycolmap.Reconstruction(str(out / "colmap" / "sparse" / "0"))
    assert sorted(image.name for image in model.images.values()) == names
    seen = [p for image in model.images.values() for p in image.points2D if p.has_point3D()]
    assert len(seen) == len(model.points3D) > 1000
    apart = [
        np.linalg.norm(image.project_point(model.points3D[p.point3D_id].xyz) - p.xy)
        for image in model.images.values()
        for p in list(image.points2D)[::50]
    ]
    assert max(apart) < 0.05  # pixels: every point is where its own frame sees it
    assert (out / "scene.html").stat().st_size > 10_000 and (out / "scene.glb").is_file()
    assert batch(out) == [out / "chunks" / f"{n:06d}" for n in range(4)]  # which can be viewed
    chunk = read_npz(out / "chunks" / "000001" / "predictions.npz")
    assert chunk.names == tuple(f"frame_{n:06d}.jpg" for n in range(2, 6))
    with np.load(out / "chunks" / "000001" / "views.npz") as views:
        described = views["descriptors"].astype(np.float32)
    assert described.shape[0] == 4 and described.std(0).max() > 1e-3
    # each joint brings the chunk's own cameras to those of the trajectory
    if len(video["parts"]) == 1:
        where = video["chunks"][1]
        centers = chunk.camera_to_world[..., 3] @ np.array(where["rotation"]).T
        centers = where["scale"] * centers + where["translation"]
        np.testing.assert_allclose(centers[1], poses[3, 1:4], atol=1e-4)  # which it owns
    assert run(room, out, *more) == 0
    assert "done before" in capsys.readouterr().out


def test_chunks_are_refined_or_said_not_to_be(fake_dir, tmp_path, capsys, caplog):
    # what is refined together is tested in tests/long_video, on predictions that are worth it
    video, out = record(tmp_path / "gray.avi", frames=9), tmp_path / "out"
    more = ["--video.stride=1", "--video.chunk=6", "--video.overlap=3", "--formats=npz,tum"]
    assert run(video, out, *more, "--refine", weights=fake_dir) == 0
    said = capsys.readouterr().out
    refinement = json.loads((out / "report.json").read_text())["video"]["refinement"]
    assert refinement["chunks"] == 0 and "refined 0 of 2 chunks by themselves" in said
    (part,) = refinement["parts"]
    assert part["views"] == 9 and part["reason"] == "its chunks have too few tracks"
    assert "not refined together: its chunks have too few tracks" in said
    assert "chunk from frame_000003.jpg: not refined, the prediction stays" in caplog.text


def test_a_run_that_was_stopped_goes_on(fake_dir, tmp_path, capsys, monkeypatch):
    video, out = record(tmp_path / "gray.avi", frames=24), tmp_path / "out"
    more = ["--video.stride=1", "--video.chunk=6", "--video.overlap=2", "--formats=ply,tum,npz"]
    passes = []
    whole = Reconstructor.__call__

    def counted(self, photos, progress=None, **more):
        if len(passes) == 3:
            raise KeyboardInterrupt
        passes.append(photos.photos[0].name)
        return whole(self, photos, progress, **more)

    monkeypatch.setattr(Reconstructor, "__call__", counted)
    assert run(video, out, *more, weights=fake_dir) != 0
    assert sorted(path.name for path in (out / "chunks").iterdir()) == [
        f"{n:06d}" for n in range(3)
    ]
    passes[:] = [""] * 4  # counts on, without a stop
    assert run(video, out, *more, weights=fake_dir) == 0
    assert passes[4:] == ["frame_000012.jpg", "frame_000016.jpg", "frame_000018.jpg"]
    report = json.loads((out / "report.json").read_text())
    assert report["finished"] and report["video"]["failed_joints"] == []
    # cameras of the model step by 0.1 to the right in every chunk, so in the whole as well
    steps = np.diff(np.loadtxt(out / "trajectory.txt")[:, 1:4], axis=0)
    np.testing.assert_allclose(steps, np.tile([0.1, 0, 0], (23, 1)), atol=1e-3)

    # other settings are another result, and what is left of this one goes
    assert run(video, out, *more[:2], "--formats=tum", weights=fake_dir) == 2
    assert "exist already" in capsys.readouterr().err
    monkeypatch.setattr(Reconstructor, "__call__", whole)
    assert run(video, out, "--formats=npz", "--overwrite", weights=fake_dir) == 0
    assert sorted(path.name for path in out.iterdir()) == ["predictions.npz", "report.json"]


def test_a_video_no_longer_than_a_chunk_has_one_pass(fake_dir, tmp_path, capsys):
    video, out = record(tmp_path / "gray.avi", frames=6), tmp_path / "out"
    more = ["--video.stride=1", "--video.chunk=6", "--formats=npz"]
    assert run(video, out, *more, weights=fake_dir) == 0
    assert "6 views, one pass" in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == ["predictions.npz", "report.json"]


def test_numbered_photos_are_a_video_and_others_are_refused(fake_dir, tmp_path, capsys):
    rng = np.random.default_rng(0)
    for folder, names in (("numbered", [f"im{n}" for n in range(8)]), ("any", list("abcdefgh"))):
        (tmp_path / folder).mkdir()
        for name in names:
            pixels = rng.integers(0, 256, (42, 56, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / folder / f"{name}.png")
    more = ["--video.chunk=4", "--formats=npz,colmap", "--quiet"]
    assert run(tmp_path / "any", tmp_path / "no", *more, weights=fake_dir) == 2
    error = capsys.readouterr().err
    assert "tell no order; number them" in error and error.count("\n") == 1
    assert run(tmp_path / "numbered", tmp_path / "yes", *more, weights=fake_dir) == 0
    images = sorted((tmp_path / "yes" / "colmap" / "images").iterdir())
    assert [path.name for path in images] == [f"im{n}.png" for n in range(8)]
    source = tmp_path / "numbered" / "im3.png"
    assert images[3].read_bytes() == source.read_bytes()


def test_photos_of_several_sizes_are_refused_by_name(fake_dir, tmp_path, capsys):
    for number in range(8):
        size = (56, 42) if number < 6 else (56, 84)
        Image.new("RGB", size, (9 * number, 90, 90)).save(tmp_path / f"im{number}.png")
    more = ["--video.chunk=4", "--video.overlap=1", "--formats=npz", "--quiet"]
    assert run(tmp_path, tmp_path / "out", *more, weights=fake_dir) == 2
    error = capsys.readouterr().err
    assert "im6.png: its chunk has images of 56x56 pixels, the one before of 56x42" in error


@pytest.mark.parametrize(
    "more,error",
    [
        (["--video.chunk=4", "--video.overlap=4"], r"video\.overlap=4: .* overlap below it"),
        (["--video.chunk=1"], r"video\.chunk=1"),
        (["--video.overlap=2"], r"set video\.chunk as well"),
        (["--video.chunk=4", "--formats=npz,depth_png"], "depth_png cannot be written"),
        (["--video.chunk=4", "--cameras=known.npz"], r"cameras\.known=known\.npz: is not for"),
        (
            ["--video.chunk=4", "--refine", "--refine.camera=SIMPLE_RADIAL"],
            r"refine\.camera=SIMPLE_RADIAL: is not for a video in chunks",
        ),
        (["--video.chunk=4", "--mask-folder=masks"], "mask_folder: is not for"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(tmp_path, capsys, more, error):
    video = tmp_path / "v.avi"
    video.write_bytes(b"")
    assert run(video, tmp_path / "out", *more) == 2
    said = capsys.readouterr().err
    assert re.search(error, said) and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_where_there_are_no_chunks_they_are_refused(fake_model, tmp_path, capsys):
    chunks = VideoOptions(chunk=4)
    with pytest.raises(InputError, match="use reconstruct_files"):
        reconstruct(fake_model(), str(tmp_path / "v.avi"), video=chunks)
    assert main(["view", str(tmp_path), "--video.chunk=4"]) == 2
    assert "video.chunk=4: is for lite3r reconstruct" in capsys.readouterr().err
