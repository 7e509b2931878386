"""Two real photographs to cameras, depth, points and files, with the commands that a user has.

    make demo, or: python -m tools.demo [--out DIR]

The weights are random numbers under the names of the published checkpoint, in a small model of the
same architecture, until a trained small teacher exists. So this shows that every part works and
what comes out of it; it does not show a reconstruction.
"""

import argparse
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lite3r_jax import main as program
from lite3r_jax.errors import InputError
from lite3r_jax.weights import strict_json
from tools.benchmark.random_checkpoint import write_random
from tools.convert_torch_weights import __main__ as convert_torch_weights

ROOT = Path(__file__).parents[1]
CONFIG = Path(__file__).with_name("demo_config.json")
FORMATS = "npz,ply,glb,colmap,nerfstudio,depth_png,tum,html"
NOTICE = "random weights: cameras, depth and points are noise, not a reconstruction"


def photographs() -> list[np.ndarray]:
    """The motorcycle of Middlebury stereo 2014, left and right view, uint8 [500, 741, 3]."""
    from skimage import data

    left, right, _ = data.stereo_motorcycle()
    return [left, right]


def demonstrate(out: Path) -> None:
    """Run everything.

    Raises:
        InputError: the output folder cannot be written, or a command failed.
    """
    from PIL import Image

    photos, scene = out / "photos", out / "scene"
    try:
        photos.mkdir(parents=True, exist_ok=True)
        for name, pixels in zip(("left.png", "right.png"), photographs(), strict=True):
            Image.fromarray(pixels).save(photos / name)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror}); choose --out") from error
    print(f"NOTE  {NOTICE}\n")
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint, weights = Path(scratch, "checkpoint.safetensors"), Path(scratch, "weights")
        write_random("vggt", checkpoint, strict_json.read_object(CONFIG))
        print("python -m tools.convert_torch_weights vggt CHECKPOINT WEIGHTS --config CONFIG")
        command = ["vggt", str(checkpoint), str(weights), "--config", str(CONFIG)]
        if convert_torch_weights.main([*command, "--license", "none (random numbers)"]):
            raise InputError("the conversion failed, see above")
        settings = {
            "input": photos,
            "weights": weights,
            "output": scene,
            "formats": FORMATS,
            "export.page.title": "Demo: random weights, no reconstruction",
        }
        flags = [f"--config.{name}={value}" for name, value in settings.items()]
        print("\npython -m lite3r_jax.main --config=configs/vggt.py --mode=reconstruct \\")
        print("   ", shlex.join(flags).replace(str(weights), "WEIGHTS"), "\n")
        config = f"--config={ROOT / 'configs' / 'vggt.py'}"
        if program.main([config, *flags, "--config.overwrite"]):
            raise InputError("the reconstruction failed, see above")
    print(f"\nopen {scene / 'scene.html'} in a browser\nNOTE  {NOTICE}")


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
