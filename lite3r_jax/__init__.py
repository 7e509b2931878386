"""Feed-forward 3D reconstruction in JAX: VGGT, Depth Anything 3 and cheaper students of them.

`load` gives a model with published or trained weights, with sparse attention, a distilled student
or float8 weights where asked for; `reconstruct(model, photos)` a scene on the host; `export(scene,
folder, formats)` files that other programs open. `train`, `distill`, `evaluate` and `bench` take
the settings of a `recipe`. `model(images)` gives `(Prediction, taps)`. Names are imported when they
are first used, which needs only jax, flax, numpy, ml_dtypes and safetensors.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
    from lite3r_jax.infer.options import ComputeOptions, ImageOptions
    from lite3r_jax.refine import RefineOptions
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
    "RefineOptions",
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

_MODULES = {
    "CameraOptions": "infer.cameras",
    "ComputeOptions": "infer.options",
    "ExportOptions": "exports",
    "ImageOptions": "infer.options",
    "InputError": "errors",
    "PointOptions": "exports",
    "Prediction": "backbones.base",
    "RefineOptions": "refine",
    "Scene": "scene",
    "Tracks": "backbones.base",
    "VideoOptions": "data.video",
}
"""Modules that hold the public names which are not in `lite3r_jax.api`."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES.get(name, 'api')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
