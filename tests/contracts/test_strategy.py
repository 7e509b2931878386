"""The contract of strategies: a toy one, registered by one call, goes through everything."""

import json
import subprocess
import sys
import textwrap
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import lite3r_jax
from lite3r_jax.attention.dense import Dense
from lite3r_jax.attention.plan import plan_from_json, plan_to_json
from lite3r_jax.attention.presets import parse_plan, plan, plan_name
from lite3r_jax.attention.registry import register, unregister
from lite3r_jax.attention.strategy import (
    AttentionCore,
    AttentionInputs,
    AttentionStrategy,
    IrregularTokens,
    Layouts,
)
from lite3r_jax.benchmarking.flops import count
from lite3r_jax.distillation.checkpoint import load_student, read_student
from lite3r_jax.distillation.surgery import variables
from lite3r_jax.distillation.trainable import trained_paths
from lite3r_jax.errors import InputError
from lite3r_jax.exports.npz import read_npz
from lite3r_jax.layers import frame_chunks
from lite3r_jax.precision import match, preset
from lite3r_jax.weights.load import load
from tests.runs.test_real_runs import SMALL, lite3r, steps

ROOT = Path(__file__).parents[2]
TEXT = "toy_global(stride=2)+toy_frame(stride=1)"
GATED = "speed3r(window=1,top=2)"


@dataclass(frozen=True)
class Toy(AttentionStrategy):
    """Fewer views as keys, pairs of queries as one, and one pooled key of every view, gated.

    The first layer of a role keeps all views, as all layers do for scenes of one view.
    """

    name: ClassVar[str] = "toy"
    runtime: ClassVar[frozenset[str]] = frozenset({"note"})
    headline: ClassVar[frozenset[str]] = frozenset({"stride"})

    stride: int = 3
    inner: AttentionStrategy = Dense()  # noqa: RUF009  (frozen)
    note: str = "none"

    def resolve(self, role, layer, depth, views):
        assert 0 <= layer < depth
        here = super().resolve(role, layer, depth, views)
        return here if layer and views > 1 else replace(here, stride=1)

    def context(self, x, layout):
        return {"mean": jnp.tanh(x.mean(axis=(1, 2)))}  # [B]

    def build(self, *, heads, head_dim, param_dtype, rngs):
        return ToyCore(self, heads, head_dim, param_dtype, rngs)

    def flops(self, layouts, head_dim):
        query, key = layouts.regular(self.name)
        kept = Layouts(IrregularTokens(-(-query.tokens // 2)), key.keep(self.views(key.views)))
        return {**self.inner.flops(kept, head_dim), "layers": 2 * query.tokens * head_dim}

    def views(self, count):
        return range(0, count, self.stride)


class ToyCore(AttentionCore):
    spec: Toy

    def __init__(self, spec, heads, head_dim, param_dtype, rngs):
        self.spec = spec
        self.gate = nnx.Linear(heads * head_dim, heads, param_dtype=param_dtype, rngs=rngs)
        self.inner = spec.inner.build(
            heads=heads, head_dim=head_dim, param_dtype=param_dtype, rngs=rngs
        )

    def __call__(self, inputs: AttentionInputs) -> jax.Array:
        _, layout = inputs.layouts.regular(self.spec.name)
        b, t, n, d = inputs.q.shape
        fewer = inputs.keep_key_views(self.spec.views(layout.views))
        odd = jnp.pad(inputs.q, ((0, 0), (0, t % 2), (0, 0), (0, 0)), mode="edge")
        merged = odd.reshape(b, -1, 2, n, d).mean(axis=2)
        o = jnp.repeat(self.inner(fewer.with_queries(merged)), 2, axis=1)[:, :t]
        # one key for every view: pooled before norm and rotation, turned by the mean position
        of_layer = inputs.functions
        x = inputs.key_x.reshape(b, layout.views, -1, inputs.key_x.shape[-1]).mean(axis=2)
        q, k, v = of_layer.project(x)
        _, k = of_layer.norm(q, k)
        if of_layer.positions is not None:
            k = of_layer.rotate(k, np.asarray(of_layer.positions).mean(0, keepdims=True))
        weights = jax.nn.softmax(jnp.einsum("btnd,bsnd->btns", inputs.q, k) * d**-0.5, axis=-1)
        pooled = jnp.einsum("btns,bsnd->btnd", weights, v)
        gate = jax.nn.sigmoid(self.gate(inputs.x) + inputs.shared["mean"][:, None, None])[..., None]
        return (gate * o + (1 - gate) * pooled).astype(inputs.v.dtype)


@pytest.fixture(autouse=True)
def toy():
    register(Toy)
    yield
    unregister("toy")


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("vggt", "da3")]


@pytest.fixture(params=["pocket", *SLOW])
def backbone(request, pocket_recipe, pocket_weights, tiny_dir, tiny_da3_dir):
    """(recipe, converted weights) of a few lines, and of the published architectures."""
    return {
        "pocket": (pocket_recipe, pocket_weights),
        "vggt": ("vggt.py", tiny_dir),
        "da3": ("da3_large.py", tiny_da3_dir),
    }[request.param]


def student(weights, text=TEXT):
    return load(weights, heads=("camera", "depth"), plan=parse_plan(text))


def photos(seed=0):
    return np.random.default_rng(seed).random((1, 3, 28, 28, 3), np.float32)


def test_settings_are_json_and_text():
    text = "toy_global(stride=2,inner=sla(keep=0.2))+toy_frame(stride=1)"
    here = parse_plan(text)
    assert plan_name(here) == text and parse_plan(text) == here
    noted = plan("toy_global", stride=2, note="here only")
    read = plan_from_json(json.loads(json.dumps(plan_to_json(noted))))
    assert read == plan("toy_global", stride=2)
    assert plan_name(plan("toy_camera")) == "toy_camera(stride=3)", "a headline is always said"
    with pytest.raises(InputError, match=r"'tooy_global' is not known; did you mean 'toy_global'"):
        parse_plan("tooy_global")
    with pytest.raises(InputError, match=r"the name 'toy' is taken by .*Toy; choose another name"):
        register(Toy)


def test_what_needs_a_grid_refuses_merged_queries_by_name(tiny_dir):
    model = student(tiny_dir, "toy_global(inner=sla(block=4))")
    with pytest.raises(ValueError, match=r"sla needs views with a grid .* queries are \d+ tokens"):
        model(photos())


@pytest.mark.parametrize("text", [TEXT, GATED])
def test_its_own_parameters_are_a_set_and_left_out_of_float8(backbone, text):
    model = student(backbone[1], text)
    own = trained_paths(model, "strategy")
    assert {path.rpartition("/")[2] for path in own} == {"kernel", "bias"}
    assert own and all("_cores/" in path and "/gate/" in path for path in own)
    for rules, all_linears in (("default", False), ("paper", True)):
        sites = [site for site in match(model, preset(rules)) if "cores" in site.path]
        assert sites and all(site.wrapped == all_linears for site in sites)


def test_operations_follow_the_schedule(backbone):
    model, views = student(backbone[1]), 3
    kinds = count(model, views, 28, 28).parts["global"]
    patches = (28 // model.config.patch_size) ** 2
    tokens = views * (patches + {"vggt.py": 5, "da3_large.py": 1}.get(backbone[0], 0))
    heads, c, depth = _heads(model), model.config.embed_dim, model.sites["global"]
    queries = -(-tokens // 2)
    keys = [tokens] + [tokens * 2 // 3] * (depth - 1)  # two of three views but in the first layer
    assert kinds["softmax"] == sum(4 * queries * k * c for k in keys)
    plain = count(student(backbone[1], "dense"), views, 28, 28).parts["global"]
    assert kinds["layers"] - plain["layers"] == depth * heads * 2 * tokens * (c // heads)


def _heads(model: Any) -> int:
    config = model.config
    return config.aggregator.num_heads if hasattr(config, "aggregator") else config.num_heads


@pytest.mark.slow
def test_chunks_of_frames_change_nothing_for_gates(tiny_da3_dir, monkeypatch):
    model, images = student(tiny_da3_dir, GATED), photos()
    together = model(images)[0].depth
    monkeypatch.setattr(frame_chunks, "_TOKENS", 4)
    apart = model(images, remat=True)[0].depth
    np.testing.assert_allclose(apart, together, atol=3e-5 * float(np.abs(together).max()))


@pytest.mark.slow
def test_chunks_of_frames_and_layers_computed_again_change_nothing(backbone, monkeypatch):
    model, images = student(backbone[1]), photos()
    together = model(images)[0]
    seen = []
    chunks = frame_chunks.map_frame_chunks
    monkeypatch.setattr("lite3r_jax.layers.stacks.map_frame_chunks",
                        lambda *a, **k: (seen.append(a[2].spec), chunks(*a, **k))[1])  # fmt: skip
    monkeypatch.setattr(frame_chunks, "_TOKENS", 4)
    apart = model(images, remat=True)[0]
    strides = {spec.stride for spec in seen if isinstance(spec, Toy)}
    assert strides == {1, 2}, "the schedule reaches the chunks"
    for name in ("pose_enc", "depth"):
        a, b = (np.asarray(getattr(p, name)) for p in (together, apart))
        np.testing.assert_allclose(b, a, atol=3e-5 * np.abs(a).max())
    other = student(backbone[1], "toy_global(stride=1)+toy_frame(stride=1)")(images)[0]
    assert np.abs(other.depth - together.depth).max() > 0, "dropped views matter"


MESH = textwrap.dedent("""
    import sys
    import jax, numpy as np
    from jax.sharding import AxisType
    jax.config.update("jax_disable_most_optimizations", True)
    from flax import nnx
    from lite3r_jax.attention.presets import parse_plan
    from lite3r_jax.attention.registry import register
    from tests.contracts.test_strategy import Toy
    from tests.distillation.mini import build

    register(Toy)
    model = build(parse_plan(sys.argv[1]))
    images = np.random.default_rng(0).random((4, 4, 2, 2, 3), np.float32)
    graph, state = nnx.split(model)

    def loss(state, images):
        return (nnx.merge(graph, state)(images)[0].depth ** 2).mean()

    value = lambda *a: jax.value_and_grad(loss)(*a)
    wanted = jax.jit(value)(state, images)
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "view"), axis_types=(AxisType.Auto,) * 3)
    here = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(("data", "fsdp"), "view"))
    with jax.set_mesh(mesh):
        got = jax.jit(value)(state, jax.device_put(images, here))
    for a, b in zip(*map(jax.tree.leaves, (wanted, got)), strict=True):
        np.testing.assert_allclose(b, a, atol=1e-5 * max(1, np.abs(a).max()))
    print(len(jax.devices()))
""")


@pytest.mark.slow
@pytest.mark.parametrize("text", [TEXT, GATED])
def test_eight_devices_compute_what_one_does(text):
    run = subprocess.run(
        [sys.executable, "-c", MESH, text], cwd=ROOT, capture_output=True, text=True, timeout=600,
        env={"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["8"]


@pytest.fixture(scope="module")
def gated(pocket_recipe, pocket_weights, tmp_path_factory):
    """A student with gates, trained from the command line; compiled quickly."""
    run = tmp_path_factory.mktemp("gated")
    settings = SMALL | {"distill.plan": GATED, "distill.trainable": "strategy"}
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        assert lite3r(pocket_recipe, "train", weights=pocket_weights, output=run, **settings) == 0
    finally:
        jax.config.update("jax_disable_most_optimizations", before)
    return run / "student"


def test_gates_are_trained_and_the_student_takes_another_number_of_windows(gated, pocket_weights):
    after = load_student(gated, pocket_weights, simulate=False)
    assert plan_name(after.plan) == GATED
    kernel = after.trunk.global_cores[0].gate.kernel[...]
    assert (np.asarray(kernel) != 0).any(), "gradients reach the gates"
    other = load_student(gated, pocket_weights, plan=parse_plan("speed3r(window=1,top=1)"))
    images = photos()
    assert np.abs(other(images)[0].depth - after(images)[0].depth).max() > 0


def test_photos_are_not_reconstructed_with_gates_that_nobody_has_trained(
    pocket_recipe, pocket_weights, tmp_path, capsys
):
    Image.fromarray(np.full((56, 56, 3), 99, np.uint8)).save(tmp_path / "1.png")
    settings = {"input": tmp_path / "1.png", "attention.plan": GATED, "output": tmp_path / "out"}
    assert lite3r(pocket_recipe, "reconstruct", weights=pocket_weights, **settings) == 2
    assert "speed3r has parameters that" in capsys.readouterr().err


@pytest.mark.slow
def test_a_student_is_evaluated_with_other_numbers_of_windows(
    gated, pocket_recipe, pocket_weights, tmp_path
):
    settings = {
        "evaluate.protocols": "synthetic:test", "evaluate.views": "2", "evaluate.scenes": 1,
        "evaluate.size": "28x28", "evaluate.pictures": 0, "evaluate.resamples": 10,
        "evaluate.variants": "student-float32,student(top=1)-float32", "evaluate.student": gated,
    }  # fmt: skip
    assert lite3r(pocket_recipe, "eval", weights=pocket_weights, output=tmp_path, **settings) == 0
    assert "student(top=1)-float32" in (tmp_path / "report.md").read_text()


@pytest.mark.slow
def test_it_is_trained_stored_and_evaluated(backbone, tmp_path):
    recipe, weights = backbone
    run = tmp_path / "run"
    settings = SMALL | {
        "distill.plan": TEXT, "distill.trainable": "strategy", "distill.precision": "default",
        "distill.targets": "none", "train.optimizer.learning_rate": 1e-2,
    }  # fmt: skip
    assert lite3r(recipe, "train", weights=weights, output=run, **settings) == 0
    assert len(lines := steps(run)) == 2 and all(line["skipped"] == 0 for line in lines)
    manifest, arrays = read_student(run / "student")
    assert plan_name(manifest.plan) == TEXT
    before = student(weights)
    assert set(arrays) == set(trained_paths(before, "strategy"))
    after = load_student(run / "student", weights, simulate=False)
    was, now = variables(before), variables(after)
    for path, (_, variable) in now.items():
        same = np.array_equal(variable.get_value(), was[path][1].get_value())
        assert same == (path not in arrays), path

    variants = f"dense-float32,student-float32,{TEXT}-float32"
    more = {
        "evaluate.protocols": "synthetic:test", "evaluate.views": "2", "evaluate.scenes": 1,
        "evaluate.size": "28x28", "evaluate.pictures": 0, "evaluate.resamples": 10,
        "evaluate.variants": variants, "evaluate.student": run / "student",
    }  # fmt: skip
    assert lite3r(recipe, "eval", weights=weights, output=tmp_path / "eval", **more) == 0
    assert TEXT in (tmp_path / "eval" / "report.md").read_text()


@pytest.mark.slow
def test_photos_are_reconstructed_with_it_from_the_command_line(backbone, tmp_path):
    recipe, weights = backbone
    if recipe == "vggt.py":  # the golden weights see no field of view in photos like these
        weights = "vggt-tiny"
    (tmp_path / "photos").mkdir()
    for n in range(3):
        pixels = np.random.default_rng(n).integers(0, 256, (56, 56, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{n}.png")
    settings = {
        "input": tmp_path / "photos", "weights": weights, "output": tmp_path / "out",
        "images.size": 56, "formats": "npz", "attention.plan": TEXT,
    }  # fmt: skip
    assert lite3r(recipe, "reconstruct", **settings) == 0
    scene = read_npz(tmp_path / "out" / "predictions.npz")
    assert scene.depth.shape == (3, 56, 56) and (scene.depth > 0).all()
    images = scene.images[None].astype(np.float32) / 255
    # float32, as the command has it: first values of new parameters depend on their dtype
    same, _ = lite3r_jax.load(str(weights), attention=TEXT, precision="float32")(images)
    np.testing.assert_allclose(scene.depth, same.depth[0, ..., 0], rtol=1e-5)
    dense, _ = student(weights, "dense")(images)
    assert np.abs(scene.depth / np.asarray(dense.depth[0, ..., 0]) - 1).max() > 1e-4
