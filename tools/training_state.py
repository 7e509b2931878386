"""Saves the state of a training as a small folder to be committed, or the weights in it.

    python -m tools.training_state save RUN FOLDER
    python -m tools.training_state weights RUN OUT [--raw] [--dtype bfloat16] \
        [--license ID --license-from WHO]

`save` writes weights and their moving average of the newest checkpoint of RUN, 12 MB for the small
teacher; a training goes on from FOLDER with --config.train.init_from=FOLDER, on any machine.
`weights` writes the moving average (--raw: the weights themselves) as weights that `load` and
--config.weights take. Both may be called while the run goes on.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from lite3r_jax import InputError
from lite3r_jax.experiment import Experiment, from_config
from lite3r_jax.runs.train import build, open_data
from lite3r_jax.training.checkpoint import newest_step, read_arrays
from lite3r_jax.training.parameters import split
from lite3r_jax.training.portable import RECORD, write_portable
from lite3r_jax.training.run_dir import CHANGES, CONFIG, EVENTS
from lite3r_jax.training.tasks import make_task
from lite3r_jax.weights import strict_json
from lite3r_jax.weights.manifest import Origin
from lite3r_jax.weights.save import save


def main() -> None:
    """Parses the command line and writes the state or the weights of a run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("save")
    two = commands.add_parser("weights")
    for command, name in ((one, "folder"), (two, "out")):
        command.add_argument("run", type=Path)
        command.add_argument(name, type=Path)
        command.add_argument("--step", type=int, help="of which checkpoint; default: the newest")
    two.add_argument("--raw", action="store_true")
    two.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    two.add_argument("--license", default=Origin.license, help="of the weights")
    two.add_argument("--license-from", default=Origin.license_from, help="who says so")
    args = parser.parse_args()
    try:
        if args.command == "save":
            print(json.dumps(save_state(args.run, args.folder, args.step)))
        else:
            origin = Origin(args.license, args.license_from)
            written = save_weights(args.run, args.out, args.step, args.raw, args.dtype, origin)
            print(json.dumps(written))
    except InputError as error:
        sys.exit(f"error: {error}")


def settings(run: Path) -> Experiment:
    """Reads the settings of a run from its folder."""
    config = strict_json.read_object(run / CONFIG)
    return from_config({k: v for k, v in config.items() if k not in ("code", CHANGES)})


def first_start(run: Path) -> dict[str, Any]:
    """Reads the event of a run's first start from its folder."""
    lines = [json.loads(line) for line in (run / EVENTS).read_text().splitlines()]
    return next(line for line in lines if line["event"] == "start")


def counted(run: Path, step: int) -> tuple[int, list[dict[str, Any]]]:
    """Returns (images seen up to a step, over all parts of the training; records of the parts)."""
    experiment = settings(run)
    config = strict_json.read_object(run / CONFIG)
    begun = first_start(run)
    base = begun.get("init_from") or {"step": 0, "views": 0, "parts": []}
    schedule = open_data(experiment.train)[0].schedule
    views = schedule.views(step) - schedule.views(base["step"])
    part = {
        "begun": begun["time"],
        "steps": [base["step"], step],
        "views": views,
        "versions": begun.get("versions"),
        "train": config["train"],
        "code": config.get("code"),
        "changes": config.get(CHANGES, []),
    }
    return base["views"] + views, [_without_places(each) for each in (*base["parts"], part)]


def _without_places(part: dict[str, Any]) -> dict[str, Any]:
    """Removes from the record of a part of a training where files were on the machine."""
    train = {**part["train"], "model": Path(part["train"]["model"]).name}
    return {**part, "train": train | {"init_from": bool(train.get("init_from"))}}


def save_state(run: Path, folder: Path, step: int | None = None) -> dict[str, int]:
    """Writes the state of a run to a folder, as `training.portable` describes it.

    Raises:
        InputError: the folder holds the state that the run began from, or what `write_portable`
            raises.
    """
    begun = first_start(run).get("init_from") or {}
    record = folder / RECORD
    if (
        begun
        and record.is_file()
        and strict_json.read_object(record).get("sha256") == begun["sha256"]
    ):
        raise InputError(
            f"{folder}: {run} began from this state and cannot be continued without it; write to"
            " another folder"
        )
    step = newest_step(run) if step is None else step
    views, parts = counted(run, step)
    write_portable(run, folder, views=views, parts=parts, step=step)
    return {"step": step, "views": views}


def save_weights(
    run: Path,
    out: Path,
    step: int | None = None,
    raw: bool = False,
    dtype: str = "float32",
    origin: Origin | None = None,
) -> dict[str, int]:
    """Writes weights for `load`, of the model alone without what only its training needs."""
    step = newest_step(run) if step is None else step
    experiment = settings(run)
    task = make_task(experiment)
    module = task.wrap(build(experiment), experiment.train.seed)
    layout, params, frozen = split(module, (experiment.train.trainable,), None)
    arrays = {} if raw else read_arrays(run, step, "average")
    params = params | {k: jnp.asarray(x) for k, x in (arrays or read_arrays(run, step)).items()}
    model = task.unwrap(layout.merge(params, frozen))
    save(
        model,
        out,
        backbone=experiment.backbone,
        dtype=jnp.dtype(dtype),
        origin=origin,
        overwrite=True,
    )
    return {"step": step, "views": counted(run, step)[0]}


if __name__ == "__main__":
    main()
