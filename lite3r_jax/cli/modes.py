"""The modes that can run with the settings of an experiment, by name."""

from collections.abc import Callable

from lite3r_jax.experiment import Experiment
from lite3r_jax.runs import bench, evaluate, export, probe, reconstruct, serve, train, view

MODES: dict[str, Callable[[Experiment], int]] = {
    "bench": bench.run,
    "eval": evaluate.run,
    "export": export.run,
    "probe": probe.run,
    "reconstruct": reconstruct.run,
    "serve": serve.run,
    "train": train.run,
    "view": view.run,
}
"""Maps a mode to the function that runs it and returns the exit code."""
