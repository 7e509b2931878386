"""Measures long videos: accuracy and time of joining chunks, memory, error of the small model.

    python -m tools.benchmark.long_video joining --frames 10000 --chunk 100
    python -m tools.benchmark.long_video accuracy
    python -m tools.benchmark.long_video memory --frames 200,2000
    python -m tools.benchmark.long_video model

`joining` walks through corridors (`tools.benchmark.corridors`) with predictions that drift, and
says what everything but the predictions took: fits, loops, graph, and the files of the chunks.
`accuracy` is the absolute trajectory error (ATE) of such walks before and after loops are closed.
`memory` is the peak of a process that reconstructs a video file of so many frames, from decoding to
the default formats; frames go back and forth through a generated room. `model` compares chunks with
one pass of the small model on videos of generated rooms.
"""

import argparse
import contextlib
import dataclasses
import io
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from lite3r_jax.data.video import VideoOptions
from lite3r_jax.infer.memory import peak_process
from lite3r_jax.long_video.run import reconstruct_chunks
from lite3r_jax.long_video.store import Store
from lite3r_jax.progress import Progress
from tools.benchmark.corridors import DegradedTruth, Faults, Walk, WalkFrames, trajectory_error


class Timed(DegradedTruth):
    """A `DegradedTruth` that adds up the seconds that its predictions take."""

    seconds = 0.0

    def photos(self, photos):
        """Implements `Predictor.photos` as `DegradedTruth` does, and adds the time to `seconds`."""
        start = time.perf_counter()
        try:
            return super().photos(photos)
        finally:
            self.seconds += time.perf_counter() - start

    def again(self, views):
        """Implements `Predictor.again` as `DegradedTruth` does, and adds the time to `seconds`."""
        start = time.perf_counter()
        try:
            return super().again(views)
        finally:
            self.seconds += time.perf_counter() - start


def walked(walk: Walk, faults: Faults, seed: int, options: VideoOptions) -> dict[str, float]:
    """Joins the chunks of one walk; returns errors, numbers of chunks and loops, and times."""
    predictor, frames, progress = Timed(walk, faults, seed=seed), WalkFrames(walk), Progress(False)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        video = reconstruct_chunks(frames, predictor, options, Store(Path(folder)), progress)
        whole = time.perf_counter() - start
    chained = dataclasses.replace(video.joined, similarities=video.joined.chained)
    figures = {}
    for name, joined in (("before", chained), ("after", video.joined)):
        (part,) = dataclasses.replace(video, joined=joined).parts()
        error, path = trajectory_error(walk, part.cameras(frames).camera_to_world[..., 3])
        figures |= {name: error, "path": path}
    return figures | {
        "chunks": len(video.chunks),
        "loops": sum(weight > 0 for weight in video.joined.weights),
        "predictions_s": predictor.seconds,
        "joining_s": whole - predictor.seconds,
        "graph_s": progress.seconds["join"],
    }


def room_video(path: Path, frames: int, scene: int = 0, shown: int = 48) -> np.ndarray:
    """Writes a video back and forth through a room; returns the camera centers [frames, 3]."""
    import cv2

    from lite3r_jax.data.synthetic.source import SyntheticScenes

    source = SyntheticScenes("test", scene + 1, shown)
    sample = source.read(source.scenes[scene], range(shown), (168, 224))
    pictures = np.rint(sample.images * 255).astype(np.uint8)
    order = np.abs((np.arange(frames) + shown - 1) % (2 * shown - 2) - (shown - 1))
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 1.0, (224, 168))
    for number in order:
        writer.write(pictures[number][..., ::-1])
    writer.release()
    rotation = sample.extrinsics[:, :, :3].swapaxes(1, 2)
    return -(rotation @ sample.extrinsics[:, :, 3:])[order, :, 0]


def reconstruct_file(video: Path, out: Path, *more: str) -> None:
    """Reconstructs a video file with the small model, as `lite3r reconstruct` does."""
    from lite3r_jax.cli.lite3r import main as lite3r

    with contextlib.redirect_stdout(io.StringIO()):
        words = ["reconstruct", str(video), "--output", str(out), "--quiet", *more]
        if lite3r(words):
            raise SystemExit(f"error: {' '.join(words)}")


def memory(frames: int, chunk: int, points: int) -> None:
    """Reconstructs a video and prints this process's peak of memory and the merged points.

    Of each part there are at most `points` points; 0: as many as by default.
    """
    with tempfile.TemporaryDirectory() as folder:
        video, out = Path(folder) / "room.mp4", Path(folder) / "out"
        command = [sys.executable, "-m", "tools.benchmark.long_video", "video", str(video)]
        subprocess.run([*command, "--frames", str(frames)], check=True)  # whose memory is its own
        start = time.perf_counter()
        more = [f"--export.points.max_points={points}"] if points else []
        reconstruct_file(video, out, f"--video.chunk={chunk}", "--video.loops=4", *more)
        report = json.loads((out / "report.json").read_text())
        parts = len(report["video"]["parts"])
        count = sum(each.get("points", 0) for each in report["video"]["written"])
    print(
        f"{frames} frames, {len(report['video']['chunks'])} chunks of {chunk}, {parts} parts,"
        f" {count:,} points:"
        f" {peak_process() / 2**20:.0f} MiB, {time.perf_counter() - start:.0f} s",
        flush=True,
    )


def model(scenes: int, frames: int, chunk: int) -> None:
    """Prints a line for each room: trajectory error of one pass and of chunks."""
    from lite3r_jax.geometry import apply_sim3, fit_sim3

    for scene in range(scenes):
        with tempfile.TemporaryDirectory() as folder:
            video = Path(folder) / "room.mp4"
            truth = room_video(video, frames, scene, frames)
            path = np.linalg.norm(np.diff(truth, axis=0), axis=-1).sum()
            line = f"room {scene}, {frames} frames:"
            ways = {
                "one pass": [],
                f"chunks of {chunk}": [f"--video.chunk={chunk}"],
                "without loops": [f"--video.chunk={chunk}", "--video.loops=0"],
            }
            for name, more in ways.items():
                out = Path(folder) / name.replace(" ", "_")
                reconstruct_file(video, out, "--formats=tum", *more)
                centers = np.loadtxt(out / "trajectory.txt")[:, 1:4]
                if len(centers) < frames:
                    line += f" {name}: fell apart, {len(centers)} frames in the largest part;"
                    continue
                fitted = apply_sim3(fit_sim3(centers, truth, xp=np), centers, xp=np)
                error = np.sqrt(((fitted - truth) ** 2).sum(-1).mean())
                line += f" {name} {100 * error / path:.2f} % of the path;"
            print(line.rstrip(";"), flush=True)


def main() -> None:
    """Parses the command line, runs one of the measurements and prints it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = ("joining", "accuracy", "memory", "model", "video")
    parser.add_argument("kind", choices=kinds)
    parser.add_argument("path", nargs="?", type=Path, help="video: where it is written")
    parser.add_argument("--frames", default="")
    parser.add_argument("--chunk", type=int, default=0)
    parser.add_argument("--overlap", type=int, default=0)
    parser.add_argument("--scenes", type=int, default=4)
    parser.add_argument("--points", type=int, default=0, help="memory: export.points.max_points")
    args = parser.parse_args()
    counts = [int(text) for text in args.frames.split(",") if text]
    if args.kind == "video":
        room_video(args.path, counts[0])
    elif args.kind == "joining":
        options = VideoOptions(chunk=args.chunk or 100, overlap=args.overlap)
        for frames in counts or [10_000]:
            walk = Walk(frames, laps=max(1.08, frames / 1000))
            print(json.dumps({"frames": frames} | walked(walk, Faults(), 0, options)), flush=True)
    elif args.kind == "accuracy":
        options = VideoOptions(chunk=args.chunk or 30, overlap=args.overlap or 10)
        ways = {"drifts": Faults(), "random": Faults(drift=0, turn=0, scale=0.03, bend=1.5)}
        for name, faults in ways.items():
            for seed in range(5):
                metrics = walked(Walk(300), faults, seed, options)
                print(
                    f"{name}, seed {seed}: ATE {metrics['before']:.3f} before,"
                    f" {metrics['after']:.3f} after,"
                    f" {100 * metrics['after'] / metrics['path']:.3f} % of the path,"
                    f" {metrics['loops']} loops",
                    flush=True,
                )
    elif args.kind == "model":
        model(args.scenes, (counts or [24])[0], args.chunk or 8)
    elif len(counts) == 1:
        memory(counts[0], args.chunk or 16, args.points)
    else:
        for frames in counts or [200, 2000]:
            command = [sys.executable, "-m", "tools.benchmark.long_video", "memory"]
            more = ["--frames", str(frames), "--points", str(args.points)]
            subprocess.run([*command, *more], check=True)


if __name__ == "__main__":
    main()
