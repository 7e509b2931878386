"""Plans by name: which sites they change, and how many parameters they add to VGGT-1B."""

import math

import pytest

from lite3r_jax.attention.core import Plan
from lite3r_jax.attention.dense import Dense
from lite3r_jax.attention.presets import PRESETS, plan
from lite3r_jax.attention.sla import SLA
from lite3r_jax.backbones.vggt import BACKBONE, VGGTConfig
from lite3r_jax.weights.abstract import abstract_model


def test_the_default_changes_global_layers_only():
    default = plan()
    assert default == plan("sla_global")
    assert default.at("global", 23) == SLA(routing="block", protect=True)
    assert {default.at(role, 0) for role in ("patch", "frame", "camera")} == {Dense()}


def test_the_paper_changes_every_site_and_protects_nothing():
    spec = SLA(routing="token", keep=0.3, protect=False)
    paper = plan("sla_paper")
    assert {paper.at(role, 0) for role in ("patch", "frame", "global", "camera")} == {spec}


def test_settings_replace_those_of_the_preset():
    assert plan("sla_global", keep=0.3, q_block=64).at("global", 0) == SLA(keep=0.3, q_block=64)
    assert plan("sla_paper", routing="block").at("frame", 0) == SLA(keep=0.3, protect=False)
    assert plan("dense", implementation="blocked") == Plan(default=Dense("blocked"))


def test_unknown_names_and_settings():
    with pytest.raises(ValueError, match=f"unknown plan 'sla', there are: {', '.join(PRESETS)}"):
        plan("sla")
    with pytest.raises(
        ValueError, match=r"plan 'sla_global': .* unexpected keyword argument 'kep'"
    ):
        plan("sla_global", kep=0.3)
    with pytest.raises(ValueError, match="keep must be"):
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
