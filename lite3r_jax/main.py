"""The command line: python -m lite3r_jax.main --config=configs/vggt.py --mode=reconstruct ...

Settings are written --config.NAME=VALUE; the config file and `lite3r_jax/experiment.py` have them
all, with what they mean.
"""

import sys
from collections.abc import Callable, Sequence

from lite3r_jax.errors import InputError
from lite3r_jax.experiment import Experiment, from_config
from lite3r_jax.modes import bench, reconstruct, train, view
from lite3r_jax.modes import eval as evaluation

MODES: dict[str, Callable[[Experiment], int]] = {
    "bench": bench.run,
    "eval": evaluation.run,
    "reconstruct": reconstruct.run,
    "train": train.run,
    "view": view.run,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the flags and run one mode.

    Args:
        arguments: without the program's name; None for those of the process.

    Returns:
        Exit code: 0; 1 if some scenes failed; 2 for bad input; 3 if training diverged; 75 if it was
        terminated with everything saved; 130 when interrupted.
    """
    from absl import flags
    from ml_collections import config_flags

    argv = ["main", *(sys.argv[1:] if arguments is None else arguments)]
    known = flags.FlagValues()
    flags.DEFINE_enum("mode", "reconstruct", list(MODES), "what to do", flag_values=known)
    config = config_flags.DEFINE_config_file(
        "config", None, "configs/NAME.py", flag_values=known, sys_argv=argv
    )
    flags.DEFINE_bool("help", False, "show this and exit", short_name="h", flag_values=known)
    try:
        try:
            rest = known(argv)
        except AttributeError as error:  # what ml_collections raises for --config.UNKNOWN=...
            key = str(error).strip("\"'")
            raise InputError(f"--config.{key}: there is no such setting") from error
        if known["help"].value:
            print(__doc__, known.get_help(), sep="\n")
            return 0
        if len(rest) > 1:
            raise InputError(f"{rest[1]}: unexpected; settings are written --config.NAME=VALUE")
        if config.value is None:
            raise InputError("--config: missing; for example --config=configs/vggt.py")
        try:
            settings = config.value.to_dict()
        except OSError as error:
            path = config_flags.get_config_filename(known["config"])  # pyright: ignore[reportArgumentType]
            raise InputError(
                f"{path}: the config file cannot be read; see configs/ for those there are"
            ) from error
        return MODES[str(known["mode"].value)](from_config(settings))
    except (InputError, flags.Error) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; no file is half-written", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
