"""The kernels in Triton's language, compiled for GPUs that are not here: `make test-triton`."""

import re

import jax
import jax.numpy as jnp
import pytest
import triton
from jax.sharding import NamedSharding, PartitionSpec
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from lite3r_jax.kernels import jax_triton_call
from lite3r_jax.kernels.block_map import jax_triton, jax_triton_kernels
from lite3r_jax.kernels.block_map.api import OPERATOR as SELECTION
from lite3r_jax.kernels.block_map.api import SelectionCall
from lite3r_jax.kernels.sla import compile_triton, launches
from lite3r_jax.kernels.sla.api import OPERATOR
from lite3r_jax.kernels.sla.cases import vggt_global
from lite3r_jax.kernels.sla.jax_triton import sla_jax_triton
from lite3r_jax.kernels.sla.launches import KERNELS
from lite3r_jax.kernels.sla.limits import SlaCall
from tests.kernels.devices import described_gpu, proven_gpu
from tests.kernels.sla.test_triton import gradient, shapes

pytestmark = pytest.mark.triton
assert not triton.knobs.runtime.interpret, "run this by `make test-triton`"


@pytest.mark.parametrize("row", launches.compiled(), ids=lambda r: f"{r.device[19:]}-{r.kernel}-"
                         f"{r.dtype}-{r.head_dim}-{r.q_block}")  # fmt: skip
def test_every_launch_of_the_table_takes_no_more_than_it_says(row):
    for dtype in ("bfloat16", "float16") if row.dtype == "half" else ("float32",):
        usage = compile_triton.compile_kernel(
            row.kernel, row.launch, dtype, row.head_dim, row.q_block, row.capability
        )
        # Only float32, for comparisons, spills.
        assert usage.spilled <= row.spilled <= (256 if row.dtype == "float32" else 0)
        assert usage.atomics == 0
        # float16 and other query blocks than 128 may take a few more.
        assert usage.registers <= 1.1 * row.registers + 8
        assert usage.shared_memory <= row.shared_memory
        wgmma = row.dtype == "half" and row.capability == 9.0
        assert (usage.wgmma > 0) == wgmma


@pytest.mark.parametrize("capability", compile_triton.CAPABILITIES)
@pytest.mark.parametrize("low", [False, True])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_selection_compiles_without_spills(capability, low, dtype):
    kernel = jax_triton_kernels.block_map_select
    constants = {"HEADS": 16, "D": 64, "ROWS": jax_triton.ROWS, "TILE": jax_triton.TILE}
    constants |= {"DEPTH": jax_triton.DEPTH, "LOW": low}
    types = dict.fromkeys(kernel.arg_names, "i32") | {"q": f"*{dtype}", "k": f"*{dtype}"}
    types |= dict.fromkeys(("used", "kind", "critical", "negligible"), "*i32")
    types |= dict.fromkeys(constants, "constexpr")
    pointers = [i for i, name in enumerate(kernel.arg_names) if types[name].startswith("*")]
    attrs = {(i,): [["tt.divisibility", 16]] for i in pointers}
    for top in ({}, {"top": 1}):  # jax-triton makes a constant of 1
        compiled = triton.compile(
            ASTSource(
                kernel,
                signature=types | dict.fromkeys(top, "constexpr"),
                constexprs=constants | top,
                attrs=attrs,
            ),
            target=GPUTarget("cuda", round(10 * capability), 32),
            options={"num_warps": jax_triton.LAUNCH.warps, "num_stages": jax_triton.LAUNCH.stages},
        )
        registers, spilled = compile_triton._resources(compiled.asm["cubin"])
        print(capability, low, dtype, top, registers, spilled, compiled.metadata.shared)
        # bytes; for 10.0 the compiler spills two registers in bfloat16
        assert spilled <= (8 if capability == 10.0 else 0) and registers <= 255
        assert compiled.metadata.shared <= 48 * 1024


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("kind", ["NVIDIA H200", "NVIDIA A100-SXM4-80GB"])
def test_value_and_gradient_lower_for_a_gpu_that_is_not_here(kind, dtype):
    case = vggt_global(8, 0.1, q_block=128)
    with described_gpu(kind):
        lowered = (
            gradient(case, interpret=False, run=sla_jax_triton)
            .trace(*shapes(case, dtype))
            .lower(lowering_platforms=("cuda",))
        )
    text = lowered.as_text()
    calls = re.findall(r"custom_call @(triton_kernel_call\w*)", text)
    assert len(calls) == len(KERNELS)
    assert "__gpu$xla.gpu.triton" not in text, "a kernel through Pallas' lowering"


def test_the_program_compiles_for_a_described_h200():
    from tests.gpu_compile import h200

    case = vggt_global(2, 0.1, q_block=128)
    args = shapes(case, "bfloat16", NamedSharding(h200.mesh(), PartitionSpec()))
    with described_gpu():
        lowered = (
            gradient(case, interpret=False, run=sla_jax_triton)
            .trace(*args)
            .lower(lowering_platforms=("cuda",))
        )
    compiled = lowered.compile({"xla_gpu_enable_triton_gemm": False})
    calls = re.findall(r'custom_call_target="(triton_kernel_call\w*)"', compiled.as_text())
    assert len(calls) == len(KERNELS)
    assert compiled.memory_analysis().temp_size_in_bytes < 2**30


def test_auto_takes_it_only_where_the_others_are_gone_and_it_is_proven():
    assert jax_triton_call.unavailable() is None
    call = SlaCall("block", 64, jnp.bfloat16, 128, 64)
    pooled = SelectionCall(64, jnp.float32)
    with proven_gpu():
        assert OPERATOR.choose("auto", call) == "triton"
        assert OPERATOR.choose("jax_triton", call) == "jax_triton"
        assert SELECTION.choose("jax_triton", pooled) == "jax_triton"
    with described_gpu():
        assert OPERATOR.choose("auto", call) == "blocked"
        assert SELECTION.choose("auto", pooled) == "sorted"


def test_kernels_run_only_where_the_interpreter_was_chosen():
    case = vggt_global(2, 0.1, q_block=128)
    with pytest.raises(ValueError, match="TRITON_INTERPRET=1 was in the environment"):
        gradient(case, interpret=True, run=sla_jax_triton).trace(*shapes(case, jnp.float32))
    assert jax.default_backend() == "cpu"
