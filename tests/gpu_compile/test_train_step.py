"""A training step compiled for described H200s: where arrays lie and what devices send."""

import argparse
import json

import jax
import pytest

from lite3r_jax.training.parameters import size
from lite3r_jax.training.sharding import MeshOptions, make_mesh
from tools.benchmark.collectives import KINDS, collectives
from tools.benchmark.train_memory import described, make, shapes

pytestmark = [
    pytest.mark.gpu_compile,
    pytest.mark.filterwarnings("ignore:.*Triton.*:DeprecationWarning"),
]

TINY = {
    "img_size": 28, "patch_size": 14, "embed_dim": 64, "vit": {"depth": 2, "num_heads": 4},
    "aggregator": {"depth": 4, "num_heads": 4},
    "camera_head": {"trunk_depth": 1, "num_heads": 4, "num_iterations": 2},
    "dpt": {"features": 8, "out_channels": [8] * 4, "intermediate_layer_idx": [0, 1, 2, 3]},
}  # fmt: skip


def test_parameters_and_optimizer_are_split_over_fsdp_and_gradients_are_summed(tmp_path):
    config = tmp_path / "tiny.json"
    config.write_text(json.dumps(TINY))
    args = argparse.Namespace(
        config=config, dtype="bfloat16", frame_chunk=1, remat=True, here=False, trainable=".*",
        accumulate=1,
    )  # fmt: skip
    mesh = make_mesh(MeshOptions(data=2, fsdp=2), described(4))
    trainer = make(args, mesh)

    def step(views):
        batch = shapes(4, views, (28, 42), mesh, 1)
        lowered = trainer.step.lower(trainer.shapes(), trainer.frozen, batch)
        compiled = lowered.compile({"xla_gpu_enable_triton_gemm": False})
        sent = dict.fromkeys(KINDS, 0)
        for c in collectives(compiled.as_text()):
            sent[c.kind] += c.times * c.size
        return batch, compiled.memory_analysis(), sent

    batch, memory, sent = step(2)
    weights = 4 * size(trainer.params)
    images = sum(x.dtype.itemsize * x.size for x in jax.tree.leaves(batch))
    # Weights and two moments, a half of each but for what two does not divide.
    assert 1.5 * weights < memory.argument_size_in_bytes - images / 4 < 1.6 * weights
    assert memory.alias_size_in_bytes > 0.95 * 1.5 * weights, "the state is overwritten in place"
    assert sent["all-reduce"] + sent["reduce-scatter"] > 0.5 * weights / 2
    assert sent["all-gather"] > 0.4 * weights
    more = step(8)[2]
    assert sum(more.values()) < 1.1 * sum(sent.values()), "weights are sent, and no tokens"
