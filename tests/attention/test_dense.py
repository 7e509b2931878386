"""Softmax attention against float64, in value, gradient and memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lite3r_jax.attention.dense import Dense, dense_attention
from lite3r_jax.attention.sla import SLA
from lite3r_jax.attention.strategy import AttentionInputs, Layouts, TokenLayout
from lite3r_jax.kernels.dense import blocked
from lite3r_jax.kernels.dense.api import OPERATOR, DenseCall
from lite3r_jax.kernels.dense.reference import reference
from lite3r_jax.kernels.target import Device
from tests.kernels.devices import described_gpu

# (B, Tq, Tk, N, D, q_block, k_block): one tile; odd sizes; several query and key blocks, the last
# ones padded; one query; blocks larger than the sequence.
CASES = [
    (2, 8, 8, 2, 4, 8, 8),
    (1, 37, 37, 3, 8, 16, 64),
    (2, 50, 33, 2, 16, 16, 10),
    (1, 1, 29, 1, 64, 4, 7),
    (1, 29, 1, 2, 4, 8, 8),
    (1, 97, 101, 1, 64, 1000, 32),
]


def qkv(b, tq, tk, n, d, dtype=np.float32, scale=1.0):
    rng = np.random.default_rng(tq * 100 + tk)
    shapes = [(b, tq, n, d), (b, tk, n, d), (b, tk, n, d)]
    return [jnp.asarray(scale * rng.standard_normal(s), dtype) for s in shapes]


def exact(q, k, v):
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    s = np.einsum("bqnd,bknd->bnqk", q, k) / np.sqrt(q.shape[-1])
    p = np.exp(s - s.max(-1, keepdims=True))
    return np.einsum("bnqk,bknd->bqnd", p / p.sum(-1, keepdims=True), v)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=[pytest.mark.slow] if i in (0, 2, 3, 5) else [])
        for i, case in enumerate(CASES)
    ],
)
def test_blocked_equals_the_definition_in_value_and_gradient(case):
    *shape, q_block, k_block = case
    args = qkv(*shape)
    up = jnp.asarray(np.random.default_rng(0).standard_normal(args[0].shape), jnp.float32)

    def both(f):
        return jax.jit(lambda *a: (f(*a), jax.vjp(f, *a)[1](up)))(*args)

    got, gradients = both(lambda *a: dense_attention(*a, "blocked", q_block, k_block))
    _, wanted = both(reference)
    np.testing.assert_allclose(got, exact(*args), atol=2e-6)
    for a, b in zip(gradients, wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=[pytest.mark.slow] if i in (0, 1, 3, 4) else [])
        for i, case in enumerate(CASES)
    ],
)
def test_the_form_of_gpus_equals_the_definition_in_value_and_gradient(case):
    """All heads at a time, by tiles, which on a CPU nothing takes."""
    *shape, q_block, k_block = case
    args = qkv(*shape)
    up = jnp.asarray(np.random.default_rng(0).standard_normal(args[0].shape), jnp.float32)

    def both(f):
        return jax.jit(lambda *a: (f(*a), jax.vjp(f, *a)[1](up)))(*args)

    sizes = min(q_block, shape[1]), min(k_block, shape[2])
    got, gradients = both(lambda *a: blocked._side_by_side(*a, *sizes))
    _, wanted = both(reference)
    np.testing.assert_allclose(got, exact(*args), atol=2e-6)
    for a, b in zip(gradients, wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("heads", [1, 16, 128, 1600])
@pytest.mark.parametrize("tokens", [1, 1374, 10_992, 137_400, 1_374_000])
def test_tiles_of_gpus_are_bounded_and_few(heads, tokens):
    q_block, k_block = blocked._gpu_blocks(heads, tokens, tokens)
    assert 1 <= q_block <= tokens and 1 <= k_block <= tokens
    assert heads * q_block * k_block <= blocked._TILE or k_block == 1
    assert q_block >= min(tokens, 64), "or all keys would be read too often"


@pytest.mark.parametrize(
    "shape,loops",
    [
        ((1, 32, 16, 128), 0),
        ((1, 1374, 2, 64), 0),
        ((1, 10_992, 16, 64), 1),
        ((8, 10_992, 16, 64), 2),
    ],
)
def test_a_gpu_has_no_loop_over_heads(shape, loops):
    """One over queries where they are many, and one over keys where those are, too."""
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    with described_gpu():
        text = str(jax.make_jaxpr(lambda *x: dense_attention(*x))(x, x, x))
    assert text.count("scan[") == loops


@pytest.mark.parametrize("k_block", [16, 128])
def test_large_logits_do_not_overflow(k_block):
    args = qkv(1, 40, 40, 2, 16, scale=30.0)
    got = dense_attention(*args, "blocked", 16, k_block)
    np.testing.assert_allclose(got, exact(*args), atol=2e-3)


def test_bfloat16_is_as_good_as_the_definition_in_bfloat16():
    args = qkv(1, 64, 80, 2, 64, jnp.bfloat16)
    truth = exact(*args)
    errors = [
        np.abs(np.asarray(f(*args), np.float64) - truth).max()
        for f in (lambda *a: dense_attention(*a, "blocked", 16, 32), reference)
    ]
    assert errors[0] <= 1.5 * errors[1]
    assert errors[0] < 1e-2


@pytest.mark.parametrize("backward", [False, True])
def test_memory_grows_with_tokens_not_with_their_square(backward):
    def temporary(t):
        def f(q, k, v):
            return dense_attention(q, k, v, "blocked", 128, 256)

        def g(*a):
            return jax.grad(lambda *a: f(*a).sum(), (0, 1, 2))(*a)

        args = [jax.ShapeDtypeStruct((1, t, 2, 16), jnp.float32)] * 3
        compiled = jax.jit(g if backward else f).lower(*args).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    small, large = temporary(2048), temporary(16384)
    assert large < 8.5 * small
    assert large < 0.1 * 2 * 16384**2 * 4


def test_layout_is_tokens_then_heads():
    """A head must not see another one, a token must see all tokens."""
    q, k, v = qkv(1, 6, 6, 3, 4)
    core = Dense().build(heads=3, head_dim=4, param_dtype=jnp.float32, rngs=None)
    layouts = Layouts.both(TokenLayout(1, 0, (2, 3), "frame"))
    before = core(AttentionInputs(q, k, v, layouts))
    after = core(AttentionInputs(q, k, v.at[:, 4, 1].add(1.0), layouts))
    changed = np.abs(after - before).max(axis=(0, 3))
    assert (changed[:, 1] > 1e-4).all()
    assert (changed[:, [0, 2]] == 0).all()


def test_the_device_that_is_compiled_for_decides_and_not_the_one_that_is_there(monkeypatch):
    with described_gpu(), pytest.raises(ValueError, match="only described here"):
        Dense("cudnn").describe(jnp.bfloat16, 64)
    # beside a GPU, which this machine need not have
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert Dense().describe(jnp.bfloat16, 64) == "dense (cudnn)"
    assert Dense().describe(jnp.float32, 64) == "dense (blocked)"
    cpu = jax.sharding.AbstractDevice("cpu", num_cores=None, platform="cpu")
    on_cpu = jax.sharding.AbstractMesh((), (), abstract_device=cpu)
    with jax.sharding.use_abstract_mesh(on_cpu):
        assert Dense().describe(jnp.bfloat16, 64) == "dense (blocked)"
        assert SLA().describe(jnp.bfloat16, 64).endswith("(blocked)")  # by the same rule


@pytest.mark.parametrize(
    "kind,capability,head_dim,refusal",
    [
        ("NVIDIA H200", 9.0, 256, None),
        ("NVIDIA A100-SXM4-80GB", 8.0, 128, None),
        ("NVIDIA A100-SXM4-80GB", 8.0, 256, "head dim 256 is no multiple of 8 up to 128"),
        ("NVIDIA H200", 9.0, 20, "head dim 20 is no multiple of 8 up to 256"),
        ("Tesla T4", 7.5, 64, "Tesla T4 has 7.5"),
    ],
)
def test_cudnn_runs_where_jax_lowers_it(kind, capability, head_dim, refusal):
    call, gpu = DenseCall(head_dim, jnp.bfloat16), Device("gpu", kind, capability)
    assert OPERATOR.choose("auto", call, gpu) == ("blocked" if refusal else "cudnn")
    if refusal:
        with pytest.raises(ValueError, match=refusal):
            OPERATOR.choose("cudnn", call, gpu)


def test_explicit_choices_are_honoured_or_refused():
    args = qkv(1, 4, 4, 1, 4)
    with pytest.raises(
        ValueError,
        match=r"'cudnn' cannot run .*float32; reference, blocked can",
    ):
        dense_attention(*args, "cudnn")
    with pytest.raises(ValueError, match="unknown implementation"):
        dense_attention(*args, "flash")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="expected q, k, v"):
        dense_attention(args[0][0], *args[1:])
    with pytest.raises(ValueError, match="expected q, k, v"):
        dense_attention(args[0], args[1][:, :2], args[2])
