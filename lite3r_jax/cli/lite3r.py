"""The program `lite3r`: one command for each thing that the package does.

`lite3r PHOTOS` is `lite3r reconstruct PHOTOS`.
"""

import glob
import os
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NoReturn

from lite3r_jax.cli import (
    check_data,
    config,
    convert,
    deploy,
    device_check,
    setting_help,
)
from lite3r_jax.cli.arguments import Arguments, parse
from lite3r_jax.cli.modes import MODES
from lite3r_jax.cli.programs import exit_code
from lite3r_jax.errors import InputError, did_you_mean
from lite3r_jax.experiment import Experiment, changed
from lite3r_jax.interrupts import run_as_process
from lite3r_jax.runs.recipes import load_recipe, recipe_names, settings_for
from lite3r_jax.runs.reconstruct import DEFAULT_OUTPUT
from lite3r_jax.runs.serve import DEFAULT_OUTPUT as SERVED
from lite3r_jax.runs.train import STUDENT, WEIGHTS


@dataclass(frozen=True)
class Command:
    """A command that runs a mode with settings.

    Attributes:
        mode: of `cli.modes.MODES`.
        summary: what it does, in a line.
        usage: its words and most common options.
        words: settings that its words are, in order.
        many: whether there may be more words; they are then one setting, with commas between.
        short: short name -> dotted name of the setting that it stands for.
        defaults: settings that differ from the recipe's for this command.
        shown: settings and groups of settings that its help lists.
        weights: those that it takes unless a recipe or weights are given.
        training: "backbone" or "student", what a training trains; "" for other commands.
    """

    mode: str
    summary: str
    usage: str
    words: tuple[str, ...] = ()
    many: bool = False
    short: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, str] = field(default_factory=dict)
    shown: tuple[str, ...] = ()
    weights: str = ""
    training: str = ""


_TRAINING = {
    "data": "train.data.source",
    "steps": "train.loop.steps",
    "batch": "train.data.buckets",
    "learning-rate": "train.optimizer.learning_rate",
    "seed": "train.seed",
}
_RECONSTRUCTION = {
    "attention": "attention.plan",
    "cameras": "cameras.known",
    "dtype": "compute.dtype",
    "refine": "refine.on",
    "size": "images.size",
}
_MASKS = {"mask": "points.mask", "mask-folder": "points.mask_folder"}
_EXPORTED = {name: f"export.{setting}" for name, setting in _MASKS.items()}
_VIEWED = {name: f"view.{setting}" for name, setting in _MASKS.items()}
_PHOTOS = ("input", "images", "video", "cameras")
_MODEL = ("weights", "student", "attention", "precision", "compute")
SMALL = "vggt-tiny"
COMMANDS: Mapping[str, Command] = {
    "reconstruct": Command(
        "reconstruct",
        "photos or a video to cameras, depth, points and files",
        "PHOTOS [--weights facebook/VGGT-1B] [--output OUT] [--open] [--overwrite]"
        " [--formats npz,ply,glb,colmap,html] [--size PIXELS] [--student RUN/student]"
        " [--attention PLAN] [--precision fp8_dynamic] [--cameras FILE] [--dtype bfloat16]"
        " [--mask sky,edges] [--mask-folder MASKS] [--refine]",
        ("input",),
        many=True,
        short=_RECONSTRUCTION | _EXPORTED,
        shown=(
            *_PHOTOS,
            *_MODEL,
            "processes",
            "refine",
            "output",
            "overwrite",
            "quiet",
            "open",
            "formats",
            "export",
        ),
        weights=SMALL,
    ),
    "train": Command(
        "train",
        "train a backbone further",
        "--weights W --data BLENDEDMVS --output RUN [--steps N] [--batch 1x4x518x518]",
        short=_TRAINING,
        shown=("weights", "output", "quiet", "train", "small_teacher"),
        training="backbone",
    ),
    "distill": Command(
        "train",
        "distill a student with cheaper attention from a teacher",
        "--weights W --data BLENDEDMVS --output RUN [--steps N]; without both: --recipe vggt:tiny",
        short=_TRAINING | {"plan": "distill.plan"},
        shown=("weights", "output", "quiet", "train", "distill"),
        training="student",
    ),
    "evaluate": Command(
        "eval",
        "measure depth, cameras and points of models by fixed protocols",
        "--weights W --output OUT [--variants dense-float32,...] [--student RUN/student]"
        " [--protocols synthetic:test] [--views 2,4] [--scenes N]",
        short={
            name: f"evaluate.{name}"
            for name in ("variants", "student", "protocols", "views", "scenes", "size")
        },
        shown=("weights", "output", "overwrite", "quiet", "compute", "processes", "evaluate"),
    ),
    "probe": Command(
        "probe",
        "find the layers that can do with less attention, and a plan for the others",
        "--weights W --output OUT [--plan 'key_views(choose=stride,every=4)'] [--layers 0,1]"
        " [--budget 0.5] [--protocols synthetic:test] [--views 8] [--scenes N]",
        short={name: f"probe.{name}" for name in ("plan", "layers", "threshold", "budget")}
        | {name: f"evaluate.{name}" for name in ("protocols", "views", "scenes", "size")},
        defaults={"evaluate.views": "8"},
        shown=("weights", "output", "overwrite", "quiet", "compute", "probe", "evaluate"),
    ),
    "bench": Command(
        "bench",
        "measure time and memory of models against the number of views",
        "--weights W --output OUT [--variants sla_global-bfloat16,...] [--views 2,8,32]"
        " [--size HEIGHTxWIDTH] [--student RUN/student]",
        short={
            name: f"bench.{name}"
            for name in ("variants", "student", "views", "size", "runs", "quality")
        },
        shown=("weights", "output", "overwrite", "quiet", "compute", "processes", "bench"),
    ),
    "export": Command(
        "export",
        "a reconstructed scene to files of other formats",
        "RESULTS --output OUT [--formats ply,glb,html] [--mask sky,edges]",
        ("input",),
        short=_EXPORTED,
        defaults={"formats": "ply,glb,html"},
        shown=("input", "output", "overwrite", "formats", "export"),
    ),
    "view": Command(
        "view",
        "show a reconstructed scene, or photos, in the browser",
        "RESULTS_OR_PHOTOS [--weights facebook/VGGT-1B] [--port 8080]",
        ("input",),
        many=True,
        short=_RECONSTRUCTION | _VIEWED,
        shown=(*_PHOTOS, *_MODEL, "refine", "quiet", "host", "port", "view"),
        weights=SMALL,
    ),
    "serve": Command(
        "serve",
        "a web page and a JSON API to reconstruct with",
        "[--weights facebook/VGGT-1B] [--models W,W] [--output SCENES] [--port 8080] [--open]",
        short={
            "attention": "attention.plan",
            "dtype": "compute.dtype",
            "models": "serve.models",
            "refine": "refine.on",
            "size": "images.size",
        },
        defaults={"output": SERVED},
        shown=(
            *_MODEL,
            "refine",
            "output",
            "open",
            "formats",
            "images",
            "video",
            "export",
            "host",
            "port",
            "serve",
        ),
        weights=SMALL,
    ),
}
PROGRAMS: Mapping[str, tuple[Callable[[Sequence[str]], int], str]] = {
    "convert": (convert.main, "convert a checkpoint, or write one again"),
    "deploy": (deploy.main, "write a model with float8 weights, and programs of it"),
    "check-data": (check_data.main, "read a dataset and list everything that is wrong with it"),
    "device-check": (
        device_check.main,
        "check the kernels on this device, and measure on it",
    ),
    "config": (config.main, "show the settings of a run, or what one of them means"),
    "version": (lambda arguments: version(), "print the version"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; see `lite3r --help`.

    Args:
        arguments: without the program's name; None for those of the process.

    Returns:
        Exit code, as of `lite3r_jax.main.main`.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    return exit_code(lambda: _run(words), lambda message: message.replace("--config.", "--"))


def program() -> NoReturn:
    """Runs `lite3r` as a process, which Ctrl-C ends at once."""
    run_as_process(main)


def version() -> int:
    """Print the version of the package."""
    from lite3r_jax import __version__

    print(f"lite3r_jax {__version__}")
    return 0


def settings_of(name: str, arguments: Sequence[str]) -> Experiment:
    """Returns the settings that a command line stands for.

    Args:
        name: of a command in `COMMANDS`.
        arguments: what stands behind it.

    Raises:
        InputError: unknown words, options, recipe or settings; in a line, with the nearest name.
    """
    command = COMMANDS[name]
    parsed = parse(arguments, ("recipe",), command.short, command=f"lite3r {name}")
    return _settings(name, command, parsed)


def _settings(name: str, command: Command, parsed: Arguments) -> Experiment:
    words = parsed.words
    if command.many and len(words) > 1:
        words = [_joined(words)]
    if len(words) > len(command.words):
        raise InputError(f"{words[len(command.words)]}: unexpected; lite3r {name} {command.usage}")
    given = dict(zip(command.words, words, strict=False)) | parsed.settings
    if recipe := parsed.options.get("recipe"):
        settings = load_recipe(recipe)
    else:
        if command.weights:
            given = {"weights": command.weights} | given
        settings = settings_for(given.get("weights", ""), training=bool(command.training))
        if command.training == "backbone":
            settings = replace(settings, distill=replace(settings.distill, plan=""))
        settings = changed(settings, command.defaults, "--")
    settings = changed(settings, given, "--")
    if command.training and bool(settings.distill.plan) != (command.training == "student"):
        raise InputError(
            "--recipe: it trains a backbone; use lite3r train, or set --distill.plan=sla_global"
            if command.training == "student"
            else "--recipe: it distils a student; use lite3r distill, or its variant backbone"
        )
    return settings


def _joined(words: Sequence[str]) -> str:
    """Joins several words into one input, with commas between."""
    for word in words:
        if "," in word:
            raise InputError(
                f"{word}: has a comma in its name and is one of several; give a folder or a"
                " pattern that holds them"
            )
    return ",".join(words)


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    name, *rest = words
    if name in PROGRAMS:
        return PROGRAMS[name][0](rest)
    if name not in COMMANDS:
        if not _is_input(name):
            known = [*COMMANDS, *PROGRAMS]
            raise InputError(
                f"{name}: neither a command nor a file or folder{did_you_mean(name, known)}; see"
                " lite3r --help"
            )
        name, rest = "reconstruct", words
    command = COMMANDS[name]
    parsed = parse(rest, ("recipe",), command.short, command=f"lite3r {name}")
    if "version" in parsed.options:
        return version()
    settings = _settings(name, command, parsed)
    if "help" in parsed.options:
        print(_help(name, settings))
        return 0
    return MODES[command.mode](settings)


def _is_input(word: str) -> bool:
    """Returns whether the first word is an option or a path, as only in `lite3r PHOTOS`."""
    return (
        word.startswith("-")
        or os.path.lexists(os.path.expanduser(word))
        or glob.has_magic(word)
        or any(sign in word for sign in ("/", ",", "."))
    )


def _overview() -> str:
    rows = [(name, command.summary) for name, command in COMMANDS.items()]
    rows += [(name, summary) for name, (_, summary) in PROGRAMS.items()]
    width = max(len(name) for name, _ in rows)
    lines = [f"  {name.ljust(width)}  {summary}" for name, summary in rows]
    return "\n".join(
        [
            "lite3r PHOTOS [--weights facebook/VGGT-1B] [--output OUT] [--open]",
            "lite3r COMMAND ...",
            "",
            f"PHOTOS: a folder, image files or a video; results go to {DEFAULT_OUTPUT}/NAME.",
            "",
            *lines,
            "",
            "lite3r COMMAND --help says more of each.",
        ]
    )


def _help(name: str, settings: Experiment) -> str:
    command = COMMANDS[name]
    usage = textwrap.wrap(
        f"lite3r {name} {command.usage}", setting_help.WIDTH, subsequent_indent=" " * 8,
        break_on_hyphens=False,
    )  # fmt: skip
    about = [
        "--recipe NAME[:VARIANT] or FILE.py[:VARIANT]: settings to begin with, of"
        f" {', '.join(recipe_names())}; default: those of the weights."
    ]
    if command.short:
        short = (f"--{short} is --{setting}" for short, setting in command.short.items())
        about.append(f"Short: {', '.join(short)}.")
    if command.training:
        folder = STUDENT if command.training == "student" else WEIGHTS
        about.append(
            f"The result is RUN/{folder}; the same command again goes on with a run that was"
            " stopped."
        )
    about.append(
        "Settings and their values here; lite3r config show NAME says all about one, lite3r config"
        " show lists all."
    )
    wrapped = [line for text in about for line in textwrap.wrap(text, setting_help.WIDTH)]
    table = setting_help.describe(settings, command.shown)
    return "\n".join([*usage, "", f"  {command.summary}", "", *wrapped, "", table])


if __name__ == "__main__":
    program()
