"""Scenes to records: the truth is perfect, failures are named, nothing is averaged away."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from lite3r_jax.evaluation import CachedScenes, ScoreOptions
from lite3r_jax.evaluation.evaluator import measure, report
from lite3r_jax.evaluation.predictor import Output, Predictor
from lite3r_jax.metrics import NotAvailable
from tests.evaluation.scenes import Scenes, oracle


def run(source, predict, **more):
    return report(source.protocol(), measure(predict, source.protocol(), source, **more))


def test_the_truth_in_another_unit_is_perfect_and_the_baselines_are_not():
    source = Scenes()
    scores = run(source, oracle(source))
    assert scores["abs_rel"] < 1e-6 and scores["rotation_deg"] < 1e-3 and scores["chamfer"] < 1e-5
    assert scores["auc_3"] == scores["published_auc_30"] == scores["fscore_0.01"] == 1
    assert scores["ate"] < 1e-5 and scores["direction_median_deg"] < 1e-3
    assert scores["constant_depth_abs_rel"] > 0.05
    assert scores["mean_pose_auc_30"] < 0.5 and scores["mean_pose_rotation_median_deg"] > 10
    assert scores.summary["abs_rel"].scenes == 4 and not scores.failures
    assert all(len(record.pairs["rotation_deg"]) == 3 for record in scores.records)


def test_only_a_model_that_uses_the_other_views_suffers_from_wrong_ones():
    source = Scenes()
    alone = run(source, oracle(source, unit=3.0))
    assert alone["first_view_abs_rel"] == alone["wrong_partner_abs_rel"]
    # both are right, so the ratio is that of rounding errors, which are the same
    assert alone["wrong_partner_ratio"] == 1
    using = run(source, oracle(source, partner=True))
    assert using["abs_rel"] < 1e-6 and using["wrong_partner_abs_rel"] > 0.1
    assert using["wrong_partner_ratio"] > 100
    without = run(source, oracle(source), options=ScoreOptions(wrong_partner=False))
    with pytest.raises(KeyError, match="wrong_partner_ratio: not measured"):
        without["wrong_partner_ratio"]


def test_failures_are_listed_with_their_reasons_and_means_are_of_the_others():
    source = Scenes(5, broken=(1,))
    scores = run(source, oracle(source, wrong=(3,)), batch=2)
    assert [(r.scene, r.failure.partition(";")[0]) for r in scores.failures] == [
        ("scene1", "scene1: is damaged"),
        ("scene3", "depth: 141 of 141 predicted values are not finite"),
    ]
    assert scores.summary["abs_rel"].scenes == 3 and scores["abs_rel"] < 1e-6
    # scene 0 would have had scene 1 for its wrong partner
    reasons = scores.summary["wrong_partner_abs_rel"].missing
    assert reasons == {"the other scene cannot be read": 1}


def test_what_is_not_there_is_not_available_with_its_reason():
    dark = Scenes(depth=False)
    scores = run(dark, oracle(dark))
    assert scores.summary["abs_rel"].missing == {"the dataset has no depth": 4}
    assert scores.summary["wrong_partner_ratio"].value is None
    assert scores["auc_3"] == 1
    farthest = [np.linalg.norm(np.reshape(r.cameras, (-1, 3, 4))[..., 3], axis=-1).max()
                for r in scores.records]  # fmt: skip
    np.testing.assert_allclose(farthest, 1, rtol=1e-6)
    blind = Scenes()
    scores = run(blind, oracle(blind, cameras=False), options=ScoreOptions(compat="lite3r"))
    assert scores.summary["auc_5"].missing == {"the model has no camera head": 4}
    assert scores.summary["chamfer"].value is scores.summary["lite3r_chamfer"].value is None
    assert scores["abs_rel"] < 1e-6
    with pytest.raises(KeyError, match="auc_5: the model has no camera head"):
        scores["auc_5"]
    single = Scenes(1)
    scores = run(single, oracle(single))
    assert scores.summary["wrong_partner_ratio"].missing == {"there is no other scene": 1}
    assert scores.summary["mean_pose_auc_5"].value is None


def test_lite3rs_definitions_stand_beside_ours():
    source = Scenes()
    scores = run(source, oracle(source), options=ScoreOptions(compat="lite3r"))
    # depth, rotation and translation are aligned there too, points are not
    assert scores["lite3r_abs_rel"] < 1e-6 and scores["lite3r_rot_err_deg"] < 0.1
    assert scores["lite3r_trans_err"] < 1e-5
    assert scores["lite3r_chamfer"] > 0.1 > scores["chamfer"]


def test_the_size_of_batches_changes_nothing():
    source = Scenes(5)
    predict = oracle(source, partner=True)
    one, three = (measure(predict, source.protocol(), source, batch=b) for b in (1, 3))
    assert [r.to_json() for r in one] == [r.to_json() for r in three]


def test_what_is_done_is_not_predicted_again():
    source = Scenes(4)
    options = ScoreOptions(wrong_partner=False)
    predict, kept, ticks = oracle(source), [], []
    records = measure(predict, source.protocol(), source, options=options)
    assert predict.calls == 4
    again = measure(
        predict, source.protocol(), source, options=options, done={0: records[0], 2: records[2]},
        keep=lambda n, record, output: kept.append((n, output is not None)),
        progress=lambda: ticks.append(1),
    )  # fmt: skip
    assert predict.calls == 6 and kept == [(1, True), (3, True)] and len(ticks) == 2
    assert [r.to_json() for r in again] == [r.to_json() for r in records]


def test_agreement_is_with_the_reference_where_there_is_one():
    source = Scenes(3)
    predict = oracle(source)
    outputs = {}
    measure(
        predict, source.protocol(), source, keep=lambda n, _, output: outputs.update({n: output})
    )
    del outputs[1]
    records = measure(predict, source.protocol(), source, reference=outputs.get)
    assert records[0].metrics["teacher_abs_rel"] < 1e-6
    assert records[1].metrics["teacher_auc_5"] == NotAvailable(
        "the first variant has no prediction"
    )


def test_a_source_that_is_remembered_is_read_once_as_far_as_it_fits():
    source = Scenes(3)
    kept = CachedScenes(source)
    for _ in range(2):
        measure(oracle(source), source.protocol(), kept)
    assert source.reads == 3
    source.reads = 0
    small = CachedScenes(source, limit=0)
    for _ in range(2):
        small.read("scene0", (0, 1), (6, 8))
    assert source.reads == 2


def test_a_predictor_pads_batches_and_gives_what_the_model_gives(fake_model):
    images = np.random.default_rng(0).random((2, 3, 6, 8, 3), np.float32)
    predictor = Predictor(fake_model(), batch=4)
    outputs = predictor(images)
    want = fake_model()(jnp.asarray(images))[0]
    assert len(outputs) == 2 and isinstance(outputs[0], Output)
    for n, output in enumerate(outputs):
        np.testing.assert_allclose(output.depth, want.depth[n, ..., 0], rtol=1e-6)
        np.testing.assert_allclose(output.extrinsics, want.extrinsics[n], rtol=1e-6)
        np.testing.assert_allclose(output.intrinsics, want.intrinsics[n], rtol=1e-6)


@pytest.mark.slow
def test_several_devices_share_a_batch_and_give_the_same():
    program = textwrap.dedent("""
        import jax, numpy as np
        from lite3r_jax.evaluation.predictor import Predictor
        from tests.conftest import FakeModel
        images = np.random.default_rng(0).random((6, 2, 6, 8, 3), np.float32)
        assert jax.device_count() == 4
        predictor = Predictor(FakeModel(), batch=2)
        assert predictor.batch == 8
        want = FakeModel()(images)[0]
        for n, output in enumerate(predictor(images)):
            np.testing.assert_allclose(output.depth, want.depth[n, ..., 0], rtol=1e-6)
            np.testing.assert_allclose(output.extrinsics, want.extrinsics[n], rtol=1e-6)
    """)
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parents[2], env=os.environ | flags,
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
