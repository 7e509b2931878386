"""Random number generator whose numbers for a seed are the same in all versions of NumPy.

They are the raw output of PCG64, which NumPy guarantees never to change; the methods of its
Generator have no such guarantee.
"""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


class Rng:
    """Random number generator that is seeded with one or more whole numbers."""

    def __init__(self, *seed: int):
        self._bits = np.random.PCG64(np.random.SeedSequence(list(seed)))

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """Returns a uniform random number in [low, high)."""
        return low + (high - low) * ((int(self._bits.random_raw()) >> 11) * 2.0**-53)

    def uniforms(self, *shape: int, low: float = 0.0, high: float = 1.0) -> np.ndarray:
        """Returns uniform random numbers in [low, high): float64 of this shape."""
        raw = self._bits.random_raw(int(np.prod(shape)))
        return low + (high - low) * ((raw >> np.uint64(11)) * 2.0**-53).reshape(shape)

    def log_uniform(self, low: float, high: float) -> float:
        """Returns a random number in [low, high) whose logarithm is uniform."""
        return low * (high / low) ** self.uniform()

    def below(self, count: int) -> int:
        """Returns a random whole number in [0, count)."""
        return int(self.uniform() * count)

    def between(self, low: int, high: int) -> int:
        """Returns a random whole number in [low, high]."""
        return low + self.below(high - low + 1)

    def chance(self, probability: float) -> bool:
        """Returns True with this probability."""
        return self.uniform() < probability

    def choice(self, items: Sequence[T]) -> T:
        """Returns one of the items at random."""
        return items[self.below(len(items))]

    def bits(self, count: int) -> np.ndarray:
        """Returns random 32-bit numbers: uint32 [count]."""
        return (self._bits.random_raw(count) >> np.uint64(32)).astype(np.uint32)
