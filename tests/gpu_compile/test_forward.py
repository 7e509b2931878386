"""A forward pass over many views on a described H200: what of it is in memory at once.

docs/benchmarks.md has the figures of the full size.
"""

from typing import Any

import jax.numpy as jnp
import pytest
from flax import nnx

from lite3r_jax.attention.dense import Dense
from lite3r_jax.attention.strategy import AttentionStrategy
from lite3r_jax.backbones.dinov2 import EncoderConfig
from lite3r_jax.backbones.heads import DPTConfig
from lite3r_jax.backbones.vggt import ENTRY as BACKBONE
from lite3r_jax.backbones.vggt.camera_head import CameraConfig
from lite3r_jax.backbones.vggt.config import TrunkConfig, VGGTConfig
from lite3r_jax.evaluation.variants import held_dtype, parse_variants
from lite3r_jax.layers.rngs import traced_rngs
from tools.benchmark.forward import as_row, lower, planned
from tools.benchmark.launches import launches
from tools.benchmark.roofline import OneLaunch

pytestmark = [
    pytest.mark.gpu_compile,
    pytest.mark.filterwarnings("ignore:.*Triton.*:DeprecationWarning"),
]

CONFIG = VGGTConfig(
    vit=EncoderConfig(2),
    aggregator=TrunkConfig(4),
    camera_head=CameraConfig(trunk_depth=1, num_iterations=1),
    dpt=DPTConfig(64, (64, 64, 64, 64), (0, 1, 2, 3)),
)
VIEWS = 400


def model(name: str, dense: AttentionStrategy) -> Any:
    """Of a row, without values."""
    [row] = parse_variants(name, where="row")
    model = nnx.eval_shape(
        lambda: BACKBONE.build(
            CONFIG,
            heads=("camera", "depth"),
            plan=planned(row, dense=dense),
            dtype=jnp.bfloat16,
            param_dtype=held_dtype(row),
            rngs=traced_rngs(0),
        )
    )
    return as_row(model, row)


def temporary(name: str) -> float:
    """Of a row, in bfloat16 arrays of all tokens."""
    lowered = lower(model(name, Dense("blocked")), (1, VIEWS, 518, 518, 3))
    memory = lowered.compile({"xla_gpu_enable_triton_gemm": False}).memory_analysis()
    arrays = memory.temp_size_in_bytes / (VIEWS * 1374 * 1024 * 2)
    print(f"{name}: {arrays:.2f} arrays")
    return arrays


def test_many_views_take_little_more_than_what_is_kept_the_stream_and_q_k_v():
    """Eight arrays are kept for heads, two are the stream in float32, three are q, k and v."""
    dense, sparse = temporary("dense-bfloat16"), temporary("sla_global(keep=0.1)-fp8_dynamic")
    assert dense < 15
    assert sparse < 1.03 * dense, "sparse attention needs no more"


def test_dense_attention_as_one_launch_leaves_few_of_them():
    """And loops of every kind say how often they turn, those of merged queries as well."""

    def number(name: str) -> int:
        lowered = lower(model(name, OneLaunch()), (1, 120, 518, 518, 3), frame_chunk=8)
        text = lowered.compile({"xla_gpu_enable_triton_gemm": False}).as_text()
        assert text is not None
        return launches(text)

    dense, merged = map(number, ("dense-bfloat16", "spark3r-bfloat16"))
    print(f"{dense} launches, {merged} with merged queries")
    assert dense < 5000, "in blocks there are some 200,000"
    assert dense < merged < 2 * dense
