"""`--mode=probe`: which layers lose quality when they alone attend to less."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from flax import nnx

from lite3r_jax.attention.plan import Plan, Rule, plan_to_json
from lite3r_jax.attention.presets import parse_plan, plan_name
from lite3r_jax.backbones.base import get_backbone
from lite3r_jax.errors import InputError
from lite3r_jax.evaluation.variants import HEADS
from lite3r_jax.experiment import Experiment, refuse_model_settings, require
from lite3r_jax.files import atomic_write
from lite3r_jax.layers.rngs import traced_rngs
from lite3r_jax.models import ModelSpec, check_model
from lite3r_jax.runs.evaluate import evaluate
from lite3r_jax.weights import strict_json

ERRORS = ("abs_rel", "rotation_median_deg", "direction_median_deg", "ate")
"""Metrics of an evaluation that are smaller the better, which decide."""


@dataclass(frozen=True)
class ProbedLayer:
    """What a layer loses when it alone has the other attention.

    Attributes:
        layer: its number among those of the role.
        ratios: protocol -> metric -> error over that of dense attention.
        sensitive: whether one of them is above the threshold.
    """

    layer: int
    ratios: Mapping[str, Mapping[str, float]]
    sensitive: bool

    @property
    def worst(self) -> float:
        """The largest of the ratios."""
        return max(value for of in self.ratios.values() for value in of.values())


@dataclass(frozen=True)
class Probing:
    """The result of a probe.

    Attributes:
        folder: of probe.json, plan.json and what `evaluate` writes.
        layers: all that were probed.
        plan: the attention that was tried, in those of them that are not sensitive; dense if all
            of them are.
    """

    folder: Path
    layers: Sequence[ProbedLayer]
    plan: Plan


def run(experiment: Experiment) -> int:
    """`--mode=probe`: exit code 0; see `probe`."""
    result = probe(experiment)
    for layer in () if experiment.quiet else result.layers:
        note = "sensitive" if layer.sensitive else ""
        print(f"layer {layer.layer:2d}  largest error ratio {layer.worst:.3f}  {note}".rstrip())
    print(f"{result.folder / 'plan.json'}: {plan_name(result.plan)}")
    return 0


def probe(experiment: Experiment) -> Probing:
    """Evaluate the model with another attention in one layer at a time.

    A layer is sensitive if one of `ERRORS` grows by more than the threshold, as Spark3R finds its
    layers (arXiv 2605.06270). Samples that are done already are not done again, so that a probe
    that was stopped goes on.

    Args:
        experiment: `weights`, `output`, `probe`, and of `evaluate` all but the variants.

    Returns:
        Also written: probe.json, plan.json, which every entrance takes as a plan, and the report of
        the evaluation.

    Raises:
        InputError: as `evaluate`; the plan is not of one role, or names layers that are not there;
            samples failed.
    """
    require(experiment, "weights", "output")
    if experiment.precision:
        raise InputError("config.precision: a probe compares models in float32; leave it out")
    refuse_model_settings(experiment, {"student": "weights", "attention.plan": "probe.plan"})
    options = experiment.probe
    rule = _rule(options.plan)
    layers = _layers(experiment, rule)
    plans = {layer: Plan((replace(rule, layers=(layer,)),)) for layer in layers}
    rows = {layer: f"{plan_name(plan)}-float32" for layer, plan in plans.items()}
    variants = ",".join(["dense-float32", *rows.values()])
    evaluation = evaluate(
        replace(experiment, evaluate=replace(experiment.evaluate, variants=variants))
    )
    if evaluation.failed:
        raise InputError(
            f"{evaluation.folder / 'report.json'}: {evaluation.failed} samples failed, so layers"
            " cannot be compared; see the reasons there, and run the same command again"
        )
    probed = compare(evaluation.results, rows, options.threshold)
    left = tuple(layer.layer for layer in probed if not layer.sensitive)
    plan = Plan((replace(rule, layers=left),)) if left else Plan()
    body = {
        "probe": asdict(options),
        "plan": plan_name(plan),
        "layers": [asdict(layer) | {"worst": layer.worst} for layer in probed],
    }
    for name, data in (("probe.json", body), ("plan.json", plan_to_json(plan))):
        with atomic_write(evaluation.folder / name, overwrite=True) as part:
            part.write_bytes(strict_json.dump(data))
    return Probing(evaluation.folder, probed, plan)


def compare(
    results: Sequence[Mapping[str, Any]], rows: Mapping[int, str], threshold: float
) -> list[ProbedLayer]:
    """The error ratios of every layer.

    Args:
        results: of `evaluate`, with the row dense-float32 among them.
        rows: layer -> name of its row.
        threshold: ratio above which a layer is sensitive.

    Raises:
        InputError: the data defines none of the errors.
    """
    values: dict[tuple[str, str], Mapping[str, float | None]] = {}
    for entry in results:
        protocol = f"{entry['protocol']}@{entry['views']}"
        metrics = {name: entry["metrics"].get(name, {}).get("value") for name in ERRORS}
        values[entry["row"], protocol] = metrics
    protocols = dict.fromkeys(protocol for _, protocol in values)
    probed = []
    for layer, row in rows.items():
        ratios: dict[str, dict[str, float]] = {}
        for protocol in protocols:
            before, after = values["dense-float32", protocol], values[row, protocol]
            pairs = {name: (before[name], after[name]) for name in ERRORS}
            ratios[protocol] = {n: b / a for n, (a, b) in pairs.items() if a and b is not None}
        every = [value for of in ratios.values() for value in of.values()]
        if not every:
            raise InputError("evaluate.protocols: the data defines no error; choose other data")
        probed.append(ProbedLayer(layer, ratios, max(every) > threshold))
    return probed


def _rule(text: str) -> Rule:
    plan = parse_plan(text, "probe.plan")
    if len(plan.rules) != 1 or plan.default != Plan().default or plan.rules[0].layers is not None:
        raise InputError(
            "probe.plan: expected the attention of one role, such as key_views or sla_global, and"
            f" no layers, got {text!r}"
        )
    return plan.rules[0]


def _layers(experiment: Experiment, rule: Rule) -> tuple[int, ...]:
    """Those to probe: all of the role, or those that the settings name."""
    checked = check_model(ModelSpec(experiment.weights), experiment.backbone)
    entry, config = get_backbone(checked.manifest.backbone), checked.config
    model = nnx.eval_shape(
        lambda: entry.build(config, heads=HEADS, plan=Plan((rule,)), rngs=traced_rngs(0))
    )
    depth = model.sites.get(rule.role, 0)
    asked = [part.strip() for part in experiment.probe.layers.split(",") if part.strip()]
    if wrong := [part for part in asked if not part.isdecimal() or int(part) >= depth]:
        raise InputError(
            f"probe.layers: {wrong[0]!r} is no {rule.role} layer of this model; choose from 0 to"
            f" {depth - 1}, with commas between"
        )
    return tuple(sorted({int(part) for part in asked})) or tuple(range(depth))
