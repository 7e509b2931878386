"""The SLA kernels compiled for a described H200, against a budget per kernel. No GPU is needed.

`make test-gpu-compile` installs what it takes. Raise a budget only with a reason.
"""

import dataclasses
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from lite3r_jax.attention.sla import SLA
from lite3r_jax.attention.strategy import AttentionInputs, Layouts, TokenLayout
from lite3r_jax.kernels.block_map.table import BlockMap
from lite3r_jax.kernels.sla.cases import Case, vggt_global
from lite3r_jax.kernels.sla.pallas_mosaic import sla_mosaic
from tests.gpu_compile import h200
from tests.kernels.sla.test_mosaic import MOSAIC_KERNELS
from tests.kernels.sla.test_triton import (
    LINEAR_KERNELS,
    SOFTMAX_KERNELS,
    gradient,
    linear_kernels,
    shapes,
)

pytestmark = [
    pytest.mark.gpu_compile,
    pytest.mark.filterwarnings("ignore:.*Triton.*:DeprecationWarning"),
]
BUDGETS = json.loads(Path(__file__).with_name("budgets.json").read_text())["sla"]


def as_in_issue(views, head_dim, q_block, low=0.0) -> Case:
    case = vggt_global(views, 0.1, q_block=q_block, low=low)
    return dataclasses.replace(case, head_dim=head_dim)


CASES = [
    *(as_in_issue(views, 64, 64) for views in (2, 8, 32, 100)),
    as_in_issue(100, 64, 128),
    as_in_issue(2, 128, 64),
    as_in_issue(100, 128, 64),
    as_in_issue(100, 128, 128),
    as_in_issue(32, 64, 128, low=0.1),
    as_in_issue(100, 64, 128, low=0.1),
]


@pytest.mark.parametrize(
    "case", CASES, ids=lambda c: f"{c.q_tokens // 1369}-{c.head_dim}-{c.q_block}-{c.routing}"
)
def test_kernels_compile_within_their_budgets(case, tmp_path):
    full = 2  # query blocks that attend to all keys, in the same launches
    args = shapes(case, "bfloat16", NamedSharding(h200.mesh(), PartitionSpec()), full)
    call = gradient(case, interpret=False, full=full)
    compiled, kernels = h200.compile_kernels(call, args, tmp_path)
    expected = SOFTMAX_KERNELS | (
        linear_kernels(case.head_dim) if case.routing == "block" else set()
    )
    assert kernels.keys() == expected
    budgets = BUDGETS[f"head dim {case.head_dim}, query block {case.q_block}"]
    for name, kernel in kernels.items():
        h200.check_budget(name, kernel, budgets[name])
        least = budgets[name]["wgmma"]
        assert least > 0 or name == "sla_linear_project", "its few products are float32"
        assert kernel.wgmma >= least, f"{name} lost its wgmma instructions"
    plan = compiled.memory_analysis()
    inputs = 2 * case.heads * case.head_dim * (case.q_tokens + 2 * case.k_tokens)
    tables = 4 * case.table_shape[1] * case.table_shape[2] * case.table_shape[3]
    print(f"temporary {plan.temp_size_in_bytes / 2**20:.0f} MiB, inputs {inputs / 2**20:.0f} MiB")
    # States of marginal blocks are held some at a time, however many views there are.
    states = 2**30 if case.routing == "block3" else 0
    # The gradient reads the softmax part's output in float32: half an array more.
    exact = 2 * case.heads * case.head_dim * case.q_tokens
    assert plan.temp_size_in_bytes < 3 * inputs + 8 * tables + states + exact


@pytest.mark.parametrize("views,head_dim", [(2, 64), (100, 64), (100, 128)])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_mosaic_kernels_compile_within_their_budgets(views, head_dim, dtype, tmp_path):
    case = as_in_issue(views, head_dim, 128)
    args = shapes(case, dtype, NamedSharding(h200.mesh(), PartitionSpec()))
    call = gradient(case, interpret=False, run=sla_mosaic)
    compiled, kernels = h200.compile_kernels(call, args, tmp_path)
    assert kernels.keys() == MOSAIC_KERNELS | {"sla_linear_forward"} | linear_kernels(head_dim)
    assert compiled.as_text().count('custom_call_target="mosaic_gpu_v2"') == 3
    check_mosaic(kernels, head_dim, tmp_path)


@pytest.mark.parametrize("head_dim", [64, 128])
def test_the_mosaic_value_alone_compiles_without_triton_lowering(head_dim, tmp_path):
    """Its output is not float32 then, and with D = 128 more blocks are fetched ahead."""
    case = as_in_issue(2, head_dim, 128)
    args = shapes(case, "bfloat16", NamedSharding(h200.mesh(), PartitionSpec()))

    def value(q, k, v, w, critical, negligible, q_valid, k_valid, _):
        return sla_mosaic(
            q, k, v, w, BlockMap(critical, negligible, case.q_block, case.k_block),
            routing=case.routing, phi=case.phi, keep=None, eps=1e-6,
            q_valid=q_valid, k_valid=k_valid, plain_linear=True,
        )  # fmt: skip

    _, kernels = h200.compile_kernels(value, args, tmp_path)
    assert kernels.keys() == {"sla_mosaic_forward"}
    check_mosaic(kernels, head_dim, tmp_path)


def check_mosaic(kernels, head_dim, dump):
    """Budgets, and that the registers that some warpgroups take are given away by another."""
    for name in kernels.keys() & MOSAIC_KERNELS:
        budget = BUDGETS[f"mosaic, head dim {head_dim}"][name]
        h200.check_budget(name, kernels[name], budget)
        assert kernels[name].wgmma >= budget["wgmma"], "lost its wgmma instructions"
        [ptx] = (dump / "mosaic").glob(f"{name}_*.ptx")
        changes = re.findall(r"setmaxnreg\.(\w+)\.sync\.aligned\.u32\s+(\d+)", ptx.read_text())
        taken = dict(changes)
        assert len(changes) == 2 and 2 * int(taken["inc"]) + int(taken["dec"]) <= 3 * 168


def test_heads_split_over_four_gpus_send_nothing_but_a_gradient(tmp_path):
    """The strategy as a backbone calls it, forward and gradient, with its selection."""
    mesh = h200.mesh(4)
    layout = TokenLayout(8, 5, (37, 37), "global")
    core = SLA(heads_axis="x", implementation="triton").build(
        heads=16, head_dim=64, param_dtype=jnp.float32, rngs=nnx.Rngs(0)
    )
    graph, _ = nnx.split(core)

    def both(q, k, v, up, w):
        def attend(q, k, v, w):
            state = nnx.State({"proj_lin": nnx.Param(w)})
            return nnx.merge(graph, state)(AttentionInputs(q, k, v, Layouts.both(layout)))

        o, pull = jax.vjp(attend, q, k, v, w)
        return o, *pull(up)

    def described(shape, dtype, *axes):
        return jax.ShapeDtypeStruct(
            shape, dtype, sharding=NamedSharding(mesh, PartitionSpec(*axes))
        )

    x = described((1, layout.tokens, 16, 64), "bfloat16", None, None, "x")
    w = described((64, 64), "float32")
    # Only the abstract mesh says "gpu" here, and that is what chooses the kernels.
    gpu = jax.sharding.AbstractDevice("NVIDIA H200", num_cores=None, platform="cuda")
    with jax.sharding.use_abstract_mesh(
        jax.sharding.AbstractMesh((4,), ("x",), (AxisType.Auto,), abstract_device=gpu)
    ):
        lowered = jax.jit(both).trace(x, x, x, x, w).lower(lowering_platforms=("cuda",))
    compiled, kernels = h200.compile_lowered(lowered, tmp_path)
    assert kernels.keys() == {"block_map_select", *SOFTMAX_KERNELS, *LINEAR_KERNELS}
    sends = r"= (.*?) (all-[a-z]+|ragged-[a-z-]+|collective-[a-z]+|reduce-scatter)(?:-start)?\("
    collectives = re.findall(sends, compiled.as_text())
    assert {kind for _, kind in collectives} == {"all-reduce"}
    sent = {array for result, _ in collectives for array in re.findall(r"\w+\[[\d,]*\]", result)}
    assert sent == {"f32[64,64]"}
