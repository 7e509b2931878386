"""What is trained, by name, and what teacher and student share."""

import importlib
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lite3r_jax.attention.dense import Dense
from lite3r_jax.attention.plan import Plan, Rule
from lite3r_jax.attention.presets import parse_plan, plan
from lite3r_jax.attention.sla import SLA
from lite3r_jax.attention.strategy import Layouts, TokenLayout
from lite3r_jax.backbones.base import get_backbone
from lite3r_jax.backbones.model import count_parameters
from lite3r_jax.distillation.surgery import stacks, variables
from lite3r_jax.distillation.teacher_student import make_pair, of_student, selectors
from lite3r_jax.distillation.trainable import LowRankAttention, add_low_rank, sizes, trained_paths
from lite3r_jax.errors import InputError
from lite3r_jax.experiment import from_config
from lite3r_jax.layers.attention import Attention
from lite3r_jax.layers.rngs import traced_rngs
from lite3r_jax.precision import Fp8Rule, apply_precision, deploy
from lite3r_jax.training.parameters import size, split
from tests.distillation.mini import build, images


def mini(spec=None, layers=None):
    return build(Plan((Rule("global", spec or SLA(), layers),)))


def arrays(model):
    return split(model)[1]


def test_teacher_and_student_hold_what_they_share_once():
    student = mini()
    pair = make_pair(student, trained_paths(student, "strategy"))
    tensors = arrays(pair)
    assert all(path.startswith("student/") for path in tensors)
    assert size(tensors) == size(arrays(student))
    assert tensors["student/embed/kernel"] is student.embed.kernel.get_value()
    # ... also after the model was taken apart and put together.
    again = split(pair)[0].merge(tensors)
    for a, b in ((again.teacher, again.student), (pair.teacher, pair.student)):
        assert a.global_blocks.attn.qkv.kernel is b.global_blocks.attn.qkv.kernel
        assert a.head.bias is b.head.bias


def test_of_what_is_trained_the_teacher_has_originals_and_nothing_else():
    student = mini()
    trained = trained_paths(student, "strategy+attention")
    assert trained == (
        "global_blocks/attn/proj/bias",
        "global_blocks/attn/proj/kernel",
        "global_blocks/attn/qkv/bias",
        "global_blocks/attn/qkv/kernel",
        "global_cores/0/proj_lin",
    )
    pair = make_pair(student, trained)
    own = {p.removeprefix("teacher/") for p in arrays(pair) if p.startswith("teacher/")}
    assert own == set(trained[:4])
    _, params, frozen = split(pair, selectors(trained))
    assert set(of_student(params)) == set(trained)
    assert own == {p.removeprefix("teacher/") for p in frozen if p.startswith("teacher/")}
    kernel = pair.teacher.global_blocks.attn.qkv.kernel
    np.testing.assert_array_equal(kernel[...], student.global_blocks.attn.qkv.kernel[...])
    student.global_blocks.attn.qkv.kernel.set_value(jnp.zeros_like(kernel[...]))
    assert np.any(kernel[...])


@pytest.mark.slow
@pytest.mark.parametrize("backbone,heads,parameters", [
    ("vggt", ("camera", "depth"), 360_448),
    ("da3", ("camera", "depth", "camera_encoder"), 114_688),
])  # fmt: skip
def test_the_published_set_has_as_many_parameters_as_the_published_code(
    backbone, heads, parameters
):
    entry = get_backbone(backbone)
    student = nnx.eval_shape(
        lambda: entry.build(
            entry.default_config, heads=heads, plan=plan("sla_paper"), rngs=traced_rngs(0)
        )
    )
    trained = trained_paths(student, "strategy")
    assert sum(sizes(student, trained).values()) == parameters
    assert all(path.endswith("/proj_lin") for path in trained)
    replaced = {stack.name for stack in stacks(student) if all(stack.replaced)}
    wide = trained_paths(student, "strategy+attention")
    assert {path.partition("/attn/")[0] for path in wide if "/attn/" in path} == replaced
    pair = make_pair(student, trained)  # abstract arrays will do
    assert sum(math.prod(x.shape) for x in arrays(pair).values()) == sum(
        math.prod(x.shape) for x in arrays(student).values()
    )


def test_low_rank_parts_begin_as_nothing_and_are_the_product_of_two_matrices():
    attention = Attention(8, 2, kernel_init=nnx.initializers.normal(0.5), rngs=nnx.Rngs(0))
    low = LowRankAttention(attention, 3, nnx.Rngs(1))
    x = np.random.default_rng(0).standard_normal((2, 5, 8), np.float32)
    core = Dense("reference").build(heads=2, head_dim=4, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
    layouts = Layouts.both(TokenLayout(1, 1, (2, 2), "frame"))
    np.testing.assert_array_equal(low(x, core, layouts), attention(x, core, layouts))

    rng = np.random.default_rng(1)
    merged = Attention(8, 2, kernel_init=nnx.initializers.zeros, rngs=nnx.Rngs(0))
    for name in ("qkv", "proj"):
        part, linear = getattr(low, f"{name}_lora"), getattr(merged, name)
        part.up.set_value(jnp.asarray(rng.standard_normal(part.up.shape, np.float32)))
        kernel = getattr(attention, name).kernel[...] + part.down[...] @ part.up[...]
        linear.kernel.set_value(kernel)
        linear.bias.set_value(getattr(attention, name).bias[...])
    want = merged(x, core, layouts)
    assert np.abs(want - attention(x, core, layouts)).max() > 0.1
    np.testing.assert_allclose(low(x, core, layouts), want, rtol=2e-5, atol=2e-5)


def test_low_rank_leaves_have_their_place_in_the_tree_and_leave_the_others_where_they_were():
    student = mini()
    before = arrays(student)
    add_low_rank(student, 3)
    after = arrays(student)
    new = {path: x.shape for path, x in after.items() if path not in before}
    at = "global_blocks/attn"
    assert new == {
        f"{at}/proj_lora/down": (2, 16, 3), f"{at}/proj_lora/up": (2, 3, 16),
        f"{at}/qkv_lora/down": (2, 16, 3), f"{at}/qkv_lora/up": (2, 3, 48),
    }  # fmt: skip
    assert all(after[path] is x for path, x in before.items())
    assert set(trained_paths(student, "lora")) == {*new, "global_cores/0/proj_lin"}
    assert not any("lora" in path for path in arrays(mini()))


@pytest.mark.parametrize("name", ["strategy+attention", "lora"])
def test_layers_of_a_stack_that_are_not_replaced_cannot_be_trained_with_it(name):
    student = mini(layers=(1,))
    assert trained_paths(student, "strategy") == ("global_cores/1/proj_lin",)
    with pytest.raises(InputError, match="replaces some layers of global_blocks only"):
        add_low_rank(student, 2) if name == "lora" else trained_paths(student, name)


def test_a_plan_that_replaces_nothing_leaves_nothing_to_learn():
    for name in ("strategy", "strategy+attention", "lora"):
        with pytest.raises(InputError, match=f"trainable {name}".replace("+", r"\+")):
            trained_paths(mini(Dense()), name)


LAYERS = {"vggt": ("vggt", 24), "pi3": ("pi3", 18), "da3_large": ("da3", 8)}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", LAYERS)
def test_sets_of_speed3r_have_the_sizes_that_are_told(recipe):
    """1,024 channels in 16 heads: gates, qkv, proj, and parts of rank 16 of the two."""
    (name, layers), heads = LAYERS[recipe], ("camera", "depth")
    backbone, plan = get_backbone(name), parse_plan("speed3r")

    def build():
        kinds = {"heads": heads, "plan": plan, "rngs": traced_rngs(0)}
        return backbone.build(backbone.default_config, **kinds)

    def with_low_rank():
        model = build()
        add_low_rank(model, 16)
        return model

    def count(model, trained):
        return sum(sizes(model, trained_paths(model, trained)).values())

    model = nnx.eval_shape(build)
    wide = "strategy+attention" if name == "da3" else "all_but_encoder"
    counts = {trained: count(model, trained) for trained in ("strategy", "strategy+qkv", wide)}
    counts["lora"] = count(nnx.eval_shape(with_low_rank), "lora")
    gates = layers * 32 * 1025
    assert counts["strategy"] == gates
    assert counts["strategy+qkv"] == gates + layers * 3072 * 1025
    assert counts["lora"] == gates + layers * 16 * (2 * 1024 + 3072 + 1024)
    encoder = 304_371_712  # a DINOv2 Large without its mask token
    whole = {"da3": gates + layers * 4096 * 1025}.get(name, count_parameters(model) - encoder)
    assert counts[wide] == whole
    recipes = importlib.import_module(f"lite3r_jax.recipes.{recipe}")
    for variant, trained in (
        ("speed3r", wide),
        ("speed3r,gates", "strategy"),
        ("speed3r,qkv", "strategy+qkv"),
        ("speed3r,gates_lora", "lora"),
    ):
        settings = from_config(recipes.get_config(variant).to_dict())
        assert settings.distill.trainable == trained
        assert settings.train.count == counts[trained]


def test_all_but_the_encoder_needs_an_encoder_apart():
    with pytest.raises(InputError, match="no encoder apart from its trunk; choose strategy"):
        trained_paths(mini(), "all_but_encoder")


def test_all_but_the_encoder_of_a_pi3_is_trained(tiny_pi3_json):
    backbone = get_backbone("pi3")
    config = backbone.config_from_json(dict(tiny_pi3_json))
    model = nnx.eval_shape(
        lambda: backbone.build(config, plan=parse_plan("speed3r"), rngs=traced_rngs(0))
    )
    trained = set(trained_paths(model, "all_but_encoder"))
    rest = set(variables(model)) - trained
    assert rest and all(path.startswith("encoder/") for path in rest)
    assert {"trunk/global_cores/0/gate/kernel", "camera_head/fc1/kernel"} < trained


@pytest.mark.slow
def test_low_rank_parts_stay_where_weights_are_stored_as_float8():
    student = mini()
    add_low_rank(student, 2)
    for name in ("qkv_lora", "proj_lora"):
        up = getattr(student.global_blocks.attn, name).up
        up.set_value(jnp.asarray(np.random.default_rng(0).standard_normal(up.shape, np.float32)))
    rules = (Fp8Rule("blocks/attn/", activations=None),)

    @jax.jit
    def run(x):
        models = (
            student,
            apply_precision(student, rules),
            deploy(student, rules, "fp8_weight_only"),
        )
        return [model(x, taps=("global/attn",))[1]["global/attn"] for model in models]

    full, simulated, stored = run(images())
    size = np.abs(full).max()
    np.testing.assert_allclose(stored, simulated, atol=1e-5 * size)
    assert np.abs(simulated - full).max() > 1e-3 * size


@pytest.mark.slow
def test_simulated_precision_is_the_students_alone():
    plain = mini()
    student = apply_precision(plain, (Fp8Rule("blocks/"),))
    pair = make_pair(student, trained_paths(student, "strategy"))
    assert arrays(pair).keys() == {f"student/{path}" for path in arrays(plain)}

    @jax.jit
    def attended(x):
        models = (pair.teacher, make_pair(plain, ()).teacher, pair.student, plain)
        return [model(x, taps=("frame/attn",))[1]["frame/attn"] for model in models]

    teacher, dense, simulated, full = attended(images())
    np.testing.assert_array_equal(teacher, dense)
    assert np.abs(simulated - full).max() > 1e-3 * np.abs(full).max()
