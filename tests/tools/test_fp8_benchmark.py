"""The benchmark of float8 products: counts in a program."""

from tools.benchmark import fp8_block

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
    kernels = fp8_block.kernels(PROGRAM)
    assert [(k.name, k.read, k.written) for k in kernels] == [
        ("quantize", 128, 32 + 16),
        # A constant counts once, and the workspace not at all.
        ("__cublas$lt$matmul$f8", 32 + 64 + 4, 128),
        ("fusion", 128, 64),
    ]
