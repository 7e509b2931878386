"""RoPE against upstream and by its meaning."""

import ml_dtypes
import numpy as np
import pytest

from lite3r_jax.attention.strategy import TokenLayout
from lite3r_jax.layers.rope import RopeTable, rope_table, rotate, view_positions


def turn(tokens, positions, bfloat16=False):
    """[B, N, T, D] tokens of PyTorch's layout, each scene with its own positions."""
    scenes = []
    for x, p in zip(tokens, positions, strict=True):
        table = rope_table(p, x.shape[-1])
        if bfloat16:
            angle = np.arctan2(table.sin, table.cos)
            table = RopeTable(*(f(angle).astype(np.float32) for f in (np.cos, np.sin)), p, 100.0)
        scenes.append(rotate(x.swapaxes(0, 1)[None], table)[0].swapaxes(0, 1))
    return np.stack(scenes)


@pytest.mark.parametrize("n", [0, 1])
def test_rotation_agrees_with_upstream(golden, parity, n):
    g = golden("modules/rope")
    got = turn(g[f"tokens_{n}"], g[f"positions_{n}"])
    parity("modules/rope", f"out_{n}", got, g[f"out_{n}"], 1e-5)


def test_tables_agree_with_upstream(golden, parity):
    g = golden("modules/rope")
    column = np.stack([np.zeros(60, int), np.arange(60)], axis=-1)
    table = rope_table(column, 64)
    cos, sin = table.cos[:, 32:], table.sin[:, 32:]
    parity("modules/rope", "cos_dim32", cos, g["cos_dim32"], 1e-5)
    parity("modules/rope", "sin_dim32", sin, g["sin_dim32"], 1e-5)


def upstream_bf16_tables(positions, head_dim):
    """Upstream rounds the angles to bfloat16 before cos and sin, which is up to 0.1 off."""
    half = head_dim // 2
    frequency = (1 / 100 ** (np.arange(0, half, 2) / half)).astype(np.float32)
    angle = (positions[..., None] * frequency).astype(ml_dtypes.bfloat16).astype(np.float32)
    angle = np.concatenate([angle, angle], axis=-1).reshape(len(positions), head_dim)
    return tuple(f(angle).astype(ml_dtypes.bfloat16).astype(np.float32) for f in (np.cos, np.sin))


def test_bfloat16_tables_of_upstream_are_those_of_rounded_angles(golden, parity):
    g = golden("modules/rope")
    column = np.stack([np.zeros(60, int), np.arange(60)], axis=-1)
    cos, sin = (t[:, 32:] for t in upstream_bf16_tables(column, 64))
    parity("modules/rope", "cos_dim32_bf16_as_f32", cos, g["cos_dim32_bf16_as_f32"], 1e-6)
    parity("modules/rope", "sin_dim32_bf16_as_f32", sin, g["sin_dim32_bf16_as_f32"], 1e-6)


@pytest.mark.parametrize("n", [0, 1])
def test_bfloat16_tokens_turn_by_exact_angles_here(golden, parity, n):
    g = golden("modules/rope")
    rounded = g[f"tokens_{n}"].astype(ml_dtypes.bfloat16)
    quirk = []
    for x, p in zip(rounded, g[f"positions_{n}"], strict=True):
        x = x.swapaxes(0, 1)[None]
        quirk.append(
            rotate(x, RopeTable(*upstream_bf16_tables(p, x.shape[-1]), p, 100.0))[0].swapaxes(0, 1)
        )
    name = f"out_bf16_as_f32_{n}"
    # Three roundings to bfloat16 upstream, each 2^-9 of magnitudes up to 5.
    parity("modules/rope", name, np.stack(quirk), g[name], 3e-2)
    ours = turn(rounded, g[f"positions_{n}"])
    np.testing.assert_array_equal(ours, turn(rounded.astype(np.float32), g[f"positions_{n}"]))
    assert np.abs(ours - g[name]).max() > 1e-2, "upstream's rounded angles are visible"


def test_one_token_by_hand():
    """D = 4: one frequency (1) per half; y turns the first pair, x the second."""
    x = np.array([1.0, 0.0, 0.0, 2.0], np.float32).reshape(1, 1, 1, 4)
    got = rotate(x, rope_table(np.array([[3, 5]]), 4))[0, 0, 0]
    want = [np.cos(3), np.sin(3), -2 * np.sin(5), 2 * np.cos(5)]
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_scores_depend_on_distance_only():
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((2, 1, 1, 1, 16), dtype=np.float32)

    def score(a, b):
        at = [rotate(x, rope_table(np.array([p]), 16)) for x, p in ((q, a), (k, b))]
        return float((at[0] * at[1]).sum())

    assert score((2, 3), (5, 1)) == pytest.approx(score((12, 23), (15, 21)), abs=1e-4)
    assert score((2, 3), (5, 1)) != pytest.approx(score((2, 3), (1, 5)), abs=1e-2)


def test_positions_of_a_view(golden, parity):
    got = view_positions(TokenLayout(1, 5, (4, 6), "frame"))
    parity("outputs", "pos", np.broadcast_to(got, (6, 29, 2)), golden("outputs")["pos"], 0)


def test_views_share_the_table():
    x = np.random.default_rng(0).standard_normal((1, 12, 2, 8), dtype=np.float32)
    table = rope_table(view_positions(TokenLayout(1, 2, (2, 2), "frame")), 8)
    whole = rotate(x, table)
    np.testing.assert_array_equal(whole[:, 6:], rotate(x[:, 6:], table))


def test_head_dim_is_checked():
    with pytest.raises(ValueError, match="divisible by 4"):
        rope_table(np.zeros((1, 2), int), 6)
