"""Triton kernels of SLA's softmax part, for `sla.jax_triton`; they need the package triton.

The formulas are those of `flash_kernels` (FlashAttention, arXiv 2205.14135; SLA, arXiv 2509.24006,
Algorithms 1-2): logits in base 2, s = q k^T log2(e) / sqrt(D) + bias, and log-sum-exp in base 2.
q, k, v, do, o are [B, M * block, N, D], 0 where they are padding; `bias` [B, Mk * K_BLOCK] float32
is 0 for valid keys and `MASKED` for others; lse and delta are [B, N, Mq * Q_BLOCK] float32. The
grid is (blocks, N, B). Products take operands in the dtype of the inputs and add up in float32.

Counts of blocks are arguments of the launch, so that one compiled kernel serves every number of
views; N and D are fixed when it is compiled, so that rows of tokens are known to be aligned.
Offsets of tokens are 64-bit.
"""

import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]

from lite3r_jax.kernels import softmax
from lite3r_jax.kernels.jax_triton_language import dot, rounded

LOG2E = tl.constexpr(softmax.LOG2E)
LOWEST = tl.constexpr(softmax.LOWEST)


@triton.jit
def sla_forward(
    q,
    k,
    v,
    bias,
    ids,
    counts,
    q_blocks,
    k_blocks,
    width,
    o,
    lse,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    Q_BLOCK: tl.constexpr,
    K_BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    SCALE: tl.constexpr,
):
    """Writes the output and the log-sum-exp of ROWS queries.

    `width` is K, the entries of a row of the table.
    """
    i = tl.program_id(0)
    head = tl.program_id(1)
    sequence = tl.program_id(2)
    key = tl.arange(0, K_BLOCK)
    channel = tl.arange(0, D)
    tile, column = _places(i, head, sequence, q_blocks, HEADS, D, Q_BLOCK, ROWS)
    x = tl.load(q + tile)
    rows_of_table = (sequence * HEADS + head) * q_blocks
    row = rows_of_table + i // (Q_BLOCK // ROWS)
    count = tl.load(counts + row)
    listed = ids + row.to(tl.int64) * width
    first = sequence * k_blocks * K_BLOCK
    top = tl.full((ROWS,), LOWEST, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    acc = tl.zeros((ROWS, D), tl.float32)
    for step in range(0, count):
        at = first + tl.load(listed + step) * K_BLOCK
        block = _block(at, head, key, channel, HEADS, D)
        s = dot(x, tl.trans(tl.load(k + block))) * (LOG2E * SCALE)
        s += tl.load(bias + at + key)[None, :]
        new = tl.maximum(top, tl.max(s, 1))
        p = tl.exp2(s - new[:, None])
        shrink = tl.exp2(top - new)
        acc = acc * shrink[:, None] + dot(rounded(p, x.dtype), tl.load(v + block))
        total = total * shrink + tl.sum(p, 1)
        top = new
    total = tl.where(total > 0, total, 1.0)
    tl.store(o + tile, rounded(acc / total[:, None], o.dtype.element_ty))
    tl.store(lse + column, top + tl.log2(total))


@triton.jit
def sla_query_gradient(
    q,
    k,
    v,
    bias,
    ids,
    counts,
    do,
    o,
    lse,
    q_blocks,
    k_blocks,
    width,
    dq,
    delta,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    Q_BLOCK: tl.constexpr,
    K_BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    SCALE: tl.constexpr,
):
    """Writes the gradient of ROWS queries, and delta, the sums of do * o over channels."""
    i = tl.program_id(0)
    head = tl.program_id(1)
    sequence = tl.program_id(2)
    key = tl.arange(0, K_BLOCK)
    channel = tl.arange(0, D)
    tile, column = _places(i, head, sequence, q_blocks, HEADS, D, Q_BLOCK, ROWS)
    x = tl.load(q + tile)
    up = tl.load(do + tile)
    sums = tl.sum(up.to(tl.float32) * tl.load(o + tile).to(tl.float32), 1)
    tl.store(delta + column, sums)
    norm = tl.load(lse + column)
    rows_of_table = (sequence * HEADS + head) * q_blocks
    row = rows_of_table + i // (Q_BLOCK // ROWS)
    count = tl.load(counts + row)
    listed = ids + row.to(tl.int64) * width
    first = sequence * k_blocks * K_BLOCK
    acc = tl.zeros((ROWS, D), tl.float32)
    for step in range(0, count):
        at = first + tl.load(listed + step) * K_BLOCK
        block = _block(at, head, key, channel, HEADS, D)
        keys = tl.load(k + block)
        s = dot(x, tl.trans(keys)) * (LOG2E * SCALE) + tl.load(bias + at + key)[None, :]
        p = tl.exp2(s - norm[:, None])
        ds = p * (dot(up, tl.trans(tl.load(v + block))) - sums[:, None])
        acc += dot(rounded(ds, x.dtype), keys)
    tl.store(dq + tile, rounded(acc * SCALE, dq.dtype.element_ty))


@triton.jit
def sla_key_gradient(
    q,
    k,
    v,
    bias,
    rows,
    offsets,
    do,
    lse,
    delta,
    q_blocks,
    k_blocks,
    entries,
    dk,
    dv,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    Q_BLOCK: tl.constexpr,
    K_BLOCK: tl.constexpr,
    SIZE: tl.constexpr,
    SCALE: tl.constexpr,
):
    """Writes the gradients of one block of keys and values, from SIZE queries at a time.

    `rows` [B, N, entries] and `offsets` [B, N, Mk + 1] are the transposed table.
    """
    j = tl.program_id(0)
    head = tl.program_id(1)
    sequence = tl.program_id(2)
    key = tl.arange(0, K_BLOCK)
    query = tl.arange(0, SIZE)
    channel = tl.arange(0, D)
    SLICES: tl.constexpr = Q_BLOCK // SIZE
    at = (sequence * k_blocks + j) * K_BLOCK
    block = _block(at, head, key, channel, HEADS, D)
    keys = tl.load(k + block)
    values = tl.load(v + block)
    b = tl.load(bias + at + key)
    line = sequence * HEADS + head
    place = offsets + line * (k_blocks + 1) + j
    start = tl.load(place) * SLICES
    end = tl.load(place + 1) * SLICES
    listed = rows + line.to(tl.int64) * entries
    first = sequence * q_blocks * Q_BLOCK
    norms = lse + line.to(tl.int64) * q_blocks * Q_BLOCK
    sums = delta + line.to(tl.int64) * q_blocks * Q_BLOCK
    acc_k = tl.zeros((K_BLOCK, D), tl.float32)
    acc_v = tl.zeros((K_BLOCK, D), tl.float32)
    for step in range(start, end):
        row = tl.load(listed + step // SLICES) * Q_BLOCK + step % SLICES * SIZE
        tile = _block(first + row, head, query, channel, HEADS, D)
        x = tl.load(q + tile)
        up = tl.load(do + tile)
        s = dot(keys, tl.trans(x)) * (LOG2E * SCALE) + b[:, None]
        p = tl.exp2(s - tl.load(norms + row + query)[None, :])
        acc_v += dot(rounded(p, x.dtype), up)
        ds = p * (dot(values, tl.trans(up)) - tl.load(sums + row + query)[None, :])
        acc_k += dot(rounded(ds, x.dtype), x)
    tl.store(dk + block, rounded(acc_k * SCALE, dk.dtype.element_ty))
    tl.store(dv + block, rounded(acc_v, dv.dtype.element_ty))


@triton.jit
def _places(
    i,
    head,
    sequence,
    q_blocks,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    Q_BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Returns the offsets of program i's queries: in [B, T, N, D], and in [B, N, T]."""
    query = tl.arange(0, ROWS)
    at = sequence * q_blocks * Q_BLOCK + i * ROWS
    tile = _block(at, head, query, tl.arange(0, D), HEADS, D)
    line = (sequence * HEADS + head).to(tl.int64) * q_blocks * Q_BLOCK
    return tile, line + i * ROWS + query


@triton.jit
def _block(at, head, row, channel, HEADS: tl.constexpr, D: tl.constexpr):
    """Returns the offsets of tokens `at` + row of one head in [B * T, N, D]."""
    token = at.to(tl.int64) * (HEADS * D) + head * D
    return token + row[:, None] * (HEADS * D) + channel[None, :]
