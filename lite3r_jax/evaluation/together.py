"""Predictions that several processes compute together; process 0 has images and results."""

from collections.abc import Callable, Sequence

import jax
import numpy as np

from lite3r_jax.evaluation.evaluator import Predict
from lite3r_jax.evaluation.predictor import Output
from lite3r_jax.processes import from_first, is_first

_END = -1  # in the place of the number of a model


def shared(number: int, predict: Predict) -> Predict:
    """Wraps a predictor of process 0 so that the other processes take part in every call.

    Args:
        number: of the model in the sequence that `take_part` gets.
        predict: images [N, S, H, W, 3] to outputs.
    """
    if jax.process_count() == 1:
        return predict

    def call(images: np.ndarray) -> Sequence[Output]:
        _tell(number, images.shape)
        return predict(_sent(images))

    return call


def finish() -> None:
    """Let the other processes know that there is nothing more to predict."""
    if jax.process_count() > 1:
        _tell(_END, (0,) * 5)


def take_part(models: Sequence[Callable[[], Predict]]) -> None:
    """Computes what process 0 predicts, until it calls `finish`; all other processes call this.

    They need no data: images come from process 0.

    Args:
        models: functions that make the predictors, in the order of their numbers; one predictor is
            kept at a time.
    """
    assert not is_first()
    made: dict[int, Predict] = {}
    while (said := _tell(_END, (0,) * 5))[0] != _END:
        if said[0] not in made:
            made.clear()
            made[said[0]] = models[said[0]]()
        made[said[0]](_sent(np.zeros(said[1:], np.float32)))


def _tell(number: int, shape: Sequence[int]) -> list[int]:
    """Broadcasts what process 0 says is next: the number of a model, and its images' shape."""
    return from_first(np.array([number, *shape], np.int32)).tolist()


def _sent(images: np.ndarray) -> np.ndarray:
    """Broadcasts the images of process 0, view by view, since a device holds what is sent."""
    for scene in images:
        for view in scene:
            view[...] = from_first(view)
    return images
