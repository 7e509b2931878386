"""Dense attention, the self-check's definition and small whole models, compiled for TPUs."""

import json

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from lite3r_jax.kernels.dense.flash_tpu import flash_tpu
from lite3r_jax.kernels.sla.reference import sla_reference
from tools.benchmark import forward, tpu, train_memory

pytestmark = pytest.mark.tpu_compile
TINY = {
    "embed_dim": 128,
    "vit": {"depth": 2, "num_heads": 2},
    "aggregator": {"depth": 4, "num_heads": 2},
    "camera_head": {"trunk_depth": 1, "num_heads": 4, "num_iterations": 1},
    "dpt": {
        "features": 32,
        "out_channels": [32, 32, 32, 32],
        "intermediate_layer_idx": [0, 1, 2, 3],
    },
}


def custom_calls(text):
    return text.count('custom_call_target="tpu_custom_call"')


def here(chip):
    return NamedSharding(tpu.mesh(chip), PartitionSpec())


@pytest.mark.parametrize("chip,tokens,head_dim", [("v5e", 10_992, 64), ("v6e", 1_374, 128)])
def test_dense_attention_compiles_without_an_array_of_all_pairs(chip, tokens, head_dim):
    x = jax.ShapeDtypeStruct((1, tokens, 16, head_dim), jnp.bfloat16, sharding=here(chip))

    def both(q, k, v, up):
        o, pull = jax.vjp(flash_tpu, q, k, v)
        return o, *pull(up)

    compiled = tpu.lower(chip, both, x, x, x, x).compile()
    assert custom_calls(compiled.as_text()) == 3
    temporary = compiled.memory_analysis().temp_size_in_bytes
    array = 2 * 16 * tokens * 128  # of 128 lanes, however many are in use
    print(f"temporary {temporary / 2**20:.0f} MiB, {temporary / array:.1f} arrays")
    assert temporary < 24 * array


def test_the_definition_of_the_self_check_compiles_in_float64():
    with jax.enable_x64(True):
        q, w = (
            jax.ShapeDtypeStruct(shape, jnp.float64, sharding=here("v5e"))
            for shape in ((1, 200, 2, 64), (64, 64))
        )
        valid = jnp.ones((1, 200), bool)

        def call(q, w):
            settings = {"routing": "token", "phi": "elu1", "keep": 0.3, "eps": 1e-6}
            return sla_reference(q, q, q, w, None, **settings, q_valid=valid, k_valid=valid)

        text = tpu.lower("v5e", call, q, w).compile().as_text()
    assert "f64[1,200,2,64]" in text or "f32[1,200,2,64]" in text, "in pairs of float32"


@pytest.mark.parametrize("row", ["dense-bfloat16", "sla_global(keep=0.5)-bfloat16"])
def test_a_small_model_has_the_kernels_of_its_plan(row, tmp_path, capsys):
    config = tmp_path / "tiny.json"
    config.write_text(json.dumps(TINY))
    forward.main(
        ["--plan", "v5e", "--config", str(config), "--views", "2", "--height", "112"]
        + ["--width", "112", "--heads", "camera,depth", "--row", row]
    )
    assert "2 views: traced in" in capsys.readouterr().out


@pytest.mark.parametrize("mesh", [{"fsdp": 4}, {"view": 4}, {"data": 2, "fsdp": 4}])
def test_a_step_of_a_small_model_compiles_for_a_slice(mesh, tmp_path, capsys):
    config = tmp_path / "tiny.json"
    config.write_text(json.dumps(TINY))
    words = [word for name, size in mesh.items() for word in (f"--{name}", str(size))]
    train_memory.main(
        ["--plan", "v5e", "--config", str(config), "--views", "4", "--size", "56", "56", *words]
    )
    out = capsys.readouterr().out
    assert "a device needs" in out and "all-" in out
