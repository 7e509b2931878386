"""Measures attention of one VGGT-1B global layer, dense and sparse in one run: time and memory.

    python -m tools.benchmark.attention --views 8 16 32
    python -m tools.benchmark.attention --plan h200 --grid 37 37 --views 2 8 32 100 --dtype bfloat16
    python -m tools.benchmark.attention --plan v5e --grid 37 37 --views 2 8 --dtype bfloat16

From q, k and v to o, with the selection of blocks: 16 heads of 64; 5 special tokens and a grid of
patches per view, all views in one sequence. q, k and v are random. Memory is what the compiled call
holds besides arguments and results, by XLA's own account.

`--plan h200` compiles for a described device (needs jax-cuda13-plugin and jax-cuda13-pjrt of jax's
version, no GPU and no driver) and runs nothing; "auto" is what that device would choose, but dense
attention is the blocked form there, since cuDNN cannot be compiled for without a GPU. `--plan v5e`,
`v5p` and `v6e` compile for a TPU chip (see `tools.benchmark.tpu`), with all kernels for TPUs.
"""

import argparse
import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lite3r_jax.attention.dense import Dense
from lite3r_jax.attention.sla import SLA
from lite3r_jax.attention.strategy import AttentionStrategy, TokenLayout
from lite3r_jax.benchmarking.device_check.attention import (
    HEAD_DIM,
    HEADS,
    SPECIAL,
    forward,
    gradient,
)
from lite3r_jax.kernels import proofs
from tools.benchmark import tpu

MIB = 2**20
PASSES = ("forward", "gradient")
PLANS = {"h200": "NVIDIA H200", **{name: chip.kind for name, chip in tpu.CHIPS.items()}}


def main(argv: list[str] | None = None) -> None:
    """Parses the command line and prints one line per compiled call."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--plan", choices=PLANS, help="compile only, for this device")
    parser.add_argument("--views", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--grid", type=int, nargs=2, default=[28, 37], metavar=("ROWS", "COLUMNS"))
    parser.add_argument("--keep", type=float, nargs="+", default=[0.1])
    parser.add_argument("--q-block", type=int, default=128)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--passes", nargs="+", choices=PASSES, default=PASSES)
    parser.add_argument("--implementation", default="auto", help="of SLA")
    parser.add_argument("--dense", default="auto", help="implementation of dense attention")
    parser.add_argument("--runs", type=int, default=1, help="timed runs, of which the best counts")
    args = parser.parse_args(argv)
    specs: list[AttentionStrategy] = [Dense(args.dense)]
    specs += [
        SLA(keep=k, q_block=args.q_block, implementation=args.implementation) for k in args.keep
    ]
    where = PLANS[args.plan] + ", not run" if args.plan else jax.devices()[0].device_kind
    print(f"jax {jax.__version__}, {where}, {args.dtype}, patches {args.grid[0]} x {args.grid[1]}")
    for views in args.views:
        layout = TokenLayout(views, SPECIAL, tuple(args.grid), "global")
        shape = jax.ShapeDtypeStruct((1, layout.tokens, HEADS, HEAD_DIM), args.dtype)
        for which in args.passes:
            dense = None
            for spec in specs:
                call = (forward if which == "forward" else gradient)(spec, layout)
                compiled = compile_for(args.plan, call, *[shape] * 4)
                memory = compiled.memory_analysis().temp_size_in_bytes
                with target(args.plan):
                    name = spec.describe(args.dtype, HEAD_DIM)
                text = f"{views} views, {layout.tokens} tokens, {which}, {name}: "
                text += f"temporary {memory / MIB:.0f} MiB"
                if not args.plan:
                    wall, cpu = measure(compiled, shape, args.runs)
                    dense = dense or wall
                    text += f", {wall:.2f} s wall, {cpu:.2f} s CPU, {dense / wall:.2f} x dense"
                print(text, flush=True)


@contextlib.contextmanager
def target(device: str | None) -> Iterator[None]:
    """Selects a described device for a `with` block, on which all kernels count as proven.

    None selects the device of this machine, and leaves proofs of kernels as they are.
    """
    if device is None:
        yield
        return
    if device in tpu.CHIPS:
        with tpu.traced_for(device):
            yield
        return
    gpu = jax.sharding.AbstractDevice(PLANS[device], num_cores=None, platform="cuda")
    mesh = jax.sharding.AbstractMesh((), (), abstract_device=gpu)
    with proofs.assumed(), jax.sharding.use_abstract_mesh(mesh):
        yield


def compile_for(device: str | None, call: Callable[..., Any], *args: Any) -> Any:
    """Compiles `call` of described arrays for a described device, or for this one."""
    if device is None:
        return jax.jit(call).lower(*args).compile()
    from jax.experimental import topologies
    from jax.sharding import NamedSharding, PartitionSpec

    if device in tpu.CHIPS:
        here = NamedSharding(tpu.mesh(device), PartitionSpec())
        args = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), args)
        return tpu.lower(device, call, *args).compile()
    config = (Path(__file__).parent / f"{device}.txtpb").read_text()
    topology = topologies.get_topology_desc(platform="cuda", target_config=config, topology="1x1x1")
    mesh = topologies.make_mesh(topo=topology, mesh_shape=(1,), axis_names=("x",))
    here = NamedSharding(mesh, PartitionSpec())
    args = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), args)
    with target(device):
        lowered = jax.jit(call).trace(*args).lower(lowering_platforms=("cuda",))
    # No GPU, no autotuning: XLA's own Triton GEMMs cannot choose their tiles.
    return lowered.compile({"xla_gpu_enable_triton_gemm": False})


def measure(compiled: Any, shape: jax.ShapeDtypeStruct, runs: int) -> tuple[float, float]:
    """Returns wall and CPU seconds of the run with the least wall time."""
    rng = np.random.default_rng(0)
    args = [jnp.asarray(rng.standard_normal(shape.shape), shape.dtype) for _ in range(4)]
    times = []
    for _ in range(runs):
        wall, cpu = time.perf_counter(), time.process_time()
        jax.block_until_ready(compiled(*args))
        times.append((time.perf_counter() - wall, time.process_time() - cpu))
    return min(times)


if __name__ == "__main__":
    main()
