"""`lite3r config show`: the settings of a run, with their values, without running it.

lite3r config show [NAME ...] [--recipe R] [--weights W] [--SETTING=VALUE ...]

All settings, or what each NAME (a setting or a group of settings) means in full.
"""

import sys
from collections.abc import Sequence

from lite3r_jax.cli import setting_help
from lite3r_jax.cli.arguments import parse
from lite3r_jax.cli.programs import exit_code
from lite3r_jax.errors import InputError, did_you_mean
from lite3r_jax.experiment import changed
from lite3r_jax.runs.recipes import load_recipe, settings_for


def main(arguments: Sequence[str] | None = None, program: str = "lite3r config") -> int:
    """Runs `lite3r config`; returns 0, or 2 for bad input (one line on stderr)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    return exit_code(lambda: _run(words, program))


def _run(words: Sequence[str], program: str) -> int:
    parsed = parse(words, ("recipe",), command=program)
    if "help" in parsed.options:
        print(__doc__)
        return 0
    if parsed.words[:1] != ["show"]:
        given = f"{parsed.words[0]}: unknown" if parsed.words else "missing"
        raise InputError(f"{program}: the word `show` is expected, {given}; see {program} --help")
    if recipe := parsed.options.get("recipe"):
        settings = load_recipe(recipe)
    else:
        settings = settings_for(parsed.settings.get("weights", ""))
    settings = changed(settings, parsed.settings, "--")
    names = parsed.words[1:]
    known = setting_help.names(settings)
    for name in names:
        if name not in known:
            raise InputError(f"{name}: there is no such setting{did_you_mean(name, known)}")
    shown = [setting_help.explain(settings, name) for name in names]
    print("\n".join(shown) if names else setting_help.describe(settings))
    return 0
