"""A small VGGT, trained from random weights on the generated world: the teacher of the package.

    python -m lite3r_jax.main --config=configs/vggt_tiny_teacher.py --mode=train --config.output=OUT

goes on where OUT is, and writes the moving average of the weights to OUT/weights at the end. On
another machine, from the state that `python -m tools.training_state save OUT FOLDER` wrote, in a
folder of its own: --config.train.init_from=FOLDER. The rate falls linearly to zero over the last
8,000 steps, and the losses that only help training fade over the last 1,500. To end sooner, from
any point: --config.train.init_from=FOLDER --config.train.loop.steps=STEP+3000
--config.train.optimizer.decay_steps=3000 --config.small_teacher.auxiliary.fade_from=STEP+1500.

Hardware and time: two CPU cores, about 28 steps of 128 views a minute, so 12 hours, and 19 GB of
memory with the process that draws rooms, with the environment's GLIBC_TUNABLES
(docs/benchmarks.md), XLA_FLAGS=--xla_force_host_platform_device_count=2,
--config.train.data.workers=1 and --config.train.data.prefetch=4. On one core 21 to 25 views a
second were measured, which makes about 30 hours. Either needs scikit-image, whose photographs some
rooms carry. Expected result: docs/small_teacher.md, for weights that came to be in parts and with
changes on the way: this recipe was not run from start to end.

`:gpu` sees as many views in batches of 512, for one GPU and 16 cores that draw the rooms; it was
not run on a GPU yet, only in small on a CPU.
"""

from pathlib import Path

from ml_collections import ConfigDict

from lite3r_jax.data.augment import Augmentation
from lite3r_jax.errors import unknown_name
from lite3r_jax.experiment import Experiment, to_config
from lite3r_jax.losses.scratch import LogDepth
from lite3r_jax.small_teacher.options import AuxiliaryOptions, SmallTeacherOptions
from lite3r_jax.training.checkpoint import CheckpointOptions
from lite3r_jax.training.loop import LoopOptions
from lite3r_jax.training.optimizer import OptimizerOptions
from lite3r_jax.training.options import DataOptions, TrainOptions
from lite3r_jax.training.step import StepOptions
from lite3r_jax.training.task import LossOptions

_GPU = {
    "train.data.buckets": "256x2x112x112*2, 128x4x112x112*2, 64x8x112x112, 32x16x112x112",
    # Each process draws scenes of its own, so a scene stays longer for one of them to use it again.
    "train.data.scenes": 500,
    "train.data.renew": 96,
    "train.data.workers": 15,
    "train.data.prefetch": 4,
    "train.loss.frame_chunk": 512,
    "train.optimizer.decay_steps": 2000,
    "train.step.average": 0.99,
    "train.loop.steps": 5000,
    "train.checkpoint.every": 500,
    "small_teacher.auxiliary.fade_from": 4600,
    "small_teacher.auxiliary.fade_steps": 400,
}
VARIANTS = {"gpu": _GPU}
"""Changes of the recipe by name."""


def get_config(variant: str = "") -> ConfigDict:
    """The settings, to be changed by --config.NAME=VALUE.

    Args:
        variant: "" or one of `VARIANTS`.

    Raises:
        InputError: there is none of that name.
    """
    if variant and variant not in VARIANTS:
        raise unknown_name("configs/vggt_tiny_teacher.py: variant", variant, VARIANTS)
    train = TrainOptions(
        model=str(Path(__file__).with_name("vggt_tiny.json")),
        task="small_teacher",
        data=DataOptions(
            source=(
                "synthetic:train*4,synthetic:train_floating*2,synthetic:train_corridor*1,"
                "synthetic:train_photographs*3"
            ),
            buckets="64x2x112x112*2, 32x4x112x112*2, 16x8x112x112, 8x16x112x112",
            frames=16,
            scenes=200,  # drawn again after every restart, so few; replaced after 40 uses
            renew=40,
            prefetch=0,
            cache=True,
            strategy="pairs",
            augmentation=Augmentation(
                channels=0.5,
                mirror=0.5,
                jitter=0.5,
                brightness=0.2,
                contrast=0.2,
                saturation=0.2,
                hue=0.02,
                blur=0.1,
                sigma=1.0,
            ),
        ),
        loss=LossOptions(depth=LogDepth(conf=0.1), frame_chunk=32),
        optimizer=OptimizerOptions(
            name="muon",
            learning_rate=3e-3,
            warmup=100,
            schedule="constant",
            decay_steps=8_000,
            weight_decay=0.05,
            b2=0.98,
            muon=r"(blocks|trunk)/.*kernel$",
        ),
        step=StepOptions(average=0.998, products="bfloat16"),
        loop=LoopOptions(steps=20_000, log_every=20),
        checkpoint=CheckpointOptions(every=100, keep=2, keep_every=5_000),
    )
    teacher = SmallTeacherOptions(
        dense_fraction=0.5,
        unroll=True,
        auxiliary=AuxiliaryOptions(fade_from=18_500, fade_steps=1_500),
    )
    config = to_config(Experiment(backbone="vggt", train=train, small_teacher=teacher))
    config.update_from_flattened_dict(VARIANTS.get(variant, {}))
    return config
