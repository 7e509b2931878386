"""Named sets of the parameters of a student that are trained, and low-rank parts (LoRA)."""

import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lite3r_jax.attention.strategy import AttentionCore
from lite3r_jax.backbones.dinov2 import DinoEncoder
from lite3r_jax.distillation.surgery import Stack, node_at, path_of, put, stacks, variables
from lite3r_jax.errors import InputError
from lite3r_jax.layers.attention import Attention

Trainable = Literal["strategy", "strategy+qkv", "strategy+attention", "lora", "all_but_encoder"]
_LEAVES = {
    "strategy+qkv": ("qkv/kernel", "qkv/bias"),
    "strategy+attention": ("qkv/kernel", "qkv/bias", "proj/kernel", "proj/bias"),
    "lora": ("qkv_lora/down", "qkv_lora/up", "proj_lora/down", "proj_lora/up"),
}


class LowRank(nnx.Module):
    """A low-rank addition x A B to the output of a linear layer (LoRA, arXiv 2106.09685).

    A [C, r] is drawn at random and B [r, O] is zero, so the addition is zero at first. Both have
    the leading axis of the stack of layers that they are in.
    """

    def __init__(self, linear: nnx.Linear, rank: int, rngs: nnx.Rngs):
        """Draws A and sets B to zero.

        Args:
            linear: layer to whose output this is added.
            rank: r.
            rngs: random streams.
        """
        *layers, inputs, outputs = linear.kernel.shape
        draw = nnx.initializers.normal(1 / math.sqrt(inputs))
        self.dtype = linear.dtype
        self.down = nnx.Param(draw(rngs.params(), (*layers, inputs, rank), jnp.float32))
        self.up = nnx.Param(jnp.zeros((*layers, rank, outputs), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Computes x A B, [..., C] -> [..., O], in the compute dtype."""
        down, up = (w[...].astype(self.dtype) for w in (self.down, self.up))
        return (x.astype(self.dtype) @ down) @ up


class LowRankAttention(Attention):
    """An attention layer with low-rank additions to the outputs of its layers qkv and proj."""

    def __init__(self, attention: Attention, rank: int, rngs: nnx.Rngs):
        """Takes over an attention layer and adds low-rank parts.

        Args:
            attention: layer whose variables this takes over.
            rank: r.
            rngs: random streams.
        """
        self.heads = attention.heads
        self.head_dim = attention.head_dim
        self.dtype = attention.dtype
        self.qkv, self.proj = attention.qkv, attention.proj
        self.q_norm, self.k_norm = attention.q_norm, attention.k_norm
        self.qkv_lora = LowRank(attention.qkv, rank, rngs)
        self.proj_lora = LowRank(attention.proj, rank, rngs)

    def pack(self, x: jax.Array) -> jax.Array:
        """Implements `Attention.pack`, with the low-rank addition to qkv."""
        return self.qkv(x) + self.qkv_lora(x)

    def unpack(self, o: jax.Array) -> jax.Array:
        """Implements `Attention.unpack`, with the low-rank addition to proj."""
        o = o.reshape(*o.shape[:2], -1)
        return self.proj(o) + self.proj_lora(o)


def add_low_rank(model: nnx.Module, rank: int, seed: int = 0) -> None:
    """Adds low-rank parts to replaced attention layers, in place; outputs do not change yet.

    Args:
        model: a student.
        rank: r.
        seed: of what is drawn.

    Raises:
        InputError: no attention is replaced, or only some layers of a stack are.
    """
    rngs = nnx.Rngs(seed)
    for stack in _replaced(model, "lora"):
        place = (*stack.blocks, "attn")
        put(model, place, LowRankAttention(node_at(model, place), rank, rngs))


def trained_paths(model: nnx.Module, name: Trainable) -> tuple[str, ...]:
    """Returns the paths of the parameters in a named set.

    `strategy`: the strategies' own parameters; of SLA at every site, as published (arXiv
    2605.11354), 360,448 of VGGT-1B and 114,688 of Depth Anything 3 Large with all heads; of
    Speed3R the gates, 787,200 of VGGT-1B and 590,400 of pi^3.

    `strategy+qkv`: also weights and biases of qkv wherever attention is replaced.

    `strategy+attention`: also weights and biases of qkv and proj wherever attention is replaced.

    `lora`: those of `strategy`, and the low-rank parts that `add_low_rank` made.

    `all_but_encoder`: everything but the encoder of single views, as Speed3R was trained (arXiv
    2603.08055).

    Args:
        model: a student.
        name: of the set.

    Raises:
        InputError: no attention is replaced; for the wider sets, only some layers of a stack are;
            or the backbone has no encoder apart from its trunk.
    """
    paths = [
        path_of((*place, *key))
        for place, node in nnx.iter_graph(model)
        if isinstance(node, AttentionCore)
        for key, _ in nnx.to_flat_state(nnx.state(node, nnx.Param))
    ]
    if paths and name == "all_but_encoder":
        paths = _all_but_encoder(model)
    elif name != "strategy":
        paths += [
            f"{stack.name}/attn/{leaf}"
            for stack in _replaced(model, name)
            for leaf in _LEAVES[name]
        ]
    known = variables(model)
    if missing := [path for path in paths if path not in known]:
        raise InputError(f"trainable {name}: the model has no {missing[0]}")
    if not paths:
        raise InputError(f"trainable {name}: the plan replaces no attention, nothing can learn")
    return tuple(sorted({*paths}))  # a strategy inside of another one is met twice


def _all_but_encoder(model: nnx.Module) -> list[str]:
    encoders = [
        path_of(place) + "/"
        for place, node in nnx.iter_graph(model)
        if isinstance(node, DinoEncoder)
    ]
    if not encoders:
        raise InputError(
            "trainable all_but_encoder: this backbone has no encoder apart from its trunk; choose"
            " strategy+attention or lora"
        )
    return [
        path
        for path, (_, variable) in variables(model).items()
        if isinstance(variable, nnx.Param) and not path.startswith(tuple(encoders))
    ]


def _replaced(model: nnx.Module, name: str) -> list[Stack]:
    changed = [stack for stack in stacks(model) if any(stack.replaced)]
    if not changed:
        raise InputError(f"trainable {name}: the plan replaces no attention, nothing can learn")
    for stack in changed:
        if not all(stack.replaced):
            raise InputError(
                f"trainable {name}: the plan replaces some layers of {stack.name} only, and layers"
                " of a stack are trained together; replace all of them, or train strategy"
            )
    return changed


def sizes(model: nnx.Module, paths: tuple[str, ...]) -> dict[str, int]:
    """Returns the number of scalars of each parameter: path -> number."""
    known = variables(model)
    return {path: math.prod(np.shape(known[path][1].get_value())) for path in paths}
