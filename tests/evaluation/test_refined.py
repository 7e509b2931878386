"""Rows of a table whose predictions are refined."""

import json
from dataclasses import replace

import numpy as np
import pytest

from lite3r_jax.cli.lite3r import main
from lite3r_jax.data.synthetic.source import SyntheticScenes
from lite3r_jax.evaluation.predictor import Output
from lite3r_jax.evaluation.refined import refined
from tools.benchmark.refine import camera_errors, disturbed, scene_of


def test_outputs_come_nearer_to_the_truth_or_stay():
    source = SyntheticScenes("test", 1, 4)
    sample = source.read(source.scenes[0], range(4), (160, 160))
    truth = scene_of(sample)
    start = disturbed(truth, 2, seed=0)
    output = Output(start.depth, start.extrinsics, start.intrinsics)
    better = refined(sample.images, output)
    assert better.extrinsics.shape == start.extrinsics.shape
    after = replace(truth, **vars(better))
    assert camera_errors(after, truth)["rotation"] < camera_errors(start, truth)["rotation"] / 2
    broken = Output(start.depth, start.extrinsics * np.nan, start.intrinsics)
    assert refined(sample.images, broken) is broken
    plain = refined(np.zeros_like(sample.images), output)
    np.testing.assert_array_equal(plain.extrinsics, output.extrinsics)


@pytest.mark.slow
def test_the_command_has_a_row_with_refinement(tmp_path):
    words = ["--weights", "vggt-tiny", "--views", "4", "--scenes", "2", "--evaluate.pictures=0"]
    variants = "dense-float32,dense-float32+refine"
    out = str(tmp_path / "out")
    assert main(["evaluate", *words, "--variants", variants, "--output", out]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [row["variant"] for row in report["results"]] == variants.split(",")
