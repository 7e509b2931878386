"""`--mode=view`: shows a scene in the browser, from results or from photos."""

import contextlib
import os
import shlex
from pathlib import Path

from lite3r_jax import exports, viewer
from lite3r_jax.errors import InputError, printable
from lite3r_jax.experiment import Experiment, refuse_devices, refuse_model_settings, require
from lite3r_jax.exports.npz import read_npz
from lite3r_jax.infer.reconstruct import Reconstructor
from lite3r_jax.long_video.store import CHUNKS
from lite3r_jax.progress import Progress
from lite3r_jax.runs.long_video import refuse_chunks
from lite3r_jax.runs.reconstruct import (
    build,
    check,
    find,
    known_cameras,
    open_scene,
    refinement_of,
)
from lite3r_jax.scene import Scene


def run(experiment: Experiment) -> int:
    """Shows a scene in the browser until interrupted.

    Args:
        experiment: `input` is predictions.npz, a folder of results with one in it, a folder of
            such folders, which are listed, or photos; for photos `weights` has to be set, and
            nothing is written.

    Returns:
        Exit code 0.

    Raises:
        InputError: there is nothing to show, or viser is not installed.
    """
    require(experiment, "input")
    if results := batch(Path(experiment.input)):
        where = printable(experiment.input)
        print(f"{where}: results of {len(results)} scenes; show one of them:")
        for folder in results:
            print(printable(f"  lite3r view {shlex.quote(str(folder))}"))
        return 0
    scene = _scene(experiment)
    handle = viewer.serve(
        scene, host=experiment.host, port=experiment.port, options=experiment.view
    )
    # an interrupt that comes before `wait` is one like those in it
    with handle, contextlib.suppress(KeyboardInterrupt):
        print(f"{handle.url}  (stop with Ctrl-C)", flush=True)
        handle.wait()
    return 0


def batch(given: Path) -> list[Path]:
    """Returns the result folders inside of a folder, of several scenes or of a video's chunks."""
    if saved_scene(given) is not None or not given.is_dir():
        return []
    folders = [folder for folder in (given, given / CHUNKS) if folder.is_dir()]
    inside = [path for folder in folders for path in folder.iterdir()]
    return sorted(path for path in inside if path.is_dir() and saved_scene(path))


def saved_scene(given: Path) -> Path | None:
    """Returns the predictions.npz that a path means, itself or in a result folder; or None."""
    (inside,) = exports.planned(given, ("npz",))
    if given.suffix.lower() == ".npz":
        return given
    return inside if os.path.isfile(inside) else None


def read_scene(given: Path) -> Scene:
    """Reads a scene that was reconstructed before.

    Raises:
        InputError: there is no such scene, or it cannot be read.
    """
    path = saved_scene(given)
    if path is None:
        raise InputError(
            f"{given}: has no predictions.npz; expected that file or a folder of results with it"
            " (a reconstruction whose formats include npz)"
        )
    return read_npz(path)


def _scene(experiment: Experiment) -> Scene:
    if saved_scene(Path(experiment.input)) is not None:
        refuse_model_settings(experiment)
        done = "leave it out, as the scene was computed before"
        refuse_devices(experiment, "the viewer", mesh=done, rest=done, weights=done, processes=done)
        return read_scene(Path(experiment.input))
    require(experiment, "weights")
    refuse_chunks(experiment, "the viewer")
    refuse_devices(
        experiment, "the viewer", processes="leave it out, or view what reconstruct wrote"
    )
    progress = Progress(not experiment.quiet)
    scenes = find(experiment)
    if len(scenes) != 1:
        names = ", ".join(scene.name for scene in scenes[:10])
        more = f" and {len(scenes) - 10} more" if len(scenes) > 10 else ""
        raise InputError(
            f"{experiment.input}: holds {len(scenes)} scenes ({names}{more}); choose one of them"
        )
    photos = open_scene(experiment, scenes[0], progress)
    known = known_cameras(experiment, scenes, {photos.name: photos})
    points = experiment.view.points.source
    model, _ = build(experiment, check(experiment, points, progress), points, progress)
    reconstructor = Reconstructor(
        model,
        images=experiment.images,
        cameras=experiment.cameras.with_points(model, points),
        known=known,
        compute=experiment.compute,
        refine=refinement_of(experiment),
    )
    return reconstructor(photos, progress, experiment.view.points)
