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

A student with sparse attention in its 18 global layers and simulated float8:

    python -m lite3r_jax.main --config=configs/pi3.py --mode=train \
        --config.weights=WEIGHTS --config.train.data.source=blendedmvs:FOLDER --config.output=RUN

`:backbone` trains the model itself further. Hardware: one GPU of 80 GB or more; time and expected
result: not yet measured. Without weights or data: configs/vggt.py:tiny.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from lite3r_jax.recipes import TRAINING, configure

RECIPE = TRAINING | {
    "train.data.buckets": "1x4x434x574",
    "train.loss.kind": "scale_aligned",
}
VARIANTS: Mapping[str, Mapping[str, Any]] = {"backbone": {"distill.plan": ""}}


def get_config(variant: str = "") -> ConfigDict:
    """See `recipes.configure`; `variant` is names of `VARIANTS` with commas between."""
    return configure("pi3", "pi3", RECIPE, VARIANTS, variant)
