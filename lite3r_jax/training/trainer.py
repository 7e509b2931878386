"""A model, a loss and an optimizer, put together for one run on a mesh."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from lite3r_jax.errors import InputError
from lite3r_jax.training.optimizer import OptimizerOptions, learning_rate, make_optimizer
from lite3r_jax.training.parameters import Arrays, Layout, split
from lite3r_jax.training.portable import PortableState
from lite3r_jax.training.sharding import MeshOptions, ShardingRule, make_mesh, parameter_shardings
from lite3r_jax.training.sharding import place as place_arrays
from lite3r_jax.training.state import TrainState
from lite3r_jax.training.step import (
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
    """The compiled step of a training run, with the parameters and state that it starts from.

    Attributes:
        layout: structure of the model.
        params: path -> trained parameter, on the mesh.
        frozen: path -> everything else, on the mesh.
        optimizer: of the trained parameters.
        first: compiled; trained parameters to the state before the first step.
        step: compiled; the state that it is called with is donated.
        shardings: of a training state, a `TrainState` of shardings.
        options: of the step.
        start: what the run goes on from, if it does; its weights are in `params`.
    """

    layout: Layout
    params: Arrays
    frozen: Arrays
    optimizer: "optax.GradientTransformation"
    first: Callable[[Arrays], TrainState]
    step: CompiledStep
    shardings: Any
    options: StepOptions
    start: PortableState | None = None

    @property
    def mesh(self) -> Mesh:
        """Device mesh of the run."""
        return self.shardings.step.mesh

    def new_state(self) -> TrainState:
        """Returns the state before the first step, which shares no buffer with the model."""
        state = self.first(self.params)
        if self.start is None:
            return state
        average = state.average
        if average is not None and self.start.average is not None:
            where = {path: x.sharding for path, x in average.items()}
            average = place_arrays({path: self.start.average[path] for path in average}, where)
        step = jax.device_put(jnp.int32(self.start.step), self.shardings.step)
        return replace(state, step=step, average=average)

    def shapes(self) -> TrainState:
        """Returns shapes, dtypes and shardings of a training state."""
        return jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            jax.eval_shape(self.first, self.params),
            self.shardings,
        )

    def model(self, state: TrainState) -> Any:
        """Returns the model with a state's `trained_parameters`, valid until the next step.

        The parameters are not copied, and the next step takes over their buffers.
        """
        return self.layout.merge(trained_parameters(state), self.frozen)


def trained_parameters(state: TrainState) -> Arrays:
    """Returns the parameters that are evaluated and written: the moving average if there is one."""
    return state.params if state.average is None else state.average


def _started(params: Arrays, start: PortableState, steps: int) -> Arrays:
    """Returns the weights of a portable state in the dtypes of `params`, checked to fit."""
    if other := sorted(params.keys() ^ start.params.keys()):
        raise InputError(
            f"init_from: it is of another model or other trained parameters; {other[0]} is only in"
            f" {'this one' if other[0] in params else 'that one'}"
        )
    for path, x in params.items():
        if x.shape != start.params[path].shape:
            raise InputError(f"init_from: {path} is {start.params[path].shape}, expected {x.shape}")
    if start.step >= steps:
        raise InputError(
            f"init_from: it is at step {start.step} and the run ends at {steps}; set loop.steps to"
            " more"
        )
    return {path: jnp.asarray(start.params[path], x.dtype) for path, x in params.items()}


def make_trainer(
    model: nnx.Module,
    loss_fn: LossFn,
    *,
    steps: int,
    optimizer: OptimizerOptions,
    options: StepOptions,
    mesh: MeshOptions | Mesh,
    rules: Sequence[ShardingRule] = (),
    trainable: Sequence[str] = (".*",),
    count: int | None = None,
    seed: int = 0,
    start: PortableState | None = None,
) -> Trainer:
    """Puts model, loss and optimizer together for a run on a mesh; nothing is compiled yet.

    Args:
        model: with its weights. Its compute dtype is its own; float32 parameters with bfloat16
            compute keep float32 gradients and optimizer. With shapes instead of arrays, and a mesh
            that may be of described devices, the step can be lowered and not run.
        loss_fn: see `step.LossFn`.
        steps: of the whole run, for the learning rate.
        optimizer: which optimizer, and its settings.
        options: of the step.
        mesh: sizes of its axes, or a mesh.
        rules: exceptions to how parameters are split, trained and frozen ones.
        trainable: regular expressions for paths of parameters that are trained.
        count: how many scalars these have to be; None if it does not matter.
        seed: of what is random in a step.
        start: what to go on from, in place of the weights of the model.

    Raises:
        InputError: an expression without a match, another count, a mesh that does not fit, a start
            of another model or with nothing left to do.
    """
    mesh = make_mesh(mesh) if isinstance(mesh, MeshOptions) else mesh
    layout, params, frozen = split(model, trainable, count)
    if start is not None:
        params = _started(params, start, steps)
        steps -= start.step
    where = parameter_shardings(params | frozen, mesh, rules)
    here = {path: where[path] for path in params}
    transform = make_optimizer(optimizer, params, steps)

    def first(params: Arrays) -> TrainState:
        return first_state(params, transform, seed=seed, options=options)

    shardings = state_shardings(jax.eval_shape(first, params), here)
    step = make_step(layout, loss_fn, transform, options, learning_rate(optimizer, steps))
    return Trainer(
        layout=layout,
        params=place_arrays(params, here),
        frozen=place_arrays(frozen, {path: where[path] for path in frozen}),
        optimizer=transform,
        first=jax.jit(first, out_shardings=shardings),
        step=CompiledStep(step, shardings),
        shardings=shardings,
        options=options,
        start=start,
    )
