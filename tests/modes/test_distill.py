"""`--mode=train` with a student: what stops it at once, and what a run leaves behind."""

import importlib
import json
from dataclasses import replace

import numpy as np
import pytest

from lite3r_jax.distill.checkpoint import load_student, read_student
from lite3r_jax.distill.options import AttentionOptions, DistillOptions, MatchOptions
from lite3r_jax.distill.stacks import variables
from lite3r_jax.errors import InputError
from lite3r_jax.evaluate import ScoreOptions
from lite3r_jax.evaluate.options import EvaluateOptions
from lite3r_jax.experiment import Experiment, from_config
from lite3r_jax.modes import train as mode
from lite3r_jax.train.checkpoint import read_arrays
from lite3r_jax.train.loop import LoopOptions
from lite3r_jax.train.optimiser import OptimiserOptions
from lite3r_jax.train.options import DataOptions, TrainOptions

RECIPES = [
    (name, variant)
    for name in ("vggt", "da3_large")
    for variant in ("", *importlib.import_module(f"configs.{name}").VARIANTS)
]


def experiment(folder, weights, **distill):
    train = TrainOptions(
        data=DataOptions(buckets="1x2x28x28", scenes=4, frames=3),
        loop=LoopOptions(3, log_every=1),
        optimiser=OptimiserOptions(rate=1e-2, weight_decay=0.0),
    )
    options = DistillOptions(plan="sla_global", attention=AttentionOptions(block=4))
    return Experiment(
        output=str(folder), weights=str(weights), train=train, distill=replace(options, **distill)
    )


@pytest.mark.parametrize("name,variant", RECIPES)
def test_every_variant_of_every_recipe_can_be_built(name, variant):
    config = importlib.import_module(f"configs.{name}").get_config(variant)
    found = from_config(config.to_dict())
    if variant == "backbone":
        assert not found.distill.plan
    else:
        assert found.distill.student_plan()
    published = "paper" in variant and "fp8" not in variant
    assert found.train.count == (published and {"vggt": 360_448, "da3_large": 114_688}[name])


def test_variants_add_up_and_unknown_ones_are_named():
    vggt = importlib.import_module("configs.vggt")
    found = from_config(vggt.get_config("tiny,keep10,no_fp8").to_dict())
    assert found.weights == "vggt-tiny" and found.train.data.source == "synthetic"
    assert (found.distill.attention.keep, found.distill.precision) == (0.1, "none")
    with pytest.raises(InputError, match=r"vggt.py:tinny: no such variant; choose from .*tiny"):
        vggt.get_config("tinny")


@pytest.mark.parametrize("variant,weights,message", [
    ("", "", r"config.weights: not set.*facebook/VGGT-1B.*vggt.py:tiny needs no download"),
    ("", "W", r"config.train.data.source: not set.*BlendedMVS.*vggt.py:tiny has all"),
    ("tiny", "/nowhere", "/nowhere: no such directory"),
])  # fmt: skip
def test_without_weights_or_data_it_says_what_to_get(tmp_path, variant, weights, message):
    vggt = importlib.import_module("configs.vggt")
    found = from_config(vggt.get_config(variant).to_dict())
    found = replace(found, output=str(tmp_path / "run"), weights=weights)
    with pytest.raises(InputError, match=message):
        mode.run(found)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("change,message", [
    ({"backbone": "da3"}, "the teacher is a vggt, config.backbone says da3"),
    ({"train": TrainOptions(trainable="lora")}, "config.distill.trainable names"),
    ({"train": TrainOptions(model="M.json")}, "config.train.model: a distillation has a teacher"),
    ({"distill": DistillOptions(plan="sla_golbal")}, "distill.plan: 'sla_golbal' is no plan"),
    ({"distill": DistillOptions(plan="sla_global", precision="fp4")}, "precision 'fp4' is not"),
    ({"distill": DistillOptions(plan="sla_global", compare="best")}, "distill.compare: expected"),
])  # fmt: skip
def test_what_does_not_fit_stops_before_anything_is_loaded(tiny_dir, tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        mode.run(replace(experiment(tmp_path / "run", tiny_dir), **change))
    assert not (tmp_path / "run").exists()


def test_what_is_to_be_computed_again_is_said_to_the_model():
    seen = []
    loss = mode.recomputing(lambda model, batch, key: model(batch, taps=()))
    loss(lambda images, **choices: seen.append((images, choices)), "images", None)
    assert seen == [("images", {"taps": (), "remat": True})]


@pytest.mark.slow
def test_a_run_leaves_a_student_that_can_be_loaded_and_gone_on_from(tiny_dir, tmp_path, capsys):
    apart = {"targets": "none", "match": MatchOptions("teacher", weight=1.0)}
    settings = experiment(tmp_path / "run", tiny_dir, **apart)
    assert mode.run(settings) == mode.DONE
    said = capsys.readouterr().out
    assert "1,024 of 1,191,696 parameters are trained (proj_lin)" in said
    folder = tmp_path / "run" / "student"
    manifest, arrays = read_student(folder)
    assert manifest.heads == ("camera", "depth") and manifest.precision == "none"
    assert manifest.plan == settings.distill.student_plan()
    start = json.loads((tmp_path / "run" / "events.jsonl").read_text().splitlines()[0])
    facts = start["distillation"]
    assert facts["trained"] == {"aggregator/global_cores/0/proj_lin": 1024}
    assert facts["compared"] == {"global": [0, 1, 2, 3]}

    trained = read_arrays(tmp_path / "run")
    model = load_student(folder, tiny_dir)
    for path, x in arrays.items():
        np.testing.assert_array_equal(x, trained[f"student/{path}"])
        np.testing.assert_array_equal(x, variables(model)[path][1][...])

    # The second run begins there, under another precision, and does not move.
    again = experiment(tmp_path / "again", tiny_dir, start=str(folder), precision="paper", **apart)
    still = replace(again.train, optimiser=OptimiserOptions(rate=1e-30, weight_decay=0.0),
                    loop=LoopOptions(1))  # fmt: skip
    assert mode.run(replace(again, train=still)) == mode.DONE
    manifest, after = read_student(tmp_path / "again" / "student")
    assert manifest.precision == "paper"
    for path, x in arrays.items():
        np.testing.assert_allclose(after[path], x, atol=1e-12)

    # What was trained is evaluated when it is done, also by a run that finds all steps done.
    compare = replace(
        again.distill, compare="untrained-float32,student-float32,student-fp8_dynamic"
    )
    score = ScoreOptions(points=False, wrong_partner=False)
    what = EvaluateOptions("synthetic:test", size="28x28", scenes=2, score=score)
    compared = replace(again, output=str(tmp_path / "fourth"), distill=compare, evaluate=what)
    assert mode.run(replace(compared, train=still)) == mode.DONE
    said = capsys.readouterr().out
    assert said.index("the student; it needs") < said.index("| student-fp8_dynamic |")
    report = json.loads((tmp_path / "fourth" / "evaluation" / "report.json").read_text())
    found = {entry["row"]: entry["metrics"] for entry in report["results"]}
    assert found["student-float32"]["teacher_abs_rel"]["value"] > 0  # to the first row, untrained
    other = replace(again.distill, trainable="proj_lin+attention")
    with pytest.raises(InputError, match=r"distill.start: .* was trained with another trainable"):
        mode.run(replace(again, output=str(tmp_path / "third"), distill=other))
