"""The block selection compiled for a described H200: no sort, no scores in memory, no spills.

`make test-gpu-compile` installs what it takes. Raise a budget only with a reason.
"""

import dataclasses
import itertools
import json
import re
from pathlib import Path

import jax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from lite3r_jax.kernels.block_map.api import ViewChoice, block_map
from lite3r_jax.kernels.sla.cases import vggt_global
from tests.gpu_compile import h200

pytestmark = [
    pytest.mark.gpu_compile,
    pytest.mark.filterwarnings("ignore:.*Triton.*:DeprecationWarning"),
]
BUDGETS = json.loads(Path(__file__).with_name("budgets.json").read_text())["block_map"]


@pytest.mark.parametrize(
    "views,head_dim,q_block,low",
    [
        *((views, 64, 128, 0.0) for views in (2, 8, 32, 100, 1000)),
        (100, 128, 64, 0.0),
        (100, 64, 128, 0.1),
        (32, 128, 64, 0.1),
    ],
)
def test_selects_without_sort_and_scores(views, head_dim, q_block, low, tmp_path):
    case = vggt_global(views, 0.1, q_block=q_block, low=low)
    case = dataclasses.replace(case, head_dim=head_dim)
    where = NamedSharding(h200.mesh(), PartitionSpec())
    q, k = (
        jax.ShapeDtypeStruct((1, tokens, case.heads, head_dim), "bfloat16", sharding=where)
        for tokens in (case.q_tokens, case.k_tokens)
    )
    top, bottom = case.budgets

    def select(q, k):
        return block_map(
            q, k, q_block=q_block, k_block=64, top=top, bottom=bottom, always=range(case.always),
            implementation="triton",
        )  # fmt: skip

    compiled, kernels = h200.compile_kernels(select, (q, k), tmp_path)
    assert kernels.keys() == {"block_map_select"}
    h200.check_budget(
        "block_map_select", kernels["block_map_select"], BUDGETS["low" if low else "high"]
    )

    text = compiled.as_text()
    assert not re.search(r"\bsort\(|TopK|RadixSort", text)
    scores = case.heads * case.q_blocks * case.k_blocks
    filled_up = (
        {case.q_blocks, -(-case.q_blocks // 32) * 32},
        {case.k_blocks, -(-case.k_blocks // 64) * 64},
    )
    for shape in set(re.findall(r"\b[a-z]\w*\[([\d,]+)\]", text)):
        sizes = [int(size) for size in shape.split(",")]
        pairs = itertools.pairwise(sizes)
        filled = [(x, y) for x, y in pairs if x in filled_up[0] and y in filled_up[1]]
        assert all(y == head_dim for _, y in filled), shape
    temporary = compiled.memory_analysis().temp_size_in_bytes
    pooled = 4 * case.heads * head_dim * (case.q_blocks + case.k_blocks)
    print(f"temporary {temporary / 2**20:.1f} MiB, scores {4 * scores / 2**20:.0f} MiB")
    assert temporary < 2.5 * pooled + 2**20


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_few_of_many_take_a_64th_of_the_scores(dtype, tmp_path):
    """Windows of 4 x 4 patches of 1,000 views of 37 x 37, 32 chosen, one head."""
    windows, top = 100_000, 32
    where = NamedSharding(h200.mesh(), PartitionSpec())
    x = jax.ShapeDtypeStruct((1, windows, 1, 64), dtype, sharding=where)

    def select(q, k):
        return block_map(q, k, q_block=1, k_block=1, top=top, implementation="triton")

    compiled, kernels = h200.compile_kernels(select, (x, x), tmp_path)
    assert kernels.keys() == {"block_map_maxima", "block_map_tiles", "block_map_among"}
    for name, kernel in kernels.items():
        h200.check_budget(name, kernel, BUDGETS[f"few, {dtype}"][name])
    if dtype == "bfloat16":
        assert kernels["block_map_maxima"].wgmma > 0
    temporary = compiled.memory_analysis().temp_size_in_bytes
    print(f"temporary {temporary / 2**20:.1f} MiB, scores {4 * windows**2 / 2**20:.0f} MiB")
    assert temporary < 1.1 * 4 * windows**2 / 64 + 2**26


def test_two_levels_at_1000_views_hold_few_candidates_at_a_time(tmp_path):
    """One head: 22 blocks of keys and 11 of queries a view, 32 views chosen for each."""
    views, chosen, of_view = 1000, 32, 22
    always, rows = 79 + of_view, 11 * views
    where = NamedSharding(h200.mesh(), PartitionSpec())
    q, k = (
        jax.ShapeDtypeStruct((1, tokens, 1, 64), "bfloat16", sharding=where)
        for tokens in (128 * rows, 64 * (always + (views - 1) * of_view))
    )

    def select(q, k):
        among = ViewChoice(views, views - 1, chosen)
        return block_map(
            q, k, q_block=128, k_block=64, top=128, always=range(always), among=among,
            implementation="triton",
        )  # fmt: skip

    compiled, kernels = h200.compile_kernels(select, (q, k), tmp_path)
    assert kernels.keys() == {"block_map_select"}
    h200.check_budget("block_map_select", kernels["block_map_select"], BUDGETS["high"])
    columns = always + (views - 1) * of_view
    ids, scores = 4 * rows * (always + 128), 4 * rows * columns
    temporary = compiled.memory_analysis().temp_size_in_bytes
    print(f"temporary {temporary / 2**20:.1f} MiB, all scores {scores / 2**20:.0f} MiB")
    assert temporary < 6 * ids + 3 * 2**26, "ids, means, and 64 MiB of candidates"
    shapes = set(re.findall(r"\b[a-z]\w*\[([\d,]+)\]", compiled.as_text()))
    assert not any(str(columns) in x.split(",") and str(rows) in x.split(",") for x in shapes)
