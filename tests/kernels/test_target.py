"""What is known of devices, and which kernels they refuse."""

import types

import jax
import jax.numpy as jnp
import pytest

from lite3r_jax.kernels import target
from lite3r_jax.kernels.block_map.api import OPERATOR as SELECTION
from lite3r_jax.kernels.block_map.api import SelectionCall
from lite3r_jax.kernels.dense.api import OPERATOR as DENSE
from lite3r_jax.kernels.dense.api import DenseCall
from lite3r_jax.kernels.fp8.fused import OPERATOR as FP8
from lite3r_jax.kernels.fp8.fused import Product
from lite3r_jax.kernels.sla.api import OPERATOR as SLA
from lite3r_jax.kernels.sla.limits import SlaCall
from lite3r_jax.kernels.sla.tiles import candidates, tiles
from lite3r_jax.kernels.target import Device, described
from tests.kernels.devices import proven_gpu

KIB = 1024


@pytest.mark.parametrize(
    "kind,capability,shared",
    [
        ("Tesla V100-SXM2-16GB", 7.0, 96),
        ("Tesla T4", 7.5, 64),
        ("NVIDIA A100-SXM4-80GB", 8.0, 163),
        ("NVIDIA A10G", 8.6, 99),
        ("NVIDIA RTX A6000", 8.6, 99),
        ("NVIDIA GeForce RTX 3090", 8.6, 99),
        ("NVIDIA GeForce RTX 4090", 8.9, 99),
        ("NVIDIA RTX 6000 Ada Generation", 8.9, 99),
        ("NVIDIA L4", 8.9, 99),
        ("NVIDIA L40S", 8.9, 99),
        ("NVIDIA H100 80GB HBM3", 9.0, 227),
        ("NVIDIA GH200 480GB", 9.0, 227),
        ("NVIDIA H200", 9.0, 227),
        ("NVIDIA B200", 10.0, 227),
        ("NVIDIA GB200", 10.0, 227),
        ("NVIDIA B300 SXM6 AC", 10.3, 227),
        ("NVIDIA GeForce RTX 5090", 12.0, 99),
        ("Radeon", None, 99),
    ],
)
def test_a_described_gpu_is_what_its_name_says(kind, capability, shared):
    device = described("gpu", kind)
    assert (device.compute_capability, device.shared_memory) == (capability, shared * KIB)
    assert device.is_hopper == (capability == 9.0) and device.driver is None


@pytest.mark.parametrize(
    "of_jax,wanted", [("9.0", 9.0), ("12.1", 12.1), ("gfx942", None), (None, None)]
)
def test_the_gpu_that_is_here_is_asked(monkeypatch, of_jax, wanted):
    """An AMD GPU has a compute capability that is no number, and none of NVIDIA's."""
    here = types.SimpleNamespace(device_kind="Some GPU", compute_capability=of_jax)
    if of_jax is None:
        del here.compute_capability
    monkeypatch.setattr(jax, "devices", lambda: [here])
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(target, "driver_version", lambda: "580.1")
    found = target.device()
    assert found.compute_capability == wanted and not found.described
    assert found.driver == ("580.1" if wanted else None)
    if wanted is None:
        assert "that of Some GPU is not known" in (target.unfit_for_triton(found) or "")


USUAL = SlaCall("block", 64, jnp.bfloat16, 128, 64)


def test_a_t4_refuses_every_kernel_with_a_sentence_and_takes_plain_jax():
    for operator, call, plain in [
        (SLA, USUAL, "blocked"),
        (SELECTION, SelectionCall(64, jnp.float32), "sorted"),
        (FP8, Product(2748, 1024, 3072, jnp.bfloat16), "xla"),
        (DENSE, DenseCall(64, jnp.float16), "blocked"),
    ]:
        with proven_gpu("Tesla T4"):
            assert operator.choose("auto", call) == plain
            if "triton" in operator.names:
                with pytest.raises(ValueError) as error:
                    operator.choose("triton", call)
                sentence = "for compute capability 8.0 or more and Tesla T4 has 7.5"
                assert sentence in str(error.value)
    real = Device("gpu", "Tesla T4", 7.5)
    with pytest.raises(ValueError, match=r"compute capability 8\.0 or more and Tesla T4 has 7\.5"):
        DENSE.choose("cudnn", DenseCall(64, jnp.float16), real)
    newer = Device("gpu", "NVIDIA A100-SXM4-80GB", 8.0)
    assert DENSE.choose("auto", DenseCall(64, jnp.float16), newer) == "cudnn"


@pytest.mark.parametrize("q_block", [64, 128])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_smaller_tiles_where_there_is_less_shared_memory(dtype, head_dim, q_block):
    every = candidates(head_dim, dtype, q_block)
    sizes = [each.shared_memory for each in every]
    assert sizes == sorted(sizes, reverse=True)
    for each in every:
        assert q_block % min(each.rows, q_block) == 0 and q_block % each.slice == 0
    assert tiles(head_dim, dtype, q_block, 227 * KIB) == every[0], "an H200 has room for the best"
    call = SlaCall("block", head_dim, jnp.dtype(dtype), q_block, 64)
    kinds = "A100-SXM4-80GB", "GeForce RTX 4090", "GeForce RTX 5090", "B200"
    for kind in (f"NVIDIA {name}" for name in kinds):
        with proven_gpu(kind):
            assert SLA.choose("auto", call) == "triton"
            chosen = tiles(head_dim, dtype, q_block, target.device().shared_memory)
            assert chosen.shared_memory <= target.device().shared_memory


def test_what_no_tiles_fit_into_is_refused_with_both_sizes():
    small = Device("gpu", "NVIDIA Small", 7.5)  # 64 KiB, were it not refused before
    from lite3r_jax.kernels.sla.tiles import too_little_shared_memory

    assert too_little_shared_memory(small, USUAL) == (
        "its kernels for bfloat16 and head dim 64 need 81 KiB of shared memory in a block and"
        " NVIDIA Small has 64"
    )
