"""`--mode=view`: a scene in the browser, from results or from photos."""

from pathlib import Path

from lite3r_jax import export, viewer
from lite3r_jax.errors import InputError
from lite3r_jax.experiment import Experiment, require
from lite3r_jax.export.npz import read_npz
from lite3r_jax.infer.progress import Progress
from lite3r_jax.infer.reconstruct import Reconstructor
from lite3r_jax.modes.reconstruct import find, known_cameras, load_model
from lite3r_jax.scene import Scene


def run(experiment: Experiment) -> int:
    """Show a scene until interrupted.

    Args:
        experiment: `input` is predictions.npz, a folder of results with one in it, or photos; for
            photos `weights` has to be set, and nothing is written.

    Returns:
        Exit code 0.

    Raises:
        InputError: there is nothing to show, or viser is not installed.
    """
    require(experiment, "input")
    scene = _scene(experiment)
    handle = viewer.serve(
        scene, host=experiment.host, port=experiment.port, options=experiment.view
    )
    print(f"{handle.url}  (stop with Ctrl-C)", flush=True)
    handle.wait()
    return 0


def _scene(experiment: Experiment) -> Scene:
    given = Path(experiment.input)
    (saved,) = export.planned(given, ("npz",))
    if given.suffix.lower() == ".npz":
        return read_npz(given)
    if saved.is_file():
        return read_npz(saved)
    require(experiment, "weights")
    progress = Progress()
    scenes = find(experiment, progress)
    if len(scenes) != 1:
        raise InputError(
            f"{experiment.input}: holds {len(scenes)} scenes; choose one of them to view"
        )
    known = known_cameras(experiment, scenes)
    model, _ = load_model(experiment, experiment.view.points.source, progress)
    reconstructor = Reconstructor(
        model,
        images=experiment.images,
        cameras=experiment.cameras,
        known=known,
        compute=experiment.compute,
    )
    return reconstructor(scenes[0], progress)
