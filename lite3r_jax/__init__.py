"""Feed-forward 3D reconstruction in JAX: VGGT today, efficient attention and FP8 on top of it next.

`load` gives a model from converted weights and `load_deployed` one that was exported with float8
weights, `reconstruct(model, photos)` a scene on the host, and `export.write(scene, folder,
formats)` files that other programs open. `model(images)` gives `(Prediction, taps)`. Importing this
package needs only jax, flax, numpy, ml_dtypes and safetensors.
"""

from lite3r_jax import export
from lite3r_jax.backbones.base import Prediction, Tracks
from lite3r_jax.data.video import VideoOptions
from lite3r_jax.deploy.checkpoint import load_deployed
from lite3r_jax.errors import InputError
from lite3r_jax.export import ExportOptions, PointOptions
from lite3r_jax.infer.reconstruct import ComputeOptions, ImageOptions, Reconstructor, reconstruct
from lite3r_jax.scene import Scene
from lite3r_jax.weights.load import load

__version__ = "0.1.0"

__all__ = [
    "ComputeOptions",
    "ExportOptions",
    "ImageOptions",
    "InputError",
    "PointOptions",
    "Prediction",
    "Reconstructor",
    "Scene",
    "Tracks",
    "VideoOptions",
    "__version__",
    "export",
    "load",
    "load_deployed",
    "reconstruct",
]
