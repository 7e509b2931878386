"""Feed-forward 3D reconstruction in JAX: VGGT today, efficient attention and FP8 on top of it next.

`load` gives a model from converted weights; `model(images)` gives `(Prediction, taps)`. Importing
this package needs only jax, flax, numpy, ml_dtypes and safetensors.
"""

from lite3r_jax.backbones.base import Prediction, Tracks
from lite3r_jax.errors import InputError
from lite3r_jax.weights.load import load

__version__ = "0.1.0"

__all__ = ["InputError", "Prediction", "Tracks", "__version__", "load"]
