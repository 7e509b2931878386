"""Dense attention on TPUs: which implementation, its blocks and its lowering."""

import math
import re

import jax
import jax.numpy as jnp
import pytest

from lite3r_jax.attention.dense import Dense
from lite3r_jax.kernels.dense.api import OPERATOR, DenseCall
from lite3r_jax.kernels.dense.flash_tpu import block, flash_tpu
from tests.kernels.devices import described_gpu, described_tpu, proven_tpu

USUAL = DenseCall(64, jnp.bfloat16)


@pytest.mark.parametrize("tokens", [1, 128, 130, 512, 513, 1_374, 10_992, 137_400])
def test_blocks_cover_all_tokens_with_less_than_a_register_of_each_to_spare(tokens):
    count, size = block(tokens)
    assert size % 128 == 0 and size <= 512
    assert 0 <= count * size - tokens < 128 * count
    assert count == 1 or tokens > 512 * (count - 1)


def test_is_chosen_on_a_tpu_for_bfloat16_where_it_was_proven():
    with proven_tpu():
        assert OPERATOR.choose("auto", USUAL) == "tpu"
        assert Dense().describe(jnp.bfloat16, 64) == "dense (tpu)"
        assert Dense().describe(jnp.float32, 64) == "dense (blocked)", "the camera head's"
        for call, message in [
            (DenseCall(64, jnp.float32), "it takes bfloat16 and this is float32"),
            (DenseCall(80, jnp.bfloat16), "head dim 80 is not 64 or 128"),
        ]:
            with pytest.raises(ValueError, match=f"dense 'tpu' cannot run this: {message}"):
                OPERATOR.choose("tpu", call)
    with described_tpu():
        assert OPERATOR.choose("auto", USUAL) == "blocked", "it was proven on none"
    with described_gpu(), pytest.raises(ValueError, match="for TPUs and this is NVIDIA H200"):
        OPERATOR.choose("tpu", USUAL)


def test_is_refused_where_xla_splits_arrays_over_devices():
    device = jax.sharding.AbstractDevice("TPU v5 lite", num_cores=1, platform="tpu")
    mesh = jax.sharding.AbstractMesh((4,), ("data",), abstract_device=device)
    with (
        proven_tpu(),
        jax.sharding.use_abstract_mesh(mesh),
        pytest.raises(ValueError, match="XLA would have to split it over data=4 of the mesh"),
    ):
        OPERATOR.choose("tpu", USUAL)


@pytest.mark.parametrize("tokens", [1_374, 137_400])
def test_lowers_to_a_tpu_at_the_size_of(tokens):
    """A view and a hundred: one kernel for the value and two for the gradients, no T x T array."""
    x = jax.ShapeDtypeStruct((1, tokens, 16, 64), jnp.bfloat16)

    def both(q, k, v, up):
        o, pull = jax.vjp(flash_tpu, q, k, v)
        return o, *pull(up)

    with described_tpu():
        text = jax.jit(both).trace(x, x, x, x).lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("tpu_custom_call") == 3
    # The gradient has a number of each query on as many lanes as a block has keys.
    assert largest(text) <= 16 * 512 * (tokens + 512)


def largest(text):
    """Elements of the largest array in a program."""
    shapes = re.findall(r"tensor<((?:\d+x)+)[a-z]", text)
    return max(math.prod(int(n) for n in shape.split("x")[:-1]) for shape in shapes)
