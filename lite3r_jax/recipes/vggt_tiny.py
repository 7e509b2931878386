"""The small VGGT that comes with the package: photos to cameras, depth and files, no download.

    python -m lite3r_jax.main --config=configs/vggt_tiny.py --mode=reconstruct \
        --config.input=PHOTOS_OR_VIDEO --config.output=OUT

Hardware and time: seconds on a CPU. Expected result: docs/results.md. It has seen nothing but the
generated world at 112 x 112 pixels: a model to try things with, not one for real photos.
"""

from ml_collections import ConfigDict

from lite3r_jax.experiment import Experiment, to_config


def get_config() -> ConfigDict:
    """Returns the settings of this recipe, to be changed by --config.NAME=VALUE."""
    return to_config(Experiment(backbone="vggt", weights="vggt-tiny"))
