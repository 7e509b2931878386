"""One step of training as a pure function, and its compiled form on a mesh."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from lite3r_jax.errors import InputError
from lite3r_jax.layers.cpu_gradients import KEEP_BARRIERS
from lite3r_jax.layers.rounded_products import rounded_products
from lite3r_jax.training.parameters import Arrays, Layout
from lite3r_jax.training.sharding import follow_parameters, replicated
from lite3r_jax.training.state import Guard, TrainState

if TYPE_CHECKING:
    import optax

Batch = Any
"""Tree of arrays with scenes B, and views S, in front: [B, ...] or [B, S, ...]."""
Metrics = dict[str, jax.Array]
LossFn = Callable[[Any, Batch, jax.Array], tuple[jax.Array, Metrics]]
"""A loss function: (model, batch, random key) -> (objective, scalars to report).

A scalar whose name begins with `nonfinite` says how many values of a prediction were not finite;
anything but 0 makes the step be skipped.
"""


@runtime_checkable
class ScheduledLoss(Protocol):
    """A loss that changes in the course of a run; called as a `LossFn` it is that of the end."""

    def __call__(self, model: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        """Implements `LossFn`: returns the objective and scalars to report."""
        ...

    def at(self, step: jax.Array) -> LossFn:
        """Returns the loss function after `step` steps (int32, traced)."""
        ...


StepFn = Callable[[TrainState, Arrays, Batch], tuple[TrainState, Metrics]]


@dataclass(frozen=True)
class StepOptions:
    """Settings of a training step: accumulation, clipping, skipped steps, moving average.

    A step is skipped, with parameters and optimizer as they were, if its loss or gradient is not
    finite, or if one of them is a spike: above mean + spike_sigma * deviation of the last
    `spike_window` steps that were taken. The deviation counts as at least 1 % of the mean, and
    nothing is a spike before the window is full.

    Attributes:
        accumulate: parts into which the batch is cut, one after the other; gradients and metrics
            are their means. A loss that looks at the batch as a whole then looks at each part.
        clip: highest global norm of the gradient, longer ones are shortened; 0 for no limit.
        spike_sigma: deviations above the mean from which a loss or gradient norm is a spike; 0 for
            no such test.
        spike_window: number of steps that mean and deviation are taken over.
        patience: skipped steps in a row after which the run stops.
        average: how much of the moving average of the parameters an update leaves, the first
            updates less ((1 + n) / (10 + n) after n steps); 0 for no average. Where there is one,
            it is what is evaluated and what is written in the end.
        products: what the Linears of blocks multiply: operands in the compute dtype of the model,
            or float32 ones rounded to "bfloat16" with sums in float32, in gradients, too, see
            `layers.rounded_products`.
    """

    accumulate: int = 1
    clip: float = 1.0
    spike_sigma: float = 6.0
    spike_window: int = 128
    patience: int = 10
    average: float = 0.0
    products: Literal["dtype", "bfloat16"] = "dtype"

    def __post_init__(self) -> None:
        """Raises `InputError` for a setting that is out of range."""
        if min(self.accumulate, self.spike_window, self.patience) < 1:
            raise InputError(
                "step: accumulate, spike_window and patience have to be at least 1, got"
                f" {self.accumulate}, {self.spike_window} and {self.patience}"
            )
        if not 0 <= self.average < 1:
            raise InputError(f"step.average: expected 0 to below 1, got {self.average}")
        if not (self.clip >= 0 and self.spike_sigma >= 0):
            raise InputError(
                "step: clip and spike_sigma have to be 0 or more, got"
                f" {self.clip} and {self.spike_sigma}"
            )


def make_step(
    layout: Layout,
    loss_fn: LossFn,
    optimizer: "optax.GradientTransformation",
    options: StepOptions = StepOptions(),
    rate: Callable[[jax.Array], jax.Array] | None = None,
) -> StepFn:
    """Returns the pure training step: (state, frozen parameters, batch) -> (state, metrics).

    Frozen parameters are an argument of their own: they are neither copied nor changed nor given
    back, and have no gradient.

    Args:
        layout: of the model, from `parameters.split`.
        loss_fn: the objective, or a `ScheduledLoss`.
        optimizer: gets gradients that are clipped already.
        options: see `StepOptions`.
        rate: learning rate by updates, for the metrics.

    Returns:
        The function. Its metrics are float32 scalars: loss, grad_norm (before clipping), bad (1 if
        the step was skipped), skipped, in_row, rate, and those of the loss.
    """

    def slope(now: LossFn, params: Arrays, frozen: Arrays, batch: Batch, key: jax.Array) -> Any:
        def objective(params: Arrays) -> tuple[jax.Array, Metrics]:
            loss, metrics = now(layout.merge(params, frozen), batch, key)
            loss = loss.astype(jnp.float32)
            return loss, {name: x.astype(jnp.float32) for name, x in metrics.items()} | {
                "loss": loss
            }

        with rounded_products(options.products == "bfloat16"):
            grads, metrics = jax.grad(objective, has_aux=True)(params)
        return grads, metrics

    def mean_slope(
        now: LossFn, params: Arrays, frozen: Arrays, batch: Batch, key: jax.Array
    ) -> Any:
        parts = options.accumulate
        if parts == 1:
            return slope(now, params, frozen, batch, key)
        # Every parts-th scene: the scenes of a part then lie on all devices, as those of the batch.
        cut = jax.tree.map(
            lambda x: x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1), batch
        )

        def add(total: Any, part: tuple[Batch, jax.Array]) -> tuple[Any, None]:
            gradients = slope(now, params, frozen, part[0], part[1])
            return jax.tree.map(jnp.add, total, gradients), None

        keys = jax.random.split(key, parts)
        first = (jax.tree.map(lambda x: x[0], cut), keys[0])
        shapes = jax.eval_shape(lambda part: slope(now, params, frozen, *part), first)
        zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        total, _ = jax.lax.scan(add, zero, (cut, keys))
        return jax.tree.map(lambda x: x / parts, total)

    def step(state: TrainState, frozen: Arrays, batch: Batch) -> tuple[TrainState, Metrics]:
        import optax

        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        now = loss_fn.at(state.step) if isinstance(loss_fn, ScheduledLoss) else loss_fn
        grads, metrics = mean_slope(now, state.params, frozen, batch, key)
        norm = _norm(grads)
        good, guard = _judge(state, metrics, norm, options)
        if options.clip:
            factor = jnp.where(norm > options.clip, options.clip / norm, 1.0)
            grads = jax.tree.map(lambda g: (g * factor).astype(g.dtype), grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        params, opt_state = jax.tree.map(
            lambda new, old: jnp.where(good, new, old),
            (params, opt_state),
            (state.params, state.opt_state),
        )
        metrics |= {
            "grad_norm": norm,
            "bad": 1.0 - good.astype(jnp.float32),
            "skipped": guard.skipped.astype(jnp.float32),
            "in_row": guard.in_row.astype(jnp.float32),
        }
        if rate is not None:
            metrics["rate"] = rate(state.updates)
        average = state.average
        if average is not None:
            count = state.step.astype(jnp.float32)
            keep = jnp.where(good, jnp.minimum(options.average, (1 + count) / (10 + count)), 1.0)
            average = jax.tree.map(lambda a, p: keep * a + (1 - keep) * p, average, params)
        new = TrainState(
            step=state.step + 1,
            updates=state.updates + good,
            params=params,
            opt_state=opt_state,
            key=state.key,
            guard=guard,
            average=average,
        )
        return new, metrics

    return step


def _norm(tree: Any) -> jax.Array:
    squares = [jnp.square(x.astype(jnp.float32)).sum() for x in jax.tree.leaves(tree)]
    return jnp.sqrt(sum(squares, jnp.zeros((), jnp.float32)))


def _judge(
    state: TrainState, metrics: Metrics, norm: jax.Array, options: StepOptions
) -> tuple[jax.Array, Guard]:
    """Returns whether a step is taken (all is finite, no spike), and the guard after it."""
    loss, guard = metrics["loss"], state.guard
    good = jnp.isfinite(loss) & jnp.isfinite(norm)
    for name, value in metrics.items():
        if name.startswith("nonfinite"):
            good &= value == 0
    if options.spike_sigma:
        full = state.updates >= options.spike_window
        for value, window in ((loss, guard.losses), (norm, guard.norms)):
            mean = window.mean()
            spread = jnp.maximum(window.std(), 0.01 * jnp.abs(mean))
            good &= ~(full & (value > mean + options.spike_sigma * spread))
    here = jnp.arange(options.spike_window) == state.updates % options.spike_window
    return good, Guard(
        losses=jnp.where(here & good, loss, guard.losses),
        norms=jnp.where(here & good, norm, guard.norms),
        skipped=guard.skipped + ~good,
        in_row=jnp.where(good, 0, guard.in_row + 1),
    )


def state_shardings(state: Any, params: Mapping[str, Any]) -> Any:
    """Returns shardings of a training state; optimizer state lies where its parameters do.

    Args:
        state: a `TrainState`, or its shapes.
        params: path -> `NamedSharding`.

    Returns:
        A `TrainState` of shardings.
    """
    mesh = next(iter(params.values())).mesh
    return replace(
        jax.tree.map(lambda _: replicated(mesh), state),
        params=dict(params),
        opt_state=follow_parameters(state.opt_state, state.params, params),
        average=None if state.average is None else dict(params),
    )


class CompiledStep:
    """A training step under `jit` on a device mesh, compiled once per shape of the batch.

    The state that goes in is donated: its buffers become those of the state that comes out.
    """

    def __init__(self, step: StepFn, shardings: Any):
        """Wraps a step for its mesh; nothing is compiled before the first call.

        Args:
            step: from `make_step`.
            shardings: from `state_shardings`, so that every state lies like the one before it.
        """
        self.mesh = shardings.step.mesh

        def pinned(state: TrainState, frozen: Arrays, batch: Batch) -> tuple[TrainState, Metrics]:
            new, metrics = step(state, frozen, batch)
            return jax.lax.with_sharding_constraint(new, shardings), metrics

        out = (shardings, replicated(self.mesh))
        on_cpu = self.mesh.devices.flat[0].platform == "cpu"
        self._compiled = jax.jit(
            pinned,
            donate_argnums=0,
            out_shardings=out,
            compiler_options=KEEP_BARRIERS if on_cpu else None,
        )

    def __call__(
        self, state: TrainState, frozen: Arrays, batch: Batch
    ) -> tuple[TrainState, Metrics]:
        """Implements `StepFn`: runs one step and returns the new state and its metrics."""
        with jax.set_mesh(self.mesh):
            return self._compiled(state, frozen, batch)

    def lower(self, state: Any, frozen: Any, batch: Any) -> jax.stages.Lowered:
        """Lowers the step for shapes with shardings, also on devices that are only described."""
        with jax.set_mesh(self.mesh):
            return self._compiled.lower(state, frozen, batch)


def first_state(
    params: Arrays, optimizer: "optax.GradientTransformation", *, seed: int, options: StepOptions
) -> TrainState:
    """Returns the training state before the first step; a pure function, to be jitted.

    Args:
        params: path -> trained parameter; copied, because a step gives the buffers of its state
            away, and those of the model must stay the model's.
        optimizer: whose state is made for these parameters.
        seed: of the random key.
        options: of the steps.
    """
    params = jax.tree.map(jnp.copy, params)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        updates=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        key=jax.random.key_data(jax.random.key(seed)),
        guard=Guard(
            losses=jnp.zeros(options.spike_window, jnp.float32),
            norms=jnp.zeros(options.spike_window, jnp.float32),
            skipped=jnp.zeros((), jnp.int32),
            in_row=jnp.zeros((), jnp.int32),
        ),
        average=jax.tree.map(jnp.copy, params) if options.average else None,
    )
