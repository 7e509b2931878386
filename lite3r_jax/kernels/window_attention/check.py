"""Self-check of the implementations of window attention: value and gradients, in two runs."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lite3r_jax.kernels import comparison
from lite3r_jax.kernels.registry import Check
from lite3r_jax.kernels.window_attention.api import OPERATOR
from lite3r_jax.kernels.window_attention.limits import WindowCall
from lite3r_jax.kernels.window_attention.reference import window_attention_reference


@dataclass(frozen=True)
class Case:
    """Sizes of one self-check case of window attention: tokens, windows and choices.

    Attributes:
        name: says what is special about it.
        places: tokens of a whole window; some have fewer.
        q_windows: Nq.
        k_windows: Nk.
        chosen: K.
        always: windows of keys that all queries see.
        others: tokens in no window, of queries and of keys.
        batch: B.
        heads: N.
        head_dim: D.
    """

    name: str
    places: int
    q_windows: int
    k_windows: int
    chosen: int
    always: int = 0
    others: int = 0
    batch: int = 1
    heads: int = 2
    head_dim: int = 64


CASES = (
    Case("lists that steps do not divide", 16, 5, 9, 3, always=2, others=7, batch=2),
    Case("windows of 64, nothing that all see", 64, 3, 4, 2),
    Case("windows of 64 and others", 64, 4, 3, 1, always=1, others=70),
    Case("fewer than one step", 16, 9, 2, 1),
    Case("all see all", 16, 3, 2, 0, always=2, others=1),
    Case("head dim 128", 16, 6, 12, 8, others=5, heads=1, head_dim=128),
    Case("head dim 128, windows of 64", 64, 3, 5, 4, others=5, heads=1, head_dim=128),
    Case("long", 16, 300, 400, 32, always=30, others=50),
)
# Few, but of every kind of call that has cases: for a model that waits.
QUICK = (CASES[0], CASES[2], CASES[5], CASES[6])
RESULTS = ("o", "dq", "dk", "dv")


def checks(name: str) -> Iterator[Check[WindowCall]]:
    """Yields all cases in all dtypes, for an implementation's name in `api.OPERATOR`."""
    for case in CASES:
        for dtype in comparison.CAPS:
            call = WindowCall(case.places, case.head_dim, dtype)
            check = functools.partial(wrong, OPERATOR[name].run, case, dtype)
            yield Check(f"{case.name}, {dtype}", call, check, case in QUICK)


def wrong(run: Callable[..., jax.Array], case: Case, dtype: str) -> str | None:
    """Returns what is wrong with value and gradients, or None; see `comparison.wrong`."""
    arrays, settings = problem(case, dtype)
    both = functools.partial(_both, settings=settings)
    pair = functools.partial(both, run), functools.partial(both, window_attention_reference)
    return comparison.wrong(*pair, arrays, RESULTS)


def problem(case: Case, dtype: str) -> tuple[list[jax.Array], dict[str, Any]]:
    """Returns q, k, v and a cotangent, and the other arguments of `window_attention`."""
    rng = np.random.default_rng(0)
    q_windows, q_tokens = _windows(rng, case.q_windows, case)
    k_windows, k_tokens = _windows(rng, case.k_windows, case)
    always = np.sort(rng.permutation(case.k_windows)[: case.always]).astype(np.int32)
    free = np.setdiff1d(np.arange(case.k_windows), always)
    rows = (case.batch, case.heads, case.q_windows)
    order = np.argsort(rng.random((*rows, len(free))), axis=-1)[..., : case.chosen]
    ids = jnp.asarray(np.sort(free[order], axis=-1), jnp.int32)
    shape = (case.heads, case.head_dim)
    arrays = [
        jnp.asarray(rng.standard_normal((case.batch, tokens, *shape)), dtype)
        for tokens in (q_tokens, k_tokens, k_tokens, q_tokens)
    ]
    settings = {"q_windows": q_windows, "k_windows": k_windows, "always": always}
    return arrays, settings | {"ids": ids}


def _windows(rng: np.random.Generator, count: int, case: Case) -> tuple[np.ndarray, int]:
    """Returns random windows and the number of tokens.

    Windows have a token in their first place and in most of the others.
    """
    there = rng.random((count, case.places)) < 0.8
    there[:, 0] = True
    tokens = int(there.sum()) + case.others
    windows = np.full(there.shape, tokens, np.int32)
    windows[there] = rng.permutation(tokens)[: there.sum()]
    return windows, tokens


def _both(run, q, k, v, up, *, settings):
    """Returns the output o and the gradients dq, dk and dv."""
    ids, rest = settings["ids"], {n: x for n, x in settings.items() if n != "ids"}
    o, pull = jax.vjp(lambda *x: run(*x, ids, **rest), q, k, v)
    return o, *pull(up)
