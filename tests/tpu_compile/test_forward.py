"""A whole forward pass compiled for a described TPU: its kernels, and what is in memory at once.

docs/benchmarks.md has the figures of the full size.
"""

import jax.numpy as jnp
import pytest
from flax import nnx

from lite3r_jax.backbones.dinov2 import EncoderConfig
from lite3r_jax.backbones.heads import DPTConfig
from lite3r_jax.backbones.vggt import ENTRY as BACKBONE
from lite3r_jax.backbones.vggt.camera_head import CameraConfig
from lite3r_jax.backbones.vggt.config import TrunkConfig, VGGTConfig
from lite3r_jax.evaluation.variants import parse_variants
from lite3r_jax.layers.rngs import traced_rngs
from tests.tpu_compile.test_kernels import kernels
from tools.benchmark.forward import lower, planned

pytestmark = pytest.mark.tpu_compile

CONFIG = VGGTConfig(
    vit=EncoderConfig(2),
    aggregator=TrunkConfig(4),
    camera_head=CameraConfig(trunk_depth=1, num_iterations=1),
    dpt=DPTConfig(64, (64, 64, 64, 64), (0, 1, 2, 3)),
)
VIEWS = 8


def compiled(name):
    """The program of a row, and its temporary memory in bfloat16 arrays of all tokens."""
    [row] = parse_variants(name, where="row")
    settings = {"heads": ("camera", "depth"), "plan": planned(row, "v5e")}
    settings |= {"dtype": jnp.bfloat16, "param_dtype": jnp.bfloat16}
    model = nnx.eval_shape(lambda: BACKBONE.build(CONFIG, **settings, rngs=traced_rngs(0)))
    program = lower(model, (1, VIEWS, 518, 518, 3), device="v5e").compile()
    found = program.memory_analysis().temp_size_in_bytes / (VIEWS * 1374 * 1024 * 2)
    print(f"{name}: {found:.2f} arrays")
    return program.as_text(), found


def test_sparse_attention_is_its_kernels_and_fits_where_dense_attention_does():
    plain, dense = compiled("dense-bfloat16")
    text, sparse = compiled("sla_global(keep=0.1)-bfloat16")
    assert kernels(plain) == set()
    assert kernels(text) == {"sla_forward", "block_map_select"}
    assert sparse < 1.5 * dense
