"""The settings of `--mode=train`."""

from dataclasses import dataclass, field
from typing import Literal

from lite3r_jax.data.augment import Augmentation
from lite3r_jax.data.sampling import Strategy
from lite3r_jax.train.checkpoint import CheckpointOptions
from lite3r_jax.train.loop import LoopOptions
from lite3r_jax.train.optimiser import OptimiserOptions
from lite3r_jax.train.scratch import ScratchOptions
from lite3r_jax.train.sharding import MeshOptions
from lite3r_jax.train.step import StepOptions
from lite3r_jax.train.task import LossOptions


@dataclass(frozen=True)
class DataOptions:
    """What is trained on.

    Attributes:
        source: synthetic; a folder with all of BlendedMVS, of which the official 106 scenes are
            trained on and the 7 others held out; or photos:FOLDER, photos and videos without
            cameras, see `data.photo_scenes`, for what `distill` can do without truth. Of those,
            part is held out if `loop.evaluate_every` is set, see `hold_out` there. "" has to be
            set.
        buckets: shapes of batches, see `data.pipeline.parse_buckets`.
        scenes: how many of the synthetic world.
        frames: of each of them.
        remember: whether frames of the synthetic world are kept in memory once they are made:
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
    frames: int = 8
    remember: bool = False
    strategy: Strategy = "random"
    augmentation: Augmentation = field(default_factory=Augmentation)
    normalization: Literal["vggt", "lite3r", "none"] = "vggt"
    workers: int = 0
    prefetch: int = 2
    held_out: int = 8


@dataclass(frozen=True)
class TrainOptions:
    """One run of training.

    Attributes:
        model: JSON file with the config of a model to be trained from random weights; "" to train
            `config.weights` further.
        from_scratch: whether that model gets the initial values and helpers of `scratch`.
        scratch: see `scratch.ScratchOptions`.
        heads: of the model, with commas between; camera and depth are needed by every task loss.
        dtype: compute dtype of encoder and trunk. Parameters are float32.
        trainable: regular expression; a parameter is trained if it is found in its path. A
            distillation has `config.distill.trainable` instead.
        count: how many scalars that has to be; 0 if it does not matter.
        remat: whether gradients compute layers and dense heads again instead of keeping all that is
            in them: memory against about a third more time.
        seed: of initial weights, order of data and whatever is random in a step.
        data: see `DataOptions`.
        loss: see `task.LossOptions`.
        optimiser: see `optimiser.OptimiserOptions`.
        step: see `step.StepOptions`.
        loop: see `loop.LoopOptions`.
        checkpoint: see `checkpoint.CheckpointOptions`.
        mesh: see `sharding.MeshOptions`.
    """

    model: str = ""
    from_scratch: bool = False
    scratch: ScratchOptions = field(default_factory=ScratchOptions)
    heads: str = "camera,depth"
    dtype: Literal["float32", "bfloat16"] = "float32"
    trainable: str = ".*"
    count: int = 0
    remat: bool = False
    seed: int = 0
    data: DataOptions = field(default_factory=DataOptions)
    loss: LossOptions = field(default_factory=LossOptions)
    optimiser: OptimiserOptions = field(default_factory=OptimiserOptions)
    step: StepOptions = field(default_factory=StepOptions)
    loop: LoopOptions = field(default_factory=LoopOptions)
    checkpoint: CheckpointOptions = field(default_factory=CheckpointOptions)
    mesh: MeshOptions = field(default_factory=MeshOptions)
