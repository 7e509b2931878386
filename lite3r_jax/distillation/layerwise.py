"""Layerwise distillation: the student's attention layers run on the teacher's activations."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lite3r_jax.attention.strategy import AttentionCore, AttentionStrategy, Layouts
from lite3r_jax.distillation.surgery import node_at, put, stacks
from lite3r_jax.distillation.teacher_student import Pair
from lite3r_jax.layers.block import Block
from lite3r_jax.layers.rope import RopeTable


class _TwoCores(AttentionCore):
    """The teacher's and the student's attention core of one site."""

    def __init__(self, teacher: AttentionCore, student: AttentionCore):
        self.teacher = teacher
        self.student = student

    def adopt(self, spec: AttentionStrategy) -> None:
        """Implements `AttentionCore.adopt`: the student's core takes the settings."""
        self.student.adopt(spec)


class _TwoBlocks(nnx.Module):
    """A block of the teacher, with the student's attention beside it on the same input."""

    def __init__(self, teacher: Block, student: Block):
        self.teacher = teacher
        self.student = student

    def __call__(
        self,
        x: jax.Array,
        core: AttentionCore,
        layouts: Layouts,
        rope: RopeTable | None = None,
        shared: Any = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the teacher's output, and student minus teacher of attention outputs, float32."""
        if not isinstance(core, _TwoCores):
            y, same = self.teacher(x, core, layouts, rope, shared)
            return y, jnp.zeros(same.shape, jnp.float32)

        # What is inside of attention is computed again for the gradient, its input is kept.
        @jax.checkpoint
        def student(x: jax.Array) -> jax.Array:
            block = self.student
            return block.attn(block.norm1(x), core.student, layouts, rope, shared)

        x = jax.lax.stop_gradient(x)
        y, wanted = self.teacher(x, core.teacher, layouts, rope, shared)
        wanted = jax.lax.stop_gradient(wanted)
        return y, student(x).astype(jnp.float32) - wanted.astype(jnp.float32)


def on_teacher_inputs(pair: Pair) -> Any:
    """Returns the teacher as a model whose taps ROLE/attn are student minus teacher.

    Wherever attention is replaced, these taps are the output of the student's attention layer minus
    the output of the teacher's, on the teacher's input, float32; only they have a gradient.
    Elsewhere they are 0. Everything else is the teacher's.

    Args:
        pair: student and teacher; not changed.
    """
    pair = nnx.merge(*nnx.split(pair))
    model, student = pair.teacher, pair.student
    for stack in stacks(student):
        [reference, *more] = node_at(model, stack.cores)
        if more or nnx.to_flat_state(nnx.state(reference)):
            raise ValueError(f"{stack.name}: the teacher needs one strategy without parameters")
        cores = [
            _TwoCores(reference, core) if replaced else reference
            for core, replaced in zip(node_at(student, stack.cores), stack.replaced, strict=True)
        ]
        blocks = _TwoBlocks(node_at(model, stack.blocks), node_at(student, stack.blocks))
        put(model, stack.cores, nnx.List(cores))
        put(model, stack.blocks, blocks)
        # Which layers belong to which of the strategies.
        parent = stack.blocks[:-1]
        for name, value in vars(node_at(student, parent)).items():
            if name == "runs" or name.endswith("_runs"):
                setattr(node_at(model, parent), name, value)
    return model
