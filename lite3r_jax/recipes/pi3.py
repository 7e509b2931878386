"""pi^3: views in any order, without a reference view; 959 M parameters (arXiv 2507.13347).

Photos or a video to cameras, depth, points and files that other programs open:

    python -m lite3r_jax.main --config=configs/pi3.py --mode=reconstruct \
        --config.input=PHOTOS_OR_VIDEO --config.weights=WEIGHTS --config.output=OUT

WEIGHTS is a directory made by `lite3r convert pi3`, or yyfz233/Pi3 or yyfz233/Pi3X (lengths in
meters; recommended by the authors), which is downloaded and converted once (license: CC-BY-NC-4.0,
non-commercial).

The world is the camera frame of the first photo; --config.cameras.choices=world=model leaves the
model's own. Intrinsics are fitted to the rays of every view; intrinsics=shared there fits one
camera for all. --config.export.points.source=head has the model's own points, and
--config.export.points.mask=edges leaves out those at edges, as its authors do. Known cameras cannot
go in.

Hardware and time: see docs/benchmarks.md; on a GPU not yet measured. Expected quality with the
published weights: not yet measured.

A student with sparse attention in its 18 global layers:

    python -m lite3r_jax.main --config=configs/pi3.py --mode=train \
        --config.weights=WEIGHTS --config.train.data.source=blendedmvs:FOLDER --config.output=RUN

Speed3R as published (arXiv 2603.08055), from the dense weights: everything but the encoder learns
from the teacher's depth and cameras, in scenes of 2 to 24 views:

    python -m lite3r_jax.main --config=configs/pi3.py:speed3r --mode=train \
        --config.weights=WEIGHTS --config.train.data.source=blendedmvs:FOLDER --config.output=RUN

Further variants, several with commas between, the later ones change the earlier: `feature_loss`
also compares outputs of attention layers; `gates`, `qkv` (gates, and queries, keys and values of
those layers) and `gates_lora` train less; `fp8` simulates float8. Published: 80 epochs of 800
steps; here not yet measured.

`:backbone` trains the model itself further. Hardware: one GPU of 80 GB or more; time and expected
result: not yet measured. Without weights or data: configs/vggt.py:tiny.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from lite3r_jax.recipes import FEATURE_LOSS, SPEED3R, TRAINING, configure

RECIPE = TRAINING | {
    "train.data.buckets": "1x4x434x574",
    "train.loss.kind": "scale_aligned",
}
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "backbone": {"distill.plan": "", "train.count": 0},
    "speed3r": {**SPEED3R, "train.count": 654_915_420},
    "feature_loss": FEATURE_LOSS,
    "gates": {"distill.trainable": "strategy", "train.count": 590_400},
    "qkv": {"distill.trainable": "strategy+qkv", "train.count": 57_268_800},
    "lora": {"distill.trainable": "lora", "train.count": 0},
    "gates_lora": {"distill.trainable": "lora", "train.count": 2_359_872},
    "fp8": {"distill.precision": "default"},
}


def get_config(variant: str = "") -> ConfigDict:
    """Returns the settings of this recipe; `variant` is names of `VARIANTS` with commas between.

    See `recipes.configure`.
    """
    return configure("pi3", "pi3", RECIPE, VARIANTS, variant)
