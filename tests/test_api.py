"""The public names: each is documented, none is there by accident, and they do what they say."""

import inspect
from pathlib import Path

import pytest

import lite3r_jax
from lite3r_jax import api
from lite3r_jax.cli.lite3r import main as lite3r
from lite3r_jax.errors import InputError

NAME = lite3r_jax.__name__
PACKAGE = Path(lite3r_jax.__file__).parent


def test_public_names_are_there_documented_and_all_that_there_is():
    for name in lite3r_jax.__all__:
        value = getattr(lite3r_jax, name)
        assert name == "__version__" or inspect.getdoc(value), name
    assert dir(lite3r_jax) == sorted(lite3r_jax.__all__)
    public = {name for name, value in vars(lite3r_jax).items() if not name.startswith("_")}
    ours = {n for n in public if getattr(vars(lite3r_jax)[n], "__module__", "").startswith(NAME)}
    assert ours | {"__version__"} == set(lite3r_jax.__all__)
    assert set(api.__all__) <= set(lite3r_jax.__all__) and len(set(lite3r_jax.__all__)) > 20


def test_no_public_name_is_that_of_a_folder_or_module():
    inside = {path.stem for path in PACKAGE.iterdir() if path.stem != "__init__"}
    assert not inside & set(lite3r_jax.__all__)


def test_functions_say_what_they_take_and_types_are_shipped():
    for name in lite3r_jax.__all__:
        value = getattr(lite3r_jax, name)
        if inspect.isfunction(value):
            signature = inspect.signature(value)
            assert signature.return_annotation is not inspect.Signature.empty, name
            for parameter in signature.parameters.values():
                assert parameter.annotation is not inspect.Parameter.empty, (name, parameter)
    assert (PACKAGE / "py.typed").is_file()


def test_a_recipe_is_changed_by_dotted_names():
    settings = lite3r_jax.recipe("vggt:tiny", {"train.loop.steps": 3, "output": "RUN"})
    assert (settings.train.loop.steps, settings.output) == (3, "RUN")
    with pytest.raises(InputError, match=r"did you mean 'train\.loop\.steps"):
        lite3r_jax.recipe("vggt:tiny", {"train.loop.step": 3})
    with pytest.raises(InputError, match=r"train\.loop\.steps: expected int, got 3\.5"):
        lite3r_jax.recipe("vggt:tiny", {"train.loop.steps": 3.5})


def test_train_and_distill_refuse_each_others_settings():
    with pytest.raises(InputError, match=r"distill.plan: set, .* use distill"):
        lite3r_jax.train(lite3r_jax.recipe("vggt:tiny", {"output": "RUN"}))
    with pytest.raises(InputError, match=r"distill.plan: not set, .* use train"):
        lite3r_jax.distill(lite3r_jax.recipe("vggt:backbone", {"output": "RUN"}))
    with pytest.raises(InputError, match=r"compute.mesh=view:2: .* train.mesh.view=2"):
        lite3r_jax.train(
            lite3r_jax.recipe("vggt:backbone", {"output": "RUN", "compute.mesh": "view:2"})
        )
    settings = {"output": "OUT", "weights": "vggt-tiny"}
    for function, group in ((lite3r_jax.evaluate, "evaluate"), (lite3r_jax.bench, "bench")):
        with pytest.raises(InputError, match=rf"config.precision: .* --config.{group}.variants"):
            function(lite3r_jax.recipe("vggt", settings | {"precision": "fp8_dynamic"}))
    with pytest.raises(InputError, match=r"config.student: .* --config.distill.init_from"):
        lite3r_jax.distill(lite3r_jax.recipe("vggt:tiny", {"output": "RUN", "student": "S"}))


@pytest.mark.parametrize(
    ("function", "values", "message"),
    [
        ("train", {"compute.rest": "host"}, r"compute\.rest=host: .* training; .* train\.remat"),
        (
            "probe",
            {"processes.coordinator": "a:1"},
            "processes.coordinator=a:1: has no effect on a",
        ),
        ("probe", {"compute.mesh": "view:2"}, r"compute\.mesh=view:2: has no effect on a probe"),
        ("probe", {"compute.rest": "host"}, r"compute\.rest=host: has no effect on a probe"),
        ("train", {"compute.weights": "split"}, r"it splits them by train\.mesh\.fsdp"),
        (
            "evaluate",
            {"compute.weights": "split"},
            "compute.weights=split: needs devices; set comp",
        ),
        ("bench", {"compute.weights": "split"}, "compute.weights=split: needs devices; set comp"),
        ("evaluate", {"processes.coordinator": "a:1"}, "set compute.mesh=view:N"),
        ("bench", {"processes.coordinator": "a:1"}, "set compute.mesh=view:N"),
    ],
)
def test_settings_of_devices_are_refused_where_they_have_no_effect(function, values, message):
    recipe = "vggt:backbone" if function == "train" else "vggt"
    settings = {"output": "OUT", "weights": "vggt-tiny", **values}
    with pytest.raises(InputError, match=message) as error:
        getattr(lite3r_jax, function)(lite3r_jax.recipe(recipe, settings))
    assert "\n" not in str(error.value)


def test_the_commands_without_devices_refuse_them(capsys, tmp_path):
    for command, word in (
        (["export", str(tmp_path), "--output", "OUT"], "--compute.mesh=view:2"),
        (["serve", "--weights", "vggt-tiny"], "--processes.coordinator=a:1"),
        (["deploy", "vggt-tiny", "OUT"], "--compute.mesh=view:2"),
        (["deploy", "vggt-tiny", "OUT"], "--compute.rest=host"),
    ):
        assert lite3r([*command, word]) == 2, command
        shown = capsys.readouterr().err
        assert word.removeprefix("--").partition("=")[0] in shown, shown


def test_a_student_is_distilled_evaluated_and_loaded_from_python(
    pocket_recipe, pocket_weights, tmp_path
):
    small = {
        "weights": str(pocket_weights), "distill.plan": "sla_global(block=4)",
        "train.data.buckets": "1x2x28x28", "train.data.scenes": 2, "train.data.frames": 2,
        "train.loop.steps": 2, "train.loop.evaluate_every": 0, "distill.final_variants": "",
        "output": str(tmp_path / "run"),
    }  # fmt: skip
    trained = lite3r_jax.distill(lite3r_jax.recipe(str(pocket_recipe), small))
    assert (trained.reason, trained.step) == ("done", 2) and trained.result is not None
    model = lite3r_jax.load(pocket_weights, student=trained.result)
    assert "sla" in model.attention()["global"]
    settings = {
        "weights": str(pocket_weights), "output": str(tmp_path / "evaluation"),
        "evaluate.scenes": 1, "evaluate.size": "28x28",
        "evaluate.resamples": 10, "evaluate.pictures": 0,
        "evaluate.variants": "student-float32", "evaluate.student": str(trained.result),
    }  # fmt: skip
    evaluation = lite3r_jax.evaluate(lite3r_jax.recipe(str(pocket_recipe), settings))
    assert evaluation.failed == 0 and "student-float32" in evaluation.text
    [entry] = evaluation.results
    assert entry["variant"] == "student-float32" and (evaluation.folder / "report.html").is_file()
