"""A model as a function from images to predictions on the host, over the local devices."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lite3r_jax.errors import InputError
from lite3r_jax.mesh import check_split_weights, check_views, fetch_views, put_views, put_weights


@dataclass(frozen=True, eq=False)
class Output:
    """A model's prediction for one scene: depth and cameras.

    Attributes:
        depth: float32 [S, H, W], z in the camera frame; None without depth head.
        extrinsics: float32 [S, 3, 4] world-to-camera; None without camera head.
        intrinsics: float32 [S, 3, 3] in pixels; None without camera head.
    """

    depth: np.ndarray | None = None
    extrinsics: np.ndarray | None = None
    intrinsics: np.ndarray | None = None


class Predictor:
    """Runs a model on batches; compiles once for each number of views and size of images.

    The scenes of a batch are split over all local devices, or the views of one scene after the
    other over those of a mesh; parameters are copied to each, or split over a mesh, too.
    """

    def __init__(
        self,
        model: nnx.Module,
        *,
        batch: int = 1,
        frame_chunk: int = 8,
        mesh: Mesh | None = None,
        on_host: bool = False,
        split_weights: bool = False,
    ):
        """Copy the parameters to the devices.

        Args:
            model: a backbone, `model(images, frame_chunk=...) -> (Prediction, taps)`.
            batch: scenes that a device handles at a time.
            frame_chunk: frames that the dense heads handle at a time.
            mesh: of `mesh.make_view_mesh`, over which views are split; None for scenes.
            on_host: whether tokens that dense heads read later rest on the host.
            split_weights: whether each device of the mesh has a part of the parameters only, see
                `BackboneModel.__call__`.

        Raises:
            InputError: a batch below 1, or parameters in parts without a mesh; at the first call, a
                model whose tokens cannot rest on the host.
        """
        if batch < 1:
            raise InputError(f"batch: expected at least 1, got {batch}")
        check_split_weights(split_weights, mesh is not None)
        self._of_views = mesh is not None
        devices = jax.local_devices()
        self._mesh = mesh or jax.make_mesh(
            (len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices
        )
        self.batch = batch if self._of_views else batch * len(devices)
        graph, state = nnx.split(model)
        self._state = put_weights(state, self._mesh, split_weights)
        weights = {"split_weights": True} if split_weights else {}

        @partial(jax.jit, static_argnums=2)
        def forward(state: Any, images: jax.Array, views: int | None) -> tuple[Any, Any, Any]:
            more: dict[str, Any] = {} if views is None else {"views": views} | weights
            more |= {"on_host": True} if on_host else {}
            prediction = nnx.merge(graph, state)(images, frame_chunk=frame_chunk, **more)[0]
            return prediction.depth, prediction.extrinsics, prediction.intrinsics

        self._forward = forward

    def __call__(self, images: np.ndarray) -> list[Output]:
        """Predicts up to `batch` scenes.

        Args:
            images: float32 [N, S, H, W, 3] in [0, 1]; N of at most `batch`.

        Returns:
            N outputs.
        """
        if self._of_views:
            return [self._in_parts(scene) for scene in images]
        count = len(images)
        padded = np.repeat(images[:1], self.batch, 0)
        padded[:count] = images
        with jax.set_mesh(self._mesh):
            placed = jax.device_put(padded, NamedSharding(self._mesh, PartitionSpec("data")))
            arrays = jax.device_get(self._forward(self._state, placed, None))
        return [_output([None if x is None else x[n] for x in arrays]) for n in range(count)]

    def _in_parts(self, images: np.ndarray) -> Output:
        """Predicts one scene [S, H, W, 3], whose views are split over the devices of the mesh."""
        views = len(images)
        placed = put_views(images[None], self._mesh, check_views(self._mesh, views))
        with jax.set_mesh(self._mesh):
            arrays = fetch_views(self._forward(self._state, placed, views), views)
        return _output([None if x is None else x[0] for x in arrays])


def _output(arrays: Sequence[np.ndarray | None]) -> Output:
    """Makes an `Output` from depth [S, H, W, 1], extrinsics and intrinsics of one scene."""
    depth, extrinsics, intrinsics = arrays
    return Output(None if depth is None else depth[..., 0], extrinsics, intrinsics)
