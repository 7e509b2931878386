"""Feed-forward 3D reconstruction in JAX: VGGT, Depth Anything 3 and cheaper students of them.

`load` gives a model with published or trained weights, with sparse attention, a distilled student
or float8 weights where asked for; `reconstruct(model, photos)` a scene on the host; `export(scene,
folder, formats)` files that other programs open. `train`, `distill`, `evaluate` and `bench` take
the settings of a `recipe`. `model(images)` gives `(Prediction, taps)`. Importing this package needs
only jax, flax, numpy, ml_dtypes and safetensors.
"""

from lite3r_jax.api import (
    Benchmark,
    Evaluation,
    Experiment,
    ModelSpec,
    Probing,
    Reconstructions,
    Reconstructor,
    Training,
    bench,
    check_data,
    distill,
    evaluate,
    export,
    export_deployment,
    load,
    probe,
    recipe,
    reconstruct,
    reconstruct_files,
    train,
)
from lite3r_jax.backbones.base import Prediction, Tracks
from lite3r_jax.data.video import VideoOptions
from lite3r_jax.errors import InputError
from lite3r_jax.exports import ExportOptions, PointOptions
from lite3r_jax.infer.cameras import CameraOptions
from lite3r_jax.infer.reconstruct import ComputeOptions, ImageOptions
from lite3r_jax.scene import Scene

__version__ = "0.1.0"

__all__ = [
    "Benchmark",
    "CameraOptions",
    "ComputeOptions",
    "Evaluation",
    "Experiment",
    "ExportOptions",
    "ImageOptions",
    "InputError",
    "ModelSpec",
    "PointOptions",
    "Prediction",
    "Probing",
    "Reconstructions",
    "Reconstructor",
    "Scene",
    "Tracks",
    "Training",
    "VideoOptions",
    "__version__",
    "bench",
    "check_data",
    "distill",
    "evaluate",
    "export",
    "export_deployment",
    "load",
    "probe",
    "recipe",
    "reconstruct",
    "reconstruct_files",
    "train",
]
