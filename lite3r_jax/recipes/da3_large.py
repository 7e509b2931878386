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

A student with sparse attention, distilled from these weights:

    python -m lite3r_jax.main --config=configs/da3_large.py --mode=train \
        --config.weights=WEIGHTS --config.train.data.source=blendedmvs:FOLDER --config.output=RUN

FOLDER is that of its low-resolution set. RUN/student holds what was trained. Hardware:
one GPU of 80 GB or more; time and expected result: not yet measured. Lite3R as published is
`:paper_stage1`, then `:paper` with --config.distill.init_from=RUN1/student, as in configs/vggt.py;
not yet measured, and the published figures are no reference: images went in without
normalization.

Speed3R's attention (arXiv 2603.08055), which was published for VGGT and pi^3:

    python -m lite3r_jax.main --config=configs/da3_large.py:speed3r --mode=train \
        --config.weights=WEIGHTS --config.train.data.source=blendedmvs:FOLDER --config.output=RUN

As in configs/vggt.py but for what is trained: this model has no encoder apart from its trunk, so
the gates and the attention layers over all views are trained. Further variants, behind a comma:
`feature_loss`, `fp8`, and what is trained instead: `gates`, `qkv`, `gates_lora`. Not yet measured.

Without weights or data: configs/vggt.py:tiny.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from lite3r_jax.recipes import (
    FEATURE_LOSS,
    PAPER,
    PAPER_STAGE1,
    SPEED3R,
    TRAINING,
    configure,
)

RECIPE = TRAINING | {"train.data.buckets": "1x4x504x504"}
# The head for known cameras has four of the published sites, which never run in training.
_PAPER = {"train.heads": "camera,depth,camera_encoder", "train.count": 114_688}
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "paper_stage1": PAPER_STAGE1 | _PAPER | {"distill.precision": "paper_w4a8"},
    "paper": PAPER | _PAPER | {"distill.precision": "paper"},
    "backbone": {"distill.plan": ""},
    "speed3r": {**SPEED3R, "distill.trainable": "strategy+attention", "train.count": 33_849_600},
    "feature_loss": FEATURE_LOSS,
    "gates": {"distill.trainable": "strategy", "train.count": 262_400},
    "qkv": {"distill.trainable": "strategy+qkv", "train.count": 25_452_800},
    "gates_lora": {"distill.trainable": "lora", "train.count": 1_048_832},
    "fp8": {"distill.precision": "default"},
}


def get_config(variant: str = "") -> ConfigDict:
    """Returns the settings of this recipe; `variant` is names of `VARIANTS` with commas between.

    See `recipes.configure`.
    """
    return configure("da3_large", "da3", RECIPE, VARIANTS, variant)
