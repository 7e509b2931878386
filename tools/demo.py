"""Photographs to cameras, depth, points and files, with the commands that a user has.

    make demo, or: python -m tools.demo [--out DIR]

The model is the small one that comes with the package. A generated scene that it was not trained
on is reconstructed and compared with its exact cameras and depth; then two real photographs are,
for which it was not made. Then a student with sparse attention is distilled from it and compared
with it on held-out scenes.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lite3r_jax import main as program
from lite3r_jax.data.views import Sample
from lite3r_jax.errors import InputError
from lite3r_jax.evaluation import ScoreOptions, open_protocol
from lite3r_jax.evaluation.predictor import Output
from lite3r_jax.evaluation.score import in_unit, score
from lite3r_jax.exports.npz import read_npz
from lite3r_jax.runs.train import EVALUATION

ROOT = Path(__file__).parents[1]
FORMATS = "npz,ply,glb,colmap,nerfstudio,depth_png,tum,html"
PROTOCOL, VIEWS, SIDE = "synthetic:new_textures", 4, 112
DISTILLATION: Sequence[str] = ()
"""Settings of the distillation beside those of configs/vggt.py:tiny."""
HIDDEN = 10
"""Percentage of the points that the page hides at first: nothing in a room is sky or far away."""
NOTICE = (
    "the model has seen nothing but generated scenes at 112 x 112 pixels; on photographs it shows"
    " how things work, not what VGGT-1B can do"
)


def photographs() -> dict[str, np.ndarray]:
    """Loads the two photos of the Middlebury 2014 stereo motorcycle, uint8 [500, 741, 3] each."""
    from skimage import data

    left, right, _ = data.stereo_motorcycle()
    return {"left.png": left, "right.png": right}


def generated() -> Sample:
    """Reads the first sample of a frozen list of held-out scenes, see `evaluate.protocols`."""
    protocol, source = open_protocol(PROTOCOL, views=VIEWS, size=(SIDE, SIDE), scenes=1)
    first = protocol.items[0]
    return source.read(first.scene, first.frames, (SIDE, SIDE))


def demonstrate(out: Path) -> None:
    """Reconstructs a generated room and two photos, distills a student, and prints the results.

    Raises:
        InputError: the output folder cannot be written, or a command failed.
    """
    truth = generated()
    pictures = np.rint(truth.images * 255).astype(np.uint8)
    room = {f"view{i}.png": picture for i, picture in enumerate(pictures)}
    title = f"A generated room that the model has not seen ({truth.scene})"
    reconstruct(out / "room", room, title)
    print(f"\n{compared(out / 'room' / 'scene', truth)}\n")
    reconstruct(out / "photos", photographs(), "Two photographs, small model")
    distill(out / "student")
    pages = [str(out / name / "scene" / "scene.html") for name in ("room", "photos")]
    pages.append(str(out / "student" / EVALUATION / "report.html"))
    print(f"\nNOTE  {NOTICE}\nopen in a browser: {', '.join(pages)}")


def reconstruct(folder: Path, pictures: dict[str, np.ndarray], title: str) -> None:
    """Writes pictures to `input` in a folder and reconstructs them into `scene` by the command.

    Raises:
        InputError: the folder cannot be written, or the command failed.
    """
    from PIL import Image

    photos = folder / "input"
    try:
        photos.mkdir(parents=True, exist_ok=True)
        for name, pixels in pictures.items():
            Image.fromarray(pixels).save(photos / name)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}); choose --out") from error
    settings = {
        "input": photos,
        "output": folder / "scene",
        "formats": FORMATS,
        "export.page.title": title,
        "export.points.conf_percentile": HIDDEN,
    }
    flags = [f"--config.{name}={value}" for name, value in settings.items()]
    print("\npython -m lite3r_jax.main --config=configs/vggt_tiny.py --mode=reconstruct \\")
    print("   ", shlex.join(flags), "\n")
    config = f"--config={ROOT / 'configs' / 'vggt_tiny.py'}"
    if program.main([config, *flags, "--config.overwrite"]):
        raise InputError("the reconstruction failed, see above")


def distill(folder: Path) -> None:
    """Trains a student of the small model by the command, which ends with a table of its quality.

    A training whose results are in the folder is not done again.

    Raises:
        InputError: the command failed, or the folder has the run of other settings.
    """
    flags = [f"--config.output={folder}", *DISTILLATION]
    print("\nA student of the small model, which takes a few minutes:\n")
    print("python -m lite3r_jax.main --config=configs/vggt.py:tiny --mode=train \\")
    print("   ", shlex.join(flags), "\n")
    config = f"--config={ROOT / 'configs' / 'vggt.py'}:tiny"
    if program.main([config, "--mode=train", *flags]):
        raise InputError("the distillation failed, see above")


def compared(folder: Path, truth: Sample) -> str:
    """Formats the errors of a reconstruction, by the exact cameras and depth, as a table.

    Args:
        folder: results of the reconstruction.
        truth: of the same pictures.
    """
    scene = read_npz(folder / "predictions.npz")
    output = Output(scene.depth, scene.extrinsics, scene.intrinsics)
    metrics = score(truth, in_unit(truth), output, ScoreOptions(points=False))
    rows = {
        "abs_rel": "depth: mean error / true depth, after one scale for the scene",
        "delta1": "depth: share within 25 % of the truth",
        "rotation_deg": "cameras: mean error of relative rotations, degrees",
        "direction_deg": "cameras: mean error of directions of relative translations, degrees",
        "auc_30": "cameras: AUC@30, the larger of both errors",
    }
    lines = [f"  {metrics[name]:8.3f}  {text}" for name, text in rows.items()]
    return "\n".join([f"{truth.scene}, {VIEWS} views, against the truth:", *lines])


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the demo; returns 0, or 2 when something was refused."""
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
