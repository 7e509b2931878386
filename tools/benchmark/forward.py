"""Measures time and memory of a forward pass here, or plans its memory for a described device.

    python -m tools.benchmark.forward WEIGHTS --views 2 --height 392 --width 518
    python -m tools.benchmark.forward --backbone da3 --views 2 --height 378 --width 504
    python -m tools.benchmark.forward --backbone pi3 --views 2 --height 434 --width 574
    python -m tools.benchmark.forward --plan h200 --views 2 8 32 100 --dtype bfloat16
    python -m tools.benchmark.forward --plan h200 --views 2 --row sla_global-fp8_dynamic
    python -m tools.benchmark.forward --plan v5e --views 2 8 --row "sla_global(keep=0.1)-bfloat16"
    python -m tools.benchmark.forward --plan v5e --views 2 --row dense-bfloat16 --record PLANS
    python -m tools.benchmark.forward --plan h200 --views 100 --dtype bfloat16 --devices 8
    python -m tools.benchmark.forward --plan h200 --views 400 1600 --rest host --fit 24
    XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m tools.benchmark.forward \
        --views 16 --height 196 --width 252 --heads camera,depth --devices 8 --split-weights

WEIGHTS is a converted directory; without it a model with random weights is made, of the backbone's
published size (VGGT-1B, DA3-Large, Pi3) or of the sizes in --config. Every number of views is
compiled apart; compile time is not part of the run time.

`--plan h200` compiles for a described device (needs jax-cuda13-plugin and jax-cuda13-pjrt of jax's
version, no GPU and no driver) and prints XLA's memory plan; `--plan v5e`, `v5p` and `v6e` for one
TPU chip (see `tools.benchmark.tpu`). cuDNN cannot be compiled for that way, so the plan has the
blocked form of dense attention. With --row it is that of a model as `--mode=bench` has it,
ATTENTION-PRECISION, with the kernels that sparse attention, and on a TPU dense attention too, has
for the device. With --devices it is that of one of so many devices that share the views
(`compute.mesh`), with what they send; with --rest host that of a pass whose tokens rest on the host
(`compute.rest`). --fit says how many views go into so many GB, on the straight line through the
last two numbers of views. --record appends every plan to a file of JSON lines, also that of a
program too large for its device (`tools.benchmark.plans`, which makes tables of them).
--split-weights: of several devices each has a part of them (`compute.weights`). Peaks of memory on
this machine are those after the weights were placed.
"""

import argparse
import gc
import sys
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lite3r_jax import InputError, load
from lite3r_jax.attention.dense import Dense
from lite3r_jax.attention.plan import Plan
from lite3r_jax.attention.presets import parse_plan
from lite3r_jax.attention.strategy import AttentionStrategy
from lite3r_jax.backbones.base import backbone_names, get_backbone
from lite3r_jax.evaluation.variants import Variant, held_dtype, parse_variants
from lite3r_jax.infer.memory import Forward, peak_process, restart_peak
from lite3r_jax.kernels import proofs
from lite3r_jax.layers.rngs import traced_rngs
from lite3r_jax.mesh import VIEWS, check_views, make_view_mesh, weight_spec
from lite3r_jax.precision import Kind, deploy, preset
from lite3r_jax.weights import strict_json
from tools.benchmark import plans, tpu
from tools.benchmark.collectives import collectives, summary
from tools.benchmark.collectives import described as h200s

GIB = 2**30


def main(argv: list[str] | None = None) -> None:
    """Parses the command line, runs, and prints one line per measurement."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("weights", nargs="?", type=Path)
    parser.add_argument("--plan", choices=["h200", *tpu.CHIPS], help="compile only, for this")
    parser.add_argument("--backbone", choices=backbone_names(), default="vggt")
    parser.add_argument("--config", type=Path, help="JSON sizes of a model with random weights")
    parser.add_argument("--views", type=int, nargs="+", default=[2])
    parser.add_argument("--height", type=int, default=392)
    parser.add_argument("--width", type=int, default=518)
    parser.add_argument("--heads", help="default: camera,depth and, if there is one, point")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--row", help="of the plan: dense-bfloat16, sla_global-fp8_dynamic, ...")
    parser.add_argument("--frame-chunk", type=int, default=1)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--devices", type=int, default=1, help="which share the views")
    parser.add_argument("--split-weights", action="store_true", help="over the devices")
    parser.add_argument("--rest", choices=["device", "host"], default="device", help="of the plan")
    parser.add_argument(
        "--fit", type=float, nargs="+", default=[], metavar="GB", help="of the plan"
    )
    parser.add_argument("--record", type=Path, help="append the plan to this file of JSON lines")
    args = parser.parse_args(argv)
    try:
        run(args)
    except InputError as error:
        sys.exit(f"error: {error}")


def run(args: argparse.Namespace) -> None:
    """Plans a pass for a described device, or loads a model and measures it on this machine."""
    backbone = get_backbone(args.backbone)
    known = [head for head in ("camera", "depth", "point") if head in backbone.heads]
    heads = tuple(args.heads.split(",")) if args.heads else tuple(known)
    dtype = jnp.dtype(args.dtype)

    def abstract(plan: Plan, dtype: Any = dtype, held: Any = dtype) -> Any:
        config = backbone.default_config
        if args.config is not None:
            config = backbone.config_from_json(strict_json.read_object(args.config))
        kinds = {"heads": heads, "plan": plan, "dtype": dtype, "param_dtype": held}
        return nnx.eval_shape(lambda: backbone.build(config, **kinds, rngs=traced_rngs(0)))

    if args.plan and args.row:
        row = parse_variants(args.row, where="--row")[0]
        low = row.precision.startswith("fp8")
        compute = jnp.dtype("bfloat16" if low else row.precision)
        model = abstract(planned(row, args.plan), compute, held_dtype(row))
        plan(args, as_row(model, row), row.name, heads)
        return
    if args.plan:
        model = abstract(Plan(default=Dense("blocked")))
        plan(args, model, f"{args.dtype}, attention: blocked", heads)
        return
    start = time.perf_counter()
    if args.weights is None:
        model = random_model(abstract(Plan()))
    else:
        model = load(args.weights, heads=heads, dtype=dtype, param_dtype=dtype)
    mesh = make_view_mesh(f"view:{args.devices}") if args.devices > 1 else None
    forward = Forward(model, mesh=mesh, split_weights=args.split_weights)
    del model
    gc.collect()
    seconds = time.perf_counter() - start
    kind = f"{args.devices} x {jax.devices()[0].device_kind}"
    print(f"jax {jax.__version__} on {kind}, {args.dtype}")
    print(f"weights in {seconds:.1f} s, {memory()}", flush=True)
    restart_peak()
    for views in args.views:
        measure(forward, views, args)


def planned(row: Variant, device: str = "h200", dense: AttentionStrategy | None = None) -> Plan:
    """Returns the attention of a row as a described device would choose it.

    Args:
        row: the model whose attention it is.
        device: the described device.
        dense: in the place of dense attention. By default what is best on a TPU, and plain JAX for
            a GPU, which cuDNN's attention needs to be compiled.
    """
    kernels = "tpu" if device in tpu.CHIPS else "triton"
    dense = dense or (Dense() if device in tpu.CHIPS else Dense("blocked"))
    plan = parse_plan(row.attention)
    rules = tuple(replace(rule, spec=_by(kernels, rule.spec, dense)) for rule in plan.rules)
    return Plan(rules, _by(kernels, plan.default, dense))


def _by(kernels: str, spec: AttentionStrategy, dense: AttentionStrategy) -> AttentionStrategy:
    if isinstance(spec, Dense):
        return dense
    values = {field.name: getattr(spec, field.name) for field in fields(spec)}
    inner = {
        n: _by(kernels, v, dense) for n, v in values.items() if isinstance(v, AttentionStrategy)
    }
    named = {"implementation": kernels} if "implementation" in values else {}
    return replace(spec, **inner, **named)


def as_row(model: Any, row: Variant) -> Any:
    """Returns the abstract model with weights as a row has them, in float8 for some rows."""
    if not row.precision.startswith("fp8"):
        return model
    kind = cast(Kind, row.precision)
    return nnx.eval_shape(lambda: deploy(model, preset("default"), kind, rest=jnp.bfloat16))


def measure(forward: Forward, views: int, args: argparse.Namespace) -> None:
    """Compiles the pass for one number of views, runs it and prints times and memory."""
    rng = np.random.default_rng(0)
    images = forward.place(rng.random((1, views, args.height, args.width, 3), dtype=np.float32))
    start = time.perf_counter()
    plan = forward.plan(views, args.height, args.width, args.frame_chunk)
    print(f"{views} views: compiled in {time.perf_counter() - start:.2f} s, {memory()}", flush=True)
    start = time.perf_counter()
    forward(images, plan)
    print(f"{views} views: first pass {time.perf_counter() - start:.2f} s, {memory()}", flush=True)
    for run in range(args.runs):
        wall, cpu = time.perf_counter(), time.process_time()
        forward(images, plan)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        print(
            f"{views} views: run {run} {wall:.3f} s wall, {cpu:.2f} s CPU, {memory()}", flush=True
        )


def memory() -> str:
    """Formats the peak so far, of the process and, where it is known, of the device."""
    text = f"peak RSS {peak_process() / GIB:.2f} GiB"
    stats = jax.devices()[0].memory_stats() or {}
    peak = stats.get("peak_bytes_in_use")
    return text if peak is None else f"{text}, peak device {peak / GIB:.2f} GiB"


def random_model(abstract: Any, known: dict[Any, jax.Array] | None = None) -> Any:
    """Fills an abstract model with kernels N(0, 0.02^2), biases of zero and norms of one.

    Args:
        abstract: the model without values.
        known: (path, shape, dtype) -> values; those that are there are taken and others added, so
            that models share them.
    """
    known = {} if known is None else known
    graph, state = nnx.split(abstract)
    flat = []
    for path, leaf in nnx.to_flat_state(state):
        key = (path, leaf.shape, jnp.dtype(leaf.dtype))
        if key not in known:
            known[key] = _random(path, leaf.shape, leaf.dtype)
        flat.append((path, leaf.replace(known[key])))
    return nnx.merge(graph, nnx.from_flat_state(flat))


def _random(path: tuple[Any, ...], shape: tuple[int, ...], dtype: Any) -> jax.Array:
    if path[-1] in ("scale", "gamma", "bias"):
        return jnp.full(shape, 0.0 if path[-1] == "bias" else 1.0, dtype)
    rng = np.random.default_rng(zlib.crc32(repr(path).encode()))
    return jnp.asarray(0.02 * rng.standard_normal(shape, dtype=np.float32), dtype)


def plan(args: argparse.Namespace, model: Any, what: str, heads: Sequence[str]) -> None:
    """Compiles an abstract model for the described device and prints memory plans."""
    print(f"jax {jax.__version__}, compiled for {args.plan}, {what}")
    needs = []
    for views in args.views:
        start = time.perf_counter()
        shape = (1, views, args.height, args.width, 3)
        where = {"devices": args.devices, "on_host": args.rest == "host"}
        where["split_weights"] = args.split_weights
        lowered = lower(model, shape, args.frame_chunk, args.plan, **where)
        traced = time.perf_counter() - start
        row = {
            "program": "forward", "backbone": args.backbone, "what": what, "heads": heads,
            "views": views, "height": args.height, "width": args.width,
            "frame_chunk": args.frame_chunk, **where,
        }  # fmt: skip
        outcome = plans.compiled(lowered, args.plan, row, args.record)
        if isinstance(outcome, plans.TooLarge):
            print(f"{views} views: {outcome}", flush=True)
            continue
        compiled, m = outcome.program, outcome.memory
        sizes = [
            f"{name} {size / GIB:.2f}"
            for name, size in (
                ("weights and images", m.argument_size_in_bytes),
                ("outputs", m.output_size_in_bytes),
                ("temporary", m.temp_size_in_bytes),
                ("temporary on the host", m.host_temp_size_in_bytes),
            )
        ]
        needs.append(
            (views, m.argument_size_in_bytes + m.output_size_in_bytes + m.temp_size_in_bytes)
        )
        if args.devices > 1:
            sizes.append(f"a device gets {summary(collectives(compiled.as_text() or ''))}")
        print(
            f"{views} views: traced in {traced:.1f} s, compiled in {outcome.wall:.1f} s"
            f" ({outcome.cpu:.0f} s of processor time); GiB: " + ", ".join(sizes),
            flush=True,
        )
    if args.fit and len(needs) < 2:
        raise InputError("--fit: expected two numbers of --views that the device has room for")
    for size in args.fit:
        (a, below), (b, above) = needs[-2:]
        views = a + (size * 1e9 - below) * (b - a) / (above - below)
        print(f"{size:g} GB hold {int(views)} views")


def lower(
    model: Any,
    shape: tuple[int, ...],
    frame_chunk: int = 1,
    device: str = "h200",
    *,
    devices: int = 1,
    on_host: bool = False,
    split_weights: bool = False,
) -> jax.stages.Lowered:
    """Lowers the pass of an abstract model over images of this shape, for described devices."""
    from jax.experimental import topologies
    from jax.sharding import NamedSharding, PartitionSpec

    more: dict[str, Any] = {"on_host": True} if on_host else {}
    if devices > 1:
        more |= {"split_weights": True} if split_weights else {}
        several = tpu.devices(device, devices) if device in tpu.CHIPS else h200s(devices)
        return lower_in_parts(model, shape, several, {"frame_chunk": frame_chunk, **more})
    if device in tpu.CHIPS:
        mesh = tpu.mesh(device)
    else:
        config = (Path(__file__).parent / f"{device}.txtpb").read_text()
        topology = topologies.get_topology_desc(
            platform="cuda", target_config=config, topology="1x1x1"
        )
        mesh = topologies.make_mesh(topo=topology, mesh_shape=(1,), axis_names=("x",))
    here = NamedSharding(mesh, PartitionSpec())

    def described(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here)

    graph, state = nnx.split(model)

    def forward(state: Any, images: jax.Array) -> Any:
        return nnx.merge(graph, state)(images, frame_chunk=frame_chunk, **more)[0]

    images = described(jax.ShapeDtypeStruct(shape, jnp.float32))
    state = jax.tree.map(described, state)
    if device in tpu.CHIPS:
        return tpu.lower(device, forward, state, images)
    gpu = jax.sharding.AbstractDevice("NVIDIA H200", num_cores=None, platform="cuda")
    on_gpu = jax.sharding.AbstractMesh((), (), abstract_device=gpu)  # what kernels are chosen for
    with proofs.assumed(), jax.sharding.use_abstract_mesh(on_gpu):
        traced = jax.jit(forward).trace(state, images)
        return traced.lower(lowering_platforms=("cuda",))


def lower_in_parts(
    model: Any, shape: tuple[int, ...], devices: Sequence[Any], call: Mapping[str, Any]
) -> jax.stages.Lowered:
    """Lowers the pass for devices that share the views, with arguments `call` of the model."""
    from jax.sharding import NamedSharding, PartitionSpec

    mesh = make_view_mesh(f"view:{len(devices)}", devices)
    assert mesh is not None
    views = shape[1]
    filled = check_views(mesh, views).filled
    over = mesh.size if call.get("split_weights") else 0
    graph, state = nnx.split(model)

    def forward(state: Any, images: jax.Array) -> Any:
        return nnx.merge(graph, state)(images, views=views, **call)[0]

    def placed(x: Any) -> jax.ShapeDtypeStruct:
        where = NamedSharding(mesh, weight_spec(x.shape, over))
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)

    state = jax.tree.map(placed, state)
    where = NamedSharding(mesh, PartitionSpec(None, VIEWS))
    images = jax.ShapeDtypeStruct((1, filled, *shape[2:]), jnp.float32, sharding=where)
    with proofs.assumed(), jax.set_mesh(mesh):
        return jax.jit(forward).lower(state, images)


if __name__ == "__main__":
    main()
