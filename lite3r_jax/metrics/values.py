"""Types of metrics, whose values are numbers or reasons why they are not available.

A number never stands in for a metric that is not available.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from lite3r_jax.errors import InputError


@dataclass(frozen=True)
class NotAvailable:
    """A metric that a sample does not define.

    Attributes:
        reason: why, in a few words.
    """

    reason: str


Value = float | NotAvailable
Metrics = dict[str, Value]
"""Metrics of one sample: name -> value."""


def unavailable(names: Iterable[str], reason: str) -> Metrics:
    """Returns metrics of all these names that are not available for one reason."""
    return dict.fromkeys(names, NotAvailable(reason))


def prefixed(prefix: str, metrics: Mapping[str, Value]) -> Metrics:
    """Returns the same metrics with `prefix` in front of their names."""
    return {f"{prefix}{name}": value for name, value in metrics.items()}


def float64(array: ArrayLike, name: str, shape: tuple[int | None, ...]) -> np.ndarray:
    """Returns the array in float64, after a check of its shape; None in `shape` is any length.

    Raises:
        ValueError: another shape.
    """
    values = np.asarray(array, np.float64)
    if values.ndim != len(shape) or any(
        want is not None and want != got for want, got in zip(shape, values.shape, strict=True)
    ):
        wanted = ", ".join("any" if length is None else str(length) for length in shape)
        raise ValueError(f"{name}: expected shape [{wanted}], got {list(values.shape)}")
    return values


def require_finite(values: np.ndarray, name: str) -> None:
    """Raises an error if a prediction has values that are not finite.

    Raises:
        InputError: some are not; the message says how many.
    """
    bad = int(values.size - np.isfinite(values).sum())
    if bad:
        raise InputError(
            f"{name}: {bad} of {values.size} predicted values are not finite; check the weights and"
            " the dtype"
        )
