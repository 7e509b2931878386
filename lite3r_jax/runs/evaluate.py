"""`--mode=eval`: evaluates models on protocols; an interrupted evaluation can be resumed."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lite3r_jax.allocator import keep_freed_memory
from lite3r_jax.data.views import SceneSource
from lite3r_jax.deploy.manifest import Deployment, find_deployment
from lite3r_jax.errors import printable
from lite3r_jax.evaluation import table
from lite3r_jax.evaluation.cached_scenes import CachedScenes
from lite3r_jax.evaluation.evaluator import Predict, Report, measure, report
from lite3r_jax.evaluation.page import page
from lite3r_jax.evaluation.predictor import Output, Predictor
from lite3r_jax.evaluation.protocols import Protocol, open_protocol
from lite3r_jax.evaluation.record import Record
from lite3r_jax.evaluation.refined import refining
from lite3r_jax.evaluation.results import TRUTH, Results, folder_name, thumbnail_scenes
from lite3r_jax.evaluation.score import in_unit
from lite3r_jax.evaluation.thumbnails import predicted, truth
from lite3r_jax.evaluation.together import finish, shared, take_part
from lite3r_jax.evaluation.variants import (
    HEADS,
    Variant,
    build_variant,
    parse_variants,
    spec_of,
)
from lite3r_jax.experiment import Experiment, refuse_model_settings, require
from lite3r_jax.folder_lock import locked
from lite3r_jax.html_report.screen import on_screen
from lite3r_jax.infer.memory import check_weights
from lite3r_jax.infer.report import environment
from lite3r_jax.mesh import check_split_weights, check_views, make_view_mesh
from lite3r_jax.models import CheckedModel, check_model, student_hash
from lite3r_jax.processes import is_first, joined, refuse_different
from lite3r_jax.progress import Progress
from lite3r_jax.refine import check_extra
from lite3r_jax.runs.image_sizes import size_note
from lite3r_jax.runs.together import check_together
from lite3r_jax.weights import strict_json

FREE = ("batch", "pictures", "resamples", "seed", "variants", "protocols", "views")
"""Settings that the result of a sample does not depend on."""
KEPT = 2 << 30
"""Largest number of bytes of samples that are kept in memory for the next variant."""


@dataclass(frozen=True)
class Evaluation:
    """The results of an evaluation: its tables, figures and folder.

    Attributes:
        folder: of report.json, report.md and report.html.
        text: the tables.
        results: one entry for each variant and protocol, as in report.json: "variant", "protocol",
            "views", "metrics" and "failures" among others.
        failed: samples without a result.
    """

    folder: Path
    text: str
    results: Sequence[Mapping[str, Any]]
    failed: int


def run(experiment: Experiment) -> int:
    """Runs `--mode=eval`; exit code 0, or 1 if some samples failed; see `evaluate`."""
    outcome = evaluate(experiment)
    if not is_first():
        return 0
    if not experiment.quiet:
        print(on_screen(outcome.text))
    print(f"{len(outcome.results)} results, {outcome.failed} samples failed")
    print(f"open {printable(outcome.folder / 'report.html')}")
    return 1 if outcome.failed else 0


def evaluate(experiment: Experiment) -> Evaluation:
    """Evaluates every variant on every protocol; writes report.json, report.md and report.html.

    Samples that are done already are not done again, so that a run that was stopped goes on, and
    variants and protocols can be added. Other settings or weights are refused. Samples that fail
    are listed with their reason and tried again by the next run.

    Of several processes the first does this, and the others compute with it, read no data and
    return an evaluation without results.

    Args:
        experiment: `weights`, `output` and `evaluate`.

    Raises:
        InputError: nothing was done: settings, data or weights are wrong, or the folder has results
            of other settings, cannot be written or is being written by another process.
    """
    require(experiment, "weights", "output")
    refuse_model_settings(
        experiment,
        {
            "student": "evaluate.student",
            "attention.plan": "evaluate.variants",
            "precision": "evaluate.variants",
        },
    )
    check_together(experiment)
    keep_freed_memory()
    with joined(experiment.processes):
        if experiment.processes.coordinator and not is_first():
            return _follow(experiment)
        with locked(Path(experiment.output), "evaluate"):
            return _evaluate_all(experiment)


def _evaluate_all(experiment: Experiment) -> Evaluation:
    options = experiment.evaluate
    mesh = make_view_mesh(experiment.compute.mesh)
    check_split_weights(experiment.compute.weights == "split", mesh is not None)
    variants = _variants(experiment)
    if any(variant.refine for variant in variants):
        check_extra()
    opened = [
        open_protocol(source, views=views, size=options.pixels(), scenes=options.scenes)
        for source, views in options.tasks()
    ]
    if mesh is not None:
        check_views(mesh, min(protocol.views for protocol, _ in opened))
    models = _agreed_models(experiment, variants)
    if note := size_note(models[variants[0]], (protocol.size for protocol, _ in opened)):
        print(note, file=sys.stderr)
    results = Results(
        Path(experiment.output), settings(experiment, models), overwrite=experiment.overwrite
    )
    results.claim([protocol for protocol, _ in opened], [source for source, _ in options.tasks()])
    # variants look at the same samples one after the other
    limit = KEPT // len(opened) if len(variants) > 1 else 0
    tasks = [(protocol, CachedScenes(source, limit)) for protocol, source in opened]
    measured = {}
    for number, variant in enumerate(variants):
        predict = shared(number, _Lazy(experiment, variant))
        predict = refining(predict) if variant.refine else predict
        for protocol, source in tasks:
            measured[variant, protocol] = _evaluate(
                experiment, variants, variant, predict, protocol, source, results
            )
    finish()
    failed = 0
    text, entries = table.legend(asdict(options.score)), []
    for protocol, _ in tasks:
        reports = {variant.name: measured[variant, protocol] for variant in variants}
        text += "\n" + table.markdown(reports)
        entries += table.to_json(reports)
        failed += sum(len(each.failures) for each in reports.values())
    body = {
        "settings": asdict(experiment),
        "models": {variant.name: model.facts() for variant, model in models.items()},
        **environment(),
        "results": entries,
    }
    results.write("report.json", strict_json.dump(body))
    results.write("report.md", text.encode("utf-8", "backslashreplace"))
    scenes = thumbnail_scenes(results.root, entries, options.pictures)
    results.write("report.html", page(body, scenes).encode("utf-8", "backslashreplace"))
    return Evaluation(results.root, text, entries, failed)


def _variants(experiment: Experiment) -> tuple[Variant, ...]:
    options, deployment = experiment.evaluate, find_deployment(Path(experiment.weights))
    return parse_variants(options.variants, options.student, deployment=deployment, refine=True)


def _agreed_models(
    experiment: Experiment, variants: Sequence[Variant]
) -> dict[Variant, CheckedModel]:
    """Runs `check_models` and raises if processes differ in the models; all have to call it."""
    options, compute = experiment.evaluate, experiment.compute
    models = check_models(experiment, variants, options.student, dtype=compute.jax_dtype)
    same = settings(experiment, models)
    del same["evaluate"]["student"]  # a path, which may differ; its hash counts
    body = {
        "settings": same,
        "variants": options.variants,
        "compute": asdict(compute),
        "versions": environment()["versions"],
    }
    refuse_different(body, "settings, weights or versions")
    return models


def _follow(experiment: Experiment) -> Evaluation:
    """Takes part in the predictions of process 0; all other processes call this."""
    variants = _variants(experiment)
    _agreed_models(experiment, variants)
    take_part([partial(_Lazy, experiment, variant) for variant in variants])
    return Evaluation(Path(experiment.output), "", (), 0)


def check_models(
    experiment: Experiment, variants: Sequence[Variant], student: str, *, dtype: Any = None
) -> dict[Variant, CheckedModel]:
    """Checks the models of all variants, before weights are read.

    Args:
        experiment: `weights` and `backbone` count.
        variants: which.
        student: folder of the student.
        dtype: compute dtype of variants with float8 weights; None: bfloat16.

    Raises:
        InputError: weights or student are not there, or of another backbone or teacher.
    """
    return {
        variant: check_model(
            spec_of(variant, experiment.weights, student, dtype=dtype), experiment.backbone
        )
        for variant in variants
    }


def settings(experiment: Experiment, models: Mapping[Variant, CheckedModel]) -> dict[str, Any]:
    """Returns everything that the result of a sample depends on: settings and hashes of weights.

    Raises:
        InputError: weights do not fit into memory.
    """
    options = {k: v for k, v in asdict(experiment.evaluate).items() if k not in FREE}
    for model in models.values():
        check_weights(model.manifest, HEADS, model.held_dtype, experiment.compute.limit)
    first, student = next(iter(models)), None
    manifest = models[first].manifest
    if any(variant.of_student for variant in models):
        student = student_hash(experiment.evaluate.student)
    return {
        "backbone": experiment.backbone,
        "dtype": experiment.compute.dtype,
        "first_row": first.name,
        "evaluate": options,
        "weights": {name: record.sha256 for name, record in sorted(manifest.files.items())},
        "student": None if isinstance(manifest, Deployment) else student,
    }


def _evaluate(
    experiment: Experiment,
    variants: Sequence[Variant],
    variant: Variant,
    predict: Predict,
    protocol: Protocol,
    source: SceneSource,
    results: Results,
) -> Report:
    options = experiment.evaluate
    done = results.records(variant.name, protocol)
    first = variant == variants[0]
    compared = first and len(variants) > 1
    if compared:  # a variant that was alone until now left no predictions to compare with
        done = {n: record for n, record in done.items() if results.has_output(protocol, n)}
    done = {
        n: record
        for n, record in done.items()
        if n >= options.pictures
        or all(results.has_shown(name, protocol, n) for name in (TRUTH, variant.name))
    }

    def keep(n: int, record: Record, output: Output | None) -> None:
        if compared and output is not None:
            results.keep_output(protocol, n, output)
        if n < options.pictures and output is not None:
            item = protocol.items[n]
            sample = source.read(item.scene, item.frames, protocol.size)
            results.keep_thumbnails(TRUTH, protocol, n, truth(in_unit(sample)))
            shown = predicted(output, protocol.views, protocol.size)
            results.keep_thumbnails(variant.name, protocol, n, shown)
        results.keep(variant.name, protocol, n, record)

    name = f"{variant.name} {folder_name(protocol)}"
    left = len(protocol.items) - len(done)
    with Progress(not experiment.quiet).stage(name, left, "sample") as tick:
        records = measure(
            predict,
            protocol,
            source,
            options=options.score,
            batch=options.batch * (1 if experiment.compute.mesh else jax.local_device_count()),
            done=done,
            reference=None if first else lambda n: results.output(protocol, n),
            keep=keep,
            progress=tick,
        )
    return report(protocol, records, resamples=options.resamples, seed=options.seed)


class _Lazy:
    """The predictor of a variant, which is built when a sample needs it."""

    def __init__(self, experiment: Experiment, variant: Variant):
        self._experiment, self._variant = experiment, variant
        self._predictor: Predictor | None = None

    def __call__(self, images: np.ndarray) -> list[Output]:
        if self._predictor is None:
            experiment = self._experiment
            model = build_variant(
                self._variant,
                experiment.weights,
                experiment.evaluate.student,
                dtype=experiment.compute.jax_dtype,
            )
            chunk = experiment.compute.frame_chunk or 8
            self._predictor = Predictor(
                model,
                batch=experiment.evaluate.batch,
                frame_chunk=chunk,
                mesh=make_view_mesh(experiment.compute.mesh),
                on_host=experiment.compute.rest == "host",
                split_weights=experiment.compute.weights == "split",
            )
        return self._predictor(images)
