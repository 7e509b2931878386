"""Estimates how long a forward pass will take, from its operations and a measured speed."""

import time
from typing import Any

import jax
import jax.numpy as jnp

_RUNS = 3  # of the product that is timed


class ExpectedTime:
    """Estimates the duration of forward passes from the speed of the passes before them.

    The first pass is expected to reach the speed of a matrix product of the same dtype, which is
    timed; what it then takes says how long the next one will, by its number of operations.
    """

    def __init__(self, model: Any):
        """Starts without any measured pass of `model`, a backbone."""
        self._model = model
        self._rate: float | None = None  # operations in a second

    def operations(self, views: int, height: int, width: int) -> int:
        """Counts operations of a pass on S = views images [H, W] (`BackboneModel.operations`)."""
        patch = self._model.patch_size
        parts = self._model.operations(views, (height // patch, width // patch))
        return sum(sum(kinds.values()) for kinds in parts.values())

    def seconds(self, views: int, height: int, width: int) -> float:
        """Estimates the seconds of a forward pass; arguments are those of `operations`."""
        if self._rate is None:
            self._rate = _product_rate(self._model.dtype)
        return self.operations(views, height, width) / self._rate

    def took(self, seconds: float, views: int, height: int, width: int) -> None:
        """Records the seconds that a pass took; other arguments are those of `operations`."""
        self._rate = self.operations(views, height, width) / max(seconds, 1e-6)


def _product_rate(dtype: Any) -> float:
    """Measures the operations per second of a matrix product on the default device."""
    side = 512 if jax.default_backend() == "cpu" else 4096  # a small one does not fill a GPU
    product = jax.jit(jnp.matmul)
    a = jnp.ones((side, side), dtype)
    jax.block_until_ready(product(a, a))  # compiles
    start = time.perf_counter()
    for _ in range(_RUNS):
        jax.block_until_ready(product(a, a))
    return _RUNS * 2 * side**3 / (time.perf_counter() - start)
