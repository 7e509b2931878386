"""Speed3R's kernels compiled for a described H200, against a budget per kernel. No GPU is needed.

`make test-gpu-compile` installs what it takes. Raise a budget only with a reason.
"""

import functools
import json
import re
from pathlib import Path

import jax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from lite3r_jax.attention.speed3r import Speed3R
from lite3r_jax.attention.strategy import TokenLayout
from lite3r_jax.kernels.window_attention.api import window_attention
from tests.gpu_compile import h200

pytestmark = [
    pytest.mark.gpu_compile,
    pytest.mark.filterwarnings("ignore:.*Triton.*:DeprecationWarning"),
]
BUDGETS = json.loads(Path(__file__).with_name("budgets.json").read_text())["window_attention"]
KERNELS = {f"window{of}_{what}" for of in ("", "_all") for what in ("forward", "query_gradient")}
KERNELS |= {"window_key_gradient", "window_all_key_gradient"}


@pytest.mark.parametrize(
    "edge,views,head_dim",
    [(4, 8, 64), (4, 100, 64), (8, 8, 64), (8, 100, 64), (4, 8, 128), (8, 8, 128)],
)
def test_value_and_gradients_compile_within_their_budgets(edge, views, head_dim, tmp_path):
    layout = TokenLayout(views, 5, (37, 37), "global")
    of = Speed3R(edge).selection(layout, layout)
    windows, where = len(of.query.tokens), NamedSharding(h200.mesh(), PartitionSpec())

    def both(q, k, v, ids, up):
        run = functools.partial(
            window_attention, q_windows=of.query.tokens, k_windows=of.key.tokens, always=of.always,
            implementation="triton",
        )  # fmt: skip
        o, pull = jax.vjp(lambda q, k, v: run(q, k, v, ids), q, k, v)
        return o, *pull(up)

    heads = 4
    x = jax.ShapeDtypeStruct((1, layout.tokens, heads, head_dim), "bfloat16", sharding=where)
    ids = jax.ShapeDtypeStruct((1, heads, windows, of.chosen), "int32", sharding=where)
    compiled, kernels = h200.compile_kernels(both, (x, x, x, ids, x), tmp_path)
    assert kernels.keys() == KERNELS
    budgets = BUDGETS[f"head dim {head_dim}, window {edge}"]
    for name, kernel in kernels.items():
        h200.check_budget(name, kernel, budgets[name])
        assert kernel.wgmma >= budgets[name]["wgmma"], f"{name} lost its wgmma instructions"
    text = compiled.as_text()
    for shape in set(re.findall(r"\[([\d,]+)\]", text)):
        assert (
            f"{windows},{windows}," not in f"{shape},"
            and f"{layout.tokens},{layout.tokens}" not in shape
        )
    plan = compiled.memory_analysis().temp_size_in_bytes
    tokens = 2 * heads * head_dim * layout.tokens
    print(f"temporary {plan / 2**20:.0f} MiB, an array of tokens {tokens / 2**20:.0f} MiB")
