"""The settings of `--mode=train`."""

from dataclasses import dataclass, field
from typing import Literal

from lite3r_jax.data.augment import Augmentation
from lite3r_jax.data.sampling import Strategy
from lite3r_jax.training.checkpoint import CheckpointOptions
from lite3r_jax.training.loop import LoopOptions
from lite3r_jax.training.optimizer import OptimizerOptions
from lite3r_jax.training.sharding import MeshOptions
from lite3r_jax.training.step import StepOptions
from lite3r_jax.training.task import LossOptions


@dataclass(frozen=True)
class DataOptions:
    """Settings of the training data: source, shapes of batches, sampling and augmentation.

    Attributes:
        source: a data source or a weighted mixture, see `data.registry`: synthetic,
            blendedmvs:FOLDER (trained on the official 106 scenes, the 7 others held out),
            dtu64:FOLDER, capture:FOLDER, synthetic*2,blendedmvs:FOLDER*1; or photos:FOLDER, photos
            and videos without cameras, for what `distill` can do without truth. Of sources without
            a validation split, part is held out if `loop.evaluate_every` is set, see
            `data.subset.hold_out`. "" has to be set.
        buckets: shapes of batches, see `data.pipeline.parse_buckets`.
        scenes: how many of each split of the synthetic world.
        renew: after so many epochs, that is uses of each scene, others take their places, so that a
            long run never runs out of scenes and each is still drawn once for many samples; 0 for
            never.
        frames: frames of each scene of the synthetic world.
        cache: whether frames of the synthetic world are kept in memory once they are made:
            0.7 MB for a scene of 8 frames of 112 x 112.
        strategy: how the frames of a sample are chosen, see `data.sampling.choose_frames`.
        augmentation: see `data.augment.Augmentation`; of the training only.
        normalization: how lengths are made comparable; none leaves the unit of the dataset. Photos
            without cameras have no lengths.
        workers: processes that make batches; 0 does it in this one.
        prefetch: batches made ahead.
        held_out: batches that an evaluation looks at, of held-out scenes, in the first
            of the shapes.
    """

    source: str = "synthetic"
    buckets: str = "8x2x112x112"
    scenes: int = 100_000
    renew: int = 0
    frames: int = 8
    cache: bool = False
    strategy: Strategy = "random"
    augmentation: Augmentation = field(default_factory=Augmentation)
    normalization: Literal["vggt", "lite3r", "none"] = "vggt"
    workers: int = 0
    prefetch: int = 2
    held_out: int = 8


INSTEAD = {
    "mesh": "it splits scenes and views by train.mesh, for example train.mesh.view=2",
    "weights": "it splits them by train.mesh.fsdp",
    "rest": "to hold less on the device set train.remat=true",
}
"""Settings that only reconstructions have -> hint at what training has in their place."""


@dataclass(frozen=True)
class TrainOptions:
    """Settings of a training run: model, task, data, loss, optimizer, loop and checkpoints.

    Attributes:
        model: JSON file with the config of a model to be trained from random weights; "" to train
            `config.weights` further.
        task: what is trained and on which objective, see `training.tasks`; supervised: the model
            as it is, on `loss`.
        heads: of the model, with commas between; camera and depth are needed by every task loss.
        dtype: compute dtype of encoder and trunk. Parameters are float32.
        trainable: regular expression; a parameter is trained if it is found in its path. A
            distillation has `config.distill.trainable` instead.
        count: how many scalars have to be trained; 0 if it does not matter.
        remat: whether gradients compute layers and dense heads again instead of keeping all that is
            in them: memory against about a third more time.
        init_from: folder of `tools.training_state`, to go on from its weights, their moving average
            and its step; the learning rate warms up again. The folder has to stay as it is until
            the end of the run, which is not continued with another state in it.
        allow_changes: whether a run that was begun may go on with other settings, data or code,
            which is then recorded in its config.json; otherwise a change is refused.
        seed: of initial weights, order of data and whatever is random in a step.
        data: see `DataOptions`.
        loss: see `task.LossOptions`.
        optimizer: see `optimizer.OptimizerOptions`.
        step: see `step.StepOptions`.
        loop: see `loop.LoopOptions`.
        checkpoint: see `checkpoint.CheckpointOptions`.
        mesh: see `sharding.MeshOptions`.
    """

    model: str = ""
    task: str = "supervised"
    heads: str = "camera,depth"
    dtype: Literal["float32", "bfloat16"] = "float32"
    trainable: str = ".*"
    count: int = 0
    remat: bool = False
    init_from: str = ""
    allow_changes: bool = False
    seed: int = 0
    data: DataOptions = field(default_factory=DataOptions)
    loss: LossOptions = field(default_factory=LossOptions)
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    step: StepOptions = field(default_factory=StepOptions)
    loop: LoopOptions = field(default_factory=LoopOptions)
    checkpoint: CheckpointOptions = field(default_factory=CheckpointOptions)
    mesh: MeshOptions = field(default_factory=MeshOptions)
