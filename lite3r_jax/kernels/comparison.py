"""Compares an implementation of an operator with its definition in float64, for self-checks."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# The largest error that any dtype may have, see `errors`.
CAPS = {"float32": 2e-6, "bfloat16": 1e-2, "float16": 1e-2}
Both = Callable[..., Sequence[jax.Array]]


def errors(got: Sequence[jax.Array], exact: Sequence[np.ndarray]) -> list[float]:
    """Returns each array's largest error over its largest exact value, which is at least 1."""
    relative_errors = []
    for x, y in zip(got, exact, strict=True):
        error = np.abs(np.asarray(x, np.float64) - y).max() / max(np.abs(y).max(), 1)
        relative_errors.append(float(error) if np.isfinite(error) else float("inf"))
    return relative_errors


def same_bits(first: Sequence[jax.Array], second: Sequence[jax.Array]) -> bool:
    """Returns whether two sequences of arrays are equal bit by bit."""
    pairs = zip(first, second, strict=True)
    return all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in pairs)


def wrong(
    run: Both, definition: Both, arrays: Sequence[jax.Array], results: Sequence[str]
) -> str | None:
    """Returns what is wrong with the results of an implementation, or None.

    An error may be twice that of the definition computed in the dtype of the arrays plus half the
    cap of the dtype, and at most the cap; two runs have to give the same bits.

    Args:
        run: gives the results, values and gradients, of the arrays.
        definition: gives the same results; in float64 for arrays in float64.
        arrays: of one dtype, one of `CAPS`.
        results: names of the results.
    """
    defined: Any = jax.jit(definition)
    with jax.enable_x64(True):
        exact = [np.asarray(x) for x in defined(*(x.astype(jnp.float64) for x in arrays))]
    plain = errors(defined(*arrays), exact)
    compiled = jax.jit(run).lower(*arrays).compile()
    got, again = compiled(*arrays), compiled(*arrays)
    cap = CAPS[str(arrays[0].dtype)]
    for name, error, plain_error in zip(results, errors(got, exact), plain, strict=True):
        if not error <= min(2 * plain_error + cap / 2, cap):
            return f"{name} is off by {error:.1e}, {plain_error:.1e} in plain JAX"
    return None if same_bits(got, again) else "two runs gave different bits"
