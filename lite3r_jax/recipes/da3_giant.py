"""Depth Anything 3, size Giant: 1.32 B parameters without the Gaussian head (arXiv 2511.10647).

Photos or a video to cameras, depth, points and files that other programs open:

    python -m lite3r_jax.main --config=configs/da3_giant.py --mode=reconstruct \
        --config.input=PHOTOS_OR_VIDEO --config.weights=WEIGHTS --config.output=OUT

WEIGHTS is a directory made by `lite3r convert da3`, or
depth-anything/DA3-GIANT-1.1, which is downloaded and converted once (license:
CC-BY-NC-4.0, non-commercial).

Known cameras go in with --config.cameras.known=FOLDER_OR_FILE (a COLMAP model, a transforms.json or
an NPZ); the results are then in their world and unit.

Hardware and time: see docs/benchmarks.md; on a GPU not yet measured. Expected quality with the
published weights: not yet measured.
"""

from ml_collections import ConfigDict

from lite3r_jax.experiment import Experiment, to_config


def get_config() -> ConfigDict:
    """Returns the settings of this recipe, to be changed by --config.NAME=VALUE."""
    return to_config(Experiment(backbone="da3"))
