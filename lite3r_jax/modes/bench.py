"""`--mode=bench`: models to latency and memory against views, in tables and charts."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from lite3r_jax.backbones.base import get_backbone
from lite3r_jax.bench import report
from lite3r_jax.bench.flops import count
from lite3r_jax.bench.isolate import Died, isolated
from lite3r_jax.bench.measure import Cell, Protocol, measure
from lite3r_jax.bench.page import page
from lite3r_jax.bench.published import published_for
from lite3r_jax.distill.checkpoint import read_student
from lite3r_jax.errors import InputError
from lite3r_jax.evaluate.figures import SceneFigures
from lite3r_jax.evaluate.results import shown_scenes
from lite3r_jax.evaluate.rows import HEADS, STUDENT, UNTRAINED, Row, build_row, held_dtype
from lite3r_jax.experiment import Experiment, require
from lite3r_jax.files import staged
from lite3r_jax.infer.memory import check_weights
from lite3r_jax.infer.progress import Progress
from lite3r_jax.infer.report import environment
from lite3r_jax.layers.fp8 import describe_products
from lite3r_jax.pages.chart import svg
from lite3r_jax.weights import strict_json
from lite3r_jax.weights.load import resolve
from lite3r_jax.weights.manifest import CONFIG_FILE, Manifest, read_manifest

JSON = "bench.json"


def run(experiment: Experiment) -> int:
    """Measure every row, the baselines first, and write tables, charts and one page.

    Files: bench.json, bench.md, report.html, and NAME.svg for every chart.

    What does not fit or would take too long is left out and listed. With `bench.isolate` this
    process touches no device.

    Args:
        experiment: `weights`, `output`, `bench`, and of `compute` frame_chunk and memory_limit.

    Returns:
        Exit code: 0, or 1 if a row has no figures at all.

    Raises:
        InputError: settings, weights or the evaluation are wrong, or there are results already.
    """
    require(experiment, "weights", "output")
    options = experiment.bench.checked()
    rows, views = options.all_rows(), options.numbers_of_views()
    manifest, config = _weights(experiment)
    height, width = options.pixels(config.patch_size)
    if any(row.attention in (STUDENT, UNTRAINED) for row in rows):
        read_student(Path(options.student))
    evaluation, scenes = _evaluation(experiment, rows, views)
    folder = Path(experiment.output)
    if (folder / JSON).exists() and not experiment.overwrite:
        raise InputError(
            f"{folder / JSON}: exists; choose another config.output, or --config.overwrite"
        )
    protocol = Protocol(
        views, height, width, options.warmup, options.runs, options.seconds,
        experiment.compute.frame_chunk or None, experiment.compute.limit, options.seed,
    )  # fmt: skip
    cells: list[Cell] = []
    about: dict[str, Any] = {}
    machine: dict[str, Any] = {}
    for row in rows:
        found = row_of(experiment, manifest, row, protocol)
        if options.isolate:
            found = isolated(row_of, experiment, manifest, row, protocol)
        with Progress().stage(row.name, len(views), "size") as tick:
            for item in _to_the_end(found, row, views):
                if isinstance(item, Cell):
                    cells.append(item)
                    tick()
                else:
                    machine = item["environment"]
                    about |= {row.name: item["row"]} if item["row"] else {}
    published = published_for(config)
    body = {
        "backbone": experiment.backbone,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **(machine or {"versions": {"jax": jax.__version__}, "device": _NOWHERE}),
        "settings": asdict(experiment),
        "weights": {name: file.sha256 for name, file in sorted(manifest.files.items())},
        "rows": about,
        "cells": report.entries(cells),
        "published": [asdict(p) for p in published],
    }
    text = report.markdown(body)
    files = {JSON: strict_json.dump(body), "bench.md": text.encode()}
    charts = report.charts(body, published, evaluation)
    files |= {f"{name}.svg": svg(chart).encode() for name, chart in charts.items()}
    files["report.html"] = page(body, charts, evaluation, scenes).encode()
    for name, data in files.items():
        with staged(folder / name, overwrite=True) as partial:
            partial.write_bytes(data)
    print(text)
    print(f"{folder / JSON}: {sum(not cell.missing for cell in cells)} measured")
    return int(any(all(c.missing for c in cells if c.row == row.name) for row in rows))


_NOWHERE = {"platform": "", "kind": "no device", "count": 0, "machine": ""}


def row_of(
    experiment: Experiment, manifest: Manifest, row: Row, protocol: Protocol
) -> Iterator[Any]:
    """Everything about one row: first a dict with `environment` and `row`, then its cells.

    Args:
        experiment: see `run`.
        manifest: of the weights.
        row: which.
        protocol: how it is measured.

    Raises:
        InputError: weights or student cannot be read.
    """
    options, precision = experiment.bench, contextlib.nullcontext()
    if options.matmul == "highest":
        precision = jax.default_matmul_precision("highest")
    try:
        check_weights(manifest, HEADS, held_dtype(row), experiment.compute.limit)
    except InputError as error:
        yield {"environment": environment(), "row": None}
        yield from (Cell(row.name, views, str(error)) for views in protocol.views)
        return
    model = build_row(row, experiment.weights, options.student, dtype=experiment.compute.jax_dtype)
    held = sorted({str(x.dtype) for x in jax.tree.leaves(nnx.state(model))})
    yield {
        "environment": environment(),
        "row": {
            "compute": str(np.dtype(model.dtype)),
            "weights": ", ".join(held),
            "attention": model.attention(),
            "float8_products": describe_products(model),
        },
    }
    with precision:
        yield from measure(row.name, model, protocol, count=count)


def _to_the_end(found: Iterator[Any], row: Row, views: Sequence[int]) -> Iterator[Any]:
    """The items; where the process of the row is killed, cells that say so in place of the rest."""
    left = list(views)
    try:
        for item in found:
            if isinstance(item, Cell):
                left.remove(item.views)
            yield item
    except Died as died:
        yield from (Cell(row.name, number, str(died)) for number in left)


def _weights(experiment: Experiment) -> tuple[Manifest, Any]:
    """Manifest of the weights and config of the backbone.

    Raises:
        InputError: they are not there, or of another backbone.
    """
    directory, _ = resolve(experiment.weights)
    manifest = read_manifest(directory)
    if manifest.backbone != experiment.backbone:
        raise InputError(
            f"{experiment.weights}: weights of {manifest.backbone}, but the config is for"
            f" {experiment.backbone}; use configs/{manifest.backbone}*.py"
        )
    backbone = get_backbone(manifest.backbone)
    return manifest, backbone.config_from_json(strict_json.read_object(directory / CONFIG_FILE))


def _evaluation(
    experiment: Experiment, rows: Sequence[Row], views: Sequence[int]
) -> tuple[dict[str, Any] | None, list[SceneFigures]]:
    """The report that `bench.quality` names, or None, and the scenes that it shows in pictures.

    Raises:
        InputError: it is no report of an evaluation, of another backbone, or has nothing in common
            with what is measured.
    """
    if not (name := experiment.bench.quality):
        return None, []
    found = strict_json.read_object(Path(name))
    try:
        backbone = found["settings"]["backbone"]
        common = report.in_common(found, [row.name for row in rows], views)
        count = found["settings"]["evaluate"]["pictures"]
    except (KeyError, TypeError) as error:
        raise InputError(f"bench.quality: {name} is not the report.json of --mode=eval") from error
    if backbone != experiment.backbone:
        raise InputError(f"bench.quality: {name} is of {backbone}, not of {experiment.backbone}")
    if not common:
        raise InputError(
            f"bench.quality: {name} has none of these rows at these numbers of views; correct"
            " bench.rows or bench.views"
        )
    return found, shown_scenes(Path(name).parent, found["results"], count)
