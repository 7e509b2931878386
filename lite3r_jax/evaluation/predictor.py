"""A model as a function from images to predictions on the host, over all local devices."""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from lite3r_jax.errors import InputError


@dataclass(frozen=True, eq=False)
class Output:
    """What a model says about one scene.

    Attributes:
        depth: float32 [S, H, W], z in the camera frame; None without depth head.
        extrinsics: float32 [S, 3, 4] world-to-camera; None without camera head.
        intrinsics: float32 [S, 3, 3] in pixels; None without camera head.
    """

    depth: np.ndarray | None = None
    extrinsics: np.ndarray | None = None
    intrinsics: np.ndarray | None = None


class Predictor:
    """Runs a model; compiles once for each number of views and size.

    The scenes of a batch are split over the devices, parameters are copied to each.
    """

    def __init__(self, model: nnx.Module, *, batch: int = 1, frame_chunk: int = 8):
        """Copy the parameters to the devices.

        Args:
            model: a backbone, `model(images, frame_chunk=...) -> (Prediction, taps)`.
            batch: scenes that a device handles at a time.
            frame_chunk: frames that the dense heads handle at a time.

        Raises:
            InputError: a batch below 1.
        """
        if batch < 1:
            raise InputError(f"batch: expected at least 1, got {batch}")
        devices = jax.local_devices()
        self._mesh = jax.make_mesh(
            (len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices
        )
        self.batch = batch * len(devices)
        graph, state = nnx.split(model)
        self._state = jax.device_put(state, NamedSharding(self._mesh, PartitionSpec()))

        @jax.jit
        def forward(state: Any, images: jax.Array) -> tuple[Any, Any, Any]:
            prediction = nnx.merge(graph, state)(images, frame_chunk=frame_chunk)[0]
            return prediction.depth, prediction.extrinsics, prediction.intrinsics

        self._forward = forward

    def __call__(self, images: np.ndarray) -> list[Output]:
        """Predict up to `batch` scenes.

        Args:
            images: float32 [N, S, H, W, 3] in [0, 1]; N of at most `batch`.

        Returns:
            N outputs.
        """
        count = len(images)
        padded = np.repeat(images[:1], self.batch, 0)
        padded[:count] = images
        with jax.set_mesh(self._mesh):
            placed = jax.device_put(padded, NamedSharding(self._mesh, PartitionSpec("data")))
            depth, extrinsics, intrinsics = jax.device_get(self._forward(self._state, placed))
        return [
            Output(
                None if depth is None else depth[n, ..., 0],
                None if extrinsics is None else extrinsics[n],
                None if intrinsics is None else intrinsics[n],
            )
            for n in range(count)
        ]
