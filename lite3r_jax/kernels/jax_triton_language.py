"""Functions that Triton kernels of several operators share; importing this needs triton.

Triton's interpreter multiplies the bits of bfloat16 numbers as if they were whole numbers, and cuts
digits off where a GPU rounds. These functions compute what a GPU computes.
"""

import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def dot(x, y):
    """Returns a matrix product, in full float32 for float32, where the default would be TF32."""
    if INTERPRETED:
        x = x.to(tl.float32)
        y = y.to(tl.float32)
    return tl.dot(x, y, input_precision="ieee")


@triton.jit
def rounded(x, dtype: tl.constexpr):
    """Rounds float32 to another dtype, to the nearest value, and ties to even."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.int32, bitcast=True)
        bits += 0x7FFF + ((bits >> 16) & 1)
        x = bits.to(tl.float32, bitcast=True)
    return x.to(dtype)
