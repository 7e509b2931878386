"""The language of weight maps: complete both ways, or one line that says what is wrong."""

import numpy as np
import pytest

from lite3r_jax.errors import InputError
from lite3r_jax.name_map import (
    NameMap,
    Skip,
    SkipPart,
    TensorRule,
    Transform,
    forward,
    inverse,
    upstream_shape,
)

MAP = NameMap(
    fields={
        "stream": {"net.frame": "net/frame", "net.global": "net/global"},
        "affine": {"weight": "scale", "bias": "bias"},
    },
    rules=(
        TensorRule("{stream}.{i}.norm.{affine}", "{stream}/norm/{affine}", stack="i"),
        TensorRule("{stream}.{i}.fc.weight", "{stream}/fc/kernel", Transform.LINEAR, stack="i"),
        TensorRule("token", "token"),
    ),
    skips=(Skip("mask", "never read", "token", (1,)),),
)
TARGETS = {
    "net/frame/norm/scale": (3, 4),
    "net/frame/norm/bias": (3, 4),
    "net/frame/fc/kernel": (3, 4, 5),
    "net/global/fc/kernel": (2, 4, 5),
    "token": (1, 4),
}


def sources() -> dict[str, tuple[int, ...]]:
    shapes = {"token": (1, 4), "mask": (4,)}
    for i in range(3):
        shapes |= {
            f"net.frame.{i}.norm.weight": (4,),
            f"net.frame.{i}.norm.bias": (4,),
            f"net.frame.{i}.fc.weight": (5, 4),
        }
    return shapes | {f"net.global.{i}.fc.weight": (5, 4) for i in range(2)}


def refused(given: dict, targets: dict | None = None, names: NameMap = MAP) -> str:
    with pytest.raises(InputError) as error:
        names.match(given, TARGETS if targets is None else targets, "file.safetensors")
    message = str(error.value)
    assert message.startswith("file.safetensors: ") and "\n" not in message
    return message


def test_a_complete_checkpoint_fills_every_leaf_in_layer_order():
    given = dict(sorted(sources().items(), reverse=True))
    plan = MAP.match(given, TARGETS, "file")
    assert set(plan.leaves) == set(TARGETS)
    pairs = plan.leaves["net/frame/fc/kernel"]
    assert [pair.source for pair in pairs] == [f"net.frame.{i}.fc.weight" for i in range(3)]
    assert {pair.transform for pair in pairs} == {Transform.LINEAR}
    assert plan.skipped == {"mask": "never read"}


def test_the_way_back_gives_the_complete_state_dict():
    assert MAP.upstream_shapes(TARGETS) == sources()


def test_layers_beyond_nine_are_ordered_as_numbers():
    given = {f"net.global.{i}.fc.weight": (5, 4) for i in (10, 9, 2, 0, 1, 3, 8, 4, 6, 5, 7)}
    plan = MAP.match(given, {"net/global/fc/kernel": (11, 4, 5)}, "file")
    assert [pair.index for pair in plan.leaves["net/global/fc/kernel"]] == list(range(11))


def test_a_missing_layer_of_a_stack_is_named():
    given = sources()
    del given["net.frame.1.fc.weight"]
    assert "1 missing (net.frame.1.fc.weight)" in refused(given)


def test_a_missing_tensor_is_named():
    given = sources()
    del given["token"]
    assert "1 missing (token)" in refused(given)


def test_an_unknown_tensor_is_named():
    assert "1 not known here (net.frame.0.fc.extra)" in refused(
        sources() | {"net.frame.0.fc.extra": (1,)}
    )


def test_an_unknown_tensor_is_skipped_on_request_only():
    given = sources() | {"strange.a": (1,), "strange.b": (2,)}
    assert "left out with --ignore NAME" in refused(given)
    assert "--ignore" not in refused(sources() | {"token": (2, 4)})
    with pytest.raises(InputError, match=r"1 not known here \(strange.b\)"):
        MAP.match(given, TARGETS, "file", ["strange.a"])
    plan = MAP.match(given, TARGETS, "file", ["strange.a", "strange.b"])
    assert plan.skipped["strange.b"] == "not known here, left out on request"
    assert plan.leaves == MAP.match(sources(), TARGETS, "file").leaves


@pytest.mark.parametrize("name", ["token", "mask", "nowhere"])
def test_what_is_known_or_not_there_cannot_be_ignored(name):
    with pytest.raises(InputError, match=f"--ignore is for .* not known; remove {name}"):
        MAP.match(sources(), TARGETS, "file", [name])


@pytest.mark.parametrize("name", ["net.frame.3.fc.weight", "net.frame.01.fc.weight"])
def test_a_layer_too_many_or_misspelt_is_unknown(name):
    assert f"1 not known here ({name})" in refused(sources() | {name: (5, 4)})


def test_a_known_name_without_its_target_is_unknown():
    given = sources() | {"net.global.0.norm.weight": (4,)}
    assert "1 not known here (net.global.0.norm.weight)" in refused(given)


@pytest.mark.parametrize(
    "name, shape, want",
    [
        ("net.frame.2.fc.weight", (4, 5), [5, 4]),
        ("net.frame.2.fc.weight", (20,), [5, 4]),
        ("token", (4,), [1, 4]),
        ("mask", (1, 4), [4]),
    ],
)
def test_a_misshapen_tensor_is_named_with_both_shapes(name, shape, want):
    message = refused(sources() | {name: shape})
    assert f"1 of another shape ({name} {list(shape)} instead of {want})" in message
    assert "missing" not in message


def test_a_leaf_filled_twice_is_named():
    names = NameMap({}, (TensorRule("new", "leaf"), TensorRule("old", "leaf")))
    assert names.match({"old": (2,)}, {"leaf": (2,)}, "file").leaves["leaf"][0].source == "old"
    message = refused({"new": (2,), "old": (2,)}, {"leaf": (2,)}, names)
    assert "1 filled twice (leaf by new and old)" in message


def test_a_leaf_without_a_rule_is_named():
    message = refused(sources(), TARGETS | {"net/frame/fc/bias": (3, 5)})
    assert "1 without a rule (net/frame/fc/bias)" in message
    with pytest.raises(ValueError, match="no rule fills net/frame/fc/bias"):
        MAP.upstream_shapes(TARGETS | {"net/frame/fc/bias": (3, 5)})


def test_all_problems_come_in_one_line_with_counts():
    given = {f"strange.{i}": (1,) for i in range(30)} | {"token": (2, 4)}
    message = refused(given)
    assert "11 missing (" in message and "and 1 more)" in message
    assert "30 not known here (strange.0, " in message and "and 20 more)" in message
    assert "1 of another shape (token [2, 4] instead of [1, 4])" in message


def test_unprintable_names_stay_on_one_line():
    assert r"'a\nb'" in refused(sources() | {"a\nb": (1,)})


@pytest.mark.parametrize(
    "transform, upstream, here",
    [
        (Transform.IDENTITY, (2, 3), (2, 3)),
        (Transform.LINEAR, (2, 3), (3, 2)),
        (Transform.CONV, (2, 3, 4, 5), (4, 5, 3, 2)),
        (Transform.CONV1X1, (2, 3, 1, 1), (3, 2)),
        (Transform.DECONV, (2, 3, 4, 5), (2, 4, 5, 3)),
    ],
)
def test_transforms_and_their_inverses(transform, upstream, here):
    tensor = np.arange(np.prod(upstream), dtype=np.float32).reshape(upstream)
    moved = forward(transform, tensor)
    assert moved.shape == here
    assert upstream_shape(transform, here) == upstream
    np.testing.assert_array_equal(inverse(transform, moved), tensor)


def test_transforms_mean_what_they_say():
    tensor = np.random.default_rng(0).standard_normal((2, 3, 4, 5))
    o, i, y, x = 1, 2, 3, 4
    assert forward(Transform.CONV, tensor)[y, x, i, o] == tensor[o, i, y, x]
    assert forward(Transform.DECONV, tensor)[o, y, x, i] == tensor[o, i, y, x]
    assert forward(Transform.CONV1X1, tensor[..., :1, :1])[i, o] == tensor[o, i, 0, 0]
    assert forward(Transform.LINEAR, tensor[..., 0, 0])[i, o] == tensor[o, i, 0, 0]


@pytest.mark.parametrize(
    "fields, rule",
    [
        ({"a": {"x": "z", "y": "z"}}, TensorRule("{a}", "{a}")),
        ({}, TensorRule("{a}", "{a}")),
        ({"a": {"x": "y"}}, TensorRule("{a}", "fixed")),
        ({}, TensorRule("b.{i}", "b/{i}", stack="i")),
        ({}, TensorRule("b", "b", stack="i")),
    ],
)
def test_a_map_that_cannot_be_read_both_ways_is_refused(fields, rule):
    with pytest.raises(ValueError):
        NameMap(fields, (rule,))


# One list upstream, two stacks here: 0 and 1, then every other one of the rest.
SPLIT = NameMap(
    fields={},
    rules=(
        TensorRule("blocks.{i}.w", "early/w", stack="i", layers=range(2)),
        TensorRule("blocks.{i}.w", "even/w", stack="i", layers=range(2, 6, 2)),
        TensorRule("blocks.{i}.w", "odd/w", stack="i", layers=range(3, 6, 2)),
    ),
    skips=(Skip("again", "another name of blocks.0.w", "early/w", (1,), copy=True),),
    skip_parts=(SkipPart("extra", "not here"),),
)
STACKS = {"early/w": (2, 4), "even/w": (2, 4), "odd/w": (2, 4)}


def test_one_list_upstream_can_be_several_stacks_here():
    given = {f"blocks.{i}.w": (4,) for i in range(6)}
    plan = SPLIT.match(given, STACKS, "file")
    order = {target: [pair.source[7] for pair in pairs] for target, pairs in plan.leaves.items()}
    assert order == {"early/w": ["0", "1"], "even/w": ["2", "4"], "odd/w": ["3", "5"]}
    assert SPLIT.upstream_shapes(STACKS) == given
    del given["blocks.4.w"]
    assert "1 missing (blocks.4.w)" in refused(given, STACKS, SPLIT)
    given["blocks.6.w"] = (4,)
    assert "1 not known here (blocks.6.w)" in refused(given, STACKS, SPLIT)


def test_a_stack_of_another_depth_than_its_layers_has_no_rule():
    assert "without a rule (odd/w)" in refused({}, STACKS | {"odd/w": (3, 4)}, SPLIT)


def test_copies_and_skipped_parts_may_be_there_and_are_carried_along():
    given = {f"blocks.{i}.w": (4,) for i in range(6)}
    plan = SPLIT.match({**given, "again": (4,), "extra.head.w": (7, 8)}, STACKS, "file")
    assert plan.skipped == {"again": "another name of blocks.0.w", "extra.head.w": "not here"}
    assert "1 of another shape (again" in refused({**given, "again": (5,)}, STACKS, SPLIT)
    assert "1 not known here (extras.w)" in refused({**given, "extras.w": (4,)}, STACKS, SPLIT)
