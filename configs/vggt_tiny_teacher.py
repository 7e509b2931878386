"""A small VGGT, trained from random weights on the generated world: the teacher of the package.

    python -m lite3r_jax.main --config=configs/vggt_tiny_teacher.py --mode=train --config.output=OUT

Hardware and time: one CPU core at 1 s a step, which makes two hours; 5 GB of memory were seen.
Expected result: docs/results.md (AbsRel 0.18, AUC@30 0.37 on scenes with new textures).
"""

from pathlib import Path

from ml_collections import ConfigDict

from lite3r_jax.data.augment import Augmentation
from lite3r_jax.experiment import Experiment, to_config
from lite3r_jax.losses.scratch import LogDepth
from lite3r_jax.train.checkpoint import CheckpointOptions
from lite3r_jax.train.loop import LoopOptions
from lite3r_jax.train.optimiser import OptimiserOptions
from lite3r_jax.train.options import DataOptions, TrainOptions
from lite3r_jax.train.task import LossOptions


def get_config() -> ConfigDict:
    """The settings, to be changed by --config.NAME=VALUE."""
    train = TrainOptions(
        model=str(Path(__file__).with_name("vggt_tiny.json")),
        from_scratch=True,
        data=DataOptions(
            buckets="8x2x112x112*2, 4x4x112x112, 2x8x112x112",
            scenes=8000,
            remember=True,
            strategy="pairs",
            augmentation=Augmentation(channels=0.5, mirror=0.5),
        ),
        loss=LossOptions(depth=LogDepth(conf=0.1), frame_chunk=16),
        optimiser=OptimiserOptions(
            name="muon",
            rate=3e-3,
            warmup=60,
            weight_decay=0.05,
            b2=0.98,
            muon=r"(blocks|trunk)/.*kernel$",
        ),
        loop=LoopOptions(steps=6700, log_every=20, evaluate_every=500),
        checkpoint=CheckpointOptions(every=250, keep=3),
    )
    return to_config(Experiment(backbone="vggt", train=train))
