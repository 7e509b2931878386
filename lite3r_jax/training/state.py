"""The state of a training run: everything that the next step depends on."""

from dataclasses import dataclass
from typing import Any

import jax

from lite3r_jax.training.parameters import Arrays


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Guard:
    """Recent losses and gradient norms, by which bad steps are skipped, see `step.StepOptions`.

    Attributes:
        losses: float32 [window], of the last steps that were taken, in a ring.
        norms: float32 [window], their gradient norms.
        skipped: int32, steps skipped so far.
        in_row: int32, steps skipped in a row up to now.
    """

    losses: jax.Array
    norms: jax.Array
    skipped: jax.Array
    in_row: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything that a training step depends on and changes; all of it is saved in checkpoints.

    Attributes:
        step: int32, batches seen; skipped ones count.
        updates: int32, batches that changed the parameters; learning rates follow it.
        params: path -> trained parameter.
        opt_state: of the optimizer, for these parameters only.
        key: uint32 data of the random key of the run, never changed; step n uses what
            `jax.random.fold_in` makes of it and n.
        guard: see `Guard`.
        average: path -> moving average of a trained parameter, None without `StepOptions.average`.
    """

    step: jax.Array
    updates: jax.Array
    params: Arrays
    opt_state: Any
    key: jax.Array
    guard: Guard
    average: Arrays | None = None
