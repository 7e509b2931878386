"""Plans by name: which sites they change, and how many parameters they add to VGGT-1B."""

import json
import math

import pytest

from lite3r_jax.attention.dense import Dense
from lite3r_jax.attention.plan import Plan, plan_from_json, plan_to_json
from lite3r_jax.attention.presets import parse_plan, plan, plan_name, split_plans
from lite3r_jax.attention.sla import SLA
from lite3r_jax.backbones.vggt import ENTRY as BACKBONE
from lite3r_jax.backbones.vggt import VGGTConfig
from lite3r_jax.errors import InputError
from lite3r_jax.weights.abstract import abstract_model


def test_the_default_changes_global_layers_only():
    default = plan()
    assert default == plan("sla_global")
    assert default.at("global", 23) == SLA(routing="block", keep_special=True)
    assert {default.at(role, 0) for role in ("patch", "frame", "camera")} == {Dense()}


def test_the_paper_changes_every_site_and_protects_nothing():
    spec = SLA(routing="token", keep=0.3, keep_special=False)
    paper = plan("sla_paper")
    assert {paper.at(role, 0) for role in ("patch", "frame", "global", "camera")} == {spec}


def test_settings_replace_those_of_the_preset():
    assert plan("sla_global", keep=0.3, q_block=64).at("global", 0) == SLA(keep=0.3, q_block=64)
    assert plan("sla_paper", routing="block").at("frame", 0) == SLA(keep=0.3, keep_special=False)
    assert plan("dense", implementation="blocked") == Plan(default=Dense("blocked"))


@pytest.mark.parametrize(
    "text,name",
    [
        ("dense", "dense"),
        ("sla_global(block=32, keep=0.1)", "sla_global(keep=0.1,block=32)"),
        ("sla_global(keep=0.25)", "sla_global(keep=0.25)"),
        ("sla_paper(keep=0.3)", "sla_paper(keep=0.3)"),
        ("sla(routing=token,keep_special=FALSE,keep=3e-1)", "sla_paper(keep=0.3)"),
        ("sla(keep=1)", "sla(keep=1.0)"),
        (
            "sla_global(layers=[0-2,7],keep=0.5) + sla_frame(keep=0.2,q_block=none)",
            "sla_global(keep=0.5,layers=[0,1,2,7])+sla_frame(keep=0.2)",
        ),
        (
            "dense(implementation=blocked)+sla_camera(keep=0.2,heads_axis=x)",
            "sla_camera(keep=0.2,heads_axis=x)+dense(implementation=blocked)",
        ),
    ],
)
def test_text_and_back(text, name):
    read = parse_plan(text)
    assert plan_name(read) == name and parse_plan(name) == read
    model = plan_to_json(read)
    assert parse_plan(json.dumps(model)) == plan_from_json(json.loads(json.dumps(model)))
    assert plan_to_json(plan_from_json(model)) == model


def test_a_text_says_the_keep_in_any_case():
    assert plan_name(plan("sla_global")) == f"sla_global(keep={SLA().keep})"
    assert plan_name(plan("sla_paper")) == "sla_paper(keep=0.3)"


def test_settings_of_the_run_are_in_the_text_and_not_in_the_model():
    read = parse_plan("sla_global(implementation=reference,keep=0.2)")
    assert read == plan("sla_global", implementation="reference", keep=0.2)
    assert parse_plan(json.dumps(plan_to_json(read))) == plan("sla_global", keep=0.2)


def test_a_plan_can_be_a_file(tmp_path):
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(plan_to_json(plan("sla_global", keep=0.2))))
    assert parse_plan(str(file)) == plan("sla_global", keep=0.2)
    file.write_text("{}")
    with pytest.raises(InputError, match=r"plan.json: expected an object with .rules. and"):
        parse_plan(str(file))
    with pytest.raises(InputError, match=r"distill.plan: nowhere.json cannot be read"):
        parse_plan("nowhere.json", "distill.plan")


def test_commas_of_settings_do_not_split_a_list():
    text = "dense-float32, sla_global(keep=0.1,block=32)-bfloat16,,sla(keep=0.1)-float32"
    assert split_plans(text) == [
        "dense-float32", "sla_global(keep=0.1,block=32)-bfloat16", "sla(keep=0.1)-float32",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text,message",
    [
        ("sla_golbal", "plan 'sla_golbal' is not known; did you mean 'sla_global'"),
        ("sla_global(kep=0.3)", "setting of sla 'kep' is not known; did you mean 'keep'"),
        ("sla_global(keep=30)", r"keep must be in \(0, 1\], got 30"),
        ("sla_global(keep=much)", "sla.keep: expected a number, got 'much'"),
        ("sla_global(keep=nan)", "sla.keep: expected a number, got nan"),
        ("sla_global(block=1.5)", "sla.block: expected a whole number, got '1.5'"),
        ("sla_global(keep_special=1)", "sla.keep_special: expected true or false, got '1'"),
        ("sla_global(routing=blok)", "expected one of token, block, block3, got 'blok'; did you m"),
        ("sla_global(keep)", "expected SETTING=VALUE, got 'keep'"),
        ("sla_global(keep=0.1", "expected NAME or NAME"),
        ("sla_global(keep=0.1,keep=0.2)", "sla.keep is there twice"),
        ("", "expected a plan such as sla_global"),
        ("dense(layers=[1])", "layers are those of a role; choose from dense_patch"),
        ("sla+dense", "two strategies for every site"),
        ("sla_global(layers=[3-1])", r"layers: expected numbers and ranges such as \[0-3,7\]"),
        ("{", "not JSON"),
        ('{"rules": [], "default": {"strategy": "slaa"}}', "'slaa' is not known; did you mean"),
        ('{"rules": [], "default": {"strategy": "sla", "implementation": "x"}}', "no part of it"),
        ('{"rules": [{"role": "globl"}], "default": {"strategy": "sla"}}', 'rules.0.: expected "r'),
        (
            '{"rules": [{"role": "globl", "layers": null, "spec": {}}], "default": {}}',
            "role 'globl' is not known; did you mean 'global'",
        ),
    ],
)
def test_bad_text_is_one_line_with_what_to_change(text, message):
    with pytest.raises(InputError, match=message) as caught:
        parse_plan(text, "config.attention.plan")
    assert str(caught.value).startswith("config.attention.plan") and "\n" not in str(caught.value)


def test_unknown_names_and_settings():
    with pytest.raises(InputError, match="plan 'slaa_global' is not known; did you mean"):
        plan("slaa_global")
    with pytest.raises(InputError, match="setting of sla 'kep' is not known; did you mean 'keep'"):
        plan("sla_global", kep=0.3)
    with pytest.raises(InputError, match="keep must be"):
        plan("sla_global", keep=30)


@pytest.mark.parametrize(
    "name,modules,parameters",
    [("sla_global", 24, 24 * 64 * 64), ("sla_paper", 76, 360_448)],
)
def test_parameters_added_to_the_published_model(name, modules, parameters):
    model = abstract_model(BACKBONE, VGGTConfig(), heads=("camera",), plan=plan(name))
    added = [shape for path, shape in model.shapes.items() if path.endswith("proj_lin")]
    assert sum(shape[0] for shape in added) == modules
    assert sum(math.prod(shape) for shape in added) == parameters
