"""A metric is a number, or not available for a reason; it is never a stand-in."""

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
"""Name -> value of one sample."""


def unavailable(names: Iterable[str], reason: str) -> Metrics:
    """All of these names, for one reason."""
    return dict.fromkeys(names, NotAvailable(reason))


def prefixed(prefix: str, metrics: Mapping[str, Value]) -> Metrics:
    """The same values under longer names."""
    return {f"{prefix}{name}": value for name, value in metrics.items()}


def float64(array: ArrayLike, name: str, shape: tuple[int | None, ...]) -> np.ndarray:
    """The array in float64, after its shape was checked; None in `shape` is any length.

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
    """Refuse a prediction that is no number where it is looked at.

    Raises:
        InputError: with how many.
    """
    bad = int(values.size - np.isfinite(values).sum())
    if bad:
        raise InputError(
            f"{name}: {bad} of {values.size} predicted values are not finite; check the weights and"
            " the dtype"
        )
