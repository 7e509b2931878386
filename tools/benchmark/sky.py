"""Measures how well sky is found in generated scenes, or draws what is taken for sky in photos.

    python -m tools.benchmark.sky [--scenes 24] [--views 4] [--size 280x518]
    python -m tools.benchmark.sky --photos FOLDER --out FOLDER

Precision: what part of the pixels that were taken for sky is sky; recall: what part of the sky was
taken for sky. Pixels of all views count alike. The thresholds of `lite3r_jax.exports.sky` were
chosen with the scenes 0 to 7 of every split; these are 100 and on.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lite3r_jax.data.images import fit_image
from lite3r_jax.data.photos import find_scenes
from lite3r_jax.data.synthetic.source import SyntheticScenes
from lite3r_jax.exports.sky import sky

FIRST = 100
SPLITS = "sky,test,new_textures,wide_baseline,low_texture,repetitive,floating"


def measure(split: str, scenes: int, views: int, size: tuple[int, int]) -> str:
    """Measures how well the sky of a split is found; returns its row of the table."""
    source = SyntheticScenes(split, count=scenes, frames=8, first=FIRST)  # pyright: ignore[reportArgumentType]
    both = taken = true = pixels = wrong = 0
    seconds = 0.0
    for scene in source.scenes:
        sample = source.read(scene, range(views), size)
        assert sample.depth is not None
        for image, depth in zip(sample.images, sample.depth, strict=True):
            start = time.process_time()
            mask = sky(np.rint(image * 255).astype(np.uint8))
            seconds += time.process_time() - start
            truth = depth <= 0
            both += (mask & truth).sum()
            taken, true = taken + mask.sum(), true + truth.sum()
            pixels += mask.size
            wrong += (mask & ~truth).sum()
    exact = [f"{both / taken:.4f}", f"{both / true:.4f}"] if taken and true else ["", ""]
    time_each = 1000 * seconds / (scenes * views)
    cells = [split, f"{scenes * views}", *exact, f"{100 * wrong / pixels:.2f}%", f"{time_each:.0f}"]
    return f"| {' | '.join(cells)} |"


def draw(photos: str, out: Path) -> None:
    """Writes every photo at network size, with what is taken for sky in red."""
    from PIL import Image

    out.mkdir(parents=True, exist_ok=True)
    for scene in find_scenes(photos):
        for photo in scene.photos:
            image = fit_image(photo.read(), "crop", 518, photo.label).pixels
            mask = sky(image)
            red = np.array([255, 0, 0])
            shown = np.where(mask[..., None], 0.4 * image + 0.6 * red, image).astype(np.uint8)
            path = out / f"{scene.name}-{photo.name.replace('/', '-')}.jpg"
            Image.fromarray(shown).save(path, quality=85)
            print(f"{path}: {100 * mask.mean():.1f} % of the pixels")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures generated scenes and prints a table, or draws the sky of photos."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.benchmark.sky", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--scenes", type=int, default=24)
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--size", default="280x518", help="HEIGHTxWIDTH")
    parser.add_argument("--splits", default=SPLITS)
    parser.add_argument("--photos", help="draw instead: as the input of `lite3r reconstruct`")
    parser.add_argument("--out", type=Path, default=Path("sky_output"), help="with --photos")
    args = parser.parse_args(arguments)
    if args.photos:
        draw(args.photos, args.out)
        return 0
    height, width = map(int, args.size.split("x"))
    print("| split | views | precision | recall | wrongly taken for sky | ms a view |")
    print("|---|---|---|---|---|---|")
    for split in args.splits.split(","):
        print(measure(split, args.scenes, args.views, (height, width)), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
