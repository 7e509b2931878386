"""Counts the kernels that a program launches on an H200, in its compiled form, without a GPU.

    JAX_PLATFORMS=cpu python -m tools.benchmark.launches --views 2 8 32

Compiles parts of VGGT-1B at 518 x 518 for a described H200: the camera head, a frame and a global
attention layer in float32, and a global layer of `sla_global` in bfloat16 with its Triton kernels,
with and without its gradient; and a whole block, with such attention and with one launch for it.
cuDNN cannot be compiled for without a GPU; in bfloat16 its flash attention is one launch. Kernels
in loops count as often as the loop runs. Needs jax-cuda13-plugin and jax-cuda13-pjrt of jax's
version. This says what would run, and nothing about how long it would take.
"""

import argparse
import re
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lite3r_jax.attention.dense import Dense
from lite3r_jax.attention.plan import Plan
from lite3r_jax.attention.sla import SLA
from lite3r_jax.attention.strategy import Layouts, TokenLayout
from lite3r_jax.backbones.vggt.camera_head import CameraConfig, IterativeCameraHead
from lite3r_jax.benchmarking.device_check.attention import forward, gradient
from lite3r_jax.layers.block import Block, BlockConfig
from lite3r_jax.layers.rngs import traced_rngs
from lite3r_jax.layers.rope import rope_table
from tools.benchmark.attention import compile_for
from tools.benchmark.roofline import OneLaunch

# What is no kernel. Copies between two places of the device are kernels or as costly.
_FREE = {
    "parameter", "constant", "bitcast", "tuple", "get-tuple-element", "after-all", "partition-id",
    "replica-id", "add-dependency", "opt-barrier", "copy-done", "custom-call-done", "async-done",
}  # fmt: skip
_INSTRUCTION = re.compile(r"\s*(?:ROOT )?%[\w.\-]+ = (?:\(.*?\)|\S+) ([\w\-]+)\(")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%([\w.\-]+) \(.*\{$")


def launches(text: str) -> int:
    """Counts the kernels that an optimized program launches in one call.

    Args:
        text: `jax.stages.Compiled.as_text()`.

    Raises:
        ValueError: a loop of which XLA does not know how often it runs.
    """
    bodies, entry = _computations(text)
    counts: dict[str, int] = {}

    def count(name: str) -> int:
        if name not in counts:
            counts[name] = sum(of(line) for line in bodies[name])
        return counts[name]

    def of(line: str) -> int:
        match = _INSTRUCTION.match(line)
        if match is None or match[1] in _FREE:
            return 0
        called = dict(re.findall(r"(\w+)=%([\w.\-]+)", line))
        if match[1] == "while":
            times = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', line)
            if times is None:
                raise ValueError(f"a loop without a known count: {line.strip()[:100]}")
            return int(times[1]) * count(called["body"])
        if match[1] == "call":
            return count(called["to_apply"])
        if match[1] == "async-start":
            return count(called["calls"])
        if match[1] == "conditional":
            branches = re.search(r"branch_computations=\{([^}]*)\}", line)
            names = re.findall(r"%([\w.\-]+)", branches[1]) if branches else []
            names += [called[k] for k in ("true_computation", "false_computation") if k in called]
            return max(count(name) for name in names)
        return 1

    return count(entry)


def operations(text: str) -> Counter[str]:
    """Counts the instructions of a program that are kernels, by kind; those in loops once."""
    bodies, _ = _computations(text)
    kinds: Counter[str] = Counter()
    for name, lines in bodies.items():
        if "fused" in name:
            continue
        for line in lines:
            match = _INSTRUCTION.match(line)
            if match and match[1] not in _FREE:
                target = re.search(r'custom_call_target="([^"]+)"', line)
                kinds[target[1] if target else match[1]] += 1
    return kinds


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Returns the lines of every computation of a program by name, and the entry's name."""
    bodies: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            lines = bodies[match[1]] = []
            entry = match[1] if line.startswith("ENTRY") else entry
        elif line.startswith(" "):
            lines.append(line)
    return bodies, entry


def camera_head(views: int) -> Any:
    """Compiles the camera head of VGGT-1B over so many views."""
    kinds = {"plan": Plan(), "param_dtype": jnp.float32}
    head = nnx.eval_shape(
        lambda: IterativeCameraHead(CameraConfig(), 2048, **kinds, rngs=traced_rngs(0))
    )
    graph, state = nnx.split(head)
    x = jax.ShapeDtypeStruct((1, views, 2048), jnp.float32)
    return compile_for("h200", lambda state, x: nnx.merge(graph, state)(x), state, x)


def layer(spec: Any, batch: int, views: int, dtype: str, call: Any = forward) -> Any:
    """Compiles attention from q, k and v to o, of `batch` sequences of so many views."""
    layout = TokenLayout(views, 5, (37, 37), "frame" if views == 1 else "global")
    x = jax.ShapeDtypeStruct((batch, layout.tokens, 16, 64), dtype)
    return compile_for("h200", call(spec, layout), x, x, x, x)


def block(spec: Any, views: int) -> Any:
    """Compiles a block of VGGT-1B over all views, in bfloat16 with qk-norm and RoPE."""
    config = BlockConfig(dim=1024, heads=16, qk_norm=True)
    kinds = {"dtype": jnp.bfloat16, "param_dtype": jnp.bfloat16}
    graph, state = nnx.split(nnx.eval_shape(lambda: Block(config, **kinds, rngs=traced_rngs(0))))
    core = spec.build(heads=16, head_dim=64, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
    layout = TokenLayout(views, 5, (37, 37), "global")
    x = jax.ShapeDtypeStruct((1, layout.tokens, 1024), jnp.float32)
    places = np.indices((37, 37)).reshape(2, -1).T + 1
    rope = rope_table(np.concatenate([np.zeros((5, 2), int), places]), 64)

    def call(state: Any, x: jax.Array) -> jax.Array:
        return nnx.merge(graph, state)(x, core, Layouts.both(layout), rope)[0]

    return compile_for("h200", call, state, x)


def parts(views: int) -> dict[str, Callable[[], Any]]:
    """Returns the parts of VGGT-1B by name, each as a function that compiles it."""
    return {
        "camera head": partial(camera_head, views),
        "frame layer, float32": partial(layer, Dense(), views, 1, "float32"),
        "global layer, float32": partial(layer, Dense(), 1, views, "float32"),
        "global layer, sla, bfloat16": partial(layer, SLA(keep=0.1), 1, views, "bfloat16"),
        "block, one launch for attention": partial(block, OneLaunch(), views),
        "block, sla": partial(block, SLA(keep=0.1), views),
        "global layer, sla, bfloat16, with gradient": partial(
            layer, SLA(keep=0.1), 1, views, "bfloat16", gradient
        ),
    }


def main(argv: list[str] | None = None) -> None:
    """Compiles the parts and prints a table of their launches and temporary memory."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--views", type=int, nargs="+", default=[2, 8, 32])
    parser.add_argument("--list", action="store_true", help="kinds of instructions")
    args = parser.parse_args(argv)
    print(f"jax {jax.__version__}, compiled for an H200, not run\n")
    print("| views | part | launches | temporary |\n|---|---|---|---|")
    for views in args.views:
        for name, compiled in parts(views).items():
            program = compiled()
            text, memory = program.as_text(), program.memory_analysis().temp_size_in_bytes
            print(f"| {views} | {name} | {launches(text)} | {memory / 2**20:.0f} MiB |", flush=True)
            if args.list:
                print(f"    {dict(operations(text).most_common())}")


if __name__ == "__main__":
    main()
