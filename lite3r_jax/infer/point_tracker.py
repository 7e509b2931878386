"""Tracks points by the track head of a model, in the form that refinement expects."""

from collections.abc import Collection, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lite3r_jax.errors import InputError
from lite3r_jax.refine import RefineOptions

TRACK = "track"
_COUNTS = 128  # numbers of points are multiples of it, so that little is compiled


def check_track_head(options: RefineOptions, heads: Collection[str]) -> None:
    """Raises an error if matches are to come from a track head that the model lacks.

    Args:
        options: of the refinement.
        heads: that the weights, or the model, have.

    Raises:
        InputError: saying what to choose.
    """
    if options.matches == "track" and TRACK not in heads:
        raise InputError(
            f"refine.matches=track: needs a track head, this model has {', '.join(sorted(heads))};"
            " choose klt or sift, or weights with one, such as facebook/VGGT-1B"
        )


class ModelTracker:
    """Tracks points by a pass of the model over the views in which they may be seen."""

    def __init__(self, model: Any):
        """Takes a model with a track head; programs compiled for a shape are kept."""
        graph, self._state = nnx.split(model)
        (name,) = next(each.arrays for each in model.inputs.values() if each.head == TRACK)

        def follow(state: Any, images: jax.Array, points: jax.Array) -> Any:
            prediction, _ = nnx.merge(graph, state)(images[None], **{name: points[None]})
            tracks = prediction.tracks
            return tracks.coords[0], tracks.visibility[0], tracks.confidence[0]

        self._follow = jax.jit(follow)

    def of(self, images: np.ndarray) -> Any:
        """Returns a `refine.matching.Tracker` for a scene with these images, uint8 [S, H, W, 3]."""
        return partial(self._tracks, images)

    def _tracks(
        self, images: np.ndarray, views: Sequence[int], points: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        count = len(points)
        filled = np.resize(points, (-(-count // _COUNTS) * _COUNTS, 2))  # the first ones again
        some = images[list(views)].astype(np.float32) / np.float32(255)
        followed = self._follow(self._state, jnp.asarray(some), jnp.asarray(filled, jnp.float32))
        places, visible, sure = map(np.asarray, followed)
        return places[:, :count], visible[:, :count], sure[:, :count]
