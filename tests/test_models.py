"""One description of a model: what it builds, what it says of itself, what it refuses and when."""

import shutil
from functools import partial

import jax
import numpy as np
import pytest
from flax import nnx

from lite3r_jax import models
from lite3r_jax.attention.presets import plan, plan_name
from lite3r_jax.distillation.checkpoint import load_student
from lite3r_jax.errors import InputError
from lite3r_jax.kernels import proofs, target
from lite3r_jax.kernels.self_check import check_model_kernels
from lite3r_jax.models import CheckedModel, ModelSpec, check_model
from lite3r_jax.precision import deploy, preset
from lite3r_jax.runs.deploy import export_deployment
from lite3r_jax.weights.load import BUNDLED, load
from tests.kernels.devices import GPU

WEIGHTS = "vggt-tiny"
TEXT = "sla_global(keep=0.5,block=4)"


def equal(a, b) -> bool:
    """Whether two models hold the same arrays in the same places."""
    left, right = (jax.tree.leaves_with_path(nnx.state(model)) for model in (a, b))
    return [path for path, _ in left] == [path for path, _ in right] and all(
        x.dtype == y.dtype and np.array_equal(x, y)
        for (_, x), (_, y) in zip(left, right, strict=True)
    )


def test_attention_is_a_plan_or_its_text_and_the_model_says_which():
    by_text = check_model(ModelSpec(WEIGHTS, attention=TEXT))
    by_plan = check_model(ModelSpec(WEIGHTS, attention=plan("sla_global", keep=0.5, block=4)))
    assert by_text.plan == by_plan.plan and by_text.name == f"{TEXT}-float32"
    model = by_text.build(("camera", "depth"))
    facts = by_text.describe(model)
    assert facts["plan"] == TEXT and "sla" in facts["attention"]["global"]
    assert facts["heads"] == ["camera", "depth"] and facts["weights"]["name"] == WEIGHTS
    assert equal(model, load(WEIGHTS, heads=("camera", "depth"), plan=by_plan.plan))


def test_float8_weights_are_those_of_precision_deploy():
    checked = check_model(ModelSpec(WEIGHTS, precision="fp8_weight_only", dtype="float32"))
    model = checked.build(("depth",))
    exact = load(WEIGHTS, heads=("depth",), param_dtype="float32")
    wanted = deploy(exact, preset("default"), "fp8_weight_only")
    assert equal(model, wanted)
    facts = checked.describe(model)
    assert facts["name"] == "dense-fp8_weight_only" and facts["float8_rules"] == "default"
    assert (
        facts["parameters"]
        == check_model(ModelSpec(WEIGHTS)).describe(load(WEIGHTS, heads=("depth",)))["parameters"]
    )


@pytest.mark.parametrize(
    "backend,precision,dtype,wanted",
    [
        ("cpu", "", "auto", "float32"),
        ("gpu", "", "auto", "bfloat16"),
        ("gpu", "", "float32", "float32"),
        ("gpu", "", None, "float32"),
        ("gpu", "float32", "auto", "float32"),
        ("cpu", "fp8_dynamic", "auto", "bfloat16"),
    ],
)
def test_the_dtype_of_auto_is_that_of_the_device_or_of_the_precision(
    backend, precision, dtype, wanted, monkeypatch
):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert check_model(ModelSpec(WEIGHTS, precision=precision, dtype=dtype)).dtype == wanted


def test_on_a_gpu_the_kernels_of_a_model_are_checked_when_it_is_built(monkeypatch, tmp_path):
    asked = []

    def run(operator, implementation, scopes, quick, kind):
        asked.append((operator, implementation))
        for scope in scopes:
            verdict = "failed" if operator == "sla" else "passed"
            yield proofs.Result("case", scope, verdict, "o is off by 1")

    monkeypatch.setattr(models, "check_model_kernels", partial(check_model_kernels, run=run))
    monkeypatch.setattr(target, "device", lambda: GPU)
    with proofs.kept_in(tmp_path):
        checked = check_model(ModelSpec(WEIGHTS, attention="sla_global(keep=0.5)"))
        facts = checked.describe(checked.build(("camera",)))
        assert asked == [("sla", "triton"), ("block_map", "triton")]
        assert {each["operator"]: each["state"] for each in facts["kernels"]} == {
            "sla": "fell back", "block_map": "verified"
        }  # fmt: skip
        assert "(blocked)" in facts["attention"]["global"]
        by_name = "sla_global(keep=0.5,implementation=triton)"
        with pytest.raises(
            InputError, match=r"implementation: sla 'triton' cannot run this: .*off"
        ):
            check_model(ModelSpec(WEIGHTS, attention=by_name)).build(("camera",))
    monkeypatch.undo()
    assert checked.describe(checked.build(("camera",)))["kernels"] == []


@pytest.mark.slow
def test_a_student_brings_its_attention_and_is_named_by_its_hash(bundled_student):
    checked = check_model(ModelSpec(WEIGHTS, student=bundled_student))
    model = checked.build()
    assert equal(model, load_student(bundled_student, WEIGHTS, simulate=False))
    facts = checked.describe(model)
    assert facts["name"] == "student-float32" and facts["plan"] == plan_name(checked.plan)
    assert len(facts["student"]["sha256"]) == 64 and facts["student"]["trained_under"] == "default"
    simulated = check_model(ModelSpec(WEIGHTS, student=bundled_student, precision="simulated"))
    x = np.random.default_rng(0).random((1, 2, 28, 28, 3), np.float32)
    rounded, exact = (m(x)[0].depth for m in (simulated.build(("camera", "depth")), model))
    assert 0 < float(np.abs(rounded - exact).max()) < 0.2 * float(exact.max())


@pytest.mark.parametrize("text", ["speed3r", "key_views(inner=speed3r)", "sla_global"])
def test_gates_that_nobody_has_trained_say_how_to_start_them(text):
    checked = check_model(ModelSpec(WEIGHTS, attention=text))
    if text == "sla_global":  # whose linear part is nothing at first
        checked.refuse_untrained()
        return
    with pytest.raises(InputError, match=r'distill .* --plan ".*speed3r.* --student RUN'):
        checked.refuse_untrained()


@pytest.fixture(scope="module")
def unreadable(tmp_path_factory):
    """The model of the package with other numbers in its files: reading weights fails."""
    folder = tmp_path_factory.mktemp("unreadable") / "weights"
    shutil.copytree(BUNDLED[WEIGHTS], folder)
    for path in folder.glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-8] + bytes(range(8)))
    return folder


@pytest.mark.parametrize(
    "settings,message",
    [
        ({"student": "S", "attention": "dense"}, r"student, attention: .*; leave out one of them"),
        ({"student": "nowhere"}, r"nowhere/manifest.json: missing, so this is no student"),
        ({"student": "S", "rules": "paper"}, r"trained under 'default', 'paper' was asked for"),
        ({"attention": "slaglobal"}, r"attention.plan: .*slaglobal.* did you mean 'sla_global'"),
        ({"attention": "sla_global(kep=0.1)"}, r"kep.*keep"),
        ({"precision": "fp8_dynamik"}, r"precision 'fp8_dynamik' .* did you mean 'fp8_dynamic'"),
        ({"rules": "papr", "precision": "fp8_dynamic"}, r"'papr' .* did you mean 'paper'"),
        ({"precision": "bfloat16", "dtype": "float32"}, r"bfloat16 and float32 contradict"),
    ],
)
def test_what_does_not_fit_is_one_line_before_weights_are_read(
    settings, message, unreadable, bundled_student
):
    if settings.get("student") == "S":
        settings = settings | {"student": bundled_student}
    with pytest.raises(InputError, match=message) as error:
        check_model(ModelSpec(unreadable, **settings))
    assert "\n" not in str(error.value)


def test_a_backbone_and_a_teacher_have_to_be_the_ones_that_are_asked_for(
    unreadable, tiny_dir, bundled_student
):
    with pytest.raises(InputError, match="weights of vggt, but the config is for da3"):
        check_model(ModelSpec(unreadable), "da3")
    with pytest.raises(InputError, match="not of the teacher that the student"):
        check_model(ModelSpec(tiny_dir, student=bundled_student))
    with pytest.raises(InputError, match="damaged"):
        check_model(ModelSpec(unreadable)).build()


def test_a_plan_that_fits_no_site_is_bad_input():
    with pytest.raises(InputError, match=r"attention: .* global attention, layers \[99\], but"):
        check_model(ModelSpec(WEIGHTS, attention="sla_global(layers=[99])")).build()


def test_a_deployed_model_is_complete(tiny_dir, bundled_student, tmp_path):
    out = tmp_path / "out"
    export_deployment(tiny_dir, out, heads=(), kind="fp8_weight_only")
    checked = check_model(ModelSpec(out))
    assert isinstance(checked, CheckedModel) and checked.name == "dense-fp8_weight_only"
    assert checked.describe(checked.build())["precision"] == "fp8_weight_only"
    for settings in (
        {"student": bundled_student},
        {"attention": "sla_global"},
        {"rules": "paper"},
        {"precision": "fp8_dynamic"},
    ):
        (name,) = settings
        with pytest.raises(InputError, match=rf"{name}: .* a deployed model.*; leave out {name}"):
            check_model(ModelSpec(out, **settings))
