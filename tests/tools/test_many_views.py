"""Attention for many views in one table: what is counted, estimated and, small, measured."""

import re

import jax.numpy as jnp
import numpy as np
import pytest

from lite3r_jax.attention.presets import parse_plan
from lite3r_jax.attention.strategy import AttentionInputs, Layouts, TokenLayout
from lite3r_jax.benchmarking.flops import count
from lite3r_jax.errors import InputError
from lite3r_jax.evaluation.variants import Variant, parse_variants
from lite3r_jax.weights import strict_json
from tools.benchmark import many_views, roofline


def estimated(name, views=1000):
    (row,) = parse_variants(name)
    model = many_views.abstract(row, parse_plan(row.attention))
    return roofline.estimate(count(model, views, 518, 518), row, views, 0)


def test_the_estimate_adds_up_what_a_pass_computes():
    # 2,491 TFLOP of products, 371 within views, 185,586 over all, 287 in the dense head.
    by_hand = 2491.3 / 620 + 371.2 / 350 + 185_586 / 450 + 287.1 / 200 + 1.18e-6 * 1.374e6
    dense = estimated("dense-bfloat16")
    assert dense == pytest.approx(by_hand, rel=1e-4)
    spark = estimated("spark3r-bfloat16")
    # Queries are compared by products, 351 TFLOP, whose results are written and read.
    others = by_hand - 185_586 / 450
    merging = 351.15 / 620 + 351.15 / 2048 * 8 / 4 + 24 * 24 * 1.374e6 * 1024 / 4e12
    assert spark == pytest.approx(others + 964.3 / 450 + merging, rel=1e-3)
    composed = estimated("spark3r(query_factor=1,inner=sla(keep=0.1))-fp8_dynamic")
    assert composed < spark < dense / 28


def test_the_estimate_of_speed3r_adds_up_its_branches():
    # 25,000 windows of 8 x 8, five special tokens a view that all see and that see all.
    windows, tokens, special = 25_000, 1_374_000, 5_000
    dense = 4096 * (windows**2 + special * tokens) / 450e12
    seen_by_all, chosen = (4096 * x / 300e12 for x in (tokens * special, windows * 8 * 64**2))
    choice = 2048 * windows**2 / 300e12 + windows * 8 * 64 * 2048 / 5.5e12
    layer = dense + seen_by_all + chosen + choice + 20 * tokens * 1024 / 4e12
    weights = 2 * 1024 * (windows * 3072 + tokens * 32) / 620e12
    others = estimated("dense-bfloat16") - 185_586 / 450
    estimate = estimated("speed3r(window=8,top=8,always=0)-bfloat16")
    assert estimate == pytest.approx(others + 24 * (layer + weights), rel=1e-3)
    # Published end to end on an H100: 12.4 times at 1,000 views.
    assert estimated("speed3r-bfloat16") < estimated("dense-bfloat16") / 12.4


def test_another_backbone_has_its_published_size_and_its_own_attention():
    (row,) = parse_variants("speed3r-float32")
    pi3 = many_views.abstract(row, parse_plan(row.attention), name="pi3")
    assert pi3.sites["global"] == 18
    dense = many_views.abstract(Variant("dense", "float32"), parse_plan("dense"), name="pi3")
    less = [count(model, 32, 280, 378).total for model in (dense, pi3)]
    assert less[0] / less[1] == pytest.approx(1.57, abs=0.01)


def test_rows_without_rates_are_refused():
    work = count(many_views.abstract(Variant("dense", "float32"), parse_plan("dense")), 2, 28, 28)
    inside = Variant("key_views(inner=speed3r)", "bfloat16")
    for row in (Variant("dense", "float32"), inside):
        with pytest.raises(InputError, match=f"{re.escape(row.name)}: no rates are known for it"):
            roofline.estimate(work, row, 2, 0)


def test_the_stand_in_is_for_half_precision_only():
    layout = TokenLayout(1, 1, (1, 2), "global")
    q = jnp.asarray(np.random.default_rng(0).standard_normal((1, 3, 1, 8)), jnp.float32)
    core = roofline.OneLaunch().build(heads=1, head_dim=8, param_dtype=None, rngs=None)  # pyright: ignore
    logits = q[0, :, 0] @ q[0, :, 0].T / np.sqrt(8)
    weights = jnp.exp(logits) / jnp.exp(logits).sum(axis=1, keepdims=True)
    output = core(AttentionInputs(q, q, q, Layouts.both(layout)))
    np.testing.assert_allclose(output[0, :, 0], weights @ q[0, :, 0], atol=1e-6)


@pytest.mark.slow
def test_rows_take_turns_and_are_compared_with_the_first(tmp_path, capsys):
    sizes = {
        "embed_dim": 32,
        "vit": {"depth": 1, "num_heads": 2},
        "aggregator": {"depth": 4, "num_heads": 2},
        "camera_head": {"trunk_depth": 1, "num_heads": 2, "num_iterations": 1},
        "dpt": {"features": 8, "out_channels": [8] * 4, "intermediate_layer_idx": [0, 1, 2, 3]},
    }
    (tmp_path / "sizes.json").write_bytes(strict_json.dump(sizes))
    words = ["--config", str(tmp_path / "sizes.json"), "--views", "12", "--height", "28"]
    words += ["--width", "42", "--rows", "dense-float32,spark3r(key_factor=4)-float32"]
    many_views.main([*words, "--runs", "2"])
    printed = capsys.readouterr().out
    turns = re.findall(r"^12 views, (\w+).*-float32: [\d.]+ s wall", printed, re.MULTILINE)
    assert turns == ["dense", "spark3r"] * 2
    first, second = re.findall(r"^\| 12 \| `(.*)` \|.*", printed, re.MULTILINE)
    assert first == "dense-float32" and second.startswith("spark3r(")
    assert re.search(r"`dense-float32` \| \S+ \| \S+ s \| 1\.00 \| 1\.00 \| \S+ GiB \|", printed)


@pytest.mark.parametrize(
    "words,message",
    [
        (["--config", "sizes.json"], "--plan: the estimate is of VGGT-1B and 518 x 518"),
        (["--backbone", "pi3"], "--plan: .* leave --backbone and sizes out"),
        (["--width", "42"], "--plan: the estimate is of VGGT-1B and 518 x 518"),
        (["--rows", "dense-bfloat16,dense-float32"], "dense-float32: no rates are known for it"),
    ],
)
def test_what_there_is_no_estimate_for_is_refused_before_it_is_compiled(words, message, capsys):
    with pytest.raises(SystemExit, match=message):
        many_views.main(["--plan", "h200", *words])
    assert not capsys.readouterr().out
