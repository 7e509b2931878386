"""The objective of a distillation.

Partial attention distillation (Lite3R, arXiv 2605.11354, eq. 3 and 4; lite3r_kit/distillation.py):
the mean over attention layers of the mean squared difference between the student's output, after
the output projection, and the teacher's. In Lite3R it is added to the task loss with weight 0.1
(paper), or 0.1 falling to 0.01 along a cosine (code).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lite3r_jax.attention.plan import Plan
from lite3r_jax.attention.strategy import ROLES, Role
from lite3r_jax.backbones.base import Backbone, Prediction, Tap
from lite3r_jax.distillation.layerwise import on_teacher_inputs
from lite3r_jax.distillation.options import MatchOptions
from lite3r_jax.distillation.teacher_student import Pair
from lite3r_jax.errors import InputError

Metrics = dict[str, jax.Array]
Loss = Callable[[Any, Mapping[str, jax.Array], jax.Array], tuple[jax.Array, Metrics]]
Sites = Mapping[Role, tuple[int, ...]]
"""Role of attention -> indices of the layers whose outputs are compared."""


def select_sites(student: Backbone, teacher_plan: Plan, which: str) -> Sites:
    """Returns the attention layers whose outputs are compared between student and teacher.

    Args:
        student: a backbone. A role without the tap ROLE/attn is no candidate: it does not run in
            every pass.
        teacher_plan: attention plan of the teacher.
        which: "replaced", "all" or roles with commas between.

    Raises:
        InputError: a role that the backbone does not have, or no layer is left.
    """
    setting = "distill.match.sites"
    depths = {role: n for role, n in student.sites.items() if f"{role}/attn" in student.taps}
    if which in ("replaced", "all"):
        roles = tuple(depths)
    else:
        roles = tuple(dict.fromkeys(part.strip() for part in which.split(",")))
        if unknown := [role for role in roles if role not in depths]:
            raise InputError(
                f"{setting}: {unknown[0]!r} is no attention of this backbone that can be compared;"
                f" expected replaced, all, or some of {', '.join(depths)}"
            )

    def compared(role: Role, layer: int) -> bool:
        return which != "replaced" or (
            student.plan.at(role, layer).model() != teacher_plan.at(role, layer).model()
        )

    every: dict[Role, tuple[int, ...]] = {
        role: tuple(i for i in range(depths[role]) if compared(role, i))
        for role in ROLES
        if role in roles
    }
    sites: Sites = {role: layers for role, layers in every.items() if layers}
    if not sites:
        raise InputError(f"{setting}: {which!r} names no layer; the plan replaces no attention")
    return sites


def match_weight(options: MatchOptions, step: Any, steps: int) -> jax.Array:
    """Returns the weight of the comparison after `step` of `steps` steps."""
    if options.schedule == "constant":
        return jnp.float32(options.weight)
    done = jnp.clip(jnp.asarray(step, jnp.float32) / steps, 0, 1)
    cosine = 0.5 * (1 + jnp.cos(jnp.pi * done))
    return options.final_weight + (options.weight - options.final_weight) * cosine


@dataclass(frozen=True)
class DistillLoss:
    """The distillation loss of a `Pair`, as a `training.step.ScheduledLoss`.

    Attributes:
        options: see `MatchOptions`.
        sites: layers that are compared, from `select_sites`.
        steps: of the whole run.
        task: loss of a model, a batch and a key; None for none. As the model it gets a function
            that runs the student once for both parts of the objective.
        from_teacher: whether the task's truth is what the teacher predicts. Of the batch only
            `images` is then looked at.
        forward: further arguments of the student's forward pass, such as ("remat", True).
    """

    options: MatchOptions
    sites: Sites
    steps: int
    task: Loss | None = None
    from_teacher: bool = False
    forward: tuple[tuple[str, Any], ...] = ()

    def __call__(
        self, model: Pair, batch: Mapping[str, jax.Array], key: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """Computes the objective of the last step, by which steps can be compared."""
        return self.at(self.steps)(model, batch, key)

    def at(self, step: Any) -> Loss:
        """Implements `ScheduledLoss.at`: returns the loss function after `step` steps.

        Its metrics are those of the task; and distill_loss, the mean over all compared layers,
        distill_weight, and distill_ROLE, the mean over the layers of a role.
        """
        return partial(self._loss, match_weight(self.options, step, self.steps))

    def _loss(
        self, weight: jax.Array, pair: Pair, batch: Mapping[str, jax.Array], key: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        matched = self.options.weight > 0
        names = tuple(f"{role}/attn" for role in self.sites) if matched else ()
        if self.options.mode == "layerwise":
            _, differences = on_teacher_inputs(pair)(batch["images"], taps=names)
            return self._matched(weight, pair.student.taps, differences, None)

        wanted: dict[str, jax.Array] = {}
        if matched or self.from_teacher:
            prediction, wanted = pair.teacher(batch["images"], taps=names)
            if self.from_teacher:
                batch = as_truth(batch["images"], prediction)
            # The student starts when the teacher is done, so that their temporaries are not there
            # at the same time.
            batch, wanted = jax.lax.stop_gradient(
                jax.lax.optimization_barrier((dict(batch), wanted))
            )
        run = partial(pair.student, **dict(self.forward))
        student = _Watched(run, names, pair.student.taps)
        objective, metrics = jnp.zeros((), jnp.float32), {}
        if self.task is None:
            student(batch["images"])
        else:
            objective, metrics = self.task(student, batch, key)
        if not matched:
            return objective, metrics
        matching, more = self._matched(weight, pair.student.taps, student.outputs, wanted)
        return objective + matching, {**metrics, **more}

    def _matched(
        self,
        weight: jax.Array,
        taps: Mapping[str, Tap],
        outputs: Mapping[str, jax.Array],
        wanted: Mapping[str, jax.Array] | None,
    ) -> tuple[jax.Array, Metrics]:
        """Returns the weighted mean squared difference of attention outputs, and its metrics.

        `outputs` are the differences already if `wanted` is None.
        """
        errors = {}
        for role, layers in self.sites.items():
            name = f"{role}/attn"
            x = _layers(taps[name].layer_axis, outputs[name], layers)
            if wanted is not None:
                x = x - _layers(taps[name].layer_axis, wanted[name], layers)
            errors[role] = jnp.square(x).mean(tuple(range(1, x.ndim)))
        mean = jnp.concatenate(list(errors.values())).mean()
        metrics = {f"distill_{role}": x.mean() for role, x in errors.items()}
        return weight * mean, {**metrics, "distill_loss": mean, "distill_weight": weight}


def _layers(axis: int, tap: jax.Array, layers: tuple[int, ...]) -> jax.Array:
    """Selects attention layers of a tap as [n, ...] float32; axes before the layers are merged."""
    if len(layers) < tap.shape[axis]:
        tap = jnp.take(tap, np.array(layers), axis=axis)
    return tap.reshape(-1, *tap.shape[axis + 1 :]).astype(jnp.float32)


class _Watched:
    """The student as a task loss calls it; taps of the same forward pass are left in `outputs`."""

    def __init__(self, student: Any, names: tuple[str, ...], taps: Mapping[str, Tap]):
        self.student, self.names, self.taps = student, names, taps
        self.outputs: dict[str, jax.Array] = {}

    def __call__(
        self, images: jax.Array, *, taps: Any = (), **choices: Any
    ) -> tuple[Prediction, dict[str, jax.Array]]:
        prediction, outputs = self.student(images, taps=(*taps, *self.names), **choices)
        self.outputs = outputs
        return prediction, outputs


def as_truth(images: jax.Array, prediction: Prediction) -> dict[str, jax.Array]:
    """Returns a prediction as a batch with ground truth, in the model's own unit of length.

    Args:
        images: [B, S, H, W, 3].
        prediction: with cameras and depth.

    Raises:
        InputError: the prediction has no cameras or no depth.
    """
    if prediction.extrinsics is None or prediction.intrinsics is None or prediction.depth is None:
        raise InputError(
            "distill.targets teacher: the teacher predicts no cameras or no depth; load it with the"
            " heads camera and depth"
        )
    depth = prediction.depth[..., 0]
    valid = jnp.isfinite(depth) & (depth > 0)
    return {
        "images": images,
        "extrinsics": prediction.extrinsics,
        "intrinsics": prediction.intrinsics,
        "depth": jnp.where(valid, depth, 0),
        "mask": valid,
    }
