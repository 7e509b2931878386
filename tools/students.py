"""Trains and measures students of the small teacher, one after the other, for a table.

    python -m tools.students --out OUT [--rows NAME[=SEEDS] ...] [--seeds 3] [--weights vggt-tiny]
                             [--plans PLAN ...] [--refine]

Every row is a variant of `configs/vggt.py:tiny`, trained with every seed by `--mode=train` into
OUT/ROW/SEED and evaluated on the held-out splits of the generated world; "Speed3R, top 8" and its
like are students of another row with other settings. A plan of --plans is the attention of the
teacher as it is, without training. With --refine every row stands there a second time with cameras
and depth refined by matches between the images, NAME+refine. What is there is not done again, so
that a run that was stopped goes on and rows can be added. "Work" is what the layers over all views
do between queries, keys and values, as a share of dense attention's (`tools.reduction`). The tables
are written to OUT/students.md and OUT/students.json and printed, quality against work of each split
is drawn in OUT/SPLIT.svg.
"""

import argparse
import gc
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import jax

from lite3r_jax.attention.presets import parse_plan, plan_name
from lite3r_jax.data.sources import frozen_lists
from lite3r_jax.deploy.checkpoint import deployed_rules
from lite3r_jax.distillation.checkpoint import read_student
from lite3r_jax.errors import InputError
from lite3r_jax.evaluation import CachedScenes, ScoreOptions, open_protocol
from lite3r_jax.evaluation.evaluator import measure, report
from lite3r_jax.evaluation.predictor import Output, Predictor
from lite3r_jax.evaluation.record import Record
from lite3r_jax.evaluation.refined import refining
from lite3r_jax.evaluation.summary import paired_difference
from lite3r_jax.evaluation.variants import (
    STUDENT,
    UNTRAINED,
    Variant,
    build_variant,
    spec_of,
)
from lite3r_jax.experiment import from_config
from lite3r_jax.files import atomic_write
from lite3r_jax.html_report.chart import Chart, Series, svg
from lite3r_jax.models import ModelSpec, check_model
from lite3r_jax.recipes.vggt import get_config
from lite3r_jax.refine import check_extra
from lite3r_jax.runs import train
from lite3r_jax.training.run_dir import EVENTS
from lite3r_jax.weights import strict_json
from tools.reduction import attention_share

SIZE = (112, 112)
RECIPE = "recipe"
# row -> variant of the recipe
ROWS: Mapping[str, str] = {
    RECIPE: "tiny",
    "float8 in training": "tiny,fp8",
    "proj_lin only": "tiny,strategy",
    "attention weights": "tiny,attention",
    "keep 0.1": "tiny,keep10",
    "keep 0.1, proj_lin only": "tiny,keep10,strategy",
    "keep 0.05": "tiny,keep05",
    "blocks of 16": "tiny,block16",
    "Speed3R": "tiny,speed3r",
    "Speed3R, gates only": "tiny,speed3r,gates",
    "Spark3R": "tiny,spark3r",
    "token routing": "tiny,token",
    "block3 routing": "tiny,block3",
    "every Linear in float8": "tiny,paper_fp8",
    "half of the views": "tiny,half_views",
    "every attention": "tiny,every_site",
    "as a whole": "tiny,whole",
    "teacher as truth": "tiny,whole,unlabeled",
    "task loss only": "tiny,whole,no_match",
    "as published": "tiny,whole,every_site,token,strategy,paper_fp8",
}
# row -> the row whose students it has, with other settings than they were trained with
AFTER_TRAINING: Mapping[str, tuple[str, str]] = {
    f"Speed3R, top {top}": ("Speed3R", f"{STUDENT}(top={top})") for top in (8, 16, 32, 64, 128)
}
PRECISIONS = ("float32", "fp8_dynamic")
TEACHER = "teacher"
DENSE = Variant("dense", PRECISIONS[0])
# heading -> (metric, decimals)
COLUMNS: Mapping[str, tuple[str, int]] = {
    "AbsRel": ("abs_rel", 4),
    "delta1": ("delta1", 3),
    "AUC@5": ("auc_5", 3),
    "AUC@30": ("auc_30", 3),
    "rotation": ("rotation_median_deg", 1),
    "direction": ("direction_median_deg", 1),
    "AbsRel to teacher": ("teacher_abs_rel", 4),
    "AUC@30 to teacher": ("teacher_auc_30", 3),
}
PAIRED: Mapping[str, tuple[str, int]] = {
    name: COLUMNS[name] for name in ("AbsRel", "AUC@30", "AbsRel to teacher", "AUC@30 to teacher")
}
_BATCH = 8
_MARK = {False: "", True: "+refine"}  # behind the name of a row
SplitMetrics = Mapping[str, Mapping[str, Any]]
"""Maps split to metric to value, and under "scenes" metric to the values of all scenes."""


class Bench:
    """Held-out samples, and measurements of models on them against the truth and the teacher."""

    def __init__(self, weights: str, splits: Sequence[str], views: int, scenes: int):
        """Opens `scenes` samples with `views` views of each split, for the teacher `weights`."""
        self.weights = weights
        checked, size = check_model(ModelSpec(weights)), {"height": SIZE[0], "width": SIZE[1]}
        self._share = cache(lambda plan: attention_share(checked, plan, views, size))
        self.tasks = {}
        for split in splits:
            protocol, source = open_protocol(
                f"synthetic:{split}", views=views, size=SIZE, scenes=scenes
            )
            self.tasks[split] = protocol, CachedScenes(source)
        self._dense = self._predictor(DENSE)
        self.said: dict[str, dict[int, Output | None]] = {}

    def entry(self, row: Variant, folder: Path) -> dict[str, Any]:
        """Returns work and metrics of a row of `table`, for one seed."""
        return {"work": self.work(row, folder), "metrics": self.measured(row, folder)}

    def measured(self, row: Variant, folder: Path) -> SplitMetrics:
        """Measures a row on all splits, or reads from the folder what was measured before."""
        predictor = self._predictor(row, folder / train.STUDENT)
        by_split = {}
        for split, (protocol, _) in self.tasks.items():
            file = folder / f"{row.name}-{split}-{protocol.views}x{len(protocol.items)}.json"
            if not file.exists():
                reference = None if row == DENSE else self.teacher(split).get
                scores = self._scores(split, self._measure(predictor(), split, reference=reference))
                with atomic_write(file) as partial:
                    partial.write_bytes(strict_json.dump(scores))
            by_split[split] = strict_json.read_object(file)
        return by_split

    def work(self, row: Variant, folder: Path) -> float:
        """Returns operations of the layers over all views, as a share of dense attention's."""
        spec = spec_of(row, self.weights, str(folder / train.STUDENT))
        plan = spec.attention or read_student(Path(spec.student))[0].plan
        return self._share(plan if isinstance(plan, str) else plan_name(plan))

    def teacher(self, split: str) -> dict[int, Output | None]:
        """Returns the teacher's predictions for the samples of a split, computed once."""
        if split not in self.said:
            said: dict[int, Output | None] = {}
            keep = lambda n, record, output: said.__setitem__(n, output)  # noqa: E731
            self._measure(self._dense(), split, keep=keep)
            self.said[split] = said
        return self.said[split]

    def _predictor(self, row: Variant, student: Path | None = None) -> Callable[[], Any]:
        """Returns a function that builds and compiles a row's predictor when first called."""

        def build() -> Any:
            predictor = Predictor(
                build_variant(row, self.weights, str(student or "")), batch=_BATCH
            )
            return refining(predictor) if row.refine else predictor

        return cache(build)

    def _measure(self, predictor: Any, split: str, **settings: Any) -> list[Record]:
        protocol, source = self.tasks[split]
        options = ScoreOptions("median", points=False, wrong_partner=False)
        return measure(predictor, protocol, source, options=options, batch=_BATCH, **settings)

    def _scores(self, split: str, records: Sequence[Record]) -> dict[str, Any]:
        summary = report(self.tasks[split][0], records, resamples=0).summary
        scores: dict[str, Any] = {
            name: summary[name].value for name, _ in COLUMNS.values() if name in summary
        }
        scores["scenes"] = {
            name: [record.metrics[name] for record in records]
            for name, _ in PAIRED.values()
            if name in summary
        }
        return scores


def train_student(
    folder: Path, weights: str, variant: str, seed: int, settings: Mapping[str, Any]
) -> None:
    """Trains one student by the command's own function, unless it is there already.

    Raises:
        InputError: of the training, or it did not come to its end.
    """
    if (folder / train.STUDENT).exists():
        return
    config = get_config(variant)
    values = {
        "output": str(folder),
        "weights": weights,
        "train.seed": seed,
        "distill.final_variants": "",
    }
    config.update_from_flattened_dict(values | dict(settings))
    if train.run(from_config(config.to_dict())) != train.DONE:
        raise InputError(f"{folder}: the training did not come to its end")


def facts(folder: Path) -> dict[str, float]:
    """Reads a run's number of trained parameters and minutes of training without compilation."""
    events = [json.loads(line) for line in (folder / EVENTS).read_text().splitlines()]
    speed = next(e for e in reversed(events) if e["event"] == "speed")
    arrays = read_student(folder / train.STUDENT)[1]
    return {
        "parameters": sum(x.size for x in arrays.values()),
        "minutes": speed["step"] / speed["steps_per_second"] / 60,
    }


def spread(values: Sequence[float], decimals: int) -> str:
    """Formats the mean, with the smallest and the largest where values differ."""
    text, *ends = (f"{x:.{decimals}f}" for x in (mean(values), min(values), max(values)))
    return text if ends == [text, text] else f"{text} [{', '.join(ends)}]"


def table(results: Mapping[str, Sequence[Mapping[str, Any]]], split: str) -> str:
    """Formats the results of a split as a Markdown table.

    Args:
        results: row -> one entry for each seed: work (`Bench.work`), metrics (`SplitMetrics`); of
            students also parameters, minutes and before, the row that they were before their first
            step.
        split: of the generated world.
    """
    head = ["row", "seeds", "work", *COLUMNS, "trained parameters", "minutes"]
    lines = [" | ".join(head), "|".join("---" for _ in head)]
    for row, entries in results.items():
        cells = [row, str(len(entries)), f"{entries[0]['work']:.2f}"]
        for name, decimals in COLUMNS.values():
            values = [e["metrics"][split][name] for e in entries if name in e["metrics"][split]]
            cells.append(spread(values, decimals) if values else "")
        for name, decimals in (("parameters", 0), ("minutes", 1)):
            values = [e[name] for e in entries if name in e]
            cells.append(f"{mean(values):,.{decimals}f}" if values else "")
        lines.append(" | ".join(cells))
    return "\n".join(f"| {line} |" for line in lines)


def gains(results: Mapping[str, Sequence[Mapping[str, Any]]], split: str) -> str:
    """Formats as Markdown how rows differ from the teacher and from themselves before training.

    Differences are of the same scenes. The teacher is that in float32. Values of a scene are the
    means of all seeds. Brackets are 95 % intervals over scenes. Students that began as the
    recipe's are compared with it, too.

    Args:
        results: as for `table`.
        split: of the generated world.
    """
    lines = [" | ".join(["row", "less", *PAIRED]), "|".join("---" for _ in range(2 + len(PAIRED)))]
    for row, entries in results.items():
        others = {TEACHER: f"{TEACHER}: {PRECISIONS[0]}"}
        if before := entries[0].get("before"):
            others["before"] = before
            recipe = f"{RECIPE}: {row.rpartition(': ')[2]}"
            if recipe in results and results[recipe][0]["before"] == before:
                others[RECIPE] = recipe
        for what, other in others.items():
            if other == row:
                continue
            cells = [_paired(entries, results[other], split, *c) for c in PAIRED.values()]
            lines.append(" | ".join([row, what, *cells]))
    return "\n".join(f"| {line} |" for line in lines)


def _paired(entries: Any, others: Any, split: str, metric: str, decimals: int) -> str:
    if metric not in others[0]["metrics"][split]["scenes"]:
        return ""  # the teacher's distance to itself
    values, before = (
        [
            mean(seeds)
            for seeds in zip(*(e["metrics"][split]["scenes"][metric] for e in of), strict=True)
        ]
        for of in (entries, others)
    )
    gain = paired_difference(values, before)
    assert gain.value is not None and gain.low is not None and gain.high is not None
    return f"{gain.value:+.{decimals}f} [{gain.low:+.{decimals}f}, {gain.high:+.{decimals}f}]"


def chart(results: Mapping[str, Sequence[Mapping[str, Any]]], split: str) -> Chart:
    """Draws AUC@30 over work in float32, of the teacher, untrained models and trained students."""
    kinds: dict[str, list[tuple[float, float]]] = {}
    for row, entries in results.items():
        if not row.endswith(f": {PRECISIONS[0]}"):
            continue
        kind = TEACHER if row.startswith(f"{TEACHER}:") else UNTRAINED
        if "parameters" in entries[0]:
            kind = "trained"
        quality = mean(e["metrics"][split]["auc_30"] for e in entries)
        kinds.setdefault(kind, []).append((entries[0]["work"], quality))
    return Chart(
        f"Students of the small teacher, {split}",
        "operations of attention over all views, share of dense",
        "AUC@30",
        tuple(Series(kind, tuple(sorted(points))) for kind, points in kinds.items()),
        log_y=False,
        joined=False,
    )


def run(args: argparse.Namespace) -> None:
    """Trains and measures the students that are not there yet, and writes the tables.

    Raises:
        InputError: an unknown row, or what training and evaluation raise.
    """
    rows = dict(_row(text, args.seeds) for text in args.rows)
    plans = [plan_name(parse_plan(text, "--plans")) for text in args.plans]
    jax.config.update("jax_compilation_cache_dir", str(args.out.resolve() / "compiled"))
    settings = {name: strict_json.parse(value.encode(), name) for name, value in args.set}
    splits = args.splits or list(frozen_lists())
    bench = Bench(args.weights, splits, args.views, args.scenes)
    teacher = args.out / TEACHER
    teacher.mkdir(parents=True, exist_ok=True)
    refine = (False, True) if args.refine else (False,)
    if args.refine:
        check_extra()
    results: dict[str, list[dict[str, Any]]] = {}
    for plan in ("dense", *plans):
        for how, more in product(PRECISIONS, refine):
            variant = Variant(plan, how, more)
            name = TEACHER if plan == "dense" else plan
            results[f"{name}: {how}{_MARK[more]}"] = [bench.entry(variant, teacher)]
            gc.collect()
    write(args.out, results, splits)
    begun: dict[Any, str] = {}  # what is drawn for the first proj_lin makes no difference
    for name, seeds in rows.items():
        trained, attention = AFTER_TRAINING.get(name, (name, STUDENT))
        for seed in range(seeds):
            folder = args.out / trained.replace(" ", "_") / str(seed)
            train_student(folder, args.weights, ROWS[trained], seed, settings)
            before: dict[str, dict[str, Any]] = {how: {} for how in PRECISIONS}
            if trained == name:
                made = read_student(folder / train.STUDENT)[0]
                first = begun.setdefault((made.plan, deployed_rules(made)), name)
                for how in PRECISIONS:
                    row = f"{first}, before: {how}"
                    before[how] = {"before": row}
                    if row not in results:
                        results[row] = [bench.entry(Variant(UNTRAINED, how), folder)]
            for how, more in product(PRECISIONS, refine):
                entry = bench.entry(Variant(attention, how, more), folder)
                entry |= {} if more else before[how]
                entry |= facts(folder)
                results.setdefault(f"{name}: {how}{_MARK[more]}", []).append(entry)
                gc.collect()
            write(args.out, results, splits)
    for split in splits:
        print(f"\n{split}, {args.views} views\n\n{text_of(results, split)}")


def _row(text: str, seeds: int) -> tuple[str, int]:
    """Parses NAME[=SEEDS] into the name of a row and its number of seeds."""
    name, _, count = text.partition("=")
    known = (*ROWS, *AFTER_TRAINING)
    if name not in known or (count and not (count.isdecimal() and int(count))):
        raise InputError(
            f"--rows {text!r}: expected NAME or NAME=SEEDS, the name one of {', '.join(known)}"
        )
    return name, int(count or seeds)


def text_of(results: Mapping[str, Sequence[Mapping[str, Any]]], split: str) -> str:
    """Formats both tables of a split, of results and of differences, as Markdown."""
    return f"{table(results, split)}\n\n{gains(results, split)}"


def write(out: Path, results: Mapping[str, Any], splits: Sequence[str]) -> None:
    """Writes the tables, numbers and charts of what is done so far."""
    text = "\n\n".join(f"## {split}\n\n{text_of(results, split)}" for split in splits) + "\n"
    files = {"students.md": text.encode(), "students.json": strict_json.dump(results)}
    files |= {f"{split}.svg": svg(chart(results, split)).encode() for split in splits}
    for name, data in files.items():
        with atomic_write(out / name, overwrite=True) as partial:
            partial.write_bytes(data)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0, or 2 when something was refused."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.students",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for all of it")
    parser.add_argument(
        "--rows", nargs="*", default=list(ROWS), metavar="NAME[=SEEDS]",
        help=f"of {', '.join((*ROWS, *AFTER_TRAINING))}; default: all that are trained; none behind"
        " it: only the teacher and --plans",
    )  # fmt: skip
    parser.add_argument(
        "--plans", nargs="+", default=[], metavar="PLAN",
        help="attention in place of the teacher's, without training",
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, default=3, help="how many of rows that do not say it")
    parser.add_argument("--weights", default="vggt-tiny", help="of the teacher")
    parser.add_argument(
        "--refine", action="store_true", help="every row also with refined cameras and depth"
    )
    parser.add_argument("--splits", nargs="+", help="of the generated world; default: all held out")
    parser.add_argument("--views", type=int, default=4, help="of each sample")
    parser.add_argument("--scenes", type=int, default=64, help="samples of each split")
    parser.add_argument(
        "--set",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="of the config, for all rows; the value as JSON",
    )
    try:
        run(parser.parse_args(arguments))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
