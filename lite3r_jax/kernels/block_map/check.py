"""Self-check of the implementations of the block selection: the blocks chosen, in two runs."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lite3r_jax.kernels.block_map.api import OPERATOR, SelectionCall
from lite3r_jax.kernels.block_map.reference import classes
from lite3r_jax.kernels.registry import Check

# Scores closer than this, over |q| |k|, may be taken for one another: they are sums in float32.
CLOSE = 1e-6


@dataclass(frozen=True)
class Case:
    """Sizes and budgets of one self-check case of the block selection.

    Attributes:
        name: says what is special about it.
        rows: blocks of queries.
        columns: blocks of keys.
        top: critical blocks.
        bottom: negligible blocks.
        always: blocks that are always critical.
        heads: N.
        batch: B.
        head_dim: D.
        dtype: of the pooled tokens.
    """

    name: str
    rows: int
    columns: int
    top: int
    bottom: int = 0
    always: tuple[int, ...] = ()
    heads: int = 1
    batch: int = 1
    head_dim: int = 64
    dtype: str = "float32"


CASES = (
    Case("lowest and highest, two programs, two tiles", 40, 90, 17, 30, (0, 5), 2, 2),
    Case("more tiles than a table is wide", 3, 200, 2, heads=2, head_dim=128),
    Case("one of one", 1, 1, 1),
    Case("all are kept anyway", 5, 9, 0, always=tuple(range(9))),
    Case("all but one", 33, 65, 64),
    Case("none are marginal", 32, 64, 20, 44),
    Case("a table of more than one tile", 10, 150, 140, 0, (3,)),
    Case("lowest, head dim 128", 20, 130, 1, 129, batch=2, head_dim=128),
    Case("few of many", 40, 700, 5, heads=2, batch=2, dtype="bfloat16"),
    Case("few of many, head dim 128", 33, 700, 3, head_dim=128, dtype="bfloat16"),
    Case("few of many, float16", 33, 700, 3, dtype="float16"),
    Case("few of many, float16, head dim 128", 33, 700, 3, head_dim=128, dtype="float16"),
    Case("few of many, float32", 33, 64 * 66, 3, head_dim=128),
    Case("all but one, bfloat16", 33, 65, 64, dtype="bfloat16"),
    Case("many", 300, 700, 70, 70, (0, 1, 2), heads=2),
    Case("few of very many", 300, 64 * 70 + 1, 32, heads=2, dtype="bfloat16"),
)
# For a model that waits, of every kind of call.
QUICK = CASES[0], *CASES[7:12]


def checks(name: str) -> Iterator[Check[SelectionCall]]:
    """Yields all cases, for an implementation's name in `api.OPERATOR`.

    With whole numbers, whose scores are exact and often equal, the choice has to be that of the
    definition; with real numbers it may differ where scores are closer than float32 tells apart.
    """
    for case in CASES:
        call = SelectionCall(case.head_dim, case.dtype)
        for kind in ("whole numbers", "real numbers"):
            yield Check(
                f"{case.name}, {kind}",
                call,
                functools.partial(wrong, OPERATOR[name].run, case, kind),
                quick=case in QUICK,
            )


def wrong(run: Callable[..., Any], case: Case, kind: str) -> str | None:
    """Returns what is wrong with the blocks chosen in a case, or None."""
    rng = np.random.default_rng(0)
    shapes = [(case.batch, case.heads, m, case.head_dim) for m in (case.rows, case.columns)]
    if kind == "whole numbers":
        q, k = (rng.integers(-2, 3, shape).astype(np.float32) for shape in shapes)
        q[..., 3:] = 0
    else:
        q, k = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    # Rounded: products of halves are exact.
    q, k = (np.asarray(jnp.asarray(x, case.dtype)).astype(np.float32) for x in (q, k))
    q_used, k_used = (rng.random((case.batch, m)) < 0.9 for m in (case.rows, case.columns))
    chosen = functools.partial(
        run, kept=np.asarray(case.always, np.int32), top=case.top, bottom=case.bottom
    )
    args = jnp.asarray(q, case.dtype), q_used, jnp.asarray(k, case.dtype), k_used
    tables, again = (jax.jit(chosen)(*args) for _ in range(2))
    tables, again = ([np.asarray(x) for x in pair] for pair in (tables, again))
    if any(x.tobytes() != y.tobytes() for x, y in zip(tables, again, strict=True)):
        return "two runs chose different blocks"
    scores = np.einsum("bnid,bnjd->bnij", q, k, dtype=np.float64)
    wanted = classes(scores, q_used, k_used, case.top, case.bottom, case.always)
    size = np.linalg.norm(q, axis=-1)[..., None] * np.linalg.norm(k, axis=-1)[..., None, :]
    for name, value, ids in (("critical", 1, tables[0]), ("negligible", -1, tables[1])):
        listed = np.zeros((*wanted.shape[:3], case.columns + 1), bool)
        np.put_along_axis(listed, ids, True, -1)
        listed = listed[..., : case.columns]
        if (np.diff(ids, axis=-1) <= 0)[ids[..., 1:] < case.columns].any():
            return f"{name}: ids are not ascending"
        expected = wanted == value
        if (listed.sum(-1) != expected.sum(-1)).any():
            return f"{name}: {listed.sum()} blocks instead of {expected.sum()}"
        other = listed != expected
        if other.any() and kind == "whole numbers":
            return f"{name}: {other.sum() // 2} other blocks than the definition"
        if other.any():
            swapped = np.where(other, scores, np.nan)[other.any(-1)]
            gap = (np.nanmax(swapped, -1) - np.nanmin(swapped, -1)).max()
            if gap > CLOSE * size.max():
                return f"{name}: chose blocks whose scores are {gap:.1e} from the right ones"
    return None
