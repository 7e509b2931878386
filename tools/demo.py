"""Two real photographs through conversion and model.

    make demo, or: python -m tools.demo [--out DIR]

The weights are random numbers under the names of the published checkpoint, in a small model of the
same architecture, until a trained small teacher exists. So this shows that every part works and
what comes out of it; it does not show a reconstruction.
"""

import argparse
import dataclasses
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import lite3r_jax
from lite3r_jax.data.images import load_images
from lite3r_jax.errors import InputError
from lite3r_jax.weights import strict_json
from tools.benchmark.random_checkpoint import write_random
from tools.convert_torch_weights import __main__ as convert_torch_weights

CONFIG = Path(__file__).with_name("demo_config.json")
NOTICE = "random weights: the depth maps are noise, not a reconstruction"
# A perceptually ordered map from near (light) to far (dark), as RGB at equal steps.
COLOURS = (
    (252, 253, 191),
    (254, 159, 109),
    (222, 73, 104),
    (140, 41, 129),
    (59, 15, 112),
    (0, 0, 4),
)


class Clock:
    """Seconds per step, in the order in which they were taken."""

    def __init__(self):
        self.rows: list[tuple[str, float]] = []
        self._last = time.perf_counter()

    def lap(self, step: str) -> None:
        """Name what happened since the last lap."""
        now = time.perf_counter()
        self.rows.append((step, now - self._last))
        self._last = now


def photographs() -> list[np.ndarray]:
    """The motorcycle of Middlebury stereo 2014, left and right view, uint8 [500, 741, 3]."""
    from skimage import data

    left, right, _ = data.stereo_motorcycle()
    return [left, right]


def coloured(depth: np.ndarray) -> np.ndarray:
    """Depth [H, W] to uint8 [H, W, 3]; the 2nd and 98th percentile are the ends of the scale."""
    near, far = np.percentile(depth, (2, 98))
    place = np.clip((depth - near) / max(far - near, 1e-12), 0, 1)
    table = np.array(COLOURS, float)
    steps = np.linspace(0, 1, len(table))
    channels = [np.interp(place, steps, table[:, c]) for c in range(3)]
    return np.rint(np.stack(channels, -1)).astype(np.uint8)


def picture(images: np.ndarray, depth: np.ndarray, path: Path) -> None:
    """Write views [S, H, W, 3] in [0, 1] above their depth maps [S, H, W], with the notice."""
    from PIL import Image, ImageDraw

    views = np.rint(images * 255).astype(np.uint8)
    rows = [np.concatenate(list(views), 1), np.concatenate([coloured(d) for d in depth], 1)]
    body = np.concatenate(rows)
    caption = 24
    sheet = Image.new("RGB", (body.shape[1], body.shape[0] + caption), "white")
    sheet.paste(Image.fromarray(body), (0, caption))
    text = f"above: input views; below: depth.  {NOTICE}"
    ImageDraw.Draw(sheet).text((8, 3), text, fill="black", font_size=15)
    sheet.save(path)


def rows_of(result: Any, prefix: str = "") -> list[tuple[str, str, str, str]]:
    """(name, shape, dtype, range) of every field of a prediction."""
    rows = []
    for field in dataclasses.fields(result):
        value, name = getattr(result, field.name), prefix + field.name
        if dataclasses.is_dataclass(value):
            rows += rows_of(value, f"{name}.")
        elif value is None:
            rows.append((name, "-", "-", "head is off"))
        else:
            array = np.asarray(value)
            shape = " x ".join(str(n) for n in array.shape)
            rows.append((name, shape, str(array.dtype), f"{array.min():.4g} .. {array.max():.4g}"))
    return rows


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text in aligned columns; the first row is the heading."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    ruled = [rows[0], ["-" * width for width in widths], *rows[1:]]
    cells = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in ruled]
    return "\n".join("  ".join(row).rstrip() for row in cells)


def demonstrate(out: Path) -> None:
    """Run everything and print what came out.

    Raises:
        InputError: the output folder cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror}); choose --out") from error
    device = jax.devices()[0]
    print(
        f"lite3r_jax {lite3r_jax.__version__}, jax {jax.__version__}, Python"
        f" {platform.python_version()}, on {device.device_kind} ({device.platform})"
    )
    print(f"NOTE  {NOTICE}\n")
    clock = Clock()
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint, weights = Path(scratch, "checkpoint.safetensors"), Path(scratch, "weights")
        write_random("vggt", checkpoint, strict_json.read_object(CONFIG))
        clock.lap("write a random checkpoint under upstream names")
        command = ["vggt", str(checkpoint), str(weights), "--config", str(CONFIG)]
        print("python -m tools.convert_torch_weights vggt CHECKPOINT WEIGHTS --config CONFIG")
        if convert_torch_weights.main([*command, "--license", "none (random numbers)"]):
            raise InputError("the conversion failed, see above")
        clock.lap("convert it")
        model = lite3r_jax.load(weights)
        clock.lap("load the model (hashes verified)")
    images = load_images(photographs())
    clock.lap("preprocess two photographs of 741 x 500")
    height, width = images.shape[1:3]
    points = np.array([[[0.5, 0.5], [0.25, 0.5], [0.5, 0.75]]], np.float32) * (width, height)
    points = points.astype(np.float32)
    for step in ("first call: compile and run", "second call: run"):
        prediction, _ = model(images[None], points)
        jax.block_until_ready(prediction)
        clock.lap(step)
    # Intrinsics may be infinite: a field of view of 0, which random weights may give, is no error.
    broken = [
        name
        for name, value in vars(prediction).items()
        if name != "intrinsics" and not all(np.isfinite(x).all() for x in jax.tree.leaves(value))
    ]
    if broken:
        raise InputError(f"the model gave numbers that are not finite: {', '.join(broken)}")
    path = out / "depth.png"
    try:
        picture(images, np.asarray(prediction.depth)[0, ..., 0], path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); choose --out") from error
    clock.lap("write the picture")

    shape = " x ".join(str(n) for n in images[None].shape)
    print(f"\nprediction, taps = model(images, query_points), images {shape}\n")
    print(table([("output", "shape", "dtype", "range"), *rows_of(prediction)]))
    if not np.isfinite(prediction.intrinsics).all():
        print("inf: these random weights gave a camera a field of view of 0")
    print()
    print(table([("step", "seconds"), *((step, f"{s:7.2f}") for step, s in clock.rows)]))
    print(f"\nwrote {path}\nNOTE  {NOTICE}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0, or 2 when something was refused."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.demo", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--out", type=Path, default=Path("demo_output"), help="folder for results")
    try:
        demonstrate(parser.parse_args(arguments).out)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
