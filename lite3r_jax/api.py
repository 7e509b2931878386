"""The Python API: everything that the command line does, as functions of settings objects.

`load` gives a model, `reconstruct(model, photos)` a scene, `export` files of it. `train`,
`distill`, `evaluate` and `bench` take the settings of a run: those of a recipe, with what is to be
different.

    settings = lite3r_jax.recipe("vggt:tiny", {"output": "RUN", "train.loop.steps": 40})
    student = lite3r_jax.distill(settings).result
    model = lite3r_jax.load("vggt-tiny", student=student, precision="fp8_dynamic")
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from lite3r_jax.attention.plan import Plan
from lite3r_jax.experiment import Experiment, changed
from lite3r_jax.exports import write as export
from lite3r_jax.infer.reconstruct import Reconstructor, reconstruct
from lite3r_jax.models import ModelSpec, Precision, check_model
from lite3r_jax.runs.bench import Benchmark, bench
from lite3r_jax.runs.check_data import check as check_data
from lite3r_jax.runs.deploy import export_deployment
from lite3r_jax.runs.evaluate import Evaluation, evaluate
from lite3r_jax.runs.probe import Probing, probe
from lite3r_jax.runs.recipes import load_recipe
from lite3r_jax.runs.reconstruct import Reconstructions, reconstruct_files
from lite3r_jax.runs.train import Training, distill, train

__all__ = [
    "Benchmark",
    "Evaluation",
    "Experiment",
    "ModelSpec",
    "Probing",
    "Reconstructions",
    "Reconstructor",
    "Training",
    "bench",
    "check_data",
    "distill",
    "evaluate",
    "export",
    "export_deployment",
    "load",
    "probe",
    "recipe",
    "reconstruct",
    "reconstruct_files",
    "train",
]


def load(
    weights: str | os.PathLike[str],
    *,
    student: str | os.PathLike[str] = "",
    attention: str | Plan = "",
    precision: Precision = "",
    rules: str = "",
    heads: Sequence[str] | None = None,
    dtype: Any = "auto",
    param_dtype: Any = None,
    seed: int = 0,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Any:
    """Loads a model with pretrained weights, ready to run.

    All arguments are checked before weights are read; the weights are compared with the SHA-256 in
    their manifest while they are read.

    Args:
        weights: a directory of converted weights or of a deployed model; a repository such as
            "facebook/VGGT-1B", which is fetched through huggingface_hub and converted once; or
            "vggt-tiny", the small model that comes with the package.
        student: folder of a distilled student of these weights.
        attention: "sla_global(keep=0.1)" or a `Plan` in place of dense attention; parameters that
            it adds have their initial, untrained values.
        precision: "float32", "bfloat16", "simulated", "fp8_weight_only", "fp8_dynamic" or "", see
            `ModelSpec`.
        rules: what becomes float8; "" for what the student was trained under, or "default".
        heads: heads to build, e.g. ("camera", "depth"); None for all that there are. Files of other
            heads are not read.
        dtype: compute dtype, float32 or bfloat16; heads are float32 in any case. "auto": bfloat16
            on a GPU and for float8 weights, float32 on a CPU, as the command line has it.
        param_dtype: dtype of the parameters; None: as they are stored.
        seed: of the initial values of parameters that are no part of the weights.
        cache_dir: where converted weights of a repository are kept; None: the user's cache.

    Returns:
        The model (flax.nnx.Module) on the default device: `model(images)`, images [B, S, H, W, 3]
        float32 in [0, 1], gives `(Prediction, taps)`.

    Raises:
        InputError: weights or student are not there, damaged (named) or do not fit together, heads
            that they do not have, or settings that contradict each other.
    """
    spec = ModelSpec(
        weights, student, attention, precision, rules, dtype, param_dtype, seed, cache_dir
    )
    return check_model(spec).build(heads)


def recipe(name: str, changes: Mapping[str, Any] | None = None) -> Experiment:
    """Returns a recipe's settings for `train`, `distill`, `evaluate`, `bench`, `reconstruct_files`.

    Args:
        name: NAME or NAME:VARIANT, such as "vggt:tiny"; or the path of a file with a `get_config`.
        changes: dotted name of a setting -> value, as {"train.loop.steps": 40}.

    Raises:
        InputError: no such recipe, variant or setting, with the nearest name; or a wrong value.
    """
    return changed(load_recipe(name), changes or {}, "")
