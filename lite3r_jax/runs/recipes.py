"""Loads recipes, the settings of runs: by name from the package, or from a file."""

import importlib.util
import inspect
import os
import pkgutil
from pathlib import Path
from typing import Any

from lite3r_jax import recipes
from lite3r_jax.deploy.manifest import find_deployment
from lite3r_jax.errors import InputError, did_you_mean, unknown_name
from lite3r_jax.experiment import Experiment, from_config
from lite3r_jax.weights.load import resolve
from lite3r_jax.weights.manifest import read_manifest


def recipe_names() -> tuple[str, ...]:
    """Returns the names of the recipes that come with the package."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(recipes.__path__)))


def load_recipe(text: str) -> Experiment:
    """Loads the settings of a recipe.

    Args:
        text: NAME or NAME:VARIANT of a recipe of the package, such as "vggt:tiny"; or PATH.py or
            PATH.py:VARIANT, a file with a function `get_config`, as in `recipes/`.

    Raises:
        InputError: there is no such recipe, with the nearest name, or no such variant.
    """
    name, _, variant = text.partition(":")
    if name.endswith(".py") or "/" in name:
        path = Path(name)
        if not os.path.isfile(path):
            raise InputError(
                f"{path}: the config file cannot be read; recipes by name are"
                f" {', '.join(recipe_names())}{did_you_mean(path.stem, recipe_names())}"
            )
    elif name in recipe_names():
        path = Path(recipes.__path__[0]) / f"{name}.py"
    else:
        raise unknown_name("recipe", name, recipe_names())
    get_config = _get_config(path)
    if variant and not inspect.signature(get_config).parameters:
        raise InputError(f"{name}:{variant}: this recipe has no variants; leave out :{variant}")
    config = get_config(variant) if variant else get_config()
    return config if isinstance(config, Experiment) else from_config(config.to_dict())


def settings_for(weights: str, *, training: bool = False) -> Experiment:
    """Returns the settings that fit given weights: those of the recipe of their backbone.

    Args:
        weights: as for `load`; "" for VGGT.
        training: whether the small model counts as any other of its backbone, as it does in
            training, whose recipe has `weights` of its own otherwise.

    Raises:
        InputError: there are no such weights.
    """
    if not weights:
        return load_recipe("vggt")
    if weights == "vggt-tiny" and not training:
        return load_recipe("vggt_tiny")
    manifest = find_deployment(Path(weights)) or read_manifest(resolve(weights)[0])
    for name in (manifest.backbone, f"{manifest.backbone}_large"):
        if name in recipe_names():
            return load_recipe(name)
    return Experiment(backbone=manifest.backbone)


def _get_config(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"lite3r_jax_recipe_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (OSError, SyntaxError) as error:
        raise InputError(f"{path}: cannot be read as a recipe ({error})") from error
    if not callable(getattr(module, "get_config", None)):
        raise InputError(f"{path}: is no recipe; it has no function get_config")
    return module.get_config
