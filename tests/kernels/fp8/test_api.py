"""Products with float8 operands: values and gradients against float64, and what they keep."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, PartitionSpec

from lite3r_jax.kernels.fp8.api import fp8_dot_general, fp8_linear
from lite3r_jax.kernels.fp8.cases import ODD
from lite3r_jax.kernels.fp8.quantize import quantize
from lite3r_jax.kernels.fp8.reference import fake_quantize_reference, linear_reference

BOTH = {"weights": "e4m3", "activations": "e4m3", "scale": "row"}
OPTIONS = [
    BOTH,
    BOTH | {"activations": None},
    BOTH | {"weights": None},
    BOTH | {"scale": "tensor"},
    {"weights": "e5m2", "activations": "e4m3", "scale": "row"},
]


NAMES = ("weights", "activations", "gradients", "scale", "preferred_element_type")


def draw(case, seed=0, dtype="float32"):
    rng = np.random.default_rng(seed)
    tokens = np.exp2(rng.uniform(-6, 6, (*case.batch, 1)))
    x = rng.standard_normal((*case.batch, case.inputs)) * tokens
    w = rng.standard_normal((case.inputs, case.outputs)) * np.exp2(rng.uniform(-6, 6, case.outputs))
    return jnp.asarray(x, dtype), jnp.asarray(w, dtype)


@partial(jax.jit, static_argnames=NAMES)
def product(x, w, **options):
    return fp8_dot_general(x, w, (((x.ndim - 1,), (0,)), ((), ())), **options)


@partial(jax.jit, static_argnames=NAMES)
def stored(x, w, weights="e4m3", scale="row", **options):
    codes, s = quantize(w.T, weights, -1 if scale == "row" else None)
    return fp8_linear(x, codes, s[:, 0], scale=scale, **options)


def near(got, wanted, tolerance):
    wanted = np.asarray(wanted)
    np.testing.assert_allclose(
        np.asarray(got, np.float64), wanted, rtol=tolerance, atol=tolerance * np.abs(wanted).max()
    )


def test_product_is_that_of_the_dequantized_operands():
    problems = [(case, BOTH) for case in ODD] + [(ODD[1], options) for options in OPTIONS[1:]]
    inputs = [draw(case) for case, _ in problems]

    @jax.jit
    def every(inputs):
        return [
            (
                product(x, w, **options),
                stored(x, w, **options) if options["weights"] else product(x, w, **options),
            )
            for (x, w), (_, options) in zip(inputs, problems, strict=True)
        ]

    for (case, options), (x, w), got in zip(problems, inputs, every(inputs), strict=True):
        wanted = linear_reference(np.asarray(x), np.asarray(w), **options)
        for y in got:
            assert y.shape == (*case.batch, case.outputs) and y.dtype == x.dtype
            near(y, wanted, 1e-6)


def test_bfloat16_is_rounded_once_at_the_end():
    x, w = draw(ODD[3], dtype="bfloat16")
    wanted = linear_reference(np.asarray(x), np.asarray(w), **BOTH)
    for got in (product(x, w), stored(x, w)):
        assert got.dtype == jnp.bfloat16
        error = np.abs(np.asarray(got, np.float64) - wanted)
        assert (error <= 2.0**-8 * np.abs(wanted) + 1e-6).all()
    near(product(x, w, preferred_element_type=jnp.float32), wanted, 1e-6)


@pytest.mark.slow
def test_weights_may_be_finer_than_activations():
    x, w = draw(ODD[1])
    x = x.astype(jnp.bfloat16)
    wanted = linear_reference(np.asarray(x), np.asarray(w), **BOTH)
    near(product(x, w, preferred_element_type=jnp.float32), wanted, 1e-6)
    dx, dw = jax.grad(lambda x, w: product(x, w).astype(jnp.float32).sum(), (0, 1))(x, w)
    assert dx.dtype == jnp.bfloat16 and dw.dtype == jnp.float32


def test_gradient_is_that_of_the_surrogate():
    x, w = draw(ODD[1])
    dy = np.random.default_rng(2).standard_normal((2, 7, 5)).astype(np.float32)
    settings = [(options, None) for options in OPTIONS[:4]]
    settings += [(BOTH, "e5m2"), (OPTIONS[3], "e5m2")]

    @jax.jit
    def every(x, w, dy):
        derivatives = []
        for options, gradients in settings:
            use = options | {"gradients": gradients}
            derivatives.append(jax.vjp(lambda x, w, use=use: product(x, w, **use), x, w)[1](dy))
            if options["weights"]:
                derivatives[-1] += jax.vjp(lambda x, use=use: stored(x, w, **use), x)[1](dy)
        return derivatives

    for (options, gradients), (dx, dw, *dx_stored) in zip(settings, every(x, w, dy), strict=True):
        row = options["scale"] == "row"
        x_used, w_used, dy_used = np.asarray(x), np.asarray(w), dy
        if options["activations"]:
            x_used = fake_quantize_reference(x_used, options["activations"], -1 if row else None)
        if options["weights"]:
            w_used = fake_quantize_reference(w_used, options["weights"], 0 if row else None)
        if gradients:
            dy_used = fake_quantize_reference(dy, gradients, -1 if row else None)
            assert np.abs(dy_used - dy).max() > 0.01
        x_used, w_used, dy_used = (a.astype(np.float64) for a in (x_used, w_used, dy_used))
        for got in (dx, *dx_stored):
            near(got, dy_used @ w_used.T, 1e-6)
        near(dw, np.einsum("abk,abn->kn", x_used, dy_used), 1e-6)


def test_gradients_of_no_size_overflow_or_vanish():
    # A cast's own gradient would be rounded to the format, to NaN for 1000.
    x, w = draw(ODD[1])
    ones = np.ones((2, 7, 5), np.float32)
    for gradients, size in ((None, 1e9), ("e5m2", 1e-20)):
        pulled = jax.jit(
            lambda x, w, up, g=gradients: jax.vjp(partial(product, gradients=g), x, w)[1](up)
        )
        for a, b in zip(pulled(x, w, ones), pulled(x, w, np.float32(size) * ones), strict=True):
            near(np.asarray(b, np.float64) / np.float32(size), a, 1e-6)


def test_frozen_weights_cost_no_memory_and_no_second_product():
    x, w = draw(ODD[3])

    def kept(f, *args):
        leaves = jax.tree.leaves(jax.eval_shape(lambda *args: jax.vjp(f, *args)[1], *args))
        return {(a.shape, str(a.dtype)) for a in leaves}

    activations = (x.shape, "float8_e4m3fn")
    assert activations in kept(product, x, w)
    assert activations not in kept(lambda x: product(x, w), x)
    assert (w.shape, "float32") in kept(lambda x: product(x, w), x)

    plain = product.__wrapped__

    def products(f, *args):
        return str(jax.make_jaxpr(jax.grad(lambda *a: f(*a).sum(), range(len(args))))(*args)).count(
            "dot_general["
        )

    assert products(plain, x, w) == 3
    assert products(lambda x: plain(x, w), x) == 2
    assert products(lambda x: stored.__wrapped__(x, w), x) == 2


@pytest.mark.slow
def test_layers_of_a_stack_have_scales_of_their_own_under_scan_vmap_and_checkpoint():
    x, _ = draw(ODD[1])
    w = jnp.stack([draw(ODD[1], seed)[1] * 100.0**seed for seed in range(3)])

    def scanned(x, w):
        step = jax.checkpoint(lambda total, w: (total + product(x, w), product(x, w)))
        total, every = lax.scan(step, jnp.zeros((2, 7, 5)), w)
        return every, (total**2).sum()

    def looped(x, w):
        every = jnp.stack([product(x, m) for m in w])
        return every, (every.sum(0) ** 2).sum()

    @jax.jit
    def all_ways(x, w):
        mapped = jax.vmap(product, (None, 0))(x, w), jax.vmap(product, (0, None))(x, w[1])
        return [
            (*f(x, w), *mapped, *jax.grad(lambda *a, f=f: f(*a)[1], (0, 1))(x, w))
            for f in (scanned, looped)
        ]

    (every, _, over_w, over_x, *grads), (wanted, *_, dx, dw) = all_ways(x, w)
    for layer in range(3):
        near(every[layer], wanted[layer], 1e-6)
        near(over_w[layer], wanted[layer], 1e-6)
        near(grads[1][layer], dw[layer], 1e-5)
    near(over_x, wanted[1], 1e-6)
    near(grads[0], dx, 1e-5)


@pytest.mark.slow
def test_columns_of_a_weight_are_columns_of_the_result():
    x, w = draw(ODD[3])
    near(product(x, w[:, 10:20]), product(x, w)[..., 10:20], 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("checked", [True, False])
def test_runs_inside_of_shard_map(checked):
    x, w = draw(ODD[1])
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))
    rows, whole = PartitionSpec("data"), PartitionSpec()

    def split(x, w):
        y = jax.shard_map(
            lambda x, w: product(x, w) + stored(x, lax.stop_gradient(w)),
            mesh=mesh, in_specs=(rows, whole), out_specs=rows, check_vma=checked,
        )(x, w)  # fmt: skip
        return (y**2).sum()

    def plain(x, w):
        return ((product(x, w) + stored(x, lax.stop_gradient(w))) ** 2).sum()

    def gradients(f):
        return jax.jit(jax.grad(f, (0, 1)))(x, w)

    for got, right in zip(gradients(split), gradients(plain), strict=True):
        near(got, right, 1e-6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:qwix.*")
@pytest.mark.slow
def test_agrees_with_qwix():
    import qwix
    from flax import nnx

    class One(nnx.Module):
        def __init__(self):
            self.qkv = nnx.Linear(48, 24, use_bias=False, rngs=nnx.Rngs(0))

        def __call__(self, x):
            return self.qkv(x)

    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 6, 48)) * np.exp2(rng.uniform(-6, 6, (2, 6, 1)))
    x, model = jnp.asarray(x, jnp.float32), One()
    rules = [
        qwix.QtRule(module_path="qkv", weight_qtype=jnp.float8_e4m3fn, act_qtype=jnp.float8_e4m3fn)
    ]
    theirs = qwix.quantize_model(model, qwix.QtProvider(rules), x)(x)
    w = model.qkv.kernel[...]
    assert np.abs(np.asarray(theirs - x @ w)).max() > 1e-3 * np.abs(np.asarray(theirs)).max()
    near(product(x, w), theirs, 1e-6)


def test_refuses_what_it_cannot_do():
    x, w = draw(ODD[1])
    plain = (((2,), (0,)), ((), ()))
    for arguments, message in (
        ((x, w.T, (((2,), (1,)), ((), ()))), r"expected x \[..., K\] and w \[K, N\]"),
        ((x, w[None], plain), r"expected x \[..., K\] and w \[K, N\]"),
        ((x.astype(jnp.float16), w, plain), "x: expected float32 or bfloat16, got float16"),
        ((x, w.astype(jnp.int8), plain), "w: expected float32 or bfloat16, got int8"),
        ((x, w, plain, None, None, "model"), "out_sharding is not supported"),
    ):
        with pytest.raises(ValueError, match=message):
            fp8_dot_general(*arguments)
    with pytest.raises(ValueError, match="'block' is not known, there are: row, tensor"):
        product(x, w, scale="block")
    with pytest.raises(ValueError, match="'int8' is not known"):
        product(x, w, gradients="int8")
    codes, scale = quantize(w.T)
    with pytest.raises(ValueError, match=r"codes \[N, K\]"):
        fp8_linear(x, codes.T, scale[:, 0])
    with pytest.raises(ValueError, match=r"scales \[N\] or \[1\]"):
        fp8_linear(x, codes, scale)
    with pytest.raises(ValueError, match="stored weights are constants"):
        jax.grad(lambda s: fp8_linear(x, codes, s).sum())(scale[:, 0])
