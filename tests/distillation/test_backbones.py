"""The real backbones: both ways of comparing, and a run that is stopped."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lite3r_jax.attention.plan import Plan, Rule
from lite3r_jax.attention.sla import SLA
from lite3r_jax.distillation.loss import DistillLoss, select_sites
from lite3r_jax.distillation.options import MatchOptions
from lite3r_jax.distillation.teacher_student import make_pair, selectors
from lite3r_jax.distillation.trainable import trained_paths
from lite3r_jax.training.checkpoint import CheckpointOptions
from lite3r_jax.training.loop import LoopOptions, train
from lite3r_jax.training.optimizer import OptimizerOptions
from lite3r_jax.training.run_dir import METRICS
from lite3r_jax.training.sharding import MeshOptions
from lite3r_jax.training.step import StepOptions
from lite3r_jax.training.trainer import make_trainer
from lite3r_jax.weights.load import load
from tests.distillation.mini import build, images
from tests.distillation.test_loss import SPARSE, depth_task

TOKEN = SLA(routing="token", keep=0.3, keep_special=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vggt", "da3"])
def test_where_inputs_are_the_teachers_in_any_case_both_ways_compare_the_same(
    name, tiny_dir, tiny_da3_dir
):
    """With one layer replaced, the student's trunk up to there is the teacher's."""
    plan = Plan((Rule("global", TOKEN, (0,)),))
    where = {"vggt": tiny_dir, "da3": tiny_da3_dir}[name]
    student = load(where, heads=("camera",), plan=plan)
    pair = make_pair(student, trained_paths(student, "strategy"))
    sites = select_sites(student, Plan(), "replaced")
    assert sites == {"global": (0,)}
    rng = np.random.default_rng(0)
    batch = {"images": rng.random((1, 3, 28, 42, 3), np.float32)}
    graph, state = nnx.split(pair)

    @jax.jit
    def both(state):
        model = nnx.merge(graph, state)
        losses = []
        for mode in ("end_to_end", "layerwise"):
            match = MatchOptions(mode=mode, weight=1.0)
            _, metrics = DistillLoss(match, sites, 10)(model, batch, jax.random.key(0))
            losses.append(metrics["distill_loss"])
        return losses

    own, teachers = both(state)
    assert own > 1e-8
    np.testing.assert_allclose(own, teachers, rtol=1e-4)


class Photos:
    """Endless batches of the mini model's images; a step number is where they are."""

    samples = ("photos",)

    def __init__(self):
        self.step = 0

    def __next__(self):
        self.step += 1
        return self

    def arrays(self):
        pixels = images(self.step)
        return {"images": pixels, "depth": pixels.mean(-1)}

    def get_state(self):
        return json.dumps({"step": self.step}).encode()

    def set_state(self, state):
        self.step = json.loads(state)["step"]


@pytest.mark.slow
def test_a_distillation_that_is_continued_is_the_one_that_was_never_stopped(tmp_path):
    student = build(SPARSE)
    trained = trained_paths(student, "strategy+attention")
    sites = select_sites(student, Plan(), "all")
    trainer = make_trainer(
        make_pair(student, trained),
        DistillLoss(MatchOptions(), sites, 9, task=depth_task),
        steps=9,
        optimizer=OptimizerOptions(learning_rate=1e-2, weight_decay=0.0),
        options=StepOptions(),
        mesh=MeshOptions(),
        trainable=selectors(trained),
    )

    def go(folder, until=None):
        return train(
            trainer, Photos(), folder, options=LoopOptions(9, log_every=2),
            checkpoint=CheckpointOptions(100), until=until, show=False,
        ).state  # fmt: skip

    straight = go(tmp_path / "straight")
    go(tmp_path / "stopped", 5)
    stopped = go(tmp_path / "stopped")
    jax.tree.map(np.testing.assert_array_equal, stopped, straight)
    lines = [(tmp_path / name / METRICS).read_bytes() for name in ("straight", "stopped")]
    assert lines[0] == lines[1]
    weights = [json.loads(line)["distill_weight"] for line in lines[0].splitlines()]
    assert weights == sorted(weights, reverse=True) and weights[0] > 2 * weights[-1] > 0.02
    assert all(jnp.isfinite(x).all() for x in straight.params.values())
