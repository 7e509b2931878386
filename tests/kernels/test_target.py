"""What is known of devices, and which kernels they refuse."""

import types
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from lite3r_jax.kernels import proofs, target
from lite3r_jax.kernels.block_map.api import OPERATOR as SELECTION
from lite3r_jax.kernels.block_map.api import SelectionCall
from lite3r_jax.kernels.dense.api import OPERATOR as DENSE
from lite3r_jax.kernels.dense.api import DenseCall
from lite3r_jax.kernels.fp8.fused import OPERATOR as FP8
from lite3r_jax.kernels.fp8.fused import Product
from lite3r_jax.kernels.registry import Operator
from lite3r_jax.kernels.sla.api import OPERATOR as SLA
from lite3r_jax.kernels.sla.limits import SlaCall
from lite3r_jax.kernels.sla.tiles import candidates, tiles
from lite3r_jax.kernels.target import Device, described
from lite3r_jax.kernels.window_attention.api import OPERATOR as WINDOW_ATTENTION
from lite3r_jax.kernels.window_attention.limits import WindowCall
from tests.kernels.devices import TPU, proven_gpu, proven_tpu

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
    device = target.device()
    assert device.compute_capability == wanted and not device.described
    assert device.driver == ("580.1" if wanted else None)
    if wanted is None:
        assert "that of Some GPU is not known" in (target.unfit_for_triton(device) or "")


def test_the_tpu_that_is_here_names_its_libtpu(monkeypatch):
    words = "PJRT C API\nTFRT TPU v5 lite\nBuilt on Mar 12 2026 14:51:11 (1741816271) cl/735981569"
    client = types.SimpleNamespace(platform_version=words)
    here = types.SimpleNamespace(device_kind="TPU v5 lite", client=client)
    monkeypatch.setattr(jax, "devices", lambda: [here])
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")

    def version(name):
        if name != "libtpu":
            raise target.importlib.metadata.PackageNotFoundError(name)
        return "0.0.42.1"

    monkeypatch.setattr(target.importlib.metadata, "version", version)
    assert target.device() == TPU and str(TPU) == "TPU v5 lite, libtpu 0.0.42.1"
    monkeypatch.setattr(target.importlib.metadata, "version", lambda name: version("no package"))
    assert target.device().driver == "Built on Mar 12 2026 14:51:11 (1741816271) cl/735981569"
    client.platform_version = "unknown"
    assert target.device().driver is None


USUAL = SlaCall("block", 64, jnp.bfloat16, 128, 64)
CALLS: tuple[tuple[Operator[Any], Any], ...] = (
    (SLA, USUAL),
    (SELECTION, SelectionCall(64, jnp.float32)),
    (FP8, Product(2748, 1024, 3072, jnp.bfloat16)),
    (DENSE, DenseCall(64, jnp.bfloat16)),
    (WINDOW_ATTENTION, WindowCall(64, 64, jnp.bfloat16)),
)
PLAIN = {
    "sla": "blocked", "block_map": "sorted", "fp8": "xla", "dense": "blocked",
    "window_attention": "blocked",
}  # fmt: skip
ON_TPUS = PLAIN | dict.fromkeys(("dense", "sla", "block_map"), "tpu")
ON_GPUS = PLAIN | dict.fromkeys(("sla", "block_map", "window_attention"), "triton")
FOR_GPUS, FOR_TPUS = {"triton", "mosaic", "cudnn"}, {"tpu"}


@pytest.mark.parametrize(
    "kind,expected,others",
    [
        ("TPU v5 lite", ON_TPUS, FOR_GPUS),
        ("TPU v5", ON_TPUS, FOR_GPUS),
        ("TPU v6 lite", ON_TPUS, FOR_GPUS),
        ("TPU v4", PLAIN, FOR_GPUS | FOR_TPUS),
        ("NVIDIA H200", ON_GPUS | {"fp8": "mosaic"}, FOR_TPUS),
        ("NVIDIA A100-SXM4-80GB", ON_GPUS, FOR_TPUS),
        ("cpu", PLAIN, FOR_GPUS | FOR_TPUS),
    ],
)
def test_what_is_for_other_devices_is_never_chosen_and_refused_by_name(kind, expected, others):
    """Even where every kernel counts as proven."""
    of_kind = {"TPU": proven_tpu, "NVI": proven_gpu, "cpu": lambda kind: proofs.assumed()}
    with of_kind[kind[:3]](kind):
        assert {o.name: o.choose("auto", call) for o, call in CALLS} == expected
        for operator, call in CALLS:
            for name in others & set(operator.names):
                with pytest.raises(ValueError, match=rf"{name}' cannot run this: .*is {kind}"):
                    operator.choose(name, call)


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
