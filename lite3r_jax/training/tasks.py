"""A registry of training tasks by name: the module that is trained, and its objective.

A task that needs more than `LossOptions`, such as initial values of its own or losses on what is
inside of a model, is registered here by its own package and named by `TrainOptions.task`. The
engine asks it for three functions and knows nothing else of it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from flax import nnx

from lite3r_jax.errors import InputError, unknown_name
from lite3r_jax.training.step import LossFn
from lite3r_jax.training.task import task_loss

SUPERVISED = "supervised"
"""The task that takes a model as it is and minimizes `task_loss`."""


@dataclass(frozen=True)
class Task:
    """A training task: its objective, and how the model is wrapped for it.

    Attributes:
        loss: objective of the module that `wrap` gives.
        wrap: (model, seed) -> the module whose parameters are trained; the model may be changed.
        unwrap: that module -> the model that is kept in the end.
        remat: whether the model may be called with `remat`.
        dense_fraction: part of the views that the dense head is computed for, for reports.
    """

    loss: LossFn
    wrap: Callable[[nnx.Module, int], nnx.Module] = lambda model, seed: model
    unwrap: Callable[[Any], Any] = lambda module: module
    remat: bool = True
    dense_fraction: float = 1.0


_TASKS: dict[str, Callable[[Any], Task]] = {
    SUPERVISED: lambda experiment: Task(task_loss(experiment.train.loss)),
}
TASKS = MappingProxyType(_TASKS)
"""Name of a task -> function that makes the `Task` from an `Experiment`."""


def register_task(name: str, make: Callable[[Any], Task]) -> None:
    """Registers a task under a name; the same name again replaces it.

    Args:
        name: for `TrainOptions.task`.
        make: (`Experiment`) -> `Task`; raises `InputError` for settings that do not fit.
    """
    _TASKS[name] = make


def make_task(experiment: Any, tasks: Mapping[str, Callable[[Any], Task]] = TASKS) -> Task:
    """Returns the training task that the settings of an `Experiment` name.

    Raises:
        InputError: there is no such task, or its settings do not fit.
    """
    name = experiment.train.task
    if name not in tasks:
        raise unknown_name("config.train.task", name, tasks)
    task = tasks[name](experiment)
    if experiment.train.remat and not task.remat:
        raise InputError(
            f"config.train.remat: not with train.task={name}, which looks into the model; switch"
            " one of them off"
        )
    return task
