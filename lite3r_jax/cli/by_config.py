"""The command line: python -m lite3r_jax.main --config=configs/vggt.py --mode=reconstruct ...

Settings are written --config.NAME=VALUE; the recipe and `lite3r_jax/experiment.py` have them all,
with what they mean. `lite3r COMMAND` is the same with shorter names.
"""

import sys
from collections.abc import Sequence

from lite3r_jax import __version__
from lite3r_jax.cli.arguments import parse
from lite3r_jax.cli.modes import MODES
from lite3r_jax.cli.programs import exit_code
from lite3r_jax.cli.setting_help import describe
from lite3r_jax.errors import InputError, unknown_name
from lite3r_jax.experiment import Experiment, changed
from lite3r_jax.runs.recipes import load_recipe

_USAGE = """
  --config=RECIPE[:VARIANT]  a file, such as configs/vggt.py:tiny, or the name of a recipe
  --mode=MODE                {modes}; default: reconstruct
  --config.NAME=VALUE        any setting
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the flags and run one mode; arguments and exit code are those of `lite3r_jax.main`."""
    return exit_code(lambda: _run(sys.argv[1:] if arguments is None else arguments))


def _run(arguments: Sequence[str]) -> int:
    parsed = parse(
        arguments, ("config", "mode"), command="python -m lite3r_jax.main", prefix="config."
    )
    if "version" in parsed.options:
        print(f"lite3r_jax {__version__}")
        return 0
    if "help" in parsed.options:
        recipe = parsed.options.get("config")
        settings = changed(load_recipe(recipe) if recipe else Experiment(), parsed.settings)
        usage = _USAGE.format(modes=", ".join(MODES))
        print(__doc__, usage, describe(settings, prefix="--config."), sep="\n")
        return 0
    if parsed.words:
        raise InputError(f"{parsed.words[0]}: unexpected; settings are written --config.NAME=VALUE")
    if "config" not in parsed.options:
        raise InputError("--config: missing; for example --config=configs/vggt.py")
    mode = parsed.options.get("mode", "reconstruct")
    if mode not in MODES:
        raise unknown_name("--mode", mode, MODES)
    return MODES[mode](changed(load_recipe(parsed.options["config"]), parsed.settings))
