"""Self-check of the implementations of dense attention: value and gradients, in two runs."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lite3r_jax.kernels import comparison
from lite3r_jax.kernels.dense.api import OPERATOR, DenseCall
from lite3r_jax.kernels.dense.reference import reference
from lite3r_jax.kernels.registry import Check


@dataclass(frozen=True)
class Case:
    """Sizes of one self-check case of dense attention.

    Attributes:
        name: says what is special about it.
        q_tokens: Tq.
        k_tokens: Tk.
        batch: B.
        heads: N.
        head_dim: D.
    """

    name: str
    q_tokens: int
    k_tokens: int
    batch: int = 1
    heads: int = 2
    head_dim: int = 64


CASES = (
    Case("short last blocks", 700, 1_100, 2),
    Case("one block", 90, 130),
    Case("whole blocks", 512, 1_024),
    Case("one token", 1, 1),
    Case("head dim 128", 600, 520, head_dim=128),
    Case("a view", 1_374, 1_374, heads=4),
    Case("long", 5_000, 5_000),
)
# For a model that waits, of every kind of call.
QUICK = CASES[0], CASES[4]
RESULTS = ("o", "dq", "dk", "dv")


def checks(name: str) -> Iterator[Check[DenseCall]]:
    """Yields all cases in all dtypes, for an implementation's name in `api.OPERATOR`."""
    for case in CASES:
        for dtype in comparison.CAPS:
            call = DenseCall(case.head_dim, dtype)
            check = functools.partial(wrong, OPERATOR[name].run, case, dtype)
            yield Check(f"{case.name}, {dtype}", call, check, case in QUICK)


def wrong(run: Callable[..., jax.Array], case: Case, dtype: str) -> str | None:
    """Returns what is wrong with value and gradients, or None; see `comparison.wrong`."""
    rng = np.random.default_rng(0)
    shapes = [(case.batch, t, case.heads, case.head_dim) for t in (case.q_tokens, case.k_tokens)]
    arrays = [jnp.asarray(rng.standard_normal(shapes[i]), dtype) for i in (0, 1, 1, 0)]
    pair = functools.partial(_both, run), functools.partial(_both, reference)
    return comparison.wrong(*pair, arrays, RESULTS)


def _both(run: Any, q: jax.Array, k: jax.Array, v: jax.Array, up: jax.Array) -> Any:
    """Returns the output o and the gradients dq, dk and dv."""
    o, pull = jax.vjp(run, q, k, v)
    return o, *pull(up)
