"""Path selectors, and models taken apart and put together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lite3r_jax.errors import InputError
from lite3r_jax.training.parameters import digest, size, split
from tests.training.toy import Toy


def test_a_selector_trains_what_it_names_and_nothing_else():
    layout, trained, frozen = split(Toy(), ("proj_lin",))
    assert set(trained) == {"proj_lin/bias", "proj_lin/kernel"}
    assert set(frozen) == {"blocks/bias", "blocks/kernel", "scale"}
    assert size(trained) == 24 * 8 + 8
    assert set(split(Toy(), ("proj_lin/kernel", "^scale$"))[1]) == {"proj_lin/kernel", "scale"}
    assert set(layout.variables) == set(trained) | set(frozen)


def test_parts_are_the_arrays_of_the_model_and_make_it_again():
    model = Toy()
    layout, trained, frozen = split(model, ("blocks",))
    assert frozen["scale"] is model.scale.get_value()
    x = jnp.ones((1, 2, 24))
    again = layout.merge(trained, frozen)
    np.testing.assert_array_equal(again(x), model(x))
    moved = layout.merge({k: 2 * v for k, v in trained.items()}, frozen)
    assert not np.array_equal(moved(x), model(x))


def test_state_that_is_no_parameter_is_never_trained():
    class Counted(Toy):
        def __init__(self):
            super().__init__()
            self.count = nnx.Variable(jnp.zeros(()))

    _, trained, frozen = split(Counted())
    assert "count" in frozen and "count" not in trained


def test_abstract_models_are_split_without_memory():
    _, trained, _ = split(nnx.eval_shape(Toy))
    assert all(isinstance(x, jax.ShapeDtypeStruct) for x in trained.values())
    assert size(trained) == 3 * (24 * 24 + 24) + 24 * 8 + 8 + 24


@pytest.mark.parametrize(
    "trainable,count,message",
    [
        (("proj_lin",), 7, r"trainable: proj_lin is 200 parameters, expected 7; correct"),
        (("proj_lin", "lora"), None, r"trainable: 'lora' is in the path of no parameter; paths"),
        (("(",), None, r"trainable: '\(' is no regular expression"),
    ],
)
def test_selectors_that_do_not_fit_are_refused(trainable, count, message):
    with pytest.raises(InputError, match=message):
        split(Toy(), trainable, count)


def test_digest_is_of_names_dtypes_shapes_and_values():
    base = {"a": jnp.arange(6.0), "b": jnp.ones(2)}
    others = [
        {"a": jnp.arange(6.0).at[3].set(3.0000002), "b": jnp.ones(2)},
        {"a": jnp.arange(6.0).reshape(2, 3), "b": jnp.ones(2)},
        {"a": jnp.arange(6.0).astype(jnp.bfloat16), "b": jnp.ones(2)},
        {"c": jnp.arange(6.0), "b": jnp.ones(2)},
        {"a": jnp.arange(6.0)},
    ]
    assert digest(base) == digest(dict(reversed(base.items())))
    assert len({digest(x) for x in [base, *others]}) == 6
