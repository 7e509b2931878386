"""Bilinear resizing against PyTorch."""

import jax
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lite3r_jax.layers.resize import resize_aligned

sides = st.integers(1, 9)


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(sides, sides, sides, sides)
def test_agrees_with_torch_in_value_and_gradient(h, w, height, width):
    rng = np.random.default_rng(h * 1000 + w)
    x = rng.standard_normal((2, h, w, 3), dtype=np.float32)
    up = rng.standard_normal((2, height, width, 3), dtype=np.float32)
    got, pull = jax.vjp(lambda a: resize_aligned(a, (height, width)), x)

    t = torch.tensor(x.transpose(0, 3, 1, 2).copy(), requires_grad=True)
    want = torch.nn.functional.interpolate(
        t, size=(height, width), mode="bilinear", align_corners=True
    )
    want.backward(torch.tensor(up.transpose(0, 3, 1, 2).copy()))
    assert t.grad is not None
    np.testing.assert_allclose(got, want.detach().numpy().transpose(0, 2, 3, 1), atol=2e-6)
    np.testing.assert_allclose(pull(up)[0], t.grad.numpy().transpose(0, 2, 3, 1), atol=1e-5)


def test_real_size_on_white_noise():
    x = np.random.default_rng(0).standard_normal((1, 196, 259, 2), dtype=np.float32)
    want = torch.nn.functional.interpolate(
        torch.tensor(x.transpose(0, 3, 1, 2).copy()),
        size=(392, 518),
        mode="bilinear",
        align_corners=True,
    )
    got = resize_aligned(x, (392, 518))
    np.testing.assert_allclose(got, want.numpy().transpose(0, 2, 3, 1), atol=1e-5)


@pytest.mark.parametrize("size", [(7, 5), (3, 3), (2, 11)])
def test_corners_stay_and_planes_stay_planes(size):
    y, x = np.meshgrid(np.linspace(0, 1, 4), np.linspace(0, 1, 6), indexing="ij")
    plane = (2 * y - 3 * x).astype(np.float32)[None, :, :, None]
    got = np.asarray(resize_aligned(plane, size))[0, :, :, 0]
    y, x = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]), indexing="ij")
    np.testing.assert_allclose(got, 2 * y - 3 * x, atol=1e-6)
