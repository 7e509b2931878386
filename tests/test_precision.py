"""Rules by path, applied to models that are built: who is quantised, and what it computes."""

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from lite3r_jax.attention.core import Layouts, TokenLayout
from lite3r_jax.attention.presets import plan
from lite3r_jax.attention.sla import SLA
from lite3r_jax.backbones.base import get_backbone
from lite3r_jax.errors import InputError
from lite3r_jax.kernels.fp8.reference import (
    fake_quantise_reference,
    int_reference,
    linear_reference,
    quantise_reference,
)
from lite3r_jax.layers.block import stack
from lite3r_jax.layers.fp8 import Fp8Linear
from lite3r_jax.layers.rngs import traced_rngs
from lite3r_jax.precision import (
    PRESETS,
    Fp8Rule,
    Int4Rule,
    QuantisedParam,
    apply_precision,
    deploy,
    freeze_quantised,
    match,
    preset,
)
from lite3r_jax.train import parameters

LAYERS, WIDTH = 3, 24


class Net(nnx.Module):
    """Three stacked Linears that all read the input, a list of Linears, and an attention core."""

    def __init__(self, dtype=jnp.float32, param_dtype=jnp.float32):
        rngs = nnx.Rngs(0)
        kinds = {"dtype": dtype, "param_dtype": param_dtype}

        def make(rngs):
            return nnx.Linear(WIDTH, 10, rngs=rngs, **kinds)

        self.layers = stack(make, LAYERS, rngs)
        self.heads = nnx.List([nnx.Linear(10, 4, use_bias=False, rngs=rngs, **kinds)])
        self.cores = nnx.List(
            [SLA().build(heads=1, head_dim=8, param_dtype=param_dtype, rngs=rngs)]
        )

    def __call__(self, x):
        """[..., WIDTH] -> [LAYERS, ..., 10], [..., 4], [8, 8]."""
        graph, state = nnx.split(self.layers)
        _, ys = jax.lax.scan(lambda x, layer: (x, nnx.merge(graph, layer)(x)), x, state)
        return ys, self.heads[0](ys[0]), self.cores[0].proj_lin[...]


ALL = (Fp8Rule("proj_lin", activations=None), Fp8Rule("."))


def build(**kinds):
    """With numbers from the host: nothing is compiled."""
    rng = np.random.default_rng(0)
    graph, state = nnx.split(nnx.eval_shape(lambda: Net(**kinds)))
    state = jax.tree.map(lambda a: jnp.asarray(rng.normal(0, 0.3, a.shape), a.dtype), state)
    return nnx.merge(graph, state)


@pytest.fixture(scope="module")
def net():
    return build()


@pytest.fixture(scope="module")
def x():
    rng = np.random.default_rng(1)
    return (rng.standard_normal((2, 5, WIDTH)) * np.exp2(rng.uniform(-4, 4, (2, 5, 1)))).astype(
        "f4"
    )


def run(x, *models):
    """The outputs of every model, from one compilation."""
    graphs, states = zip(*map(nnx.split, models), strict=True)

    @jax.jit
    def every(states, x):
        return [nnx.merge(graph, state)(x) for graph, state in zip(graphs, states, strict=True)]

    return every(states, x)


def flat(model):
    return {"/".join(map(str, key)): v for key, v in nnx.to_flat_state(nnx.state(model))}


def near(got, wanted, tolerance=1e-6):
    wanted = np.asarray(wanted, np.float64)
    np.testing.assert_allclose(
        np.asarray(got, np.float64), wanted, rtol=tolerance, atol=tolerance * np.abs(wanted).max()
    )


def by_hand(model, x, **options):
    """The stacked layers of `Net`, from the definition."""
    kernels, biases = model.layers.kernel[...], model.layers.bias[...]
    return np.stack(
        [
            linear_reference(x, np.asarray(w), **options) + np.asarray(b, np.float64)
            for w, b in zip(kernels, biases, strict=True)
        ]
    )


# Who is quantised.


@pytest.fixture(scope="module")
def published():
    """The published models without numbers, every attention site replaced, as Lite3R has them."""
    heads = {"vggt": ("camera", "depth"), "da3": ("camera", "depth", "ray", "prior")}

    @functools.cache
    def build(name, attention="sla_paper"):
        backbone = get_backbone(name)
        return nnx.eval_shape(
            lambda: backbone.build(
                backbone.default_config, heads=heads[name], plan=plan(attention),
                dtype=jnp.bfloat16, param_dtype=jnp.bfloat16, rngs=traced_rngs(0),
            )
        )  # fmt: skip

    return build


COUNTS = {
    # 72 blocks of four Linears and proj_lin; 4 such blocks and 4 Linears in the camera head
    "vggt": {"none": 0, "default": 307, "paper": 384, "paper_w4a16": 156, "paper_w4a8": 308},
    # 24 blocks, the head for known cameras with 4 and 2 Linears, 5 Linears of the camera head
    "da3": {"none": 0, "default": 116, "paper": 147, "paper_w4a16": 63, "paper_w4a8": 119},
}


@pytest.mark.parametrize("name", ["vggt", pytest.param("da3", marks=pytest.mark.slow)])
def test_presets_quantise_what_lite3r_wraps_in_the_published_models(published, name):
    model = published(name)
    before = {path: (v.shape, v.dtype, type(v)) for path, v in flat(model).items()}
    for precision, count in COUNTS[name].items():
        apply_precision(model, preset(precision), count=count)
    assert COUNTS[name].keys() == PRESETS.keys()
    sites = match(model, preset("paper"))
    assert all("head/" in site.path for site in sites if not site.wrapped)
    left = {site.path for site in match(model, preset("default")) if not site.wrapped}
    assert {path for path in left if "proj_lin" in path or path.startswith("camera_head")} == {
        *(site.path for site in sites if site.path.endswith("proj_lin")),
        *{
            "vggt": {"camera_head/pose_branch/fc2"},
            "da3": {"camera_head/translation", "camera_head/quaternion",
                    "camera_head/field_of_view"},
        }[name],
    }  # fmt: skip
    # The parameters stay what and where they are.
    after = flat(apply_precision(model, preset("paper")))
    assert {p: (v.shape, v.dtype) for p, v in after.items()} == {p: before[p][:2] for p in before}
    assert {path: (v.shape, v.dtype, type(v)) for path, v in flat(model).items()} == before


def test_presets_serve_a_dense_model_without_heads(published):
    dense = published("vggt", "dense")
    assert sum(site.layers for site in match(dense, preset("paper")) if site.wrapped) == 308
    del dense.camera_head
    apply_precision(dense, preset("default"), count=288)


def test_the_first_rule_that_fits_counts(net, x):
    rules = (
        Fp8Rule("heads", weights=None, activations=None),
        Fp8Rule("layers", activations=None),
        Fp8Rule("layers|heads|proj_lin$", optional=True, activations=None, scale="tensor"),
    )
    found = {site.path: (site.layers, site.rule, site.wrapped) for site in match(net, rules)}
    assert found == {
        "cores/0/proj_lin": (1, rules[2], True),
        "heads/0": (1, rules[0], False),
        "layers": (LAYERS, rules[1], True),
    }
    [(ys, head, _)] = run(x, apply_precision(net, rules, count=4))
    near(ys, by_hand(net, x, weights="e4m3", activations=None, scale="row"))
    near(head, np.asarray(ys[0]) @ np.asarray(net.heads[0].kernel[...]))


def test_rules_that_find_nothing_name_what_is_near(net):
    with pytest.raises(InputError, match=r"'laiers' finds no Linear; nearest are: layers, "):
        apply_precision(net, (Fp8Rule("laiers"),))
    with pytest.raises(InputError, match="'layers' finds only sites of rules before it"):
        apply_precision(net, (Fp8Rule("layers|heads"), Fp8Rule("layers")))
    with pytest.raises(InputError, match=r"'\(' is no regular expression"):
        apply_precision(net, (Fp8Rule("("),))
    with pytest.raises(InputError, match="quantise 3 Linears, expected 4"):
        apply_precision(net, (Fp8Rule("layers"),), count=4)
    with pytest.raises(InputError, match="choose one of: none, default, paper"):
        preset("fp16")


def test_refuses_what_cannot_be_quantised(net):
    with pytest.raises(InputError, match=r"heads of cores/0/proj_lin are computed in turns"):
        apply_precision(net, (Fp8Rule("proj_lin", scale="tensor"),))
    for once in (ALL, (Fp8Rule("."),)):
        once = apply_precision(net, once)
        for again in ((Fp8Rule("layers"),), (Fp8Rule("proj_lin", activations=None),)):
            with pytest.raises(InputError, match="is quantised already"):
                apply_precision(once, again)
    for settings in ({"weights": "int4"}, {"activations": "fp8"}, {"gradients": 8}, {"scale": "k"}):
        with pytest.raises(InputError, match="precision rule 'layers'"):
            Fp8Rule("layers", **settings)
    with pytest.raises(InputError, match="gradients alone cannot be quantised"):
        Fp8Rule("layers", weights=None, activations=None, gradients="e5m2")
    with pytest.raises(InputError, match="group of at least 1 and 2 to 8 activation bits"):
        Int4Rule("layers", activation_bits=16)


# What it computes.


def test_off_is_the_model_itself(net):
    off = apply_precision(net, ())
    assert nnx.split(off)[0] == nnx.split(net)[0]
    before, after = flat(net), flat(off)
    assert before.keys() == after.keys()
    assert all(after[path].get_value() is before[path].get_value() for path in before)


def test_the_model_it_is_applied_to_does_not_change(net, x):
    before = nnx.split(net)[0]
    quantised = apply_precision(net, ALL)
    for other in (quantised, freeze_quantised(quantised), deploy(net, ALL, "fp8_dynamic")):
        assert nnx.split(net)[0] == before != nnx.split(other)[0]
    for path, variable in flat(quantised).items():
        assert variable.get_value() is flat(net)[path].get_value(), path


def test_equal_rules_give_equal_programs(net):
    graphs = [nnx.split(apply_precision(net, preset))[0] for preset in (ALL, tuple(ALL))]
    assert graphs[0] == graphs[1] and hash(graphs[0]) == hash(graphs[1])
    assert nnx.split(apply_precision(net, (*ALL[:1], Fp8Rule(".", scale="tensor"))))[0] != graphs[0]


@pytest.mark.parametrize("scale", ["row", pytest.param("tensor", marks=pytest.mark.slow)])
def test_simulated_frozen_and_deployed_compute_the_definition(net, x, scale):
    rules = (Fp8Rule("proj_lin", activations=None, scale=scale), Fp8Rule(".", scale=scale))
    options = {"weights": "e4m3", "scale": scale}
    simulated = apply_precision(net, rules, count=5)
    wanted = by_hand(net, x, activations="e4m3", **options)
    plain = by_hand(net, x, weights=None, activations=None, scale=scale)
    assert np.abs(wanted - plain).max() > 0.003 * np.abs(plain).max()
    matrix = np.asarray(net.cores[0].proj_lin[...])
    matrix = fake_quantise_reference(matrix, "e4m3", 0 if scale == "row" else None)
    *same, weights_only = run(
        x,
        simulated,
        freeze_quantised(simulated),
        deploy(net, rules, "fp8_dynamic"),
        deploy(net, rules, "fp8_weight_only"),
    )
    for ys, head, proj_lin in same:
        near(ys, wanted)
        kernel = np.asarray(net.heads[0].kernel[...])
        near(head, linear_reference(np.asarray(ys[0]), kernel, activations="e4m3", **options))
        near(proj_lin, matrix)
    near(weights_only[0], by_hand(net, x, activations=None, **options))
    near(weights_only[2], matrix)


LAYOUTS = Layouts.both(TokenLayout(2, 1, (4, 5), "global"))


class Attention(nnx.Module):
    """A core by itself."""

    def __init__(self, spec):
        self.core = spec.build(heads=2, head_dim=8, param_dtype=jnp.float32, rngs=nnx.Rngs(0))

    def __call__(self, qkv):
        """[3, B, T, N, D] -> [B, T, N, D]."""
        return self.core(*qkv, LAYOUTS)


@pytest.mark.parametrize(
    "spec",
    [
        SLA("token", 0.3, protect=False),
        *(
            pytest.param(spec, marks=pytest.mark.slow)
            for spec in (SLA(keep=0.3, block=4), SLA("block3", 0.3, 0.2, block=4))
        ),
    ],
    ids=lambda spec: spec.routing,
)
def test_the_input_of_proj_lin_is_quantised_for_every_token_of_a_head(spec):
    rng = np.random.default_rng(2)
    qkv = rng.standard_normal((3, 2, LAYOUTS.query.tokens, 2, 8)).astype("f4")
    model = Attention(spec)
    w = rng.standard_normal((8, 8)).astype("f4")

    def holding(value):
        other = nnx.merge(*nnx.split(model))
        other.core.proj_lin = nnx.Param(jnp.asarray(value))
        return other

    rules = (Fp8Rule("proj_lin"),)
    full = holding(w)
    off, unit, simulated, frozen, deployed, weights_only, folded = map(
        np.asarray,
        run(
            qkv,
            holding(np.zeros_like(w)),
            holding(np.eye(8, dtype="f4")),
            apply_precision(full, rules, count=1),
            freeze_quantised(apply_precision(full, rules)),
            deploy(full, rules, "fp8_dynamic"),
            deploy(full, rules, "fp8_weight_only"),
            apply_precision(full, (Fp8Rule("proj_lin", activations=None),)),
        ),
    )
    wanted = off + linear_reference(unit - off, w, weights="e4m3", activations="e4m3", scale="row")
    # A value between two codes can fall on either side.
    close = np.isclose(simulated, wanted, rtol=0, atol=1e-5).all(-1)
    assert close.mean() > 0.97
    assert np.abs(simulated - folded).max() > 20 * np.abs(simulated - wanted)[close].max()
    for same in (frozen, deployed):
        near(same, simulated, 1e-5)
    near(weights_only, folded, 1e-5)


def test_weights_are_quantised_as_they_are_held_and_not_as_they_are_computed_with(x):
    model = build(dtype=jnp.bfloat16)
    kernels = np.asarray(model.layers.kernel[...])
    stored = freeze_quantised(apply_precision(model, ALL)).layers
    codes, scale = quantise_reference(kernels, "e4m3", -2)
    got = np.asarray(stored.weight[...]).astype(np.float32)
    np.testing.assert_array_equal(got, codes.astype(np.float32).swapaxes(-1, -2))
    np.testing.assert_array_equal(stored.weight_scale[...], scale[:, 0])
    rounded = quantise_reference(kernels.astype(ml_dtypes.bfloat16), "e4m3", -2)[0]
    assert (rounded != codes).any()

    x = x.astype(ml_dtypes.bfloat16)
    wanted = by_hand(model, x, weights="e4m3", activations="e4m3", scale="row")
    for ys, *_ in run(x, apply_precision(model, ALL), deploy(model, ALL, "fp8_dynamic")):
        assert ys.dtype == jnp.bfloat16
        near(ys, wanted, 2.0**-7)


def test_integers_of_the_first_stage(net, x):
    rules = (Int4Rule("layers", group=8, activation_bits=8), Int4Rule("proj_lin", group=128))
    [(ys, _, proj_lin)] = run(x, apply_precision(net, rules, count=4))
    scale = np.abs(x).max(-1, keepdims=True) * np.float32(1 / 127)
    tokens = (np.round(x / scale) * scale).astype(np.float64)
    for y, w, b in zip(ys, net.layers.kernel[...], net.layers.bias[...], strict=True):
        near(y, tokens @ int_reference(np.asarray(w), 4, 8) + np.asarray(b), 2e-6)
    near(proj_lin, int_reference(np.asarray(net.cores[0].proj_lin[...]), 4, 8))
    with pytest.raises(InputError, match="stores no float8 weights"):
        deploy(net, rules, "fp8_dynamic")


# Training.


def test_a_matrix_is_stored_as_it_is_and_read_quantised(net):
    model = apply_precision(net, ALL)
    matrix = model.cores[0].proj_lin
    raw = np.asarray(net.cores[0].proj_lin[...])
    assert isinstance(matrix, QuantisedParam) and isinstance(matrix, nnx.Param)
    np.testing.assert_array_equal(matrix.get_value(), raw)
    quantised = fake_quantise_reference(raw, "e4m3", 0)
    near(matrix[...], quantised)
    near(matrix[2], quantised[2])
    layout, trained, _ = parameters.split(model, ("proj_lin",), count=64)
    np.testing.assert_array_equal(trained["cores/0/proj_lin"], raw)
    again = layout.merge(*parameters.split(model)[1:])
    assert again.cores[0].proj_lin.get_metadata("rule") == ALL[0]


@pytest.mark.parametrize("frozen", [False, True])
def test_gradients_reach_what_is_trained(net, x, frozen):
    selected = ("bias" if frozen else "layers/", "proj_lin")
    model = freeze_quantised(apply_precision(net, ALL), selected)
    assert isinstance(model.layers, Fp8Linear if frozen else nnx.Linear)
    assert isinstance(model.heads[0], Fp8Linear)
    layout, trained, kept = parameters.split(model, selected)
    up = np.random.default_rng(3).standard_normal((LAYERS, 2, 5, 10)).astype(np.float32)

    def loss(trained, x):
        ys, _, proj_lin = layout.merge(trained, kept)(x)
        return (ys * up).sum() + (proj_lin**2).sum()

    grads, dx = jax.jit(jax.grad(loss, (0, 1)))(trained, x)
    assert grads.keys() == trained.keys()
    near(grads["layers/bias"], up.sum((1, 2)), 1e-5)
    raw = np.asarray(net.cores[0].proj_lin[...])
    near(grads["cores/0/proj_lin"], 2 * fake_quantise_reference(raw, "e4m3", 0))
    kernels = fake_quantise_reference(np.asarray(net.layers.kernel[...]), "e4m3", -2)
    near(dx, np.einsum("labn,lkn->abk", up, kernels.astype(np.float64)), 1e-5)
    if not frozen:
        tokens = fake_quantise_reference(x, "e4m3", -1)
        near(grads["layers/kernel"], np.einsum("abk,labn->lkn", tokens, up), 1e-5)


def test_stored_weights_take_a_byte_each_and_are_no_parameters(published):
    model = published("vggt")
    student = freeze_quantised(apply_precision(model, preset("default")), ("proj_lin",))
    _, _, frozen = parameters.split(student, ("proj_lin",), count=360_448)
    before = parameters.split(model, ("proj_lin",))[2]
    weights = {path for path in frozen if path.endswith("/weight")}
    assert len(weights) == 3 * 4 + 4 + 3
    for path in weights:
        *lead, inputs, outputs = before[path.removesuffix("weight") + "kernel"].shape
        assert frozen[path].shape == (*lead, outputs, inputs)
        assert frozen[path].dtype == ml_dtypes.float8_e4m3fn
        assert frozen[path + "_scale"].shape == (*lead, outputs)
    with pytest.raises(InputError, match="is in the path of no parameter"):
        parameters.split(student, (r"qkv/weight",))

    def size(arrays):
        return sum(np.prod(a.shape) * a.dtype.itemsize for a in arrays.values())

    assert size(frozen) < 0.52 * size(before)


def test_what_no_rule_is_for_is_held_in_the_dtype_that_is_asked_for(net):
    before = {path: np.asarray(x) for path, x in nnx.to_flat_state(nnx.state(net))}
    stored = deploy(net, (Fp8Rule("layers"),), "fp8_weight_only", rest=jnp.bfloat16)
    found = dict(nnx.to_flat_state(nnx.state(stored)))
    rest = {path for path in found.keys() & before.keys() if type(found[path]) is nnx.Param}
    assert rest
    for path in rest:
        assert found[path].dtype == jnp.bfloat16
        np.testing.assert_array_equal(found[path], before[path].astype(jnp.bfloat16))
    kept = {str(x.dtype) for path, x in found.items() if path not in rest}
    assert kept == {"float8_e4m3fn", "float32"}
    for path, x in nnx.to_flat_state(nnx.state(net)):  # the model is not changed
        np.testing.assert_array_equal(x, before[path])


def test_deployment_names_what_it_does_not_know(net):
    with pytest.raises(InputError, match="choose fp8_weight_only, fp8_dynamic"):
        deploy(net, ALL, "int8")  # pyright: ignore
    with pytest.raises(InputError, match="can only be simulated"):
        deploy(net, (Fp8Rule("layers", weights=None),), "fp8_dynamic")
    with pytest.raises(InputError, match="quantise 5 Linears, expected 6"):
        deploy(net, ALL, "fp8_dynamic", count=6)


@pytest.mark.slow
def test_the_whole_model_simulated_frozen_and_deployed(tiny_vggt, tiny_images):
    def forward(model):
        prediction, _ = model(tiny_images)
        return [np.asarray(a) for a in (prediction.depth, prediction.pose_enc)]

    rules = preset("default")
    plain, simulated = forward(tiny_vggt), forward(apply_precision(tiny_vggt, rules))
    frozen = forward(freeze_quantised(apply_precision(tiny_vggt, rules)))
    deployed = forward(deploy(tiny_vggt, rules, "fp8_dynamic"))
    for a, b, c, d in zip(plain, simulated, frozen, deployed, strict=True):
        size = np.abs(a).max()
        assert 1e-4 * size < np.abs(b - a).max() < 0.3 * size
        # An order of summation may move a value over the edge between two codes.
        assert np.abs(c - b).max() < 0.02 * size and np.abs(d - c).max() < 0.02 * size


@pytest.mark.slow
def test_the_whole_deployed_model_with_fused_kernels(tiny_vggt, tiny_images):
    def forward(model):
        prediction, _ = model(tiny_images[:1, :2])
        return [np.asarray(a, np.float64) for a in (prediction.depth, prediction.pose_enc)]

    model = deploy(tiny_vggt, preset("default"), "fp8_dynamic")
    plain, deployed = forward(tiny_vggt), forward(model)
    fused = 0
    for _, module in nnx.iter_modules(model):
        # What the kernels are made for, with their code as plain JAX.
        if isinstance(module, Fp8Linear) and module.weight.shape[-1] % 16 == 0:
            module.implementation, module.interpret = "triton", True
            fused += 1
    assert fused >= 4 * 4  # Linears of the encoder, of two stacks of the trunk, of the camera head
    for a, b, c, part in zip(plain, deployed, forward(model), (0.5, 1.5), strict=True):
        # Sums in another order move values over the edge between two codes, at every layer again,
        # and poses are refined four times: beside quantisation itself it counts for depth half at
        # most, and for poses as much as another quantisation.
        quantisation, kernels = (np.sqrt(np.mean((x - y) ** 2)) for x, y in ((a, b), (b, c)))
        print(f"of {np.abs(a).max():.3g}: quantisation {quantisation:.2g}, kernels {kernels:.2g}")
        assert 0 < kernels < part * quantisation
