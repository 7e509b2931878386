"""Supervised training with known cameras and depth: the loss, and its value on held-out scenes."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from lite3r_jax import geometry
from lite3r_jax.backbones.base import CAMERA_POINTS, POSE_STAGES
from lite3r_jax.losses.camera import CameraLoss
from lite3r_jax.losses.maps import MapLoss
from lite3r_jax.losses.multitask import MultitaskLoss, Targets, multitask_loss
from lite3r_jax.losses.scale_aligned import ScaleAligned, scale_aligned_loss
from lite3r_jax.losses.scratch import HuberCamera, LogDepth, ScratchLoss, scratch_loss
from lite3r_jax.training.sharding import place_batch
from lite3r_jax.training.step import LossFn, Metrics


@dataclass(frozen=True)
class LossOptions:
    """Settings of the objective of supervised training: which loss, and its parts.

    Attributes:
        kind: scratch (`losses.scratch`) for models that know nothing, multitask
            (`losses.multitask`) for continuing a trained one, scale_aligned
            (`losses.scale_aligned`) for one without a reference view and a unit of its own.
        camera: settings of the camera part of scratch.
        depth: settings of the depth part of scratch.
        align: whether scratch first fits one scale per scene, see `ScratchLoss`.
        multitask_camera: settings of the camera part of multitask.
        scale_aligned: weights of scale_aligned.
        valid_range: share of the pixels, smallest loss first, that the depth part of multitask
            keeps; 1 keeps all.
        frame_chunk: frames that the dense heads handle at a time: memory against speed.
    """

    kind: Literal["scratch", "multitask", "scale_aligned"] = "scratch"
    camera: HuberCamera = field(default_factory=HuberCamera)
    depth: LogDepth = field(default_factory=LogDepth)
    align: bool = False
    multitask_camera: CameraLoss = field(default_factory=CameraLoss)
    scale_aligned: ScaleAligned = field(default_factory=ScaleAligned)
    valid_range: float = 0.95
    frame_chunk: int = 8


def task_loss(options: LossOptions) -> LossFn:
    """Returns the loss function for batches of images with known cameras, depth and mask.

    Batches are those of `data.pipeline`: images, extrinsics, intrinsics, depth, mask. The unit of
    length is that of the batch; see `PipelineOptions.normalization`. The model has to have the
    heads camera and depth.

    Args:
        options: which objective.
    """
    scratch = ScratchLoss(options.camera, options.depth, options.align)
    share = None if options.valid_range == 1 else options.valid_range
    multitask = MultitaskLoss(options.multitask_camera, MapLoss(valid_range=share))

    def loss(model: Any, batch: Mapping[str, jax.Array], key: jax.Array) -> Any:
        del key
        wanted = (POSE_STAGES,)
        if options.kind == "scale_aligned" and CAMERA_POINTS in _taps_of(model):
            wanted = (POSE_STAGES, CAMERA_POINTS)
        prediction, taps = model(batch["images"], taps=wanted, frame_chunk=options.frame_chunk)
        targets = Targets(batch["extrinsics"], batch["intrinsics"], batch["depth"], batch["mask"])
        if options.kind == "scale_aligned":
            points = taps.get(CAMERA_POINTS)
            if points is None:
                points, _ = geometry.unproject(prediction.depth[..., 0], prediction.intrinsics)
            return scale_aligned_loss(
                options.scale_aligned, targets, points=points, extrinsics=prediction.extrinsics
            )
        given = {
            "pose_enc_list": taps[POSE_STAGES],
            "depth": prediction.depth,
            "depth_conf": prediction.depth_conf,
        }
        if options.kind == "scratch":
            return scratch_loss(scratch, targets, **given)
        return multitask_loss(multitask, targets, **given)

    return loss


def _taps_of(model: Any) -> Mapping[str, Any]:
    """Returns the taps (intermediates by name) of a model, also of one wrapped in `partial`."""
    return _taps_of(model.func) if isinstance(model, partial) else model.taps


def held_out(
    loss_fn: LossFn, batches: Iterable[Mapping[str, Any]], mesh: Mesh
) -> Callable[[Any], dict[str, float]]:
    """Returns a function that averages objective and metrics of a model over fixed batches.

    Args:
        loss_fn: of the training.
        batches: arrays of each, of scenes that are not trained on; kept on the devices.
        mesh: of the training.

    Returns:
        Model -> means by name; that of the objective is `loss`.
    """
    placed = [place_batch(dict(batch), mesh) for batch in batches]

    @partial(jax.jit, static_argnums=0)
    def one(graph: Any, state: Any, batch: Any) -> Metrics:
        value, metrics = loss_fn(nnx.merge(graph, state), batch, jax.random.key(0))
        return {**metrics, "loss": value}

    def evaluate(model: Any) -> dict[str, float]:
        graph, state = nnx.split(model)
        with jax.set_mesh(mesh):
            terms = jax.device_get([one(graph, state, batch) for batch in placed])
        return {name: float(jnp.mean(jnp.array([f[name] for f in terms]))) for name in terms[0]}

    return evaluate
