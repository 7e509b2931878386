"""Plans, rules, layouts and runs."""

from dataclasses import dataclass

import pytest

from lite3r_jax.attention.dense import Dense
from lite3r_jax.attention.plan import Plan, Rule, runs
from lite3r_jax.attention.strategy import TokenLayout

SITES = {"patch": 24, "frame": 24, "global": 24, "camera": 4}


@dataclass(frozen=True)
class Other(Dense):
    """A second strategy."""


def test_layout_counts_tokens():
    layout = TokenLayout(views=3, special=5, grid=(28, 37), scope="global")
    assert (layout.tokens_per_view, layout.tokens) == (1041, 3123)


def test_first_matching_rule_wins():
    plan = Plan((Rule("global", Dense(q_block=1), (3,)), Rule("global", Other())))
    assert plan.at("global", 3) == Dense(q_block=1)
    assert plan.at("global", 4) == Other()
    assert plan.at("frame", 3) == Dense()


@pytest.mark.parametrize(
    "rule,named",
    [
        (Rule("global", Other(), (24,)), r"layers \[24\]"),
        (Rule("global", Other(), (-1, 3)), r"layers \[-1\]"),
        (Rule("frame", Other(), ()), "no layer"),
    ],
)
def test_a_rule_without_a_site_is_an_error(rule, named):
    of = f"is for {rule.role} attention, {named}, but those of this backbone are 0 to 23; a plan"
    with pytest.raises(ValueError, match=of):
        Plan((rule,)).check(SITES)
    with pytest.raises(ValueError, match=r"is for camera attention, and .* none .*frame: 2"):
        Plan((Rule("camera", Other()),)).check({"frame": 2})
    Plan((Rule("global", Other(), (0, 23)),)).check(SITES)


def test_runs_split_where_any_role_changes():
    a, b = Dense(), Other()
    got = runs((a, a, a, b), (a, b, b, b))
    assert [(r.start, r.stop, r.specs) for r in got] == [
        (0, 1, (a, a)),
        (1, 3, (a, b)),
        (3, 4, (b, b)),
    ]
