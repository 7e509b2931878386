"""What the TPU kernels move and multiply, counted by hand at a size that allows it."""

import numpy as np
import pytest

from lite3r_jax import InputError
from lite3r_jax.kernels.sla.cases import Case
from lite3r_jax.kernels.sla.tiles import Product, TpuTiles
from tools.benchmark import tpu_kernels
from tools.benchmark.tpu_kernels import count, products

# Two query blocks of 64 and four key blocks, two to a program.
CASE = Case("by hand", 128, 256, keep=0.5)
TILES = TpuTiles(key_blocks=2, query_blocks=2, scalars=1000)
PAIR = 64 * 128 * 2  # [v | k] of a block, or [do | q], in bytes of bfloat16
STATS = 2 * 64 * 4


def test_a_full_table_is_what_its_kernels_move_and_multiply():
    ids = np.asarray([[[0, 1], [1, 3]]], np.int32)
    forward, query, key = count(CASE, ids, "bfloat16", TILES)
    assert forward.kernel == "sla_forward" and key.kernel == "sla_key_gradient"
    assert (forward.programs, forward.grid, forward.listed, forward.computed) == (2, 2, 4, 4)
    # Both entries change from the first program to the second: four key blocks, two query blocks.
    assert forward.read == 4 * PAIR + 2 * 64 * 128 * 2
    assert forward.written == 2 * 64 * (128 * 2 + 4)
    assert query.read == 4 * PAIR + 2 * (PAIR + STATS) and query.written == 2 * 64 * 128 * 2
    # Block 0 has one query block, 1 both, 2 none, 3 one: a step each, and what is left of six.
    assert (key.programs, key.grid) == (3, 6) and key.written == 4 * PAIR
    assert key.computed == 6 and key.listed == 4
    # A pair of blocks takes 2, 3 and 4 products of 64 x 64 x 64 multiplications.
    one = 2 * 64**3
    assert [w.needed for w in (forward, query, key)] == [4 * 2 * one, 4 * 3 * one, 4 * 4 * one]
    # The matrix unit takes 128 lanes for 64 channels.
    assert [w.products for w in (forward, query, key)] == [4 * 4 * one, 4 * 6 * one, 6 * 8 * one]


def test_what_is_not_listed_is_not_multiplied_and_what_stays_is_not_fetched():
    ids = np.asarray([[[0, 1], [0, 1]]], np.int32)
    forward, *_ = count(CASE, ids, "bfloat16", TILES)
    assert forward.read == 2 * PAIR + 2 * 64 * 128 * 2, "the second program has the same blocks"
    ids = np.asarray([[[0, 4], [4, 4]]], np.int32)
    forward, *_ = count(CASE, ids, "bfloat16", TILES)
    assert (forward.programs, forward.grid, forward.listed) == (1, 2, 1)
    assert forward.computed == 2, "a program multiplies its whole width"


def test_products_of_a_program_without_a_listed_block_are_left_out():
    case, ids = Case("half of a program", 64, 256, keep=1.0), np.asarray([[[0, 1, 4, 4]]], np.int32)
    tiles = TpuTiles(4, 2, 1000, forward=Product(128, 64), query_gradient=Product(256, 64))
    forward, query, _ = count(case, ids, "bfloat16", tiles)
    assert (forward.computed, query.computed) == (2, 4)
    one = 2 * 64**3
    assert (forward.products, query.products) == (2 * 4 * one, 4 * 6 * one)


def test_products_are_those_of_the_kernels_code():
    counts = products(CASE, "bfloat16", TILES)
    assert counts == {
        "sla_forward": 2 * 2 * 64 * 128 * 128,
        "sla_query_gradient": 3 * 2 * 64 * 128 * 128,
        "sla_key_gradient": 4 * 2 * 64 * 128 * 128,
    }


def test_the_program_prints_a_row_for_every_kernel(capsys):
    tpu_kernels.main(["--tiny", "--views", "2", "4", "--q-block", "64"])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| 2")]
    assert len(rows) == 3 and all("GFLOP" in row for row in rows)


def test_code_that_libtpu_wrote_is_counted(tmp_path):
    name = "-sla_forward.4-70-final_hlo-static-per-bundle-utilization.txt"
    head = "== CAPACTIY:\nMXU, XLU, VLOAD, VLOAD:FILL, VSTORE, VSTORE:SPILL\n4 3 3 3 1 1\n"
    (tmp_path / f"179{name}").write_text(
        head + "== UTILIZATION:\n2 0 1 1 0 0\n1 1 0 0 1 1\n0 0 0 0 0 0\n"
    )
    (tmp_path / f"180{name.replace('sla_forward', 'fusion')}").write_text("something else")
    assert tpu_kernels.dumped(tmp_path) == {"sla_forward": tpu_kernels.Compiled(3, 3, 1, 1)}
    (tmp_path / f"179{name}").write_text(head + "== UTILIZATION:\n2 0 1\n")
    with pytest.raises(InputError, match="expected numbers of units by bundle"):
        tpu_kernels.dumped(tmp_path)
