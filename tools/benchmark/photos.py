"""Times loading and preprocessing of photos against the original script's way, a Pillow loop.

    python -m tools.benchmark.photos FOLDER --photos 100 --runs 3

FOLDER is for scratch files: JPEG photos of 4000x3000 pixels (quality 92) are made there, a few
different ones under many names, and stay for the next time. All files are read once before timing,
so that the disk does not count. The two ways take turns; the first line of each is its first run.
"""

import argparse
import resource
import statistics
import time
from pathlib import Path

import numpy as np
from PIL import Image

from lite3r_jax.data.photos import find_scenes, load_photos

WIDTH, HEIGHT = 4000, 3000
DIFFERENT = 4


def main() -> None:
    """Parses the command line, runs, and prints one line per measurement."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--photos", type=int, default=100)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--workers", type=int, help="threads; default: one for each core, up to 8")
    args = parser.parse_args()

    paths = make_photos(args.folder, args.photos)
    megabytes = sum(len(path.read_bytes()) for path in paths) / 1e6  # warms the page cache
    print(f"{len(paths)} photos, {WIDTH}x{HEIGHT}, {megabytes:.0f} MB", flush=True)
    seconds = {"loop": [], "load_photos": []}
    for run in range(args.runs):
        results = {}
        for method, times in seconds.items():
            wall, cpu = time.perf_counter(), time.process_time()
            if method == "loop":
                results[method] = pillow_loop(paths)
            else:
                (scene,) = find_scenes(paths)
                results[method] = load_photos(scene.photos, workers=args.workers)[0]
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            times.append(wall)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            print(
                f"run {run}: {method} {wall:.2f} s wall, {cpu:.2f} s CPU, peak RSS {peak:.2f} GiB",
                flush=True,
            )
        if not np.array_equal(np.moveaxis(results["loop"], 1, -1), results["load_photos"]):
            raise SystemExit("error: the two results differ")
    loop, ours = (statistics.median(times) for times in seconds.values())
    print(f"median: loop {loop:.2f} s, load_photos {ours:.2f} s, ratio {loop / ours:.2f}")
    print("the arrays are equal")


def pillow_loop(paths: list[Path]) -> np.ndarray:
    """Loads photos one by one in mode crop of load_and_preprocess_images (vggt/utils/load_fn.py).

    Returns:
        float32 [S, 3, H, W] in [0, 1].
    """
    images = []
    for path in paths:
        image = Image.open(path).convert("RGB")
        width, height = 518, round(image.height * (518 / image.width) / 14) * 14
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        array = np.asarray(image).transpose(2, 0, 1).astype(np.float32) / np.float32(255)
        top = max(0, (height - 518) // 2)
        images.append(array[:, top : top + 518])
    return np.stack(images)


def make_photos(folder: Path, count: int) -> list[Path]:
    """Makes photos with the spectrum of natural ones, amplitude ~ 1 / frequency, and some noise."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"photo{i:04d}.jpg" for i in range(count)]
    for k in range(min(DIFFERENT, count)):
        wanted = [path for path in paths[k::DIFFERENT] if not path.exists()]
        if not wanted:
            continue
        rng = np.random.default_rng(k)
        pixels = np.full((HEIGHT, WIDTH, 3), 128, np.float32)
        for octave in range(2, 11):
            cells = rng.standard_normal((3 * 2**octave // 4, 2**octave, 3)).astype(np.float32)
            cells = 0.4 * cells + 0.6 * cells[..., :1]  # mostly brightness
            for channel in range(3):
                layer = Image.fromarray(cells[..., channel])
                layer = layer.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
                pixels[..., channel] += 120 * 2**-octave * 2 * np.asarray(layer)
        pixels += rng.standard_normal(pixels.shape, dtype=np.float32) * 7
        photo = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
        photo.save(wanted[0], "JPEG", quality=92)
        data = wanted[0].read_bytes()
        for path in wanted[1:]:
            path.write_bytes(data)
    return paths


if __name__ == "__main__":
    main()
