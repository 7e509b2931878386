"""Recipes: the settings of runs by name, one module each with a `get_config(variant)`.

`configs/` of a clone is this folder: `--recipe vggt:tiny` and `--config=configs/vggt.py:tiny` are
the same settings.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lite3r_jax.attention.presets import change_plan
from lite3r_jax.errors import unknown_name
from lite3r_jax.experiment import Experiment, to_config

if TYPE_CHECKING:
    from ml_collections import ConfigDict

TRAINING: dict[str, Any] = {
    "train.dtype": "bfloat16",
    "train.remat": True,
    "train.data.source": "",
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
}
"""Settings to distill students of published models, as changes of `Experiment`'s defaults."""
PAPER: dict[str, Any] = {
    "train.seed": 42,
    "train.data.buckets": "1x2x518x518",
    "train.data.normalization": "lite3r",
    "train.data.held_out": 7,
    "train.loop.steps": 106,
    "train.loop.evaluate_every": 0,
    "train.optimizer.learning_rate": 1e-3,
    "train.optimizer.warmup": 30,
    "train.optimizer.schedule": "linear",
    "train.optimizer.final_lr_scale": 0.5,
    "distill.plan": "sla_paper",
    "distill.trainable": "strategy",
}
"""Settings of the second stage of Lite3R's distillation (arXiv 2605.11354), full precision."""
PAPER_STAGE1 = PAPER | {
    "distill.match.weight": 0.0,
    "distill.match.final_weight": 0.0,
}
"""Settings of the first stage in Lite3R's code, without the comparison of layers."""

SPEED3R: dict[str, Any] = {
    "train.data.buckets": ",".join(f"4x{views}x392x504" for views in (2, 4, 8, 16, 24)),
    "train.step.accumulate": 4,
    "train.loop.steps": 64_000,
    "train.optimizer.learning_rate": 1e-5,
    "distill.plan": "speed3r",
    "distill.trainable": "all_but_encoder",
    "distill.targets": "teacher",
    "distill.match.weight": 0.0,
    "distill.match.final_weight": 0.0,
}
"""Settings with which Speed3R trains students (arXiv 2603.08055), on 8 GPUs.

The schedule of the learning rate is not from there but ours.
"""
FEATURE_LOSS: dict[str, Any] = {
    "distill.match.weight": 0.1,
    "distill.match.schedule": "constant",
}
"""Settings of Speed3R's loss on features, here on outputs of attention layers."""


def configure(
    name: str, backbone: str, recipe: Mapping[str, Any], variants: Mapping[str, Any], variant: str
) -> "ConfigDict":
    """Returns the settings of a recipe and its variants, to be changed by --config.NAME=VALUE.

    Args:
        name: name of the recipe, for messages.
        backbone: registry name.
        recipe: dotted names of settings -> values, changes of the defaults of `Experiment`.
        variants: name -> further changes, in which "plan" changes settings of the plan that there
            is, see `change_plan`.
        variant: names of `variants` with commas between; the later change the earlier.

    Raises:
        InputError: there is no variant of that name.
    """
    config = to_config(Experiment(backbone=backbone))
    config.update_from_flattened_dict(recipe)
    plan = recipe["distill.plan"]
    for each in filter(None, variant.split(",")):
        if each not in variants:
            raise unknown_name(f"configs/{name}.py: variant", each, variants)
        change = dict(variants[each])
        settings, plan = change.pop("plan", {}), change.get("distill.plan", plan)
        if settings and plan:
            plan = change_plan(plan, **settings)
        config.update_from_flattened_dict(change | {"distill.plan": plan})
    return config
