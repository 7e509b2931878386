"""Self-check of implementations of Sparse Linear Attention: value and gradients, in two runs."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lite3r_jax.kernels.block_map.api import block_map
from lite3r_jax.kernels.block_map.table import BlockMap
from lite3r_jax.kernels.comparison import CAPS, errors, same_bits
from lite3r_jax.kernels.registry import Check
from lite3r_jax.kernels.sla.api import in_two, runner
from lite3r_jax.kernels.sla.cases import Case
from lite3r_jax.kernels.sla.limits import SlaCall
from lite3r_jax.kernels.sla.reference import sla_reference

# What the kernels are made for, odd and even.
CASES = (
    Case("short last blocks", 150, 170, 2, 2),
    Case("short last wide blocks", 700, 650, 2, 3, q_block=128),
    Case("one token", 1, 1, q_block=128),
    Case("protected blocks, softmax", 500, 560, 2, 2, q_block=128, always=2, phi="softmax"),
    Case("everything kept, relu", 400, 400, q_block=128, keep=1.0, phi="relu"),
    Case("head dim 128", 600, 600, 1, 2, 128, 128, keep=0.1),
    Case("head dim 128, equal blocks", 300, 500, 1, 2, 128),
    Case("marginal", 700, 900, 2, 2, q_block=128, low=0.2, routing="block3"),
    Case("no marginal block", 300, 300, keep=0.5, low=0.5, routing="block3"),
    Case("rows of all blocks", 700, 650, 2, 3, q_block=128, always=2, full=2),
    Case("long", 4096, 4096, 1, 4, q_block=128, keep=0.1),
)
# Few, but of every kind of call that has cases: for a model that waits.
QUICK = (
    "short last blocks",
    "short last wide blocks",
    "protected blocks, softmax",
    "marginal",
    "rows of all blocks",
    "head dim 128",
    "head dim 128, equal blocks",
)
RESULTS = ("o", "dq", "dk", "dv", "dproj_lin")


@dataclass(frozen=True)
class Outcome:
    """Errors that were found in one self-check case.

    Attributes:
        errors: of `RESULTS`, each the largest over the largest exact value, which is at least 1;
            infinite where something is not finite.
        same: whether two runs gave the same bits.
        wrong: what is not as it should be, or None.
    """

    errors: tuple[float, ...]
    same: bool
    wrong: str | None


def checks(name: str) -> Iterator[Check[SlaCall]]:
    """Yields all cases in all dtypes, for an implementation's name in `api.OPERATOR`."""
    for case in CASES:
        for dtype in CAPS:
            call = SlaCall(case.routing, case.head_dim, dtype, case.q_block, case.k_block)
            wrong = functools.partial(_wrong, runner(name), case, dtype)
            yield Check(f"{case.name}, {dtype}", call, wrong, case.name in QUICK)


def _wrong(run: Callable[..., jax.Array], case: Case, dtype: str) -> str | None:
    return outcome(run, case, dtype).wrong


def outcome(run: Callable[..., jax.Array], case: Case, dtype: str) -> Outcome:
    """Compares value and all gradients of a case with the definition in float64.

    An error may be twice that of the definition computed in float32 plus half the cap of its
    dtype, and at most the cap.
    """
    q, k, v, w, up, q_valid, k_valid = problem(case, dtype)
    maps = select(case, "sorted", q, k, q_valid, k_valid)
    both = functools.partial(_both, case=case, maps=maps, masks=(q_valid, k_valid))
    defined = jax.jit(functools.partial(both, in_two(sla_reference)))
    with jax.enable_x64(True):
        wide = [x.astype(jnp.float64) for x in (q, k, v, w, up)]
        exact = [np.asarray(x) for x in defined(*wide)]
    plain = errors(defined(q, k, v, w, up), exact)
    compiled = jax.jit(functools.partial(both, run)).lower(q, k, v, w, up).compile()
    got, again = compiled(q, k, v, w, up), compiled(q, k, v, w, up)
    run_errors, cap, same = errors(got, exact), CAPS[dtype], same_bits(got, again)
    wrong = [
        f"{name} is off by {error:.1e}, {plain_error:.1e} in plain JAX"
        for name, error, plain_error in zip(RESULTS, run_errors, plain, strict=True)
        if not error <= min(2 * plain_error + cap / 2, cap)
    ]
    wrong += [] if same else ["two runs gave different bits"]
    return Outcome(tuple(run_errors), same, "; ".join(wrong) or None)


def problem(case: Case, dtype: str) -> tuple[jax.Array, ...]:
    """Returns q, k, v, proj_lin, a cotangent and the masks; rows of padding hold NaN."""
    rng = np.random.default_rng(0)
    b, n, d = case.batch, case.heads, case.head_dim
    q_valid, k_valid = (rng.random((b, t)) < 0.9 for t in (case.q_tokens, case.k_tokens))
    q_valid[:, 0] = k_valid[:, 0] = True

    def draw(valid):
        x = rng.standard_normal((*valid.shape, n, d))
        return jnp.asarray(np.where(valid[..., None, None], x, np.nan), dtype)

    q, k, v, up = draw(q_valid), draw(k_valid), draw(k_valid), draw(q_valid)
    up = jnp.where(q_valid[..., None, None], up, 0)
    w = jnp.asarray(rng.standard_normal((d, d)) * d**-0.5, jnp.float32)
    return q, k, v, w, up, jnp.asarray(q_valid), jnp.asarray(k_valid)


def select(case: Case, name: str, q: Any, k: Any, q_valid: Any, k_valid: Any) -> BlockMap:
    """Returns the block map of a case by an implementation of the block selection."""
    top, bottom = case.budgets
    chosen = functools.partial(
        block_map,
        q_block=case.q_block,
        k_block=case.k_block,
        top=top,
        bottom=bottom,
        always=range(case.always),
        full_rows=case.full,
        implementation=name,
    )
    return jax.jit(lambda q, k, *masks: chosen(q, k, q_valid=masks[0], k_valid=masks[1]))(
        q, k, q_valid, k_valid
    )


def _both(run, q, k, v, w, up, *, case, maps, masks):
    """Returns the output o and the gradients dq, dk, dv and dproj_lin."""
    settings = {"routing": case.routing, "phi": case.phi, "keep": None, "eps": 1e-6}
    settings |= {"q_valid": masks[0], "k_valid": masks[1]}
    if case.full:
        settings["places"] = np.arange(case.q_tokens)[::-1]
    o, pull = jax.vjp(lambda *x: run(*x, maps, **settings), q, k, v, w)
    return o, *pull(up)
