"""The SLA kernels compiled for a described H200, against a budget per kernel. No GPU is needed.

`make test-gpu-compile` installs what it takes. Raise a budget only with a reason.
"""

import dataclasses
import importlib.util
import json
import re
import subprocess
from pathlib import Path

import jax
import pytest
from jax.experimental import topologies

from lite3r_jax.kernels.sla.cases import Case, vggt_global
from tests.kernels.sla.test_triton import (
    LINEAR_KERNELS,
    SOFTMAX_KERNELS,
    described_gpu,
    gradient,
    shapes,
)

pytestmark = [
    pytest.mark.gpu_compile,
    pytest.mark.filterwarnings("ignore:.*Triton.*:DeprecationWarning"),
]
ROOT = Path(__file__).parents[2]
H200 = (ROOT / "tools" / "benchmark" / "h200.txtpb").read_text()
BUDGETS = json.loads(Path(__file__).with_name("sla_budgets.json").read_text())
SHARED_MEMORY_PER_BLOCK = int(re.findall(r"shared_memory_per_block_optin: (\d+)", H200)[0])


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
]


@pytest.fixture(scope="module")
def ptxas() -> Path:
    """That of the wheel nvidia-cuda-nvcc."""
    spec = importlib.util.find_spec("nvidia")
    assert spec is not None, "run this with `make test-gpu-compile`, which installs ptxas"
    found = [p for root in spec.submodule_search_locations or [] for p in Path(root).rglob("ptxas")]
    assert found, "no ptxas in the nvidia packages"
    return found[0]


@pytest.fixture(scope="module")
def h200():
    """Where the arguments of a function lie that is compiled for one H200."""
    topology = topologies.get_topology_desc(platform="cuda", target_config=H200, topology="1x1x1")
    mesh = topologies.make_mesh(topo=topology, mesh_shape=(1,), axis_names=("x",))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


@dataclasses.dataclass(frozen=True)
class Kernel:
    """What a kernel takes, and the code that ptxas made of its PTX."""

    registers: int
    spilled: int
    shared_memory: int
    wgmma: int
    atomics: int


def compiled_kernels(case, dtype, where, dump: Path, ptxas: Path):
    """Kernels of value and gradient by name, and XLA's memory plan."""
    with described_gpu():
        lowered = (
            gradient(case, interpret=False)
            .trace(*shapes(case, dtype, where))
            .lower(lowering_platforms=("cuda",))
        )
    # Without a GPU nothing is tuned, and XLA's own Triton GEMMs cannot choose their tiles.
    options = {"xla_gpu_enable_triton_gemm": False, "xla_dump_to": str(dump)}
    if jax.__version_info__ >= (0, 11):
        options["xla_dump_emitter_re"] = "ptx"  # without it there is no PTX
    plan = lowered.compile(options).memory_analysis()
    assert plan is not None
    launches = "".join(path.read_text() for path in dump.glob("*thunk_sequence.txt"))
    memory = dict(re.findall(r"\b(sla_\w+) grid:.*shared_memory: (\d+) bytes", launches))
    kernels = {}
    for path in dump.glob("*.ptx"):
        names = re.findall(r"\.entry (sla_\w+)", path.read_text())
        for name in names:
            kernels[name] = kernel(path, name, int(memory[name]), ptxas)
    return kernels, plan


def kernel(path: Path, name: str, shared_memory: int, ptxas: Path) -> Kernel:
    run = subprocess.run(
        [ptxas, "-v", "--gpu-name=sm_90a", f"--entry={name}", path, "-o", "/dev/null"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    code = path.read_text().split(f".entry {name}", 1)[1].split(".entry ", 1)[0]
    spilled = re.findall(r"(\d+) bytes spill (?:stores|loads)", run.stderr)
    return Kernel(
        registers=int(re.findall(r"Used (\d+) registers", run.stderr)[0]),
        spilled=sum(map(int, spilled)),
        shared_memory=shared_memory,
        wgmma=code.count("wgmma.mma_async"),
        atomics=len(re.findall(r"\b(?:atom|red)\.(?:global|shared|async)", code)),
    )


@pytest.mark.parametrize(
    "case", CASES, ids=lambda c: f"{c.q_tokens // 1369}-{c.head_dim}-{c.q_block}-{c.routing}"
)
def test_kernels_compile_within_their_budgets(case, h200, ptxas, tmp_path):
    kernels, plan = compiled_kernels(case, "bfloat16", h200, tmp_path, ptxas)
    expected = SOFTMAX_KERNELS | (LINEAR_KERNELS if case.routing == "block" else set())
    assert kernels.keys() == expected
    budgets = BUDGETS[f"head dim {case.head_dim}, query block {case.q_block}"]
    for name, kernel in kernels.items():
        print(name, kernel)
        budget = budgets[name]
        assert kernel.spilled == 0, f"{name} spills registers"
        assert kernel.atomics == 0, f"{name} has atomics, whose order is not fixed"
        assert kernel.shared_memory <= SHARED_MEMORY_PER_BLOCK
        assert kernel.wgmma >= budget["wgmma"] > 0, f"{name} lost its wgmma instructions"
        assert kernel.registers <= budget["registers"], f"{name} takes more registers"
        assert kernel.shared_memory <= budget["shared_memory"], f"{name} takes more shared memory"
    inputs = 2 * case.heads * case.head_dim * (case.q_tokens + 2 * case.k_tokens)
    tables = 4 * case.table_shape[1] * case.table_shape[2] * case.table_shape[3]
    print(f"temporary {plan.temp_size_in_bytes / 2**20:.0f} MiB, inputs {inputs / 2**20:.0f} MiB")
    if case.routing == "block":
        assert plan.temp_size_in_bytes < 3 * inputs + 8 * tables
