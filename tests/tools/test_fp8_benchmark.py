"""The benchmarks of float8 products: counts in a program; the program for a GPU on a CPU."""

import re

import pytest

from lite3r_jax.kernels.fp8 import check
from tools.benchmark import fp8_block, fp8_gpu

PROGRAM = """HloModule jit_f

%fused (p: f32[4,8]) -> bf16[4,8] {
  %p = f32[4,8]{1,0} parameter(0)
  ROOT %c = bf16[4,8]{1,0} convert(%p)
}

ENTRY %main (x: f32[4,8], w: f8e4m3fn[8,8]) -> bf16[4,8] {
  %x.1 = f32[4,8]{1,0} parameter(0), metadata={op_name="x"}
  %w.1 = f8e4m3fn[8,8]{1,0} parameter(1)
  %codes = (f8e4m3fn[4,8]{1,0}, f32[4]{0}) custom-call(%x.1), custom_call_target="quantize"
  %codes.0 = f8e4m3fn[4,8]{1,0} get-tuple-element(%codes), index=0
  %one = f32[] constant(1)
  %product = (f32[4,8]{1,0}, s8[4194304]{0}) custom-call(%codes.0, %w.1, %one, %one), \
custom_call_target="__cublas$lt$matmul$f8", backend_config={"a":"(%b), "}
  %product.0 = f32[4,8]{1,0} get-tuple-element(%product), index=0
  %seen = f32[4,8]{1,0} bitcast(%product.0)
  ROOT %fusion = bf16[4,8]{1,0} fusion(%seen), kind=kLoop, calls=%fused
}
"""


def test_counts_kernels_and_their_bytes():
    found = fp8_block.kernels(PROGRAM)
    assert [(k.name, k.read, k.written) for k in found] == [
        ("quantize", 128, 32 + 16),
        # A constant counts once, and the workspace not at all.
        ("__cublas$lt$matmul$f8", 32 + 64 + 4, 128),
        ("fusion", 128, 64),
    ]


def test_the_gpu_program_names_what_it_had_no_time_for(capsys):
    args = ["--implementation", "xla", "--views", "1", "--cases", "0", "--seconds", "0"]
    assert fp8_gpu.main(args) == 1
    printed = capsys.readouterr().out
    assert printed.count("| no time |") == 10
    assert "0 checks failed, 10 measurements are missing" in printed


@pytest.mark.slow
def test_the_gpu_program_proves_and_measures(capsys):
    args = ["--implementation", "xla", "--views", "1", "--grid", "1", "2", "--cases", "2"]
    assert fp8_gpu.main(args) == 0
    printed = capsys.readouterr().out
    assert len(re.findall(r"bfloat16 \| xla \|.* True \| fine \|", printed)) == 2
    for what in ("qkv", "proj", "fc1", "fc2", "block"):
        for weights in ("bfloat16", "xla"):
            assert re.search(rf"\| 1 \| {what} \| {weights} \| \d+\.\d+ \|", printed)
    assert "0 checks failed, 0 measurements are missing" in printed


@pytest.mark.slow
def test_a_wrong_product_fails_and_what_is_for_a_gpu_is_refused(monkeypatch, capsys):
    real = check.linear
    monkeypatch.setattr(check, "linear", lambda *args, **kinds: 1.02 * real(*args, **kinds))
    assert fp8_gpu.prove(["xla", "mosaic"], fp8_gpu.CASES[:1]) == 1
    printed = capsys.readouterr().out
    assert "FAILED" in printed and "refused: fp8 'mosaic' cannot run this" in printed
