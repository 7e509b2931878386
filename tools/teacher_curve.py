"""Evaluates the weights that a run has now, for one point of the small teacher's curve (CSV).

    python -m tools.teacher_curve RUN [--csv FILE] [--protocols ...] [--views 2,4] [--raw]
    python -m tools.teacher_curve --charts FOLDER [--csv FILE]

What is evaluated is the moving average of the weights (--raw: the weights) of the newest
checkpoint, on 64 held-out scenes of each protocol at 112 x 112 pixels; this may be called while the
run goes on. Depth is compared after scaling by the median ratio of each scene. Columns are those of
docs/results.md; wrong partner: AbsRel of the first view with the other views of another scene, over
that with the right ones. --charts draws the lines of the averaged weights on `new_textures`.
"""

import argparse
import csv
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from lite3r_jax import InputError
from lite3r_jax.evaluation.options import EvaluateOptions
from lite3r_jax.evaluation.score import ScoreOptions
from lite3r_jax.experiment import Experiment
from lite3r_jax.files import atomic_write
from lite3r_jax.html_report.chart import Chart, Series, svg
from lite3r_jax.runs import evaluate
from tools.training_state import save_weights

PROTOCOLS = "synthetic:new_textures,synthetic:floating"
METRICS = {
    "abs_rel": "abs_rel",
    "delta1": "delta1",
    "auc30": "auc_30",
    "rotation": "rotation_median_deg",
    "direction": "direction_median_deg",
    "wrong_partner": "wrong_partner_ratio",
}
# file of --charts -> heading of the y axis, columns with their names
CHARTS = {
    "tiny_teacher_curve.svg": ("AbsRel and AUC@30", {"abs_rel": "AbsRel", "auc30": "AUC@30"}),
    "tiny_teacher_views.svg": (
        "AbsRel, wrong over right partner",
        {"wrong_partner": "wrong partner"},
    ),
}
COLUMNS = ("date", "run", "step", "seen", "weights", "split", "views", *METRICS)


def main() -> None:
    """Parses the command line, evaluates the weights, and appends and prints lines of the CSV."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, nargs="?", help="to be evaluated")
    parser.add_argument("--charts", type=Path, metavar="FOLDER", help="for charts of the CSV")
    parser.add_argument("--csv", type=Path, default=Path("docs/teacher_curve.csv"))
    parser.add_argument("--protocols", default=PROTOCOLS)
    parser.add_argument("--views", default="2,4", help="numbers with commas between")
    parser.add_argument("--scenes", type=int, default=0, help="only the first; default: all 64")
    parser.add_argument("--step", type=int, help="of which checkpoint; default: the newest")
    parser.add_argument("--raw", action="store_true")
    args = parser.parse_args()
    if not args.run and not args.charts:
        parser.error("expected RUN, --charts or both")
    try:
        if args.run:
            lines = measure(args.run, args.protocols, args.views, args.step, args.raw, args.scenes)
            append(args.csv, lines)
        if args.charts:
            draw(args.csv, args.charts)
    except InputError as error:
        sys.exit(f"error: {error}")


def append(table: Path, lines: Sequence[Mapping[str, object]]) -> None:
    """Appends lines to the CSV, which begins with the names of its columns, and prints them."""
    new = not table.exists()
    with table.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(lines)
    for line in lines:
        print(json.dumps(line))


def draw(table: Path, folder: Path) -> None:
    """Draws the charts `CHARTS` of a CSV's lines, over the views seen, into a folder."""
    try:
        with table.open(newline="") as file:
            lines = [
                line
                for line in csv.DictReader(file)
                if (line["weights"], line["split"]) == ("average", "new_textures")
            ]
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{error.filename}: {error.strerror}") from error
    if not lines:
        raise InputError(f"{table}: has no line of averaged weights on new_textures")
    for name, (heading, columns) in CHARTS.items():
        points: dict[str, list[tuple[float, float]]] = {}
        for column, title in columns.items():
            for line in lines:
                series = points.setdefault(f"{title}, {line['views']} views", [])
                series.append((int(line["seen"]) / 1e6, float(line[column])))
        every = tuple(Series(title, tuple(sorted(of))) for title, of in points.items())
        chart = Chart(
            "The small teacher on rooms with new textures",
            "million views seen in training",
            heading,
            every,
            log_x=False,
            log_y=False,
        )
        with atomic_write(folder / name, overwrite=True) as partial:
            partial.write_bytes(svg(chart).encode())


def measure(
    run: Path,
    protocols: str,
    views: str,
    step: int | None = None,
    raw: bool = False,
    scenes: int = 0,
) -> list[dict[str, object]]:
    """Evaluates a run's weights; returns a line for each protocol and number of views."""
    with tempfile.TemporaryDirectory() as folder:
        weights, out = Path(folder) / "weights", Path(folder) / "evaluation"
        said = save_weights(run, weights, step, raw)
        options = EvaluateOptions(
            protocols=protocols,
            views=views,
            scenes=scenes,
            pictures=0,
            batch=8,
            score=ScoreOptions(alignment="median", points=False),
        )
        experiment = Experiment(
            backbone="vggt", weights=str(weights), output=str(out), evaluate=options
        )
        if evaluate.run(experiment):
            raise InputError(f"{run}: some samples could not be evaluated; see above")
        body = json.loads((out / "report.json").read_text())
    lines = []
    for row in body["results"]:
        metrics = {name: row["metrics"][key]["value"] for name, key in METRICS.items()}
        lines.append(
            {
                "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
                "run": run.name,
                "step": said["step"],
                "seen": said["views"],
                "weights": "raw" if raw else "average",
                "split": row["protocol"].partition(":")[2],
                "views": row["views"],
                **{name: round(value, 4) for name, value in metrics.items()},
            }
        )
    return lines


if __name__ == "__main__":
    main()
