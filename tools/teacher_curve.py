"""Evaluates the weights that a run has now, for one point of the small teacher's curve (CSV).

    python -m tools.teacher_curve RUN [--csv FILE] [--protocols ...] [--views 2,4] [--raw]

What is evaluated is the moving average of the weights (--raw: the weights) of the newest
checkpoint, on 64 held-out scenes of each protocol at 112 x 112 pixels; this may be called while the
run goes on. Depth is compared after scaling by the median ratio of each scene. Columns are those of
docs/results.md; wrong partner: AbsRel of the first view with the other views of another scene, over
that with the right ones.
"""

import argparse
import csv
import json
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from lite3r_jax import InputError
from lite3r_jax.evaluation.options import EvaluateOptions
from lite3r_jax.evaluation.score import ScoreOptions
from lite3r_jax.experiment import Experiment
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
COLUMNS = ("date", "run", "step", "seen", "weights", "split", "views", *METRICS)


def main() -> None:
    """Parses the command line, evaluates the weights, and appends and prints lines of the CSV."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--csv", type=Path, default=Path("docs/teacher_curve.csv"))
    parser.add_argument("--protocols", default=PROTOCOLS)
    parser.add_argument("--views", default="2,4", help="numbers with commas between")
    parser.add_argument("--scenes", type=int, default=0, help="only the first; default: all 64")
    parser.add_argument("--step", type=int, help="of which checkpoint; default: the newest")
    parser.add_argument("--raw", action="store_true")
    args = parser.parse_args()
    try:
        lines = measure(args.run, args.protocols, args.views, args.step, args.raw, args.scenes)
    except InputError as error:
        sys.exit(f"error: {error}")
    new = not args.csv.exists()
    with args.csv.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(lines)
    for line in lines:
        print(json.dumps(line))


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
            resamples=1,
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
