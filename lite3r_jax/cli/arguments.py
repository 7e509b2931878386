"""Parses the words of a command line into settings by their dotted names."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from lite3r_jax.errors import InputError, did_you_mean
from lite3r_jax.experiment import setting_types

HELP, VERSION = "help", "version"


@dataclass
class Arguments:
    """A parsed command line: its words, options and settings.

    Attributes:
        words: what is no option, in order.
        options: name -> text, of the command's own options.
        settings: dotted name of a setting -> text.
    """

    words: list[str] = field(default_factory=list)
    options: dict[str, str] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)


def parse(
    arguments: Sequence[str],
    options: Iterable[str],
    short: Mapping[str, str] | None = None,
    *,
    command: str,
    prefix: str = "",
) -> Arguments:
    """Parses a command line into words, options and settings.

    Options are --NAME=VALUE or --NAME VALUE; switches (settings that are true or false) are --NAME
    or --NAME=false. Of an option that is given several times the last one counts. `-h` is --help;
    --help and --version are known to every command.

    Args:
        arguments: the words.
        options: names of the command's own options.
        short: other name -> dotted name of the setting that it stands for.
        command: name of the program, for messages.
        prefix: what names of settings must begin with; "" accepts "config." as well as nothing.

    Raises:
        InputError: an option that does not exist, with the nearest that does, or one without its
            value.
    """
    own, short, kinds = {HELP, VERSION, *options}, dict(short or {}), setting_types()
    parsed = Arguments()
    todo = list(arguments)
    while todo:
        word = todo.pop(0)
        if word == "-h":
            word = f"--{HELP}"
        if not word.startswith("--"):
            if word.startswith("-") and len(word) > 1:
                raise InputError(f"{word}: there is no such option; options begin with --")
            parsed.words.append(word)
            continue
        if word == "--":
            parsed.words += todo
            break
        name, equals, value = word[2:].partition("=")
        setting = short.get(name)
        if setting is None and name not in own:
            setting = name.removeprefix("config.") if not prefix else name.removeprefix(prefix)
            if setting not in kinds or (prefix and not name.startswith(prefix)):
                known = [f"--{each}" for each in (*own, *short, *(prefix + k for k in kinds))]
                raise InputError(
                    f"--{name}: there is no such setting{did_you_mean(f'--{name}', known)}"
                    f"; see {command} --help"
                )
        switch = name in (HELP, VERSION) or (setting is not None and kinds[setting] is bool)
        if not equals:
            if switch:
                value = "true"
            elif not todo or todo[0].startswith("--"):
                raise InputError(f"--{name}: a value is missing; write --{name}=VALUE")
            else:
                value = todo.pop(0)
        if setting is None:
            parsed.options[name] = value
        else:
            parsed.settings[setting] = value
    return parsed
