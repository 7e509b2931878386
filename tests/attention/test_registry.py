"""Strategies that are registered: names, settings of every type as JSON and as text."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import pytest

from lite3r_jax.attention.dense import Dense
from lite3r_jax.attention.plan import Plan, Rule, plan_from_json, plan_to_json
from lite3r_jax.attention.presets import parse_plan, plan, plan_name, plan_names
from lite3r_jax.attention.registry import register, strategies, strategy, unregister
from lite3r_jax.attention.sla import SLA
from lite3r_jax.attention.strategy import AttentionStrategy, Preset
from lite3r_jax.errors import InputError


@dataclass(frozen=True)
class Wrapper(AttentionStrategy):
    """A strategy with a setting of every type."""

    name: ClassVar[str] = "wrapper"
    runtime: ClassVar[frozenset[str]] = frozenset({"axis"})
    presets: ClassVar[dict[str, Preset]] = {"wrapped_sla": Preset("global", {"inner": SLA()})}

    ratio: float = 0.5
    depth: int | None = None
    flag: bool = False
    word: str = "plain"
    kind: Literal["one", "two"] = "one"
    sizes: tuple[int, ...] = (1, 2)
    inner: AttentionStrategy = Dense()  # noqa: RUF009  (frozen)
    axis: str | None = None


FULL = Wrapper(0.25, 3, True, "a, b=(c]", "two", (), Wrapper(inner=SLA(keep=0.2)), "x")


@pytest.fixture
def wrapper():
    yield register(Wrapper)
    unregister("wrapper")


def test_settings_of_every_type_there_and_back(wrapper):
    for spec in (Wrapper(), FULL, replace(FULL, axis=None), replace(FULL, sizes=(7,))):
        here = Plan((Rule("global", spec, (1, 3)),))
        assert parse_plan(plan_name(here)) == here
        model = plan_from_json(plan_to_json(here))
        assert model.at("global", 3) == replace(spec, axis=None)


def test_names_of_plans_come_with_a_strategy(wrapper):
    assert {"wrapper", "wrapper_global", "wrapper_frame", "wrapped_sla"} <= {*plan_names()}
    assert plan("wrapper_frame", ratio=1).at("frame", 0) == Wrapper(ratio=1.0)
    assert plan("wrapped_sla").at("global", 5) == Wrapper(inner=SLA())
    text = "wrapper_frame(sizes=[3,4],inner=sla(keep=0.2,block=8))"
    assert parse_plan(text).at("frame", 0) == Wrapper(sizes=(3, 4), inner=SLA(keep=0.2, block=8))
    assert plan_name(parse_plan(text)) == text


@pytest.mark.parametrize(
    "settings,message",
    [
        ("inner=slaa", "attention strategy 'slaa' is not known; did you mean 'sla'"),
        ("inner=sla(kep=1)", "setting of sla 'kep' is not known; did you mean 'keep'"),
        ("inner=sla(keep=2)", "keep must be in"),
        ("sizes=3", r"wrapper.sizes: expected a list, each a whole number, got '3'"),
        ("sizes=[3,x]", "wrapper.sizes: expected a whole number, got 'x'"),
        ("depth=all", "wrapper.depth: expected a whole number or none, got 'all'"),
        ("kind=too", "wrapper.kind: expected one of one, two, got 'too'; did you mean 'two'"),
    ],
)
def test_bad_settings(wrapper, settings, message):
    with pytest.raises(InputError, match=message):
        parse_plan(f"wrapper_global({settings})")


def test_a_name_is_taken_once(wrapper):
    with pytest.raises(InputError, match=r"the name 'wrapper' is taken by .*Wrapper; choose anot"):
        register(Wrapper)

    @dataclass(frozen=True)
    class Second(AttentionStrategy):
        name: ClassVar[str] = "second"
        presets: ClassVar[dict[str, Preset]] = {"sla_paper": Preset()}

    with pytest.raises(InputError, match=r"'second': the name 'sla_paper' is taken by .*SLA; ch"):
        register(Second)
    assert "second" not in strategies()


def test_a_class_that_is_no_strategy():
    with pytest.raises(InputError, match="expected a `name`"):
        register(AttentionStrategy)

    class Bare(AttentionStrategy):
        name: ClassVar[str] = "bare"

    with pytest.raises(InputError, match="'bare': expected a frozen dataclass"):
        register(Bare)

    @dataclass(frozen=True)
    class Open(AttentionStrategy):
        name: ClassVar[str] = "open"
        width: int

    with pytest.raises(InputError, match="'open': setting 'width' has no default"):
        register(Open)


def test_what_is_not_registered_has_no_form_in_files():
    with pytest.raises(InputError, match="Wrapper: not registered"):
        plan_to_json(Plan(default=Wrapper()))
    with pytest.raises(InputError, match=r"Wrapper.*not registered"):
        plan_name(Plan(default=Wrapper()))
    with pytest.raises(InputError, match="'wraper' is not known"):
        strategy("wraper")
