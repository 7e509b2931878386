"""Tasks by name: what the engine asks of them."""

from dataclasses import replace

import pytest
from flax import nnx

from lite3r_jax.errors import InputError
from lite3r_jax.experiment import Experiment
from lite3r_jax.losses.camera import CameraLoss
from lite3r_jax.runs.train import build  # noqa: F401  registers the tasks of the package
from lite3r_jax.training.options import TrainOptions
from lite3r_jax.training.task import LossOptions
from lite3r_jax.training.tasks import TASKS, Task, make_task, register_task


def experiment(**train):
    return Experiment(train=TrainOptions(**train))


def test_supervised_takes_the_model_as_it_is():
    task, model = make_task(experiment()), nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    assert task.wrap(model, 3) is model and task.unwrap(model) is model


def test_an_unknown_task_is_named_with_those_there_are():
    with pytest.raises(InputError, match=r"train.task 'small_techer' is not known; did you mean"):
        make_task(experiment(task="small_techer"))
    assert set(TASKS) >= {"supervised", "small_teacher"}


def test_a_task_that_looks_into_the_model_is_not_recomputed():
    with pytest.raises(InputError, match=r"train.remat: not with train.task=small_teacher"):
        make_task(experiment(task="small_teacher", remat=True))


def test_the_small_teacher_has_one_objective():
    for loss in (
        LossOptions(kind="multitask", multitask_camera=CameraLoss()),
        LossOptions(align=True),
    ):
        with pytest.raises(InputError, match=r"train.loss: task=small_teacher has kind=scratch"):
            make_task(experiment(task="small_teacher", loss=loss))


def test_a_task_of_ones_own_is_asked_for_what_it_trains():
    seen = []

    def make(settings):
        seen.append(settings.train.seed)
        return Task(loss=lambda *args: args, unwrap=lambda module: "kept")

    register_task("tests.own", make)
    task = make_task(replace(experiment(task="tests.own", seed=7)))
    assert seen == [7] and task.unwrap(None) == "kept"
