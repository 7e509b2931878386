"""`--mode=train` with a student: what stops it at once, and what a run leaves behind."""

import importlib
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from lite3r_jax.attention.presets import plan_name
from lite3r_jax.distillation.checkpoint import load_student, read_student
from lite3r_jax.distillation.options import DistillOptions, MatchOptions
from lite3r_jax.distillation.surgery import variables
from lite3r_jax.errors import InputError
from lite3r_jax.evaluation import ScoreOptions
from lite3r_jax.evaluation.options import EvaluateOptions
from lite3r_jax.experiment import Experiment, from_config
from lite3r_jax.runs import train as mode
from lite3r_jax.training.checkpoint import read_arrays
from lite3r_jax.training.loop import LoopOptions
from lite3r_jax.training.optimizer import OptimizerOptions
from lite3r_jax.training.options import DataOptions, TrainOptions
from lite3r_jax.weights.load import load

RECIPES = [
    (name, variant)
    for name in ("vggt", "da3_large", "pi3")
    for variant in ("", *importlib.import_module(f"lite3r_jax.recipes.{name}").VARIANTS)
]

# layers of 16 heads over all views; what Speed3R's recipes train: all but the encoder, or those
# layers; gates; qkv; low-rank parts of rank 16
LAYERS = {"vggt": 24, "pi3": 18, "da3_large": 8}
SPEED3R = {"vggt": 854_355_956, "pi3": 654_915_420, "da3_large": 8 * (4096 + 32) * 1025}
GATES = {name: layers * 32 * 1025 for name, layers in LAYERS.items()}
QKV = {name: layers * 3072 * 1025 for name, layers in LAYERS.items()}
LORA = {name: layers * 16 * (2 * 1024 + 3072 + 1024) for name, layers in LAYERS.items()}


def experiment(folder, weights, **distill):
    train = TrainOptions(
        data=DataOptions(buckets="1x2x28x28", scenes=4, frames=3),
        loop=LoopOptions(3, log_every=1),
        optimizer=OptimizerOptions(learning_rate=1e-2, weight_decay=0.0),
    )
    options = DistillOptions(plan="sla_global(block=4)")
    return Experiment(
        output=str(folder), weights=str(weights), train=train, distill=replace(options, **distill)
    )


@pytest.mark.parametrize("name,variant", RECIPES)
def test_every_variant_of_every_recipe_can_be_built(name, variant):
    config = importlib.import_module(f"lite3r_jax.recipes.{name}").get_config(variant)
    settings = from_config(config.to_dict())
    if variant == "backbone":
        assert not settings.distill.plan
    else:
        assert settings.distill.student_plan()
    published = "paper" in variant and "fp8" not in variant
    counts = {"speed3r": SPEED3R[name], "gates": GATES[name], "qkv": GATES[name] + QKV[name]}
    counts["gates_lora"] = GATES[name] + LORA[name]
    counts |= {variant: {"vggt": 360_448, "da3_large": 114_688}[name]} if published else {}
    assert settings.train.count == counts.get(variant, 0)


def test_variants_add_up_and_unknown_ones_are_named():
    vggt = importlib.import_module("lite3r_jax.recipes.vggt")
    settings = from_config(vggt.get_config("tiny,keep10").to_dict())
    assert settings.weights == "vggt-tiny" and settings.train.data.source == "synthetic"
    assert settings.distill.plan == "sla_global(block=4,keep=0.1)"
    assert settings.distill.precision == "none"
    assert from_config(vggt.get_config("tiny,fp8").to_dict()).distill.precision == "default"
    gated = from_config(vggt.get_config("tiny,speed3r,qkv").to_dict())
    assert gated.distill.plan == "speed3r(window=2,top=14)" and gated.train.count == 0
    assert gated.distill.trainable == "strategy+qkv" and gated.weights == "vggt-tiny"
    as_published = vggt.get_config("tiny,every_site,token").distill.plan
    assert as_published == "sla(block=4,routing=token,keep_special=false)"
    with pytest.raises(InputError, match=r"variant 'tinny' is not known; did you mean 'tiny'"):
        vggt.get_config("tinny")


@pytest.mark.parametrize("variant,weights,message", [
    ("", "", r"config.weights: not set.*facebook/VGGT-1B.*vggt.py:tiny needs no download"),
    ("", "W", r"config.train.data.source: not set.*BlendedMVS.*vggt.py:tiny has all"),
    ("tiny", "/nowhere", "/nowhere: no such directory"),
])  # fmt: skip
def test_without_weights_or_data_it_says_what_to_get(tmp_path, variant, weights, message):
    vggt = importlib.import_module("lite3r_jax.recipes.vggt")
    settings = from_config(vggt.get_config(variant).to_dict())
    settings = replace(settings, output=str(tmp_path / "run"), weights=weights)
    with pytest.raises(InputError, match=message):
        mode.run(settings)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("change,message", [
    ({"backbone": "da3"}, "weights of vggt, but the config is for da3"),
    ({"train": TrainOptions(trainable="lora")}, "config.distill.trainable names"),
    ({"train": TrainOptions(model="M.json")}, "config.train.model: a distillation has a teacher"),
    ({"distill": DistillOptions(plan="sla_golbal")}, "plan 'sla_golbal' is not known; did you"),
    ({"distill": DistillOptions(plan="sla_global", precision="fp4")}, "precision 'fp4' is not"),
    ({"distill": DistillOptions(plan="sla_global", final_variants="best")},
     "distill.final_variants: expected"),
])  # fmt: skip
def test_what_does_not_fit_stops_before_anything_is_loaded(tiny_dir, tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        mode.run(replace(experiment(tmp_path / "run", tiny_dir), **change))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_depth_anything_learns_with_gates(tiny_da3_dir, tmp_path):
    plan, trained = "speed3r(window=2,top=1)", "strategy+attention"
    settings = experiment(tmp_path / "run", tiny_da3_dir, plan=plan, trainable=trained)
    assert mode.run(replace(settings, backbone="da3")) == mode.DONE
    manifest, arrays = read_student(tmp_path / "run" / mode.STUDENT)
    assert plan_name(manifest.plan) == plan
    gates = [x for path, x in arrays.items() if path.endswith("gate/kernel")]
    assert gates and all(np.abs(x).max() > 0 for x in gates), "they begin as zeros"


def put_photos(folder, **scenes):
    for name, count in scenes.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = np.random.default_rng(i).integers(0, 256, (30, 40, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.jpg", quality=90)
    return folder


def with_photos(settings, folder, **loop):
    data = replace(settings.train.data, source=f"photos:{folder}", strategy="spaced")
    train = replace(settings.train, data=data, loop=replace(settings.train.loop, **loop))
    return replace(settings, train=train)


@pytest.mark.parametrize("change,needing", [
    ({}, "distill.targets=truth"),
    ({"plan": ""}, "training without a teacher"),
])  # fmt: skip
def test_photos_without_cameras_need_an_objective_without_truth(
    tiny_dir, tmp_path, change, needing
):
    settings = with_photos(experiment(tmp_path / "run", tiny_dir, **change), tmp_path / "none")
    message = rf"photos have no cameras and depth, which {needing} needs; .*:unlabeled,apart\)"
    with pytest.raises(InputError, match=message):
        mode.run(settings)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("source,message", [
    ("photos:{}/nowhere", "{}/nowhere: no such file or folder"),
    ("photos:{}", r"{}: no scene has the 2 photos that the buckets ask for.*\(a\) has 1"),
    ("{}", r"{}: has the layout of no dataset; .* without cameras say photos:{}"),
])  # fmt: skip
def test_photos_that_cannot_be_used_are_named(tiny_dir, tmp_path, source, message):
    folder = put_photos(tmp_path / "photos", a=1)
    settings = experiment(tmp_path / "run", tiny_dir, targets="teacher")
    data = replace(settings.train.data, source=source.replace("{}", str(folder)))
    settings = replace(settings, train=replace(settings.train, data=data))
    with pytest.raises(InputError, match=message.replace("{}", str(folder))):
        mode.run(settings)
    assert not (tmp_path / "run").exists()


def test_photos_are_held_out_only_for_an_evaluation(tmp_path, capsys):
    folder = put_photos(tmp_path / "photos", a=6, b=3, c=1)
    settings = with_photos(experiment(tmp_path / "run", "W"), folder).train
    pipeline, _ = mode.open_data(settings)
    assert pipeline.options.has_ground_truth is False and pipeline.options.normalization is None
    assert pipeline.schedule.parts[0].source.frames("a") == tuple(range(6))
    assert capsys.readouterr().out == (
        f"photos:{folder}: 9 frames in 2 scenes; left out, with fewer than 2 photos: c (1)\n"
    )
    pipeline, held = mode.open_data(
        replace(settings, loop=replace(settings.loop, evaluate_every=1))
    )
    (there,) = held.schedule.parts
    assert there.source.scenes == ("a",) and there.source.frames("a") == (4, 5)
    assert pipeline.schedule.parts[0].source.frames("a") == (0, 1, 2, 3)
    assert ": 9 frames in 2 scenes, 2 of them held out; left" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("apart", [False, True])
def test_a_student_is_distilled_from_photos_of_which_nothing_is_known(tiny_dir, tmp_path, apart):
    folder = put_photos(tmp_path / "photos", a=5, b=4)
    objective = {"targets": "none", "match": MatchOptions("layerwise", weight=1.0)}
    objective = objective if apart else {"targets": "teacher"}
    settings = experiment(tmp_path / "run", tiny_dir, **objective)
    assert mode.run(with_photos(settings, folder, evaluate_every=3)) == mode.DONE
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    *steps, last = map(json.loads, lines)
    assert [line["step"] for line in steps] == [1, 2, 3] and not any(x["skipped"] for x in steps)
    for metrics in (*steps, last["evaluation"]):
        assert metrics["loss"] > 0 and metrics["distill_loss"] > 0
        assert ("loss_depth" in metrics) is not apart
    plan, heads = settings.distill.student_plan(), ("camera", "depth")
    before = variables(load(tiny_dir, plan=plan, heads=heads, seed=0))
    for path, x in read_student(tmp_path / "run" / "student")[1].items():
        assert np.abs(x - before[path][1][...]).max() > 1e-3  # three steps at a rate of 1e-2


def test_what_is_to_be_computed_again_is_said_to_the_model():
    seen = []
    loss = mode.recomputing(lambda model, batch, key: model(batch, taps=()))
    loss(lambda images, **choices: seen.append((images, choices)), "images", None)
    assert seen == [("images", {"taps": (), "remat": True})]


@pytest.mark.slow
def test_a_run_leaves_a_student_that_can_be_loaded_and_gone_on_from(tiny_dir, tmp_path, capsys):
    apart = {"targets": "none", "match": MatchOptions("layerwise", weight=1.0)}
    settings = experiment(tmp_path / "run", tiny_dir, **apart)
    assert mode.run(settings) == mode.DONE
    said, warned = capsys.readouterr()
    assert warned.count("pixels; these weights were made for") == 1
    assert "1,024 of 1,191,696 parameters are trained (strategy)" in said
    assert said.splitlines()[-1].startswith("verdict: none")
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
    again = experiment(
        tmp_path / "again", tiny_dir, init_from=str(folder), precision="paper", **apart
    )
    still = replace(again.train, optimizer=OptimizerOptions(learning_rate=1e-30, weight_decay=0.0),
                    loop=LoopOptions(1))  # fmt: skip
    assert mode.run(replace(again, train=still)) == mode.DONE
    manifest, after = read_student(tmp_path / "again" / "student")
    assert manifest.precision == "paper"
    for path, x in arrays.items():
        np.testing.assert_allclose(after[path], x, atol=1e-12)

    # What was trained is evaluated when it is done, also by a run that finds all steps done.
    compare = replace(
        again.distill, final_variants="untrained-float32,student-float32,student-fp8_dynamic"
    )
    score = ScoreOptions(points=False, wrong_partner=False)
    what = EvaluateOptions("synthetic:test", size="28x28", scenes=2, score=score)
    compared = replace(again, output=str(tmp_path / "fourth"), distill=compare, evaluate=what)
    assert mode.run(replace(compared, train=still)) == mode.DONE
    said = capsys.readouterr().out
    assert "student-fp8_dynamic" in said
    assert f"student: {tmp_path / 'fourth' / 'student'}\n" in said
    assert said.splitlines()[-1].startswith("verdict: none, it was not compared with its teacher")
    report = json.loads((tmp_path / "fourth" / "evaluation" / "report.json").read_text())
    metrics = {entry["variant"]: entry["metrics"] for entry in report["results"]}
    assert metrics["student-float32"]["teacher_abs_rel"]["value"] > 0  # to the first row, untrained
    other = replace(again.distill, trainable="strategy+attention")
    with pytest.raises(
        InputError, match=r"distill.init_from: .* was trained with another trainable"
    ):
        mode.run(replace(again, output=str(tmp_path / "third"), distill=other))
