"""Runs stacks of transformer blocks by one scan over layers.

It handles strategies by layer, rematerialization, frame chunks, taps (intermediates that are
returned) and layers that are kept for heads.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from lite3r_jax.attention.plan import Run, resolve, runs
from lite3r_jax.attention.strategy import AttentionCore, Layouts, Role, TokenLayout
from lite3r_jax.errors import InputError
from lite3r_jax.layers.frame_chunks import chunked, joins_tokens, map_frame_chunks
from lite3r_jax.layers.rope import RopeTable
from lite3r_jax.mesh import ViewParts, join_weights, split_axis, to_host

BLOCK_TAPS = ("frame/blocks", "frame/attn", "global/blocks", "global/attn")
"""Names of the taps of a trunk with blocks that attend within views and over all views."""


@dataclass(frozen=True, eq=False)
class BlockStack:
    """Stacked blocks of one role that are run one after the other, and how they attend.

    Attributes:
        role: role of their attention.
        blocks: the stacked `Block`.
        cores: the stacked attention core of every run.
        layout: layout of the tokens of a sequence: of a view, or of all views of a scene.
        rope: table of `rope_table` or None.
        first: number of the first block among the layers of the role.
        depth: number of all layers of the role; 0 if these are all.
        whole: with weights in parts (`ViewParts.split_weights`), shapes of the parameters of one
            whole block, and of its strategy in every run; None elsewhere.
    """

    role: Role
    blocks: nnx.Module
    cores: Sequence[AttentionCore]
    layout: TokenLayout
    rope: RopeTable | None = None
    first: int = 0
    depth: int = 0
    whole: tuple[Any, Sequence[Any]] | None = None

    def sequences(self, x: jax.Array) -> jax.Array:
        """Reshapes x [B, S, P, C] to attention sequences, [B * S, P, C] or [B, S * P, C]."""
        return x.reshape(-1, self.layout.tokens, x.shape[-1])


@dataclass(frozen=True, eq=False)
class Slots:
    """Layers of a scan whose outputs are kept for heads, and the form in which they are kept.

    Every layer writes into the slot of the next layer that is read, so that after the scan a slot
    holds just that layer, and no other was kept.

    Attributes:
        read: numbers of the layers that are kept, ascending, the last one among them.
        dtype: dtype of what is kept.
        on_host: whether what is kept rests in the memory of the host. The first token of every
            view, which camera heads read at once, is then given apart as well, see `FIRST_TOKENS`.
    """

    read: Sequence[int]
    dtype: Any
    on_host: bool = False


FIRST_TOKENS = "kept/first"
"""Name of the tap of first tokens [B, S, K, n C], for kept layers that rest on the host."""


def first_tokens(kept: jax.Array, taps: Mapping[str, jax.Array]) -> jax.Array:
    """Returns the first token of every view in every kept layer, [B, S, K, n C] on the device.

    Args:
        kept: kept layers of `run_stacks`.
        taps: taps of `run_stacks`.
    """
    return taps[FIRST_TOKENS] if FIRST_TOKENS in taps else kept[:, :, :, 0]


def run_stacks(
    x: jax.Array,
    stacks: Sequence[BlockStack],
    plan_runs: Sequence[Run],
    *,
    views: int,
    taps: Collection[str] = (),
    slots: Slots | None = None,
    also: Callable[[jax.Array], Mapping[str, jax.Array]] | None = None,
    remat: bool = False,
    unroll: bool = False,
    parts: ViewParts | None = None,
) -> tuple[jax.Array, jax.Array | None, dict[str, jax.Array]]:
    """Runs stacks of blocks that advance together: in every layer one block of each, in order.

    Args:
        x: [B, S, P, C] float32, the residual stream, which passes through all blocks.
        stacks: stacks of equal depth.
        plan_runs: runs of their layers, with one strategy for each stack.
        views: S of the scene, for schedules; 1 where it is not known.
        taps: names of intermediates to return; others than these are ignored.
        slots: which layers are kept; None for none.
        also: further taps of every layer, from its output [B, S, P, C].
        remat: see `scan_layers`.
        unroll: likewise.
        parts: the devices that the views of the only scene are on; None for one device. Images of
            an encoder are views as well: S of x is 1 there and B counts them.

    Returns:
        (x; what is kept [B, S, K, P, n C], outputs of the n stacks side by side, or None; taps
        `ROLE/blocks` and `ROLE/attn` [L, B, S, P, C], outputs of blocks and of their attention
        layers, those of `also` with L first, and `FIRST_TOKENS`).
    """
    if parts is not None:
        options = {"views": views, "taps": taps, "slots": slots, "also": also}
        return _run_in_parts(x, stacks, plan_runs, parts, options | {"unroll": unroll})
    depth = plan_runs[-1].stop
    contexts = [_contexts(stack, i, plan_runs, x) for i, stack in enumerate(stacks)]
    names = [tuple(f"{s.role}/{n}" for n in ("blocks", "attn")) for s in stacks]
    b, s, p, c = x.shape
    kept: Any = None
    slot_of = None
    if slots is not None:
        kept = _empty_slots((b, s, len(slots.read), p, len(stacks) * c), slots)
        slot_of = jnp.asarray([sum(i < layer for i in slots.read[:-1]) for layer in range(depth)])

    def layer(carry: Any, index: Any, modules: Any, cores: Any, run: int) -> Any:
        x, kept = carry
        ys: dict[str, jax.Array] = {}
        for i, (stack, block, core) in enumerate(zip(stacks, modules, cores, strict=True)):
            place = None if slot_of is None else (slot_of[index], i * c)
            wanted = [name for name in names[i] if name in taps]
            x, kept, attended = _block(
                block, x, core, stack, contexts[i][run], kept, place, bool(wanted)
            )
            both = dict(zip(names[i], (x, attended), strict=True))
            ys |= {name: both[name].reshape(x.shape) for name in wanted}
        return (x, kept), ys | dict(also(x) if also else {})

    resolved = zip(
        *(
            resolve(specs, stack.role, views, stack.first, stack.depth)
            for stack, specs in zip(stacks, _by_stack(plan_runs), strict=True)
        ),
        strict=True,
    )
    (x, kept), ys = scan_layers(
        layer,
        (x, kept),
        [stack.blocks for stack in stacks],
        [stack.cores for stack in stacks],
        plan_runs,
        remat,
        tuple(resolved),
        unroll,
        [stack.whole for stack in stacks],
    )
    if slots is not None and slots.on_host:
        kept, ys[FIRST_TOKENS] = kept
    return x, kept, ys


def _empty_slots(shape: tuple[int, ...], slots: Slots) -> Any:
    """Returns zeros [B, S, K, P, n C] for the layers that are kept.

    On the host, with zeros [B, S, K, n C] for first tokens on the device beside them.
    """
    if not slots.on_host:
        return jnp.zeros(shape, slots.dtype)
    b, s, k, p, c = shape

    def frame(carry: None, _: None) -> tuple[None, jax.Array]:
        return carry, to_host(jnp.zeros((k, p, c), slots.dtype))

    # Made by the outputs of a scan, as XLA would make other zeros on the device first.
    frames = lax.scan(frame, None, None, length=b * s)[1]
    return frames.reshape(shape), jnp.zeros((b, s, k, c), slots.dtype)


def _write(kept: Any, part: jax.Array, at: tuple[Any, ...]) -> Any:
    """Writes tokens [..., P, C] into the kept layers, at a place [..., slot, 0, channel].

    Their first token is written apart as well where kept layers rest on the host.
    """
    if not isinstance(kept, tuple):
        return lax.dynamic_update_slice(kept, part.astype(kept.dtype), at)
    tokens, firsts = kept
    part = part.astype(tokens.dtype)
    firsts = lax.dynamic_update_slice(firsts, part[..., 0, :], (*at[:-2], at[-1]))
    return lax.dynamic_update_slice(tokens, to_host(part), at), firsts


def _run_in_parts(
    x: jax.Array,
    stacks: Sequence[BlockStack],
    plan_runs: Sequence[Run],
    parts: ViewParts,
    options: Mapping[str, Any],
) -> tuple[jax.Array, jax.Array | None, dict[str, jax.Array]]:
    """Calls `run_stacks` on every device with its own views; only attention sends tokens."""
    for stack in stacks:
        if any(joins_tokens(module) for _, module in nnx.iter_modules(stack.blocks)):
            raise InputError(
                "compute.mesh: these weights have float8 products with one scale for all tokens,"
                " which are of several devices; choose a scale per token, or leave out compute.mesh"
            )
    graphs, states = _split_all([nnx.List([s.blocks, nnx.List(s.cores)]) for s in stacks])
    weights = [None] * len(stacks)
    wholes = [None] * len(stacks)
    if parts.split_weights:
        weights = jax.tree.map(lambda x: split_axis(x.shape, parts.devices), states)
        wholes = [(_one_layer(s.blocks), [_one_layer(core) for core in s.cores]) for s in stacks]
    axis = 1 if x.shape[1] == parts.filled else 0

    def of_device(x: jax.Array, states: Any, ropes: Any) -> Any:
        here = []
        every = zip(stacks, graphs, states, ropes, wholes, strict=True)
        for stack, graph, state, rope, whole in every:
            blocks, cores = nnx.merge(graph, state)
            if rope is not None and stack.rope is not None:  # known while it is traced
                rope = replace(rope, positions=stack.rope.positions)
            layout = stack.layout
            if layout.scope == "global":
                layout = replace(layout, views=parts.each, parts=parts)
            here.append(
                replace(
                    stack,
                    blocks=blocks,
                    cores=tuple(cores),
                    layout=layout,
                    rope=rope,
                    whole=whole,
                )
            )
        x, kept, ys = run_stacks(x, here, plan_runs, **options)
        kept = {} if kept is None else {"kept": kept}
        if FIRST_TOKENS in ys:
            kept[FIRST_TOKENS] = ys.pop(FIRST_TOKENS)
        return x, kept, ys

    ropes = [stack.rope for stack in stacks]
    run = parts.on_each(of_device, (axis, weights, None), (axis, axis, axis + 1))
    x, kept, ys = run(x, states, ropes)
    return x, kept.pop("kept", None), ys | kept


def _by_stack(plan_runs: Sequence[Run]) -> list[list[Any]]:
    """Returns for each stack the strategies of its layers."""
    per_layer = [run.specs for run in plan_runs for _ in range(run.start, run.stop)]
    return [list(specs) for specs in zip(*per_layer, strict=True)]


def _contexts(
    stack: BlockStack, position: int, plan_runs: Sequence[Run], x: jax.Array
) -> list[Any]:
    """Computes the context of the strategy of every run, once for equal strategies."""
    made: dict[Any, Any] = {}
    for run in plan_runs:
        spec = run.specs[position]
        if spec not in made:
            made[spec] = spec.context(stack.sequences(x), stack.layout)
    return [made[run.specs[position]] for run in plan_runs]


def _block(
    block: Any,
    x: jax.Array,
    core: AttentionCore,
    stack: BlockStack,
    shared: Any,
    kept: Any,
    place: tuple[Any, int] | None,
    tapped: bool,
) -> tuple[jax.Array, Any, Any]:
    """Applies one block to x [B, S, P, C]: (output, kept, output of the attention layer)."""
    b, s, p, c = x.shape
    layouts = Layouts.both(stack.layout)
    if tapped or not chunked(block, b * s * p):
        y, attended = block(stack.sequences(x), core, layouts, stack.rope, shared)
        y = y.reshape(x.shape)
        if kept is not None and place is not None:
            kept = _write(kept, y[:, :, None], (0, 0, place[0], 0, place[1]))
        return y, kept, attended

    def write(kept: Any, frames: jax.Array, first: Any) -> Any:
        """Writes finished frames to the slots that heads read, so that nothing else holds them."""
        assert place is not None
        return _write(kept, frames[:, None], (first, place[0], 0, place[1]))

    frames = x.reshape(b * s, p, c)
    if kept is None:
        y, _ = map_frame_chunks(block, frames, core, layouts, stack.rope, shared)
        return y.reshape(x.shape), None, None
    flat = jax.tree.map(lambda a: a.reshape(b * s, *a.shape[2:]), kept)
    y, flat = map_frame_chunks(block, frames, core, layouts, stack.rope, shared, flat, write)
    kept = jax.tree.map(lambda a: a.reshape(b, s, *a.shape[1:]), flat)
    return y.reshape(x.shape), kept, None


def scan_layers(
    body: Callable[..., tuple[Any, Any]],
    carry: Any,
    stacks: Sequence[nnx.Module],
    cores: Sequence[Sequence[AttentionCore]],
    plan_runs: Sequence[Run],
    remat: bool = False,
    resolved: Sequence[tuple[Any, ...]] | None = None,
    unroll: bool = False,
    wholes: Sequence[tuple[Any, Sequence[Any]] | None] = (),
) -> tuple[Any, Any]:
    """Scans over layers, compiling each run of equal strategies once.

    Args:
        body: (carry, layer index, modules, cores, number of the run) -> (carry, ys), with one
            module and one core of the current layer for each stack.
        carry: initial carry.
        stacks: stacked modules that advance together, all of the same depth.
        cores: for each stack, its stacked core of every run.
        plan_runs: the runs, covering the whole depth.
        remat: whether a gradient keeps only the carry of every layer and computes the layer again,
            instead of keeping all that is in it.
        resolved: for each layer the strategies that its schedules say; None: those of the runs. A
            run in which they change is compiled in parts.
        unroll: whether layers are compiled one after the other instead of as a loop. What a
            gradient keeps is then not copied into arrays of all layers: on a CPU, of a small model,
            a third of its time. Compilation takes longer by the number of layers.
        wholes: for each stack `BlockStack.whole`; of those that have it a layer's parameters come
            together from all devices when its turn comes.

    Returns:
        (carry, ys stacked over all layers).
    """
    depth = plan_runs[-1].stop
    graphs, params = _split_all(stacks)
    collected = []
    for r, run in enumerate(plan_runs):
        core_graphs, core_params = _split_all([c[r] for c in cores])
        parts = [Run(0, run.stop - run.start, run.specs)]
        if resolved is not None:
            parts = runs(*zip(*resolved[run.start : run.stop], strict=True))
        for part in parts:

            def step(
                carry: Any,
                xs: Any,
                core_graphs: Sequence[Any] = core_graphs,
                specs: Any = part.specs if resolved is not None else None,
                r: int = r,
            ) -> Any:
                index, here, here_cores = xs
                if here is None:
                    here = jax.tree.map(partial(_layer, index=index), params)
                here, here_cores = _joined(here, here_cores, wholes, r)
                modules = [nnx.merge(g, p) for g, p in zip(graphs, here, strict=True)]
                sites = [nnx.merge(g, p) for g, p in zip(core_graphs, here_cores, strict=True)]
                for site, spec in zip(sites, specs or (), strict=bool(specs)):
                    site.adopt(spec)
                return body(carry, index, modules, sites, r)

            if remat:  # CSE stays prevented: XLA opens the loop of a run of one layer
                step = jax.checkpoint(step)
            layers = slice(run.start + part.start, run.start + part.stop)
            own = core_params
            if len(parts) > 1:
                own = _layers(core_params, slice(part.start, part.stop))
            count = part.stop - part.start
            here = params
            if count < depth:
                # A slice copies weights. Without one a gradient adds up those of all layers in
                # every step, so where gradients are sparing with memory weights are copied.
                here = _layers(params, layers) if remat else None
            xs = (jnp.arange(depth)[layers], here, own)
            carry, ys = lax.scan(step, carry, xs, unroll=count if unroll else 1)
            collected.append(ys)
    return carry, collected[0] if len(collected) == 1 else jax.tree.map(_join, *collected)


def _joined(here: Any, cores: Any, wholes: Sequence[Any], run: int) -> tuple[Any, Any]:
    """Gathers the parameters of a layer, of blocks and strategies, where devices have parts."""
    if not any(whole is not None for whole in wholes):
        return here, cores
    blocks = [join_weights(x, whole[0]) for x, whole in zip(here, wholes, strict=True)]
    own = [join_weights(x, whole[1][run]) for x, whole in zip(cores, wholes, strict=True)]
    return blocks, own


def _one_layer(stacked: nnx.Module) -> Any:
    """Returns the shapes of the parameters of a single module out of stacked ones."""
    state = nnx.split(stacked)[1]
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), state)


def _layer(x: jax.Array, index: jax.Array) -> jax.Array:
    return lax.dynamic_index_in_dim(x, index, keepdims=False)


def _layers(params: Any, which: slice) -> Any:
    return jax.tree.map(lambda x: x[which], params)


def _join(*parts: jax.Array) -> jax.Array:
    return jnp.concatenate(parts)


def _split_all(modules: Sequence[nnx.Module]) -> tuple[list[Any], list[Any]]:
    """Returns the graph definitions and the states of several modules."""
    graphs, states = [], []
    for module in modules:
        graph, state = nnx.split(module)
        graphs.append(graph)
        states.append(state)
    return graphs, states
