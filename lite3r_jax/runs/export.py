"""`--mode=export`: writes a reconstructed scene to files of other formats."""

from pathlib import Path

from lite3r_jax import exports
from lite3r_jax.errors import printable
from lite3r_jax.experiment import Experiment, refuse_devices, refuse_model_settings, require
from lite3r_jax.folder_lock import locked
from lite3r_jax.runs.view import read_scene


def run(experiment: Experiment) -> int:
    """Writes a scene that was reconstructed before to the files of `formats`; needs no model.

    Args:
        experiment: `input` is predictions.npz or a folder of results with one in it; `output`,
            `formats`, `export` and `overwrite` count.

    Returns:
        Exit code 0.

    Raises:
        InputError: there is no scene in `input`; `output` has results already, cannot be written or
            is being written by another process; or a setting is one of a model.
    """
    require(experiment, "input", "output")
    refuse_model_settings(experiment)
    done = "leave it out, as the scene was computed before"
    refuse_devices(experiment, "exports", mesh=done, rest=done, weights=done, processes=done)
    formats = exports.parse_formats(experiment.formats)
    with locked(Path(experiment.output), "export"):
        written = exports.write(
            read_scene(Path(experiment.input)),
            experiment.output,
            formats,
            experiment.export,
            overwrite=experiment.overwrite,
        )
    for name, path in written.items():
        print(f"{name}  {printable(path)}")
    return 0
