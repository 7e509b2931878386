"""Counts kernels of one block with float8 weights, and their bytes read and written, without a GPU.

    JAX_PLATFORMS=cpu python -m tools.benchmark.fp8_block --views 2 8 32

Compiles a block of VGGT-1B (width 1024, 518 x 518) for a described H200, with bfloat16 weights and
deployed as fp8_dynamic in every implementation, and counts in the optimized HLO. Attention between
q, k and v is left out: it is the same in all of them, and cuDNN's cannot be compiled for without a
GPU. In its place stands q + k + v. Needs jax-cuda13-plugin and jax-cuda13-pjrt of jax's version.
This says what would run, and nothing about how long it would take.
"""

import argparse
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from lite3r_jax.attention.strategy import AttentionCore, AttentionInputs, Layouts, TokenLayout
from lite3r_jax.layers.block import Block, BlockConfig
from lite3r_jax.layers.rope import rope_table
from lite3r_jax.precision import Fp8Rule, deploy

CONFIG = BlockConfig(1024, 16, qk_norm=True)
FORMS = ("bfloat16", "xla", "triton", "mosaic")
MIB = 2**20
_BYTES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "f8e4m3fn": 1, "pred": 1, "s8": 1}
# What is no kernel.
_FREE = {"parameter", "constant", "bitcast", "tuple", "get-tuple-element"}


@dataclass(frozen=True)
class Kernel:
    """One kernel of a compiled program, with the bytes that it reads and writes.

    Attributes:
        name: of a custom call's target, or of the instruction.
        read: bytes of its operands, each once.
        written: bytes of its results, without the workspace of cuBLASLt.
        results: their types.
    """

    name: str
    read: int
    written: int
    results: str


class Sum(AttentionCore):
    """A stand-in for attention, which reads q, k and v and writes o."""

    def __call__(self, inputs: AttentionInputs) -> jax.Array:
        """Returns q + k + v in the place of attention."""
        return inputs.q + inputs.k + inputs.v


class Part(nnx.Module):
    """A model of one block, for rules to find its Linears by path."""

    def __init__(self, config: BlockConfig, rngs: nnx.Rngs):
        self.block = Block(config, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16, rngs=rngs)


def part(form: str, config: BlockConfig = CONFIG) -> Any:
    """Builds the abstract model of one block in one of `FORMS`."""

    def build() -> Any:
        model = Part(config, nnx.Rngs(0))
        if form == "bfloat16":
            return model
        return deploy(model, [Fp8Rule(".")], "fp8_dynamic", rest=jnp.bfloat16, implementation=form)

    return nnx.eval_shape(build)


def lower(form: str, views: int, mesh: jax.sharding.Mesh, config: BlockConfig = CONFIG) -> Any:
    """Lowers the block, as a global layer over so many views of 518 x 518, for a mesh."""
    layout = TokenLayout(views, 5, (37, 37), "global")
    graph, state = nnx.split(part(form, config))
    here = NamedSharding(mesh, PartitionSpec())

    def described(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here)

    def forward(state: Any, x: jax.Array, rope: Any) -> jax.Array:
        block = nnx.merge(graph, state).block
        return block(x, Sum(), Layouts.both(layout), rope)[0]

    tokens = jax.ShapeDtypeStruct((1, layout.tokens, config.dim), jnp.float32)
    rope = rope_table(np.zeros((layout.tokens, 2), np.int32), config.dim // config.heads)
    gpu = jax.sharding.AbstractDevice("NVIDIA H200", num_cores=None, platform="cuda")
    on_gpu = jax.sharding.AbstractMesh((), (), abstract_device=gpu)
    with jax.sharding.use_abstract_mesh(on_gpu):
        traced = jax.jit(forward).trace(*jax.tree.map(described, (state, tokens, rope)))
        return traced.lower(lowering_platforms=("cuda",))


def kernels(text: str) -> list[Kernel]:
    """Lists the kernels that the entry of an optimized program runs, in order.

    Args:
        text: `jax.stages.Compiled.as_text()`, without loops.
    """
    types: dict[str, str] = {}
    listed = []
    entry = text[text.index("\nENTRY") :]
    for line in entry.splitlines()[2:]:
        match = re.match(r"\s*(?:ROOT )?%([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)", line)
        if match is None:
            continue
        name, shape, operation, rest = match.groups()
        types[name] = shape
        if operation in _FREE:
            continue
        operands = re.findall(r"%([\w.\-]+)", rest.split("), ")[0])
        target = re.search(r'custom_call_target="([^"]+)"', line)
        workspace = r", s8\[\d+\]\{0\}" if target and "cublas" in target[1] else "$^"
        shape = re.sub(workspace, "", shape)
        read = sum(_size(types[operand]) for operand in dict.fromkeys(operands))
        listed.append(Kernel(target[1] if target else name, read, _size(shape), shape))
    return listed


def _size(shape: str) -> int:
    """Returns the bytes of all arrays in an HLO type."""
    return sum(
        _BYTES[kind] * math.prod(int(n) for n in sizes.split(",") if n)
        for kind, sizes in re.findall(r"(\w+)\[([\d,]*)\]", shape)
    )


def main(argv: list[str] | None = None) -> None:
    """Counts the kernels of all forms and prints a table for every number of views."""
    from jax.experimental import topologies

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--views", type=int, nargs="+", default=[2, 8, 32])
    parser.add_argument("--list", action="store_true", help="every kernel")
    args = parser.parse_args(argv)
    description = (Path(__file__).parent / "h200.txtpb").read_text()
    topology = topologies.get_topology_desc(
        platform="cuda", target_config=description, topology="1x1x1"
    )
    mesh = topologies.make_mesh(topo=topology, mesh_shape=(1,), axis_names=("x",))
    print(f"jax {jax.__version__}, compiled for an H200, not run\n")
    print("| views | block | kernels | read | written | temporary |")
    print("|" + "---|" * 6)
    for views in args.views:
        for form in FORMS:
            # Without a GPU nothing is tuned, and XLA's own Triton GEMMs cannot choose their tiles.
            compiled = lower(form, views, mesh).compile({"xla_gpu_enable_triton_gemm": False})
            launched = kernels(compiled.as_text())
            read, written = (sum(getattr(k, n) for k in launched) for n in ("read", "written"))
            temporary = compiled.memory_analysis().temp_size_in_bytes
            print(
                f"| {views} | {form} | {len(launched)} | {read / MIB:.0f} MiB "
                f"| {written / MIB:.0f} MiB | {temporary / MIB:.0f} MiB |",
                flush=True,
            )
            for kernel in launched if args.list else ():
                print(f"    {kernel}")


if __name__ == "__main__":
    main()
