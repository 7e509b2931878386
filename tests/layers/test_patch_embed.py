"""Patches and position embeddings against upstream."""

import numpy as np
import pytest
from flax import nnx

from lite3r_jax.layers.patch_embed import PatchEmbed, normalize, resize_pos_embed

GRIDS = [
    (37, (37, 37)), (37, (28, 37)), (37, (37, 28)), (37, (24, 37)), (37, (16, 16)),
    (37, (9, 20)), (37, (52, 41)), (37, (38, 37)),
    (5, (5, 5)), (5, (4, 6)), (5, (1, 3)), (6, (4, 9)), (6, (9, 4)),
]  # fmt: skip


@pytest.mark.parametrize(("side", "grid"), GRIDS)
def test_position_embedding_agrees_with_upstream(golden, parity, side, grid):
    g = golden("modules/posembed")
    h, w = grid
    got = resize_pos_embed(g[f"pos_embed_{side}"], grid, square=h == w)
    name = f"out_{side}_to_{h}x{w}"
    parity("modules/posembed", name, got, g[name], 1e-5)


def test_every_golden_grid_is_tested(golden):
    names = {n for n in golden("modules/posembed") if n.startswith("out")}
    assert names == {f"out_{side}_to_{h}x{w}" for side, (h, w) in GRIDS}


@pytest.mark.slow
def test_patches_are_a_strided_convolution_row_by_row():
    embed = PatchEmbed(2, 5, dtype=np.float32, param_dtype=np.float32, rngs=nnx.Rngs(0))
    images = np.random.default_rng(0).random((1, 4, 6, 3), dtype=np.float32)
    got = embed(images)
    assert got.shape == (1, 6, 5)
    patch = images[0, 2:4, 4:6]  # row 1, column 2
    want = np.einsum("ijc,ijcd->d", patch, embed.kernel[...]) + embed.bias[...]
    np.testing.assert_allclose(got[0, 1 * 3 + 2], want, atol=1e-6)


def test_normalization_is_rgb():
    gray = np.array([0.485, 0.456, 0.406], np.float32)
    np.testing.assert_allclose(normalize(gray), 0, atol=1e-7)
    one = normalize(gray + np.array([0.229, 0.224, 0.225], np.float32))
    np.testing.assert_allclose(one, 1, atol=1e-6)
