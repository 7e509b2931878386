"""`--mode=eval`: models and protocols to figures, in a folder that can be gone on with."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lite3r_jax.allocator import keep_freed_memory
from lite3r_jax.data.views import SceneSource
from lite3r_jax.deploy.manifest import find_deployment
from lite3r_jax.distill.checkpoint import MANIFEST, read_student
from lite3r_jax.errors import InputError
from lite3r_jax.evaluate import table
from lite3r_jax.evaluate.evaluator import Report, measure, report
from lite3r_jax.evaluate.page import page
from lite3r_jax.evaluate.predictor import Output, Predictor
from lite3r_jax.evaluate.protocols import Protocol, open_protocol
from lite3r_jax.evaluate.record import Record
from lite3r_jax.evaluate.remembered import Remembered
from lite3r_jax.evaluate.results import TRUTH, Results, folder_name, shown_scenes
from lite3r_jax.evaluate.rows import (
    HEADS,
    STUDENT,
    UNTRAINED,
    Row,
    build_row,
    held_dtype,
    parse_rows,
)
from lite3r_jax.evaluate.score import in_unit
from lite3r_jax.evaluate.shown import predicted, truth
from lite3r_jax.experiment import Experiment, require
from lite3r_jax.infer.memory import check_weights
from lite3r_jax.infer.progress import Progress
from lite3r_jax.infer.report import environment
from lite3r_jax.weights import strict_json
from lite3r_jax.weights.load import resolve
from lite3r_jax.weights.manifest import read_manifest
from lite3r_jax.weights.safetensors_writer import hash_file

FREE = ("batch", "pictures", "resamples", "seed", "rows", "protocols", "views")
"""Settings that the result of a sample does not depend on."""
KEPT = 2 << 30
"""Bytes of samples that are kept in memory for the next row."""


def run(experiment: Experiment) -> int:
    """Evaluate every row on every protocol: report.json, report.md and report.html.

    Samples that are done already are not done again, so that a run that was stopped goes on, and
    rows and protocols can be added. Other settings or weights are refused. Samples that fail are
    listed with their reason and tried again by the next run.

    Args:
        experiment: `weights`, `output` and `evaluate`.

    Returns:
        Exit code: 0, or 1 if some samples failed.

    Raises:
        InputError: nothing was done: settings, data or weights are wrong, or the folder has results
            of other settings.
    """
    require(experiment, "weights", "output")
    keep_freed_memory()
    options = experiment.evaluate
    deployment = find_deployment(Path(experiment.weights))
    rows = parse_rows(options.rows, options.student, deployment=deployment)
    opened = [
        open_protocol(
            name,
            views=views,
            size=options.pixels(),
            scenes=options.scenes,
            folders=options.folders,
        )
        for name, views in options.tasks()
    ]
    results = Results(
        Path(experiment.output), settings(experiment, rows), overwrite=experiment.overwrite
    )
    # rows look at the same samples one after the other
    limit = KEPT // len(opened) if len(rows) > 1 else 0
    tasks = [(protocol, Remembered(source, limit)) for protocol, source in opened]
    found = {}
    for row in rows:
        model = _Lazy(experiment, row)
        for protocol, source in tasks:
            found[row, protocol] = _evaluate(
                experiment, rows, row, model, protocol, source, results
            )
    failed = 0
    text, entries = table.legend(asdict(options.score)), []
    for protocol, _ in tasks:
        reports = {row.name: found[row, protocol] for row in rows}
        text += "\n" + table.markdown(reports)
        entries += table.to_json(reports)
        failed += sum(len(each.failures) for each in reports.values())
    body = {"settings": asdict(experiment), **environment(), "results": entries}
    path = results.write("report.json", strict_json.dump(body))
    results.write("report.md", text.encode())
    scenes = shown_scenes(results.root, entries, options.pictures)
    results.write("report.html", page(body, scenes).encode())
    print(text)
    print(f"{path}: {len(entries)} results, {failed} samples failed")
    return 1 if failed else 0


def settings(experiment: Experiment, rows: Sequence[Row]) -> dict[str, Any]:
    """What the result of a sample depends on.

    Raises:
        InputError: the weights are not there, or of another backbone.
    """
    options = {k: v for k, v in asdict(experiment.evaluate).items() if k not in FREE}
    deployment = find_deployment(Path(experiment.weights))
    manifest = deployment or read_manifest(resolve(experiment.weights)[0])
    if manifest.backbone != experiment.backbone:
        raise InputError(
            f"{experiment.weights}: weights of {manifest.backbone}, but the config is for"
            f" {experiment.backbone}; use configs/{manifest.backbone}*.py"
        )
    for row in rows:
        check_weights(manifest, HEADS, held_dtype(row), experiment.compute.limit)
    files = {name: record.sha256 for name, record in sorted(manifest.files.items())}
    return {
        "backbone": experiment.backbone,
        "dtype": experiment.compute.dtype,
        "first_row": rows[0].name,
        "evaluate": options,
        "weights": files,
        "student": _student(experiment.evaluate.student, rows) if deployment is None else None,
    }


def _student(folder: str, rows: Sequence[Row]) -> str | None:
    """What tells the student from others: the hash of its manifest, which has all other hashes."""
    if not any(row.attention in (STUDENT, UNTRAINED) for row in rows):
        return None
    read_student(Path(folder))
    return hash_file(Path(folder) / MANIFEST).sha256


def _evaluate(
    experiment: Experiment,
    rows: Sequence[Row],
    row: Row,
    model: "_Lazy",
    protocol: Protocol,
    source: SceneSource,
    results: Results,
) -> Report:
    options = experiment.evaluate
    done = results.records(row.name, protocol)
    first = row == rows[0]
    compared = first and len(rows) > 1
    if compared:  # a row that was alone until now left no predictions to compare with
        done = {n: record for n, record in done.items() if results.has_output(protocol, n)}
    done = {
        n: record
        for n, record in done.items()
        if n >= options.pictures
        or all(results.has_shown(name, protocol, n) for name in (TRUTH, row.name))
    }

    def keep(n: int, record: Record, output: Output | None) -> None:
        if compared and output is not None:
            results.keep_output(protocol, n, output)
        if n < options.pictures and output is not None:
            item = protocol.items[n]
            sample = source.read(item.scene, item.frames, protocol.size)
            results.keep_shown(TRUTH, protocol, n, truth(in_unit(sample)))
            shown = predicted(output, protocol.views, protocol.size)
            results.keep_shown(row.name, protocol, n, shown)
        results.keep(row.name, protocol, n, record)

    name = f"{row.name} {folder_name(protocol)}"
    left = len(protocol.items) - len(done)
    with Progress().stage(name, left, "sample") as tick:
        records = measure(
            model,
            protocol,
            source,
            options=options.score,
            batch=options.batch * jax.local_device_count(),
            done=done,
            reference=None if first else lambda n: results.output(protocol, n),
            keep=keep,
            progress=tick,
        )
    return report(protocol, records, resamples=options.resamples, seed=options.seed)


class _Lazy:
    """The predictor of a row, which is built when a sample needs it."""

    def __init__(self, experiment: Experiment, row: Row):
        self._experiment, self._row = experiment, row
        self._predictor: Predictor | None = None

    def __call__(self, images: np.ndarray) -> list[Output]:
        if self._predictor is None:
            experiment = self._experiment
            model = build_row(
                self._row,
                experiment.weights,
                experiment.evaluate.student,
                dtype=experiment.compute.jax_dtype,
            )
            chunk = experiment.compute.frame_chunk or 8
            self._predictor = Predictor(model, batch=experiment.evaluate.batch, frame_chunk=chunk)
        return self._predictor(images)
