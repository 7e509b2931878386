"""Depth Anything 3, size Large: 411 M parameters (arXiv 2511.10647).

Photos or a video to cameras, depth, points and files that other programs open:

    python -m lite3r_jax.main --config=configs/da3_large.py --mode=reconstruct \
        --config.input=PHOTOS_OR_VIDEO --config.weights=WEIGHTS --config.output=OUT

WEIGHTS is a directory made by `lite3r convert da3`, or
depth-anything/DA3-LARGE-1.1, which is downloaded and converted once (license:
CC-BY-NC-4.0, non-commercial).

Known cameras go in with --config.cameras.known=FOLDER_OR_FILE (a COLMAP model, a transforms.json or
an NPZ); the results are then in their world and unit.

Hardware and time: see docs/benchmarks.md; on a GPU not yet measured. Expected quality with the
published weights: not yet measured.

A student with sparse attention and simulated float8, distilled from these weights:

    python -m lite3r_jax.main --config=configs/da3_large.py --mode=train \
        --config.weights=WEIGHTS --config.train.data.source=blendedmvs:FOLDER --config.output=RUN

FOLDER is that of its low-resolution set. RUN/student holds what was trained. Hardware:
one GPU of 80 GB or more; time and expected result: not yet measured. Lite3R as published is
`:paper_stage1`, then `:paper` with --config.distill.init_from=RUN1/student, as in configs/vggt.py;
not yet measured, and the published figures are no reference: images went in without
normalization.
Without weights or data: configs/vggt.py:tiny.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from lite3r_jax.errors import unknown_name
from lite3r_jax.experiment import Experiment, to_config

# What the recipe changes in the defaults of `lite3r_jax.experiment.Experiment`.
RECIPE: Mapping[str, Any] = {
    "train.dtype": "bfloat16",
    "train.remat": True,
    "train.data.source": "",
    "train.data.buckets": "1x4x504x504",
    "train.data.workers": 4,
    "train.data.held_out": 7,
    "train.loss.kind": "multitask",
    "train.loop.steps": 2000,
    "train.loop.evaluate_every": 500,
    "train.checkpoint.every": 250,
    "train.optimizer.learning_rate": 2e-4,
    "train.optimizer.warmup": 50,
    "train.optimizer.final_lr_scale": 0.05,
    "train.optimizer.weight_decay": 0.0,
    "distill.plan": "sla_global",
    "distill.trainable": "lora",
    "distill.precision": "default",
}
# The head for known cameras has four of the published sites, which never run in training.
_PAPER = {
    "train.seed": 42,
    "train.heads": "camera,depth,camera_encoder",
    "train.data.buckets": "1x2x518x518",
    "train.data.normalization": "lite3r",
    "train.loop.steps": 106,
    "train.loop.evaluate_every": 0,
    "train.optimizer.learning_rate": 1e-3,
    "train.optimizer.warmup": 30,
    "train.optimizer.schedule": "linear",
    "train.optimizer.final_lr_scale": 0.5,
    "train.count": 114_688,
    "distill.plan": "sla_paper",
    "distill.trainable": "strategy",
}
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "paper_stage1": _PAPER
    | {
        "distill.precision": "paper_w4a8",
        "distill.match.weight": 0.0,
        "distill.match.final_weight": 0.0,
    },
    "paper": _PAPER | {"distill.precision": "paper"},
    "backbone": {"distill.plan": ""},
}


def get_config(variant: str = "") -> ConfigDict:
    """The settings, to be changed by --config.NAME=VALUE.

    Args:
        variant: names of `VARIANTS` with commas between.

    Raises:
        InputError: there is none of that name.
    """
    config = to_config(Experiment(backbone="da3"))
    config.update_from_flattened_dict(RECIPE)
    for name in filter(None, variant.split(",")):
        if name not in VARIANTS:
            raise unknown_name("configs/da3_large.py: variant", name, VARIANTS)
        config.update_from_flattened_dict(VARIANTS[name])
    return config
