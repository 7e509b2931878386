"""What may be inside of what: docs/attention.md says so, and every cell of its table is true."""

import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lite3r_jax.attention.presets import parse_plan
from lite3r_jax.attention.registry import BUILT_IN
from lite3r_jax.attention.strategy import AttentionInputs, LayerFunctions, Layouts, TokenLayout
from lite3r_jax.errors import InputError
from tests.attention import quick

LAYOUT = TokenLayout(4, 2, (2, 3), "global")
N, D = 2, 8
LAYER = LayerFunctions(
    lambda x: (x.reshape(*x.shape[:2], N, D),) * 3, lambda q, k: (q, k), lambda x, _: x, None
)


def table():
    """(around, inside, whether that goes) of every cell."""
    text = (Path(__file__).parents[2] / "docs/attention.md").read_text()
    lines = text[text.index("| around") :].split("\n\n", 1)[0].splitlines()
    head, _, *rows = ([cell.strip() for cell in line.strip("| ").split("|")] for line in lines)
    for around, *cells in rows:
        for inside, cell in zip(head[1:], cells, strict=True):
            assert cell in ("yes", "no"), (around, inside, cell)
            yield around.strip("`"), inside.strip("`"), cell == "yes"


def together(around, inside):
    if around.endswith(")"):
        return f"{around[:-1]},inner={inside})"
    return f"{around}(inner={inside})"


def test_the_table_has_every_strategy_that_takes_one_inside():
    cells = [*table()]
    takes = {cls.name for cls in BUILT_IN if hasattr(cls, "inner")}
    assert {re.split(r"\(", around)[0] for around, _, _ in cells} == takes
    assert {inside for _, inside, _ in cells} == {cls.name for cls in BUILT_IN}


@pytest.mark.parametrize("around,inside,goes", [*table()], ids=str)
def test_what_the_table_says_holds(around, inside, goes):
    text = together(around, inside)
    if not goes:
        with pytest.raises(InputError, match=rf"inner={inside}"):
            parse_plan(text)
        return
    spec = parse_plan(text).at("global", 0).resolve("global", 0, 24, LAYOUT.views)
    core = spec.build(heads=N, head_dim=D, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
    core.adopt(spec)
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((3, 1, LAYOUT.tokens, N, D)).astype(np.float32)
    x = rng.standard_normal((1, LAYOUT.tokens, N * D)).astype(np.float32)
    layouts = Layouts.both(LAYOUT)

    def run(q, k, v, x):
        context, of_x = spec.context(x, LAYOUT), lambda: x
        return core(AttentionInputs(q, k, v, layouts, context, LAYER, of_x, of_x))

    o = quick.jit(run)(q, k, v, x)
    assert o.shape == q.shape and np.isfinite(o).all() and np.abs(o).max() > 0
