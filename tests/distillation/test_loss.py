"""The objective against plain references, and who learns from it."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lite3r_jax.attention.plan import Plan
from lite3r_jax.attention.presets import plan
from lite3r_jax.attention.strategy import Layouts, TokenLayout
from lite3r_jax.backbones.base import Prediction
from lite3r_jax.distillation.loss import DistillLoss, as_truth, match_weight, select_sites
from lite3r_jax.distillation.options import MatchOptions
from lite3r_jax.distillation.teacher_student import make_pair, of_student, selectors
from lite3r_jax.distillation.trainable import add_low_rank, trained_paths
from lite3r_jax.errors import InputError
from lite3r_jax.training.optimizer import OptimizerOptions
from lite3r_jax.training.parameters import split
from lite3r_jax.training.sharding import MeshOptions
from lite3r_jax.training.step import ScheduledLoss, StepOptions
from lite3r_jax.training.trainer import make_trainer
from tests.distillation.mini import build, images

SPARSE = plan("sla_global", routing="token", keep=0.3, keep_special=False)
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def student():
    return build(SPARSE)


def loss_of(student, sites="replaced", **options):
    of_loss = {k: options.pop(k) for k in ("task", "from_teacher", "forward") if k in options}
    match = MatchOptions(sites=sites, **options)
    return DistillLoss(match, select_sites(student, Plan(), sites), 100, **of_loss)


def depth_task(model, batch, key):
    del key
    prediction, _ = model(batch["images"])
    return jnp.square(prediction.depth[..., 0] - batch["depth"]).mean(), {}


def teacher_of(student):
    """A dense model with copies of the weights, made without `make_pair`."""
    teacher = build(seed=1)
    state = dict(nnx.to_flat_state(nnx.state(student)))
    flat = [(key, state[key]) for key, _ in nnx.to_flat_state(nnx.state(teacher))]
    nnx.update(teacher, nnx.from_flat_state(flat))
    return teacher


def test_the_weight_falls_along_a_cosine_or_stays():
    cosine = MatchOptions(weight=0.1, final_weight=0.01)
    weights = [float(match_weight(cosine, step, 200)) for step in (0, 50, 100, 200, 300)]
    quarter = 0.01 + 0.09 * (1 + np.sqrt(0.5)) / 2
    np.testing.assert_allclose(weights, [0.1, quarter, 0.055, 0.01, 0.01], rtol=1e-6)
    constant = MatchOptions(weight=0.1, schedule="constant")
    assert float(match_weight(constant, 77, 200)) == pytest.approx(0.1)


@pytest.mark.parametrize(
    "which,wanted",
    [
        ("replaced", {"global": (0, 1)}),
        ("all", {"frame": (0, 1), "global": (0, 1)}),
        ("frame", {"frame": (0, 1)}),
        ("global, frame", {"frame": (0, 1), "global": (0, 1)}),
    ],
)
def test_layers_are_selected_by_what_was_replaced_or_by_role(student, which, wanted):
    assert select_sites(student, Plan(), which) == wanted


def test_selectors_without_a_layer_are_refused(student):
    with pytest.raises(InputError, match="'camera' is no attention of this backbone"):
        select_sites(student, Plan(), "global,camera")
    with pytest.raises(InputError, match="'replaced' names no layer; the plan replaces no"):
        select_sites(student, student.plan, "replaced")


@pytest.fixture(scope="module")
def joint(student):
    """(loss, gradients, metrics) of the objective with a task, and of a plain reference."""
    trained = trained_paths(student, "strategy+attention")
    pair = make_pair(student, trained)
    batch = {"images": images(), "depth": np.ones((2, 3, 2, 2), np.float32)}
    layout, params, frozen = split(pair, selectors(trained))
    again = (("remat", True),)
    loss = loss_of(student, "global", task=depth_task, weight=0.5, final_weight=0.1, forward=again)
    assert isinstance(loss, ScheduledLoss)

    def objective(params):
        return loss.at(jnp.int32(30))(layout.merge(params, frozen), batch, KEY)

    grads, metrics = jax.jit(jax.grad(objective, has_aux=True))(params)

    teacher = teacher_of(student)
    plain_layout, plain, others = split(student, tuple(f"^{path}$" for path in trained))

    def reference(plain):
        model = plain_layout.merge(plain, others)
        prediction, mine = model(batch["images"], taps=("global/attn",))
        _, theirs = teacher(batch["images"], taps=("global/attn",))
        each = [((mine["global/attn"][i] - theirs["global/attn"][i]) ** 2).mean() for i in range(2)]
        task = ((prediction.depth[..., 0] - batch["depth"]) ** 2).mean()
        weight = 0.1 + 0.4 * (1 + np.cos(0.3 * np.pi)) / 2
        return task + weight * sum(each) / 2, sum(each) / 2

    wanted, match = jax.jit(jax.grad(reference, has_aux=True))(plain)
    return of_student(grads), metrics, wanted, match


@pytest.mark.slow
def test_gradients_are_those_of_two_separate_models(joint):
    grads, metrics, wanted, match = joint
    assert grads.keys() == wanted.keys() and len(grads) == 5
    for path, x in wanted.items():
        assert np.abs(x).max() > 1e-5, path
        np.testing.assert_allclose(grads[path], x, rtol=2e-4, atol=1e-7, err_msg=path)
    np.testing.assert_allclose(metrics["distill_loss"], match, rtol=1e-5)
    assert metrics["distill_global"] == metrics["distill_loss"]


def test_a_student_that_keeps_everything_and_adds_nothing_has_no_distillation_loss():
    same = plan("sla_global", routing="token", keep=1.0, keep_special=False)
    student = build(same)
    student.global_cores[0].proj_lin.set_value(jnp.zeros((2, 8, 8)))
    pair = make_pair(student, trained_paths(student, "strategy"))

    @jax.jit
    def run(x):
        _, taps = pair.teacher(x, taps=("global/attn",))
        size = jnp.square(taps["global/attn"]).mean()
        return loss_of(student)(pair, {"images": x}, KEY)[1]["distill_loss"], size

    loss, size = run(images())
    assert loss < 1e-11 * size


@pytest.mark.slow
def test_layers_learn_apart_on_the_teachers_inputs(student):
    """Against every layer by itself, unstacked, on what the teacher computes."""
    trained = trained_paths(student, "strategy+attention")
    pair = make_pair(student, trained)
    # All parameters are differentiated: what must not learn has gradients that must be 0.
    layout, params, _ = split(pair)
    loss = loss_of(student, mode="layerwise", weight=1.0, final_weight=1.0)
    over_all = loss_of(student, "all", mode="layerwise", weight=1.0)
    batch = {"images": images()}

    def objective(params):
        model = layout.merge(params)
        value, metrics = loss(model, batch, KEY)
        return value, (metrics, over_all(model, batch, KEY)[1])

    grads, (metrics, metrics_all) = jax.jit(jax.grad(objective, has_aux=True))(params)
    # Layers that are the teacher's differ by nothing.
    assert metrics_all["distill_frame"] == 0
    np.testing.assert_allclose(metrics_all["distill_loss"], metrics["distill_loss"] / 2, rtol=1e-6)

    names = ("frame/blocks", "global/blocks", "global/attn")
    _, seen = teacher_of(student)(batch["images"], taps=names)
    first = seen["frame/blocks"][-1].reshape(2, 12, -1)
    inputs = [first, *seen["global/blocks"][:-1]]
    graph, blocks = nnx.split(student.global_blocks)
    core_graph, cores = nnx.split(student.global_cores[0])
    both = Layouts.both(TokenLayout(3, 0, (2, 2), "global"))

    def reference(trained):
        total = 0.0
        for i, x in enumerate(inputs):
            block, core = jax.tree.map(lambda w, i=i: w[i], trained)
            block, core = nnx.merge(graph, block), nnx.merge(core_graph, core)
            got = block.attn(block.norm1(x), core, both)
            total += ((got - seen["global/attn"][i]) ** 2).mean() / len(inputs)
        return total

    value, wanted = jax.jit(jax.value_and_grad(reference))((blocks, cores))
    np.testing.assert_allclose(metrics["distill_loss"], value, rtol=1e-5)
    flat = {
        "global_blocks/" + "/".join(map(str, key)): v.get_value()
        for key, v in nnx.to_flat_state(wanted[0])
    } | {"global_cores/0/proj_lin": wanted[1]["proj_lin"].get_value()}
    grads_of_student = of_student(grads)
    for path in trained:
        assert np.abs(flat[path]).max() > 1e-6, path
        np.testing.assert_allclose(
            grads_of_student[path], flat[path], rtol=2e-4, atol=2e-8, err_msg=path
        )
    attention = ("student/global_blocks/attn/", "student/global_blocks/norm1/", "student/global_c")
    beyond = {path: x for path, x in grads.items() if not path.startswith(attention)}
    assert len(beyond) > 20
    for path, x in beyond.items():
        assert not np.any(x), path


@pytest.mark.slow
def test_without_truth_the_teachers_prediction_is_the_truth(student):
    trained = trained_paths(student, "strategy")
    pair = make_pair(student, trained)
    seen = []

    def task(model, batch, key):
        del key
        prediction, _ = model(batch["images"])
        seen.append(sorted(batch))
        return jnp.square(prediction.depth[..., 0] - batch["depth"]).mean(), {}

    def with_cameras(model):
        """The mini model has no cameras; give the teacher some."""

        class Posed:
            def __call__(self, x, **choices):
                prediction, taps = model(x, **choices)
                eye = jnp.broadcast_to(jnp.eye(3, 4), (*x.shape[:2], 3, 4))
                more = {"extrinsics": eye, "intrinsics": eye[..., :3]}
                return type(prediction)(**{**vars(prediction), **more}), taps

        return Posed()

    objective = loss_of(student, task=task, from_teacher=True, weight=0.0, final_weight=0.0)

    def loss(pair, batch, key):
        return jax.jit(lambda batch: objective(pair, batch, key))(batch)

    batch = {"images": images(), "depth": np.full((2, 3, 2, 2), 9.0, np.float32)}
    with pytest.raises(InputError, match=r"targets teacher: the teacher predicts no cameras"):
        loss(pair, batch, KEY)
    dense = pair.teacher
    pair = types.SimpleNamespace(student=student, teacher=with_cameras(dense))
    value, metrics = loss(pair, batch, KEY)
    assert seen == [["depth", "extrinsics", "images", "intrinsics", "mask"]]
    assert metrics == {}
    mine, theirs = (jax.jit(lambda x, m=m: m(x)[0].depth)(images()) for m in (student, dense))
    np.testing.assert_allclose(value, ((mine - theirs) ** 2).mean(), rtol=1e-5)


def test_pixels_that_a_teacher_did_not_predict_are_masked():
    depth = jnp.array([1.0, jnp.nan, jnp.inf, -1.0]).reshape(1, 1, 2, 2, 1)
    one = jnp.ones((1, 1, 3, 4))
    prediction = Prediction(depth=depth, extrinsics=one, intrinsics=one[..., :3])
    batch = as_truth(jnp.zeros((1, 1, 2, 2, 3)), prediction)
    assert batch["mask"].reshape(-1).tolist() == [True, False, False, False]
    assert batch["depth"].reshape(-1).tolist() == [1, 0, 0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["strategy", "lora"])
def test_the_loss_falls_only_what_was_selected_changes_and_the_teacher_never(name):
    student = build(SPARSE)
    if name == "lora":
        add_low_rank(student, 4)
    trained = trained_paths(student, name)
    pair = make_pair(student, trained)
    before = {p: np.array(x) for p, x in split(pair)[1].items()}
    trainer = make_trainer(
        pair,
        loss_of(student, weight=1.0, final_weight=0.5),
        steps=100,
        optimizer=OptimizerOptions(learning_rate=1e-2, weight_decay=0.0),
        options=StepOptions(),
        mesh=MeshOptions(),
        trainable=selectors(trained),
    )
    state = trainer.new_state()
    losses, weights = [], []
    for i in range(60):
        state, metrics = trainer.step(state, trainer.frozen, {"images": images(i % 4)})
        losses.append(float(metrics["distill_loss"]))
        weights.append(float(metrics["distill_weight"]))
    assert np.mean(losses[-4:]) < 0.85 * np.mean(losses[:4])
    schedule = match_weight(MatchOptions(weight=1, final_weight=0.5), np.arange(60), 100)
    np.testing.assert_allclose(weights, schedule, rtol=1e-6)
    assert set(of_student(state.params)) == set(trained)
    for path, x in split(pair)[1].items():  # the model that went in
        np.testing.assert_array_equal(x, before[path], err_msg=path)
    after = of_student(trainer.frozen) | of_student(state.params)
    changed = {p for p, x in after.items() if not np.array_equal(x, before[f"student/{p}"])}
    assert changed == set(trained)
