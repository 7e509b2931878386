"""A model, a loss and an optimiser, put together for one run on a mesh."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
from flax import nnx
from jax.sharding import Mesh

from lite3r_jax.train.optimiser import OptimiserOptions, learning_rate, make_optimiser
from lite3r_jax.train.parameters import Arrays, Layout, split
from lite3r_jax.train.sharding import MeshOptions, ShardingRule, make_mesh, parameter_shardings
from lite3r_jax.train.sharding import place as place_arrays
from lite3r_jax.train.state import TrainState
from lite3r_jax.train.step import (
    CompiledStep,
    LossFn,
    StepOptions,
    first_state,
    make_step,
    state_shardings,
)

if TYPE_CHECKING:
    import optax


@dataclass(frozen=True)
class Trainer:
    """What a run does in every step, and where it starts.

    Attributes:
        layout: of the model.
        params: path -> trained parameter, on the mesh.
        frozen: path -> everything else, on the mesh.
        optimiser: of the trained parameters.
        first: compiled; trained parameters to the state before the first step.
        step: compiled; its state is given away to it.
        shardings: of a state, a `TrainState` of them.
        options: of the step.
    """

    layout: Layout
    params: Arrays
    frozen: Arrays
    optimiser: "optax.GradientTransformation"
    first: Callable[[Arrays], TrainState]
    step: CompiledStep
    shardings: Any
    options: StepOptions

    @property
    def mesh(self) -> Mesh:
        """The mesh."""
        return self.shardings.step.mesh

    def new_state(self) -> TrainState:
        """The state before the first step. It shares no buffer with the model."""
        return self.first(self.params)

    def shapes(self) -> TrainState:
        """Shapes, dtypes and shardings of a state."""
        return jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            jax.eval_shape(self.first, self.params),
            self.shardings,
        )

    def model(self, state: TrainState) -> Any:
        """The model with the parameters of a state, not copied: before the next step only."""
        return self.layout.merge(state.params, self.frozen)


def make_trainer(
    model: nnx.Module,
    loss_fn: LossFn,
    *,
    steps: int,
    optimiser: OptimiserOptions,
    options: StepOptions,
    mesh: MeshOptions | Mesh,
    rules: Sequence[ShardingRule] = (),
    trainable: Sequence[str] = (".*",),
    count: int | None = None,
    seed: int = 0,
) -> Trainer:
    """Put a run together. Nothing is compiled yet.

    Args:
        model: with its weights. Its compute dtype is its own; float32 parameters with bfloat16
            compute keep float32 gradients and optimiser. With shapes instead of arrays, and a mesh
            that may be of described devices, the step can be lowered and not run.
        loss_fn: see `step.LossFn`.
        steps: of the whole run, for the learning rate.
        optimiser: which.
        options: of the step.
        mesh: sizes of its axes, or a mesh.
        rules: exceptions to how parameters are split, trained and frozen ones.
        trainable: regular expressions for paths of parameters that are trained.
        count: how many scalars these have to be; None if it does not matter.
        seed: of what is random in a step.

    Raises:
        InputError: an expression without a match, another count, a mesh that does not fit.
    """
    mesh = make_mesh(mesh) if isinstance(mesh, MeshOptions) else mesh
    layout, params, frozen = split(model, trainable, count)
    where = parameter_shardings(params | frozen, mesh, rules)
    here = {path: where[path] for path in params}
    transform = make_optimiser(optimiser, params, steps)

    def first(params: Arrays) -> TrainState:
        return first_state(params, transform, seed=seed, options=options)

    shardings = state_shardings(jax.eval_shape(first, params), here)
    step = make_step(layout, loss_fn, transform, options, learning_rate(optimiser, steps))
    return Trainer(
        layout=layout,
        params=place_arrays(params, here),
        frozen=place_arrays(frozen, {path: where[path] for path in frozen}),
        optimiser=transform,
        first=jax.jit(first, out_shardings=shardings),
        step=CompiledStep(step, shardings),
        shardings=shardings,
        options=options,
    )
