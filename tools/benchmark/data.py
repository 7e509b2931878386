"""Count the views per second that the data pipeline delivers.

    python -m tools.benchmark.data ROOT                     # files in the layout of BlendedMVS
    python -m tools.benchmark.data ROOT --original          # and the original's recipe beside it
    python -m tools.benchmark.data --sizes 112 224 518 --renderer jax    # generated scenes

Every line is one run: batches of square views, with as many worker processes as said (0: in this
process). Workers start and fill their queues before the clock starts. All files are read once
before, so that the disk does not count. With --original the two ways take turns, read the same
frames, and must give the same pixels once (needs torch). `python -m tools.make_synthetic` writes
files to read.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from lite3r_jax.data.augment import Augmentation
from lite3r_jax.data.blendedmvs import BlendedMVS
from lite3r_jax.data.pipeline import Bucket, Part, Pipeline, PipelineOptions
from lite3r_jax.data.synthetic.source import SyntheticScenes

PREFETCH = 2  # batches of each worker, the default of both ways
COLORS = Augmentation(brightness=0.5, contrast=0.5, saturation=0.5, hue=0.1, gray=0.05)


def main() -> None:
    """Parses the command line, runs, and prints one line per measurement."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", type=Path, nargs="?", help="folder of scenes; without: generated")
    parser.add_argument("--sizes", type=int, nargs="+", default=[518], help="sides in pixels")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--batch", type=int, default=4, help="scenes of a batch")
    parser.add_argument("--views", type=int, default=2, help="views of a scene")
    parser.add_argument("--batches", type=int, default=40, help="of one run")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--colors", action="store_true", help="with augmentation of colors")
    parser.add_argument("--original", action="store_true", help="also the original's recipe")
    parser.add_argument("--renderer", choices=["numpy", "jax"], default="numpy")
    args = parser.parse_args()
    if args.original and args.root is None:
        parser.error("--original needs ROOT")

    if args.root is None:
        source = SyntheticScenes(count=100_000, frames=args.views, renderer=args.renderer)
        name = f"generated ({args.renderer})"
    else:
        source, name = BlendedMVS(args.root), "files"
        megabytes = sum(len(path.read_bytes()) for path in args.root.rglob("*.*")) / 1e6
        print(f"{args.root}: {len(source.scenes)} scenes, {megabytes:.0f} MB", flush=True)
    for size, workers in itertools.product(args.sizes, args.workers):
        pipeline = Pipeline(
            [Part(source)],
            PipelineOptions(
                (Bucket(args.batch, args.views, size, size),),
                augmentation=COLORS if args.colors else Augmentation(),
                workers=workers,
                prefetch=PREFETCH if workers else 0,
            ),
        )
        ways: dict[str, Callable[[], float]] = {
            "pipeline": lambda p=pipeline: ours(p, args.batches)
        }
        if args.original:
            ways["original"] = lambda p=pipeline: original(args.root, p, args.batches)
        rates: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(args.runs):
            for way, run in ways.items():
                rates[way].append(run() * args.batch * args.views)
        medians = {way: statistics.median(values) for way, values in rates.items()}
        line = ", ".join(
            f"{way} {median:.1f} views/s, {median / max(workers, 1):.1f} per worker"
            f" ({min(rates[way]):.1f} to {max(rates[way]):.1f})"
            for way, median in medians.items()
        )
        ratio = f", ratio {medians['pipeline'] / medians['original']:.2f}" if args.original else ""
        print(f"{name} {size}x{size}, workers {workers}: {line}{ratio}", flush=True)


def ours(pipeline: Pipeline, batches: int) -> float:
    """Measures the batches per second of this package's pipeline."""
    with iter(pipeline) as iterator:
        return timed(iterator, batches, pipeline.options.workers)


def original(root: Path, pipeline: Pipeline, batches: int) -> float:
    """Measures batches per second of the original's recipe, which reads the same frames."""
    from tools.benchmark.data_torch import loader

    workers, bucket = pipeline.options.workers, pipeline.options.buckets[0]
    count = (batches + 2 * warm_up(workers)) * bucket.batch  # workers must not run out of work
    items = []
    for index in range(count):
        draw = next(pipeline.schedule.draws(index))
        items.append((root / draw.scene, pipeline.schedule.frames(draw, bucket.views)))
    rows = loader(items, bucket.height, bucket.batch, workers, PREFETCH)
    _compare(root, items[0], bucket.height, rows)
    return timed(rows, batches, workers)


def timed(batches: Iterable[object], count: int, workers: int) -> float:
    """Measures batches per second after the first ones, which warm up the workers."""
    iterator = iter(batches)
    for _ in range(warm_up(workers)):
        next(iterator)
    start = time.perf_counter()
    for _ in range(count):
        next(iterator)
    return count / (time.perf_counter() - start)


def warm_up(workers: int) -> int:
    """Returns how many batches come before the clock starts: all that queues may hold, and one."""
    return 2 * PREFETCH * workers + 1


def _compare(root: Path, item: tuple[Path, tuple[int, ...]], size: int, rows) -> None:
    """Checks that the recipe gives what this package's reader gives with compat="lite3r"."""
    scene, frames = item
    wanted = BlendedMVS(root, compat="lite3r").read(scene.name, frames, (size, size))
    got = rows.dataset[0]
    assert wanted.mask is not None
    if not (
        np.array_equal(got["images"].numpy().transpose(0, 2, 3, 1), wanted.images)
        and np.array_equal(got["masks"].numpy(), wanted.mask)
    ):
        raise SystemExit("error: the original's recipe gives other pixels than compat=lite3r")


if __name__ == "__main__":
    main()
