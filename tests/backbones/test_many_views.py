"""Models whose tokens are too many to be handled at once predict the same."""

import jax
import numpy as np
import pytest
from flax import nnx

from lite3r_jax.attention.presets import plan
from lite3r_jax.backbones.base import get_backbone
from lite3r_jax.layers import frame_chunks
from lite3r_jax.weights import strict_json


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vggt", "da3"])
def test_chunks_of_frames_change_no_prediction(name, golden_dir, tiny_da3_json, monkeypatch):
    backbone = get_backbone(name)
    sizes = tiny_da3_json | {"alt_start": 5, "out_layers": [6, 7, 8, 9]}  # so that one block leads
    if name == "vggt":
        sizes = strict_json.read_object(golden_dir / "config.json")
        del sizes["param_count"]
    model = backbone.build(
        backbone.config_from_json(sizes),
        heads=("camera", "depth"),
        plan=plan("sla_global", block=8, keep=0.5),
        rngs=nnx.Rngs(0),
    )
    images = np.random.default_rng(0).random((1, 5, 56, 84, 3), np.float32)
    whole, _ = model(images)
    taken = []
    monkeypatch.setattr(frame_chunks, "_TOKENS", 60)  # two frames
    over = frame_chunks._over
    monkeypatch.setattr(frame_chunks, "_over", lambda *args: taken.append(args[2:]) or over(*args))
    jax.clear_caches()
    apart, _ = model(images)
    # Encoder or early blocks, leading blocks, frame blocks and global blocks, these in two loops.
    assert len(taken) == {"vggt": 4, "da3": 6}[name]
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(apart), strict=True):
        np.testing.assert_allclose(b, a, rtol=2e-5, atol=2e-5)
