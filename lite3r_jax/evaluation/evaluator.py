"""Runs a model on a protocol: predictions to metrics, scene by scene, and to a report."""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from flax import nnx

from lite3r_jax import metrics as m
from lite3r_jax.data.views import Sample, SceneSource
from lite3r_jax.errors import InputError
from lite3r_jax.evaluation.baselines import with_mean_pose
from lite3r_jax.evaluation.predictor import Output, Predictor
from lite3r_jax.evaluation.protocols import Item, Protocol
from lite3r_jax.evaluation.record import Record, pairs_of
from lite3r_jax.evaluation.score import ScoreOptions, first_view_abs_rel, in_unit, score
from lite3r_jax.evaluation.summary import Estimate, summarize
from lite3r_jax.metrics.agreement import AGREEMENT_METRICS

Predict = Callable[[np.ndarray], Sequence[Output]]
Reference = Callable[[int], Output | None]
Keep = Callable[[int, Record, Output | None], None]


@dataclass(frozen=True, eq=False)
class Report:
    """The results of one model on one protocol.

    Attributes:
        protocol: what was evaluated.
        records: one for each sample, in order, failures included.
        summary: metric -> estimate over the samples that did not fail; the baselines are in it,
            with names that begin with "constant_depth_" and "mean_pose_".
    """

    protocol: Protocol
    records: tuple[Record, ...]
    summary: Mapping[str, Estimate]

    @property
    def failures(self) -> tuple[Record, ...]:
        """Records of the samples without a result."""
        return tuple(record for record in self.records if record.failure)

    def __getitem__(self, name: str) -> float:
        """Returns the value of one metric over all scenes.

        Raises:
            KeyError: it was not measured, or no scene defines it; with the reasons.
        """
        estimate = self.summary.get(name)
        if estimate is None or estimate.value is None:
            reasons = "not measured" if estimate is None else ", ".join(estimate.missing)
            raise KeyError(f"{name}: {reasons}")
        return estimate.value


def evaluate(
    model: nnx.Module,
    protocol: Protocol,
    source: SceneSource,
    *,
    options: ScoreOptions | None = None,
    batch: int = 1,
    progress: Callable[[], object] | None = None,
) -> Report:
    """Evaluates a model in memory on a protocol.

    Args:
        model: a backbone with the heads camera and depth, or one of them.
        protocol: what is evaluated, from `open_protocol`.
        source: data of the protocol, from `open_protocol`; `CachedScenes(source)` for several
            evaluations in one process.
        options: what is measured; None for the defaults.
        batch: samples that a device handles at a time.
        progress: called after every sample.
    """
    predictor = Predictor(model, batch=batch)
    records = measure(
        predictor, protocol, source, options=options, batch=predictor.batch, progress=progress
    )
    return report(protocol, records)


def report(
    protocol: Protocol, records: Sequence[Record], *, resamples: int = 1000, seed: int = 0
) -> Report:
    """Makes the report of a protocol from its records: adds baselines, summarizes metrics."""
    summary = summarize(with_mean_pose(records), resamples=resamples, seed=seed)
    return Report(protocol, tuple(records), summary)


def measure(
    predict: Predict,
    protocol: Protocol,
    source: SceneSource,
    *,
    options: ScoreOptions | None = None,
    batch: int = 1,
    done: Mapping[int, Record] | None = None,
    reference: Reference | None = None,
    keep: Keep | None = None,
    progress: Callable[[], object] | None = None,
) -> list[Record]:
    """Measures all samples of a protocol and returns their records.

    A sample that cannot be read or predicted becomes a record that says why, and the others go on.

    Args:
        predict: images [N, S, H, W, 3] to outputs, N of at most `batch`.
        protocol: what is evaluated.
        source: data of the protocol.
        options: what is measured; None for the defaults.
        batch: samples at a time.
        done: records that exist already, by number of the sample.
        reference: the output of another model for a sample, by its number, with which agreement
            is measured; it gives None where there is no such output.
        keep: called with the number, the record and the output of every new record.
        progress: called after every sample.
    """
    options = options or ScoreOptions()
    records = dict(done or {})
    reader = _Reader(source, protocol, batch + 1)
    todo = [n for n in range(len(protocol.items)) if n not in records]
    for start in range(0, len(todo), batch):
        part = todo[start : start + batch]
        measured = _measure_part(predict, protocol, reader, part, options, reference)
        for n, (record, output) in measured.items():
            records[n] = record
            if keep is not None:
                keep(n, record, output)
            if progress is not None:
                progress()
    return [records[n] for n in range(len(protocol.items))]


def _measure_part(
    predict: Predict,
    protocol: Protocol,
    reader: "_Reader",
    part: Sequence[int],
    options: ScoreOptions,
    reference: Reference | None,
) -> dict[int, tuple[Record, Output | None]]:
    items, records = protocol.items, {}
    samples: dict[int, Sample] = {}
    for n in part:
        try:
            samples[n] = reader(n)
        except InputError as error:
            records[n] = Record(items[n].scene, items[n].frames, failure=str(error)), None
    outputs = _run(predict, {n: sample.images for n, sample in samples.items()})
    swapped, reasons = {}, {}
    if options.wrong_partner:
        for n, sample in samples.items():
            images = _with_wrong_partner(reader, protocol, n, sample)
            if isinstance(images, m.NotAvailable):
                reasons[n] = images
            else:
                swapped[n] = images
    others = _run(predict, swapped)
    for n, sample in samples.items():
        try:
            true = in_unit(sample)
            metrics = score(sample, true, outputs[n], options)
            if options.wrong_partner:
                metrics["first_view_abs_rel"] = first_view_abs_rel(true, outputs[n], options)
                metrics["wrong_partner_abs_rel"] = (
                    first_view_abs_rel(true, others[n], options) if n in others else reasons[n]
                )
            if reference is not None:
                metrics |= _agreement(outputs[n], reference(n))
            records[n] = _record(items[n], true, outputs[n], metrics), outputs[n]
        except InputError as error:
            records[n] = Record(items[n].scene, items[n].frames, failure=str(error)), None
    return {n: records[n] for n in part}


def _run(predict: Predict, images: Mapping[int, np.ndarray]) -> dict[int, Output]:
    if not images:
        return {}
    return dict(zip(images, predict(np.stack(list(images.values()))), strict=True))


def _with_wrong_partner(
    reader: "_Reader", protocol: Protocol, n: int, sample: Sample
) -> np.ndarray | m.NotAvailable:
    """Joins a sample's first image with the other images of the next sample of another scene."""
    items = protocol.items
    if sample.views < 2:
        return m.NotAvailable("one view has no partner")
    after = ((n + step) % len(items) for step in range(1, len(items)))
    other = next((k for k in after if items[k].scene != items[n].scene), None)
    if other is None:
        return m.NotAvailable("there is no other scene")
    try:
        return np.concatenate([sample.images[:1], reader(other).images[1:]])
    except InputError:
        return m.NotAvailable("the other scene cannot be read")


def _agreement(output: Output, other: Output | None) -> m.Metrics:
    if other is None:
        return m.unavailable(AGREEMENT_METRICS, "the first variant has no prediction")
    return m.agreement(output.depth, output.extrinsics, other.depth, other.extrinsics)


def _record(item: Item, true: Sample, output: Output, metrics: m.Metrics) -> Record:
    pairs = {}
    if output.extrinsics is not None and true.views > 1:
        pairs = pairs_of(m.pair_errors(output.extrinsics, true.extrinsics))
    rows = true.extrinsics.reshape(true.views, 12)
    cameras = tuple(tuple(float(x) for x in row) for row in rows)
    return Record(item.scene, item.frames, metrics, pairs, cameras)


class _Reader:
    """Reads samples by number; keeps the last `kept`, whose images other samples may need as well.

    Each sample is also the wrong partner of another one.
    """

    def __init__(self, source: SceneSource, protocol: Protocol, kept: int):
        self._source, self._protocol, self._limit = source, protocol, kept
        self._kept: OrderedDict[int, Sample] = OrderedDict()

    def __call__(self, n: int) -> Sample:
        if n not in self._kept:
            item = self._protocol.items[n]
            self._kept[n] = self._source.read(item.scene, item.frames, self._protocol.size)
        self._kept.move_to_end(n)
        while len(self._kept) > self._limit:
            self._kept.popitem(last=False)
        return self._kept[n]
