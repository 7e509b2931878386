"""Settings to ConfigDict and back, strictly."""

import re
from dataclasses import dataclass, field
from typing import Literal

import pytest

from lite3r_jax.errors import InputError
from lite3r_jax.experiment import (
    Experiment,
    changed,
    from_config,
    require,
    setting_types,
    to_config,
)
from lite3r_jax.setting_bounds import BOUNDS, bounds_of


@dataclass(frozen=True)
class Inner:
    rate: float = 1.5
    kind: Literal["a", "b"] = "a"


@dataclass(frozen=True)
class Outer:
    name: str = "x"
    count: int = 3
    on: bool = False
    inner: Inner = field(default_factory=Inner)


def test_a_config_has_the_keys_of_the_experiment_and_comes_back():
    config = to_config(Experiment(input="photos"))
    assert (config.images.mode, config.images.size) == ("auto", 0)
    assert from_config(config) == Experiment(input="photos")


def test_flags_change_single_settings():
    config = to_config(Outer())
    config.inner.rate = 2.0
    config.inner.kind = "b"
    assert from_config(config, Outer) == Outer(inner=Inner(2.0, "b"))


def test_absent_settings_keep_their_defaults_and_integers_serve_as_floats():
    got = from_config({"inner": {"rate": 2}}, Outer)
    assert got == Outer(inner=Inner(2.0))
    assert type(got.inner.rate) is float


@pytest.mark.parametrize(
    "config,message",
    [
        ({"nam": "x"}, r"config: unknown settings nam; expected some of count, inner, name, on"),
        ({"inner": {"x": 1}}, r"config.inner: unknown settings x; expected some of kind, rate"),
        ({"inner": {"kind": "c"}}, r"config.inner.kind: expected one of a, b, got 'c'"),
        ({"inner": 3}, r"config.inner: expected a group of settings, got 3"),
        ({"count": 1.0}, r"config.count: expected int, got 1.0"),
        ({"count": True}, r"config.count: expected int, got True"),
        ({"on": 1}, r"config.on: expected bool, got 1"),
        ({"name": None}, r"config.name: expected str, got None"),
        ({"inner": {"rate": "fast"}}, r"config.inner.rate: expected float, got 'fast'"),
    ],
)
def test_wrong_settings_are_named(config, message):
    with pytest.raises(InputError, match=message):
        from_config(config, Outer)


NUMBERS = {name: kind for name, kind in setting_types().items() if kind in (int, float)}


def test_every_number_has_bounds_and_every_bound_a_number():
    assert [name for name in NUMBERS if bounds_of(name) is None] == []
    patterns = [pattern for pattern, *_ in BOUNDS]
    used = {next(p for p in patterns if re.fullmatch(p, name)) for name in NUMBERS}
    assert [pattern for pattern in patterns if pattern not in used] == []
    changed(Experiment(), {})  # the defaults are within them


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_out_of_bounds_are_refused_by_name(name):
    least = bounds_of(name)[0]
    texts = [str(least - 1), "1" + "0" * 400, "-1" + "0" * 400]
    if NUMBERS[name] is float:
        texts += ["nan", "inf", "-inf", "1e400"]
    for text in texts:
        with pytest.raises(InputError, match=rf"^config\.{name}: expected ") as caught:
            changed(Experiment(), {name: text})
        assert len(str(caught.value)) < 150


def test_zero_bytes_are_refused():
    with pytest.raises(InputError, match=r"config\.output: expected a text without zero bytes"):
        changed(Experiment(), {"output": "a\0b"})


def test_settings_that_are_needed_are_named():
    require(Experiment(input="a", output="b"), "input", "output")
    with pytest.raises(InputError, match=r"config.weights: not set; add --config.weights="):
        require(Experiment(input="a"), "input", "weights", "output")
