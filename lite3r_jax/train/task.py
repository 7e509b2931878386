"""Training with known cameras and depth: the loss of a step, and held-out scenes."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from lite3r_jax.losses.camera import CameraLoss
from lite3r_jax.losses.maps import MapLoss
from lite3r_jax.losses.multitask import MultitaskLoss, Targets, multitask_loss
from lite3r_jax.losses.scratch import HuberCamera, LogDepth, ScratchLoss, scratch_loss
from lite3r_jax.train.scratch import TAPS, Helped
from lite3r_jax.train.sharding import place_batch
from lite3r_jax.train.step import LossFn, Metrics

_POSES = "camera/pose_enc"


@dataclass(frozen=True)
class LossOptions:
    """The objective.

    Attributes:
        kind: scratch (`losses.scratch`) for models that know nothing, multitask
            (`losses.multitask`) for continuing a trained one.
        camera: settings of the camera part of scratch.
        depth: settings of its depth part.
        align: of scratch, see `ScratchLoss`.
        multitask_camera: settings of the camera part of multitask.
        valid_range: of the depth part of multitask; 1 keeps all.
        frame_chunk: frames that the dense heads handle at a time: memory against speed.
    """

    kind: Literal["scratch", "multitask"] = "scratch"
    camera: HuberCamera = field(default_factory=HuberCamera)
    depth: LogDepth = field(default_factory=LogDepth)
    align: bool = False
    multitask_camera: CameraLoss = field(default_factory=CameraLoss)
    valid_range: float = 0.95
    frame_chunk: int = 8


def task_loss(options: LossOptions) -> LossFn:
    """The loss of batches of `data.pipeline`: images, extrinsics, intrinsics, depth, mask.

    Of a `Helped` model, its helpers are part of it.

    The unit of length is that of the batch; see `PipelineOptions.normalization`. The model has to
    have the heads camera and depth.

    Args:
        options: which objective.
    """
    scratch = ScratchLoss(options.camera, options.depth, options.align)
    share = None if options.valid_range == 1 else options.valid_range
    multitask = MultitaskLoss(options.multitask_camera, MapLoss(valid_range=share))

    def loss(model: Any, batch: Mapping[str, jax.Array], key: jax.Array) -> Any:
        del key
        helped = isinstance(model, Helped)
        backbone, names = (model.model, (_POSES, *TAPS)) if helped else (model, (_POSES,))
        prediction, taps = backbone(batch["images"], taps=names, frame_chunk=options.frame_chunk)
        targets = Targets(batch["extrinsics"], batch["intrinsics"], batch["depth"], batch["mask"])
        found = {
            "pose_enc_list": taps[_POSES],
            "depth": prediction.depth,
            "depth_conf": prediction.depth_conf,
        }
        if options.kind == "scratch":
            objective, terms = scratch_loss(scratch, targets, **found)
        else:
            objective, terms = multitask_loss(multitask, targets, **found)
        if helped:
            extra, more = model.losses(taps, targets)
            objective, terms = objective + extra, terms | more
        return objective, terms

    return loss


def held_out(
    loss_fn: LossFn, batches: Iterable[Mapping[str, Any]], mesh: Mesh
) -> Callable[[Any], dict[str, float]]:
    """An evaluation: means of objective and metrics over fixed batches.

    Args:
        loss_fn: of the training.
        batches: arrays of each, of scenes that are not trained on; kept on the devices.
        mesh: of the training.

    Returns:
        Model -> numbers.
    """
    placed = [place_batch(dict(batch), mesh) for batch in batches]

    @partial(jax.jit, static_argnums=0)
    def one(graph: Any, state: Any, batch: Any) -> Metrics:
        value, metrics = loss_fn(nnx.merge(graph, state), batch, jax.random.key(0))
        return {**metrics, "loss": value}

    def evaluate(model: Any) -> dict[str, float]:
        graph, state = nnx.split(model)
        with jax.set_mesh(mesh):
            found = jax.device_get([one(graph, state, batch) for batch in placed])
        return {name: float(jnp.mean(jnp.array([f[name] for f in found]))) for name in found[0]}

    return evaluate
