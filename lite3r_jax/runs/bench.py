"""`--mode=bench`: measures latency and memory of models against views, in tables and charts."""

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from lite3r_jax.backbones.base import get_backbone
from lite3r_jax.benchmarking import report
from lite3r_jax.benchmarking.flops import count
from lite3r_jax.benchmarking.literature import published_for
from lite3r_jax.benchmarking.measure import Cell, Protocol, measure
from lite3r_jax.benchmarking.page import page
from lite3r_jax.benchmarking.subprocess_runs import Died, in_subprocess
from lite3r_jax.deploy.manifest import Deployment
from lite3r_jax.errors import InputError, printable
from lite3r_jax.evaluation.page import pictures
from lite3r_jax.evaluation.report_file import read_report
from lite3r_jax.evaluation.results import thumbnail_scenes
from lite3r_jax.evaluation.score import ScoreOptions
from lite3r_jax.evaluation.variants import (
    HEADS,
    Variant,
    build_variant,
    held_dtype,
)
from lite3r_jax.experiment import (
    Experiment,
    from_config,
    refuse_model_settings,
    require,
)
from lite3r_jax.files import atomic_write
from lite3r_jax.folder_lock import locked
from lite3r_jax.html_report.chart import svg
from lite3r_jax.html_report.screen import on_screen
from lite3r_jax.infer.memory import check_weights
from lite3r_jax.infer.report import environment
from lite3r_jax.layers.fp8 import describe_products
from lite3r_jax.mesh import check_split_weights, devices_of
from lite3r_jax.processes import all_ready, check_processes, joined, refuse_different
from lite3r_jax.progress import Progress
from lite3r_jax.runs.evaluate import check_models
from lite3r_jax.runs.together import check_together
from lite3r_jax.weights import strict_json
from lite3r_jax.weights.manifest import Manifest

JSON = "bench.json"


@dataclass(frozen=True)
class Benchmark:
    """The results of a benchmark: its tables, measurements and folder.

    Attributes:
        folder: of bench.json, bench.md, report.html and the charts.
        text: the tables.
        cells: one for each variant and number of views, measured or with the reason why not.
        empty: variants that have no figures at all.
    """

    folder: Path
    text: str
    cells: Sequence[Cell]
    empty: Sequence[str]


def run(experiment: Experiment) -> int:
    """Runs `--mode=bench`; exit code 0, or 1 if a variant has no figures at all; see `bench`."""
    outcome = bench(experiment)
    if experiment.processes.number > 0:
        for cell in outcome.cells:
            if cell.missing:
                line = f"{cell.variant}, {cell.views} views: {cell.missing}"
                print(printable(line), file=sys.stderr)
        return int(bool(outcome.empty))
    if not experiment.quiet:
        print(on_screen(outcome.text))
    measured = sum(not cell.missing for cell in outcome.cells)
    print(f"{measured} of {len(outcome.cells)} measured\nopen {outcome.folder / 'report.html'}")
    return int(bool(outcome.empty))


def bench(experiment: Experiment) -> Benchmark:
    """Measures every variant, the baselines first, and writes tables, charts and one page.

    Files: bench.json, bench.md, report.html, and NAME.svg for every chart.

    What does not fit or would take too long is left out and listed. With runs in subprocesses this
    process touches no device.

    Of several processes each starts a subprocess for a variant, and these join for as long as it is
    measured. Times and memory are those of the first, which alone writes.

    Args:
        experiment: `weights`, `output`, `bench`, `compute` and `processes`.

    Raises:
        InputError: nothing was measured: settings, weights or the evaluation are wrong, there are
            results already, or the output cannot be written or is being written by another process.
    """
    require(experiment, "weights", "output")
    refuse_model_settings(
        experiment,
        {
            "student": "bench.student",
            "attention.plan": "bench.variants",
            "precision": "bench.variants",
        },
    )
    _check_processes(experiment)
    if experiment.processes.number > 0:
        return _bench(replace(experiment, quiet=True))
    with locked(Path(experiment.output), "bench"):
        return _bench(experiment)


def _check_processes(experiment: Experiment) -> None:
    """Raises if settings do not go with several processes, which join in subprocesses only."""
    check_together(experiment)
    check_processes(experiment.processes)
    if not experiment.processes.coordinator:
        return
    if experiment.processes.coordinator == "auto":
        raise InputError(
            "processes.coordinator=auto: a benchmark needs to know which process writes; give"
            " HOST:PORT, processes.count and processes.number, which Slurm has as SLURM_NTASKS and"
            " SLURM_PROCID"
        )
    if not experiment.bench.isolate:
        raise InputError(
            "bench.isolate=false: several processes join for one variant after the other, each"
            " time in new ones; leave it out"
        )


def _bench(experiment: Experiment) -> Benchmark:
    options, first = experiment.bench, experiment.processes.number <= 0
    variants, views = options.all_variants(), options.numbers_of_views()
    if (devices := devices_of(experiment.compute.mesh)) > min(views):
        raise InputError(
            f"bench.views: {min(views)} are fewer than the devices of"
            f" compute.mesh={experiment.compute.mesh}; leave out what is below {devices}"
        )
    check_split_weights(experiment.compute.weights == "split", devices > 0)
    models = check_models(experiment, variants, options.student)
    model = models[variants[0]]
    if isinstance(manifest := model.manifest, Deployment):
        raise InputError(
            f"{experiment.weights}: a deployed model, which is one variant alone; name the weights"
            " that it was made from"
        )
    config = model.config
    own = get_backbone(manifest.backbone).model.images_for(config)
    height, width = options.pixels(config.patch_size, own.size_in("square", config.patch_size))
    evaluation, shown = _evaluation(experiment, variants, views)
    folder = Path(experiment.output)
    if first and (folder / JSON).exists() and not experiment.overwrite:
        raise InputError(
            f"{folder / JSON}: exists; choose another config.output, or --config.overwrite"
        )
    protocol = Protocol(
        views, height, width, options.warmup, options.runs, options.seconds,
        experiment.compute.frame_chunk or None, experiment.compute.limit, options.seed,
        experiment.compute.mesh, experiment.compute.rest, experiment.compute.weights,
    )  # fmt: skip
    cells: list[Cell] = []
    about: dict[str, Any] = {}
    machine: dict[str, Any] = {}
    for variant in variants:
        items = measure_variant(experiment, manifest, variant, protocol)
        if options.isolate:
            identity = models[variant].identity()
            arguments = (experiment, manifest, variant, protocol, identity)
            items = in_subprocess(measure_together, *arguments)
        with Progress(not experiment.quiet).stage(variant.name, len(views), "size") as tick:
            for item in _to_the_end(items, variant, views):
                if isinstance(item, Cell):
                    cells.append(item)
                    tick()
                else:
                    machine = item["environment"]
                    if item["variant"]:
                        about[variant.name] = models[variant].facts() | item["variant"]
    measured = {cell.variant for cell in cells if not cell.missing}
    empty = tuple(variant.name for variant in variants if variant.name not in measured)
    if not first:
        return Benchmark(folder, "", tuple(cells), empty)
    published = published_for(config)
    body = {
        "backbone": experiment.backbone,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **(machine or {"versions": {"jax": jax.__version__}, "device": _NOWHERE}),
        "settings": asdict(experiment),
        "weights": {name: file.sha256 for name, file in sorted(manifest.files.items())},
        "variants": about,
        "cells": report.entries(cells),
        "published": [asdict(p) for p in published],
    }
    _write(folder, {JSON: strict_json.dump(body)})  # before anything is made of it
    text = report.markdown(body)
    files = {"bench.md": text.encode()}
    charts = report.charts(body, published, evaluation)
    files |= {f"{name}.svg": svg(chart).encode() for name, chart in charts.items()}
    files["report.html"] = page(body, charts, evaluation, shown).encode()
    _write(folder, files)
    return Benchmark(folder, text, tuple(cells), empty)


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, data in files.items():
        with atomic_write(folder / name, overwrite=True) as partial:
            partial.write_bytes(data)


_NOWHERE = {"platform": "", "kind": "no device", "count": 0, "machine": ""}


def measure_together(
    experiment: Experiment,
    manifest: Manifest,
    variant: Variant,
    protocol: Protocol,
    identity: Mapping[str, Any],
) -> Iterator[Any]:
    """Runs `measure_variant` after this process has joined the others, if there are several.

    Args:
        experiment: as for `measure_variant`.
        manifest: as for `measure_variant`.
        variant: as for `measure_variant`.
        protocol: as for `measure_variant`.
        identity: of the model, `CheckedModel.identity`.

    Raises:
        InputError: as `measure_variant`; or processes differ in what they measure, or do not come
            together.
        Died: see `measure`.
    """
    with joined(experiment.processes):
        same = {
            "model": identity,
            "variant": asdict(variant),
            "dtype": experiment.compute.dtype,
            "matmul": experiment.bench.matmul,
            "protocol": asdict(replace(protocol, limit=None)),  # memory may differ
            "versions": environment()["versions"],
        }
        refuse_different(same, "settings, weights or versions")
        yield from measure_variant(experiment, manifest, variant, protocol)


def measure_variant(
    experiment: Experiment, manifest: Manifest, variant: Variant, protocol: Protocol
) -> Iterator[Any]:
    """Measures one variant: yields a dict with `environment` and `variant`, then its cells.

    Args:
        experiment: see `run`.
        manifest: of the weights.
        variant: which.
        protocol: how it is measured.

    Raises:
        InputError: weights or student cannot be read.
    """
    options, precision = experiment.bench, contextlib.nullcontext()
    if options.matmul == "highest":
        precision = jax.default_matmul_precision("highest")
    try:
        with all_ready():
            check_weights(manifest, HEADS, held_dtype(variant), experiment.compute.limit)
    except InputError as error:
        yield {"environment": environment(), "variant": None}
        yield from (Cell(variant.name, views, str(error)) for views in protocol.views)
        return
    model = build_variant(
        variant, experiment.weights, options.student, dtype=experiment.compute.jax_dtype
    )
    held = sorted({str(x.dtype) for x in jax.tree.leaves(nnx.state(model))})
    yield {
        "environment": environment(),
        "variant": {
            "compute": str(np.dtype(model.dtype)),
            "weights": ", ".join(held),
            "attention": model.attention(),
            "float8_products": describe_products(model),
        },
    }
    with precision:
        yield from measure(variant.name, model, protocol, count=count)


def _to_the_end(items: Iterator[Any], variant: Variant, views: Sequence[int]) -> Iterator[Any]:
    """Yields the items; where the process is killed, cells that say so in place of the rest."""
    left = list(views)
    try:
        for item in items:
            if isinstance(item, Cell):
                left.remove(item.views)
            yield item
    except Died as died:
        yield from (Cell(variant.name, number, str(died)) for number in left)


def _evaluation(
    experiment: Experiment, variants: Sequence[Variant], views: Sequence[int]
) -> tuple[dict[str, Any] | None, str]:
    """Reads the report that `bench.quality` names, or None, and its pictures as HTML.

    Raises:
        InputError: the file is no report of an evaluation, of another backbone, has nothing in
            common with what is measured, or a file beside it is damaged.
    """
    if not (name := experiment.bench.quality):
        return None, ""
    evaluation = read_report(Path(name), "bench.quality")
    backbone, options = evaluation["settings"]["backbone"], evaluation["settings"]["evaluate"]
    if backbone != experiment.backbone:
        raise InputError(f"bench.quality: {name} is of {backbone}, not of {experiment.backbone}")
    common = report.in_common(evaluation, [variant.name for variant in variants], views)
    if not common:
        raise InputError(
            f"bench.quality: {name} has none of these variants at these numbers of views; correct"
            " bench.variants or bench.views"
        )
    where = f"bench.quality: {name}: settings.evaluate.score"
    score = from_config(options["score"], ScoreOptions, where)
    scenes = thumbnail_scenes(Path(name).parent, evaluation["results"], options["pictures"])
    return evaluation, pictures(scenes, score) if scenes else ""
