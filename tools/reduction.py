"""Quality against cost of attention with fewer tokens: a table and a chart of an evaluation.

    lite3r evaluate --weights W --output OUT --variants "dense-float32,key_views(count=4)-float32"
    python -m tools.reduction OUT/report.json [--chart FILE.svg]

Cost is what the layers over all views do between queries, keys and values, choices and comparisons
among them, counted from sizes: operations as a share of those of dense attention in the same number
of views. Quality is the error against the truth, and against the prediction of the first row of the
evaluation, which is dense attention.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flax import nnx

from lite3r_jax import InputError
from lite3r_jax.attention.presets import parse_plan
from lite3r_jax.backbones.base import get_backbone
from lite3r_jax.benchmarking.flops import count
from lite3r_jax.evaluation.variants import HEADS
from lite3r_jax.files import atomic_write
from lite3r_jax.html_report.chart import COLORS, Chart, Series, svg
from lite3r_jax.layers.rngs import traced_rngs
from lite3r_jax.models import CheckedModel, ModelSpec, check_model
from lite3r_jax.weights import strict_json

COLUMNS = (
    "views",
    "attention",
    "operations",
    "AbsRel",
    "AUC@30",
    "AbsRel to dense",
    "AUC to dense",
)
_METRICS = ("abs_rel", "auc_30", "teacher_abs_rel", "teacher_auc_30")


@dataclass(frozen=True)
class Entry:
    """One row of an evaluation with the cost of its attention.

    Attributes:
        views: S.
        plan: attention, as text.
        operations: between queries, keys and values of the layers over all views, as a share of
            those of dense attention.
        metrics: AbsRel and AUC@30 against the truth, and both against the first row, whose own are
            None there.
    """

    views: int
    plan: str
    operations: float
    metrics: tuple[float | None, ...]


def main() -> None:
    """Parses the command line, prints the table and writes the chart."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("report", type=Path)
    parser.add_argument("--chart", type=Path, help="SVG file to write")
    args = parser.parse_args()
    try:
        entries = read(args.report)
        print(table(entries), end="")
        if args.chart is not None:
            with atomic_write(args.chart, overwrite=True) as part:
                part.write_text(svg(chart(entries)))
    except InputError as error:
        sys.exit(f"error: {error}")


def read(path: Path) -> list[Entry]:
    """Reads the rows of report.json with the cost of their attention, by number of views.

    Raises:
        InputError: the file cannot be read, is no report, is of a student, or its weights are not
            there.
    """
    body = strict_json.read_object(path)
    try:
        weights, results = body["settings"]["weights"], body["results"]
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: no report.json of `lite3r evaluate`") from error
    model = check_model(ModelSpec(weights))
    entries = []
    for result in sorted(results, key=lambda result: result["views"]):
        plan = result["variant"].rpartition("-")[0]
        share = attention_share(model, plan, result["views"], result["size"])
        values = (result["metrics"].get(name, {}).get("value") for name in _METRICS)
        entries.append(Entry(result["views"], plan, share, tuple(values)))
    return entries


def attention_share(checked: CheckedModel, plan: str, views: int, size: Mapping[str, int]) -> float:
    """Returns the attention operations of a plan as a share of dense attention's, as in `Entry`.

    Args:
        checked: the model.
        plan: attention, as text.
        views: S.
        size: height and width in pixels.
    """
    entry, config = get_backbone(checked.manifest.backbone), checked.config

    def work(text: str) -> int:
        attention = parse_plan(text)
        model: Any = nnx.eval_shape(
            lambda: entry.build(config, heads=HEADS, plan=attention, rngs=traced_rngs(0))
        )
        kinds = count(model, views, size["height"], size["width"]).parts["global"]
        return sum(number for kind, number in kinds.items() if kind != "layers")

    return work(plan) / work("dense")


def table(entries: Sequence[Entry]) -> str:
    """Formats the entries as a Markdown table."""
    lines = [COLUMNS, ("---",) * len(COLUMNS)]
    for entry in entries:
        values = ["" if x is None else f"{x:.4f}" for x in entry.metrics]
        lines.append((str(entry.views), f"`{entry.plan}`", f"{entry.operations:.3f}", *values))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def chart(entries: Sequence[Entry]) -> Chart:
    """Draws error to dense attention over operations, a line for each strategy and view count.

    Raises:
        InputError: no row differs from dense attention.
    """
    lines: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for entry in entries:
        if (error := entry.metrics[2]) is not None and error > 0:
            name = family(entry.plan), entry.views
            lines.setdefault(name, []).append((entry.operations, error))
    if not lines:
        raise InputError("no row differs from dense attention; evaluate other variants beside it")
    names, counts = ([*dict.fromkeys(part)] for part in zip(*lines, strict=True))
    # a color for each strategy, a kind of line for each number of views
    styles = {(n, c): names.index(n) + len(COLORS) * counts.index(c) for n, c in lines}
    return Chart(
        "Fewer tokens without training: cost and change",
        "operations of attention over all views, share of dense",
        "AbsRel to dense attention",
        tuple(
            Series(f"{name[0]}, {name[1]} views", tuple(sorted(points)), styles[name])
            for name, points in lines.items()
        ),
    )


def family(plan: str) -> str:
    """Returns the strategy of a plan with its words, which rows that differ in numbers share."""
    name, _, inside = plan.partition("(")
    words = [part.partition("=")[2] for part in inside.rstrip(")").split(",")]
    kinds = [word for word in words if word in ("stride", "diverse", "own")]
    return " ".join([name.removesuffix("_global"), *kinds])


if __name__ == "__main__":
    main()
