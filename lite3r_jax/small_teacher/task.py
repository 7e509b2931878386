"""The training task `small_teacher`: its objective and what it trains."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import jax
import jax.numpy as jnp

from lite3r_jax.backbones.base import POSE_STAGES
from lite3r_jax.errors import InputError
from lite3r_jax.losses.multitask import Targets
from lite3r_jax.losses.scratch import ScratchLoss, scratch_loss
from lite3r_jax.small_teacher.model import WithAuxiliaryLosses
from lite3r_jax.training.step import LossFn, Metrics
from lite3r_jax.training.task import LossOptions
from lite3r_jax.training.tasks import Task

NAME = "small_teacher"


@dataclass(frozen=True)
class SmallTeacherLoss:
    """The objective: `losses.scratch` of cameras and depth, plus the auxiliary losses.

    A `training.step.ScheduledLoss`: auxiliary losses fade, see `AuxiliaryOptions.fade_from`.
    """

    options: LossOptions

    def __call__(self, model: Any, batch: Mapping[str, jax.Array], key: jax.Array) -> Any:
        """Implements `training.step.LossFn`; the batch is as for `training.task.task_loss`."""
        return self._of(model, batch, key, None)

    def at(self, step: jax.Array) -> LossFn:
        """Implements `ScheduledLoss.at`: returns the loss function after `step` steps."""
        return lambda model, batch, key: self._of(model, batch, key, step)

    def _of(
        self,
        model: WithAuxiliaryLosses,
        batch: Mapping[str, jax.Array],
        key: jax.Array,
        step: jax.Array | None,
    ) -> tuple[jax.Array, Metrics]:
        targets = Targets(batch["extrinsics"], batch["intrinsics"], batch["depth"], batch["mask"])
        predicted, taps, views = model.predict(batch["images"], self.options.frame_chunk, key)
        of_cameras = ScratchLoss(self.options.camera, None)
        cameras, terms = scratch_loss(of_cameras, targets, pose_enc_list=taps[POSE_STAGES])
        seen = jax.tree.map(lambda x: jnp.asarray(x)[:, views], targets)
        depth, more = scratch_loss(replace(of_cameras, camera=None, depth=self.options.depth),
                                   seen, **predicted)  # fmt: skip
        extra, others = model.losses(taps, targets, step)
        return cameras + depth + extra, terms | more | others


def make(experiment: Any) -> Task:
    """Returns the training task `small_teacher` with the settings of an `Experiment`.

    Raises:
        InputError: `train.loss` is another one than `losses.scratch` in the unit of the batch.
    """
    options, loss = experiment.small_teacher, experiment.train.loss
    if loss.kind != "scratch" or loss.align:
        raise InputError(
            "config.train.loss: task=small_teacher has kind=scratch and align=False; leave them"
        )
    return Task(
        loss=SmallTeacherLoss(loss),
        wrap=lambda model, seed: WithAuxiliaryLosses(model, options, seed),
        unwrap=lambda module: cast(WithAuxiliaryLosses, module).model,
        remat=False,
        dense_fraction=options.dense_fraction,
    )
