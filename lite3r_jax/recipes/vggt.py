"""VGGT-1B (arXiv 2503.11651), and students of it.

Photos or a video to cameras, depth, points and files that other programs open:

    python -m lite3r_jax.main --config=configs/vggt.py --mode=reconstruct \
        --config.input=PHOTOS_OR_VIDEO --config.weights=WEIGHTS --config.output=OUT

WEIGHTS is a directory made by `lite3r convert`, or facebook/VGGT-1B, which
is downloaded and converted once (license: CC-BY-NC-4.0, non-commercial).

Hardware and time: see docs/benchmarks.md; on a GPU not yet measured. Expected quality with the
published weights: not yet measured.

A student with sparse attention, distilled from these weights:

    python -m lite3r_jax.main --config=configs/vggt.py --mode=train \
        --config.weights=WEIGHTS --config.train.data.source=blendedmvs:FOLDER --config.output=RUN

FOLDER is that of its low-resolution set. RUN/student holds what was trained. Hardware:
one GPU of 80 GB or more; time and expected result: not yet measured.

The same from own photos and videos, of which no cameras are known:

    python -m lite3r_jax.main --config=configs/vggt.py:unlabeled --mode=train \
        --config.weights=WEIGHTS --config.train.data.source=photos:FOLDER --config.output=RUN

FOLDER holds the photos of one scene, or a folder for each scene. For layers that learn apart from
each other, without a task loss: `:unlabeled,apart`. Hardware as above; not yet measured.

The same without weights or data, on any machine:

    python -m lite3r_jax.main --config=configs/vggt.py:tiny --mode=train --config.output=RUN

Layers learn apart from each other there, which keeps students nearer to their teacher than the
whole objective (`:tiny,whole`) and takes less time (docs/results.md). It ends with a table.
Hardware: CPU, 4 to 5 minutes on one core. Expected result: AbsRel within 3 % and AUC@30 within
0.015 of the teacher.

Lite3R as published (arXiv 2605.11354; its code trains in two stages, its text has the second only):

    python -m lite3r_jax.main --config=configs/vggt.py:paper_stage1 --mode=train \
        --config.weights=WEIGHTS --config.train.data.source=blendedmvs:FOLDER --config.output=RUN1
    python -m lite3r_jax.main --config=configs/vggt.py:paper --mode=train \
        --config.weights=WEIGHTS --config.train.data.source=blendedmvs:FOLDER --config.output=RUN2 \
        --config.distill.init_from=RUN1/student

One epoch each, a sample of every training scene. Different from the original: the 7 validation
scenes are held out. Published: AbsRel 0.0271 on BlendedMVS against 0.0184 of the teacher, with
another operator in use than in training; here not yet measured.

Speed3R (arXiv 2603.08055), whose VGGT was never released: everything but the encoder learns from
the teacher's depth and cameras, in scenes of 2 to 24 views:

    python -m lite3r_jax.main --config=configs/vggt.py:speed3r --mode=train \
        --config.weights=WEIGHTS --config.train.data.source=blendedmvs:FOLDER --config.output=RUN

`:speed3r,feature_loss` also compares outputs of attention layers, `:speed3r,fp8` simulates float8.
Hardware: GPUs with room for two copies of trunk and heads; not yet measured. On any machine, its
attention in place of the other student's: `:tiny,speed3r`. Hardware: CPU, 5 minutes on one core.
Expected result: AbsRel within 5 % and AUC@30 within 0.02 of the teacher.

Further variants, several with commas between, the later ones change the earlier:

    strategy, attention, lora, all_but_encoder
                                what is trained
    gates, qkv, gates_lora      of Speed3R, likewise: gates alone; gates, and qkv of its layers or
                                low-rank parts of them
    spark3r                     attention without training as the student's: half of the queries are
                                merged, half of the views give keys; weights get used to it
    keep05, keep10, keep30      fraction of the key blocks that softmax sees
    half_views                  keys of every second view, and of those the recipe's fraction
    token, block3               how keys are chosen
    every_site                  all 76 attention layers, not the 24 over views
    block16                     key blocks of 16 tokens
    apart                       layers learn on the teacher's inputs, without a task loss
    whole                       after tiny: the student learns as a whole, with a task loss
    unlabeled                   the teacher's predictions are the truth, frames near each other
    no_match                    task loss only
    fp8, paper_fp8              float8 that is simulated in training; students of the small teacher
                                are as good in float8 without (docs/results.md)
    backbone                    no student: the weights themselves are trained further

Each has the command, hardware and time of the recipe that it changes; what was measured of them
stands in docs/results.md:

    python -m lite3r_jax.main --config=configs/vggt.py:tiny,keep10,fp8 --mode=train ...
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

RECIPE = TRAINING | {"train.data.buckets": "1x4x518x518"}
_APART = {"distill.match.mode": "layerwise", "distill.targets": "none"}
# With all keys in its linear part it comes nearer to the teacher than with those of kept views.
_HALF_VIEWS = "key_views_global(choose=stride,every=2,inner=sla({}linear_over=all))"
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "paper_stage1": PAPER_STAGE1 | {"train.count": 360_448, "distill.precision": "paper_w4a16"},
    "paper": PAPER | {"train.count": 360_448, "distill.precision": "paper"},
    "tiny": {
        "weights": "vggt-tiny",
        "train.dtype": "float32",
        "train.remat": False,
        "train.data.source": "synthetic",
        "train.data.buckets": "4x4x112x112",
        "train.data.workers": 0,
        "train.data.held_out": 4,
        "train.loss.kind": "scratch",
        "train.loop.steps": 400,
        "train.loop.evaluate_every": 200,
        "train.checkpoint.every": 200,
        "train.optimizer.learning_rate": 5e-3,
        "train.optimizer.warmup": 20,
        # 16 blocks a view at 112 x 112 pixels; blocks of 64 make 22 of them at 518 x 518
        "plan": {"block": 4},
        **_APART,
        "distill.match.weight": 1.0,
        "distill.match.schedule": "constant",
        "distill.final_variants": "dense-float32,untrained-float32,untrained-fp8_dynamic,"
        "student-float32,student-fp8_dynamic",
        "evaluate.protocols": "synthetic:new_textures",
        "evaluate.views": "4",
        "evaluate.scenes": 32,
        "evaluate.score.alignment": "median",
        "evaluate.score.points": False,
        "evaluate.score.wrong_partner": False,
    },
    "strategy": {"distill.trainable": "strategy", "train.count": 0},
    "gates": {"distill.trainable": "strategy", "train.count": 787_200},
    "qkv": {"distill.trainable": "strategy+qkv", "train.count": 76_358_400},
    "gates_lora": {"distill.trainable": "lora", "train.count": 3_146_496},
    "attention": {"distill.trainable": "strategy+attention", "train.count": 0},
    "lora": {"distill.trainable": "lora", "train.count": 0},
    "all_but_encoder": {"distill.trainable": "all_but_encoder", "train.count": 0},
    "speed3r": {**SPEED3R, "train.count": 854_355_956},
    "feature_loss": FEATURE_LOSS,
    # The schedule begins above 10 views, and training has fewer.
    "spark3r": {"distill.plan": "spark3r(query_factor=2,key_factor=2,others=1)"},
    "half_views": {"distill.plan": _HALF_VIEWS.format("")},
    "keep05": {"plan": {"keep": 0.05}},
    "keep10": {"plan": {"keep": 0.1}},
    "keep30": {"plan": {"keep": 0.3}},
    "token": {"plan": {"routing": "token", "keep_special": False}},
    "block3": {"plan": {"routing": "block3", "negligible_fraction": 0.1}},
    "every_site": {"plan": {"name": "sla"}},
    "block16": {"plan": {"block": 16}},
    "apart": _APART,
    "whole": {
        "train.loop.steps": 200,
        "train.optimizer.learning_rate": 1e-3,
        "distill.match.mode": "end_to_end",
        "distill.match.weight": 0.1,
        "distill.match.schedule": "cosine",
        "distill.targets": "truth",
    },
    "unlabeled": {"distill.targets": "teacher", "train.data.strategy": "spaced"},
    "no_match": {"distill.match.weight": 0.0, "distill.match.final_weight": 0.0},
    "fp8": {"distill.precision": "default"},
    "paper_fp8": {"distill.precision": "paper"},
    "backbone": {"distill.plan": "", "train.count": 0},
}
_TINY: Mapping[str, Mapping[str, Any]] = {
    # 14 of the 48 windows of 2 x 2 patches that 4 views of 112 x 112 pixels have beside the
    # reference view: about what the SLA student keeps.
    "speed3r": {"distill.plan": "speed3r(window=2,top=14)"},
    "half_views": {"distill.plan": _HALF_VIEWS.format("block=4,")},
}


def get_config(variant: str = "") -> ConfigDict:
    """Returns the settings of this recipe; `variant` is names of `VARIANTS` with commas between.

    See `recipes.configure`.
    """
    small = "tiny" in variant.split(",")
    variants = {**VARIANTS, **_TINY} if small else VARIANTS
    config = configure("vggt", "vggt", RECIPE, variants, variant)
    if small:  # counts are those of VGGT-1B
        config.update_from_flattened_dict({"train.count": 0})
    return config
