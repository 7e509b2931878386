"""The TPU kernels: their lists of steps, their lowering, what they refuse."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lite3r_jax.kernels.block_map.table import BlockTable
from lite3r_jax.kernels.sla import pallas_tpu
from lite3r_jax.kernels.sla.api import OPERATOR
from lite3r_jax.kernels.sla.cases import vggt_global
from lite3r_jax.kernels.sla.limits import SlaCall
from lite3r_jax.kernels.sla.pallas_tpu import sla_tpu
from lite3r_jax.kernels.sla.tiles import TpuTiles
from tests.kernels.devices import described_gpu, described_tpu, proven_tpu
from tests.kernels.sla.test_triton import gradient, shapes

slow = pytest.mark.slow
USUAL = TpuTiles()


@pytest.mark.parametrize("columns,entries", [(7, 4), pytest.param(1, 2, marks=slow)])
def test_every_listed_pair_is_in_one_step_of_its_key_block(columns, entries):
    heads, count = 2, 9
    steps = -(-count * columns // entries) + columns
    work = jax.jit(lambda ids: pallas_tpu.key_steps(BlockTable(ids, columns), steps, entries))
    for seed, share in enumerate((0.0, 0.1, 0.5, 1.0)):
        listed = np.random.default_rng(seed).random((heads, count, columns)) < share
        ids = np.sort(np.where(listed, np.arange(columns), columns), axis=-1)
        query, key, start, number = (np.asarray(x) for x in work(ids[None].astype(np.int32)))
        visits = np.zeros((heads, columns, count), int)
        for h in range(heads):
            keys = key[h * steps : (h + 1) * steps]
            assert set(keys) == set(range(columns)) and (np.diff(keys) >= 0).all()
            for t in range(h * steps, (h + 1) * steps):
                assert 0 <= number[t] <= entries and start[t] + entries <= len(query)
                assert (query[start[t] : start[t] + entries] < count).all(), "a fetch is in bounds"
                np.add.at(visits[h, key[t]], query[start[t] : start[t] + number[t]], 1)
        np.testing.assert_array_equal(visits, listed.swapaxes(1, 2))


@pytest.mark.parametrize("views,head_dim", [(100, 64), pytest.param(2, 128, marks=slow)])
def test_lowers_to_a_tpu_at_the_size_of(views, head_dim):
    case = dataclasses.replace(vggt_global(views, 0.1, q_block=128), head_dim=head_dim)
    with described_tpu():
        text = (
            gradient(case, interpret=False, run=sla_tpu)
            .trace(*shapes(case, "bfloat16"))
            .lower(lowering_platforms=("tpu",))
            .as_text()
        )
    assert text.count("tpu_custom_call") == 3
    for name in ("sla_forward", "sla_query_gradient", "sla_key_gradient"):
        assert name in text


def test_scalar_memory_holds_what_one_call_has():
    for views in (2, 8, 32, 100, 300):
        case = vggt_global(views, 0.1, q_block=128)
        plan = pallas_tpu.Plan(USUAL, 16, *case.table_shape[2:], case.k_blocks, False)
        heads, count = plan.some_heads, plan.some_rows
        table = heads * count * plan.steps * plan.entries + 2 * (case.k_blocks + 1)
        listed = count * case.table_shape[3]
        steps = -(-listed // plan.query_entries) + case.k_blocks
        work = heads * (listed + plan.query_entries + 3 * steps)
        assert max(table, work) <= USUAL.scalars
        assert plan.parts == 1 or heads == 1


def test_a_gpu_form_is_not_chosen_on_a_tpu_nor_the_reverse():
    usual = SlaCall("block", 64, jnp.bfloat16, 128, 64)
    choose = OPERATOR.choose
    with proven_tpu():
        assert choose("auto", usual) == choose("tpu", usual) == "tpu"
        assert choose("auto", dataclasses.replace(usual, dtype=jnp.float16)) == "blocked"
        for name in ("triton", "mosaic"):
            refused = r"for (NVIDIA|Hopper) GPUs.* and this is TPU v5 lite; .*blocked, tpu can"
            with pytest.raises(ValueError, match=refused):
                choose(name, usual)
        for other, message in [
            ({"dtype": jnp.float16}, "float16 is not one of bfloat16, float32"),
            ({"head_dim": 80}, "head dim 80 is not one of"),
            ({"k_block": 128}, "key blocks of 128"),
        ]:
            with pytest.raises(ValueError, match=f"'tpu' cannot run this: .*{message}"):
                choose("tpu", dataclasses.replace(usual, **other))
    with described_tpu():
        assert choose("auto", usual) == "blocked", "it was proven on none"
    with (
        described_tpu("TPU v3"),
        pytest.raises(ValueError, match="v6e or later and this is TPU v3"),
    ):
        choose("tpu", usual)
    with described_gpu(), pytest.raises(ValueError, match="for TPUs and this is NVIDIA H200"):
        choose("tpu", usual)
    if jax.default_backend() == "cpu":
        with pytest.raises(ValueError, match="for TPUs and this is cpu; reference, blocked can"):
            choose("tpu", usual)
