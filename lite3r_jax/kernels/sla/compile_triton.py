"""Compiles the kernels of `jax_triton` for NVIDIA GPUs that need not be here, to choose launches.

Needs the package triton, which has its own ptxas: neither a GPU, nor CUDA, nor PyTorch.
"""

import itertools
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lite3r_jax.kernels.sla.launches import KERNELS, Row, RowsLaunch
from lite3r_jax.kernels.sla.limits import HEAD_DIMS, K_BLOCK, Q_BLOCKS

# Of a multiprocessor: KiB of shared memory, by compute capability (CUDA C++ Programming Guide,
# table "Technical Specifications per Compute Capability"), and registers and threads of all.
SHARED_MEMORY = {8.0: 164, 8.6: 100, 8.9: 100, 9.0: 228, 10.0: 228, 12.0: 100}
REGISTERS, WARPS = 65536, 48
# Warps that a multiprocessor needs at least to have all of its units at work, by estimate.
ENOUGH_WARPS = 8
TYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
CAPABILITIES = (8.0, 8.9, 9.0, 10.0)


@dataclass(frozen=True)
class Usage:
    """Resources that a compiled kernel takes.

    Attributes:
        registers: per thread.
        spilled: bytes of local memory per thread, which holds what does not fit in registers.
        shared_memory: bytes per program.
        wgmma: number of instructions of Hopper's matrix unit.
        atomics: number of atomic instructions.
    """

    registers: int
    spilled: int
    shared_memory: int
    wgmma: int
    atomics: int


def candidates(kernel: str, dtype: str, head_dim: int) -> Iterator[RowsLaunch]:
    """Yields the launches that are tried for a kernel.

    Float32 operands are multiplied from shared memory, by fewer rows.
    """
    small = head_dim <= 64
    if dtype == "float32":
        rows, warps, stages = ((64, 32), (8,), (2,)) if small else ((32, 16), (8,), (1,))
    else:
        rows = (64, 32) if kernel == "sla_key_gradient" else (128, 64)
        warps, stages = ((4, 8), (3, 5)) if small else ((8,), (2, 4))
    yield from (RowsLaunch(w, s, r) for r, w, s in itertools.product(rows, warps, stages))


def compile_kernel(
    kernel: str, launch: RowsLaunch, dtype: str, head_dim: int, q_block: int, capability: float
) -> Usage:
    """Compiles one of `launches.KERNELS` down to machine code and returns what it takes.

    Args:
        kernel: its name.
        launch: rows, warps and stages.
        dtype: "bfloat16", "float16" or "float32".
        head_dim: D.
        q_block: queries per block.
        capability: compute capability of the GPU.

    Raises:
        Exception: whatever Triton's compiler raises where it cannot compile the kernel.
    """
    import triton  # pyright: ignore[reportMissingImports]
    from triton.backends.compiler import GPUTarget  # pyright: ignore[reportMissingImports]
    from triton.compiler import ASTSource  # pyright: ignore[reportMissingImports]

    from lite3r_jax.kernels.sla import jax_triton_kernels as kernels

    function = getattr(kernels, kernel)
    constants = {"HEADS": 16, "D": head_dim, "Q_BLOCK": q_block, "K_BLOCK": K_BLOCK}
    constants |= {"SCALE": head_dim**-0.5}
    constants["SIZE" if kernel == "sla_key_gradient" else "ROWS"] = launch.rows
    signature = {name: _type(name, kernel, TYPES[dtype]) for name in function.arg_names}
    signature |= dict.fromkeys(constants, "constexpr")
    pointers = [i for i, name in enumerate(function.arg_names) if signature[name].startswith("*")]
    compiled = triton.compile(
        ASTSource(
            function,
            signature=signature,
            constexprs=constants,
            attrs={(i,): [["tt.divisibility", 16]] for i in pointers},
        ),
        target=GPUTarget("cuda", round(10 * capability), 32),
        options={"num_warps": launch.warps, "num_stages": launch.stages},
    )
    registers, spilled = _resources(compiled.asm["cubin"])
    ptx = compiled.asm["ptx"]
    atomics = len(re.findall(r"\b(?:atom|red)\.(?:global|shared)", ptx))
    wgmma = ptx.count("wgmma.mma_async")
    return Usage(registers, spilled, compiled.metadata.shared, wgmma, atomics)


def _type(name: str, kernel: str, dtype: str) -> str:
    """Returns Triton's type of a parameter of a kernel."""
    if name == "o" and kernel == "sla_query_gradient":
        return "*fp32"
    if name in ("q", "k", "v", "o", "do", "dq", "dk", "dv"):
        return f"*{dtype}"
    if name in ("bias", "lse", "delta"):
        return "*fp32"
    return "*i32" if name in ("ids", "counts", "rows", "offsets") else "i32"


def _resources(cubin: bytes) -> tuple[int, int]:
    """Returns registers and bytes of local memory, by the cuobjdump of the package triton."""
    import triton  # pyright: ignore[reportMissingImports]

    program = Path(str(triton.__file__)).with_name("backends") / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run(
            [program, "-res-usage", file.name], capture_output=True, text=True, check=True
        )
    usage = re.search(r"REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)", done.stdout)
    if usage is None:
        raise ValueError(f"{program.name} says nothing of registers: {done.stdout[-200:]}")
    return int(usage[1]), max(int(usage[2]), int(usage[3]))


def table(capability: float, report: Callable[[str], None] = lambda line: None) -> Iterator[Row]:
    """Yields the best launch of every kernel on a compute capability, by what compiling shows.

    Of the launches that fit and spill least, at best nothing: enough warps on a multiprocessor come
    first, then the most rows, which read each key block for more queries, then more warps, then
    more stages. This is an estimate; nothing is timed.

    Args:
        capability: of `SHARED_MEMORY`.
        report: is called with a line for each candidate.
    """
    for kernel in KERNELS:
        for dtype in ("half", "float32"):
            for head_dim in HEAD_DIMS:
                usages = list(_usages(kernel, dtype, head_dim, capability, report))
                for q_block in Q_BLOCKS:
                    fits = [x for x in usages if x[0].rows <= q_block]
                    if not fits:
                        continue
                    launch, usage = max(fits, key=lambda x: rank(*x, capability))
                    yield Row(
                        f"compute capability {capability}", kernel, dtype, head_dim, q_block,
                        launch.rows, launch.warps, launch.stages, usage.registers,
                        usage.spilled, usage.shared_memory,
                    )  # fmt: skip


def _usages(
    kernel: str, dtype: str, head_dim: int, capability: float, report: Callable[[str], None]
) -> Iterator[tuple[RowsLaunch, Usage]]:
    """Yields the candidates whose shared memory fits, and the resources that they take."""
    for launch in candidates(kernel, dtype, head_dim):
        name = "bfloat16" if dtype == "half" else dtype
        usage = compile_kernel(kernel, launch, name, head_dim, max(Q_BLOCKS), capability)
        report(f"{capability} {kernel} {dtype} {head_dim} {launch} {usage}")
        if usage.shared_memory <= (SHARED_MEMORY[capability] - 1) * 1024:
            yield launch, usage


def resident_warps(launch: RowsLaunch, usage: Usage, capability: float) -> int:
    """Returns the number of warps that are on a multiprocessor at a time."""
    granted = -(-usage.registers // 8) * 8 * 32 * launch.warps
    shared = SHARED_MEMORY[capability] * 1024 // (usage.shared_memory + 1024)
    return launch.warps * min(REGISTERS // granted, shared, WARPS // launch.warps)


def rank(launch: RowsLaunch, usage: Usage, capability: float) -> tuple[int, ...]:
    """Returns the sort key by which `table` ranks a launch, the larger the better."""
    warps = resident_warps(launch, usage, capability)
    enough, many = (min(warps, most) for most in (ENOUGH_WARPS, 2 * ENOUGH_WARPS))
    return -usage.spilled, enough, launch.rows, many, launch.stages
